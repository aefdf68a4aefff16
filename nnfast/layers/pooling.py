"""Pooling layers, over images and over sequences."""

from __future__ import annotations

from typing import ClassVar

from ..backends.base import Array, Backend
from ..window import Window
from .base import BuildContext, Layer, Shape
from .windows import Padding, as_image, check_rank, out_sizes, padding_of, per_axis, window_on

__all__ = [
    "AvgPool1D",
    "AvgPool2D",
    "GlobalAvgPool1D",
    "GlobalAvgPool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "MaxPool1D",
    "MaxPool2D",
]

Sizes = int | tuple[int, ...]


class _Pooling(Layer):
    """What pooling layers share; a subclass says what is done with a window."""

    replayable = True
    passes_mask = False
    axes: ClassVar[int] = 2

    def _window(self, spatial: Shape) -> Window:
        raise NotImplementedError

    def _pool(self, bk: Backend, x: Array, window: Window, y: Array) -> None:
        raise NotImplementedError

    def _pool_grad(self, bk: Backend, dy: Array, x: Array, y: Array, window: Window, dx: Array) -> None:
        raise NotImplementedError

    def _result(self, y: Array, window: Window) -> Array:
        """The output as an image, a pixel for each window."""
        return as_image(y)

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        window = self._window(x.shape[1:-1])
        self._pool(bk, as_image(x), window, self._result(y, window))

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        if dx is not None:
            window = self._window(self.x.shape[1:-1])
            y, dy = self._result(self.y, window), self._result(dy, window)
            self._pool_grad(bk, dy, as_image(self.x), y, window, as_image(dx))


class _Windows(_Pooling):
    """Pooling of windows of a size."""

    size: Sizes
    stride: Sizes | None
    padding: Padding

    def __init__(
        self, size: Sizes = 2, stride: Sizes | None = None, padding: Padding = "valid", *, name: str | None = None
    ) -> None:
        who = type(self).__name__
        self.size = per_axis(size, self.axes, f"{who}: size")
        self.stride = None if stride is None else per_axis(stride, self.axes, f"{who}: stride")
        self.padding = padding_of(padding, self.axes, who)
        self.name = name

    def _window(self, spatial: Shape) -> Window:
        return window_on(spatial, self.size, self.size if self.stride is None else self.stride, self.padding)

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        who = type(self).__name__
        check_rank(in_shape, self.axes, who)
        *spatial, channels = in_shape
        window = self._window(tuple(spatial))
        for size, sides in zip(window.size, window.padding, strict=True):
            if max(sides) >= size:
                raise ValueError(f"{who}: padding must be less than the size of the window, {size}, got {max(sides)}")
        return (*out_sizes(who, window, tuple(spatial)), channels)


class _Global(_Pooling):
    """Pooling of all of an image, or of a sequence."""

    refuses_mask = True  # steps of an image are nothing that could be left out

    def __init__(self, *, name: str | None = None) -> None:
        self.name = name

    def _window(self, spatial: Shape) -> Window:
        height, width = (1, *spatial)[-2:]
        return Window((height, width))

    def _result(self, y: Array, window: Window) -> Array:
        return y.reshape(y.shape[0], 1, 1, y.shape[-1])

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        check_rank(in_shape, self.axes, type(self).__name__)
        return in_shape[-1:]


class _Max(_Pooling):
    def _pool(self, bk: Backend, x: Array, window: Window, y: Array) -> None:
        bk.max_pool(x, window, out=y)

    def _pool_grad(self, bk: Backend, dy: Array, x: Array, y: Array, window: Window, dx: Array) -> None:
        bk.max_pool_grad(dy, x, y, window, dx=dx)


class _Avg(_Pooling):
    needs_input = needs_output = False
    count_padding: bool = False

    def _pool(self, bk: Backend, x: Array, window: Window, y: Array) -> None:
        bk.avg_pool(x, window, count_padding=self.count_padding, out=y)

    def _pool_grad(self, bk: Backend, dy: Array, x: Array, y: Array, window: Window, dx: Array) -> None:
        bk.avg_pool_grad(dy, window, count_padding=self.count_padding, dx=dx)


class MaxPool2D(_Max, _Windows):
    """The largest of each window of an image, per channel.

    Parameters
    ----------
    size : int or tuple of int
        Height and width of the window.
    stride : int or tuple of int, optional
        Steps from window to window, down and across; by default the size, so that windows do not overlap.
    padding : str, int or tuple
        As in :class:`~nnfast.layers.Conv2D`, less than the size. What is added never is the largest.
    name : str, optional
        Name of the layer in the model; by default ``maxpool2d``, ``maxpool2d_1``, ...

    Notes
    -----
    Shapes: `x` (n, height, width, channels), `y` (n, out height, out width, channels) with
    ``out = (size + padding - window) // stride + 1``. Of equal pixels the first one, row by row, gets the gradient.
    """


class MaxPool1D(_Max, _Windows):
    """The largest of each window of a sequence, per channel.

    Arguments are those of :class:`MaxPool2D`, for one axis: a tuple as `padding` is ``(before, after)``.

    Notes
    -----
    Shapes: `x` (n, steps, channels), `y` (n, out steps, channels).
    """

    axes = 1


class AvgPool2D(_Avg, _Windows):
    """The mean of each window of an image, per channel.

    Parameters
    ----------
    size : int or tuple of int
        Height and width of the window.
    stride : int or tuple of int, optional
        Steps from window to window, down and across; by default the size, so that windows do not overlap.
    padding : str, int or tuple
        As in :class:`~nnfast.layers.Conv2D`, less than the size.
    count_padding : bool
        Whether the zeros that are added count, as in PyTorch by default, or the mean is that of the pixels that are
        there, as in Keras.
    name : str, optional
        Name of the layer in the model; by default ``avgpool2d``, ``avgpool2d_1``, ...

    Notes
    -----
    Shapes: `x` (n, height, width, channels), `y` (n, out height, out width, channels) with
    ``out = (size + padding - window) // stride + 1``.
    """

    def __init__(
        self,
        size: Sizes = 2,
        stride: Sizes | None = None,
        padding: Padding = "valid",
        *,
        count_padding: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(size, stride, padding, name=name)
        self.count_padding = bool(count_padding)


class AvgPool1D(AvgPool2D):
    """The mean of each window of a sequence, per channel.

    Arguments are those of :class:`AvgPool2D`, for one axis: a tuple as `padding` is ``(before, after)``.

    Notes
    -----
    Shapes: `x` (n, steps, channels), `y` (n, out steps, channels).
    """

    axes = 1


class GlobalMaxPool2D(_Max, _Global):
    """The largest pixel of an image, per channel: (n, height, width, channels) becomes (n, channels).

    Parameters
    ----------
    name : str, optional
        Name of the layer in the model.
    """


class GlobalMaxPool1D(_Max, _Global):
    """The largest step of a sequence, per channel: (n, steps, channels) becomes (n, channels).

    Parameters
    ----------
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Steps that are masked do not count; where all of them are, `y` is 0, and so is the gradient. Of equal steps the
    first one gets the gradient.
    """

    axes = 1
    refuses_mask = False

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        if self.mask is None:
            super().forward(bk, x, y)
        else:
            bk.masked_max(x, self.mask, out=y)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        if self.mask is None:
            super().backward(bk, dy, dx)
        elif dx is not None:
            bk.masked_max_grad(dy, self.x, self.y, self.mask, dx=dx)


class GlobalAvgPool2D(_Avg, _Global):
    """The mean of an image, per channel: (n, height, width, channels) becomes (n, channels).

    Parameters
    ----------
    name : str, optional
        Name of the layer in the model.
    """


class GlobalAvgPool1D(_Avg, _Global):
    """The mean of a sequence, per channel: (n, steps, channels) becomes (n, channels).

    Parameters
    ----------
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Steps that are masked do not count, as in Keras: ``y = sum_t m_t x_t / sum_t m_t`` with the mask `m`. Where all of
    them are masked, `y` is 0, and so is the gradient.
    """

    axes = 1
    refuses_mask = False

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        if self.mask is None:
            super().forward(bk, x, y)
        else:
            bk.masked_mean(x, self.mask, out=y)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        if self.mask is None:
            super().backward(bk, dy, dx)
        elif dx is not None:
            bk.masked_mean_grad(dy, self.mask, dx=dx)
