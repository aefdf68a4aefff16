"""Element-wise kernels: sums, copies, clipping, dropout, the squared norm."""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .. import step_state as S
from . import threads, tuning
from .driver import Call
from .intrinsics import copy_memory, pointer_f64
from .specialise import kernel
from .sums import reduce_call

U64 = np.uint64
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
# Constants of Philox 4x32 (Salmon et al., SC 2011)
MULTIPLY_0, MULTIPLY_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def add(I, F, task):
    """I: x, y, out, size, chunk."""
    first = task * I[4]
    size = min(I[4], I[3] - first)
    at = first * T_SIZE
    x, y, out = ptr(I[0] + at), ptr(I[1] + at), ptr(I[2] + at)
    # One pointer per array, or the run-time overlap test sends the loop to its scalar form
    if I[2] == I[0]:
        for i in range(size):
            out[i] += y[i]
    elif I[2] == I[1]:
        for i in range(size):
            out[i] += x[i]
    else:
        for i in range(size):
            out[i] = x[i] + y[i]


def multiply(I, F, task):
    """``out = factor * x``, times y where it is given; I: x, y or 0, out, size, chunk; F: factor."""
    first = task * I[4]
    size = min(I[4], I[3] - first)
    at, factor = first * T_SIZE, T(F[0])
    x, out = ptr(I[0] + at), ptr(I[2] + at)
    if I[1] == 0 and I[2] == I[0]:
        for i in range(size):
            out[i] *= factor
    elif I[1] == 0:
        for i in range(size):
            out[i] = x[i] * factor
    else:
        y = ptr(I[1] + at)
        for i in range(size):
            out[i] = x[i] * y[i]


def fill(I, F, task):
    """I: out, size, chunk; F: value."""
    first = task * I[2]
    value = T(F[0])
    out = ptr(I[0] + first * T_SIZE)
    for i in range(min(I[2], I[1] - first)):
        out[i] = value


def clip(I, F, task):
    """I: x, size, chunk; F: limit. Both comparisons are false for NaN, which stays."""
    first = task * I[2]
    limit = T(F[0])
    x = ptr(I[0] + first * T_SIZE)
    for i in range(min(I[2], I[1] - first)):
        v = x[i]
        v = -limit if v < -limit else v
        x[i] = limit if v > limit else v


def copy_bytes(I, F, task):
    """I: source, out, bytes, chunk."""
    first = task * I[3]
    copy_memory(I[1] + first, I[0] + first, min(I[3], I[2] - first))


def squares(I, F, task):
    """I: x, size, chunk, parts (float64)."""
    first = task * I[2]
    x = ptr(I[0] + first * T_SIZE)
    total = 0.0
    for i in range(min(I[2], I[1] - first)):
        v = D(x[i])
        total += v * v
    pointer_f64(I[3])[task] = total


def penalise(I, F, task):
    """I: param, size, chunk, grad, state, parts (float64); F: strength."""
    first = task * I[2]
    weight = pointer_f64(I[4])[S.BATCH_WEIGHT]
    factor = T(F[0] / (1.0 if weight == 0.0 else weight))
    param, grad = ptr(I[0] + first * T_SIZE), ptr(I[3] + first * T_SIZE)
    total = 0.0
    for i in range(min(I[2], I[1] - first)):
        grad[i] += factor * param[i]
        v = D(param[i])
        total += v * v
    pointer_f64(I[5])[task] = total


def add_penalty(I, F, task):
    """LOSS and LOSS_SUM after :func:`penalise`; I: state, parts, their number; F: what a sum of squares is worth."""
    state = pointer_f64(I[0])
    total = 0.0
    for i in range(I[2]):
        total += pointer_f64(I[1])[i]
    weight = state[S.BATCH_WEIGHT]
    penalty = F[0] * total / (1.0 if weight == 0.0 else weight)
    state[S.LOSS] += penalty
    state[S.LOSS_SUM] += penalty * weight


@njit(forceinline=True)
def philox(block, stream, step_low, step_high, key_0, key_1):
    """Philox 4x32-10 on 32-bit words held in 64 bits; see ``nnfast/random.py``."""
    c0, c1, c2, c3 = block, stream, step_low, step_high
    for _ in range(10):
        p0, p1 = MULTIPLY_0 * c0, MULTIPLY_1 * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ key_0, p1 & LOW, (p0 >> HALF) ^ c3 ^ key_1, p0 & LOW
        key_0, key_1 = (key_0 + WEYL_0) & LOW, (key_1 + WEYL_1) & LOW
    return c0, c1, c2, c3


def dropout(I, F, task):
    """I: x, out, size, chunk (a multiple of 4), state, stream, threshold; F: scale."""
    first = task * I[3]
    size = min(I[3], I[2] - first)
    state = pointer_f64(I[4])
    step = U64(state[S.STEP])
    low, high = step & LOW, step >> HALF
    key_0, key_1 = U64(state[S.SEED_LO]), U64(state[S.SEED_HI])
    stream, threshold = U64(I[5]), U64(I[6])
    scale = T(F[0])
    out = ptr(I[1] + first * T_SIZE)
    if I[1] != I[0]:
        x = ptr(I[0] + first * T_SIZE)
        for i in range(size):
            out[i] = x[i]
    start = U64(first // 4)
    for b in range(size // 4):
        w0, w1, w2, w3 = philox(start + U64(b), stream, low, high, key_0, key_1)
        i = b * 4
        out[i] = out[i] * scale if w0 < threshold else T(0.0)
        out[i + 1] = out[i + 1] * scale if w1 < threshold else T(0.0)
        out[i + 2] = out[i + 2] * scale if w2 < threshold else T(0.0)
        out[i + 3] = out[i + 3] * scale if w3 < threshold else T(0.0)
    words = philox(start + U64(size // 4), stream, low, high, key_0, key_1)
    for i in range(size - size % 4, size):
        out[i] = out[i] * scale if words[i % 4] < threshold else T(0.0)


def _call(
    template: Any, dtype: Any, size: int, head: tuple[int, ...], tail: tuple[int, ...], floats: Any, keep: Any
) -> Call:
    """A call over `size` elements whose record is ``(*head, size, chunk, *tail)``."""
    chunk, tasks = tuning.chunks(size, threads.count())
    ints = np.array([*head, size, chunk, *tail], np.int64)
    return Call(kernel(template, dtype), ints, np.array(floats, np.float64), tasks, tasks > 1, keep=keep)


def add_call(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> Call:
    """``out = x + y``; `out` may be either."""
    arrays = (x.ctypes.data, y.ctypes.data, out.ctypes.data)
    if out.ndim < 2:
        return _call(add, out.dtype, out.size, arrays, (), [0.0], (x, y, out))
    matrix, tiles, chunk = tuning.tiled(out, threads.count())
    return Call(
        kernel(add, out.dtype), np.array([*arrays, out.size, chunk]), np.zeros(1), tiles.number, keep=(x, y, out),
        tiles=tiles, reads=(x.reshape(matrix.shape), y.reshape(matrix.shape)),
        writes=(matrix,), nanoseconds=out.size / 2,
    )  # fmt: skip


def multiply_call(x: np.ndarray, y: np.ndarray | None, factor: float, out: np.ndarray) -> Call:
    """``out = x * y``, or ``factor * x`` where `y` is ``None``; `out` may be either."""
    head = (x.ctypes.data, 0 if y is None else y.ctypes.data, out.ctypes.data)
    return _call(multiply, out.dtype, out.size, head, (), [factor], (x, y, out))


def fill_call(out: np.ndarray, value: float) -> Call:
    """``out[...] = value``."""
    return _call(fill, out.dtype, out.size, (out.ctypes.data,), (), [value], (out,))


def clip_call(x: np.ndarray, limit: float) -> Call:
    """Clip `x` in place to ``[-limit, limit]``."""
    return _call(clip, x.dtype, x.size, (x.ctypes.data,), (), [limit], (x,))


def copy_call(x: np.ndarray, out: np.ndarray) -> Call:
    """``out[...] = x`` for one dtype and contiguous arrays that do not overlap."""
    if x.ndim > 1:
        matrix, tiles, size = tuning.tiled(out, threads.count())
        ints = np.array([x.ctypes.data, out.ctypes.data, x.nbytes, size * x.itemsize], np.int64)
        return Call(
            kernel(copy_bytes), ints, np.zeros(1), tiles.number, keep=(x, out),
            tiles=tiles, reads=(x.reshape(matrix.shape),), writes=(matrix,), nanoseconds=x.nbytes / tuning.COPY_BYTES,
        )  # fmt: skip
    chunk, tasks = tuning.chunks(-(-x.nbytes // tuning.COPY_BYTES), threads.count())
    ints = np.array([x.ctypes.data, out.ctypes.data, x.nbytes, chunk * tuning.COPY_BYTES], np.int64)
    return Call(kernel(copy_bytes), ints, np.zeros(1), tasks, tasks > 1, keep=(x, out))


def dropout_call(x: np.ndarray, state: np.ndarray, rate: float, threshold: int, stream: int, out: np.ndarray) -> Call:
    """Dropout; which elements stay is the same for every number of threads."""
    head, tail = (x.ctypes.data, out.ctypes.data), (state.ctypes.data, stream, threshold)
    scale = np.array([1.0 / (1.0 - rate)])
    if x.ndim < 2:
        return _call(dropout, x.dtype, x.size, head, tail, scale, (x, state, out))
    # Tiles have a multiple of 4 rows, or there is one, so that blocks of 4 random words stay whole
    matrix, tiles, chunk = tuning.tiled(x, threads.count())
    ints = np.array([*head, x.size, chunk, *tail])
    return Call(
        kernel(dropout, x.dtype), ints, scale, tiles.number, keep=(x, state, out),
        tiles=tiles, reads=(matrix,), writes=(out.reshape(matrix.shape),), nanoseconds=3.0 * x.size,
    )  # fmt: skip


def l2_penalty_calls(
    param: np.ndarray, grad: np.ndarray, state: np.ndarray, strength: float, share: float
) -> list[Call]:
    """``grad += strength * param / BATCH_WEIGHT``, and the penalty in LOSS and LOSS_SUM, summed up in a fixed order."""
    parts = np.empty(tuning.chunks(param.size, threads.count())[1])
    tail = (grad.ctypes.data, state.ctypes.data, parts.ctypes.data)
    call = _call(penalise, param.dtype, param.size, (param.ctypes.data,), tail, [strength], (param, grad, state, parts))
    ints = np.array([state.ctypes.data, parts.ctypes.data, len(parts)], np.int64)
    return [call, Call(kernel(add_penalty), ints, np.array([0.5 * strength * share]), keep=(state, parts))]


def sq_norm_calls(x: np.ndarray, out: np.ndarray) -> list[Call]:
    """``out[0] = (x**2).sum()`` in float64, in a fixed order."""
    _, tasks = tuning.chunks(x.size, threads.count())
    parts = out if tasks == 1 else np.empty((tasks, 1))
    call = _call(squares, x.dtype, x.size, (x.ctypes.data,), (parts.ctypes.data,), [0.0], (x, parts))
    return [call] if tasks == 1 else [call, reduce_call(parts, out)]
