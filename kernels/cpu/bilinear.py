"""Upsampling of images, channels last, with what lies between pixels interpolated.

The centres of an image's pixels cut it into cells: all pixels of the result in one of them lie between the same four.
Beyond the outer centres there are cells, too, of which pixels coincide.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py and vectors.py
from __future__ import annotations

import numpy as np
from numba import njit

from . import threads, tuning
from .driver import Call
from .intrinsics import clear_memory
from .specialise import kernel
from .vectors import over_channels

# A record: the images, their height, width and channels; the enlarged ones, and how often they are as high and as wide.
# F: for each row of a cell the share of its lower pixels, then for each column that of its right ones
SMALL, HEIGHT, WIDTH, CHANNELS, LARGE, TALL, BROAD = range(7)


# ---- one cell, some of the channels ------------------------------------------------------------------
def blend_of_cell(first, end, x, down, across, out, line, pixel, top, bottom, left, right, F, of_columns):
    """The pixels of a cell from four of `x`; where `down` or `across` is 0, these are but two, or one."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = x + channel * T_SIZE
        above, above_right = LOAD(at, there), LOAD(at + across, there)
        below, below_right = LOAD(at + down, there), LOAD(at + down + across, there)
        for r in range(top, bottom):
            # What has no share does not count, even where it is not finite
            lower = T(F[r]) if down != 0 else T(0.0)
            begin, finish = above, above_right
            if lower != T(0.0):
                upper, share = SPLAT(T(1.0) - lower), SPLAT(lower)
                begin = PLUS(TIMES(above, upper), TIMES(below, share))
                finish = PLUS(TIMES(above_right, upper), TIMES(below_right, share))
            for s in range(left, right):
                later = T(F[of_columns + s]) if across != 0 else T(0.0)
                value = begin
                if later != T(0.0):
                    value = PLUS(TIMES(begin, SPLAT(T(1.0) - later)), TIMES(finish, SPLAT(later)))
                STORE(out + r * line + s * pixel + channel * T_SIZE, value, there)


def sums_of_cell(first, end, dx, down, across, dy, line, pixel, top, bottom, left, right, F, of_columns):
    """Adds to each of the four pixels of `dx` its shares of the cell's `dy`."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        zero = SPLAT(T(0.0))
        above, above_right, below, below_right = zero, zero, zero, zero
        for r in range(top, bottom):
            begin, finish = zero, zero
            for s in range(left, right):
                later = T(F[of_columns + s]) if across != 0 else T(0.0)
                value = LOAD(dy + r * line + s * pixel + channel * T_SIZE, there)
                begin = PLUS(begin, TIMES(value, SPLAT(T(1.0) - later)))
                if later != T(0.0):
                    finish = PLUS(finish, TIMES(value, SPLAT(later)))
            lower = T(F[r]) if down != 0 else T(0.0)
            upper, share = SPLAT(T(1.0) - lower), SPLAT(lower)
            above, above_right = PLUS(above, TIMES(begin, upper)), PLUS(above_right, TIMES(finish, upper))
            if lower != T(0.0):
                below, below_right = PLUS(below, TIMES(begin, share)), PLUS(below_right, TIMES(finish, share))
        at = dx + channel * T_SIZE
        STORE(at, PLUS(LOAD(at, there), above), there)
        if across != 0:
            STORE(at + across, PLUS(LOAD(at + across, there), above_right), there)
        if down != 0:
            STORE(at + down, PLUS(LOAD(at + down, there), below), there)
            if across != 0:
                STORE(at + down + across, PLUS(LOAD(at + down + across, there), below_right), there)


# ---- all cells of an image ---------------------------------------------------------------------------
@njit(forceinline=True)
def cell(i, size, factor):
    """Of cell `i` of an axis: its first pixel, how far the second one is, first and end of its places in the result.

    Places count from ``(i - 1) * factor + factor // 2`` on. The second pixel is the first one at the border, and with a
    factor of 1, where each place is a pixel.
    """
    half = factor - factor // 2
    inside = 0 < i < size
    return max(i - 1, 0), int(inside and factor > 1), 0 if i > 0 else half, factor if i < size else half


def bilinear(I, F, task):
    """LARGE: SMALL with what lies between its pixels; or SMALL: the gradient of that, LARGE the one of its result."""
    pixel = I[CHANNELS] * T_SIZE
    short, long = I[WIDTH] * pixel, I[WIDTH] * I[BROAD] * pixel
    small, large = I[SMALL] + task * I[HEIGHT] * short, I[LARGE] + task * I[HEIGHT] * I[TALL] * long
    if ADDS_UP:
        clear_memory(small, I[HEIGHT] * short)
    for i in range(I[HEIGHT] + 1):
        row, down, top, bottom = cell(i, I[HEIGHT], I[TALL])
        line = large + ((i - 1) * I[TALL] + I[TALL] // 2) * long
        for j in range(I[WIDTH] + 1):
            column, across, left, right = cell(j, I[WIDTH], I[BROAD])
            x, out = small + row * short + column * pixel, line + ((j - 1) * I[BROAD] + I[BROAD] // 2) * pixel
            # Sizes that LLVM knows are loops that it unrolls
            if down != 0 and across != 0 and I[TALL] == 2 and I[BROAD] == 2:
                OF_CELL(0, I[CHANNELS], x, short, pixel, out, long, pixel, 0, 2, 0, 2, F, 2)
            else:
                OF_CELL(
                    0, I[CHANNELS], x, down * short, across * pixel, out, long, pixel, top, bottom, left, right, F,
                    I[TALL],
                )  # fmt: skip


# ---- the calls ---------------------------------------------------------------------------------------
def _shares(factor: int) -> np.ndarray:
    """What the second pixel of a cell has of each place in it; an odd factor's first place is the first pixel."""
    return (np.arange(factor) + (0.0 if factor % 2 else 0.5)) / factor


def _call(small: np.ndarray, factors: tuple[int, int], large: np.ndarray, backward: bool) -> Call:
    """A call on `small` (n, h, w, c) and what is `factors` times as high and as wide, `large`."""
    n, of_cell = len(small), over_channels(sums_of_cell if backward else blend_of_cell, small.dtype)
    return Call(
        kernel(bilinear, small.dtype, "grad" if backward else "", OF_CELL=of_cell, ADDS_UP=backward),
        np.array([small.ctypes.data, *small.shape[1:], large.ctypes.data, *factors], np.int64),
        np.concatenate([_shares(factor) for factor in factors]),
        n,
        keep=(small, large),
        tiles=tuning.image_tiles(n, threads.count()),
        reads=(large if backward else small,),
        writes=(small if backward else large,),
        nanoseconds=(large.size + small.size) / 4,
    )


def interpolate_call(x: np.ndarray, factors: tuple[int, int], out: np.ndarray) -> Call:
    """Bilinear upsampling."""
    return _call(x, factors, out, False)


def interpolate_grad_call(dy: np.ndarray, factors: tuple[int, int], dx: np.ndarray) -> Call:
    """The gradient of :func:`interpolate_call`."""
    return _call(dx, factors, dy, True)
