"""Pooling of the steps of sequences that are there, channels last; what is padding is never read."""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py and vectors.py
from __future__ import annotations

from math import inf, nan
from typing import Any

import numpy as np
from numba import njit

from . import threads, tuning
from .driver import Call
from .intrinsics import clear_memory
from .pooling import spread_to_window
from .specialise import kernel
from .vectors import over_channels

# A record: steps of a sequence, channels; addresses of the mask, of steps, and of what there is one of for a sequence;
# of the steps' gradient and of that of the other
STEPS, CHANNELS, MASK, X, Y, DX, DY = range(7)


# ---- one sequence, some of the channels ---------------------------------------------------------------
def max_of_steps(first, end, x, kept, out, steps, step):
    """The largest of the steps that are kept, NaN where one is, 0 where none is kept."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = x + channel * T_SIZE
        largest, missing, found = SPLAT(T(-inf)), NAN(SPLAT(T(0.0))), False
        for s in range(steps):
            if kept[s] != T(0.0):
                value = LOAD(at + s * step, there)
                largest, missing, found = LARGER(value, largest), EITHER(missing, NAN(value)), True
        if not found:
            largest = SPLAT(T(0.0))
        STORE(out + channel * T_SIZE, PICK(missing, SPLAT(T(nan)), largest), there)


def max_to_step(first, end, x, kept, dx, y, dy, steps, step):
    """`dy` goes to the first kept step that is like `y`, and 0 to the others."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        largest, gradient = LOAD(y + channel * T_SIZE, there), LOAD(dy + channel * T_SIZE, there)
        missing, zero, left = NAN(largest), SPLAT(T(0.0)), there
        for s in range(steps):
            at = channel * T_SIZE + s * step
            own = zero
            if kept[s] != T(0.0):
                value = LOAD(x + at, there)
                hit = BOTH(EITHER(EQUAL(value, largest), BOTH(NAN(value), missing)), left)
                left = BUT_NOT(left, hit)
                own = PICK(hit, gradient, zero)
            STORE(dx + at, own, there)


def sum_of_steps(first, end, x, kept, out, steps, step, scale):
    """The sum of the kept steps times `scale`; by four, since one sum would wait for itself and be less exact."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = x + channel * T_SIZE
        zero = SPLAT(T(0.0))
        s0, s1, s2, s3 = zero, zero, zero, zero
        whole = steps - steps % 4
        for s in range(0, whole, 4):
            if kept[s] != T(0.0):
                s0 = PLUS(s0, LOAD(at + s * step, there))
            if kept[s + 1] != T(0.0):
                s1 = PLUS(s1, LOAD(at + (s + 1) * step, there))
            if kept[s + 2] != T(0.0):
                s2 = PLUS(s2, LOAD(at + (s + 2) * step, there))
            if kept[s + 3] != T(0.0):
                s3 = PLUS(s3, LOAD(at + (s + 3) * step, there))
        for s in range(whole, steps):
            if kept[s] != T(0.0):
                s0 = PLUS(s0, LOAD(at + s * step, there))
        STORE(out + channel * T_SIZE, TIMES(PLUS(PLUS(s0, s1), PLUS(s2, s3)), SPLAT(scale)), there)


@njit(forceinline=True)
def number_of(kept, steps):
    """How many steps are kept; at least 1."""
    number = 0
    for s in range(steps):
        number += kept[s] != 0.0
    return max(number, 1)


# ---- the kernels: a task is a sequence ----------------------------------------------------------------
def masked_max(I, F, task):
    """Y: the largest of the steps of X."""
    step = I[CHANNELS] * T_SIZE
    kept = ptr(I[MASK] + task * I[STEPS] * T_SIZE)
    MAX_OF_STEPS(0, I[CHANNELS], I[X] + task * I[STEPS] * step, kept, I[Y] + task * step, I[STEPS], step)


def masked_max_grad(I, F, task):
    """DX: DY, in the step of X that Y is."""
    step = I[CHANNELS] * T_SIZE
    kept = ptr(I[MASK] + task * I[STEPS] * T_SIZE)
    x, dx = I[X] + task * I[STEPS] * step, I[DX] + task * I[STEPS] * step
    MAX_TO_STEP(0, I[CHANNELS], x, kept, dx, I[Y] + task * step, I[DY] + task * step, I[STEPS], step)


def masked_mean(I, F, task):
    """Y: the mean of the steps of X."""
    step = I[CHANNELS] * T_SIZE
    kept = ptr(I[MASK] + task * I[STEPS] * T_SIZE)
    scale = T(1.0) / T(number_of(kept, I[STEPS]))
    SUM_OF_STEPS(0, I[CHANNELS], I[X] + task * I[STEPS] * step, kept, I[Y] + task * step, I[STEPS], step, scale)


def masked_mean_grad(I, F, task):
    """DX: DY in all steps that are there, by their number."""
    step = I[CHANNELS] * T_SIZE
    kept = ptr(I[MASK] + task * I[STEPS] * T_SIZE)
    scale = T(1.0) / T(number_of(kept, I[STEPS]))
    dx, dy = I[DX] + task * I[STEPS] * step, I[DY] + task * step
    for s in range(I[STEPS]):
        if kept[s] != T(0.0):
            SPREAD_TO_WINDOW(0, I[CHANNELS], dy, dx + s * step, step, step, 1, 1, scale, False)
        else:
            clear_memory(dx + s * step, step)


# ---- the calls ----------------------------------------------------------------------------------------
_BODIES: dict[Any, Any] = {
    masked_max: max_of_steps,
    masked_max_grad: max_to_step,
    masked_mean: sum_of_steps,
    masked_mean_grad: spread_to_window,
}


def _call(template: Any, mask: np.ndarray, written: np.ndarray, **arrays: np.ndarray) -> Call:
    """A call on sequences with this `mask`; `arrays` by the names of their places in a record, in small letters."""
    body, dtype, (n, steps) = _BODIES[template], mask.dtype, mask.shape
    places = [arrays[name].ctypes.data if name in arrays else 0 for name in ("x", "y", "dx", "dy")]
    return Call(
        kernel(template, dtype, **{body.__name__.upper(): over_channels(body, dtype)}),
        np.array([steps, written.shape[-1], mask.ctypes.data, *places], np.int64),
        np.zeros(1),
        n,
        keep=(mask, *arrays.values()),
        tiles=tuning.image_tiles(n, threads.count()),
        reads=(mask, *(x for x in arrays.values() if x is not written)),
        writes=(written,),
        nanoseconds=n * steps * written.shape[-1] / 4,
    )


def masked_max_call(x: np.ndarray, mask: np.ndarray, out: np.ndarray) -> Call:
    """The largest of the steps that are there."""
    return _call(masked_max, mask, out, x=x, y=out)


def masked_max_grad_call(dy: np.ndarray, x: np.ndarray, y: np.ndarray, mask: np.ndarray, dx: np.ndarray) -> Call:
    """Each `dy` to the first step that is there and like its `y`."""
    return _call(masked_max_grad, mask, dx, x=x, y=y, dx=dx, dy=dy)


def masked_mean_call(x: np.ndarray, mask: np.ndarray, out: np.ndarray) -> Call:
    """The mean of the steps that are there."""
    return _call(masked_mean, mask, out, x=x, y=out)


def masked_mean_grad_call(dy: np.ndarray, mask: np.ndarray, dx: np.ndarray) -> Call:
    """The gradient of :func:`masked_mean_call`."""
    return _call(masked_mean_grad, mask, dx, dx=dx, dy=dy)
