"""Matrix products, ``out = op(a) @ op(b) + beta * out``, cut into tasks.

A task does some rows of the result, or some steps of the summed dimension, with the generated kernels of
``product.py``, or with those of ``blas_product.py``: plain loops where the whole product is tiny, BLAS where that has
measured faster on this machine (``choice.py``), or ``NNFAST_GEMM=blas`` asks for it.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

import time
from typing import Any

import numpy as np

from .. import memory
from . import choice, product, threads, tuning
from .blas_product import blas_address, block_function, gemm_depth, gemm_rows
from .driver import Call, Packing, Program
from .micro import ADD, RELU
from .specialise import kernel
from .sums import reduce_call

# The record of blas_product.py goes on, after the tiles of a task, with the mode, where A is packed to (0: it is read
# where it lies) and bytes from task to task, state of B, where it is packed to and bytes from task to task, bias or 0,
# whether the result goes through ReLU, and bytes from C to what is to be written after it, or 0. By the mode a tile is
# a range of rows, of the sum's dimension, or of columns.
ROWS, DEPTH, COLUMNS = range(3)
READ, PACK, PACKED = range(3)  # states of B
CLAIMED = 20  # place of those bytes


def generated_product(I, F, task):
    m, n, k, a, b, c = I[1], I[2], I[6], I[4], I[5], I[0]
    first = task * I[3]
    room = task // I[11]
    beta = T(F[0])
    b_to, bias = I[16] + room * I[17], I[18]
    if I[12] == ROWS:
        m = min(I[3], m - first)
        a += first * T_SIZE * (1 if I[7] else I[9])
        c += first * n * T_SIZE
    elif I[12] == COLUMNS:
        n = min(I[3], n - first)
        b += first * T_SIZE * (I[10] if I[8] else 1)
        b_to += first * k * T_SIZE if I[15] == PACKED else 0
        bias += first * T_SIZE if bias != 0 else 0
        c += first * T_SIZE
    else:
        k = min(I[3], k - first)
        a += first * T_SIZE * (I[9] if I[7] else 1)
        b += first * T_SIZE * (1 if I[8] else I[10])
        c += room * m * n * T_SIZE
        beta = T(0.0) if task % I[11] == 0 else T(1.0)
    if beta != T(0.0) and beta != T(1.0):
        for i in range(m):
            out = ptr(c + i * I[2] * T_SIZE)
            for j in range(n):
                out[j] *= beta
    a_to = I[13] + room * I[14] if I[13] != 0 else 0
    how = (0 if beta == T(0.0) else ADD) | (RELU if I[19] != 0 else 0)
    PRODUCT(m, n, k, a, I[9], I[7], a_to, b, I[10], I[8], I[15], b_to, c, I[2], how, bias, I[20])


def pack_task(I, F, task):
    """A task packs some columns of B; I: to, b, k, n, ldb, trans, columns of a task."""
    first = task * I[6]
    PACK_COLUMNS(first, min(first + I[6], I[3]), I[2], I[3], I[1], I[4], I[5], I[0])


def pack_copy(I, F, task):
    """A task packs one of several B; I: to, bytes from one to the next, b, bytes likewise, k, n, ldb, trans."""
    PACK_COLUMNS(0, I[5], I[4], I[5], I[2] + task * I[3], I[6], I[7], I[0] + task * I[1])


def _pack_call(blocks: product.Blocking, b: np.ndarray, k: int, n: int, trans_b: bool) -> tuple[Call, np.ndarray]:
    """The call that packs B for all tasks, and the packed B."""
    size = blocks.columns_size(k, n)
    to = memory.empty(size, b.dtype)
    number = threads.count() if k * n >= tuning.PARALLEL_TRANSFERS else 1
    width = blocks.shape.columns
    per_task = -(-n // (number * width)) * width
    tasks = -(-n // per_task)
    ints = np.array([to.ctypes.data, b.ctypes.data, k, n, b.shape[1], trans_b, per_task], np.int64)
    address = kernel(pack_task, b.dtype, blocks.variant, PACK_COLUMNS=blocks.pack_columns)
    call = Call(address, ints, np.zeros(1), tasks, tasks > 1, keep=(b, to))

    def copies(number: int, first: int, step: int) -> tuple[Call, np.ndarray]:
        each = memory.empty((number, -(-size // 16) * 16), b.dtype)
        ints = np.array([each.ctypes.data, each.strides[0], first, step, k, n, b.shape[1], trans_b], np.int64)
        address = kernel(pack_copy, b.dtype, blocks.variant, PACK_COLUMNS=blocks.pack_columns)
        return Call(address, ints, np.zeros(1), number, number > 1, keep=(each,)), each

    call.packs = Packing(b, to, copies)
    return call, to


def _generated(m: int, n: int, k: int, dtype: Any) -> product.Blocking | None:
    """The functions of the generated product, where it is the one to use."""
    if m * n * k <= tuning.TINY_PRODUCT or choice.uses_blas(m, n, k, dtype, _times):
        return None
    return product.blocking(dtype)


def _times(m: int, n: int, k: int, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Seconds of the generated product and of BLAS's on one thread, the least of some, in turn."""
    a, b, out = (memory.empty(shape, dtype) for shape in ((m, k), (k, n), (m, n)))
    for x in (a, b, out):
        x[:] = 1.0  # what has never been written is one and the same page of zeros, which misleads caches
    programs = [
        Program(_product(a, b, out, False, False, 0.0, tuning.Tiles(m, m), ROWS, blas=blas)) for blas in (False, True)
    ]
    least = [float("inf")] * 2
    for _ in range(tuning.CHOICE_TURNS):
        for i, program in enumerate(programs):
            began = time.perf_counter()
            program.run()
            least[i] = min(least[i], time.perf_counter() - began)
    return least[0], least[1]


def _splits_row(m: int, n: int, k: int, dtype: Any) -> bool:
    """Whether threads share the product of one row by the steps of its sum.

    Each of them then reads its part of B in one piece, which is faster than to read some columns of all rows.
    """
    shared = m == 1 and threads.count() > 1 and 2 * n * k >= tuning.PARALLEL_FLOPS and k > n // 16
    return shared and _generated(m, n, k, dtype) is not None


def starts_from_bias(m: int, n: int, k: int, dtype: Any) -> bool:
    """Whether :func:`rows_product` can add a bias, and apply ReLU, in registers."""
    return _generated(m, n, k, dtype) is not None and not _splits_row(m, n, k, dtype)


def _product(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    trans_a: bool,
    trans_b: bool,
    beta: float,
    tiles: tuning.Tiles,
    mode: int,
    bias: np.ndarray | None = None,
    relu: bool = False,
    claimed: int = 0,
    blas: bool | None = None,
    by_blocks: bool = False,
) -> list[Call]:
    """The call of a product on tiles of the rows or columns of C or of the steps of the sum, after what packs B.

    By default whether `blas` does it is what :mod:`choice` says. `by_blocks`: what is to be packed of B is packed by
    the tasks, as it is where they share the steps.
    """
    m, n = out.shape[-2:]
    k = a.shape[0] if trans_a else a.shape[1]
    dtype = out.dtype
    ints = [
        out.ctypes.data, m, n, tiles.tile, a.ctypes.data, b.ctypes.data, k, trans_a, trans_b, a.shape[1], b.shape[1],
        tiles.per_task,
    ]  # fmt: skip
    time = tuning.product_ns(m, n, k)
    parallel = tiles.tasks > 1
    blocks = _generated(m, n, k, dtype) if blas is None else None if blas else product.blocking(dtype)
    if blocks is None:
        template = gemm_depth if mode == DEPTH else gemm_rows
        address = kernel(template, dtype, BLOCK=block_function(dtype))
        uses_blas = m * n * k > tuning.TINY_PRODUCT
        ints.append(blas_address(dtype) if uses_blas else 0)
        floats = np.array([beta])
        return [Call(address, np.array(ints), floats, tiles.number, parallel, uses_blas, (a, b, out), nanoseconds=time)]
    part_m, part_k, part_n = (
        tiles.tile if mode == cut else size for cut, size in ((ROWS, m), (DEPTH, k), (COLUMNS, n))
    )
    keep: list[Any] = [a, b, out, bias]
    before: list[Call] = []

    def room(size: int) -> tuple[int, int]:
        """Address and bytes per task of new room for `size` elements in each task, on lines of its own."""
        size = -(-size // 16) * 16
        array = memory.empty(size * tiles.tasks, dtype)
        keep.append(array)
        return array.ctypes.data, size * dtype.itemsize

    reads_a = part_n <= tuning.COPIED_FOR_COLUMNS if trans_a else blocks.reads_rows(a.shape[1])
    a_to = (0, 0) if reads_a or n == 1 or part_m == 1 else room(blocks.rows_size(part_m, part_k, trans_a))
    b_to, state = (0, 0), READ
    far = not trans_b and not blocks.reads_blocks(part_m, part_k, n)
    if far or not blocks.reads_columns(part_m, n, trans_a, trans_b):
        if mode == DEPTH or by_blocks:
            b_to, state = room(blocks.block_size(part_k, part_n)), PACK
        else:
            call, packed = _pack_call(blocks, b, k, n, trans_b)
            before.append(call)
            b_to, state = (packed.ctypes.data, 0), PACKED
    ints += [mode, *a_to, state, *b_to, 0 if bias is None else bias.ctypes.data, relu, claimed]
    address = kernel(generated_product, dtype, blocks.variant, PRODUCT=blocks.product)
    call = Call(address, np.array(ints), np.array([beta]), tiles.number, parallel, keep=tuple(keep), nanoseconds=time)
    return [*before, call]


def rows_product(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    tiles: tuning.Tiles,
    trans_b: bool = False,
    bias: np.ndarray | None = None,
    relu: bool = False,
) -> list[Call]:
    """Calls of ``out = a op(b)`` on tiles of the rows of a batch; `b` is not one of its arrays.

    A `bias` is added and ReLU applied where :func:`starts_from_bias` says that it can be, and not with `trans_b`.
    """
    (m, n), k = out.shape, a.shape[1]
    lanes = threads.count()
    blocks = _generated(m, n, k, out.dtype)
    if not trans_b and _splits_row(m, n, k, out.dtype):
        return _depth_parts(a, b, out, False, trans_b, 0.0)
    if tiles.number == 1 < lanes and 2 * m * n * k >= tuning.PARALLEL_FLOPS and blocks is not None:
        # Few rows, a large matrix: threads take columns
        width = blocks.shape.columns
        columns = tuning.Tiles(n, -(-n // (lanes * width)) * width)
        return _product(a, b, out, False, trans_b, 0.0, columns, COLUMNS, bias, relu)
    # What a thread writes next is what its next tile will write
    size = tiles.tile * n * out.itemsize
    claimed = size if tiles.per_task > 1 and size <= tuning.CLAIMED_BYTES else 0
    *before, call = _product(a, b, out, False, trans_b, 0.0, tiles, ROWS, bias, relu, claimed)
    for early in before:
        early.when = "early"
    call.tiles, call.reads, call.writes = tiles, (a,), (out,)
    call.ahead = CLAIMED if len(call.ints) > CLAIMED else None
    return [*before, call]


def depth_product(a: np.ndarray, b: np.ndarray, parts: np.ndarray, tiles: tuning.Tiles) -> list[Call]:
    """Calls of ``a.T b`` of two arrays with the rows of a batch; task t sums over its tiles, in ``parts[t]``."""
    calls = _product(a, b, parts, True, False, 0.0, tiles, DEPTH)
    calls[-1].tiles, calls[-1].reads, calls[-1].sums = tiles, (a, b), (parts,)
    return calls


def _depth_parts(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, trans_a: bool, trans_b: bool, beta: float
) -> list[Call]:
    """Calls of a product where each thread does some steps of the sum, in its own copy of C; these are added up."""
    m, n = out.shape
    k = a.shape[0] if trans_a else a.shape[1]
    tiles = tuning.Tiles(k, -(-k // threads.count()))
    parts = memory.empty((tiles.tasks, m, n), out.dtype)
    reduce = reduce_call(parts, out, beta)
    reduce.when, reduce.reduces = "", False  # it follows its product, whatever becomes of that
    return [*_product(a, b, parts, trans_a, trans_b, 0.0, tiles, DEPTH), reduce]


def gemm_calls(a: np.ndarray, b: np.ndarray, out: np.ndarray, trans_a: bool, trans_b: bool, beta: float) -> list[Call]:
    """The calls of one product of C-contiguous 2-d arrays of one dtype, float32 or float64."""
    m, n = out.shape
    k = a.shape[0] if trans_a else a.shape[1]
    number = threads.count() if 2 * m * n * k >= tuning.PARALLEL_FLOPS else 1
    if number > 1 and m * n <= tuning.SPLIT_BATCH_ELEMENTS and k > 4 * max(m, n):
        return _depth_parts(a, b, out, trans_a, trans_b, beta)

    def by(tiles: tuning.Tiles, claimed: int = 0) -> list[Call]:
        return _product(a, b, out, trans_a, trans_b, beta, tiles, ROWS, claimed=claimed)

    tiles, mode = tuning.product_rows(m, number), ROWS
    blocks = _generated(m, n, k, out.dtype) if b.nbytes > tuning.PACKED_BYTES else None
    if blocks is not None and n > m:  # threads share what is to be packed, rather than pack all of it each
        tiles, mode = tuning.product_columns(n, number, blocks.shape.columns), COLUMNS
    calls = _product(a, b, out, trans_a, trans_b, beta, tiles, mode, by_blocks=blocks is not None)
    calls[-1].cut = by
    return calls
