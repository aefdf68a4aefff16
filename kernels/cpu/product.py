"""A matrix product on one thread, from micro-kernel tiles: packing, blocking, edges.

The tiles of A stay in the first-level cache, a block of B in the second-level cache; C is gone through once per
block of the summed dimension. Both are read where they are, if they lie so that they can stay there; else B is packed
into panels of NR columns, all of it before or a block at a time, and tiles of A are copied. Every sum runs in the order
of the summed dimension, whatever the tiling, so results do not depend on the number of threads.
"""

from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np

from .. import memory
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


def copy_rows(rows, k, a, a_row, to):
    """Rows of A, each in one piece, to where they lie side by side, a LINE apart."""
    for i in range(rows):
        source, out = ptr(a + i * a_row * T_SIZE), ptr(to + i * (k + LINE) * T_SIZE)
        for p in range(k):
            out[p] = source[p]


def copy_columns(rows, k, a, a_step, to):
    """Columns of A, each in one piece, to tiles of MR rows; the lines of a column are read once for all of them."""
    whole = rows // MR
    for p in range(k):
        source, out = ptr(a + p * a_step * T_SIZE), ptr(to + p * MR * T_SIZE)
        for tile in range(whole):
            for i in range(MR):
                out[tile * k * MR + i] = source[tile * MR + i]
        for i in range(rows - whole * MR):
            out[whole * k * MR + i] = source[whole * MR + i]


def multiply(m, n, k, a, a_to, a_row, a_step, b, b_state, ldb, trans_b, b_to, c, ldc, how, bias, claimed):
    """``C = A B``, plus C where `how` has ADD, else plus the row `bias`; C has rows of `ldc` elements.

    Addresses are in bytes, steps in elements. Element (i, p) of A is at ``a_row i + a_step p``, of which one is 1;
    tiles of it are copied to `a_to` first where that is not 0. `b_state` 0: (p, j) of B is at ``ldb p + j``; 1: there,
    or with `trans_b` at ``ldb j + p``, and blocks are packed to `b_to`; 2: all of it is packed at `b`. Where `claimed`
    is not 0, what lies so many bytes after a tile of C is asked for meanwhile, since it is to be written next.
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
            if b_state == 1:
                some, at = min(NC, n - j0), j0 * ldb + p0 if trans_b != 0 else p0 * ldb + j0
                PACK_COLUMNS(0, some, kc, some, b + at * T_SIZE, ldb, trans_b, b_to)
            i = 0
            while i < m:
                rows = min(MR, m - i)
                if rows <= 2 * MS:
                    rows = min(rows, MS)
                ai, ri, si = a + (i * a_row + p0 * a_step) * T_SIZE, a_row * T_SIZE, a_step * T_SIZE
                if a_to != 0 and a_step == 1:
                    COPY_ROWS(rows, kc, ai, a_row, a_to)
                    ai, ri = a_to, (kc + LINE) * T_SIZE
                elif a_to != 0:
                    if i % GROUP == 0:
                        COPY_COLUMNS(min(GROUP, m - i), kc, ai, a_step, a_to)
                    ai, ri, si = a_to + (i % GROUP // MR * kc * MR + i % MR) * T_SIZE, T_SIZE, MR * T_SIZE
                for j in range(j0, min(j0 + NC, n), NR):
                    columns = min(NR, n - j)
                    width = (columns + VL - 1) // VL * VL
                    if b_state == 0:
                        bj, sj = b + (j + p0 * ldb) * T_SIZE, ldb * T_SIZE
                    elif b_state == 1:
                        bj, sj = b_to + (j - j0) * kc * T_SIZE, width * T_SIZE
                    else:
                        bj, sj = b + (j * k + p0 * width) * T_SIZE, width * T_SIZE
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
    while trans == 0 and j0 + PANELS * NR <= last:  # several at a time, so that more than a line of a row is read
        for p in range(k):
            source, out = ptr(b + (p * ldb + j0) * T_SIZE), ptr(to + (j0 * k + p * NR) * T_SIZE)
            for panel in range(PANELS):
                for j in range(NR):
                    out[panel * k * NR + j] = source[panel * NR + j]
        j0 += PANELS * NR
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


def product(m, n, k, a, lda, trans_a, a_to, b, ldb, trans_b, b_state, b_to, c, ldc, how, bias, claimed):
    """``C = f(op(A) op(B) + ...)``, see :func:`multiply`.

    A is read where it is if `a_to` is 0, else copied there. `b_state` 0: B is read where it is; 1: blocks of it are
    packed to `b_to`; 2: it lies packed at `b_to` already. With `trans_b` it can be read where it is only where
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
    row, step = (1, lda) if trans_a != 0 else (lda, 1)
    where_b = b_to if b_state == 2 else b
    MULTIPLY(m, n, k, a, a_to, row, step, where_b, b_state, ldb, trans_b, b_to, c, ldc, how, bias, claimed)


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
        Distinguishes kernels that use these functions from those of other vectors or caches.
    """

    def __init__(self, dtype: Any, width: int) -> None:
        self.dtype = dtype = np.dtype(dtype)
        self.shape = shape = micro.shape_for(dtype, width)
        self.depth, columns = tuning.PRODUCT_DEPTH * 4 // dtype.itemsize, shape.columns
        self.block = max(1, tuning.PRODUCT_BLOCK_BYTES // (self.depth * dtype.itemsize * columns)) * columns
        self.group = shape.rows * tuning.COPIED_TILES
        self.line = memory.ALIGNMENT // dtype.itemsize
        self.variant = f"v{width}_{self.block}_{self.group}"
        names: dict[str, Any] = {
            **tile_sizes(dtype, width),
            "ADD": micro.ADD,
            "RELU": micro.RELU,
            "PANELS": tuning.PACKED_PANELS,
            "KC": self.depth,
            "NC": self.block,
            "GROUP": self.group,
            "LINE": self.line,
            "TILE_PRODUCT": tile(dtype, width, micro.EVENLY),
        }
        names["MULTIPLY_ROW"] = row_product(dtype, width)
        names["TRANSPOSE"] = transposed_block(dtype, shape.lanes)
        templates = (multiply_column, pack_columns, copy_rows, copy_columns, multiply, product)
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

    def block_size(self, k: int, n: int) -> int:
        """Room for a packed block of B."""
        return self.columns_size(min(k, self.depth), min(n, self.block))

    def rows_size(self, m: int, k: int, trans: bool) -> int:
        """Room for what is copied of A at once."""
        k, rows = min(k, self.depth), self.shape.rows
        return -(-min(m, self.group) // rows) * rows * k if trans else rows * (k + self.line)

    def reads_rows(self, stride: int) -> bool:
        """Whether tiles of A can be read where they are: not if its rows would clash in the cache."""
        return (stride * self.dtype.itemsize) % tuning.CLASHING_STRIDE != 0

    def reads_blocks(self, m: int, k: int, stride: int) -> bool:
        """Whether blocks of B can be read where they are: not if far rows of it would be met often."""
        far = stride * self.dtype.itemsize >= tuning.FAR_ROWS
        return not far or m < tuning.PACKED_FOR_ROWS or k < tuning.PACKED_FROM_DEPTH

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
