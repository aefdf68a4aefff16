"""Vectors as values in kernels: a loop over channels is then a loop over vectors, whatever pointers it goes through.

LLVM vectorises a plain loop only after it has tested that no two of its pointers overlap, which for the few channels of
a pixel costs more than the loop; and what a kernel adds up over pixels stays in registers only if it is one value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as once
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from . import micro
from .intrinsics import intrinsic
from .specialise import function

__all__ = ["names", "over_channels"]


class Vector(types.Type):
    """Some numbers of one type, or as many truth values, in a register."""

    def __init__(self, kind: str, bits: int, lanes: int) -> None:
        self.element = ir.IntType(1) if kind == "mask" else ir.FloatType() if bits == 32 else ir.DoubleType()
        self.lanes = lanes
        super().__init__(name=f"{kind}{bits}x{lanes}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(kind.element, kind.lanes))


@once
def names(dtype: np.dtype[Any], lanes: int, masked: bool) -> dict[str, Any]:
    """What templates do with vectors of so many numbers, under the names that they use.

    ``LANES``; ``THERE(number)``: a mask of the first of them, or of all where loads are not `masked`;
    ``LOAD(address, there)``: 0 where the mask is not; ``STORE(address, v, there)``; ``SPLAT(number)``; ``PLUS``,
    ``MINUS``, ``TIMES`` of two vectors; ``LARGER(a, b)``: `b` where one is NaN; ``NAN(a)``, ``EQUAL(a, b)``: masks;
    ``BOTH(m, n)``, ``EITHER(m, n)``, ``BUT_NOT(m, n)`` of masks; ``PICK(m, a, b)``: `a`, or `b` where the mask is not.
    """
    bits = 8 * dtype.itemsize
    vector, mask = Vector("vector", bits, lanes), Vector("mask", bits, lanes)
    real = ir.FloatType() if bits == 32 else ir.DoubleType()
    number = types.float32 if bits == 32 else types.float64
    of_vector, of_mask = ir.VectorType(real, lanes), ir.VectorType(ir.IntType(1), lanes)
    zero = ir.Constant(of_vector, [ir.Constant(real, 0.0)] * lanes)
    everywhere = ir.Constant(of_mask, [ir.Constant(ir.IntType(1), 1)] * lanes)

    def at(builder: Any, address: Any) -> Any:
        return builder.inttoptr(address, of_vector.as_pointer())

    def called(builder, name, result, *args):
        """Call LLVM's function of that name for vectors."""
        kind = ir.FunctionType(result, [a.type for a in args])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    suffix = f"v{lanes}f{bits}.p0"
    align = ir.Constant(ir.IntType(32), dtype.itemsize)

    @intrinsic
    def THERE(typingctx, number):
        def codegen(context, builder, signature, args):
            if not masked:
                return everywhere
            numbers = ir.VectorType(ir.IntType(64), lanes)
            limit = splat(builder, args[0], numbers)
            return builder.icmp_signed("<", ir.Constant(numbers, list(range(lanes))), limit)

        return mask(types.int64), codegen

    @intrinsic
    def LOAD(typingctx, address, there):
        def codegen(context, builder, signature, args):
            if masked:
                return called(
                    builder, f"llvm.masked.load.{suffix}", of_vector, at(builder, args[0]), align, args[1], zero
                )
            value = builder.load(at(builder, args[0]))
            value.align = dtype.itemsize
            return value

        return vector(types.int64, mask), codegen

    @intrinsic
    def STORE(typingctx, address, value, there):
        def codegen(context, builder, signature, args):
            if masked:
                place = at(builder, args[0])
                called(builder, f"llvm.masked.store.{suffix}", ir.VoidType(), args[1], place, align, args[2])
            else:
                builder.store(args[1], at(builder, args[0])).align = dtype.itemsize
            return context.get_dummy_value()

        return types.void(types.int64, vector, mask), codegen

    def splat(builder, value, kind):
        undefined, i32 = ir.Constant(kind, ir.Undefined), ir.IntType(32)
        first = builder.insert_element(undefined, value, i32(0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))

    def operation(result: Any, arguments: tuple[Any, ...], emit: Callable[..., Any]) -> Any:
        """An intrinsic of one argument or two, from what builds its instructions."""

        def codegen(context, builder, signature, args):
            return emit(builder, *args)

        if len(arguments) == 1:

            @intrinsic
            def of_one(typingctx, a):
                return result(*arguments), codegen

            return of_one

        @intrinsic
        def of_two(typingctx, a, b):
            return result(*arguments), codegen

        return of_two

    @intrinsic
    def PICK(typingctx, m, a, b):
        def codegen(context, builder, signature, args):
            return builder.select(*args)

        return vector(mask, vector, vector), codegen

    def larger(builder, a, b):
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    one, two, truths = (vector,), (vector, vector), (mask, mask)
    return {
        "LANES": lanes,
        "LOAD": LOAD,
        "STORE": STORE,
        "THERE": THERE,
        "SPLAT": operation(vector, (number,), lambda builder, a: splat(builder, a, of_vector)),
        "PLUS": operation(vector, two, lambda builder, a, b: builder.fadd(a, b, flags=("contract",))),
        "MINUS": operation(vector, two, lambda builder, a, b: builder.fsub(a, b, flags=("contract",))),
        "TIMES": operation(vector, two, lambda builder, a, b: builder.fmul(a, b, flags=("contract",))),
        "LARGER": operation(vector, two, larger),
        "NAN": operation(mask, one, lambda builder, a: builder.fcmp_unordered("uno", a, a)),
        "EQUAL": operation(mask, two, lambda builder, a, b: builder.fcmp_ordered("==", a, b)),
        "BOTH": operation(mask, truths, lambda builder, m, n: builder.and_(m, n)),
        "EITHER": operation(mask, truths, lambda builder, m, n: builder.or_(m, n)),
        "BUT_NOT": operation(mask, truths, lambda builder, m, n: builder.and_(m, builder.not_(n))),
        "PICK": PICK,
    }


def _in_parts(first, channels, *args):
    end = channels - (channels - first) % WIDE
    IN_VECTORS(first, end, *args)
    ONE_BY_ONE(end, channels, *args)


def over_channels(template: Callable[..., Any], dtype: Any) -> Any:
    """A function for kernels of a template ``(first, end, ...)``, which does the channels from `first` up to `end`.

    The template goes by ``LANES``, and from `end` on does nothing where it says which channels are ``THERE``. On hosts
    that cannot leave out a part of a vector it is only given whole ones, and what is left one by one.
    """
    dtype, width = np.dtype(dtype), micro.vector_bytes()
    lanes, masked = width // dtype.itemsize, micro.masks_loads(width)
    whole = function(template, dtype, "vectors", **names(dtype, lanes, masked))
    if masked:
        return whole
    one = function(template, dtype, "one", **names(dtype, 1, False))
    return function(_in_parts, dtype, template.__name__, WIDE=lanes, IN_VECTORS=whole, ONE_BY_ONE=one)
