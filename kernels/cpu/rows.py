"""Moving rows: gather, scatter-add, the batch's rows. Rows are copied as bytes, so any dtype will do."""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

import numpy as np

from .. import step_state as S
from . import threads, tuning
from .driver import Call
from .intrinsics import copy_memory, pointer_f64, pointer_i64, prefetch
from .specialise import kernel

# Rows, and bytes of a row, that a gather asks for in advance
AHEAD, AHEAD_BYTES = 4, 512


def gather(I, F, task):
    """``out[i] = x[index[ROW + i]]``; I: x, len(x), index, len(index), state or 0, out, rows, bytes, tile.

    An index outside `x`, which the contract forbids, is skipped: it must not read foreign memory.
    """
    first = task * I[8]
    start = 0
    if I[4] != 0:
        start = int(pointer_f64(I[4])[S.ROW])
    index = pointer_i64(I[2])
    nbytes = I[7]
    end = min(first + I[8], I[6], I[3] - start)
    for i in range(max(first, -start), end):
        # Rows lie anywhere: by the time one is copied, its beginning has been on the way for some rows
        if i + AHEAD < end:
            for line in range(0, min(nbytes, AHEAD_BYTES), 64):
                prefetch(I[0] + index[start + i + AHEAD] * nbytes + line)
        source = index[start + i]
        if 0 <= source < I[1]:
            if nbytes == 8:
                pointer_i64(I[5])[i] = pointer_i64(I[0])[source]
            else:
                copy_memory(I[5] + i * nbytes, I[0] + source * nbytes, nbytes)


def fetch(I, F, task):
    """``out[i] = x[i]``; I: where x is (its address or 0, and bytes from row to row), out, rows, bytes, tile."""
    first, nbytes = task * I[4], I[3]
    rows = min(I[4], I[2] - first)
    x, apart = pointer_i64(I[0])[0], pointer_i64(I[0])[1]
    if x != 0 and apart == nbytes:
        copy_memory(I[1] + first * nbytes, x + first * nbytes, rows * nbytes)
    elif x != 0:
        for i in range(first, first + rows):
            copy_memory(I[1] + i * nbytes, x + i * apart, nbytes)


def copy_lines(I, F, task):
    """Rows that may lie apart; I: x, bytes from row to row, out, likewise, rows, bytes of a row, tile."""
    for i in range(task * I[6], min((task + 1) * I[6], I[4])):
        copy_memory(I[2] + i * I[3], I[0] + i * I[1], I[5])


def store(I, F, task):
    """``out[ROW + i] = x[i]``; I: x, rows, state, out, len(out), bytes, tile."""
    first = task * I[6]
    start = int(pointer_f64(I[2])[S.ROW]) + first
    rows = min(I[6], I[1] - first, I[4] - start)
    if start >= 0:
        copy_memory(I[3] + start * I[5], I[0] + first * I[5], max(rows, 0) * I[5])


def scatter_add(I, F, task):
    """``out[index[i]] += x[i]``; I: x, rows, index, out, len(out), columns, tile of columns."""
    first = task * I[6]
    columns = min(I[6], I[5] - first)
    index = pointer_i64(I[2])
    for i in range(I[1]):
        target = index[i]
        if 0 <= target < I[4]:
            x = ptr(I[0] + (i * I[5] + first) * T_SIZE)
            out = ptr(I[3] + (target * I[5] + first) * T_SIZE)
            for j in range(columns):
                out[j] += x[j]


def gather_call(x: np.ndarray, index: np.ndarray, state: np.ndarray | None, out: np.ndarray) -> Call:
    """``out[i] = x[index[i]]``, or of the current batch where `state` is given."""
    rows, nbytes = len(out), out.nbytes // max(len(out), 1)
    tiles = tuning.copy_tiles(rows, nbytes, threads.count())
    ints = np.array(
        [
            x.ctypes.data, len(x), index.ctypes.data, index.size,
            0 if state is None else state.ctypes.data, out.ctypes.data, rows, nbytes, tiles.tile,
        ],
        np.int64,
    )  # fmt: skip
    return Call(
        kernel(gather), ints, np.zeros(1), tiles.number, keep=(x, index, state, out),
        tiles=tiles, writes=(out,), nanoseconds=out.nbytes / tuning.COPY_BYTES,
    )  # fmt: skip


def fetch_call(where: np.ndarray, out: np.ndarray) -> Call:
    """``out[...] = x`` for an x like `out`; ``where`` has its address and the bytes from row to row when it runs."""
    nbytes = out.nbytes // max(len(out), 1)
    tiles = tuning.copy_tiles(len(out), nbytes, threads.count())
    ints = np.array([where.ctypes.data, out.ctypes.data, len(out), nbytes, tiles.tile], np.int64)
    return Call(
        kernel(fetch), ints, np.zeros(1), tiles.number, keep=(where, out),
        tiles=tiles, writes=(out,), nanoseconds=out.nbytes / tuning.COPY_BYTES,
    )  # fmt: skip


def columns_call(x: np.ndarray, out: np.ndarray) -> Call:
    """``out[...] = x`` for matrices whose rows may lie apart."""
    tile, tasks = tuning.row_chunks(x.shape[0], x.shape[1], threads.count())
    nbytes = x.shape[1] * x.itemsize
    ints = np.array([x.ctypes.data, x.strides[0], out.ctypes.data, out.strides[0], len(x), nbytes, tile], np.int64)
    return Call(kernel(copy_lines), ints, np.zeros(1), tasks, tasks > 1, keep=(x, out))


def store_call(x: np.ndarray, state: np.ndarray, out: np.ndarray) -> Call:
    """``out[ROW + i] = x[i]``."""
    nbytes = x.nbytes // max(len(x), 1)
    tiles = tuning.row_tiles(len(x), threads.count())
    ints = np.array([x.ctypes.data, len(x), state.ctypes.data, out.ctypes.data, len(out), nbytes, tiles.tile])
    return Call(
        kernel(store), ints, np.zeros(1), tiles.number, keep=(x, state, out),
        tiles=tiles, reads=(x,), nanoseconds=x.nbytes / tuning.COPY_BYTES,
    )  # fmt: skip


def scatter_add_call(x: np.ndarray, index: np.ndarray, out: np.ndarray) -> Call:
    """``out[index[i]] += x[i]``; tasks take columns, so that repeated indices need no locks."""
    columns = x.size // max(len(x), 1)
    tile, tasks = tuning.row_chunks(columns, len(x), threads.count())
    ints = np.array([x.ctypes.data, len(x), index.ctypes.data, out.ctypes.data, len(out), columns, tile], np.int64)
    return Call(kernel(scatter_add, x.dtype), ints, np.zeros(1), tasks, tasks > 1, keep=(x, index, out))
