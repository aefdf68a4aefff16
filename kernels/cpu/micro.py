"""The innermost loop of a matrix product, generated for the host's vectors.

A micro-kernel keeps an ``MR x NR`` tile of the result in vector registers while it runs along the summed
dimension: each step loads NR numbers of B, broadcasts MR numbers of A, and does one fused multiply-add per
register. The instructions are emitted as LLVM IR, since no loop in Python would make LLVM hold the tile in
registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as once
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .intrinsics import intrinsic

# Bits of a micro-kernel's `how`: add to what is in C; f(x) = max(x, 0) at the end
ADD, RELU = 1, 2


@dataclass(frozen=True)
class Shape:
    """The tiles that a product is made of.

    Attributes
    ----------
    rows, vectors : int
        MR and the vectors in a row of the usual tile.
    few_rows : int
        Rows of the tile at the lower edge.
    row_vectors : int
        Vectors of the kernel that does one row.
    lanes : int
        Numbers in a vector: the columns of the tile at the right edge.
    """

    rows: int
    vectors: int
    few_rows: int
    row_vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """NR."""
        return self.vectors * self.lanes


@once
def fused_vector_bytes() -> int:
    """Bytes of the host's vectors with a fused multiply-add; 0 where it has none that are known here."""
    features = llvm.get_host_cpu_features()
    machine = llvm.get_process_triple().split("-")[0]
    if machine in ("aarch64", "arm64"):
        return 16
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") and features.get("fma") else 0


def vector_bytes() -> int:
    """Bytes of the vectors that products use: the host's, or 16, which every compiler can make something of."""
    return fused_vector_bytes() or 16


# Rows and vectors of a tile, rows at the edge, and vectors of a single row: half of the registers. The accumulators
# take 24, 12 and 24 of the 32, 16 and 32 registers, and leave room for the row of B and the broadcast of A.
_TILES = {64: (12, 2, 4, 16), 32: (6, 2, 2, 8), 16: (8, 3, 4, 16)}
# A host that is not known may have 16 registers only; with sums for more, a single row takes nine times as long
_FEW_REGISTERS = (6, 2, 2, 8)


def shape_for(dtype: np.dtype[Any], width: int) -> Shape:
    """The tiles for vectors of `width` bytes: 16, 32 or 64."""
    return Shape(*(_TILES[width] if fused_vector_bytes() else _FEW_REGISTERS), width // dtype.itemsize)


def masks_loads(width: int) -> bool:
    """Whether a load through a mask costs no more than a plain one: with AVX2 and AVX-512, not with NEON."""
    return width >= 32


# Where the rows of A and C of a micro-kernel lie: evenly apart; those of A anywhere, in several runs of steps; those of
# C anywhere
EVENLY, GATHERED, SCATTERED = range(3)


@once
def micro_kernel(dtype: np.dtype[Any], rows: int, vectors: int, lanes: int, edge: bool, places: int = EVENLY) -> Any:
    """An intrinsic ``micro(runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n)`` for such a tile.

    ``C = A B``, with A at ``a + a_row i + a_step p``, B at ``b + b_step p + j`` and C at ``c + c_row i + j``; addresses
    and steps in bytes; `k` at least 1. `how` is a sum of :data:`ADD` and :data:`RELU`. Without ADD the sums start
    from the row at `bias`, where that is not 0.

    An `edge` kernel does only the first `m` rows and `n` columns; one of several rows and vectors takes more than one
    vector's columns. It reads the last row of A again in place of those that are not there. Columns that are not there
    are left alone, but for B where :func:`masks_loads` says no: there it reads whole vectors, and does not use what
    they have.

    With GATHERED `a_row` is the address of a table, int64, of what in the other forms are the multiples of `a_row`, and
    the summed dimension is as many `runs` of `k` steps; A's address in each is `a` and what the table at `offsets`
    says. The other forms do not use `runs` and `offsets`. SCATTERED has a table of rows at `c_row`.
    """
    mask_b = masks_loads(lanes * dtype.itemsize)
    real = ir.FloatType() if dtype == np.float32 else ir.DoubleType()
    vector, i64, i32, i1 = ir.VectorType(real, lanes), ir.IntType(64), ir.IntType(32), ir.IntType(1)
    masks = ir.VectorType(i1, lanes)
    size = dtype.itemsize
    kind = f"v{lanes}f{8 * size}"

    def emit(context, builder, args):
        runs, run_table, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n = args

        def llvm_function(name, result, *arguments):
            return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)

        # Where no machine instruction is known to do it, LLVM may not call the C library for each number
        multiply_add = "fma" if fused_vector_bytes() else "fmuladd"
        fma = llvm_function(f"llvm.{multiply_add}.{kind}", vector, *[vector] * 3)
        zero = ir.Constant(vector, [ir.Constant(real, 0.0)] * lanes)

        def at(address, kind, offset=0):
            if offset:
                address = builder.add(address, ir.Constant(i64, offset))
            return builder.inttoptr(address, kind.as_pointer())

        def splat(value, kind):
            one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(i32, 0))
            same = ir.Constant(ir.VectorType(i32, lanes), [0] * lanes)
            return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), same)

        if edge:
            numbers = ir.VectorType(i64, lanes)
            limit = splat(n, numbers)
            there = [
                builder.icmp_signed("<", ir.Constant(numbers, list(range(j * lanes, (j + 1) * lanes))), limit)
                for j in range(vectors)
            ]
            pointer = vector.as_pointer()
            opaque = "p0"
            masked_load = llvm_function(f"llvm.masked.load.{kind}.{opaque}", vector, pointer, i32, masks, vector)
            masked_store = llvm_function(
                f"llvm.masked.store.{kind}.{opaque}", ir.VoidType(), vector, pointer, i32, masks
            )

        # Loads and stores of vectors need only the alignment of their elements
        def load(address, j, whole=False):
            place = at(address, vector, j * lanes * size)
            if partial(j) and not whole:
                return builder.call(masked_load, [place, i32(size), there[j], zero])
            value = builder.load(place)
            value.align = size
            return value

        def store(value, address, j):
            place = at(address, vector, j * lanes * size)
            if partial(j):
                builder.call(masked_store, [value, place, i32(size), there[j]])
            else:
                builder.store(value, place).align = size

        def partial(j):
            return edge and (j > 0 or 1 in (rows, vectors))

        def row_of(i):
            """Number of the row to read as row `i`."""
            number = ir.Constant(i64, i)
            if not edge or i == 0:
                return number
            last = builder.sub(m, ir.Constant(i64, 1))
            return builder.select(builder.icmp_signed("<", number, last), number, last)

        def merged(block, values, changed, block_of_changed):
            """Either `values`, from `block`, or what a block that may be skipped made of them."""
            result = []
            for value, other in zip(values, changed, strict=True):
                phi = builder.phi(vector)
                phi.add_incoming(value, block)
                phi.add_incoming(other, block_of_changed)
                result.append(phi)
            return result

        def entry(table, number):
            """Of a table of int64."""
            place = builder.add(table, builder.shl(number, ir.Constant(i64, 3)))
            return builder.load(builder.inttoptr(place, i64.as_pointer()))

        if places == GATHERED:
            offsets = [entry(a_row, row_of(i)) for i in range(rows)]
        else:
            offsets = [builder.mul(a_row, row_of(i)) for i in range(rows)]
        before = builder.block
        with builder.if_then(builder.icmp_signed("!=", bias, ir.Constant(i64, 0))):
            loaded, in_bias = [load(bias, j) for j in range(vectors)], builder.block
        start = merged(before, [zero] * vectors, loaded, in_bias)

        def phi(kind, start):
            value = builder.phi(kind)
            value.add_incoming(start, before)
            return value

        def begin(name):
            """The head of a loop."""
            block = builder.append_basic_block(name)
            before = builder.block
            builder.branch(block)
            builder.position_at_end(block)
            return before, block

        initial = [start[j] for _ in range(rows) for j in range(vectors)]
        if places == GATHERED:
            before, run_loop = begin("run")
            run, b_of_run = phi(i64, ir.Constant(i64, 0)), phi(i64, b)
            initial = of_run = [phi(vector, value) for value in initial]
            first_a, b = builder.add(a, entry(run_table, run)), b_of_run
        else:
            first_a = a
        before, loop = begin("k")
        done = builder.append_basic_block("k.done")
        left, pa, pb = phi(i64, k), phi(i64, first_a), phi(i64, b)
        tile = [phi(vector, value) for value in initial]
        row_of_b = [load(pb, j, whole=not mask_b) for j in range(vectors)]
        after = []
        for i in range(rows):
            of_a = splat(builder.load(builder.inttoptr(builder.add(pa, offsets[i]), real.as_pointer())), vector)
            after += [builder.call(fma, [of_a, row_of_b[j], tile[i * vectors + j]]) for j in range(vectors)]
        still = builder.sub(left, ir.Constant(i64, 1))
        next_b = builder.add(pb, b_step)
        for value, following in ((left, still), (pa, builder.add(pa, a_step)), (pb, next_b)):
            value.add_incoming(following, loop)
        for value, following in zip(tile, after, strict=True):
            value.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed(">", still, ir.Constant(i64, 0)), loop, done)
        builder.position_at_end(done)
        if places == GATHERED:
            following = builder.add(run, ir.Constant(i64, 1))
            for value, then in zip((run, b_of_run, *of_run), (following, next_b, *after), strict=True):
                value.add_incoming(then, done)
            ended = builder.append_basic_block("run.done")
            builder.cbranch(builder.icmp_signed("<", following, runs), run_loop, ended)
            builder.position_at_end(ended)

        if places == SCATTERED:
            of_c = [builder.add(c, entry(c_row, row_of(i))) for i in range(rows)]
        else:
            of_c = [builder.add(c, builder.mul(c_row, row_of(i))) for i in range(rows)]
        values, before = after, builder.block
        with builder.if_then(builder.icmp_signed("!=", builder.and_(how, i64(ADD)), i64(0))):
            sums = [
                builder.fadd(load(of_c[i], j), values[i * vectors + j]) for i in range(rows) for j in range(vectors)
            ]
            in_sums = builder.block
        values, before = merged(before, values, sums, in_sums), builder.block
        with builder.if_then(builder.icmp_signed("!=", builder.and_(how, i64(RELU)), i64(0))):
            # NaN stays NaN: it is not less than 0
            cut = [builder.select(builder.fcmp_ordered("<", value, zero), zero, value) for value in values]
            in_cut = builder.block
        values = merged(before, values, cut, in_cut)
        # A row that is not there was computed from the last one, and is the last one's numbers at its place
        for i in range(rows):
            for j in range(vectors):
                store(values[i * vectors + j], of_c[i], j)
        return context.get_dummy_value()

    @intrinsic
    def micro(typingctx, runs, offsets, k, a, a_row, a_step, b, b_step, c, c_row, how, bias, m, n):
        return types.void(*[types.int64] * 14), lambda context, builder, _, args: emit(context, builder, args)

    return micro
