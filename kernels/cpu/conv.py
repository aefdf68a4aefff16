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
from .intrinsics import clear_memory, copy_memory, pointer_i64
from .specialise import function

# A record's beginning, the same for all kernels: the image, or its gradient, and bytes of one; channels; groups; the
# tables of windows and of places, and their lengths; filters; images of a task
IMAGE, IMAGE_BYTES, CHANNELS, GROUPS, WINDOWS, COUNT, PLACES, NUMBER, FILTERS, PER_TASK = range(10)
# The room for an image with its border, or 0; bytes of one task's; of a row of it; offset of the image's first pixel in
# it; rows of the image, and bytes of one
ROOM, ROOM_BYTES, PITCH, CORNER, ROWS, ROW_BYTES = range(10, 16)
# Results or their gradients, and bytes of one
RESULT, RESULT_BYTES = range(16, 18)
# Of the products: W and bytes of a group of it, whether packed, bias or 0, whether ReLU, runs, table of their offsets,
# steps of a run, runs of a block
WEIGHTS, GROUP_BYTES, PACKED, BIAS, RECTIFIED, RUNS, RUN_TABLE, STEPS, RUNS_AT_ONCE = range(18, 27)
# Of the image's gradient: packed W and bytes of a place's, bytes of the room (of a task, or of the image)
PLACE_WEIGHTS, PLACE_BYTES, CLEARED = range(18, 21)
# Of the weights' gradient: parts of the sum, and bytes of one; rows of a group of dW and the table of their offsets;
# rows of windows and the table of theirs; windows in one; bytes from one to the next; rows of windows at a time
PARTS, PART_BYTES, DEPTH, DEPTH_TABLE, LINES, LINE_TABLE, LINE_WINDOWS, WINDOW_BYTES, LINES_AT_ONCE = range(18, 27)


def bordered(I, task):
    """Where the image of a task lies that windows may go over: copied into its room, whose border is 0."""
    image = I[IMAGE] + task * I[IMAGE_BYTES]
    if I[ROOM] == 0:
        return image
    room = I[ROOM] + task // I[PER_TASK] * I[ROOM_BYTES]
    for i in range(I[ROWS]):
        copy_memory(room + I[CORNER] + i * I[PITCH], image + i * I[ROW_BYTES], I[ROW_BYTES])
    return room


def cleared(I, task, size):
    """Where a task adds up the gradient of its image, with its border; all 0."""
    room = I[IMAGE] + task * I[IMAGE_BYTES] if I[ROOM] == 0 else I[ROOM] + task // I[PER_TASK] * I[ROOM_BYTES]
    clear_memory(room, size)
    return room


def without_border(I, task, room):
    """What was added up there becomes the image's gradient."""
    if I[ROOM] != 0:
        image = I[IMAGE] + task * I[IMAGE_BYTES]
        for i in range(I[ROWS]):
            copy_memory(image + i * I[ROW_BYTES], room + I[CORNER] + i * I[PITCH], I[ROW_BYTES])


def height(rows):
    """Rows of the next tile where so many are left."""
    if rows >= MR or rows > 2 * MS:
        return min(rows, MR)
    return min(rows, MS)


def conv_image(I, F, task):
    """``out = f(windows W + b)``."""
    image = BORDERED_IMAGE(I, task)
    out = I[RESULT] + task * I[RESULT_BYTES]
    filters, channels = I[FILTERS] // I[GROUPS], I[CHANNELS] // I[GROUPS]
    row = I[FILTERS] * T_SIZE
    depth = I[RUNS] * I[STEPS]
    for g in range(I[GROUPS]):
        weights = I[WEIGHTS] + g * I[GROUP_BYTES]
        bias = 0 if I[BIAS] == 0 else I[BIAS] + g * filters * T_SIZE
        for p in range(0, I[RUNS], I[RUNS_AT_ONCE]):
            runs = min(I[RUNS_AT_ONCE], I[RUNS] - p)
            how = (ADD if p > 0 else 0) | (RELU if I[RECTIFIED] != 0 and p + runs == I[RUNS] else 0)
            for j in range(0, filters, NR):
                columns = min(NR, filters - j)
                if I[PACKED] != 0:
                    width = (columns + VL - 1) // VL * VL
                    panel, step = weights + (j * depth + p * I[STEPS] * width) * T_SIZE, width * T_SIZE
                else:
                    panel, step = weights + p * I[STEPS] * row + j * T_SIZE, row
                start = 0 if bias == 0 or p > 0 else bias + j * T_SIZE
                i = 0
                while i < I[COUNT]:
                    rows = HEIGHT(I[COUNT] - i)
                    TILE(
                        runs, I[RUN_TABLE] + p * 8, I[STEPS], image + g * channels * T_SIZE, I[WINDOWS] + i * 8, T_SIZE,
                        panel, step, out + i * row + (g * filters + j) * T_SIZE, row, how, start, rows, columns,
                    )  # fmt: skip
                    i += rows


def conv_input_image(I, F, task):
    """``dx``: the image's gradient, to which each window adds."""
    room = CLEARED_ROOM(I, task, I[CLEARED])
    dz = I[RESULT] + task * I[RESULT_BYTES]
    filters, channels = I[FILTERS] // I[GROUPS], I[CHANNELS] // I[GROUPS]
    row = I[FILTERS] * T_SIZE
    offsets = pointer_i64(I[PLACES])
    for g in range(I[GROUPS]):
        i = 0
        while i < I[COUNT]:
            rows = HEIGHT(I[COUNT] - i)
            for p in range(I[NUMBER]):
                weights = I[PLACE_WEIGHTS] + (g * I[NUMBER] + p) * I[PLACE_BYTES]
                for j in range(0, channels, NR):
                    columns = min(NR, channels - j)
                    width = (columns + VL - 1) // VL * VL
                    SCATTER(
                        1, 0, filters, dz + i * row + g * filters * T_SIZE, row, T_SIZE,
                        weights + j * filters * T_SIZE, width * T_SIZE,
                        room + offsets[p] + (g * channels + j) * T_SIZE, I[WINDOWS] + i * 8, ADD, 0, rows, columns,
                    )  # fmt: skip
            i += rows
    WITHOUT_BORDER(I, task, room)


def conv_weight_image(I, F, task):
    """A task's part of ``dW``, added up over its images."""
    image = BORDERED_IMAGE(I, task)
    dz = I[RESULT] + task * I[RESULT_BYTES]
    part = I[PARTS] + task // I[PER_TASK] * I[PART_BYTES]
    filters, channels = I[FILTERS] // I[GROUPS], I[CHANNELS] // I[GROUPS]
    row = I[FILTERS] * T_SIZE
    for g in range(I[GROUPS]):
        for line in range(0, I[LINES], I[LINES_AT_ONCE]):
            lines = min(I[LINES_AT_ONCE], I[LINES] - line)
            how = 0 if line == 0 and task % I[PER_TASK] == 0 else ADD
            for j in range(0, filters, NR):
                columns = min(NR, filters - j)
                column = (g * filters + j) * T_SIZE
                i = 0
                while i < I[DEPTH]:
                    rows = HEIGHT(I[DEPTH] - i)
                    TILE(
                        lines, I[LINE_TABLE] + line * 8, I[LINE_WINDOWS], image + g * channels * T_SIZE,
                        I[DEPTH_TABLE] + i * 8, I[WINDOW_BYTES], dz + line * I[LINE_WINDOWS] * row + column, row,
                        part + i * row + column, row, how, 0, rows, columns,
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
def room_names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """What goes from images to their rooms and back."""
    return {
        "BORDERED_IMAGE": function(bordered, dtype),
        "CLEARED_ROOM": function(cleared, dtype),
        "WITHOUT_BORDER": function(without_border, dtype),
    }


@once
def kernel_names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """What the templates here call, for a dtype."""
    width = micro.vector_bytes()
    sizes, variant = product.tile_sizes(dtype, width), f"v{width}"
    return {
        **sizes,
        "ADD": micro.ADD,
        "RELU": micro.RELU,
        "TILE": product.tile(dtype, width, micro.GATHERED),
        "SCATTER": product.tile(dtype, width, micro.SCATTERED),
        "HEIGHT": function(height, dtype, variant, **sizes),
        **room_names(dtype),
        "PACK_COLUMNS": product.blocking(dtype).pack_columns,
    }
