"""Layer and batch normalisation over the rows and columns of 2-d arrays."""

# ruff: noqa: E741 - T and ptr are put in by specialise.py
from __future__ import annotations

from math import inf, sqrt
from typing import Any

import numpy as np

from .. import memory
from .. import step_state as S
from . import threads, tuning
from .driver import Call
from .intrinsics import pointer_f64
from .pointwise import copy_call
from .specialise import kernel
from .sums import reduce_call


# ---- layers: statistics of each row ------------------------------------------------------------------
def layer_norm(I, F, task):
    """I: rows, columns, tile, x, gamma, beta, out, mean, rstd; F: eps."""
    n = I[1]
    gamma, beta, means, rstds = ptr(I[4]), ptr(I[5]), ptr(I[7]), ptr(I[8])
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        x, out = ptr(I[3] + r * n * T_SIZE), ptr(I[6] + r * n * T_SIZE)
        total = T(0.0)
        for j in range(n):
            total += x[j]
        mean = total / T(n)
        squares = T(0.0)
        for j in range(n):
            d = x[j] - mean
            squares += d * d
        rstd = T(1.0) / T(sqrt(squares / T(n) + T(F[0])))
        means[r] = mean
        rstds[r] = rstd
        for j in range(n):
            out[j] = (x[j] - mean) * rstd * gamma[j] + beta[j]


def layer_norm_grad(I, F, task):
    """I: rows, columns, tile, x, gamma, mean, rstd, dy, dx or 0, parts; a part is dgamma, then dbeta."""
    n = I[1]
    gamma, means, rstds = ptr(I[4]), ptr(I[5]), ptr(I[6])
    dgamma, dbeta = ptr(I[9] + task * 2 * n * T_SIZE), ptr(I[9] + (task * 2 * n + n) * T_SIZE)
    for j in range(n):
        dgamma[j] = T(0.0)
        dbeta[j] = T(0.0)
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        x, dy = ptr(I[3] + r * n * T_SIZE), ptr(I[7] + r * n * T_SIZE)
        mean, rstd = means[r], rstds[r]
        of_mean, of_scale = T(0.0), T(0.0)
        for j in range(n):
            xhat = (x[j] - mean) * rstd
            dgamma[j] += dy[j] * xhat
            dbeta[j] += dy[j]
        for j in range(n):
            g = dy[j] * gamma[j]
            of_mean += g
            of_scale += g * ((x[j] - mean) * rstd)
        of_mean, of_scale = of_mean / T(n), of_scale / T(n)
        if I[8] != 0:
            dx = ptr(I[8] + r * n * T_SIZE)
            if I[8] != I[7]:
                for j in range(n):
                    dx[j] = dy[j]
            for j in range(n):
                dx[j] = rstd * (dx[j] * gamma[j] - of_mean - ((x[j] - mean) * rstd) * of_scale)


# ---- batches: statistics of each column --------------------------------------------------------------
def column_sums(I, F, task):
    """A part is the sum of x, or of (x - center)**2; I: rows, columns, tile, x, center or 0, parts."""
    n = I[1]
    part = ptr(I[5] + task * n * T_SIZE)
    for j in range(n):
        part[j] = T(0.0)
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        x = ptr(I[3] + r * n * T_SIZE)
        if I[4] == 0:
            for j in range(n):
                part[j] += x[j]
        else:
            center = ptr(I[4])
            for j in range(n):
                d = x[j] - center[j]
                part[j] += d * d


def divide(I, F, task):
    """In place; I: x, size; F: divisor."""
    x = ptr(I[0])
    for j in range(I[1]):
        x[j] = x[j] / T(F[0])


def column_scale(I, F, task):
    """``scale = gamma / sqrt(var + eps)``; I: gamma, var, scale, size; F: eps."""
    gamma, var, scale = ptr(I[0]), ptr(I[1]), ptr(I[2])
    for j in range(I[3]):
        scale[j] = gamma[j] / T(sqrt(var[j] + T(F[0])))


def normalise(I, F, task):
    """``out = (x - mean) * scale + beta``; I: rows, columns, tile, x, mean, scale, beta, out."""
    n = I[1]
    mean, scale, beta = ptr(I[4]), ptr(I[5]), ptr(I[6])
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        x, out = ptr(I[3] + r * n * T_SIZE), ptr(I[7] + r * n * T_SIZE)
        for j in range(n):
            out[j] = (x[j] - mean[j]) * scale[j] + beta[j]


def batch_norm_sums(I, F, task):
    """A part is sum(dy * xhat), then sum(dy); I: rows, columns, tile, x, mean, var, dy, parts; F: eps."""
    n = I[1]
    mean, var = ptr(I[4]), ptr(I[5])
    dgamma, dbeta = ptr(I[7] + task * 2 * n * T_SIZE), ptr(I[7] + (task * 2 * n + n) * T_SIZE)
    for j in range(n):
        dgamma[j] = T(0.0)
        dbeta[j] = T(0.0)
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        x, dy = ptr(I[3] + r * n * T_SIZE), ptr(I[6] + r * n * T_SIZE)
        for j in range(n):
            dgamma[j] += dy[j] * (x[j] - mean[j])
            dbeta[j] += dy[j]
    for j in range(n):
        dgamma[j] = dgamma[j] / T(sqrt(var[j] + T(F[0])))


def batch_norm_slopes(I, F, task):
    """Per column what dx needs; I: gamma, var, dgamma, dbeta, factors (3, size), size; F: eps, rows."""
    n = I[5]
    gamma, var, dgamma, dbeta = ptr(I[0]), ptr(I[1]), ptr(I[2]), ptr(I[3])
    of_dy, shift, of_x = ptr(I[4]), ptr(I[4] + n * T_SIZE), ptr(I[4] + 2 * n * T_SIZE)
    for j in range(n):
        rstd = T(1.0) / T(sqrt(var[j] + T(F[0])))
        of_dy[j] = gamma[j] * rstd
        shift[j] = dbeta[j] / T(F[1])
        of_x[j] = rstd * (dgamma[j] / T(F[1]))


def batch_norm_dx(I, F, task):
    """I: rows, columns, tile, x, mean, factors, dy, dx."""
    n = I[1]
    mean = ptr(I[4])
    of_dy, shift, of_x = ptr(I[5]), ptr(I[5] + n * T_SIZE), ptr(I[5] + 2 * n * T_SIZE)
    for r in range(task * I[2], min((task + 1) * I[2], I[0])):
        x, dx = ptr(I[3] + r * n * T_SIZE), ptr(I[7] + r * n * T_SIZE)
        if I[6] != I[7]:
            dy = ptr(I[6] + r * n * T_SIZE)
            for j in range(n):
                dx[j] = dy[j]
        for j in range(n):
            dx[j] = of_dy[j] * (dx[j] - shift[j] - (x[j] - mean[j]) * of_x[j])


def track(I, F, task):
    """I: state, mean, var, running mean, running var, size; F: momentum, rows / (rows - 1)."""
    if pointer_f64(I[0])[S.BAD_STEP] != 0.0:
        return
    mean, var, running_mean, running_var = ptr(I[1]), ptr(I[2]), ptr(I[3]), ptr(I[4])
    momentum, unbiased = T(F[0]), T(F[1])
    for j in range(I[5]):
        if abs(mean[j]) < T(inf) and abs(var[j]) < T(inf):
            running_mean[j] += momentum * (mean[j] - running_mean[j])
            running_var[j] += momentum * (unbiased * var[j] - running_var[j])


# ---- the calls ---------------------------------------------------------------------------------------
def _address(x: np.ndarray | None) -> int:
    return 0 if x is None else x.ctypes.data


def _rows_call(template: Any, x: np.ndarray, arrays: tuple[Any, ...], floats: tuple[float, ...] = (0.0,)) -> Call:
    """A call over tiles of rows of `x`; the record is rows, columns, tile, x, then `arrays`."""
    (rows, columns), dtype = x.shape, x.dtype
    tile, tasks = tuning.row_chunks(rows, columns, threads.count())
    ints = np.array([rows, columns, tile, x.ctypes.data, *map(_address, arrays)], np.int64)
    return Call(kernel(template, dtype), ints, np.array(floats), tasks, tasks > 1, keep=(x, arrays))


def _tasks(x: np.ndarray) -> int:
    return tuning.row_chunks(x.shape[0], x.shape[1], threads.count())[1]


def _small_call(
    template: Any, dtype: Any, arrays: tuple[np.ndarray, ...], size: int, floats: tuple[float, ...]
) -> Call:
    ints = np.array([*map(_address, arrays), size], np.int64)
    return Call(kernel(template, dtype), ints, np.array(floats), keep=arrays)


def layer_norm_call(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, out: np.ndarray, mean: np.ndarray, rstd: np.ndarray
) -> Call:
    """Normalise each row."""
    tiles = tuning.row_tiles(len(x), threads.count())
    ints = [*x.shape, tiles.tile, *map(_address, (x, gamma, beta, out, mean, rstd))]
    return Call(
        kernel(layer_norm, x.dtype), np.array(ints), np.array([eps]), tiles.number, keep=(gamma, beta),
        tiles=tiles, reads=(x,), writes=(out, mean, rstd), nanoseconds=x.size / 2,
    )  # fmt: skip


def _pair_parts(x: np.ndarray, dgamma: np.ndarray, dbeta: np.ndarray, number: int) -> tuple[np.ndarray, list[Call]]:
    """Room for so many parts of two column sums each, and the calls that add them up."""
    parts = memory.empty((number, 2 * x.shape[1]), x.dtype)
    total = memory.empty(2 * x.shape[1], x.dtype)
    columns = x.shape[1]
    return parts, [
        reduce_call(parts, total),
        copy_call(total[:columns], dgamma),
        copy_call(total[columns:], dbeta),
    ]


def layer_norm_grad_calls(
    dy: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    dx: np.ndarray | None,
    dgamma: np.ndarray,
    dbeta: np.ndarray,
) -> list[Call]:
    """Gradients of :func:`layer_norm_call`."""
    tiles = tuning.row_tiles(len(x), threads.count())
    parts, after = _pair_parts(x, dgamma, dbeta, tiles.number)
    ints = [*x.shape, tiles.tile, *map(_address, (x, gamma, mean, rstd, dy, dx, parts))]
    call = Call(
        kernel(layer_norm_grad, x.dtype), np.array(ints), np.zeros(1), tiles.number, keep=(gamma,),
        tiles=tiles, reads=(x, mean, rstd, dy), writes=(dx,), sums=(parts,), nanoseconds=x.size,
    )  # fmt: skip
    for late in after:
        late.when = "late"
    return [call, *after]


def batch_norm_calls(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, out: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> list[Call]:
    """Statistics of each column, then normalise."""
    rows, columns = x.shape
    calls: list[Call] = []
    for center, result in ((None, mean), (mean, var)):
        parts = memory.empty((_tasks(x), columns), x.dtype)
        calls.append(_rows_call(column_sums, x, (center, parts)))
        calls.append(reduce_call(parts, result))
        calls.append(_small_call(divide, x.dtype, (result,), columns, (rows,)))
    return calls + batch_norm_inference_calls(x, gamma, beta, mean, var, eps, out)


def batch_norm_inference_calls(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float, out: np.ndarray
) -> list[Call]:
    """Normalise by given statistics."""
    scale = memory.empty(x.shape[1], x.dtype)
    return [
        _small_call(column_scale, x.dtype, (gamma, var, scale), x.shape[1], (eps,)),
        _rows_call(normalise, x, (mean, scale, beta, out)),
    ]


def batch_norm_grad_calls(
    dy: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
    dx: np.ndarray | None,
    dgamma: np.ndarray,
    dbeta: np.ndarray,
) -> list[Call]:
    """Gradients of :func:`batch_norm_calls`."""
    parts, after = _pair_parts(x, dgamma, dbeta, _tasks(x))
    calls = [_rows_call(batch_norm_sums, x, (mean, var, dy, parts), (eps,)), *after]
    if dx is not None:
        columns = x.shape[1]
        factors = memory.empty((3, columns), x.dtype)
        arrays = (gamma, var, dgamma, dbeta, factors)
        calls.append(_small_call(batch_norm_slopes, x.dtype, arrays, columns, (eps, len(x))))
        calls.append(_rows_call(batch_norm_dx, x, (mean, factors, dy, dx)))
    return calls


def track_call(
    mean: np.ndarray,
    var: np.ndarray,
    state: np.ndarray,
    rows: int,
    momentum: float,
    running_mean: np.ndarray,
    running_var: np.ndarray,
) -> Call:
    """Running statistics."""
    unbiased = rows / max(rows - 1, 1)
    return _small_call(
        track, mean.dtype, (state, mean, var, running_mean, running_var), mean.size, (momentum, unbiased)
    )
