"""A square block of a matrix, transposed in registers.

Element by element, a transposed copy takes one store for each number; here a vector's worth of rows is loaded, mixed
in log2(lanes) rounds, and stored. In the round of distance d, rows i and i + d exchange the quarter that each has on
the wrong side of the diagonal of their 2d x 2d block.
"""

from __future__ import annotations

from functools import cache as once
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from .intrinsics import intrinsic


@once
def transposed_block(dtype: np.dtype[Any], lanes: int) -> Any:
    """An intrinsic ``move(source, source_row, to, to_row)`` for `lanes` x `lanes` numbers; `lanes` is a power of two.

    Row i of the source is at ``source + source_row i``, that of the result at ``to + to_row i``; all in bytes.
    """
    real = ir.FloatType() if dtype == np.float32 else ir.DoubleType()
    vector, i64, i32 = ir.VectorType(real, lanes), ir.IntType(64), ir.IntType(32)

    @intrinsic
    def move(typingctx, source, source_row, to, to_row):
        def codegen(context, builder, signature, args):
            source, source_row, to, to_row = args

            def place(start, row, i):
                address = builder.add(start, builder.mul(row, ir.Constant(i64, i)))
                return builder.inttoptr(address, vector.as_pointer())

            def mixed(a, b, lanes_of):
                return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(i32, lanes), lanes_of))

            rows = []
            for i in range(lanes):
                rows.append(builder.load(place(source, source_row, i)))
                rows[-1].align = dtype.itemsize
            distance = lanes // 2
            while distance:
                # Lanes of two rows, those of the second one counted on from `lanes`
                upper = [c + lanes - distance if c & distance else c for c in range(lanes)]
                lower = [c + lanes if c & distance else c + distance for c in range(lanes)]
                for i in range(lanes):
                    if not i & distance:
                        a, b = rows[i], rows[i + distance]
                        rows[i], rows[i + distance] = mixed(a, b, upper), mixed(a, b, lower)
                distance //= 2
            for i, row in enumerate(rows):
                builder.store(row, place(to, to_row, i)).align = dtype.itemsize
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return move
