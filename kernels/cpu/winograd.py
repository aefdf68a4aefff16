"""Convolution with windows of 3 x 3 by Winograd's method: 16 products for 4 results, in place of 36.

F(2 x 2, 3 x 3) of Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks" (2016): with tiles d of 4 x 4
pixels, one every 2, and ``V = B' d B``, ``U = G W G'`` in each of the 16 points, tiles of 2 x 2 results are
``A' (V U) A``, where V U is a sum over channels: a product of matrices for each point. Its gradient for the weights is
``G' (V' (A dy A')) G``. Some rows of tiles of an image go through all of it while they are in the second-level cache.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py and vectors.py
from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np

from . import conv, micro, product
from .conv import CHANNELS, FILTERS, PART_BYTES, PARTS, PER_TASK, RESULT, RESULT_BYTES
from .specialise import function
from .vectors import over_channels

POINTS = 16
# After the beginning of conv.py: transformed W, and bytes of a point's (or parts of their gradient, as there); bias or
# 0; whether ReLU; V of a task, bytes of one and of a point's part, and elements of its rows; V U (or A dy A'), bytes of
# one and of a point's part
WEIGHTS, WEIGHT_BYTES, BIAS, RECTIFIED, VALUES, VALUES_BYTES, VALUE_PLANE, VALUE_ROW = range(18, 26)
PRODUCTS, PRODUCTS_BYTES, PRODUCT_PLANE = range(26, 29)
# Tiles down and across, rows of tiles at a time; rows and columns of results; bytes from one row of pixels to the next
DOWN, ACROSS, LINES, OUT_ROWS, OUT_COLUMNS, LINE_BYTES = range(29, 35)


def tile_values(first, end, x, line, pixel, to, plane):
    """``B' d B`` of the tile at `x`, a number to each plane."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = x + channel * T_SIZE
        where = to + channel * T_SIZE
        for i in range(4):
            # Row i of B' d
            a = at + (line if i > 0 else 0) + (line if i == 2 else 0)
            b = at + 2 * line + (line if i == 3 else 0) - (line if i == 2 else 0)
            if i == 1:
                t0 = PLUS(LOAD(a, there), LOAD(b, there))
                t1 = PLUS(LOAD(a + pixel, there), LOAD(b + pixel, there))
                t2 = PLUS(LOAD(a + 2 * pixel, there), LOAD(b + 2 * pixel, there))
                t3 = PLUS(LOAD(a + 3 * pixel, there), LOAD(b + 3 * pixel, there))
            else:
                t0 = MINUS(LOAD(a, there), LOAD(b, there))
                t1 = MINUS(LOAD(a + pixel, there), LOAD(b + pixel, there))
                t2 = MINUS(LOAD(a + 2 * pixel, there), LOAD(b + 2 * pixel, there))
                t3 = MINUS(LOAD(a + 3 * pixel, there), LOAD(b + 3 * pixel, there))
            STORE(where, MINUS(t0, t2), there)
            STORE(where + plane, PLUS(t1, t2), there)
            STORE(where + 2 * plane, MINUS(t2, t1), there)
            STORE(where + 3 * plane, MINUS(t1, t3), there)
            where += 4 * plane


def tile_results(first, end, products, plane, bias, rectified, out, line, pixel, rows, columns):
    """``A' m A`` of the numbers m in the planes, plus the bias and through ReLU if so: up to 2 x 2 results."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at = channel * T_SIZE
        zero = SPLAT(T(0.0))
        start = zero
        if bias != 0:
            start = LOAD(bias + at, there)
        for i in range(rows):
            # Row i of A' m
            a = products + at + 4 * i * plane
            b, c = a + 4 * plane, a + 8 * plane
            if i == 0:
                t0 = PLUS(PLUS(LOAD(a, there), LOAD(b, there)), LOAD(c, there))
                t1 = PLUS(PLUS(LOAD(a + plane, there), LOAD(b + plane, there)), LOAD(c + plane, there))
                t2 = PLUS(PLUS(LOAD(a + 2 * plane, there), LOAD(b + 2 * plane, there)), LOAD(c + 2 * plane, there))
                t3 = PLUS(PLUS(LOAD(a + 3 * plane, there), LOAD(b + 3 * plane, there)), LOAD(c + 3 * plane, there))
            else:
                t0 = MINUS(MINUS(LOAD(a, there), LOAD(b, there)), LOAD(c, there))
                t1 = MINUS(MINUS(LOAD(a + plane, there), LOAD(b + plane, there)), LOAD(c + plane, there))
                t2 = MINUS(MINUS(LOAD(a + 2 * plane, there), LOAD(b + 2 * plane, there)), LOAD(c + 2 * plane, there))
                t3 = MINUS(MINUS(LOAD(a + 3 * plane, there), LOAD(b + 3 * plane, there)), LOAD(c + 3 * plane, there))
            left = PLUS(PLUS(PLUS(t0, t1), t2), start)
            right = PLUS(MINUS(MINUS(t1, t2), t3), start)
            if rectified != 0:
                left, right = LARGER(zero, left), LARGER(zero, right)  # NaN stays NaN
            to = out + i * line + at
            STORE(to, left, there)
            if columns > 1:
                STORE(to + pixel, right, there)


def tile_gradients(first, end, to, plane, _bias, _rectified, dz, line, pixel, rows, columns):
    """``A dz A'`` of up to 2 x 2 gradients, a number to each plane; arguments as those of :func:`tile_results`."""
    for channel in range(first, end, LANES):
        there = THERE(end - channel)
        at, zero = channel * T_SIZE, SPLAT(T(0.0))
        y0, y1, y2, y3 = LOAD(dz + at, there), zero, zero, zero
        if columns > 1:
            y1 = LOAD(dz + at + pixel, there)
        if rows > 1:
            y2 = LOAD(dz + at + line, there)
            if columns > 1:
                y3 = LOAD(dz + at + line + pixel, there)
        for i in range(4):
            # Row i of A dz
            left, right = y0, y1
            if i == 1:
                left, right = PLUS(y0, y2), PLUS(y1, y3)
            elif i == 2:
                left, right = MINUS(y0, y2), MINUS(y1, y3)
            elif i == 3:
                left, right = MINUS(zero, y2), MINUS(zero, y3)
            where = to + at + 4 * i * plane
            STORE(where, left, there)
            STORE(where + plane, PLUS(left, right), there)
            STORE(where + 2 * plane, MINUS(left, right), there)
            STORE(where + 3 * plane, MINUS(zero, right), there)


def strip_values(I, image, first, lines, to):
    """V of some rows of tiles."""
    pixel = I[CHANNELS] * T_SIZE
    for i in range(first, first + lines):
        for j in range(I[ACROSS]):
            x = image + 2 * i * I[LINE_BYTES] + 2 * j * pixel
            TILE_VALUES(0, I[CHANNELS], x, I[LINE_BYTES], pixel, to, I[VALUE_PLANE])
            to += I[VALUE_ROW] * T_SIZE


def strip_results(I, task, first, lines, planes):
    """TILE, which is :func:`tile_results` or :func:`tile_gradients`, for some rows of tiles."""
    pixel = I[FILTERS] * T_SIZE
    line = I[OUT_COLUMNS] * pixel
    for i in range(first, first + lines):
        place = I[RESULT] + task * I[RESULT_BYTES] + 2 * i * line
        rows = min(2, I[OUT_ROWS] - 2 * i)
        for j in range(I[ACROSS]):
            columns = min(2, I[OUT_COLUMNS] - 2 * j)
            TILE(
                0, I[FILTERS], planes, I[PRODUCT_PLANE], I[BIAS], I[RECTIFIED], place, line, pixel, rows, columns
            )  # fmt: skip
            place += 2 * pixel
            planes += pixel


def winograd_image(I, F, task):
    """``out = f(windows W + b)``."""
    image = BORDERED_IMAGE(I, task)
    part = task // I[PER_TASK]
    values, products = I[VALUES] + part * I[VALUES_BYTES], I[PRODUCTS] + part * I[PRODUCTS_BYTES]
    channels, filters = I[CHANNELS], I[FILTERS]
    for first in range(0, I[DOWN], I[LINES]):
        lines = min(I[LINES], I[DOWN] - first)
        STRIP_VALUES(I, image, first, lines, values)
        for point in range(POINTS):
            MULTIPLY(
                lines * I[ACROSS], filters, channels, values + point * I[VALUE_PLANE], 0, I[VALUE_ROW], 1,
                I[WEIGHTS] + point * I[WEIGHT_BYTES], 2, 0, 0, 0, products + point * I[PRODUCT_PLANE], filters, 0, 0, 0,
            )  # fmt: skip
        STRIP_RESULTS(I, task, first, lines, products)


def winograd_weight_image(I, F, task):
    """A task's part of the gradient for the transformed weights, added up over its images."""
    image = BORDERED_IMAGE(I, task)
    part = task // I[PER_TASK]
    values, gradients = I[VALUES] + part * I[VALUES_BYTES], I[PRODUCTS] + part * I[PRODUCTS_BYTES]
    channels, filters = I[CHANNELS], I[FILTERS]
    for first in range(0, I[DOWN], I[LINES]):
        lines = min(I[LINES], I[DOWN] - first)
        STRIP_VALUES(I, image, first, lines, values)
        STRIP_GRADIENTS(I, task, first, lines, gradients)
        how = 0 if first == 0 and task % I[PER_TASK] == 0 else ADD
        for point in range(POINTS):
            MULTIPLY(
                channels, filters, lines * I[ACROSS], values + point * I[VALUE_PLANE], 0, 1, I[VALUE_ROW],
                gradients + point * I[PRODUCT_PLANE], 0, filters, 0, 0,
                I[PARTS] + part * I[PART_BYTES] + point * channels * filters * T_SIZE, filters, how, 0, 0,
            )  # fmt: skip


def factor(point, place):
    """An element of G."""
    if point == 0:
        return 1.0 if place == 0 else 0.0
    if point == 3:
        return 1.0 if place == 2 else 0.0
    return -0.5 if point == 2 and place == 1 else 0.5


def winograd_weights(I, F, task):
    """A task transforms the weights for one point and packs them; I: to, bytes of one, room, W, channels, filters,
    whether it is for the image's gradient: then the window is turned around, and channels and filters change places."""
    size = I[4] * I[5]
    room = I[2] + task * size * T_SIZE
    found = ptr(room)
    for i in range(size):
        found[i] = T(0.0)
    for r in range(3):
        for s in range(3):
            own = T(FACTOR(task // 4, 2 - r if I[6] != 0 else r) * FACTOR(task % 4, 2 - s if I[6] != 0 else s))
            if own != T(0.0):
                place = ptr(I[3] + (3 * r + s) * size * T_SIZE)
                for i in range(size):
                    found[i] += own * place[i]
    k, n = (I[5], I[4]) if I[6] != 0 else (I[4], I[5])
    PACK_COLUMNS(0, n, k, n, room, I[5], I[6], I[0] + task * I[1])


def winograd_weight_sums(I, F, task):
    """``dW`` of one place of the window, from the parts; I: dW, elements of a place, parts, bytes of one, number."""
    r, s = task // 3, task % 3
    to = ptr(I[0] + task * I[1] * T_SIZE)
    for i in range(I[1]):
        to[i] = T(0.0)
    for part in range(I[4]):
        for point in range(POINTS):
            own = T(FACTOR(point // 4, r) * FACTOR(point % 4, s))
            if own != T(0.0):
                found = ptr(I[2] + part * I[3] + point * I[1] * T_SIZE)
                for i in range(I[1]):
                    to[i] += own * found[i]


@once
def kernel_names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """What the templates here call, for a dtype."""
    blocks = product.blocking(dtype)
    values, results, gradients = (over_channels(body, dtype) for body in (tile_values, tile_results, tile_gradients))
    return {
        **conv.room_names(dtype),
        "ADD": micro.ADD,
        "MULTIPLY": blocks.multiply,
        "PACK_COLUMNS": blocks.pack_columns,
        "FACTOR": function(factor, dtype),
        "STRIP_VALUES": function(strip_values, dtype, inline=False, TILE_VALUES=values),
        "STRIP_RESULTS": function(strip_results, dtype, "results", inline=False, TILE=results),
        "STRIP_GRADIENTS": function(strip_results, dtype, "gradients", inline=False, TILE=gradients),
    }
