"""Convolution of one image as products of matrices that are never written down.

A row of the first matrix is what a window lies over, a column of the second one a filter. The micro-kernels of
``micro.py`` read the rows where they are, in the image, by two tables of offsets: of the windows' corners and of the
places within a window. Only an image with a border is copied, into room for one image.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np

from . import micro, product
from .intrinsics import copy_memory, pointer_i64
from .specialise import function

# A record's beginning, the same for all kernels: the image (and bytes of one), or where it goes; channels; groups; the
# tables of windows and of places, and their lengths; filters; tiles of a task
IMAGE, IMAGE_BYTES, CHANNELS, GROUPS, WINDOWS, COUNT, PLACES, NUMBER, FILTERS, PER_TASK = range(10)
# The room for an image with its border, or 0; bytes of one task's; of a row of it; offset of the image's first pixel in
# it; rows of the image, and bytes of one
BORDERED, BORDERED_BYTES, PITCH, CORNER, ROWS, ROW_BYTES = range(10, 16)
MORE = 16  # where the rest begins


def bordered(I, task):
    """Where the image of a task lies that windows may go over: copied into its room, whose border is 0."""
    image = I[0] + task * I[1]
    if I[10] == 0:
        return image
    room = I[10] + task // I[9] * I[11]
    for i in range(I[14]):
        copy_memory(room + I[13] + i * I[12], image + i * I[15], I[15])
    return room


def gathered_tile(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n):
    """One tile of up to MR x NR, by the smallest micro-kernel that it fits."""
    if m == MR and n == NR:
        MICRO(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    elif m > MS:
        if n > VL:
            MICRO_HIGH(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
        else:
            MICRO_HIGH_NARROW(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    elif n > VL:
        MICRO_LOW(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    else:
        MICRO_LOW_NARROW(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)


def scattered_tile(k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n):
    """Likewise, with the rows of C anywhere."""
    if m == MR and n == NR:
        MICRO(k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    elif m > MS:
        if n > VL:
            MICRO_HIGH(k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
        else:
            MICRO_HIGH_NARROW(k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    elif n > VL:
        MICRO_LOW(k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    else:
        MICRO_LOW_NARROW(k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)


def height(rows):
    """Rows of the next tile where so many are left."""
    if rows >= MR or rows > 2 * MS:
        return min(rows, MR)
    return min(rows, MS)


def conv_image(I, F, task):
    """``out = f(windows W + b)``; I goes on: out, bytes of one, W, bytes of a group of it, whether packed, bias or 0,
    whether ReLU, runs, table of their offsets, steps of a run, runs of a block."""
    image = BORDERED_IMAGE(I, task)
    out = I[16] + task * I[17]
    filters, channels = I[8] // I[3], I[2] // I[3]
    depth = I[23] * I[25]
    for g in range(I[3]):
        weights = I[18] + g * I[19]
        bias = 0 if I[21] == 0 else I[21] + g * filters * T_SIZE
        for p in range(0, I[23], I[26]):
            runs = min(I[26], I[23] - p)
            how = (ADD if p > 0 else 0) | (RELU if I[22] != 0 and p + runs == I[23] else 0)
            for j in range(0, filters, NR):
                columns = min(NR, filters - j)
                if I[20] != 0:
                    width = (columns + VL - 1) // VL * VL
                    panel, step = weights + (j * depth + p * I[25] * width) * T_SIZE, width * T_SIZE
                else:
                    panel, step = weights + (p * I[25] * I[8] + j) * T_SIZE, I[8] * T_SIZE
                start = 0 if bias == 0 or p > 0 else bias + j * T_SIZE
                i = 0
                while i < I[5]:
                    rows = HEIGHT(I[5] - i)
                    TILE(
                        runs, I[24] + p * 8, I[25], image + g * channels * T_SIZE, I[4] + i * 8, T_SIZE, panel, step,
                        out + (i * I[8] + g * filters + j) * T_SIZE, I[8] * T_SIZE, how, start, rows, columns,
                    )  # fmt: skip
                    i += rows


def conv_input_image(I, F, task):
    """``dx``: the image's gradient, to which each window adds; I goes on: dz, bytes of one, packed W, bytes of a
    place's, bytes of the room (of a task, or of the image)."""
    room = I[0] + task * I[1] if I[10] == 0 else I[10] + task // I[9] * I[11]
    dz = I[16] + task * I[17]
    filters, channels = I[8] // I[3], I[2] // I[3]
    zeros = ptr(room)
    for i in range(I[20] // T_SIZE):
        zeros[i] = T(0.0)
    offsets = pointer_i64(I[6])
    for g in range(I[3]):
        i = 0
        while i < I[5]:
            rows = HEIGHT(I[5] - i)
            for p in range(I[7]):
                for j in range(0, channels, NR):
                    columns = min(NR, channels - j)
                    width = (columns + VL - 1) // VL * VL
                    SCATTER(
                        filters, dz + (i * I[8] + g * filters) * T_SIZE, I[8] * T_SIZE, T_SIZE,
                        I[18] + (g * I[7] + p) * I[19] + j * filters * T_SIZE, width * T_SIZE,
                        room + offsets[p] + (g * channels + j) * T_SIZE, I[4] + i * 8, ADD, 0, rows, columns,
                    )  # fmt: skip
            i += rows
    if I[10] != 0:
        image = I[0] + task * I[1]
        for i in range(I[14]):
            copy_memory(image + i * I[15], room + I[13] + i * I[12], I[15])


def conv_weight_image(I, F, task):
    """A task's part of ``dW``, added up over its images; I goes on: dz, bytes of one, parts, bytes of one, rows of a
    group of dW, table of their offsets, rows of windows, table of their offsets, windows in one, bytes from one to the
    next, rows of windows at a time."""
    image = BORDERED_IMAGE(I, task)
    dz = I[16] + task * I[17]
    part = I[18] + task // I[9] * I[19]
    filters, channels = I[8] // I[3], I[2] // I[3]
    for g in range(I[3]):
        for line in range(0, I[22], I[26]):
            lines = min(I[26], I[22] - line)
            how = 0 if line == 0 and task % I[9] == 0 else ADD
            for j in range(0, filters, NR):
                columns = min(NR, filters - j)
                gradients = dz + (line * I[24] * I[8] + g * filters + j) * T_SIZE
                i = 0
                while i < I[20]:
                    rows = HEIGHT(I[20] - i)
                    TILE(
                        lines, I[23] + line * 8, I[24], image + g * channels * T_SIZE, I[21] + i * 8, I[25],
                        gradients, I[8] * T_SIZE,
                        part + (i * I[8] + g * filters + j) * T_SIZE, I[8] * T_SIZE, how, 0, rows, columns,
                    )  # fmt: skip
                    i += rows


def pack_places(I, F, task):
    """A task packs the transposed weights of one place and group; I: to, bytes of one, W, places, channels and filters
    of a group, all filters."""
    group, place = task // I[3], task % I[3]
    source = I[2] + (place * I[4] * I[6] + group * I[5]) * T_SIZE
    PACK_COLUMNS(0, I[4], I[5], I[4], source, I[6], 1, I[0] + task * I[1])


def pack_groups(I, F, task):
    """A task packs the weights of one group; I: to, bytes of one, W, depth, filters of a group, all filters."""
    PACK_COLUMNS(0, I[4], I[3], I[4], I[2] + task * I[4] * T_SIZE, I[5], 0, I[0] + task * I[1])


@once
def kernel_names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """What the templates here call, for a dtype."""
    blocks = product.blocking(dtype)
    shape, width = blocks.shape, micro.vector_bytes()
    sizes: dict[str, Any] = {"MR": shape.rows, "MS": shape.few_rows, "NR": shape.columns, "VL": shape.lanes}

    def tiles(places: int) -> dict[str, Any]:
        return {
            name: micro.micro_kernel(dtype, rows, vectors, shape.lanes, edge, places)
            for name, rows, vectors, edge in (
                ("MICRO", shape.rows, shape.vectors, False),
                ("MICRO_HIGH", shape.rows, shape.vectors, True),
                ("MICRO_HIGH_NARROW", shape.rows, 1, True),
                ("MICRO_LOW", shape.few_rows, shape.vectors, True),
                ("MICRO_LOW_NARROW", shape.few_rows, 1, True),
            )
        }

    variant = f"v{width}"
    return {
        **sizes,
        "ADD": micro.ADD,
        "RELU": micro.RELU,
        "TILE": function(gathered_tile, dtype, variant, inline=False, **sizes, **tiles(micro.GATHERED)),
        "SCATTER": function(scattered_tile, dtype, variant, inline=False, **sizes, **tiles(micro.SCATTERED)),
        "HEIGHT": function(height, dtype, variant, **sizes),
        "BORDERED_IMAGE": function(bordered, dtype),
        "PACK_COLUMNS": blocks.pack_columns,
    }
