"""Depthwise convolution of one image: each channel has a window of its own, so vectors go over the channels.

Records begin as those of ``conv.py`` do; channels, groups and filters are the same number.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py and vectors.py
from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np

from . import conv
from .conv import (
    BIAS,
    CHANNELS,
    CLEARED,
    COUNT,
    NUMBER,
    PART_BYTES,
    PARTS,
    PER_TASK,
    PLACE_WEIGHTS,
    PLACES,
    RECTIFIED,
    RESULT,
    RESULT_BYTES,
    WEIGHTS,
    WINDOWS,
)  # fmt: skip
from .intrinsics import pointer_i64
from .vectors import over_channels

# After the parts of the weights' gradient: rows of windows, windows in one, bytes from row to row and from window to
# window
LINES, LINE_WINDOWS, LINE_BYTES, STEP_BYTES = range(20, 24)


def sum_of_places(first, end, x, out, weights, bias, offsets, places, pixel, relu):
    """One window: the sum of its pixels times their weights."""
    table = pointer_i64(offsets)
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = channel * T_SIZE
        total = SPLAT(T(0.0))
        if bias != 0:
            total = LOAD(bias + at, there)
        for p in range(places):
            total = PLUS(total, TIMES(LOAD(x + at + table[p], there), LOAD(weights + p * pixel + at, there)))
        if relu != 0:
            total = LARGER(SPLAT(T(0.0)), total)  # NaN stays NaN
        STORE(out + at, total, there)


def add_to_places(first, end, dx, dz, weights, offsets, places, pixel):
    """One window: its gradient times the weights is added to its pixels."""
    table = pointer_i64(offsets)
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = channel * T_SIZE
        gradient = LOAD(dz + at, there)
        for p in range(places):
            own = TIMES(gradient, LOAD(weights + p * pixel + at, there))
            STORE(dx + at + table[p], PLUS(LOAD(dx + at + table[p], there), own), there)


def sum_of_windows(first, end, x, dz, to, rows, columns, down, across, pixel, added):
    """One place: its pixels times the windows' gradients; four sums, since one would wait for itself."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = channel * T_SIZE
        zero = SPLAT(T(0.0))
        s0, s1, s2, s3 = zero, zero, zero, zero
        whole = columns - columns % 4
        for i in range(rows):
            a, d = x + at + i * down, dz + at + i * columns * pixel
            for _ in range(whole // 4):
                s0 = PLUS(s0, TIMES(LOAD(a, there), LOAD(d, there)))
                s1 = PLUS(s1, TIMES(LOAD(a + across, there), LOAD(d + pixel, there)))
                s2 = PLUS(s2, TIMES(LOAD(a + 2 * across, there), LOAD(d + 2 * pixel, there)))
                s3 = PLUS(s3, TIMES(LOAD(a + 3 * across, there), LOAD(d + 3 * pixel, there)))
                a += 4 * across
                d += 4 * pixel
            for _ in range(whole, columns):
                s0 = PLUS(s0, TIMES(LOAD(a, there), LOAD(d, there)))
                a += across
                d += pixel
        total = PLUS(PLUS(s0, s1), PLUS(s2, s3))
        if added != 0:
            total = PLUS(total, LOAD(to + at, there))
        STORE(to + at, total, there)


def depthwise_image(I, F, task):
    """``out``; I as that of ``conv_image``, up to whether ReLU."""
    image, out, pixel = BORDERED_IMAGE(I, task), I[RESULT] + task * I[RESULT_BYTES], I[CHANNELS] * T_SIZE
    windows = pointer_i64(I[WINDOWS])
    for i in range(I[COUNT]):
        x = image + windows[i]
        if I[NUMBER] == 9:  # a number that LLVM knows is a loop that it unrolls
            SUM_OF_PLACES(0, I[CHANNELS], x, out, I[WEIGHTS], I[BIAS], I[PLACES], 9, pixel, I[RECTIFIED])
        else:
            SUM_OF_PLACES(0, I[CHANNELS], x, out, I[WEIGHTS], I[BIAS], I[PLACES], I[NUMBER], pixel, I[RECTIFIED])
        out += pixel


def depthwise_input_image(I, F, task):
    """``dx``; I as that of ``conv_input_image``, with W as it is."""
    room = CLEARED_ROOM(I, task, I[CLEARED])
    dz, pixel = I[RESULT] + task * I[RESULT_BYTES], I[CHANNELS] * T_SIZE
    windows = pointer_i64(I[WINDOWS])
    for i in range(I[COUNT]):
        if I[NUMBER] == 9:
            ADD_TO_PLACES(0, I[CHANNELS], room + windows[i], dz, I[PLACE_WEIGHTS], I[PLACES], 9, pixel)
        else:
            ADD_TO_PLACES(0, I[CHANNELS], room + windows[i], dz, I[PLACE_WEIGHTS], I[PLACES], I[NUMBER], pixel)
        dz += pixel
    WITHOUT_BORDER(I, task, room)


def depthwise_weight_image(I, F, task):
    """A task's part of ``dW``."""
    image, dz, pixel = BORDERED_IMAGE(I, task), I[RESULT] + task * I[RESULT_BYTES], I[CHANNELS] * T_SIZE
    part, places = I[PARTS] + task // I[PER_TASK] * I[PART_BYTES], pointer_i64(I[PLACES])
    for p in range(I[NUMBER]):
        SUM_OF_WINDOWS(
            0, I[CHANNELS], image + places[p], dz, part + p * pixel, I[LINES], I[LINE_WINDOWS], I[LINE_BYTES],
            I[STEP_BYTES], pixel, task % I[PER_TASK],
        )  # fmt: skip


@once
def kernel_names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """What the templates here call, for a dtype."""
    bodies = (sum_of_places, add_to_places, sum_of_windows)
    return {
        **conv.room_names(dtype),
        **{body.__name__.upper(): over_channels(body, dtype) for body in bodies},
    }
