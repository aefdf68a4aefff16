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
from .specialise import function


def tile_product(k, a, a_row, a_step, b, b_step, c, c_row, add, few, narrow):
    """One tile, by the micro-kernel of its size."""
    if few == 0:
        if narrow == 0:
            MICRO(k, a, a_row * T_SIZE, a_step * T_SIZE, b, b_step * T_SIZE, c, c_row * T_SIZE, add)
        else:
            MICRO_NARROW(k, a, a_row * T_SIZE, a_step * T_SIZE, b, b_step * T_SIZE, c, c_row * T_SIZE, add)
    elif narrow == 0:
        MICRO_FEW(k, a, a_row * T_SIZE, a_step * T_SIZE, b, b_step * T_SIZE, c, c_row * T_SIZE, add)
    else:
        MICRO_CORNER(k, a, a_row * T_SIZE, a_step * T_SIZE, b, b_step * T_SIZE, c, c_row * T_SIZE, add)


def multiply(m, n, k, a, a_packed, a_row, a_step, b, b_packed, b_step, c, ldc, add, tile):
    """``C = A B`` or ``C += A B`` (`add` not 0), C with rows of `ldc` elements.

    Addresses are in bytes, steps in elements. What is not packed has element (i, p) of A at ``a_row i + a_step p`` and
    (p, j) of B at ``b_step p + j``. `tile` is room for one tile.
    """
    for p0 in range(0, k, KC):
        kc = min(KC, k - p0)
        more = 1 if add != 0 or p0 > 0 else 0
        for j0 in range(0, n, NC):
            i = 0
            while i < m:
                few = 1 if m - i < MR else 0
                height = MS if few != 0 else MR
                rows = min(height, m - i)
                # An unpacked last panel starts early, so that all it reads is there
                i_skip = 0 if a_packed != 0 else height - rows
                if a_packed != 0:
                    ai, ri, si = a + (i * k + p0 * height) * T_SIZE, 1, height
                else:
                    ai, ri, si = a + ((i - i_skip) * a_row + p0 * a_step) * T_SIZE, a_row, a_step
                j = j0
                while j < min(j0 + NC, n):
                    narrow = 1 if n - j <= VL else 0
                    width = VL if narrow != 0 else NR
                    columns = min(width, n - j)
                    j_skip = 0 if b_packed != 0 else width - columns
                    if b_packed != 0:
                        bj, sj = b + (j * k + p0 * width) * T_SIZE, width
                    else:
                        bj, sj = b + (j - j_skip + p0 * b_step) * T_SIZE, b_step
                    cij = c + (i * ldc + j) * T_SIZE
                    if rows == height and columns == width:
                        TILE_PRODUCT(kc, ai, ri, si, bj, sj, cij, ldc, more, few, narrow)
                    else:
                        TILE_PRODUCT(kc, ai, ri, si, bj, sj, tile, width, 0, few, narrow)
                        for r in range(rows):
                            part = ptr(tile + ((r + i_skip) * width + j_skip) * T_SIZE)
                            out = ptr(cij + r * ldc * T_SIZE)
                            for q in range(columns):
                                out[q] = out[q] + part[q] if more != 0 else part[q]
                    j += width
                i += height


def pack_columns(first, last, k, n, b, ldb, trans, to):
    """Columns `first` to `last` of B (k x n), in panels of NR (or, the last one, VL) columns, filled up with zeros.

    A panel is one row after the other. Without `trans` element (p, j) is at ``ldb p + j``, with it at
    ``ldb j + p``. `first` is where a panel starts.
    """
    j0 = first
    while j0 < last:
        width = VL if n - j0 <= VL else NR
        columns = min(width, n - j0)
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
            # Some steps at a time: a line of each source row, and of the panel, while it is in the cache
            for p0 in range(0, k, 16):
                for j in range(columns):
                    source, out = ptr(b + ((j0 + j) * ldb + p0) * T_SIZE), ptr(base + (p0 * width + j) * T_SIZE)
                    for p in range(min(16, k - p0)):
                        out[p * width] = source[p]
                for j in range(columns, width):
                    out = ptr(base + (p0 * width + j) * T_SIZE)
                    for p in range(min(16, k - p0)):
                        out[p * width] = T(0.0)
        j0 += width


def pack_rows(m, k, a, lda, trans, to):
    """All of A (m x k) in panels of MR rows, and of MS rows at the edge, filled up with zeros.

    A panel is one column after the other. Without `trans` element (i, p) is at ``lda i + p``, with it at ``lda p + i``.
    """
    i0 = 0
    while i0 < m:
        height = MR if m - i0 >= MR else MS
        rows = min(height, m - i0)
        base = to + i0 * k * T_SIZE
        if trans == 0:
            for p0 in range(0, k, 16):
                for i in range(height):
                    source, out = ptr(a + ((i0 + i) * lda + p0) * T_SIZE), ptr(base + (p0 * height + i) * T_SIZE)
                    for p in range(min(16, k - p0)):
                        out[p * height] = source[p] if i < rows else T(0.0)
        else:
            for p in range(k):
                source, out = ptr(a + (p * lda + i0) * T_SIZE), ptr(base + p * height * T_SIZE)
                if rows == MR:
                    for i in range(MR):
                        out[i] = source[i]
                else:
                    for i in range(rows):
                        out[i] = source[i]
                    for i in range(rows, height):
                        out[i] = T(0.0)
        i0 += height


def product(m, n, k, a, lda, trans_a, a_to, b, ldb, trans_b, b_state, b_to, c, ldc, add, tile):
    """``C = op(A) op(B)`` or ``C += ...``: packs what is to be packed, then multiplies.

    A is read where it is if `a_to` is 0, else packed there. `b_state` 0: B is read where it is; 1: it is packed to
    `b_to` first; 2: it lies packed at `b_to` already.
    """
    if b_state == 1:
        PACK_COLUMNS(0, n, k, n, b, ldb, trans_b, b_to)
    if a_to != 0:
        PACK_ROWS(m, k, a, lda, trans_a, a_to)
    where_a = a_to if a_to != 0 else a
    where_b = b_to if b_state != 0 else b
    row, step = (1, lda) if trans_a != 0 else (lda, 1)
    MULTIPLY(m, n, k, where_a, a_to, row, step, where_b, b_state, ldb, c, ldc, add, tile)


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
        depth, width = tuning.PRODUCT_DEPTH, shape.columns
        block = max(1, tuning.PRODUCT_BLOCK_BYTES // (depth * dtype.itemsize * width)) * width
        names: dict[str, Any] = {
            "MR": shape.rows,
            "MS": shape.few_rows,
            "NR": width,
            "VL": shape.lanes,
            "KC": depth,
            "NC": block,
        }
        for name, rows, vectors in (
            ("MICRO", shape.rows, shape.vectors),
            ("MICRO_NARROW", shape.rows, 1),
            ("MICRO_FEW", shape.few_rows, shape.vectors),
            ("MICRO_CORNER", shape.few_rows, 1),
        ):
            names[name] = micro.micro_kernel(dtype, rows, vectors, shape.lanes)
        for template in (tile_product, multiply, pack_columns, pack_rows, product):
            inline = template in (tile_product, product)
            names[template.__name__.upper()] = function(template, dtype, self.variant, inline=inline, **names)
        self.product = names["PRODUCT"]
        self.pack_columns = names["PACK_COLUMNS"]

    def columns_size(self, k: int, n: int) -> int:
        """Room for a packed B."""
        width, lanes = self.shape.columns, self.shape.lanes
        rest = n % width
        return k * (n - rest + (0 if rest == 0 else lanes if rest <= lanes else width))

    def rows_size(self, m: int, k: int) -> int:
        """Room for a packed A."""
        few = self.shape.few_rows
        return k * (-(-m // few) * few)

    @property
    def tile_size(self) -> int:
        """Room for one tile."""
        return self.shape.rows * self.shape.columns

    def reads_rows(self, m: int, stride: int, trans: bool) -> bool:
        """Whether A can be read where it is: enough rows for a low tile, and rows that do not clash in the cache."""
        clash = (stride * self.dtype.itemsize) % tuning.CLASHING_STRIDE == 0
        return m >= self.shape.few_rows and (trans or not clash)

    def reads_columns(self, n: int, stride: int) -> bool:
        """Whether B can be read where it is: panels without an edge, in rows that are hardly longer than one."""
        width, lanes = self.shape.columns, self.shape.lanes
        return n % lanes == 0 and (n >= width or n == lanes) and stride <= 2 * width


@once
def blocking(dtype: Any) -> Blocking | None:
    """The functions for `dtype`; ``None`` where this host's vectors are not known: BLAS does it then."""
    width = micro.vector_bytes()
    return Blocking(dtype, width) if width and tuning.GENERATED_PRODUCTS else None
