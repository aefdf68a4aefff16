"""Scaled dot-product attention of several heads, tile by tile (Dao et al. 2022): no matrix of all scores.

The scores of a tile are kept transposed, a row for each key and a column for each query: then the maximum, the sum and
the mask of a query go along columns, which vectors of neighbouring queries do without reductions, and the products that
follow read the tile as it lies. Heads are read where they are, in columns of wider arrays.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from dataclasses import dataclass
from functools import cache as once
from math import inf
from typing import Any

import numpy as np

from .. import memory
from . import product, scalar, threads, tuning
from .driver import Call
from .micro import ADD
from .specialise import function, kernel

# How the work is cut, where the arrays lie, and the room of a task; attention_grad.py's record begins alike
(
    ITEMS, PER_TASK, HEADS, QUERIES, KEYS, WIDTH, CAUSAL, BLOCK, TILE, KEY_TILE, MASK, LSE, ROOM, ROOM_BYTES, COPIED,
    Q, K, V, OUT,
) = (*range(15), 15, 18, 21, 24)  # fmt: skip
# After an array's address: bytes from row to row of the batch, elements from step to step
BATCH_BYTES, STEP = 1, 2
# Of NumPy's type, since Numba compiles a function again for each literal among its arguments
NO, YES = np.int64(0), np.int64(1)
PACKED = np.int64(2)  # state of B in product.py


# ---- parts of a tile -----------------------------------------------------------------------------------
def packed_queries(rows, d, x, step, to, scale):
    """Columns of `rows` queries times `scale`, for a product that has them on its right; as many as vectors hold."""
    PACK_COLUMNS(NO, rows, d, rows, x, step, YES, to)
    if scale != T(1.0):
        out = ptr(to)
        for i in range(d * ((rows + VL - 1) // VL * VL)):
            out[i] = out[i] * scale


def panels_product(m, n, k, a, lda, trans_a, b_to, depth, c, ldc, how):
    """``C = A B`` where B is packed with `depth` rows, of which there are the first `k`."""
    for j in range(0, n, NR):
        columns = min(NR, n - j)
        to, cj = b_to + j * depth * T_SIZE, c + j * T_SIZE
        PRODUCT(m, columns, k, a, lda, trans_a, NO, NO, NO, NO, PACKED, to, cj, ldc, how, NO, NO)


def masked_scores(seen, columns, d, k, step, k_to, q_to, to, mask, hidden):
    """Scores of `seen` keys and `columns` queries; -inf where `mask` has 0, and above a diagonal.

    Query r looks at key j where ``r >= hidden + j``.
    """
    PRODUCT(seen, columns, d, k, step, NO, k_to, NO, NO, NO, PACKED, q_to, to, columns, NO, NO, NO)
    if mask != 0:
        kept = ptr(mask)
        for j in range(seen):
            if kept[j] == T(0.0):
                row = ptr(to + j * columns * T_SIZE)
                for r in range(columns):
                    row[r] = T(-inf)
    for j in range(max(0, 1 - hidden), seen):
        row = ptr(to + j * columns * T_SIZE)
        for r in range(min(hidden + j, columns)):
            row[r] = T(-inf)


def exponentials(x, size):
    """In place, in one piece: rows may be shorter than a vector."""
    out = ptr(x)
    for i in range(size):
        out[i] = EXP(out[i])


def running_softmax(seen, columns, scores, top_at, total_at, alpha_at, first):
    """``exp(score - top)`` in place; updates each query's largest score and sum of exponentials.

    What was computed with the last maximum is to be multiplied by `alpha`; with `first`, nothing was.
    """
    top, total, alpha = ptr(top_at), ptr(total_at), ptr(alpha_at)
    for r in range(columns):
        if first:
            top[r] = T(-inf)
            total[r] = T(0.0)
        alpha[r] = top[r]
    whole = seen - seen % 4
    size = columns * T_SIZE
    for j in range(0, whole, 4):
        at = scores + j * size
        row, second, third, fourth = ptr(at), ptr(at + size), ptr(at + 2 * size), ptr(at + 3 * size)
        for r in range(columns):
            one = row[r] if row[r] > second[r] else second[r]
            other = third[r] if third[r] > fourth[r] else fourth[r]
            one = one if one > other else other
            top[r] = one if one > top[r] else top[r]
    for j in range(whole, seen):
        row = ptr(scores + j * size)
        for r in range(columns):
            top[r] = row[r] if row[r] > top[r] else top[r]
    # A query that sees nothing has no maximum; its exponentials are all 0
    for r in range(columns):
        shift = T(0.0) if top[r] == T(-inf) else top[r]
        alpha[r] = EXP(alpha[r] - shift)
        total[r] = total[r] * alpha[r]
    for j in range(seen):
        row = ptr(scores + j * size)
        for r in range(columns):
            row[r] = row[r] - (T(0.0) if top[r] == T(-inf) else top[r])
    EXPONENTIALS(scores, seen * columns)
    for j in range(0, whole, 4):
        at = scores + j * size
        row, second, third, fourth = ptr(at), ptr(at + size), ptr(at + 2 * size), ptr(at + 3 * size)
        for r in range(columns):
            total[r] += (row[r] + second[r]) + (third[r] + fourth[r])
    for j in range(whole, seen):
        row = ptr(scores + j * size)
        for r in range(columns):
            total[r] += row[r]


# ---- the kernel ------------------------------------------------------------------------------------------
def attention(I, F, task):
    """A task does some items: blocks of queries of a head of a row of the batch. I: as named above; F: scale.

    Room: scores, packed queries, packed values, rows of keys that are copied, then of a block's queries largest scores
    and sums, and alpha of a tile.
    """
    heads, t, s, d = I[HEADS], I[QUERIES], I[KEYS], I[WIDTH]
    block, tile, key_tile = I[BLOCK], I[TILE], I[KEY_TILE]
    blocks = (t + block - 1) // block
    padded = (tile + VL - 1) // VL * VL
    scores = I[ROOM] + task * I[ROOM_BYTES]
    q_to = scores + LINES(key_tile * padded)
    v_to = q_to + LINES(d * padded + NR)
    k_to = v_to + LINES(key_tile * ((d + VL - 1) // VL * VL) + NR)
    tops = k_to + LINES(I[COPIED])
    in_block = LINES((block + VL - 1) // VL * VL)
    totals, alpha_at = tops + in_block, tops + 2 * in_block
    q_step, k_step, v_step, out_step = I[Q + STEP], I[K + STEP], I[V + STEP], I[OUT + STEP]
    for item in range(task * I[PER_TASK], min((task + 1) * I[PER_TASK], I[ITEMS])):
        head = item // blocks
        row, shift = head // heads, head % heads * d * T_SIZE
        first = item % blocks * block
        end = min(first + block, t)
        q = I[Q] + row * I[Q + BATCH_BYTES] + shift
        k = I[K] + row * I[K + BATCH_BYTES] + shift
        v = I[V] + row * I[V + BATCH_BYTES] + shift
        out = I[OUT] + row * I[OUT + BATCH_BYTES] + shift
        # Key j is seen by the queries from j - ahead on
        ahead = s - t if I[CAUSAL] else s
        for i in range(first, end):
            ptr(totals)[i - first] = T(0.0)
            ptr(tops)[i - first] = T(-inf)
        for j0 in range(0, min(s, end + ahead), key_tile):
            depth = min(key_tile, s - j0)
            PACK_COLUMNS(NO, d, depth, d, v + j0 * v_step * T_SIZE, v_step, NO, v_to)
            mask = I[MASK] + (row * s + j0) * T_SIZE if I[MASK] != 0 else 0
            for i0 in range(first, end, tile):
                rows = min(tile, end - i0)
                seen = min(depth, i0 + rows + ahead - j0)
                if seen <= 0:
                    continue
                columns = (rows + VL - 1) // VL * VL
                PACKED_QUERIES(rows, d, q + i0 * q_step * T_SIZE, q_step, q_to, T(F[0]))
                MASKED_SCORES(
                    seen, columns, d, k + j0 * k_step * T_SIZE, k_step, k_to if I[COPIED] else 0, q_to, scores, mask,
                    j0 - ahead - i0,
                )  # fmt: skip
                place = (i0 - first) * T_SIZE
                RUNNING_SOFTMAX(seen, columns, scores, tops + place, totals + place, alpha_at, j0 == 0)
                to = out + i0 * out_step * T_SIZE
                if j0 > 0:
                    for r in range(rows):
                        alpha, y = ptr(alpha_at)[r], ptr(to + r * out_step * T_SIZE)
                        for c in range(d):
                            y[c] = y[c] * alpha
                PANELS_PRODUCT(rows, d, seen, scores, columns, YES, v_to, depth, to, out_step, ADD if j0 > 0 else 0)
        for i in range(first, end):
            total, y = ptr(totals)[i - first], ptr(out + i * out_step * T_SIZE)
            if total == T(0.0):
                for c in range(d):
                    y[c] = T(0.0)
            else:
                inverse = T(1.0) / total
                for c in range(d):
                    y[c] = y[c] * inverse
        if I[LSE] != 0:
            lse, top, total_of = ptr(I[LSE] + (head * t + first) * T_SIZE), ptr(tops), ptr(totals)
            for i in range(end - first):
                # A sum is at least 1, as the largest score's exponential is
                lse[i] = T(-inf) if total_of[i] == T(0.0) else top[i] + LOG_ABOVE_1(total_of[i])


# ---- calls -----------------------------------------------------------------------------------------------
def lines(size):
    """Bytes of so many elements, up to whole cache lines."""
    return (size * T_SIZE + 63) // 64 * 64


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes
    ----------
    tile, key_tile : int
        Queries and keys of a tile of scores.
    block : int
        Queries of an item.
    items, per_task, tasks : int
        Heads of all rows, times blocks; those of a task; tasks.
    parallel : bool
        Whether threads share the tasks.
    """

    tile: int
    key_tile: int
    block: int
    items: int
    per_task: int
    tasks: int
    parallel: bool


def _equal(size: int, most: int, multiple: int) -> int:
    """Size of the equal tiles, no larger than `most`, that `size` is cut into; a multiple if there are several."""
    number = -(-size // most)
    return size if number == 1 else -(-size // (number * multiple)) * multiple


def cut(blocks: product.Blocking, n: int, heads: int, t: int, s: int, d: int, whole_heads: bool) -> Cut:
    """The tiles, and the tasks: several a thread, as with `causal` some are longer.

    Where there are fewer heads than that, blocks of their queries are items, unless they must be `whole_heads`.
    """
    shape = blocks.shape
    most = max(tuning.ATTENTION_QUERIES // shape.columns, 1) * shape.columns
    tile = _equal(t, most, shape.lanes)
    key_tile = _equal(s, tuning.ATTENTION_KEYS, shape.rows)
    lanes = threads.count()
    wanted = lanes * tuning.ATTENTION_TASKS if lanes > 1 else 1
    tiles = -(-t // tile)
    number = 1 if whole_heads else min(tiles, max(1, -(-wanted // (n * heads))))
    block = min(t, -(-tiles // number) * tile)
    items = n * heads * -(-t // block)
    time = n * heads * t * s * (2 * d / 80 + 0.5)
    parallel = lanes > 1 and items > 1 and time >= 5 * tuning.PARALLEL_NS
    per_task = -(-items // min(items, wanted)) if parallel else items
    return Cut(tile, key_tile, block, items, per_task, -(-items // per_task), parallel)


def place_of(x: np.ndarray) -> tuple[int, int, int]:
    """Address, bytes from row to row of the batch, and elements from step to step."""
    return x.ctypes.data, x.strides[0], x.strides[1] // x.itemsize


def copied_size(blocks: product.Blocking, plan: Cut, d: int, *arrays: np.ndarray) -> int:
    """Room for rows of these, where they are copied because their steps would clash in the cache, else 0."""
    clash = any(x.shape[1] > 1 and not blocks.reads_rows(x.strides[1] // x.itemsize) for x in arrays)
    return blocks.rows_size(plan.key_tile, d, False) if clash else 0


@once
def names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """The functions of this file, and those that they use, under the names that templates use."""
    blocks = product.blocking(dtype)
    shape = blocks.shape
    found: dict[str, Any] = {
        **scalar.names(dtype),
        "VL": shape.lanes,
        "NR": shape.columns,
        "PRODUCT": blocks.product,
        "PACK_COLUMNS": blocks.pack_columns,
        "LINES": function(lines, dtype),
    }
    for template in (exponentials, packed_queries, panels_product, masked_scores, running_softmax):
        found[template.__name__.upper()] = function(template, dtype, blocks.variant, inline=False, **found)
    return found


def attention_call(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    heads: int,
    causal: bool,
    scale: float,
    mask: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray | None,
) -> Call:
    """``out = softmax(scale * q k^T) v`` of each head."""
    (n, t, width), s, dtype = q.shape, k.shape[1], q.dtype
    d, blocks = width // heads, product.blocking(dtype)
    plan = cut(blocks, n, heads, t, s, d, False)
    copied = copied_size(blocks, plan, d, k)
    block, tile = (-(-size // blocks.shape.lanes) * blocks.shape.lanes for size in (plan.block, plan.tile))
    sizes = [
        plan.key_tile * tile, blocks.columns_size(d, tile), blocks.columns_size(plan.key_tile, d),
        copied, block, block, tile,
    ]  # fmt: skip
    room = room_of(sizes, plan.tasks, dtype)
    ints = [
        plan.items, plan.per_task, heads, t, s, d, causal, plan.block, plan.tile, plan.key_tile,
        0 if mask is None else mask.ctypes.data, 0 if lse is None else lse.ctypes.data,
        room.ctypes.data, room.strides[0], copied,
        *place_of(q), *place_of(k), *place_of(v), *place_of(out),
    ]  # fmt: skip
    address = kernel(attention, dtype, blocks.variant, **names(dtype))
    keep = (q, k, v, mask, out, lse, room)
    return Call(address, np.array(ints), np.array([scale]), plan.tasks, plan.parallel, keep=keep)


def room_of(sizes: list[int], tasks: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Room for arrays of these sizes in each task, each of them on lines of its own."""
    nbytes = sum(-(-size * dtype.itemsize // memory.ALIGNMENT) * memory.ALIGNMENT for size in sizes)
    return memory.empty((tasks, nbytes), np.uint8)
