"""The gradient of attention: the scores of a tile again, from which all three gradients take their products.

A task does whole heads, so nothing is summed over tasks. Tiles are those of attention.py, a row for each key; their
queries are gone through from the last one on, as with a causal mask the last ones see the most keys.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from math import inf

import numpy as np

from . import attention as forward
from . import product
from .attention import (
    BATCH_BYTES,
    CAUSAL,
    COPIED,
    HEADS,
    ITEMS,
    KEY_TILE,
    KEYS,
    LSE,
    MASK,
    NO,
    OUT,
    PACKED,
    PER_TASK,
    QUERIES,
    ROOM,
    ROOM_BYTES,
    STEP,
    TILE,
    WIDTH,
    YES,
    K,
    Q,
    V,
)
from .driver import Call
from .micro import ADD
from .specialise import function, kernel

# After the record of attention.py
DY, DQ, DK, DV = 27, 30, 33, 36


def row_sums(rows, columns, d, dy, dy_step, out, out_step, lse, deltas, shifts):
    """Of each query ``sum(dy * out)``, and what its scores are reduced by: such that nothing is left of what sees
    nothing, nor of what only fills up a vector."""
    delta, shift = ptr(deltas), ptr(shifts)
    for i in range(rows):
        a, b = ptr(dy + i * dy_step * T_SIZE), ptr(out + i * out_step * T_SIZE)
        total = T(0.0)
        for c in range(d):
            total += a[c] * b[c]
        delta[i] = total
        of = ptr(lse)[i]
        shift[i] = T(inf) if of == T(-inf) else of
    for i in range(rows, columns):
        delta[i] = T(0.0)
        shift[i] = T(inf)


def zero_rows(rows, d, x, step):
    for i in range(rows):
        out = ptr(x + i * step * T_SIZE)
        for c in range(d):
            out[c] = T(0.0)


def packed_rows(rows, d, x, step, to, scale):
    """`rows` steps times `scale`, for a product that sums over them."""
    PACK_COLUMNS(NO, d, rows, d, x, step, NO, to)
    if scale != T(1.0):
        out = ptr(to)
        for i in range(rows * ((d + VL - 1) // VL * VL)):
            out[i] = out[i] * scale


def attention_grad(I, F, task):
    """A task does some heads. I: as attention.py names it, then dy, dq, dk, dv; F: scale.

    Room: probabilities and their gradient, packed columns of queries and of dy, packed rows of both and of keys, rows
    of keys and values that are copied, then of all queries the sums of ``dy * out`` and what scores are reduced by.
    """
    heads, t, s, d = I[HEADS], I[QUERIES], I[KEYS], I[WIDTH]
    tile, key_tile = I[TILE], I[KEY_TILE]
    padded = (tile + VL - 1) // VL * VL
    wide = (d + VL - 1) // VL * VL
    p = I[ROOM] + task * I[ROOM_BYTES]
    dp = p + LINES(key_tile * padded)
    q_columns = dp + LINES(key_tile * padded)
    dy_columns = q_columns + LINES(d * padded + NR)
    q_rows = dy_columns + LINES(d * padded + NR)
    dy_rows = q_rows + LINES(tile * wide + NR)
    k_rows = dy_rows + LINES(tile * wide + NR)
    a_to = k_rows + LINES(key_tile * wide + NR)
    deltas = a_to + LINES(I[COPIED])
    shifts = deltas + LINES((t + VL - 1) // VL * VL)
    copied = a_to if I[COPIED] else 0
    q_step, k_step, v_step, dy_step = I[Q + STEP], I[K + STEP], I[V + STEP], I[DY + STEP]
    dq_step, dk_step, dv_step = I[DQ + STEP], I[DK + STEP], I[DV + STEP]
    scale = T(F[0])
    for item in range(task * I[PER_TASK], min((task + 1) * I[PER_TASK], I[ITEMS])):
        row, shift = item // heads, item % heads * d * T_SIZE
        q = I[Q] + row * I[Q + BATCH_BYTES] + shift
        k = I[K] + row * I[K + BATCH_BYTES] + shift
        v = I[V] + row * I[V + BATCH_BYTES] + shift
        out = I[OUT] + row * I[OUT + BATCH_BYTES] + shift
        dy = I[DY] + row * I[DY + BATCH_BYTES] + shift
        dq = I[DQ] + row * I[DQ + BATCH_BYTES] + shift
        dk = I[DK] + row * I[DK + BATCH_BYTES] + shift
        dv = I[DV] + row * I[DV + BATCH_BYTES] + shift
        ahead = s - t if I[CAUSAL] else s
        lse = I[LSE] + item * t * T_SIZE
        ROW_SUMS(t, (t + VL - 1) // VL * VL, d, dy, dy_step, out, I[OUT + STEP], lse, deltas, shifts)
        # Queries that come before all keys
        ZERO_ROWS(min(t, max(0, -ahead)), d, dq, dq_step)
        for j0 in range(0, s, key_tile):
            depth = min(key_tile, s - j0)
            PACKED_ROWS(depth, d, k + j0 * k_step * T_SIZE, k_step, k_rows, scale)
            mask = I[MASK] + (row * s + j0) * T_SIZE if I[MASK] != 0 else 0
            for i0 in range((t - 1) // tile * tile, -1, -tile):
                rows = min(tile, t - i0)
                seen = min(depth, i0 + rows + ahead - j0)
                if seen <= 0:
                    break
                columns = (rows + VL - 1) // VL * VL
                # The last queries see all keys
                how = 0 if i0 + tile >= t else ADD
                q_at, dy_at = q + i0 * q_step * T_SIZE, dy + i0 * dy_step * T_SIZE
                PACKED_QUERIES(rows, d, q_at, q_step, q_columns, scale)
                PACKED_QUERIES(rows, d, dy_at, dy_step, dy_columns, T(1.0))
                PACKED_ROWS(rows, d, q_at, q_step, q_rows, scale)
                PACKED_ROWS(rows, d, dy_at, dy_step, dy_rows, T(1.0))
                MASKED_SCORES(
                    seen, columns, d, k + j0 * k_step * T_SIZE, k_step, copied, q_columns, p, mask, j0 - ahead - i0
                )  # fmt: skip
                by = ptr(shifts + i0 * T_SIZE)
                for j in range(seen):
                    score = ptr(p + j * columns * T_SIZE)
                    for r in range(columns):
                        score[r] = score[r] - by[r]
                EXPONENTIALS(p, seen * columns)
                PANELS_PRODUCT(seen, d, rows, p, columns, NO, dy_rows, rows, dv + j0 * dv_step * T_SIZE, dv_step, how)
                PRODUCT(
                    seen, columns, d, v + j0 * v_step * T_SIZE, v_step, NO, copied, NO, NO, NO, PACKED, dy_columns, dp,
                    columns, NO, NO, NO,
                )  # fmt: skip
                delta = ptr(deltas + i0 * T_SIZE)
                for j in range(seen):
                    weight, slope = ptr(p + j * columns * T_SIZE), ptr(dp + j * columns * T_SIZE)
                    for r in range(columns):
                        slope[r] = weight[r] * (slope[r] - delta[r])
                PANELS_PRODUCT(seen, d, rows, dp, columns, NO, q_rows, rows, dk + j0 * dk_step * T_SIZE, dk_step, how)
                to = dq + i0 * dq_step * T_SIZE
                PANELS_PRODUCT(rows, d, seen, dp, columns, YES, k_rows, depth, to, dq_step, 0 if j0 == 0 else ADD)


def attention_grad_call(
    dy: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    heads: int,
    causal: bool,
    scale: float,
    mask: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
) -> Call:
    """Gradients of :func:`~nnfast.kernels.cpu.attention.attention_call`."""
    (n, t, width), s, dtype = q.shape, k.shape[1], q.dtype
    d, blocks = width // heads, product.blocking(dtype)
    plan = forward.cut(blocks, n, heads, t, s, d, True)
    copied = forward.copied_size(blocks, plan, d, k, v)
    tile, steps = (-(-size // blocks.shape.lanes) * blocks.shape.lanes for size in (plan.tile, t))
    of_queries, of_rows = blocks.columns_size(d, tile), blocks.columns_size(plan.tile, d)
    sizes = [
        *[plan.key_tile * tile] * 2, *[of_queries] * 2, *[of_rows] * 2, blocks.columns_size(plan.key_tile, d),
        copied, steps, steps,
    ]  # fmt: skip
    room = forward.room_of(sizes, plan.tasks, dtype)
    ints = [
        plan.items, plan.per_task, heads, t, s, d, causal, plan.block, plan.tile, plan.key_tile,
        0 if mask is None else mask.ctypes.data, lse.ctypes.data, room.ctypes.data, room.strides[0], copied,
    ]  # fmt: skip
    arrays = (q, k, v, out, dy, dq, dk, dv)
    for x in arrays:
        ints += forward.place_of(x)
    names = dict(forward.names(dtype))
    for template in (row_sums, zero_rows, packed_rows):
        names[template.__name__.upper()] = function(template, dtype, blocks.variant, inline=False, **names)
    address = kernel(attention_grad, dtype, blocks.variant, **names)
    return Call(address, np.array(ints), np.array([scale]), plan.tasks, plan.parallel, keep=(*arrays, mask, lse, room))
