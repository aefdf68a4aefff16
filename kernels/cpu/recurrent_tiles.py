"""Recurrent layers on tiles of the batch's rows: a task takes its rows through all steps, alone.

Steps go in blocks. The inputs of a block are multiplied at once; then step by step the states are multiplied, and the
cell does the rest while all of it is in the cache. Backwards, a block's gradients of the sums stay where the gates
were; from them come the gradients of the weights and inputs, again at once. In a block a gate's numbers lie together,
(steps, rows, units), and then the next gate's; with a batch of one row the gates of a step do, so that one product does
them all.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from typing import Any

import numpy as np

from . import product
from .intrinsics import call_kernel, copy_memory, pointer_i64
from .micro import ADD
from .recurrent_cells import cell_functions
from .specialise import function, kernel

# The record. Work is a task's own; "_AT" are bytes from its start. "_STEP" are bytes from one task to the next.
(
    BATCH, TILE, TILES, PER_TASK, STEPS, BLOCK, FEATURES, UNITS, REVERSE, OPTION,  # OPTION: relu, or reset after
    GATES, SLOTS, SHIFT, LAST_SLOT, MET_SLOT, WIDE,
    X, Y, MASK, H0, C0, KEPT, CELLS, LAST_CELL, B, C,
    PRODUCT, RECORD, RECORD_STEP, WORK, WORK_STEP,
    X_ROOM_AT, H_ROOM_AT, Z_ROOM_AT, B_ROOM_AT, X_AT, Z_AT, H_AT, CELL_AT, ZERO_AT, BIAS_AT,
    DY, DY_STEPS, DX, DH0, DC0, DW, DW_STEP, DU, DU_STEP, DB, DB_STEP, DC, DC_STEP, ONE, SUM_STATE,
    DH_AT, DCELL_AT, MET_AT, DX_AT,
) = range(60)  # fmt: skip
# Then, for each of the two matrices: address, elements of a row, transposed, state of it, where it is packed to, and
# bytes from gate to gate in it and in what is packed
W, U = 60, 67
B_STATE = 3
LENGTH = 74


def run_product(I, F, task):
    """I: the arguments of a product."""
    RUN(
        I[0], I[1], I[2], I[3], I[4], I[5], I[6], I[7], I[8], I[9], I[10], I[11], I[12], I[13], I[14], I[15], 0
    )  # fmt: skip


def times(I, matrix, record, gate, m, n, k, a, lda, room, c, ldc, how, bias):
    """``C = A B`` and so on with a gate of one of the matrices."""
    R = pointer_i64(record)
    R[0], R[1], R[2], R[3], R[4], R[5], R[6] = m, n, k, a, lda, 0, room
    R[7], R[8], R[9], R[10] = I[matrix] + gate * I[matrix + 5], I[matrix + 1], I[matrix + 2], I[matrix + 3]
    R[11], R[12], R[13], R[14], R[15] = I[matrix + 4] + gate * I[matrix + 6], c, ldc, how, bias
    call_kernel(I[PRODUCT], record, record, 0)


def sums(I, record, work, m, n, k, a, lda, b, ldb, c, ldc, how):
    """``C = A^T B`` or ``C += A^T B``, sums over `k` rows."""
    R = pointer_i64(record)
    R[0], R[1], R[2], R[3], R[4], R[5], R[6] = m, n, k, a, lda, 1, 0
    R[7], R[8], R[9], R[10], R[11] = b, ldb, 0, I[SUM_STATE], work + I[B_ROOM_AT]
    R[12], R[13], R[14], R[15] = c, ldc, how, 0
    call_kernel(I[PRODUCT], record, record, 0)


def times_state(I, record, first, gates, rows, state, room, z, apart, row, how, bias):
    """What the state adds to the sums of some gates, which lie from `z` on; `how` and `bias` as products have them."""
    units = I[UNITS]
    if I[WIDE] != 0:
        TIMES(I, U, record, first, rows, gates * units, units, state, units, room, z, row, how, bias)
    else:
        for g in range(gates):
            start = 0 if bias == 0 else bias + g * units * T_SIZE
            at = z + g * apart * T_SIZE
            TIMES(I, U, record, first + g, rows, units, units, state, units, room, at, row, how, start)


def gradient_of_state(I, record, first, gates, rows, z, apart, row, room, to, how):
    """``to = dz U^T`` of some gates, or added to it."""
    units = I[UNITS]
    if I[WIDE] != 0:
        TIMES(I, U, record, first, rows, units, gates * units, z, row, room, to, units, how, 0)
    else:
        for g in range(gates):
            at = z + g * apart * T_SIZE
            TIMES(I, U, record, first + g, rows, units, units, at, row, room, to, units, how if g == 0 else ADD, 0)


def gathered(I, source, width, first, rows, p, count, to, back):
    """Rows of some steps, in the order in which these are done, from (n, steps, width) to `to`, or `back`."""
    for s in range(count):
        t = I[STEPS] - 1 - p - s if I[REVERSE] != 0 else p + s
        for r in range(rows):
            there = source + ((first + r) * I[STEPS] + t) * width * T_SIZE
            here = to + (s * rows + r) * width * T_SIZE
            copy_memory(there if back != 0 else here, here if back != 0 else there, width * T_SIZE)


def zeros(to, size):
    x = ptr(to)
    for i in range(size):
        x[i] = T(0.0)


def added(to, source, size):
    x, y = ptr(to), ptr(source)
    for i in range(size):
        x[i] += y[i]


# ---- forward -------------------------------------------------------------------------------------------
def rnn_step(I, record, work, z, apart, row, rows, state, new_state, cell, new_cell):
    TIMES_STATE(I, record, 0, 1, rows, state, ROOM(I, work, H_ROOM_AT), z, apart, row, ADD, 0)
    RNN_FORWARD(z, rows * I[UNITS], I[OPTION], new_state)


def lstm_step(I, record, work, z, apart, row, rows, state, new_state, cell, new_cell):
    TIMES_STATE(I, record, 0, 4, rows, state, ROOM(I, work, H_ROOM_AT), z, apart, row, ADD, 0)
    LSTM_FORWARD(z, apart, rows * I[UNITS], cell, new_cell, new_state)


def gru_step(I, record, work, z, apart, row, rows, state, new_state, cell, new_cell):
    size, room = rows * I[UNITS], ROOM(I, work, H_ROOM_AT)
    next_gate, met = z + apart * T_SIZE, z + 3 * apart * T_SIZE
    TIMES_STATE(I, record, 0, 2, rows, state, room, next_gate, apart, row, ADD, 0)
    if I[OPTION] != 0:
        bias = 0 if I[C] == 0 else I[C] + 2 * I[UNITS] * T_SIZE
        TIMES_STATE(I, record, 2, 1, rows, state, room, met, apart, row, 0, bias)
        GRU_GATES(z, apart, size)
    else:
        GRU_GATES(z, apart, size)
        GRU_RESET(z, apart, size, state)
        TIMES_STATE(I, record, 2, 1, rows, met, room, z, apart, row, ADD, 0)
    GRU_STATE(z, apart, size, I[OPTION], state, new_state)


def room_of(I, work, at):
    """Where a product may pack A, or 0 where it need not."""
    return work + I[at] if I[at] != 0 else 0


def biases(I, work):
    """Where what all steps of all rows start from lies; those of the GRU's state that can be are added to it."""
    if I[C] == 0:
        return I[B]
    units = I[UNITS]
    total = work + I[BIAS_AT]
    x, b = ptr(total), ptr(I[B])
    for i in range(3 * units):
        x[i] = b[i] if I[B] != 0 else T(0.0)
    ADDED(total, I[C], (2 if I[OPTION] != 0 else 3) * units)
    return total


def forward_sequences(I, F, task):
    units, features, steps, tile_rows = I[UNITS], I[FEATURES], I[STEPS], I[TILE]
    slots, gates = I[SLOTS], I[GATES]
    work, record = I[WORK] + task * I[WORK_STEP], I[RECORD] + task * I[RECORD_STEP]
    x, size_of_state = work + I[X_AT], tile_rows * units * T_SIZE
    bias = BIASES(I, work)
    ZEROS(work + I[ZERO_AT], tile_rows * units)
    for tile in range(task * I[PER_TASK], min((task + 1) * I[PER_TASK], I[TILES])):
        first = tile * tile_rows
        rows = min(tile_rows, I[BATCH] - first)
        size = rows * units
        state = I[H0] + first * units * T_SIZE if I[H0] != 0 else work + I[ZERO_AT]
        cell = I[C0] + first * units * T_SIZE if I[C0] != 0 else work + I[ZERO_AT]
        for p0 in range(0, steps, I[BLOCK]):
            count = min(I[BLOCK], steps - p0)
            z = work + I[Z_AT]
            if I[KEPT] != 0:
                z = I[KEPT] + (first * steps + p0 * rows) * slots * units * T_SIZE
            # From gate to gate, from row to row, from step to step
            apart, row, step = count * size, units, size
            if tile_rows == 1:
                apart, row, step = units, slots * units, slots * units
            GATHERED(I, I[X], features, first, rows, p0, count, x, 0)
            for gate in range(gates):
                to = z + (gate + I[SHIFT]) % gates * apart * T_SIZE
                start = 0 if bias == 0 else bias + gate * units * T_SIZE
                room = ROOM(I, work, X_ROOM_AT)
                TIMES(I, W, record, gate, count * rows, units, features, x, features, room, to, row, 0, start)
            for s in range(count):
                p = p0 + s
                t = steps - 1 - p if I[REVERSE] != 0 else p
                new_state = work + I[H_AT] + p % 2 * size_of_state
                new_cell = work + I[CELL_AT] + p % 2 * size_of_state
                if I[CELLS] != 0:
                    new_cell = I[CELLS] + (first * steps + p * rows) * units * T_SIZE
                STEP(I, record, work, z + s * step * T_SIZE, apart, row, rows, state, new_state, cell, new_cell)
                if I[MASK] != 0:
                    mask = ptr(I[MASK])
                    for r in range(rows):
                        if mask[(first + r) * steps + t] == T(0.0):
                            at = r * units * T_SIZE
                            copy_memory(new_state + at, state + at, units * T_SIZE)
                            if HAS_CELL:
                                copy_memory(new_cell + at, cell + at, units * T_SIZE)
                for r in range(rows):
                    to = I[Y] + ((first + r) * steps + t) * units * T_SIZE
                    copy_memory(to, new_state + r * units * T_SIZE, units * T_SIZE)
                state, cell = new_state, new_cell
        if I[LAST_CELL] != 0:
            copy_memory(I[LAST_CELL] + first * units * T_SIZE, cell, size * T_SIZE)


# ---- backward ------------------------------------------------------------------------------------------
def rnn_step_back(I, record, work, z, apart, row, rows, before, state, cell_before, cell, dstate, dbefore, dcell):
    RNN_BACKWARD(z, rows * I[UNITS], I[OPTION], state, dstate)


def lstm_step_back(I, record, work, z, apart, row, rows, before, state, cell_before, cell, dstate, dbefore, dcell):
    LSTM_BACKWARD(z, apart, rows * I[UNITS], cell_before, cell, dstate, dcell)


def gru_step_back(I, record, work, z, apart, row, rows, before, state, cell_before, cell, dstate, dbefore, dcell):
    size = rows * I[UNITS]
    GRU_BACKWARD(z, apart, size, I[OPTION], before, dstate, dbefore)
    if I[OPTION] == 0:
        dreset = work + I[MET_AT]
        GRADIENT_OF_STATE(I, record, 2, 1, rows, z, apart, row, ROOM(I, work, Z_ROOM_AT), dreset, 0)
        GRU_RESET_BACKWARD(z, apart, size, before, dreset, dbefore)


def pass_padding(I, z, apart, row, first, rows, t, dstate, dbefore, dcell, dcell_kept):
    """Rows where step `t` is padding: gradients go past it."""
    units = I[UNITS]
    mask = ptr(I[MASK])
    for r in range(rows):
        at = r * units * T_SIZE
        if mask[(first + r) * I[STEPS] + t] == T(0.0):
            for slot in range(I[SLOTS]):
                if slot != I[MET_SLOT]:
                    ZEROS(z + (slot * apart + r * row) * T_SIZE, units)
            copy_memory(dbefore + at, dstate + at, units * T_SIZE)
            if HAS_CELL:
                copy_memory(dcell + at, dcell_kept + at, units * T_SIZE)
        elif not GOES_PAST:
            ZEROS(dbefore + at, units)


def sums_of_block(I, record, work, task, z, apart, row, count, x, states, how):
    """Gradients of the weights from a block of `count` rows, which they begin with or add to."""
    units, features, gates = I[UNITS], I[FEATURES], I[GATES]
    columns = gates * units
    for gate in range(gates):
        at = gate * units * T_SIZE
        slot = (gate + I[SHIFT]) % gates
        dz = z + slot * apart * T_SIZE
        dW, dU = I[DW] + task * I[DW_STEP] + at, I[DU] + task * I[DU_STEP] + at
        SUMS(I, record, work, features, units, count, x, features, dz, row, dW, columns, how)
        if I[DB] != 0:
            SUMS(I, record, work, 1, units, count, I[ONE], 0, dz, row, I[DB] + task * I[DB_STEP] + at, units, how)
        met, met_row = states, units
        if gate == gates - 1:
            dz = z + I[LAST_SLOT] * apart * T_SIZE
            if I[MET_SLOT] >= 0:
                met, met_row = z + I[MET_SLOT] * apart * T_SIZE, row
        SUMS(I, record, work, units, units, count, met, met_row, dz, row, dU, columns, how)
        if I[DC] != 0:
            SUMS(I, record, work, 1, units, count, I[ONE], 0, dz, row, I[DC] + task * I[DC_STEP] + at, units, how)


def backward_sequences(I, F, task):
    units, features, steps, tile_rows = I[UNITS], I[FEATURES], I[STEPS], I[TILE]
    slots, gates = I[SLOTS], I[GATES]
    work, record = I[WORK] + task * I[WORK_STEP], I[RECORD] + task * I[RECORD_STEP]
    x, states, size_of_state = work + I[X_AT], work + I[H_AT], tile_rows * units * T_SIZE
    ZEROS(work + I[ZERO_AT], tile_rows * units)
    how = 0
    for tile in range(task * I[PER_TASK], min((task + 1) * I[PER_TASK], I[TILES])):
        first = tile * tile_rows
        rows = min(tile_rows, I[BATCH] - first)
        size = rows * units
        start = I[H0] + first * units * T_SIZE if I[H0] != 0 else work + I[ZERO_AT]
        dstate, dbefore = work + I[DH_AT], work + I[DH_AT] + size_of_state
        dcell, dcell_kept = work + I[DCELL_AT], work + I[DCELL_AT] + size_of_state
        ZEROS(dstate, size)
        if HAS_CELL:
            ZEROS(dcell, size)
        for p0 in range((steps - 1) // I[BLOCK] * I[BLOCK], -1, -I[BLOCK]):
            count = min(I[BLOCK], steps - p0)
            z = work + I[Z_AT]
            if I[KEPT] != 0:
                z = I[KEPT] + (first * steps + p0 * rows) * slots * units * T_SIZE
            apart, row, step = count * size, units, size
            if tile_rows == 1:
                apart, row, step = units, slots * units, slots * units
            GATHERED(I, I[X], features, first, rows, p0, count, x, 0)
            # The states before each step, and that after the last one
            if p0 == 0:
                copy_memory(states, start, size * T_SIZE)
                GATHERED(I, I[Y], units, first, rows, 0, count, states + size * T_SIZE, 0)
            else:
                GATHERED(I, I[Y], units, first, rows, p0 - 1, count + 1, states, 0)
            for s in range(count - 1, -1, -1):
                p = p0 + s
                t = steps - 1 - p if I[REVERSE] != 0 else p
                if I[DY_STEPS] != 0:
                    for r in range(rows):
                        ADDED(dstate + r * units * T_SIZE, I[DY] + ((first + r) * steps + t) * units * T_SIZE, units)
                elif p == steps - 1:
                    ADDED(dstate, I[DY] + first * units * T_SIZE, size)
                cell = cell_before = 0
                if HAS_CELL:
                    cell = I[CELLS] + (first * steps + p * rows) * units * T_SIZE
                    cell_before = cell - size * T_SIZE
                    if p == 0:
                        cell_before = I[C0] + first * units * T_SIZE if I[C0] != 0 else work + I[ZERO_AT]
                    if I[MASK] != 0:
                        copy_memory(dcell_kept, dcell, size * T_SIZE)
                zs, before = z + s * step * T_SIZE, states + s * size * T_SIZE
                STEP(
                    I, record, work, zs, apart, row, rows, before, before + size * T_SIZE,
                    cell_before, cell, dstate, dbefore, dcell,
                )  # fmt: skip
                if I[MASK] != 0:
                    PASS_PADDING(I, zs, apart, row, first, rows, t, dstate, dbefore, dcell, dcell_kept)
                if p > 0 or I[DH0] != 0:
                    add = ADD if GOES_PAST or I[MASK] != 0 else 0
                    room = ROOM(I, work, Z_ROOM_AT)
                    if I[LAST_SLOT] == 0 and gates > 1:  # the new gate of a GRU went another way
                        GRADIENT_OF_STATE(I, record, 0, 2, rows, zs + apart * T_SIZE, apart, row, room, dbefore, add)
                    else:
                        to = zs + I[SHIFT] * apart * T_SIZE
                        GRADIENT_OF_STATE(I, record, 0, gates, rows, to, apart, row, room, dbefore, add)
                dstate, dbefore = dbefore, dstate
            SUMS_OF_BLOCK(I, record, work, task, z, apart, row, count * rows, x, states, how)
            how = ADD
            if I[DX] != 0:
                dx, room = work + I[DX_AT], ROOM(I, work, Z_ROOM_AT)
                for gate in range(gates):
                    dz = z + (gate + I[SHIFT]) % gates * apart * T_SIZE
                    add = 0 if gate == 0 else ADD
                    TIMES(I, W, record, gate, count * rows, features, units, dz, row, room, dx, features, add, 0)
                GATHERED(I, I[DX], features, first, rows, p0, count, dx, 1)
        if I[DH0] != 0:
            copy_memory(I[DH0] + first * units * T_SIZE, dstate, size * T_SIZE)
        if I[DC0] != 0:
            copy_memory(I[DC0] + first * units * T_SIZE, dcell, size * T_SIZE)


# ---- compiled ------------------------------------------------------------------------------------------
_FORWARD = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}
_BACKWARD = {"rnn": rnn_step_back, "gru": gru_step_back, "lstm": lstm_step_back}


def sequence_kernels(cell: str, dtype: np.dtype[Any], back: bool) -> tuple[int, int]:
    """Addresses of the kernel of a cell ("rnn", "gru" or "lstm"), forward or `back`, and of that of products."""
    blocks = product.blocking(dtype)
    names: dict[str, Any] = {"HAS_CELL": cell == "lstm", "GOES_PAST": cell == "gru", **cell_functions(dtype)}
    names["ROOM"] = function(room_of, dtype)
    parts: tuple[Any, ...] = (times, sums, zeros, added, gathered, times_state, gradient_of_state, biases)
    for part in parts:
        names[part.__name__.upper()] = function(part, dtype, inline=False, **names)
    for part in (pass_padding, sums_of_block):
        names[part.__name__.upper()] = function(part, dtype, cell, inline=False, **names)
    names["STEP"] = function((_BACKWARD if back else _FORWARD)[cell], dtype, inline=False, **names)
    products = kernel(run_product, dtype, blocks.variant, RUN=blocks.product)
    return kernel(backward_sequences if back else forward_sequences, dtype, cell, **names), products
