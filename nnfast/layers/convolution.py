"""Convolutional layers, over images and over sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import activations, initializers
from ..backends.base import Array, Backend
from ..window import Window
from .base import BuildContext, Layer, Shape, positive_int
from .windows import Padding, as_image, check_rank, out_sizes, padding_of, per_axis, spread, window_on

__all__ = ["Conv1D", "Conv2D", "ConvolutionLayer", "DepthwiseConv2D", "PerGroup"]

Sizes = int | tuple[int, ...]


@dataclass(frozen=True)
class PerGroup(initializers.Initializer):
    """Draws the kernel of each group on its own, since a unit of it connects to nothing else."""

    name: ClassVar[str] = "per_group"
    inner: initializers.Initializer
    groups: int
    transposed: bool

    def draw(self, shape: Shape, rng: np.random.Generator) -> np.ndarray:
        *places, inputs, outputs = shape
        each = (*places, inputs, outputs // self.groups)
        if not self.transposed:
            return np.concatenate([self.inner(each, rng) for _ in range(self.groups)], axis=-1)
        swapped = (*places, each[-1], each[-2])
        return np.concatenate([self.inner(swapped, rng).swapaxes(-1, -2) for _ in range(self.groups)], axis=-1)


class ConvolutionLayer(Layer):
    """What convolutional layers share: their options, their weights, and the views that a backend wants."""

    replayable = True
    passes_mask = False

    axes: ClassVar[int] = 2
    paddings: ClassVar[tuple[str, ...]] = ("valid", "same")

    filters: int
    W: Array
    dW: Array
    b: Array | None = None
    db: Array | None = None
    z: Array | None = None

    def _options(
        self,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        activation: Any,
        bias: bool,
        initializer: Any,
        bias_initializer: Any,
        name: str | None,
    ) -> None:
        who = type(self).__name__
        self.kernel_size = per_axis(kernel_size, self.axes, f"{who}: kernel_size")
        self.stride = per_axis(stride, self.axes, f"{who}: stride")
        self.padding: Padding = padding_of(padding, self.axes, who, self.paddings)
        self.dilation = per_axis(dilation, self.axes, f"{who}: dilation")
        self.activation = activations.get(activation)
        self.needs_output = self.activation.saves == "output" and self.activation.name != "identity"
        self.bias = bool(bias)
        # A function gets a description, under which a model file names it
        self.initializer = initializers.get(initializer) if callable(initializer) else initializer
        self.bias_initializer = initializers.get(bias_initializer) if callable(bias_initializer) else bias_initializer
        self.name = name

    def _divided(self, channels: int, groups: int, what: str) -> int:
        """Channels of a group."""
        if channels % groups:
            raise ValueError(f"{type(self).__name__}: {groups} groups do not divide {channels} {what}")
        return channels // groups

    def _declare(
        self, ctx: BuildContext, inputs: int, outputs: int, out_shape: Shape, groups: int, transposed: bool = False
    ) -> Shape:
        """Weights (\\*kernel_size, inputs, outputs), a bias and room for what the activation saves."""
        init = initializers.get(self.initializer or self.activation.initializer)
        if not isinstance(init, initializers.Custom) and (groups > 1 or transposed):
            init = PerGroup(init, groups, transposed)
        ctx.param("W", (*spread(self.kernel_size, self.axes), inputs, outputs), init)
        if self.bias:
            ctx.param("b", out_shape[-1:], self.bias_initializer)
        if self.activation.saves == "input":
            ctx.saved("z", out_shape)
        return out_shape

    def _kernel(self, W: Array) -> Array:
        """`W` as that of images."""
        return W if self.axes == 2 else W.reshape(1, *W.shape)

    def without_activation(self) -> ConvolutionLayer:
        """A copy that stops before the activation: what a loss that starts from logits wants."""
        layer = self.bind({"activation": activations.get("identity")}, training=False, stream=0)
        assert isinstance(layer, ConvolutionLayer)
        return layer


class _Forward(ConvolutionLayer):
    """A convolution proper; `groups` is set, or 0 for a group per channel."""

    groups: int

    def _window(self, spatial: Shape) -> Window:
        return window_on(spatial, self.kernel_size, self.stride, self.padding, self.dilation)

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        who = type(self).__name__
        check_rank(in_shape, self.axes, who)
        *spatial, channels = in_shape
        sizes = out_sizes(who, self._window(tuple(spatial)), tuple(spatial))
        groups, filters = self._groups(channels), self._filters(channels)
        inputs = self._divided(channels, groups, "input channels")
        self._divided(filters, groups, "filters")
        return self._declare(ctx, inputs, filters, (*sizes, filters), groups)

    def _groups(self, channels: int) -> int:
        return self.groups

    def _filters(self, channels: int) -> int:
        return self.filters

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        bk.conv_act(
            as_image(x),
            self._kernel(self.W),
            self.b,
            self.activation,
            self._window(x.shape[1:-1]),
            groups=self._groups(x.shape[-1]),
            out=as_image(y),
            saved=None if self.z is None else as_image(self.z),
        )

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        x = self.x
        bk.conv_act_grad(
            as_image(dy),
            as_image(x),
            self._kernel(self.W),
            as_image(self.y if self.z is None else self.z),
            self.activation,
            self._window(x.shape[1:-1]),
            groups=self._groups(x.shape[-1]),
            dx=None if dx is None else as_image(dx),
            dW=self._kernel(self.dW),
            db=self.db,
        )


class Conv2D(_Forward):
    """``y = f(conv(x, W) + b)`` of images, channels last; as everywhere, a cross-correlation.

    ``conv(x, W)[n, i, j, o] = sum_rsc x[n, i * stride + r * dilation - pad, j * ..., c] * W[r, s, c, o]``.

    Parameters
    ----------
    filters : int
        Number of output channels.
    kernel_size : int or tuple of int
        Height and width of the window.
    activation : str, Activation or None
        Name of `f`; see :mod:`nnfast.activations`. Softmax is over the channels.
    stride : int or tuple of int
        Steps from window to window, down and across.
    padding : str, int or tuple
        ``"valid"``: none. ``"same"``: zeros so that there are ``ceil(size / stride)`` windows, the odd one below and on
        the right, as in Keras and TensorFlow. An integer: so many zeros on all sides. A tuple: for height and width
        each an integer or a pair ``(before, after)``.
    dilation : int or tuple of int
        Steps between neighbours within a window.
    groups : int
        Number of parts into which the channels are divided, each with a convolution of its own.
    bias : bool
        Whether `b` is added.
    initializer : str, Initializer or callable, optional
        For `W`; by default what suits the activation, with the fans of one group.
    bias_initializer : str, Initializer or callable
        For `b`.
    name : str, optional
        Name of the layer in the model; by default ``conv2d``, ``conv2d_1``, ...

    Notes
    -----
    Shapes: `x` (n, height, width, channels), `W` (kh, kw, channels / groups, filters), `b` (filters,), `y`
    (n, out height, out width, filters), ``out = (size + padding - dilation * (kernel_size - 1) - 1) // stride + 1``.

    Windows of 3 x 3 without strides go by Winograd's method on ``"numba"`` where that takes less time (Lavin, Gray:
    "Fast Algorithms for Convolutional Neural Networks", 2016). Results differ from direct sums by rounding, about as
    much as both differ from exact ones; of an infinite pixel they are NaN.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sizes,
        activation: str | activations.Activation | None = "identity",
        *,
        stride: Sizes = 1,
        padding: Padding = "valid",
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        initializer: Any = None,
        bias_initializer: Any = "zeros",
        name: str | None = None,
    ) -> None:
        who = type(self).__name__
        self.filters = positive_int(filters, f"{who}: filters")
        self.groups = positive_int(groups, f"{who}: groups")
        self._options(kernel_size, stride, padding, dilation, activation, bias, initializer, bias_initializer, name)


class Conv1D(Conv2D):
    """``y = f(conv(x, W) + b)`` of sequences.

    ``conv(x, W)[n, t, o] = sum_rc x[n, t * stride + r * dilation - pad, c] * W[r, c, o]``. Arguments are those of
    :class:`Conv2D`, for one axis: `kernel_size`, `stride` and `dilation` are integers, and a tuple as `padding` is
    ``(before, after)``. ``padding="causal"`` adds zeros before the first step only, ``dilation * (kernel_size - 1)`` of
    them, so that no output looks at a later step (van den Oord et al.: "WaveNet", 2016).

    Notes
    -----
    Shapes: `x` (n, steps, channels), `W` (kernel_size, channels / groups, filters), `b` (filters,), `y`
    (n, out steps, filters).
    """

    axes = 1
    paddings = ("valid", "same", "causal")


class DepthwiseConv2D(_Forward):
    """A convolution of each channel on its own, which gives `depth_multiplier` new ones for it.

    Channel ``c`` of the input gives the channels ``c * depth_multiplier`` and following: the grouped
    :class:`Conv2D` with as many groups as channels. Followed by a ``Conv2D(filters, 1)`` it is the separable
    convolution of Chollet: "Xception" (2017).

    Parameters
    ----------
    kernel_size : int or tuple of int
        Height and width of the window.
    activation : str, Activation or None
        Name of `f`; see :mod:`nnfast.activations`. Softmax is over the channels.
    depth_multiplier : int
        Output channels for each input channel.
    stride, padding, dilation, bias, initializer, bias_initializer, name
        As in :class:`Conv2D`.

    Notes
    -----
    Shapes: `x` (n, height, width, channels), `W` (kh, kw, 1, channels * depth_multiplier), `b`
    (channels * depth_multiplier,), `y` (n, out height, out width, channels * depth_multiplier).
    """

    def __init__(
        self,
        kernel_size: Sizes,
        activation: str | activations.Activation | None = "identity",
        *,
        depth_multiplier: int = 1,
        stride: Sizes = 1,
        padding: Padding = "valid",
        dilation: Sizes = 1,
        bias: bool = True,
        initializer: Any = None,
        bias_initializer: Any = "zeros",
        name: str | None = None,
    ) -> None:
        self.depth_multiplier = positive_int(depth_multiplier, "DepthwiseConv2D: depth_multiplier")
        self._options(kernel_size, stride, padding, dilation, activation, bias, initializer, bias_initializer, name)

    def _groups(self, channels: int) -> int:
        return channels

    def _filters(self, channels: int) -> int:
        return channels * self.depth_multiplier
