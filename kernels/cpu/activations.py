"""Activations over tiles of rows: bias + value in the forward pass, slope + bias gradient in the backward.

Each pointwise function is compiled into one kernel that adds the bias, keeps ``z`` where it is wanted, and
applies the function, block by block so that the passes meet the data in the first-level
cache. Every pass is in place: LLVM tests at run time whether pointers overlap, and would take the scalar
loop for two pointers to the same block.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from typing import Any

import numpy as np

from .. import memory
from . import micro, scalar, threads, tuning
from .activation_functions import POINTWISE
from .driver import Call
from .micro import ADD
from .product import row_product
from .specialise import function, kernel
from .sums import reduce_call

BLOCK = 4096  # elements; three arrays of it in float32 fit a first-level cache


# ---- a block, in place -------------------------------------------------------------------------------
def apply_identity(x, rows, columns, alpha):
    pass


def apply_pointwise(x, rows, columns, alpha):
    for i in range(rows * columns):
        x[i] = VALUE(x[i], alpha)


def apply_softmax(x, rows, columns, alpha):
    # Three passes over the block: exp runs over it as a whole, as a row may be shorter than a vector
    for r in range(rows):
        top = x[r * columns]
        for j in range(r * columns, (r + 1) * columns):
            top = x[j] if x[j] > top else top
        for j in range(r * columns, (r + 1) * columns):
            x[j] = x[j] - top
    for i in range(rows * columns):
        x[i] = EXP(x[i])
    for r in range(rows):
        total = T(0.0)
        for j in range(r * columns, (r + 1) * columns):
            total += x[j]
        for j in range(r * columns, (r + 1) * columns):
            x[j] = x[j] / total


def slope_identity(d, s, rows, columns, alpha):
    pass


def slope_pointwise(d, s, rows, columns, alpha):
    for i in range(rows * columns):
        d[i] = d[i] * SLOPE(s[i], alpha)


def slope_softmax(d, s, rows, columns, alpha):
    for r in range(rows):
        inner = T(0.0)
        for j in range(r * columns, (r + 1) * columns):
            inner += d[j] * s[j]
        for j in range(r * columns, (r + 1) * columns):
            d[j] = s[j] * (d[j] - inner)


# ---- a tile of rows: the first slots of a linear layer's record --------------------------------------
# Forward: out = f(z + b); saved = z + b where its address is not 0
OUT, ROWS, COLUMNS, TILE, Z, BIAS, SAVED = range(7)
# Backward: dz = dy * f'(saved); db_parts[task] = column sums of the tile's dz where the address is not 0; the
# address of a 1, where sums can be done by a product
DZ, DY, SLOPE_OF, DB_PARTS, ONE = 0, 4, 5, 6, 7


def forward_tile(I, F, task):
    columns = I[2]
    first = task * I[3]
    rows = min(I[3], I[1] - first)
    alpha = T(F[0])
    step = max(1, BLOCK // columns)
    bias = ptr(I[5])
    size = T_SIZE * columns
    for r in range(0, rows, step):
        n = min(step, rows - r)
        at = (first + r) * size
        out = ptr(I[0] + at)
        if I[4] != I[0]:
            z = ptr(I[4] + at)
            for i in range(n * columns):
                out[i] = z[i]
        if I[5] != 0:
            for i in range(n):
                row = ptr(I[0] + at + i * size)
                for j in range(columns):
                    row[j] += bias[j]
        if I[6] != 0:
            saved = ptr(I[6] + at)
            for i in range(n * columns):
                saved[i] = out[i]
        APPLY(out, n, columns, alpha)


def backward_tile(I, F, task):
    columns = I[2]
    first = task * I[3]
    rows = min(I[3], I[1] - first)
    alpha = T(F[0])
    step = max(1, BLOCK // columns)
    size = T_SIZE * columns
    if I[6] != 0:
        part = ptr(I[6] + task * size)
        for j in range(columns):
            part[j] = T(0.0)
    for r in range(0, rows, step):
        n = min(step, rows - r)
        at = (first + r) * size
        dz = ptr(I[0] + at)
        if I[4] != I[0]:
            dy = ptr(I[4] + at)
            for i in range(n * columns):
                dz[i] = dy[i]
        APPLY(dz, ptr(I[5] + at), n, columns, alpha)
        if I[6] != 0 and I[7] != 0:
            # Sums of columns are a product with a row of ones: the same one again and again
            MULTIPLY_ROW(columns, n, I[7], 0, I[0] + at, columns, I[6] + task * size, ADD, 0)
        elif I[6] != 0:
            part = ptr(I[6] + task * size)
            for i in range(n):
                row = ptr(I[0] + at + i * size)
                for j in range(columns):
                    part[j] += row[j]


def forward_kernel(name: str, dtype: Any) -> int:
    """Address of the tile kernel ``out = f(z + b)`` of activation `name`."""
    return _tile_kernel(forward_tile, name, dtype, 0)


def backward_kernel(name: str, dtype: Any) -> int:
    """Address of the tile kernel ``dz = dy * f'`` of activation `name`."""
    return _tile_kernel(backward_tile, name, dtype, 1)


_WHOLE = {
    ("identity", 0): apply_identity,
    ("identity", 1): slope_identity,
    ("softmax", 0): apply_softmax,
    ("softmax", 1): slope_softmax,
}
_addresses: dict[tuple[str, str, Any], int] = {}


def _tile_kernel(template: Any, name: str, dtype: Any, side: int) -> int:
    key = (template.__name__, name, dtype)
    found = _addresses.get(key)
    if found is not None:
        return found
    dtype = np.dtype(dtype)
    names = scalar.names(dtype)
    whole: Any = _WHOLE.get((name, side))
    if whole is not None:
        apply = function(whole, dtype, **names)
    else:
        # The pointwise function is part of the applied one's name, as functions are kept by name
        # Exact: reordered, mish's z * (n / (n + 2)) becomes z * n / (n + 2), which overflows
        pointwise = function(POINTWISE[name][side], dtype, exact=True, **names)
        apply = function((apply_pointwise, slope_pointwise)[side], dtype, name, **{("VALUE", "SLOPE")[side]: pointwise})
    more = {"MULTIPLY_ROW": row_product(dtype, micro.vector_bytes())} if side else {}
    _addresses[key] = kernel(template, dtype, name, APPLY=apply, **more)
    return _addresses[key]


def forward_call(
    name: str,
    alpha: float,
    z: np.ndarray,
    b: np.ndarray | None,
    saved: np.ndarray | None,
    tiles: tuning.Tiles,
    out: np.ndarray | None = None,
) -> Call:
    """``out = f(z + b)`` on tiles of rows, ``z`` by default; ``saved = z + b`` where it is given."""
    out = z if out is None else out
    rows, columns = out.shape
    addresses = [0 if x is None else x.ctypes.data for x in (b, saved)]
    ints = np.array([out.ctypes.data, rows, columns, tiles.tile, z.ctypes.data, *addresses])
    return Call(
        forward_kernel(name, out.dtype),
        ints,
        np.array([alpha]),
        tiles.number,
        keep=(z, b, saved, out),
        tiles=tiles,
        reads=(z,),
        writes=(out, saved),
        nanoseconds=out.size / 2,
    )


def backward_call(
    name: str,
    alpha: float,
    dy: np.ndarray,
    saved: np.ndarray,
    db_parts: np.ndarray | None,
    tiles: tuning.Tiles,
    out: np.ndarray | None = None,
) -> Call:
    """``out = dy * f'`` on tiles of rows, ``dy`` by default; tile t's column sums of that go to ``db_parts[t]``."""
    out = dy if out is None else out
    rows, columns = dy.shape
    to = 0 if db_parts is None else db_parts.ctypes.data
    one = _address_of_one(dy.dtype, columns)
    ints = np.array([out.ctypes.data, rows, columns, tiles.tile, dy.ctypes.data, saved.ctypes.data, to, one])
    return Call(
        backward_kernel(name, dy.dtype),
        ints,
        np.array([alpha]),
        tiles.number,
        keep=(dy, saved, db_parts, out),
        tiles=tiles,
        reads=(dy, saved),
        writes=(out,),
        sums=(db_parts,),
        nanoseconds=dy.size / 2,
    )


_ONES = {np.dtype(name): np.ones(1, name) for name in ("float32", "float64")}


def _address_of_one(dtype: np.dtype[Any], columns: int) -> int:
    """Where a 1 lies, or 0 if a row of ones times `columns` columns would read beyond their end."""
    width = micro.vector_bytes()
    whole = columns % micro.shape_for(dtype, width).columns == 0
    return int(_ONES[dtype].ctypes.data) if whole or micro.masks_loads(width) else 0


def rows_in(x: np.ndarray, tiles: tuning.Tiles) -> tuning.Tiles:
    """The tiles of `x` in vectors over its last axis: those of images, in pixels."""
    if x.ndim == 2:
        return tiles
    pixels = x.size // (len(x) * x.shape[-1])
    return tuning.Tiles(len(x) * pixels, tiles.tile * pixels, tiles.per_task)


def _tiles(x: np.ndarray, name: str) -> tuple[int, int, int, int]:
    """Rows, columns, rows per task and tasks for an activation on its own; only softmax sees rows."""
    columns = x.shape[-1] if name == "softmax" else 1
    rows = x.size // columns
    tile, tasks = tuning.row_chunks(rows, columns, threads.count())
    return rows, columns, tile, tasks


def act_call(name: str, alpha: float, z: np.ndarray, out: np.ndarray) -> Call:
    """``out = f(z)``; `out` may be `z`."""
    if z.ndim > 1:
        matrix, tiles, _ = tuning.tiled(z, threads.count())
        shape = (-1, z.shape[-1])
        call = forward_call(name, alpha, z.reshape(shape), None, None, rows_in(matrix, tiles), out.reshape(shape))
        call.tiles, call.reads, call.writes = tiles, (matrix,), (out.reshape(matrix.shape),)
        return call
    rows, columns, tile, tasks = _tiles(z, name)
    ints = np.array([out.ctypes.data, rows, columns, tile, z.ctypes.data, 0, 0], np.int64)
    return Call(forward_kernel(name, z.dtype), ints, np.array([alpha]), tasks, tasks > 1, keep=(z, out))


def act_grad_call(name: str, alpha: float, dy: np.ndarray, saved: np.ndarray, out: np.ndarray) -> Call:
    """``out = dy * f'``; `out` may be `dy`."""
    if dy.ndim > 1:
        matrix, tiles, _ = tuning.tiled(dy, threads.count())
        shape = (-1, dy.shape[-1])
        flat = (dy.reshape(shape), saved.reshape(shape))
        call = backward_call(name, alpha, *flat, None, rows_in(matrix, tiles), out.reshape(shape))
        call.tiles, call.reads = tiles, (matrix, saved.reshape(matrix.shape))
        call.writes = (out.reshape(matrix.shape),)
        return call
    rows, columns, tile, tasks = _tiles(dy, name)
    ints = np.array([out.ctypes.data, rows, columns, tile, dy.ctypes.data, saved.ctypes.data, 0, 0], np.int64)
    return Call(backward_kernel(name, dy.dtype), ints, np.array([alpha]), tasks, tasks > 1, keep=(dy, saved, out))


def add_bias_call(x: np.ndarray, b: np.ndarray, out: np.ndarray) -> Call:
    """``out = x + b``, the tile kernel of the identity; `out` may be `x`."""
    rows, columns = x.shape
    tile, tasks = tuning.row_chunks(rows, columns, threads.count())
    ints = np.array([out.ctypes.data, rows, columns, tile, x.ctypes.data, b.ctypes.data, 0], np.int64)
    return Call(forward_kernel("identity", x.dtype), ints, np.zeros(1), tasks, tasks > 1, keep=(x, b, out))


def sum_rows_calls(x: np.ndarray, out: np.ndarray) -> list[Call]:
    """``out = x.sum(axis=0)``, the bias gradient of the identity."""
    rows, columns = x.shape
    tile, tasks = tuning.row_chunks(rows, columns, threads.count())
    parts = out if tasks == 1 else memory.empty((tasks, columns), x.dtype)
    address = x.ctypes.data
    one = _address_of_one(x.dtype, columns)
    ints = np.array([address, rows, columns, tile, address, address, parts.ctypes.data, one], np.int64)
    call = Call(backward_kernel("identity", x.dtype), ints, np.zeros(1), tasks, tasks > 1, keep=(x, parts))
    return [call] if tasks == 1 else [call, reduce_call(parts, out)]
