"""Matrix products: ``out = op(a) @ op(b) + beta * out``, cut into tasks that each call BLAS on a block.

Everything else in ``kernels/cpu`` multiplies through :func:`gemm_block` alone, so a generated micro-kernel
can take BLAS's place here. BLAS is called by address (from ``scipy.linalg.cython_blas``), with leading
dimensions, so nothing is copied; a row-major C = A B is the column-major C^T = B^T A^T.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np

from . import threads, tuning
from .driver import Call
from .intrinsics import blas_gemm
from .specialise import function, kernel


@once
def blas_address(dtype: Any) -> int:
    """Address of SciPy's sgemm or dgemm. It goes into the records: as a constant it would spoil the cache."""
    from numba.extending import get_cython_function_address

    name = "sgemm" if np.dtype(dtype) == np.float32 else "dgemm"
    return int(get_cython_function_address("scipy.linalg.cython_blas", name))


def gemm_block(blas, trans_a, trans_b, m, n, k, a, lda, b, ldb, beta, c, ldc):
    """``C = op(A) op(B) + beta C`` on row-major blocks given by address and leading dimension; flags 0 or 1."""
    if m * n * k > TINY:
        # 78 is "N", 84 is "T"
        blas_gemm(blas, 78 + 6 * trans_b, 78 + 6 * trans_a, n, m, k, b, ldb, a, lda, beta, c, ldc)
        return
    row_a, step_a = (1, lda) if trans_a else (lda, 1)
    step_b, column_b = (1, ldb) if trans_b else (ldb, 1)
    A, B = ptr(a), ptr(b)
    for i in range(m):
        C = ptr(c + i * ldc * T_SIZE)
        for j in range(n):
            total = T(0.0)
            for p in range(k):
                total += A[i * row_a + p * step_a] * B[p * step_b + j * column_b]
            C[j] = total if beta == T(0.0) else total + beta * C[j]


def block_function(dtype: np.dtype[Any]) -> Any:
    """:func:`gemm_block` for use inside kernels of `dtype`."""
    return function(gemm_block, dtype, TINY=tuning.TINY_PRODUCT)


# Record of both kernels below. TILE counts rows of C in the first, steps of k in the second.
C, ROWS, COLUMNS, TILE, A, B, DEPTH, TRANS_A, TRANS_B, LDA, LDB, BLAS = range(12)


def gemm_rows(I, F, task):
    """A task does a range of rows of C."""
    first = task * I[3]
    rows = min(I[3], I[1] - first)
    a = I[4] + first * T_SIZE * (1 if I[7] else I[9])
    c = I[0] + first * I[2] * T_SIZE
    BLOCK(I[11], I[7], I[8], rows, I[2], I[6], a, I[9], I[5], I[10], T(F[0]), c, I[2])


def gemm_depth(I, F, task):
    """A task does a range of the summed dimension, into its own copy of C."""
    first = task * I[3]
    depth = min(I[3], I[6] - first)
    a = I[4] + first * T_SIZE * (I[9] if I[7] else 1)
    b = I[5] + first * T_SIZE * (1 if I[8] else I[10])
    c = I[0] + task * I[1] * I[2] * T_SIZE
    BLOCK(I[11], I[7], I[8], I[1], I[2], depth, a, I[9], b, I[10], T(0.0), c, I[2])


def add_parts(I, F, task):
    """``out = beta * out + sum of the parts``, in the parts' order; I: out, size, parts, count, chunk."""
    first = task * I[4]
    size = min(I[4], I[1] - first)
    beta = T(F[0])
    out = ptr(I[0] + first * T_SIZE)
    for i in range(size):
        out[i] = T(0.0) if beta == T(0.0) else beta * out[i]
    for p in range(I[3]):
        part = ptr(I[2] + (p * I[1] + first) * T_SIZE)
        for i in range(size):
            out[i] += part[i]


def reduce_call(parts: np.ndarray, out: np.ndarray, beta: float = 0.0) -> Call:
    """``out = beta * out + parts.sum(axis=0)``, always in the same order."""
    chunk = tuning.CHUNK_ELEMENTS
    tasks = -(-out.size // chunk)
    ints = np.array([out.ctypes.data, out.size, parts.ctypes.data, len(parts), chunk], np.int64)
    parallel = tasks > 1 and parts.size >= tuning.PARALLEL_ELEMENTS and threads.count() > 1
    return Call(kernel(add_parts, out.dtype), ints, np.array([beta]), tasks, parallel, keep=(parts, out))


def gemm_calls(a: np.ndarray, b: np.ndarray, out: np.ndarray, trans_a: bool, trans_b: bool, beta: float) -> list[Call]:
    """The calls of one product of C-contiguous 2-d arrays of one dtype, float32 or float64."""
    m, n = out.shape
    k = a.shape[0] if trans_a else a.shape[1]
    number = threads.count() if 2 * m * n * k >= tuning.PARALLEL_FLOPS else 1
    block = block_function(out.dtype)
    ints = np.array(
        [out.ctypes.data, m, n, 0, a.ctypes.data, b.ctypes.data, k, trans_a, trans_b, a.shape[1], b.shape[1], 0],
        np.int64,
    )
    ints[BLAS] = blas_address(out.dtype)
    if number > 1 and m * n <= tuning.SPLIT_BATCH_ELEMENTS and k > 4 * max(m, n):
        ints[TILE] = -(-k // number)
        tasks = -(-k // int(ints[TILE]))
        parts = np.empty((tasks, m, n), out.dtype)
        ints[C] = parts.ctypes.data
        address = kernel(gemm_depth, out.dtype, BLOCK=block)
        split = Call(address, ints, np.zeros(1), tasks, True, blas=True, keep=(a, b, parts))
        return [split, reduce_call(parts, out, beta)]
    ints[TILE] = tile = max(1, -(-m // number))
    tasks = -(-m // tile)
    address = kernel(gemm_rows, out.dtype, BLOCK=block)
    return [Call(address, ints, np.array([beta]), tasks, tasks > 1, tile * n * k > tuning.TINY_PRODUCT, (a, b, out))]
