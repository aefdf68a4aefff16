"""The transposed convolution."""

from __future__ import annotations

from typing import Any

from .. import activations
from ..backends.base import Array, Backend
from ..window import Window
from .base import BuildContext, Shape, positive_int, rows
from .convolution import ConvolutionLayer, Sizes
from .windows import Padding, check_rank, per_axis, spread, window_on


class Conv2DTranspose(ConvolutionLayer):
    """``y = f(conv_transpose(x, W) + b)``: a convolution run backwards, which makes images larger by `stride`.

    ``conv_transpose(x, W)`` is the gradient for its input of the :class:`Conv2D` with kernel `W`: each pixel of `x`
    adds its multiple of the kernel to a window of `y`, and the windows lie `stride` apart. Also known as fractionally
    strided convolution or deconvolution.

    Parameters
    ----------
    filters : int
        Number of output channels.
    kernel_size : int or tuple of int
        Height and width of the window.
    activation : str, Activation or None
        Name of `f`; see :mod:`nnfast.activations`. Softmax is over the channels.
    stride : int or tuple of int
        Steps from window to window of the output.
    padding : str, int or tuple
        What is cut off the sides of the output. ``"valid"``: nothing. ``"same"``: so much that the output is ``stride``
        times as large, the odd one below and on the right. An integer: so many pixels on all sides, as in PyTorch. A
        tuple: for height and width each an integer or a pair ``(before, after)``.
    output_padding : int or tuple of int, optional
        Rows and columns that the output has more, below and on the right, less than the stride: several sizes of `y`
        give one size of `x`, and this says which one is meant. By default 0, but with ``"valid"`` what makes the output
        at least `stride` times as large, as Keras has it. Not with ``"same"``, which fixes the size.
    dilation, groups, bias, initializer, bias_initializer, name
        As in :class:`Conv2D`.

    Notes
    -----
    Shapes: `x` (n, height, width, channels), `W` (kh, kw, filters / groups, channels), `b` (filters,), `y`
    (n, out height, out width, filters) with
    ``out = (size - 1) * stride + dilation * (kernel_size - 1) + 1 - padding + output_padding``.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sizes,
        activation: str | activations.Activation | None = "identity",
        *,
        stride: Sizes = 1,
        padding: Padding = "valid",
        output_padding: Sizes | None = None,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        initializer: Any = None,
        bias_initializer: Any = "zeros",
        name: str | None = None,
    ) -> None:
        self.filters = positive_int(filters, "Conv2DTranspose: filters")
        self.groups = positive_int(groups, "Conv2DTranspose: groups")
        self._options(kernel_size, stride, padding, dilation, activation, bias, initializer, bias_initializer, name)
        self.output_padding = self._check_output_padding(output_padding)

    def _check_output_padding(self, value: Any) -> Sizes | None:
        if value is None:
            return None
        what = "Conv2DTranspose: output_padding"
        if self.padding == "same":
            raise ValueError(f"{what} goes with numbers and 'valid'; 'same' fixes the size, got {value!r}")
        more = per_axis(value, 2, what, least=0)
        for number, stride in zip(spread(more, 2), spread(self.stride, 2), strict=True):
            if number >= stride:
                raise ValueError(f"{what} must be less than the stride, {self.stride}, got {value!r}")
        return more

    def output_and_window(self, spatial: Shape) -> tuple[Shape, Window]:
        """Size of the output, and the window of the convolution that this is the transpose of."""
        window = window_on(spatial, self.kernel_size, self.stride, self.padding, self.dilation)
        cuts, extent, strides = window.padding, window.extent, window.stride
        if self.padding == "same":
            totals = [max(e - s, 0) for e, s in zip(extent, strides, strict=True)]
            cuts = tuple((total // 2, total - total // 2) for total in totals)  # type: ignore[assignment]
        if self.output_padding is not None:
            extra = spread(self.output_padding, 2)
        elif isinstance(self.padding, str):
            extra = tuple(max(s - e, 0) for e, s in zip(extent, strides, strict=True))
        else:
            extra = (0, 0)
        sizes = tuple(
            (n - 1) * s + e - sum(cut) + more
            for n, e, s, cut, more in zip(spatial, extent, strides, cuts, extra, strict=True)
        )
        return sizes, Window(window.size, strides, cuts, window.dilation)

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        check_rank(in_shape, 2, "Conv2DTranspose")
        *spatial, channels = in_shape
        sizes, window = self.output_and_window(tuple(spatial))
        if min(sizes) < 1:
            cut = " and ".join(f"{a} + {b}" for a, b in window.padding)
            raise ValueError(
                f"Conv2DTranspose: nothing is left of an image of {spatial[0]}x{spatial[1]}: the output would be "
                f"{sizes[0]}x{sizes[1]} after {cut} rows and columns are cut off"
            )
        self._divided(channels, self.groups, "input channels")
        outputs = self._divided(self.filters, self.groups, "filters")
        return self._declare(ctx, outputs, channels, (*sizes, self.filters), self.groups, transposed=True)

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        _, window = self.output_and_window(x.shape[1:-1])
        bk.conv_input_grad(x, self.W, window, groups=self.groups, dx=y)
        if self.b is not None:
            bk.add_bias(rows(y), self.b, out=rows(y))
        if self.z is not None:
            bk.copy(y, out=self.z)
        if self.activation.name != "identity":
            bk.act(self.activation, rows(y), out=rows(y))

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        _, window = self.output_and_window(self.x.shape[1:-1])
        if self.activation.name != "identity":
            saved = self.y if self.z is None else self.z
            bk.act_grad(self.activation, rows(dy), rows(saved), out=rows(dy))
        if self.db is not None:
            bk.sum_rows(rows(dy), out=self.db)
        # The roles of image and gradient are swapped
        bk.conv_weight_grad(self.x, dy, window, groups=self.groups, dW=self.dW)
        if dx is not None:
            bk.conv(dy, self.W, window, groups=self.groups, out=dx)
