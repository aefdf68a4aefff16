"""The calls of a convolution and its gradients: where windows lie, how many tasks, what is packed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import memory
from . import activations, conv, depthwise, product, threads, tuning, winograd_calls
from .conv_images import Geometry, Images, packing_call
from .driver import Call
from .sums import reduce_call

__all__ = ["Geometry", "backward_calls", "conv_calls", "forward_calls", "input_grad_calls", "weight_grad_calls"]


def conv_calls(
    x: np.ndarray, W: np.ndarray, b: np.ndarray | None, relu: bool, geometry: Geometry, out: np.ndarray
) -> list[Call]:
    """The calls of ``out = conv(x, W) + b``, through ReLU if so."""
    if winograd_calls.pays(len(x), geometry, x.dtype):
        return winograd_calls.winograd_calls(x, W, b, relu, geometry, out)
    g, images, dtype = geometry, Images(x, geometry), x.dtype
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
        return [images.call(depthwise.depthwise_image, depthwise.kernel_names, rest, keep, (x,), (out,))]
    # One panel lies in W as it would be packed
    packed = filters > blocks.shape.columns or not blocks.reads_columns(2, filters, False, False)
    weights = [W.ctypes.data, filters * W.itemsize]
    if packed:
        size = -(-blocks.columns_size(depth, filters) // 16) * 16
        to = memory.empty((g.groups, size), dtype)
        ints = [to.ctypes.data, size * x.itemsize, W.ctypes.data, depth, filters, g.filters]
        calls.append(packing_call(conv.pack_groups, conv.kernel_names, ints, g.groups, dtype, (to, W)))
        weights = [to.ctypes.data, size * x.itemsize]
        keep.append(to)
    rest = [
        out.ctypes.data, out.nbytes // len(out), *weights, packed, to_bias, relu,
        len(offsets), offsets.ctypes.data, length, max(1, tuning.PRODUCT_DEPTH // length),
    ]  # fmt: skip
    return [*calls, images.call(conv.conv_image, conv.kernel_names, rest, keep, (x,), (out,))]


def input_grad_calls(dy: np.ndarray, W: np.ndarray, geometry: Geometry, dx: np.ndarray) -> list[Call]:
    """The calls of the gradient for the images."""
    if (turned := winograd_calls.turned(geometry)) is not None and winograd_calls.pays(len(dy), turned, dy.dtype):
        return winograd_calls.winograd_calls(dy, W, None, False, turned, dx, gradient=True)
    g, images, dtype = geometry, Images(dx, geometry), dx.dtype
    if g.depthwise:
        rest = [dy.ctypes.data, dy.nbytes // len(dy), W.ctypes.data, 0, images.room_bytes]
        return [images.call(depthwise.depthwise_input_image, depthwise.kernel_names, rest, (dy, W, dx), (dy,), (dx,))]
    blocks = product.blocking(dtype)
    channels, filters = g.channels // g.groups, g.filters // g.groups
    places = len(images.places)
    size = -(-blocks.columns_size(filters, channels) // 16) * 16
    to = memory.empty((g.groups * places, size), dtype)
    ints = [to.ctypes.data, size * dx.itemsize, W.ctypes.data, places, channels, filters, g.filters]
    pack = packing_call(conv.pack_places, conv.kernel_names, ints, g.groups * places, dtype, (to, W))
    rest = [dy.ctypes.data, dy.nbytes // len(dy), to.ctypes.data, size * dx.itemsize, images.room_bytes]
    return [pack, images.call(conv.conv_input_image, conv.kernel_names, rest, (dy, to, dx), (dy,), (dx,))]


def weight_grad_calls(dy: np.ndarray, x: np.ndarray, geometry: Geometry, dW: np.ndarray) -> list[Call]:
    """The calls of the gradient for the weights: a part for each thread, and their sum."""
    if winograd_calls.pays_for_weights(len(x), geometry, x.dtype):
        return winograd_calls.winograd_weight_calls(dy, x, geometry, dW)
    g, images = geometry, Images(x, geometry)
    tasks, size = images.tiles.tasks, x.itemsize
    parts = dW[None] if tasks == 1 else memory.empty((tasks, *dW.shape), dW.dtype)
    if g.depthwise:
        rest = [
            dy.ctypes.data, dy.nbytes // len(dy), parts.ctypes.data, dW.nbytes, g.rows, g.columns,
            g.stride[0] * g.pitch * size, g.stride[1] * g.channels * size,
        ]  # fmt: skip
        call = images.call(
            depthwise.depthwise_weight_image, depthwise.kernel_names, rest, (dy, x, parts), (dy, x), (), (parts,)
        )
        return [call] if tasks == 1 else [call, reduce_call(parts, dW)]
    inner = np.arange(g.channels // g.groups)
    rows = (images.places[:, None] + inner * size).reshape(-1)
    lines = np.arange(g.rows) * (g.stride[0] * g.pitch * size)
    rest = [
        dy.ctypes.data, dy.nbytes // len(dy), parts.ctypes.data, dW.nbytes, len(rows), rows.ctypes.data,
        g.rows, lines.ctypes.data, g.columns, g.stride[1] * g.channels * size,
        max(1, tuning.WINDOWS_AT_ONCE // g.columns),
    ]  # fmt: skip
    call = images.call(
        conv.conv_weight_image, conv.kernel_names, rest, (rows, lines, dy, x, parts), (dy, x), (), (parts,)
    )
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
