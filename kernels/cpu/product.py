"""A matrix product on one thread, from micro-kernel tiles: packing, blocking, edges.

The tiles of A stay in the first-level cache, a block of B in the second-level cache; C is gone through once per
block of the summed dimension. B is usually packed into panels of NR columns, A is read where it is unless its rows lie
so that they would push each other out of the cache. Every sum runs in the order of the summed dimension, whatever
the tiling, so results do not depend on the number of threads.
"""

from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np

from . import micro, tuning
from .intrinsics import claim
from .specialise import function
from .transpose import transposed_block


def tile_product(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n):
    """One tile of up to MR x NR, by the smallest micro-kernel that it fits; see :func:`micro.micro_kernel`."""
    if m == MR and n == NR:
        MICRO(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    elif m > MS:
        if n > VL:
            MICRO_HIGH(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
        elif n > HALF:
            MICRO_HIGH_NARROW(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
        else:
            MICRO_HIGH_HALF(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    elif n > VL:
        MICRO_LOW(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    elif n > HALF:
        MICRO_LOW_NARROW(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)
    else:
        MICRO_LOW_HALF(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)


def stream_row(n, k, a, a_step, b, b_step, c, how, bias):
    """What :func:`multiply_row` does, but B is read once in the order in which it lies, four rows at a time.

    That is how processors fetch ahead from a far cache or memory. The sums go through the nearest cache.
    """
    C, x = ptr(c), ptr(a)
    if how & ADD == 0:
        start = ptr(bias)
        for j in range(n):
            C[j] = T(0.0) if bias == 0 else start[j]
    last = k - k % 4
    for p in range(0, last, 4):
        x0, x1, x2, x3 = x[p * a_step], x[(p + 1) * a_step], x[(p + 2) * a_step], x[(p + 3) * a_step]
        row = b + p * b_step * T_SIZE
        size = b_step * T_SIZE
        B0, B1, B2, B3 = ptr(row), ptr(row + size), ptr(row + 2 * size), ptr(row + 3 * size)
        for j in range(n):
            C[j] = C[j] + x0 * B0[j] + x1 * B1[j] + x2 * B2[j] + x3 * B3[j]
    for p in range(last, k):
        x0, B0 = x[p * a_step], ptr(b + p * b_step * T_SIZE)
        for j in range(n):
            C[j] = C[j] + x0 * B0[j]
    if how & RELU != 0:
        for j in range(n):
            C[j] = T(0.0) if C[j] < T(0.0) else C[j]


def multiply_row(n, k, a, a_step, b, b_step, c, how, bias):
    """One row: ``c = a B`` and so on, element p of it at ``a_step p``; as many columns at a time as registers hold."""
    if k * n * T_SIZE > STREAMED and n > NR_ROW:
        STREAM_ROW(n, k, a, a_step, b, b_step, c, how, bias)
        return
    j = 0
    while j < n:
        start = 0 if bias == 0 else bias + j * T_SIZE
        bj, cj = b + j * T_SIZE, c + j * T_SIZE
        columns = n - j
        if columns >= NR_ROW:
            MICRO_ROW(1, 0, k, a, 0, a_step * T_SIZE, bj, b_step * T_SIZE, cj, 0, how, start, 1, NR_ROW)
            columns = NR_ROW
        elif columns > VL:
            columns = min(columns, NR_ONE)
            MICRO_ONE(1, 0, k, a, 0, a_step * T_SIZE, bj, b_step * T_SIZE, cj, 0, how, start, 1, columns)
        else:
            MICRO_LAST(1, 0, k, a, 0, a_step * T_SIZE, bj, b_step * T_SIZE, cj, 0, how, start, 1, columns)
        j += columns


def multiply_column(m, k, a, a_row, b, c, how, bias):
    """One column: ``c = A b`` and so on, with the rows of A and b each in one piece; `c` as well."""
    x, out = ptr(b), ptr(c)
    start = T(0.0) if bias == 0 else ptr(bias)[0]
    for i in range(m):
        row = ptr(a + i * a_row * T_SIZE)
        total = T(0.0)
        for p in range(k):
            total += row[p] * x[p]
        total += out[i] if how & ADD != 0 else start
        out[i] = T(0.0) if how & RELU != 0 and total < T(0.0) else total


def multiply(m, n, k, a, a_packed, a_row, a_step, b, b_packed, b_step, c, ldc, how, bias, claimed):
    """``C = A B``, plus C where `how` has ADD, else plus the row `bias`; C has rows of `ldc` elements.

    Addresses are in bytes, steps in elements. What is not packed has element (i, p) of A at ``a_row i + a_step p`` and
    (p, j) of B at ``b_step p + j``. Where `claimed` is not 0, what lies so many bytes after a tile of C is asked for
    meanwhile, since it is to be written next.
    """
    blocks = (k + KC - 1) // KC
    depth = (k + blocks - 1) // blocks
    for p0 in range(0, k, depth):
        kc = min(depth, k - p0)
        # The first block of the summed dimension starts from the bias or C, the last one applies the function
        here = how if p0 == 0 else how | ADD
        if p0 + kc < k:
            here &= ADD
        for j0 in range(0, n, NC):
            i = 0
            while i < m:
                rows = m - i
                if rows >= MR or (a_packed == 0 and rows > 2 * MS):
                    rows = min(rows, MR)
                elif a_packed == 0:
                    rows = min(rows, MS)
                if a_packed != 0:
                    ai, ri, si = a + (i * k + p0 * rows) * T_SIZE, T_SIZE, rows * T_SIZE
                else:
                    ai, ri, si = a + (i * a_row + p0 * a_step) * T_SIZE, a_row * T_SIZE, a_step * T_SIZE
                for j in range(j0, min(j0 + NC, n), NR):
                    columns = min(NR, n - j)
                    if b_packed != 0:
                        width = (columns + VL - 1) // VL * VL
                        bj, sj = b + (j * k + p0 * width) * T_SIZE, width * T_SIZE
                    else:
                        bj, sj = b + (j + p0 * b_step) * T_SIZE, b_step * T_SIZE
                    start = 0 if bias == 0 or here & ADD != 0 else bias + j * T_SIZE
                    cij = c + (i * ldc + j) * T_SIZE
                    if claimed != 0 and p0 + kc == k:
                        for r in range(rows):
                            for line in range(0, columns * T_SIZE, 64):
                                claim(cij + claimed + r * ldc * T_SIZE + line)
                    TILE_PRODUCT(1, 0, kc, ai, ri, si, bj, sj, cij, ldc * T_SIZE, here, start, rows, columns)
                i += rows


def pack_columns(first, last, k, n, b, ldb, trans, to):
    """Columns `first` to `last` of B (k x n), in panels of NR columns, the last one filled up to whole vectors.

    A panel is one row after the other. Without `trans` element (p, j) is at ``ldb p + j``, with it at
    ``ldb j + p``. `first` is where a panel starts.
    """
    j0 = first
    while j0 < last:
        columns = min(NR, n - j0)
        width = (columns + VL - 1) // VL * VL
        base = to + j0 * k * T_SIZE
        if trans == 0:
            for p in range(k):
                source, out = ptr(b + (p * ldb + j0) * T_SIZE), ptr(base + p * width * T_SIZE)
                if columns == NR:
                    for j in range(NR):
                        out[j] = source[j]
                else:
                    for j in range(columns):
                        out[j] = source[j]
                    for j in range(columns, width):
                        out[j] = T(0.0)
        else:
            for j in range(0, columns, VL):
                some = min(VL, columns - j)
                whole = k - k % VL if some == VL else 0
                source, out = b + (j0 + j) * ldb * T_SIZE, base + j * T_SIZE
                for p in range(0, whole, VL):
                    TRANSPOSE(source + p * T_SIZE, ldb * T_SIZE, out + p * width * T_SIZE, width * T_SIZE)
                for p in range(whole, k):
                    panel, column = ptr(out + p * width * T_SIZE), ptr(source + p * T_SIZE)
                    for i in range(some):
                        panel[i] = column[i * ldb]
                    for i in range(some, VL):
                        panel[i] = T(0.0)
        j0 += width


def pack_rows(m, k, a, lda, trans, to):
    """All of A (m x k) in panels of MR rows; the last one has what is left.

    A panel is one column after the other. Without `trans` element (i, p) is at ``lda i + p``, with it at ``lda p + i``.
    """
    for i0 in range(0, m, MR):
        rows = min(MR, m - i0)
        base = to + i0 * k * T_SIZE
        if trans == 0:
            for p0 in range(0, k, 16):
                for i in range(rows):
                    source, out = ptr(a + ((i0 + i) * lda + p0) * T_SIZE), ptr(base + (p0 * rows + i) * T_SIZE)
                    for p in range(min(16, k - p0)):
                        out[p * rows] = source[p]
        else:
            for p in range(k):
                source, out = ptr(a + (p * lda + i0) * T_SIZE), ptr(base + p * rows * T_SIZE)
                if rows == MR:
                    for i in range(MR):
                        out[i] = source[i]
                else:
                    for i in range(rows):
                        out[i] = source[i]


def product(m, n, k, a, lda, trans_a, a_to, b, ldb, trans_b, b_state, b_to, c, ldc, how, bias, claimed):
    """``C = f(op(A) op(B) + ...)``, see :func:`multiply`: packs what is to be packed, then multiplies.

    A is read where it is if `a_to` is 0, else packed there. `b_state` 0: B is read where it is; 1: it is packed to
    `b_to` first; 2: it lies packed at `b_to` already. With `trans_b` it can be read where it is only where
    :meth:`Blocking.reads_columns` says so.
    """
    if b_state == 0 and trans_a == 0 and n == 1 and ldc == 1 and (ldb == 1 or trans_b != 0):
        MULTIPLY_COLUMN(m, k, a, lda, b, c, how, bias)
        return
    if b_state == 0 and trans_b != 0:  # one row of A, in one piece: C^T = B A^T is a column
        MULTIPLY_COLUMN(n, k, b, ldb, a, c, how, 0)
        return
    if b_state == 0 and m == 1:
        MULTIPLY_ROW(n, k, a, lda if trans_a != 0 else 1, b, ldb, c, how, bias)
        return
    if (
        b_state == 0 and n == 1 and trans_a != 0 and ldc == 1 and bias == 0
    ):  # C^T = B^T A^T is a row, and A is stored as A^T
        MULTIPLY_ROW(m, k, b, ldb, a, lda, c, how, 0)
        return
    if b_state == 1:
        PACK_COLUMNS(0, n, k, n, b, ldb, trans_b, b_to)
    if a_to != 0:
        PACK_ROWS(m, k, a, lda, trans_a, a_to)
    where_a = a_to if a_to != 0 else a
    where_b = b_to if b_state != 0 else b
    row, step = (1, lda) if trans_a != 0 else (lda, 1)
    MULTIPLY(m, n, k, where_a, a_to, row, step, where_b, b_state, ldb, c, ldc, how, bias, claimed)


def tile_sizes(dtype: np.dtype[Any], width: int) -> dict[str, Any]:
    """The sizes of tiles, under the names that templates have for them."""
    shape = micro.shape_for(dtype, width)
    return {
        "MR": shape.rows,
        "MS": shape.few_rows,
        "NR": shape.columns,
        "VL": shape.lanes,
        # Half of a 64-byte vector takes half the time, or no longer than all of it
        "HALF": shape.lanes // 2 if width == 64 else 0,
    }


@once
def tile(dtype: np.dtype[Any], width: int, places: int) -> Any:
    """:func:`tile_product` for use inside kernels, with rows of A and C at such `places` (see ``micro.py``)."""
    shape, sizes = micro.shape_for(dtype, width), tile_sizes(dtype, width)
    names = {"MICRO": micro.micro_kernel(dtype, shape.rows, shape.vectors, shape.lanes, False, places)}
    for name, rows in (("MICRO_HIGH", shape.rows), ("MICRO_LOW", shape.few_rows)):
        for end, vectors, lanes in (
            ("", shape.vectors, shape.lanes),
            ("_NARROW", 1, shape.lanes),
            ("_HALF", 1, sizes["HALF"] or shape.lanes),
        ):
            names[name + end] = micro.micro_kernel(dtype, rows, vectors, lanes, True, places)
    return function(tile_product, dtype, f"v{width}_{places}", inline=False, **sizes, **names)


class Blocking:
    """The functions that make up products of a dtype, and how much room they need; sizes are in elements.

    Parameters
    ----------
    dtype : dtype
        float32 or float64.
    width : int
        Bytes of the vectors to use.

    Attributes
    ----------
    variant : str
        Distinguishes kernels that use these functions from those of other vectors.
    """

    def __init__(self, dtype: Any, width: int) -> None:
        self.dtype = dtype = np.dtype(dtype)
        self.shape = shape = micro.shape_for(dtype, width)
        self.variant = f"v{width}"
        depth, columns = tuning.PRODUCT_DEPTH, shape.columns
        block = max(1, tuning.PRODUCT_BLOCK_BYTES // (depth * dtype.itemsize * columns)) * columns
        names: dict[str, Any] = {
            **tile_sizes(dtype, width),
            "ADD": micro.ADD,
            "RELU": micro.RELU,
            "KC": depth,
            "NC": block,
            "TILE_PRODUCT": tile(dtype, width, micro.EVENLY),
        }
        names["MULTIPLY_ROW"] = row_product(dtype, width)
        names["TRANSPOSE"] = transposed_block(dtype, shape.lanes)
        templates = (multiply_column, multiply, pack_columns, pack_rows, product)
        for template in templates:
            inline = template is product
            names[template.__name__.upper()] = function(template, dtype, self.variant, inline=inline, **names)
        self.multiply = names["MULTIPLY"]
        self.product = names["PRODUCT"]
        self.pack_columns = names["PACK_COLUMNS"]

    def columns_size(self, k: int, n: int) -> int:
        """Room for a packed B, and what a tile of whole vectors reads beyond its end."""
        lanes = self.shape.lanes
        return k * (-(-n // lanes) * lanes) + self.shape.columns

    def rows_size(self, m: int, k: int) -> int:
        """Room for a packed A."""
        return m * k

    def reads_rows(self, stride: int, trans: bool) -> bool:
        """Whether A can be read where it is: not if its rows would clash in the cache."""
        return trans or (stride * self.dtype.itemsize) % tuning.CLASHING_STRIDE != 0

    def reads_columns(self, m: int, n: int, trans_a: bool, trans_b: bool) -> bool:
        """Whether B can be read where it is: its rows by tiles, or its columns by dot products, if A or C has one."""
        if not trans_a and (n == 1 or (m == 1 and trans_b)):
            return True
        masks = micro.masks_loads(self.shape.lanes * self.dtype.itemsize)
        # With one column and `trans_a` it is the rows of A that tiles go along
        across = m if n == 1 and trans_a else n
        return not trans_b and (masks or across % self.shape.columns == 0)


@once
def row_product(dtype: np.dtype[Any], width: int) -> Any:
    """:func:`multiply_row` for use inside kernels, with vectors of `width` bytes."""
    shape = micro.shape_for(dtype, width)
    # Without masks what is left is whole tiles
    one = 4 if micro.masks_loads(width) else shape.vectors
    return function(
        multiply_row,
        dtype,
        f"v{width}",
        inline=False,
        STREAMED=tuning.STREAMED_BYTES,
        STREAM_ROW=function(stream_row, dtype, inline=False, ADD=micro.ADD, RELU=micro.RELU),
        MICRO_ROW=micro.micro_kernel(dtype, 1, shape.row_vectors, shape.lanes, False),
        NR_ROW=shape.row_vectors * shape.lanes,
        MICRO_ONE=micro.micro_kernel(dtype, 1, one, shape.lanes, True),
        NR_ONE=one * shape.lanes,
        MICRO_LAST=micro.micro_kernel(dtype, 1, 1, shape.lanes, True),
        VL=shape.lanes,
    )


@once
def blocking(dtype: Any) -> Blocking:
    """The functions for `dtype`."""
    return Blocking(dtype, micro.vector_bytes())
