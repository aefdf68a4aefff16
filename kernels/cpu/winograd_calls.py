"""The calls of a convolution by Winograd's method: for which shapes, how much at a time, what is packed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import memory
from . import micro, product, threads, tuning, winograd
from .conv_images import Geometry, Images, packing_call
from .driver import Call
from .specialise import kernel
from .winograd import POINTS

__all__ = ["pays", "pays_for_weights", "turned", "winograd_calls", "winograd_weight_calls"]

_LINE = memory.ALIGNMENT


def _tiles(geometry: Geometry) -> tuple[int, int]:
    """Tiles of 2 x 2 results, down and across."""
    return -(-geometry.rows // 2), -(-geometry.columns // 2)


def _fits(geometry: Geometry) -> bool:
    g = geometry
    return g.size == (3, 3) and g.stride == (1, 1) and g.dilation == (1, 1) and g.groups == 1


def pays(images: int, geometry: Geometry, dtype: Any) -> bool:
    """Whether this takes less time than the products of ``conv.py``."""
    g, dtype = geometry, np.dtype(dtype)
    down, across = _tiles(g)
    tiles, weights = down * across, POINTS * g.channels * g.filters * dtype.itemsize
    return (
        _fits(g)
        and min(g.channels, g.filters) >= tuning.WINOGRAD_CHANNELS
        and weights <= tuning.WINOGRAD_WEIGHTS
        and tiles >= tuning.WINOGRAD_TILES
        and images * tiles >= tuning.WINOGRAD_BATCH_TILES
        and g.rows * g.columns >= tuning.WINOGRAD_USED * 4 * tiles
    )


def pays_for_weights(images: int, geometry: Geometry, dtype: Any) -> bool:
    """Whether it does for the gradient of the weights, whose products read both matrices where they lie."""
    return pays(images, geometry, dtype) and product.blocking(dtype).reads_columns(2, geometry.filters, True, False)


def turned(geometry: Geometry) -> Geometry | None:
    """The convolution, with the window turned around, that takes gradients of results to those of images."""
    g = geometry
    if not _fits(g) or g.top > 2 or g.left > 2:
        return None
    return Geometry(
        height=g.rows, width=g.columns, channels=g.filters, size=g.size, stride=g.stride, dilation=g.dilation,
        top=2 - g.top, left=2 - g.left, rows=g.height, columns=g.width, groups=1, filters=g.channels,
    )  # fmt: skip


class _Strips:
    """The images, and the room of each task for what becomes of some rows of tiles."""

    def __init__(self, x: np.ndarray, geometry: Geometry) -> None:
        g, size = geometry, x.itemsize
        down, across = _tiles(g)
        self.images = Images(x, g, (2 * down + 2, 2 * across + 2))
        # Rows that clash would push each other out of the cache, as would planes at the same place of its sets
        row = g.channels if product.blocking(x.dtype).reads_rows(g.channels) else g.channels + _LINE // size
        lines = max(1, tuning.WINOGRAD_BYTES // (POINTS * across * (row + g.filters) * size))
        lines = -(-down // -(-down // min(lines, down)))  # evenly
        values, products = (-(-lines * across * n * size // _LINE) * _LINE + _LINE for n in (row, g.filters))
        self.room = memory.empty((self.images.tiles.tasks, POINTS * (values + products)), np.uint8)
        address, apart = self.room.ctypes.data, self.room.strides[0]
        self.ints = [
            address, apart, values, row, address + POINTS * values, apart, products,
            down, across, lines, g.rows, g.columns, self.images.line_bytes,
        ]  # fmt: skip


def winograd_calls(
    x: np.ndarray,
    W: np.ndarray,
    b: np.ndarray | None,
    relu: bool,
    geometry: Geometry,
    out: np.ndarray,
    *,
    gradient: bool = False,
) -> list[Call]:
    """The calls of ``out = conv(x, W) + b``, through ReLU if so; or, by a geometry that is :func:`turned`, of
    the `gradient` for the images, with the weights as the layer has them."""
    g, dtype, size = geometry, x.dtype, x.itemsize
    strips, blocks = _Strips(x, g), product.blocking(dtype)
    packed = -(-blocks.columns_size(g.channels, g.filters) // 16) * 16
    weights = memory.empty((POINTS, packed), dtype)
    scratch = memory.empty((POINTS, g.channels * g.filters), dtype)
    channels, filters = W.shape[2:]
    ints = [weights.ctypes.data, packed * size, scratch.ctypes.data, W.ctypes.data, channels, filters, gradient]
    keep: tuple[Any, ...] = (weights, scratch, W)
    pack = packing_call(winograd.winograd_weights, winograd.kernel_names, ints, POINTS, dtype, keep)
    bias = 0 if b is None else b.ctypes.data
    rest = [out.ctypes.data, out.nbytes // len(out), weights.ctypes.data, packed * size, bias, relu, *strips.ints]
    keep = (strips.room, weights, x, b, out)
    return [pack, strips.images.call(winograd.winograd_image, winograd.kernel_names, rest, keep, (x,), (out,))]


def winograd_weight_calls(dy: np.ndarray, x: np.ndarray, geometry: Geometry, dW: np.ndarray) -> list[Call]:
    """The calls of the gradient for the weights: a part for each thread, and what becomes of their sum."""
    g, dtype = geometry, x.dtype
    strips = _Strips(x, g)
    parts = memory.empty((strips.images.tiles.tasks, POINTS, g.channels, g.filters), dtype)
    rest = [dy.ctypes.data, dy.nbytes // len(dy), parts.ctypes.data, parts.strides[0], 0, 0, *strips.ints]
    keep, names = (strips.room, parts, x, dy), winograd.kernel_names
    call = strips.images.call(winograd.winograd_weight_image, names, rest, keep, (dy, x), (), (parts,))
    ints = np.array([dW.ctypes.data, dW[0, 0].size, parts.ctypes.data, parts.strides[0], len(parts)])
    address = kernel(winograd.winograd_weight_sums, dtype, f"v{micro.vector_bytes()}", **names(dtype))
    parallel = threads.count() > 1 and parts.size >= tuning.PARALLEL_ELEMENTS
    return [call, Call(address, ints, np.zeros(1), 9, parallel, keep=(parts, dW), writes=(dW,), when="late")]
