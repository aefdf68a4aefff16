"""Group normalisation: statistics of each image's groups of channels over all its pixels."""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py and vectors.py
from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from .. import memory
from . import threads, tuning
from .driver import Call
from .specialise import kernel
from .sums import reduce_call
from .vectors import over_channels


# ---- some channels of an image -----------------------------------------------------------------------
def sums_of_channels(first, end, x, center, pixels, pixel, totals, squared):
    """``totals``: the sums over the pixels of ``x - center``, or of its squares.

    Four sums at a time: one alone would wait for itself, and be less exact.
    """
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = x + channel * T_SIZE
        mean = LOAD(center + channel * T_SIZE, there)
        zero = SPLAT(T(0.0))
        s0, s1, s2, s3 = zero, zero, zero, zero
        for _ in range(0, pixels - 3, 4):
            d0, d1 = MINUS(LOAD(at, there), mean), MINUS(LOAD(at + pixel, there), mean)
            d2, d3 = MINUS(LOAD(at + 2 * pixel, there), mean), MINUS(LOAD(at + 3 * pixel, there), mean)
            if squared:
                d0, d1, d2, d3 = TIMES(d0, d0), TIMES(d1, d1), TIMES(d2, d2), TIMES(d3, d3)
            s0, s1, s2, s3 = PLUS(s0, d0), PLUS(s1, d1), PLUS(s2, d2), PLUS(s3, d3)
            at += 4 * pixel
        for _ in range(pixels % 4):
            d = MINUS(LOAD(at, there), mean)
            s0 = PLUS(s0, TIMES(d, d) if squared else d)
            at += pixel
        STORE(totals + channel * T_SIZE, PLUS(PLUS(s0, s1), PLUS(s2, s3)), there)


def affine(first, end, x, out, mean, scale, shift):
    """``out = (x - mean) * scale + shift``."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = channel * T_SIZE
        centered = MINUS(LOAD(x + at, there), LOAD(mean + at, there))
        STORE(out + at, PLUS(TIMES(centered, LOAD(scale + at, there)), LOAD(shift + at, there)), there)


def gradient_sums(first, end, x, dy, center, pixels, pixel, of_dy, of_product):
    """The sums over the pixels of `dy`, and of ``dy * (x - center)``."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        a, b = x + channel * T_SIZE, dy + channel * T_SIZE
        mean = LOAD(center + channel * T_SIZE, there)
        zero = SPLAT(T(0.0))
        s0, s1, q0, q1 = zero, zero, zero, zero
        for _ in range(0, pixels - 1, 2):
            d0, d1 = LOAD(b, there), LOAD(b + pixel, there)
            s0, s1 = PLUS(s0, d0), PLUS(s1, d1)
            q0, q1 = (
                PLUS(q0, TIMES(d0, MINUS(LOAD(a, there), mean))),
                PLUS(q1, TIMES(d1, MINUS(LOAD(a + pixel, there), mean))),
            )
            a += 2 * pixel
            b += 2 * pixel
        if pixels % 2 == 1:
            d0 = LOAD(b, there)
            s0, q0 = PLUS(s0, d0), PLUS(q0, TIMES(d0, MINUS(LOAD(a, there), mean)))
        STORE(of_dy + channel * T_SIZE, PLUS(s0, s1), there)
        STORE(of_product + channel * T_SIZE, PLUS(q0, q1), there)


def input_gradient(first, end, x, dy, dx, mean, of_dy, of_x, shift):
    """``dx = dy * of_dy - (x - mean) * of_x - shift``."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = channel * T_SIZE
        centered = MINUS(LOAD(x + at, there), LOAD(mean + at, there))
        rest = PLUS(TIMES(centered, LOAD(of_x + at, there)), LOAD(shift + at, there))
        STORE(dx + at, MINUS(TIMES(LOAD(dy + at, there), LOAD(of_dy + at, there)), rest), there)


# ---- an image ----------------------------------------------------------------------------------------
def group_norm(I, F, task):
    """I: x, out, pixels, channels, groups, gamma, beta, mean, rstd, room (images, 2, channels); F: eps."""
    pixels, channels, groups = I[2], I[3], I[4]
    each, pixel = channels // groups, channels * T_SIZE
    image = task * pixels * pixel
    gamma = ptr(I[5])
    means, rstds = ptr(I[7] + task * groups * T_SIZE), ptr(I[8] + task * groups * T_SIZE)
    room = I[9] + task * 2 * pixel
    center, scale = ptr(room), ptr(room + pixel)
    number = T(pixels * each)
    for c in range(channels):
        center[c] = T(0.0)
    SUMS_OF_CHANNELS(0, channels, I[0] + image, room, pixels, pixel, room + pixel, False)
    for g in range(groups):
        total = T(0.0)
        for c in range(g * each, (g + 1) * each):
            total += scale[c]
        means[g] = total / number
        for c in range(g * each, (g + 1) * each):
            center[c] = total / number
    SUMS_OF_CHANNELS(0, channels, I[0] + image, room, pixels, pixel, room + pixel, True)
    for g in range(groups):
        total = T(0.0)
        for c in range(g * each, (g + 1) * each):
            total += scale[c]
        rstd = T(1.0) / T(sqrt(total / number + T(F[0])))
        rstds[g] = rstd
        for c in range(g * each, (g + 1) * each):
            scale[c] = rstd * gamma[c]
    for p in range(pixels):
        at = image + p * pixel
        AFFINE(0, channels, I[0] + at, I[1] + at, room, room + pixel, I[6])


def group_norm_grad(I, F, task):
    """I: x, dy, dx or 0, pixels, channels, groups, gamma, mean, rstd, room (images, 4, channels), dgamma and dbeta of
    each image."""
    pixels, channels, groups = I[3], I[4], I[5]
    each, pixel = channels // groups, channels * T_SIZE
    image = task * pixels * pixel
    gamma = ptr(I[6])
    means, rstds = ptr(I[7] + task * groups * T_SIZE), ptr(I[8] + task * groups * T_SIZE)
    room = I[9] + task * 4 * pixel
    center, of_dy, of_x, shift = ptr(room), ptr(room + pixel), ptr(room + 2 * pixel), ptr(room + 3 * pixel)
    for g in range(groups):
        for c in range(g * each, (g + 1) * each):
            center[c] = means[g]
    to_gamma, to_beta = I[10] + task * pixel, I[11] + task * pixel
    dgamma, dbeta = ptr(to_gamma), ptr(to_beta)
    GRADIENT_SUMS(0, channels, I[0] + image, I[1] + image, room, pixels, pixel, to_beta, to_gamma)
    for g in range(groups):
        rstd = rstds[g]
        of_mean, of_scale = T(0.0), T(0.0)
        for c in range(g * each, (g + 1) * each):
            dgamma[c] = dgamma[c] * rstd
            of_mean += gamma[c] * dbeta[c]
            of_scale += gamma[c] * dgamma[c]
        of_mean, of_scale = of_mean / T(pixels * each), of_scale / T(pixels * each)
        for c in range(g * each, (g + 1) * each):
            of_dy[c] = rstd * gamma[c]
            of_x[c] = rstd * rstd * of_scale
            shift[c] = rstd * of_mean
    if I[2] != 0:
        for p in range(pixels):
            at = image + p * pixel
            INPUT_GRADIENT(
                0, channels, I[0] + at, I[1] + at, I[2] + at, room, room + pixel, room + 2 * pixel, room + 3 * pixel
            )


# ---- the calls ---------------------------------------------------------------------------------------
_BODIES: dict[Any, Any] = {group_norm: (sums_of_channels, affine), group_norm_grad: (gradient_sums, input_gradient)}
_addresses: dict[Any, int] = {}


def _kernel(template: Any, dtype: Any) -> int:
    if (template, dtype) not in _addresses:
        parts = {body.__name__.upper(): over_channels(body, dtype) for body in _BODIES[template]}
        _addresses[template, dtype] = kernel(template, dtype, **parts)
    return _addresses[template, dtype]


def group_norm_call(
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    groups: int,
    eps: float,
    out: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> Call:
    """Normalise each image's groups of channels; `x` (n, pixels, channels)."""
    n, pixels, channels = x.shape
    room = memory.empty((n, 2, channels), x.dtype)
    arrays = [a.ctypes.data for a in (gamma, beta, mean, rstd, room)]
    return Call(
        _kernel(group_norm, x.dtype),
        np.array([x.ctypes.data, out.ctypes.data, pixels, channels, groups, *arrays], np.int64),
        np.array([eps]),
        n,
        keep=(x, gamma, beta, out, mean, rstd, room),
        tiles=tuning.image_tiles(n, threads.count()),
        reads=(x,),
        writes=(out, mean, rstd, room),
        nanoseconds=x.size / 3,
    )


def group_norm_grad_calls(
    dy: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    groups: int,
    dx: np.ndarray | None,
    dgamma: np.ndarray,
    dbeta: np.ndarray,
) -> list[Call]:
    """Gradients of :func:`group_norm_call`."""
    n, pixels, channels = x.shape
    room = memory.empty((n, 4, channels), x.dtype)
    of_gamma, of_beta = (memory.empty((n, channels), x.dtype) for _ in range(2))
    arrays = [a.ctypes.data for a in (gamma, mean, rstd, room, of_gamma, of_beta)]
    to = 0 if dx is None else dx.ctypes.data
    call = Call(
        _kernel(group_norm_grad, x.dtype),
        np.array([x.ctypes.data, dy.ctypes.data, to, pixels, channels, groups, *arrays], np.int64),
        np.zeros(1),
        n,
        keep=(dy, x, gamma, mean, rstd, dx, room, of_gamma, of_beta),
        tiles=tuning.image_tiles(n, threads.count()),
        reads=(dy, x, mean, rstd),
        writes=(dx, room),
        sums=(of_gamma, of_beta),
        nanoseconds=x.size / 3,
    )
    return [call, reduce_call(of_gamma, dgamma), reduce_call(of_beta, dbeta)]
