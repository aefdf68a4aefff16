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

from .intrinsics import intrinsic


@dataclass(frozen=True)
class Shape:
    """The tiles that a product is made of.

    Attributes
    ----------
    rows, vectors : int
        MR and the vectors in a row of the usual tile.
    few_rows : int
        Rows of the tile at the lower edge.
    lanes : int
        Numbers in a vector: the columns of the tile at the right edge.
    """

    rows: int
    vectors: int
    few_rows: int
    lanes: int

    @property
    def columns(self) -> int:
        """NR."""
        return self.vectors * self.lanes


@once
def vector_bytes() -> int:
    """Bytes of the host's vectors with a fused multiply-add; 0 where it has none that are known here."""
    features = llvm.get_host_cpu_features()
    machine = llvm.get_process_triple().split("-")[0]
    if machine in ("aarch64", "arm64"):
        return 16
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") and features.get("fma") else 0


# Rows and vectors of a tile, and rows at the edge. The accumulators take 24, 12 and 24 of the 32, 16 and 32
# registers, and leave room for the row of B and the broadcast of A.
_TILES = {64: (12, 2, 4), 32: (6, 2, 2), 16: (8, 3, 4)}


def shape_for(dtype: np.dtype[Any], width: int) -> Shape:
    """The tiles for vectors of `width` bytes: 16, 32 or 64."""
    return Shape(*_TILES[width], width // dtype.itemsize)


@once
def micro_kernel(dtype: np.dtype[Any], rows: int, vectors: int, lanes: int) -> Any:
    """An intrinsic ``micro(k, a, a_row, a_step, b, b_step, c, c_row, add)`` for a tile of this size.

    ``C = A B`` or, where `add` is not 0, ``C += A B``, with A ``rows x k`` at ``a + a_row i + a_step p``, B ``k x
    columns`` at ``b + b_step p + j`` and C at ``c + c_row i + j``; addresses and steps in bytes; `k` at least 1.
    """
    real = ir.FloatType() if dtype == np.float32 else ir.DoubleType()
    vector, i64, i32 = ir.VectorType(real, lanes), ir.IntType(64), ir.IntType(32)
    size = dtype.itemsize
    name = f"llvm.fma.v{lanes}f{8 * size}"

    @intrinsic
    def micro(typingctx, k, a, a_row, a_step, b, b_step, c, c_row, add):
        def codegen(context, builder, signature, args):
            k, a, a_row, a_step, b, b_step, c, c_row, add = args
            module = builder.module
            fma = module.globals.get(name) or ir.Function(module, ir.FunctionType(vector, [vector] * 3), name)

            def at(address, kind, offset=None):
                if offset is not None:
                    address = builder.add(address, offset)
                return builder.inttoptr(address, kind.as_pointer())

            # Loads and stores of vectors need only the alignment of their elements
            def load(address, offset):
                value = builder.load(at(address, vector, ir.Constant(i64, offset)))
                value.align = size
                return value

            offsets = [builder.mul(a_row, ir.Constant(i64, i)) for i in range(rows)]
            before = builder.block
            loop = builder.append_basic_block("k")
            done = builder.append_basic_block("k.done")
            builder.branch(loop)
            builder.position_at_end(loop)

            def phi(kind, start):
                value = builder.phi(kind)
                value.add_incoming(start, before)
                return value

            left, pa, pb = phi(i64, k), phi(i64, a), phi(i64, b)
            zero = ir.Constant(vector, [ir.Constant(real, 0.0)] * lanes)
            tile = [[phi(vector, zero) for _ in range(vectors)] for _ in range(rows)]
            row_of_b = [load(pb, j * lanes * size) for j in range(vectors)]
            undefined = ir.Constant(vector, ir.Undefined)
            first = ir.Constant(ir.VectorType(i32, lanes), [0] * lanes)
            after = []
            for i in range(rows):
                one = builder.insert_element(undefined, builder.load(at(pa, real, offsets[i])), ir.Constant(i32, 0))
                of_a = builder.shuffle_vector(one, undefined, first)
                after.append([builder.call(fma, [of_a, row_of_b[j], tile[i][j]]) for j in range(vectors)])
            still = builder.sub(left, ir.Constant(i64, 1))
            for value, following in ((left, still), (pa, builder.add(pa, a_step)), (pb, builder.add(pb, b_step))):
                value.add_incoming(following, loop)
            for i in range(rows):
                for j in range(vectors):
                    tile[i][j].add_incoming(after[i][j], loop)
            builder.cbranch(builder.icmp_signed(">", still, ir.Constant(i64, 0)), loop, done)
            builder.position_at_end(done)

            def store(accumulate):
                for i in range(rows):
                    row = builder.add(c, builder.mul(c_row, ir.Constant(i64, i)))
                    for j in range(vectors):
                        value, offset = after[i][j], j * lanes * size
                        if accumulate:
                            value = builder.fadd(load(row, offset), value)
                        builder.store(value, at(row, vector, ir.Constant(i64, offset))).align = size

            with builder.if_else(builder.icmp_signed("!=", add, ir.Constant(i64, 0))) as (then, otherwise):
                with then:
                    store(True)
                with otherwise:
                    store(False)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), codegen

    return micro
