"""Where the windows of a convolution lie on images, and what all records of its kernels begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import memory
from . import micro, threads, tuning
from .driver import Call
from .specialise import kernel

__all__ = ["Geometry", "Images", "packing_call"]


@dataclass(frozen=True)
class Geometry:
    """Where the windows of a convolution lie on an image, in elements.

    Attributes
    ----------
    height, width, channels : int
        Of the image.
    size, stride, dilation : tuple of int
        Of the window.
    top, left : int
        Border before the image.
    rows, columns : int
        Number of windows, down and across.
    groups, filters : int
    """

    height: int
    width: int
    channels: int
    size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    rows: int
    columns: int
    groups: int
    filters: int

    @cached_property
    def covered(self) -> tuple[int, int]:
        """Height and width of what the windows lie over, from the border's corner on."""
        high, wide = (
            (count - 1) * step + reach * (size - 1) + 1
            for count, step, reach, size in zip(
                (self.rows, self.columns), self.stride, self.dilation, self.size, strict=True
            )
        )
        return high, wide

    @cached_property
    def bordered(self) -> tuple[int, int]:
        """Height and width of the image with its border."""
        high, wide = self.covered
        return max(high, self.top + self.height), max(wide, self.left + self.width)

    @property
    def pitch(self) -> int:
        """Elements from one row of pixels to the next, where windows lie."""
        return self.bordered[1] * self.channels

    @property
    def depthwise(self) -> bool:
        """Whether each channel has one filter of its own."""
        return self.groups == self.channels == self.filters > 1

    def windows(self) -> np.ndarray:
        """Offset of each window's corner."""
        down = np.arange(self.rows) * (self.stride[0] * self.pitch)
        across = np.arange(self.columns) * (self.stride[1] * self.channels)
        return (down[:, None] + across).reshape(-1)

    def places(self) -> np.ndarray:
        """Offset of each place within a window."""
        down = np.arange(self.size[0]) * (self.dilation[0] * self.pitch)
        across = np.arange(self.size[1]) * (self.dilation[1] * self.channels)
        return (down[:, None] + across).reshape(-1)

    def runs(self) -> tuple[np.ndarray, int]:
        """Offsets within a window from where on its numbers lie in one piece, and how many do."""
        length = self.size[1] * self.channels
        if self.groups == 1 and self.dilation[1] == 1 and length <= tuning.PRODUCT_DEPTH:
            return np.arange(self.size[0]) * (self.dilation[0] * self.pitch), length
        return self.places(), self.channels // self.groups


class Images:
    """The beginning of a record for the images `x`, or their gradients, and what it points to.

    With `extent` the room for an image with its border has at least that height and width.
    """

    def __init__(self, x: np.ndarray, geometry: Geometry, extent: tuple[int, int] = (0, 0)) -> None:
        g, size = geometry, x.itemsize
        self.geometry, self.x = g, x
        self.tiles = tuning.image_tiles(len(x), threads.count())
        self.windows = g.windows() * size
        self.places = g.places() * size
        self.keep: list[Any] = [self.windows, self.places]
        border = [0] * 6
        self.room_bytes = x.nbytes // len(x)
        high, wide = (max(pair) for pair in zip(g.bordered, extent, strict=True))
        self.line_bytes = g.width * g.channels * size
        if high > g.height or wide > g.width:
            self.line_bytes = wide * g.channels * size
            task = -(-high * wide * g.channels // 16) * 16
            room = memory.zeros((self.tiles.tasks, task), x.dtype)
            self.keep.append(room)
            self.room_bytes = high * wide * g.channels * size
            border = [
                room.ctypes.data, task * size, self.line_bytes, (g.top * wide + g.left) * g.channels * size,
                g.height, g.width * g.channels * size,
            ]  # fmt: skip
        self.head = [
            x.ctypes.data, x.nbytes // len(x), g.channels, g.groups, self.windows.ctypes.data, len(self.windows),
            self.places.ctypes.data, len(self.places), g.filters, self.tiles.per_task, *border,
        ]  # fmt: skip

    def call(
        self,
        template: Any,
        names: Any,
        rest: Sequence[Any],
        keep: Sequence[Any],
        reads: tuple[np.ndarray, ...],
        writes: tuple[np.ndarray, ...],
        sums: tuple[np.ndarray, ...] = (),
    ) -> Call:
        """A call of a kernel with these `names`, a tile for each image."""
        dtype, g = self.x.dtype, self.geometry
        depth = len(self.places) * g.channels // g.groups
        return Call(
            kernel(template, dtype, f"v{micro.vector_bytes()}", **names(dtype)),
            np.array([*self.head, *rest], np.int64), np.zeros(1), self.tiles.number,
            keep=(*self.keep, *keep), tiles=self.tiles, reads=reads, writes=writes, sums=sums,
            nanoseconds=tuning.product_ns(len(self.x) * len(self.windows), g.filters, depth),
        )  # fmt: skip


def packing_call(template: Any, names: Any, ints: Sequence[int], tasks: int, dtype: Any, keep: tuple[Any, ...]) -> Call:
    """A call that packs weights, before anything else of a step."""
    address = kernel(template, dtype, f"v{micro.vector_bytes()}", **names(dtype))
    return Call(address, np.array(ints, np.int64), np.zeros(1), tasks, keep=keep, when="early")
