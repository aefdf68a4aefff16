"""The calls of a convolution and its gradients: where windows lie, how many tasks, what is packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import memory
from . import activations, conv, depthwise, micro, product, threads, tuning
from .driver import Call
from .specialise import kernel
from .sums import reduce_call

__all__ = ["Geometry", "backward_calls", "conv_calls", "forward_calls", "input_grad_calls", "weight_grad_calls"]


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
    def has_border(self) -> bool:
        """Whether windows lie over more than the image."""
        high, wide = self.covered
        return self.top > 0 or self.left > 0 or high > self.height or wide > self.width

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


class _Images:
    """The beginning of a record for the images `x`, or their gradients, and what it points to."""

    def __init__(self, x: np.ndarray, geometry: Geometry) -> None:
        g, size = geometry, x.itemsize
        self.geometry, self.x = g, x
        self.tiles = tuning.image_tiles(len(x), threads.count())
        self.windows = g.windows() * size
        self.places = g.places() * size
        self.keep: list[Any] = [self.windows, self.places]
        border = [0] * 6
        self.room_bytes = x.nbytes // len(x)
        if g.has_border:
            high, wide = g.bordered
            task = -(-high * wide * g.channels // 16) * 16
            room = memory.zeros((self.tiles.tasks, task), x.dtype)
            self.keep.append(room)
            self.room_bytes = high * wide * g.channels * size
            border = [
                room.ctypes.data, task * size, g.pitch * size, (g.top * wide + g.left) * g.channels * size,
                g.height, g.width * g.channels * size,
            ]  # fmt: skip
        self.head = [
            x.ctypes.data, x.nbytes // len(x), g.channels, g.groups, self.windows.ctypes.data, len(self.windows),
            self.places.ctypes.data, len(self.places), g.filters, self.tiles.per_task, *border,
        ]  # fmt: skip

    def call(
        self,
        template: Any,
        rest: Sequence[Any],
        keep: Sequence[Any],
        reads: tuple[np.ndarray, ...],
        writes: tuple[np.ndarray, ...],
        sums: tuple[np.ndarray, ...] = (),
    ) -> Call:
        """A call of a kernel of ``conv.py``, a tile for each image."""
        dtype, g = self.x.dtype, self.geometry
        names = depthwise.kernel_names(dtype) if g.depthwise else conv.kernel_names(dtype)
        depth = len(self.places) * g.channels // g.groups
        return Call(
            kernel(template, dtype, f"v{micro.vector_bytes()}", **names),
            np.array([*self.head, *rest], np.int64), np.zeros(1), self.tiles.number,
            keep=(*self.keep, *keep), tiles=self.tiles, reads=reads, writes=writes, sums=sums,
            nanoseconds=tuning.product_ns(len(self.x) * len(self.windows), g.filters, depth),
        )  # fmt: skip


def _packing(template: Any, ints: list[int], tasks: int, dtype: Any, keep: tuple[Any, ...]) -> Call:
    names = conv.kernel_names(dtype)
    address = kernel(template, dtype, f"v{micro.vector_bytes()}", **names)
    return Call(address, np.array(ints, np.int64), np.zeros(1), tasks, keep=keep, when="early")


def conv_calls(
    x: np.ndarray, W: np.ndarray, b: np.ndarray | None, relu: bool, geometry: Geometry, out: np.ndarray
) -> list[Call]:
    """The calls of ``out = conv(x, W) + b``, through ReLU if so."""
    g, images, dtype = geometry, _Images(x, geometry), x.dtype
    blocks = product.blocking(dtype)
    filters = g.filters // g.groups
    offsets, length = g.runs()
    offsets = offsets * x.itemsize
    depth = len(offsets) * length
    calls: list[Call] = []
    keep: list[Any] = [offsets, x, W, b, out]
    to_bias = 0 if b is None else b.ctypes.data
    if g.depthwise:
        rest = [out.ctypes.data, out.nbytes // len(out), W.ctypes.data, 0, 0, to_bias, relu]
        return [images.call(depthwise.depthwise_image, rest, keep, (x,), (out,))]
    # One panel lies in W as it would be packed
    packed = filters > blocks.shape.columns or not blocks.reads_columns(2, filters, False, False)
    weights = [W.ctypes.data, filters * W.itemsize]
    if packed:
        size = -(-blocks.columns_size(depth, filters) // 16) * 16
        to = memory.empty((g.groups, size), dtype)
        ints = [to.ctypes.data, size * x.itemsize, W.ctypes.data, depth, filters, g.filters]
        calls.append(_packing(conv.pack_groups, ints, g.groups, dtype, (to, W)))
        weights = [to.ctypes.data, size * x.itemsize]
        keep.append(to)
    rest = [
        out.ctypes.data, out.nbytes // len(out), *weights, packed, to_bias, relu,
        len(offsets), offsets.ctypes.data, length, max(1, tuning.PRODUCT_DEPTH // length),
    ]  # fmt: skip
    return [*calls, images.call(conv.conv_image, rest, keep, (x,), (out,))]


def input_grad_calls(dy: np.ndarray, W: np.ndarray, geometry: Geometry, dx: np.ndarray) -> list[Call]:
    """The calls of the gradient for the images."""
    g, images, dtype = geometry, _Images(dx, geometry), dx.dtype
    if g.depthwise:
        rest = [dy.ctypes.data, dy.nbytes // len(dy), W.ctypes.data, 0, images.room_bytes]
        return [images.call(depthwise.depthwise_input_image, rest, (dy, W, dx), (dy,), (dx,))]
    blocks = product.blocking(dtype)
    channels, filters = g.channels // g.groups, g.filters // g.groups
    places = len(images.places)
    size = -(-blocks.columns_size(filters, channels) // 16) * 16
    to = memory.empty((g.groups * places, size), dtype)
    ints = [to.ctypes.data, size * dx.itemsize, W.ctypes.data, places, channels, filters, g.filters]
    pack = _packing(conv.pack_places, ints, g.groups * places, dtype, (to, W))
    rest = [dy.ctypes.data, dy.nbytes // len(dy), to.ctypes.data, size * dx.itemsize, images.room_bytes]
    return [pack, images.call(conv.conv_input_image, rest, (dy, to, dx), (dy,), (dx,))]


def weight_grad_calls(dy: np.ndarray, x: np.ndarray, geometry: Geometry, dW: np.ndarray) -> list[Call]:
    """The calls of the gradient for the weights: a part for each thread, and their sum."""
    g, images = geometry, _Images(x, geometry)
    tasks, size = images.tiles.tasks, x.itemsize
    parts = dW[None] if tasks == 1 else memory.empty((tasks, *dW.shape), dW.dtype)
    if g.depthwise:
        rest = [
            dy.ctypes.data, dy.nbytes // len(dy), parts.ctypes.data, dW.nbytes, g.rows, g.columns,
            g.stride[0] * g.pitch * size, g.stride[1] * g.channels * size,
        ]  # fmt: skip
        call = images.call(depthwise.depthwise_weight_image, rest, (dy, x, parts), (dy, x), (), (parts,))
        return [call] if tasks == 1 else [call, reduce_call(parts, dW)]
    inner = np.arange(g.channels // g.groups)
    rows = (images.places[:, None] + inner * size).reshape(-1)
    lines = np.arange(g.rows) * (g.stride[0] * g.pitch * size)
    rest = [
        dy.ctypes.data, dy.nbytes // len(dy), parts.ctypes.data, dW.nbytes, len(rows), rows.ctypes.data,
        g.rows, lines.ctypes.data, g.columns, g.stride[1] * g.channels * size,
        max(1, tuning.WINDOWS_AT_ONCE // g.columns),
    ]  # fmt: skip
    call = images.call(conv.conv_weight_image, rest, (rows, lines, dy, x, parts), (dy, x), (), (parts,))
    return [call] if tasks == 1 else [call, reduce_call(parts, dW)]


def forward_calls(
    x: np.ndarray,
    W: np.ndarray,
    b: np.ndarray | None,
    name: str,
    alpha: float,
    geometry: Geometry,
    out: np.ndarray,
    saved: np.ndarray | None,
) -> list[Call]:
    """The calls of ``out = f(conv(x, W) + b)``; ``saved`` takes what f is applied to."""
    if name in ("identity", "relu") and saved is None:
        return conv_calls(x, W, b, name == "relu", geometry, out)
    calls = conv_calls(x, W, b, False, geometry, out)
    tiles = calls[-1].tiles
    assert tiles is not None
    pixels = out.reshape(-1, out.shape[-1])
    flat = None if saved is None else saved.reshape(pixels.shape)
    after = activations.forward_call(name, alpha, pixels, None, flat, activations.rows_in(out, tiles))
    after.tiles, after.reads, after.writes = tiles, (out,), (out, saved)
    return [*calls, after]


def backward_calls(
    dy: np.ndarray,
    x: np.ndarray,
    W: np.ndarray,
    saved: np.ndarray | None,
    name: str,
    alpha: float,
    geometry: Geometry,
    dx: np.ndarray | None,
    dW: np.ndarray,
    db: np.ndarray | None,
) -> list[Call]:
    """The calls of the gradients; `dy` becomes dz."""
    calls: list[Call] = []
    after: list[Call] = []
    tiles = tuning.image_tiles(len(x), threads.count())
    if name != "identity" or db is not None:
        parts = None if db is None else memory.empty((len(dy), dy.shape[-1]), dy.dtype)
        pixels = dy.reshape(-1, dy.shape[-1])
        of = pixels if saved is None else saved.reshape(pixels.shape)
        call = activations.backward_call(name, alpha, pixels, of, parts, activations.rows_in(dy, tiles))
        call.tiles, call.reads, call.writes = tiles, (dy,) if saved is None else (dy, saved), (dy,)
        calls.append(call)
        if parts is not None and db is not None:
            after.append(reduce_call(parts, db))
    product_call, *sums = weight_grad_calls(dy, x, geometry, dW)
    calls.append(product_call)
    if dx is not None:
        calls += input_grad_calls(dy, W, geometry, dx)
    return [*calls, *sums, *after]
