"""Root-mean-square normalisation, rotary positions and masks: what attention needs beside products, row by row."""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from .. import memory
from . import threads, tuning
from .driver import Call
from .intrinsics import pointer_i64
from .specialise import kernel
from .sums import reduce_call


def rms_norm(I, F, task):
    """I: rows, columns, tile, x, gamma, out, rstd; F: eps."""
    n = I[1]
    gamma, rstds = ptr(I[4]), ptr(I[6])
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        x, out = ptr(I[3] + r * n * T_SIZE), ptr(I[5] + r * n * T_SIZE)
        squares = T(0.0)
        for j in range(n):
            squares += x[j] * x[j]
        rstd = T(1.0) / T(sqrt(squares / T(n) + T(F[0])))
        rstds[r] = rstd
        for j in range(n):
            out[j] = x[j] * rstd * gamma[j]


def rms_norm_grad(I, F, task):
    """I: rows, columns, tile, x, gamma, rstd, dy, dx or 0, parts; a part is a tile's dgamma."""
    n = I[1]
    gamma, rstds, dgamma = ptr(I[4]), ptr(I[5]), ptr(I[8] + task * n * T_SIZE)
    for j in range(n):
        dgamma[j] = T(0.0)
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        x, dy = ptr(I[3] + r * n * T_SIZE), ptr(I[6] + r * n * T_SIZE)
        rstd = rstds[r]
        for j in range(n):
            dgamma[j] += dy[j] * (x[j] * rstd)
        if I[7] != 0:
            of_scale = T(0.0)
            for j in range(n):
                of_scale += dy[j] * gamma[j] * x[j]
            of_scale = of_scale * rstd * rstd / T(n)
            dx = ptr(I[7] + r * n * T_SIZE)
            # In place, for what activations.py says
            if I[7] != I[6]:
                for j in range(n):
                    dx[j] = dy[j]
            for j in range(n):
                dx[j] = rstd * (dx[j] * gamma[j] - x[j] * of_scale)


def rotary(I, F, task):
    """I: steps of all rows, chunk, steps of a row, heads, half of a head's width, x, out, cos, sin; F: sign of sin.

    x and out: address, bytes from row to row of the batch, elements from step to step.
    """
    half, sign = I[4], T(F[0])
    size = half * T_SIZE
    for i in range(task * I[1], min((task + 1) * I[1], I[0])):
        row, step = i // I[2], i % I[2]
        cos, sin = ptr(I[11] + step * size), ptr(I[12] + step * size)
        x = I[5] + row * I[6] + step * I[7] * T_SIZE
        out = I[8] + row * I[9] + step * I[10] * T_SIZE
        for h in range(I[3]):
            if x != out:
                source, to = ptr(x + 2 * h * size), ptr(out + 2 * h * size)
                for c in range(2 * half):
                    to[c] = source[c]
            left, right = ptr(out + 2 * h * size), ptr(out + (2 * h + 1) * size)
            for c in range(half):
                a, b, s = left[c], right[c], sign * sin[c]
                left[c] = a * cos[c] - b * s
                right[c] = a * s + b * cos[c]


def step_mask(I, F, task):
    """I: rows, columns, tile, x, out, whether x is of int64; F: value."""
    n = I[1]
    out = ptr(I[4])
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        differs = False
        if I[5] != 0:
            number, whole = int(F[0]), pointer_i64(I[3] + r * n * 8)
            for j in range(n):
                differs |= whole[j] != number
        else:
            value, x = T(F[0]), ptr(I[3] + r * n * T_SIZE)
            for j in range(n):
                differs |= x[j] != value
        out[r] = T(1.0) if differs else T(0.0)


def scale_rows(I, F, task):
    """I: rows, columns, tile, x, scale, out."""
    n = I[1]
    scale = ptr(I[4])
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        x, out, factor = ptr(I[3] + r * n * T_SIZE), ptr(I[5] + r * n * T_SIZE), scale[r]
        if I[5] != I[3]:
            for j in range(n):
                out[j] = x[j]
        for j in range(n):
            out[j] = out[j] * factor


# ---- calls -----------------------------------------------------------------------------------------------
def _row_call(
    template: Any,
    dtype: Any,
    x: np.ndarray,
    arrays: tuple[np.ndarray | None, ...],
    more: tuple[int, ...] = (),
    number: float = 0.0,
) -> Call:
    """A call on tiles of the rows of `x`; the record is rows, columns, tile, x, then `arrays` and `more`."""
    tiles = tuning.row_tiles(len(x), threads.count())
    addresses = [0 if a is None else a.ctypes.data for a in (x, *arrays)]
    ints = np.array([*x.shape, tiles.tile, *addresses, *more])
    call = Call(kernel(template, dtype), ints, np.array([number]), tiles.number, keep=(x, *arrays), tiles=tiles)
    call.reads, call.nanoseconds = (x,), x.size / 2
    return call


def rms_norm_call(x: np.ndarray, gamma: np.ndarray, eps: float, out: np.ndarray, rstd: np.ndarray) -> Call:
    """Normalise each row."""
    call = _row_call(rms_norm, x.dtype, x, (gamma, out, rstd), number=eps)
    call.writes = (out, rstd)
    return call


def rms_norm_grad_calls(
    dy: np.ndarray, x: np.ndarray, gamma: np.ndarray, rstd: np.ndarray, dx: np.ndarray | None, dgamma: np.ndarray
) -> list[Call]:
    """Gradients of :func:`rms_norm_call`; each tile has its own sums."""
    number = tuning.row_tiles(len(x), threads.count()).number
    parts = dgamma[None] if number == 1 else memory.empty((number, len(dgamma)), x.dtype)
    call = _row_call(rms_norm_grad, x.dtype, x, (gamma, rstd, dy, dx, parts))
    call.reads, call.writes, call.sums = (x, rstd, dy), (dx,), (parts,)
    return [call] if number == 1 else [call, reduce_call(parts, dgamma)]


def rotary_call(x: np.ndarray, heads: int, cos: np.ndarray, sin: np.ndarray, sign: float, out: np.ndarray) -> Call:
    """Turn pairs of features by angles with these cosines and, times `sign`, sines: (steps, half of a head's width)."""
    n, t, width = x.shape
    chunk, tasks = tuning.row_chunks(n * t, width, threads.count())
    places = [number for a in (x, out) for number in (a.ctypes.data, a.strides[0], a.strides[1] // a.itemsize)]
    ints = np.array([n * t, chunk, t, heads, cos.shape[1], *places, cos.ctypes.data, sin.ctypes.data])
    return Call(kernel(rotary, x.dtype), ints, np.array([sign]), tasks, tasks > 1, keep=(x, cos, sin, out))


def step_mask_call(x: np.ndarray, value: float, out: np.ndarray) -> Call:
    """``out[i] = 1`` where row i has another number than `value`; x of the dtype of `out`, or of int64."""
    call = _row_call(step_mask, out.dtype, x, (out,), (int(x.dtype == np.int64),), value)
    call.writes = (out,)
    return call


def scale_rows_call(x: np.ndarray, scale: np.ndarray, out: np.ndarray) -> Call:
    """``out = x * scale[:, None]``."""
    call = _row_call(scale_rows, x.dtype, x, (scale, out))
    call.reads, call.writes = (x, scale), (out,)
    return call
