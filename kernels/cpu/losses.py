"""Losses: value and gradient in one pass over the rows, partial sums in float64, added in a fixed order."""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from math import nan
from typing import Any

import numpy as np

from .. import memory
from .. import step_state as S
from . import scalar, threads, tuning
from .driver import Call
from .intrinsics import pointer_f64, pointer_i64
from .specialise import function, kernel
from .steps import batch_weight_call
from .sums import reduce_call

BLOCK = 2048


# ---- value(p, t, param) and slope with respect to p; see nnfast/backends/formulas.py -----------------
def mean_squared_error(p, t, param):
    return (p - t) * (p - t)


def mean_squared_error_slope(p, t, param):
    return T(2.0) * (p - t)


def mean_absolute_error(p, t, param):
    return abs(p - t)


def mean_absolute_error_slope(p, t, param):
    d = p - t
    # d itself for 0 and NaN
    d = T(1.0) if d > T(0.0) else d
    return T(-1.0) if d < T(0.0) else d


def huber(p, t, param):
    d = abs(p - t)
    return T(0.5) * d * d if d <= param else param * (d - T(0.5) * param)


def huber_slope(p, t, param):
    d = p - t
    d = -param if d < -param else d
    return param if d > param else d


def binary_cross_entropy(p, t, param):
    return (T(0.0) if p < T(0.0) else p) - p * t + LOG1P(EXP(-abs(p)))


def binary_cross_entropy_slope(p, t, param):
    return SIGMOID(p) - t


def poisson(p, t, param):
    return EXP(p) - p * t


def poisson_slope(p, t, param):
    return EXP(p) - t


def hinge(p, t, param):
    s = T(-1.0) if t == T(0.0) else t
    v = T(1.0) - s * p
    return T(0.0) if v < T(0.0) else v


def hinge_slope(p, t, param):
    s = T(-1.0) if t == T(0.0) else t
    return -s if s * p < T(1.0) else T(0.0)


LOSSES = {
    f.__name__: (f, slope)
    for f, slope in (
        (mean_squared_error, mean_squared_error_slope),
        (mean_absolute_error, mean_absolute_error_slope),
        (huber, huber_slope),
        (binary_cross_entropy, binary_cross_entropy_slope),
        (poisson, poisson_slope),
        (hinge, hinge_slope),
    )
}


def elementwise(I, F, task):
    """I: pred, target, weight or 0, dpred or 0, rows, columns, tile, parts, state; F: param.

    Without weights the caller passes everything as rows of one column.
    """
    columns = I[5]
    first = task * I[6]
    rows = min(I[6], I[4] - first)
    param = T(F[0])
    total = pointer_f64(I[8])[S.BATCH_WEIGHT]
    count = F[1] * (1.0 if total == 0.0 else total)
    at = first * columns * T_SIZE
    loss = 0.0
    # A row at a time where rows have weights, else blocks: the loss must see pred before dpred replaces it
    step = BLOCK if I[2] == 0 else 1
    for r in range(0, rows, step):
        n = min(step, rows - r) * columns
        offset = at + r * columns * T_SIZE
        p, t = ptr(I[0] + offset), ptr(I[1] + offset)
        factor = 1.0 / count
        if I[2] != 0:
            factor = D(ptr(I[2])[first + r]) / count
        part = 0.0
        for j in range(n):
            part += D(VALUE(p[j], t[j], param))
        loss += part * factor
        if I[3] != 0:
            d = ptr(I[3] + offset)
            if I[3] != I[0]:
                for j in range(n):
                    d[j] = p[j]
            scale = T(factor)
            for j in range(n):
                d[j] = SLOPE(d[j], t[j], param) * scale
    pointer_f64(I[7])[task] = loss


def softmax_cross_entropy(I, F, task):
    """I: logits, labels, soft flag, weight or 0, dlogits or 0, rows, columns, tile, parts, state, scratch,
    tiles of a task.

    F: smoothing. With targets t of sum s, the loss of a row is ``s log(sum e**(z - top)) - t . (z - top)``
    and its gradient ``s softmax(z) - t``. exp runs over a block of rows at once, as a row may be shorter
    than a vector.
    """
    c = I[6]
    first = task * I[7]
    rows = min(I[7], I[5] - first)
    smoothing = T(F[0])
    keep, spread = T(1.0 - F[0]), T(F[0] / c)
    total_weight = pointer_f64(I[9])[S.BATCH_WEIGHT]
    total_weight = 1.0 if total_weight == 0.0 else total_weight
    step = max(1, BLOCK // c)
    # Scratch of a task: the block's exponentials, then dot, mass and the exponentials' sum of its rows
    room = I[10] + task // I[11] * (step * c + 3 * step) * T_SIZE
    e = ptr(room)
    dot = ptr(room + step * c * T_SIZE)
    mass = ptr(room + (step * c + step) * T_SIZE)
    logs = ptr(room + (step * c + 2 * step) * T_SIZE)
    labels = pointer_i64(I[1])
    loss = 0.0
    for block in range(0, rows, step):
        n = min(step, rows - block)
        for i in range(n):
            row = first + block + i
            z = ptr(I[0] + row * c * T_SIZE)
            shifted = ptr(room + i * c * T_SIZE)
            top = z[0]
            for j in range(c):
                top = z[j] if z[j] > top else top
            for j in range(c):
                shifted[j] = z[j] - top
            s = T(0.0)
            d = T(0.0)
            if I[2] != 0:
                t = ptr(I[1] + row * c * T_SIZE)
                for j in range(c):
                    s += t[j]
                    d += t[j] * shifted[j]
            else:
                s = T(1.0)
                label = labels[row]
                # A label out of range, which the contract forbids, must not read foreign memory
                d = shifted[label] if 0 <= label < c else T(nan)
            if smoothing != T(0.0):
                even = T(0.0)
                for j in range(c):
                    even += shifted[j]
                d = keep * d + spread * even
                s = keep * s + smoothing
            dot[i] = d
            mass[i] = s
        for j in range(n * c):
            e[j] = EXP(e[j])
        for i in range(n):
            row = first + block + i
            p = ptr(room + i * c * T_SIZE)
            total = T(0.0)
            for j in range(c):
                total += p[j]
            logs[i] = total
            factor = 1.0 / total_weight
            if I[3] != 0:
                factor = D(ptr(I[3])[row]) / total_weight
            if I[4] != 0:
                d_row = ptr(I[4] + row * c * T_SIZE)
                f = T(factor)
                scale = mass[i] / total
                if I[2] != 0:
                    t = ptr(I[1] + row * c * T_SIZE)
                    for j in range(c):
                        d_row[j] = (p[j] * scale - (keep * t[j] + spread)) * f
                else:
                    for j in range(c):
                        d_row[j] = (p[j] * scale - spread) * f
                    label = labels[row]
                    if 0 <= label < c:
                        d_row[label] = (p[label] * scale - (keep + spread)) * f
                    else:
                        d_row[0] = T(nan)
        # The largest exponential is 1, so the sums are at least that
        for i in range(n):
            logs[i] = LOG_ABOVE_1(logs[i])
        for i in range(n):
            factor = 1.0 / total_weight
            if I[3] != 0:
                factor = D(ptr(I[3])[first + block + i]) / total_weight
            loss += factor * (D(mass[i]) * D(logs[i]) - D(dot[i]))
    pointer_f64(I[8])[task] = loss


def _loss_parts(state: np.ndarray, tasks: int) -> tuple[np.ndarray, list[Call]]:
    """Where the tasks' losses go, and the call that adds them up into LOSS."""
    loss = state[S.LOSS : S.LOSS + 1]
    if tasks == 1:
        return loss, []
    parts = np.empty((tasks, 1))
    reduce = reduce_call(parts, loss)
    reduce.writes = ()  # of the state: kernels of the batch's rows read other slots of it
    return parts, [reduce]


def _address(x: np.ndarray | None) -> int:
    return 0 if x is None else x.ctypes.data


def elementwise_calls(
    name: str,
    pred: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    state: np.ndarray,
    param: float,
    dpred: np.ndarray | None,
) -> list[Call]:
    """BATCH_WEIGHT, LOSS and `dpred` of one elementwise loss."""
    dtype = pred.dtype
    n, m = pred.shape
    tiles = tuning.row_tiles(n, threads.count())
    rows, columns, tile = (n * m, 1, tiles.tile * m) if weight is None else (n, m, tiles.tile)
    parts, after = _loss_parts(state, tiles.number)
    names = scalar.names(dtype)
    value, slope = (function(f, dtype, exact=True, **names) for f in LOSSES[name])
    ints = np.array(
        [
            pred.ctypes.data, target.ctypes.data, _address(weight), _address(dpred), rows, columns, tile,
            parts.ctypes.data, state.ctypes.data,
        ],
        np.int64,
    )  # fmt: skip
    # count in the kernel is (columns of the loss) * (sum of weights)
    floats = np.array([param, m], np.float64)
    address = kernel(elementwise, dtype, name, VALUE=value, SLOPE=slope)
    call = Call(address, ints, floats, tiles.number, tiles.number > 1, keep=(pred, target, weight, state, dpred, parts))
    call.tiles, call.nanoseconds = tiles, 2.0 * pred.size
    call.reads, call.writes = (pred, target, weight), (dpred,)
    return [batch_weight_call(state, weight, n, dtype), call, *after]


def softmax_xent_calls(
    logits: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None,
    state: np.ndarray,
    smoothing: float,
    dlogits: np.ndarray | None,
) -> list[Call]:
    """BATCH_WEIGHT, LOSS and `dlogits` of softmax + cross-entropy."""
    dtype = logits.dtype
    n, c = logits.shape
    tiles = tuning.row_tiles(n, threads.count())
    parts, after = _loss_parts(state, tiles.number)
    step = max(1, BLOCK // c)
    scratch = memory.empty((tiles.tasks, step * c + 3 * step), dtype)
    ints = np.array(
        [
            logits.ctypes.data, labels.ctypes.data, labels.ndim == 2, _address(weight), _address(dlogits),
            n, c, tiles.tile, parts.ctypes.data, state.ctypes.data, scratch.ctypes.data, tiles.per_task,
        ],
        np.int64,
    )  # fmt: skip
    address = kernel(softmax_cross_entropy, dtype, **scalar.names(dtype))
    keep: tuple[Any, ...] = (logits, labels, weight, state, dlogits, scratch, parts)
    call = Call(address, ints, np.array([smoothing]), tiles.number, tiles.number > 1, keep=keep)
    call.tiles, call.nanoseconds = tiles, 2.0 * logits.size
    call.reads, call.writes = (logits, labels, weight), (dlogits,)
    return [batch_weight_call(state, weight, n, dtype), call, *after]
