"""Layers that change the shape of images and sequences, and not what is in them."""

from __future__ import annotations

from math import prod
from typing import ClassVar

from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape, integer
from .windows import Padding, as_image, check_rank, padding_of, per_axis, spread, window_on

__all__ = ["Reshape", "UpSampling1D", "UpSampling2D", "ZeroPadding1D", "ZeroPadding2D"]


class Reshape(Layer):
    """Each row gets another shape of the same size; the data stay where they are.

    Parameters
    ----------
    shape : tuple of int
        Shape of a row of the output; one size may be -1, for what is left.
    name : str, optional
        Name of the layer in the model.
    """

    replayable = True
    passes_mask = False

    def __init__(self, shape: tuple[int, ...], *, name: str | None = None) -> None:
        sizes = shape if isinstance(shape, (tuple, list)) else (shape,)
        self.shape = tuple(integer(n, "Reshape: sizes", -1) for n in sizes)
        if 0 in self.shape or self.shape.count(-1) > 1:
            raise ValueError(f"Reshape: sizes must be at least 1, and one of them may be -1, got {self.shape}")
        self.name = name

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        size, known = prod(in_shape), prod(n for n in self.shape if n != -1)
        if size % known or (-1 not in self.shape and size != known):
            raise ValueError(f"Reshape: rows of shape {in_shape} have {size} elements, which do not make {self.shape}")
        return tuple(size // known if n == -1 else n for n in self.shape)

    def is_view(self, training: bool) -> bool:
        return True


class ZeroPadding2D(Layer):
    """Zeros around each image.

    Parameters
    ----------
    padding : int or tuple
        Pixels on all sides, or for height and width each an integer or a pair ``(before, after)``.
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Shapes: `x` (n, height, width, channels), `y` (n, above + height + below, left + width + right, channels).
    """

    replayable = True
    needs_input = needs_output = False
    passes_mask = False
    axes: ClassVar[int] = 2

    def __init__(self, padding: Padding = 1, *, name: str | None = None) -> None:
        who = type(self).__name__
        if isinstance(padding, str):
            raise TypeError(f"{who}: padding must be an integer or a tuple, not {padding!r}")
        self.padding = padding_of(padding, self.axes, who)
        self.name = name

    def _sides(self) -> tuple[tuple[int, int], ...]:
        """What is added above and below, and on the left and on the right; of a sequence, nothing above."""
        return window_on((1,) * self.axes, 1, padding=self.padding).padding

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        check_rank(in_shape, self.axes, type(self).__name__)
        *spatial, channels = in_shape
        sizes = (n + sum(sides) for n, sides in zip(spatial, self._sides()[-self.axes :], strict=True))
        return (*sizes, channels)

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        (top, _), (left, _) = self._sides()
        bk.pad(as_image(x), top, left, out=as_image(y))

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        if dx is not None:
            (top, _), (left, _) = self._sides()
            bk.crop(as_image(dy), top, left, out=as_image(dx))


class ZeroPadding1D(ZeroPadding2D):
    """Zeros before and after each sequence.

    Parameters
    ----------
    padding : int or tuple of int
        Steps on both sides, or ``(before, after)``.
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Shapes: `x` (n, steps, channels), `y` (n, before + steps + after, channels).
    """

    axes = 1


class UpSampling2D(Layer):
    """Each pixel becomes a block: of equal ones, or with what lies between centres of pixels interpolated.

    Parameters
    ----------
    size : int or tuple of int
        Height and width of the blocks.
    interpolation : {"nearest", "bilinear"}
        "nearest": ``y[n, i, j] = x[n, i // down, j // across]``. "bilinear": along each axis the mean of the two pixels
        whose centres are nearest, weighted by how near they are; beyond the outer centres the outer pixel.
    name : str, optional
        Name of the layer in the model.

    Raises
    ------
    ValueError
        If `size` is less than 1, or there is no such interpolation.

    Notes
    -----
    Shapes: `x` (n, height, width, channels), `y` (n, height * down, width * across, channels).

    Along an axis of f times as many pixels, pixel i has the coordinate ``(i + 1/2) / f - 1/2`` between those of `x`, as
    in Keras's layer of this name and in PyTorch's ``Upsample`` with ``align_corners=False``.
    """

    replayable = True
    needs_input = needs_output = False
    passes_mask = False
    axes: ClassVar[int] = 2
    interpolations: ClassVar[tuple[str, str]] = ("nearest", "bilinear")

    def __init__(
        self, size: int | tuple[int, ...] = 2, interpolation: str = "nearest", *, name: str | None = None
    ) -> None:
        who = type(self).__name__
        self.size = per_axis(size, self.axes, f"{who}: size")
        if interpolation not in self.interpolations:
            choices = " or ".join(map(repr, self.interpolations))
            raise ValueError(f"{who}: interpolation must be {choices}, got {interpolation!r}")
        self.interpolation = interpolation
        self.name = name

    def _factors(self) -> tuple[int, int]:
        down, across = (1, *spread(self.size, self.axes))[-2:]
        return down, across

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        check_rank(in_shape, self.axes, type(self).__name__)
        *spatial, channels = in_shape
        return (*(n * factor for n, factor in zip(spatial, spread(self.size, self.axes), strict=True)), channels)

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        method = bk.upsample if self.interpolation == "nearest" else bk.upsample_bilinear
        method(as_image(x), self._factors(), out=as_image(y))

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        if dx is not None:
            method = bk.upsample_grad if self.interpolation == "nearest" else bk.upsample_bilinear_grad
            method(as_image(dy), self._factors(), dx=as_image(dx))


class UpSampling1D(UpSampling2D):
    """Each step becomes several: equal ones, or with what lies between steps interpolated.

    Parameters
    ----------
    size : int
        How many.
    interpolation : {"nearest", "linear"}
        "nearest": ``y[n, t] = x[n, t // size]``. "linear": as "bilinear" of :class:`UpSampling2D`, along the one axis.
    name : str, optional
        Name of the layer in the model.

    Raises
    ------
    ValueError
        If `size` is less than 1, or there is no such interpolation.

    Notes
    -----
    Shapes: `x` (n, steps, channels), `y` (n, steps * size, channels).
    """

    axes = 1
    interpolations = ("nearest", "linear")
