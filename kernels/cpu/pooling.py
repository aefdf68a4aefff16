"""Pooling of images, channels last: each window's vectors of channels stay in registers.

Upsampling that repeats pixels is here too: it spreads each pixel over a window of the result as the gradient of average
pooling does, and its own gradient adds up windows as average pooling does.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py and vectors.py
from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from . import threads, tuning
from .driver import Call
from .intrinsics import clear_memory
from .specialise import kernel
from .vectors import over_channels

if TYPE_CHECKING:
    from nnfast.window import Window

# A record: image, height, width, channels; rows and columns of results; the window's height and width, its strides,
# what is added above and on the left, its dilation; bytes of an image and of its results; results; two more arrays;
# whether gradients of an image are first made 0, and added up
IMAGE, HEIGHT, WIDTH, CHANNELS, ROWS, COLUMNS, TALL, BROAD, STEP_DOWN, STEP_ACROSS, ABOVE, LEFT = range(12)
APART_DOWN, APART_ACROSS, IMAGE_BYTES, RESULT_BYTES, RESULT, INPUT, GRADIENT, CLEARED, ADDED = range(12, 21)


# ---- one window, some of the channels ----------------------------------------------------------------
def max_of_window(first, end, x, out, down, across, rows, columns):
    """The largest of the pixels at ``x + r down + s across``, NaN where one is."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = x + channel * T_SIZE
        largest, missing = SPLAT(T(-inf)), NAN(SPLAT(T(0.0)))
        for r in range(rows):
            for s in range(columns):
                value = LOAD(at + r * down + s * across, there)
                largest, missing = LARGER(value, largest), EITHER(missing, NAN(value))
        STORE(out + channel * T_SIZE, PICK(missing, SPLAT(T(nan)), largest), there)


def max_to_window(first, end, x, dx, y, dy, down, across, rows, columns, added):
    """`dy` goes to the first pixel that is like `y`, and 0, or nothing where gradients are `added`, to the others."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        largest, gradient = LOAD(y + channel * T_SIZE, there), LOAD(dy + channel * T_SIZE, there)
        missing, zero, left = NAN(largest), SPLAT(T(0.0)), there
        for r in range(rows):
            for s in range(columns):
                at = channel * T_SIZE + r * down + s * across
                value = LOAD(x + at, there)
                hit = BOTH(EITHER(EQUAL(value, largest), BOTH(NAN(value), missing)), left)
                left = BUT_NOT(left, hit)
                own = PICK(hit, gradient, zero)
                if added:
                    own = PLUS(own, LOAD(dx + at, there))
                STORE(dx + at, own, there)


def sum_of_window(first, end, x, out, down, across, rows, columns, scale):
    """The sum of the pixels times `scale`; by four, since one sum would wait for itself and be less exact."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = x + channel * T_SIZE
        zero = SPLAT(T(0.0))
        s0, s1, s2, s3 = zero, zero, zero, zero
        whole = columns - columns % 4
        for r in range(rows):
            for s in range(0, whole, 4):
                pixel = at + r * down + s * across
                s0, s1 = PLUS(s0, LOAD(pixel, there)), PLUS(s1, LOAD(pixel + across, there))
                s2, s3 = PLUS(s2, LOAD(pixel + 2 * across, there)), PLUS(s3, LOAD(pixel + 3 * across, there))
            for s in range(whole, columns):
                s0 = PLUS(s0, LOAD(at + r * down + s * across, there))
        STORE(out + channel * T_SIZE, TIMES(PLUS(PLUS(s0, s1), PLUS(s2, s3)), SPLAT(scale)), there)


def spread_to_window(first, end, x, out, down, across, rows, columns, scale, added):
    """`x` times `scale` to all pixels, one after the other: all channels of one lie together."""
    factor = SPLAT(scale)
    for r in range(rows):
        for s in range(columns):
            at = out + r * down + s * across
            for channel in range(first, end, LANES):
                there = THERE(end - channel)
                own = TIMES(LOAD(x + channel * T_SIZE, there), factor)
                if added:
                    own = PLUS(own, LOAD(at + channel * T_SIZE, there))
                STORE(at + channel * T_SIZE, own, there)


@njit(forceinline=True)
def inside(at, apart, number, size):
    """First and end of the places ``at + i * apart``, `number` of them, that lie in ``[0, size)``."""
    if at >= 0 and at + (number - 1) * apart < size:
        return 0, number
    first = 0 if at >= 0 else (apart - 1 - at) // apart
    end = 0 if at >= size else min(number, (size - 1 - at) // apart + 1)
    return first, max(end, first)


@njit(forceinline=True)
def place(I, i, j, pixel):
    """Where window (i, j) begins in its image, in bytes, as far as it lies inside, and its rows and columns there."""
    top, left = i * I[STEP_DOWN] - I[ABOVE], j * I[STEP_ACROSS] - I[LEFT]
    r, r_end = inside(top, I[APART_DOWN], I[TALL], I[HEIGHT])
    s, s_end = inside(left, I[APART_ACROSS], I[BROAD], I[WIDTH])
    first = (top + r * I[APART_DOWN]) * I[WIDTH] + left + s * I[APART_ACROSS]
    return first * pixel, r_end - r, s_end - s


@njit(forceinline=True)
def apart(I, pixel):
    """Bytes between the neighbours in a window, down and across."""
    return I[APART_DOWN] * I[WIDTH] * pixel, I[APART_ACROSS] * pixel


# ---- all windows of an image -------------------------------------------------------------------------
def max_pool(I, F, task):
    """RESULT: the largest of each window of IMAGE."""
    pixel = I[CHANNELS] * T_SIZE
    down, across = apart(I, pixel)
    image, result = I[IMAGE] + task * I[IMAGE_BYTES], I[RESULT] + task * I[RESULT_BYTES]
    for i in range(I[ROWS]):
        for j in range(I[COLUMNS]):
            at, rows, columns = place(I, i, j, pixel)
            # Sizes that LLVM knows are loops that it unrolls
            if rows == 2 and columns == 2:
                MAX_OF_WINDOW(0, I[CHANNELS], image + at, result, down, across, 2, 2)
            else:
                MAX_OF_WINDOW(0, I[CHANNELS], image + at, result, down, across, rows, columns)
            result += pixel


def max_pool_grad(I, F, task):
    """IMAGE is dx, RESULT y, INPUT x, GRADIENT dy."""
    pixel = I[CHANNELS] * T_SIZE
    down, across = apart(I, pixel)
    to, image = I[IMAGE] + task * I[IMAGE_BYTES], I[INPUT] + task * I[IMAGE_BYTES]
    result, gradient = I[RESULT] + task * I[RESULT_BYTES], I[GRADIENT] + task * I[RESULT_BYTES]
    if I[CLEARED] != 0:
        clear_memory(to, I[IMAGE_BYTES])
    for i in range(I[ROWS]):
        for j in range(I[COLUMNS]):
            at, rows, columns = place(I, i, j, pixel)
            # Sizes that LLVM knows are loops that it unrolls
            if rows == 2 and columns == 2 and I[ADDED] == 0:
                MAX_TO_WINDOW(0, I[CHANNELS], image + at, to + at, result, gradient, down, across, 2, 2, False)
            else:
                added = I[ADDED] != 0
                MAX_TO_WINDOW(0, I[CHANNELS], image + at, to + at, result, gradient, down, across, rows, columns, added)
            result += pixel
            gradient += pixel


def sum_pool(I, F, task):
    """RESULT: the sum of each window of IMAGE times F[0], or its mean where that is 0."""
    pixel = I[CHANNELS] * T_SIZE
    down, across = apart(I, pixel)
    image, result = I[IMAGE] + task * I[IMAGE_BYTES], I[RESULT] + task * I[RESULT_BYTES]
    for i in range(I[ROWS]):
        for j in range(I[COLUMNS]):
            at, rows, columns = place(I, i, j, pixel)
            scale = T(F[0]) if F[0] != 0.0 else T(1.0) / T(max(rows * columns, 1))
            if rows == 2 and columns == 2:
                SUM_OF_WINDOW(0, I[CHANNELS], image + at, result, down, across, 2, 2, scale)
            else:
                SUM_OF_WINDOW(0, I[CHANNELS], image + at, result, down, across, rows, columns, scale)
            result += pixel


def sum_pool_grad(I, F, task):
    """IMAGE: the sum of the RESULT of each window that a pixel is in, scaled as by :func:`sum_pool`."""
    pixel = I[CHANNELS] * T_SIZE
    down, across = apart(I, pixel)
    image, result = I[IMAGE] + task * I[IMAGE_BYTES], I[RESULT] + task * I[RESULT_BYTES]
    if I[CLEARED] != 0:
        clear_memory(image, I[IMAGE_BYTES])
    for i in range(I[ROWS]):
        for j in range(I[COLUMNS]):
            at, rows, columns = place(I, i, j, pixel)
            scale = T(F[0]) if F[0] != 0.0 else T(1.0) / T(max(rows * columns, 1))
            SPREAD_TO_WINDOW(0, I[CHANNELS], result, image + at, down, across, rows, columns, scale, I[ADDED] != 0)
            result += pixel


# ---- the calls ---------------------------------------------------------------------------------------
_BODIES: dict[Any, Any] = {
    max_pool: max_of_window,
    max_pool_grad: max_to_window,
    sum_pool: sum_of_window,
    sum_pool_grad: spread_to_window,
}
_addresses: dict[Any, int] = {}


def _kernel(template: Any, dtype: Any) -> int:
    if (template, dtype) not in _addresses:
        body = _BODIES[template]
        _addresses[template, dtype] = kernel(template, dtype, **{body.__name__.upper(): over_channels(body, dtype)})
    return _addresses[template, dtype]


def _overlap(window: Window) -> bool:
    """Whether a pixel can be in two windows."""
    return any(step < extent for step, extent in zip(window.stride, window.extent, strict=True))


def _leave_out(window: Window, image: np.ndarray, result: np.ndarray) -> bool:
    """Whether pixels can be in no window; windows do not overlap."""
    ends = [
        n * size - before < length
        for n, size, (before, _), length in zip(
            result.shape[1:3], window.size, window.padding, image.shape[1:3], strict=True
        )
    ]
    return any(ends) or window.stride != window.size


def _call(
    template: Any,
    window: Window,
    image: np.ndarray,
    result: np.ndarray,
    more: tuple[np.ndarray, ...] = (),
    scale: float = 0.0,
    backward: bool = False,
) -> Call:
    """A call on `image` (n, h, w, c) and what belongs to its windows, `result` (n, oh, ow, c)."""
    (n, *size), (down, across) = image.shape, window.stride
    overlap = _overlap(window)
    ints = [
        image.ctypes.data, *size, *result.shape[1:3], *window.size, down, across,
        window.padding[0][0], window.padding[1][0], *window.dilation, image.nbytes // n, result.nbytes // n,
        result.ctypes.data, *(x.ctypes.data for x in more), *[0] * (2 - len(more)),
        overlap or _leave_out(window, image, result), overlap,
    ]  # fmt: skip
    tiles = tuning.image_tiles(n, threads.count())
    visits = result.size * window.size[0] * window.size[1]
    return Call(
        _kernel(template, image.dtype),
        np.array(ints, np.int64),
        np.array([scale]),
        n,
        keep=(image, result, more),
        tiles=tiles,
        reads=(result, *more) if backward else (image,),
        writes=(image,) if backward else (result,),
        nanoseconds=(visits + image.size) / 8,
    )


def max_pool_call(x: np.ndarray, window: Window, out: np.ndarray) -> Call:
    """The largest of each window."""
    return _call(max_pool, window, x, out)


def max_pool_grad_call(dy: np.ndarray, x: np.ndarray, y: np.ndarray, window: Window, dx: np.ndarray) -> Call:
    """Each `dy` to the first pixel of its window that is like its `y`."""
    return _call(max_pool_grad, window, dx, y, (x, dy), backward=True)


def sum_pool_call(x: np.ndarray, window: Window, scale: float, out: np.ndarray) -> Call:
    """The sum of each window times `scale`, or its mean where that is 0."""
    return _call(sum_pool, window, x, out, scale=scale)


def sum_pool_grad_call(dy: np.ndarray, window: Window, scale: float, dx: np.ndarray) -> Call:
    """The gradient of :func:`sum_pool_call`."""
    return _call(sum_pool_grad, window, dx, dy, scale=scale, backward=True)
