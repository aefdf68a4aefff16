"""Images with a border more or less, and dropout of whole channels."""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py and vectors.py
from __future__ import annotations

from typing import Any

import numpy as np

from .. import memory
from .. import step_state as S
from . import threads, tuning
from .driver import Call
from .intrinsics import clear_memory, copy_memory, pointer_f64
from .pointwise import HALF, LOW, U64, philox
from .specialise import kernel
from .vectors import over_channels


def pad(I, F, task):
    """A border of zeros; I: x, height, bytes of a row, out, height, bytes of a row, rows above, bytes on the left."""
    x, out = I[0] + task * I[1] * I[2], I[3] + task * I[4] * I[5]
    clear_memory(out, I[6] * I[5])
    for i in range(I[6], I[6] + I[1]):
        clear_memory(out + i * I[5], I[7])
        copy_memory(out + i * I[5] + I[7], x + (i - I[6]) * I[2], I[2])
        clear_memory(out + i * I[5] + I[7] + I[2], I[5] - I[7] - I[2])
    end = I[6] + I[1]
    clear_memory(out + end * I[5], (I[4] - end) * I[5])


def crop(I, F, task):
    """What is inside of a border; the record is that of :func:`pad`, with x for out and out for x."""
    x, out = I[3] + task * I[4] * I[5], I[0] + task * I[1] * I[2]
    for i in range(I[1]):
        copy_memory(out + i * I[2], x + (i + I[6]) * I[5] + I[7], I[2])


def scaled_where(first, end, x, factors, out):
    """``x * factors``, or 0 where the factor is 0."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = channel * T_SIZE
        factor, zero = LOAD(factors + at, there), SPLAT(T(0.0))
        product = TIMES(LOAD(x + at, there), factor)
        STORE(out + at, PICK(EQUAL(factor, zero), zero, product), there)


def spatial_dropout(I, F, task):
    """I: x, out, pixels, channels, state, stream, threshold, factors (images, channels); F: scale."""
    channels = I[3]
    state = pointer_f64(I[4])
    step = U64(state[S.STEP])
    low, high = step & LOW, step >> HALF
    key_0, key_1 = U64(state[S.SEED_LO]), U64(state[S.SEED_HI])
    stream, threshold = U64(I[5]), U64(I[6])
    at = I[7] + task * channels * T_SIZE
    factors = ptr(at)
    first = task * channels
    for block in range(first // 4, (first + channels + 3) // 4):
        words = philox(U64(block), stream, low, high, key_0, key_1)
        for k in range(4):
            channel = block * 4 + k - first
            if 0 <= channel < channels:
                factors[channel] = T(F[0]) if words[k] < threshold else T(0.0)
    pixel = channels * T_SIZE
    image = task * I[2] * pixel
    for p in range(I[2]):
        SCALED_WHERE(0, channels, I[0] + image + p * pixel, at, I[1] + image + p * pixel)


# ---- the calls ---------------------------------------------------------------------------------------
def _border_call(template: Any, inner: np.ndarray, outer: np.ndarray, top: int, left: int, backward: bool) -> Call:
    (n, h, w, c), size = inner.shape, inner.itemsize
    ints = [inner.ctypes.data, h, w * c * size, outer.ctypes.data, outer.shape[1], outer.shape[2] * c * size]
    reads, writes = ((outer,), (inner,)) if backward else ((inner,), (outer,))
    return Call(
        kernel(template),
        np.array([*ints, top, left * c * size], np.int64),
        np.zeros(1),
        n,
        keep=(inner, outer),
        tiles=tuning.image_tiles(n, threads.count()),
        reads=reads,
        writes=writes,
        nanoseconds=writes[0].nbytes / tuning.COPY_BYTES,
    )


def pad_call(x: np.ndarray, top: int, left: int, out: np.ndarray) -> Call:
    """`x` inside of zeros."""
    return _border_call(pad, x, out, top, left, backward=False)


def crop_call(x: np.ndarray, top: int, left: int, out: np.ndarray) -> Call:
    """The part of `x` that begins there and has the size of `out`."""
    return _border_call(crop, out, x, top, left, backward=True)


def spatial_dropout_call(
    x: np.ndarray, state: np.ndarray, rate: float, threshold: int, stream: int, out: np.ndarray
) -> Call:
    """Dropout of whole channels."""
    n, pixels, channels = x.shape
    factors = memory.empty((n, channels), x.dtype)
    ints = [x.ctypes.data, out.ctypes.data, pixels, channels, state.ctypes.data, stream, threshold]
    body = over_channels(scaled_where, x.dtype)
    return Call(
        kernel(spatial_dropout, x.dtype, SCALED_WHERE=body),
        np.array([*ints, factors.ctypes.data], np.int64),
        np.array([1.0 / (1.0 - rate)]),
        n,
        keep=(x, state, out, factors),
        tiles=tuning.image_tiles(n, threads.count()),
        reads=(x,),
        writes=(out, factors),
        nanoseconds=x.size / 4 + 3.0 * factors.size,
    )
