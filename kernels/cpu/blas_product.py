"""Products by BLAS, by address (from ``scipy.linalg.cython_blas``) and with leading dimensions, so nothing is copied.

A row-major C = A B is the column-major C^T = B^T A^T. Plain loops do what is tiny.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np

from . import tuning
from .intrinsics import blas_gemm
from .specialise import function


@once
def blas_address(dtype: Any) -> int:
    """Address of SciPy's sgemm or dgemm. It goes into the records: as a constant it would spoil the cache.

    Raises
    ------
    ImportError
        If SciPy, or threadpoolctl, which keeps its BLAS to one thread, cannot be imported.
    """
    from numba.extending import get_cython_function_address

    try:
        import scipy.linalg.cython_blas  # noqa: F401 - looked up by name below
        import threadpoolctl  # noqa: F401 - threads.py needs it
    except ImportError as error:
        raise ImportError(f'NNFAST_GEMM=blas needs SciPy\'s BLAS: pip install "nnfast[blas]" ({error})') from error
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


# Record of all products: C, its rows and columns, the tile (rows of C, or steps of k where the depth is split), A, B,
# k, trans_a, trans_b, lda, ldb, tiles of a task; these two go on with BLAS's address.


def gemm_rows(I, F, task):
    """A tile is a range of rows of C."""
    first = task * I[3]
    rows = min(I[3], I[1] - first)
    a = I[4] + first * T_SIZE * (1 if I[7] else I[9])
    c = I[0] + first * I[2] * T_SIZE
    BLOCK(I[12], I[7], I[8], rows, I[2], I[6], a, I[9], I[5], I[10], T(F[0]), c, I[2])


def gemm_depth(I, F, task):
    """A tile is a range of the summed dimension; each task has its own copy of C."""
    first = task * I[3]
    depth = min(I[3], I[6] - first)
    a = I[4] + first * T_SIZE * (I[9] if I[7] else 1)
    b = I[5] + first * T_SIZE * (1 if I[8] else I[10])
    c = I[0] + task // I[11] * I[1] * I[2] * T_SIZE
    beta = T(0.0) if task % I[11] == 0 else T(1.0)
    BLOCK(I[12], I[7], I[8], I[1], I[2], depth, a, I[9], b, I[10], beta, c, I[2])
