"""Depthwise convolution of one image: each channel has a window of its own, so vectors go over the channels.

Records begin as those of ``conv.py`` do; channels, groups and filters are the same number.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py and vectors.py
from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np

from . import conv
from .intrinsics import clear_memory, copy_memory, pointer_i64
from .specialise import function
from .vectors import over_channels


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
    """``out``; I goes on as that of ``conv_image`` up to whether ReLU."""
    image, out, pixel = BORDERED_IMAGE(I, task), I[16] + task * I[17], I[2] * T_SIZE
    windows = pointer_i64(I[4])
    for i in range(I[5]):
        x = image + windows[i]
        if I[7] == 9:  # a number that LLVM knows is a loop that it unrolls
            SUM_OF_PLACES(0, I[2], x, out, I[18], I[21], I[6], 9, pixel, I[22])
        else:
            SUM_OF_PLACES(0, I[2], x, out, I[18], I[21], I[6], I[7], pixel, I[22])
        out += pixel


def depthwise_input_image(I, F, task):
    """``dx``; I goes on: dz, bytes of one, W, bytes of the room."""
    room = I[0] + task * I[1] if I[10] == 0 else I[10] + task // I[9] * I[11]
    dz, pixel = I[16] + task * I[17], I[2] * T_SIZE
    clear_memory(room, I[19])
    windows = pointer_i64(I[4])
    for i in range(I[5]):
        if I[7] == 9:
            ADD_TO_PLACES(0, I[2], room + windows[i], dz, I[18], I[6], 9, pixel)
        else:
            ADD_TO_PLACES(0, I[2], room + windows[i], dz, I[18], I[6], I[7], pixel)
        dz += pixel
    if I[10] != 0:
        image = I[0] + task * I[1]
        for i in range(I[14]):
            copy_memory(image + i * I[15], room + I[13] + i * I[12], I[15])


def depthwise_weight_image(I, F, task):
    """A task's part of ``dW``; I goes on: dz, bytes of one, parts, bytes of one, rows of windows, windows in one, bytes
    from row to row and from window to window."""
    image, dz, pixel = BORDERED_IMAGE(I, task), I[16] + task * I[17], I[2] * T_SIZE
    part, places = I[18] + task // I[9] * I[19], pointer_i64(I[6])
    for p in range(I[7]):
        to = part + p * pixel
        SUM_OF_WINDOWS(0, I[2], image + places[p], dz, to, I[20], I[21], I[22], I[23], pixel, task % I[9])


@once
def kernel_names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """What the templates here call, for a dtype."""
    bodies = (sum_of_places, add_to_places, sum_of_windows)
    return {
        "BORDERED_IMAGE": function(conv.bordered, dtype),
        **{body.__name__.upper(): over_channels(body, dtype) for body in bodies},
    }
