"""The step's own bookkeeping on the step state."""

# ruff: noqa: E741 - globals in capitals are put in where the copies are made
from __future__ import annotations

from math import inf, nan, sqrt
from typing import Any

import numpy as np

from .. import step_state as S
from .driver import Call
from .intrinsics import pointer_f64
from .specialise import kernel


def begin_step(I, F, task):
    """I: state, table of learning rates, its length. Past the table's end the rate is NaN: no step is done."""
    state = pointer_f64(I[0])
    cursor = int(state[S.CURSOR])
    state[S.STEP] += 1.0
    state[S.LR] = pointer_f64(I[1])[cursor] if 0 <= cursor < I[2] else nan
    state[S.CURSOR] += 1.0
    state[S.GRAD_SCALE] = 1.0


def sum_losses(I, F, task):
    """I: state, whether this is the first loss; F: its weight."""
    state = pointer_f64(I[0])
    before = 0.0 if I[1] != 0 else state[S.TOTAL_LOSS]
    state[S.TOTAL_LOSS] = before + F[0] * state[S.LOSS]
    state[S.LOSS] = state[S.TOTAL_LOSS]


def record_loss(I, F, task):
    """I: state."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] == 0.0:
        if abs(state[S.LOSS]) < inf:
            state[S.LOSS_SUM] += state[S.LOSS] * state[S.BATCH_WEIGHT]
            state[S.WEIGHT_SUM] += state[S.BATCH_WEIGHT]
        else:
            state[S.BAD_STEP] = state[S.STEP]


def end_step(I, F, task):
    """I: state; F: rows."""
    pointer_f64(I[0])[S.ROW] += F[0]


def end_epoch(I, F, task):
    """I: state, table of results, its rows. An epoch that has no row in the table does not count as complete."""
    state = pointer_f64(I[0])
    epoch = int(state[S.EPOCH_INDEX])
    if state[S.BAD_STEP] == 0.0 and 0 <= epoch < I[2]:
        results = pointer_f64(I[1])
        results[3 * epoch] = state[S.LOSS_SUM]
        results[3 * epoch + 1] = state[S.WEIGHT_SUM]
        results[3 * epoch + 2] = state[S.LR]
        state[S.LOSS_SUM] = 0.0
        state[S.WEIGHT_SUM] = 0.0
        state[S.EPOCH_INDEX] += 1.0


def scale_to_norm(I, F, task):
    """I: state; F: largest norm. A norm that is NaN makes the scale NaN, which the optimizer refuses."""
    state = pointer_f64(I[0])
    ratio = F[0] / (sqrt(state[S.GRAD_SQ_NORM]) + 1e-6)
    state[S.GRAD_SCALE] = 1.0 if ratio > 1.0 else ratio


def batch_weight(I, F, task):
    """BATCH_WEIGHT = sum of the weights, or F[0] where there are none; I: state, weights or 0, rows."""
    state = pointer_f64(I[0])
    if I[1] == 0:
        state[S.BATCH_WEIGHT] = F[0]
        return
    weight = ptr(I[1])
    total = 0.0
    for i in range(I[2]):
        total += D(weight[i])
    state[S.BATCH_WEIGHT] = total


def state_call(
    template: Any,
    state: np.ndarray,
    *more: int,
    value: float = 0.0,
    keep: Any = (),
    dtype: Any = None,
    when: str = "",
) -> Call:
    """A call of one of the kernels above."""
    ints = np.array([state.ctypes.data, *more], np.int64)
    return Call(kernel(template, dtype), ints, np.array([value]), keep=(state, keep), when=when)


def batch_weight_call(state: np.ndarray, weight: np.ndarray | None, rows: int, dtype: Any) -> Call:
    """Write BATCH_WEIGHT."""
    address = 0 if weight is None else weight.ctypes.data
    dtype = dtype if weight is None else weight.dtype
    when = "early" if weight is None else ""
    return state_call(batch_weight, state, address, rows, value=float(rows), keep=weight, dtype=dtype, when=when)
