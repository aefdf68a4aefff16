"""The few operations that Numba has no name for, as LLVM IR: addresses, calls by address, float bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

VOID_POINTER = ir.IntType(8).as_pointer()


def intrinsic(function: Callable[..., Any]) -> Any:
    """Numba's decorator; type checkers must not compare calls in kernels with the typing function's signature."""
    return numba_intrinsic(function)


def _pointer_to(item):
    """An intrinsic that reads an int64 address as a pointer to `item`; index it like an array."""

    @intrinsic
    def pointer(typingctx, address):
        target = types.CPointer(item)

        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(target))

        return target(types.int64), codegen

    return pointer


pointer_f32 = _pointer_to(types.float32)
pointer_f64 = _pointer_to(types.float64)
pointer_i64 = _pointer_to(types.int64)
pointer_u8 = _pointer_to(types.uint8)

KERNEL = types.void(types.CPointer(types.int64), types.CPointer(types.float64), types.int64)


@intrinsic
def call_kernel(typingctx, function, ints, floats, task):
    """Call the kernel at the address `function` on records given by address."""

    def codegen(context, builder, signature, args):
        i64, f64 = ir.IntType(64), ir.DoubleType()
        function_type = ir.FunctionType(ir.VoidType(), [i64.as_pointer(), f64.as_pointer(), i64])
        kernel = builder.inttoptr(args[0], function_type.as_pointer())
        ints, floats = (builder.inttoptr(a, t.as_pointer()) for a, t in zip(args[1:3], (i64, f64), strict=True))
        builder.call(kernel, [ints, floats, args[3]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def chain_kernel(typingctx, function, ints, floats, task):
    """Call the kernel at the address `function` on the records that the caller itself was given."""

    def codegen(context, builder, signature, args):
        i64, f64 = ir.IntType(64), ir.DoubleType()
        function_type = ir.FunctionType(ir.VoidType(), [i64.as_pointer(), f64.as_pointer(), i64])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), list(args[1:]))
        return context.get_dummy_value()

    return types.void(types.int64, *KERNEL.args), codegen


@intrinsic
def blas_gemm(typingctx, function, trans_a, trans_b, m, n, k, a, lda, b, ldb, beta, c, ldc):
    """Fortran xGEMM at the address `function`, alpha 1: every argument goes by reference, integers are 32 bits.

    `trans_a` and `trans_b` are the letters' codes; `a`, `b`, `c` are addresses; the type of `beta` is the type
    of the matrices.
    """
    integer = types.int64

    def codegen(context, builder, signature, args):
        real = context.get_value_type(signature.args[10])
        i8, i32 = ir.IntType(8), ir.IntType(32)

        def stored(kind, value):
            slot = cgutils.alloca_once(builder, kind)
            builder.store(value, slot)
            return builder.bitcast(slot, VOID_POINTER)

        def integer_slot(value):
            return stored(i32, builder.trunc(value, i32))

        address, ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc = args
        arguments = [
            stored(i8, builder.trunc(ta, i8)),
            stored(i8, builder.trunc(tb, i8)),
            *(integer_slot(v) for v in (m, n, k)),
            stored(real, ir.Constant(real, 1.0)),
            builder.inttoptr(a, VOID_POINTER),
            integer_slot(lda),
            builder.inttoptr(b, VOID_POINTER),
            integer_slot(ldb),
            stored(real, beta),
            builder.inttoptr(c, VOID_POINTER),
            integer_slot(ldc),
        ]
        function_type = ir.FunctionType(ir.VoidType(), [VOID_POINTER] * len(arguments))
        builder.call(builder.inttoptr(address, function_type.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.void(*[integer] * 10, beta, integer, integer), codegen


@intrinsic
def copy_memory(typingctx, out, source, nbytes):
    """Copy bytes between places that do not overlap."""

    def codegen(context, builder, signature, args):
        out, source = (builder.inttoptr(a, VOID_POINTER) for a in args[:2])
        cgutils.raw_memcpy(builder, out, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def clear_memory(typingctx, out, nbytes):
    """Zeros."""

    def codegen(context, builder, signature, args):
        cgutils.memset(builder, builder.inttoptr(args[0], VOID_POINTER), args[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _prefetching(writes: int) -> Any:
    def codegen(context, builder, signature, args):
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [VOID_POINTER, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(args[0], VOID_POINTER), i32(writes), i32(3), i32(1)])
        return context.get_dummy_value()

    return codegen


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at `address`, which will be read soon; any address will do."""
    return types.void(types.int64), _prefetching(0)


@intrinsic
def claim(typingctx, address):
    """Ask for the cache line at `address`, which will be written soon, and take it from other cores' caches."""
    return types.void(types.int64), _prefetching(1)


@intrinsic
def cycle_count(typingctx):
    """The processor's counter of cycles (of a constant rate, on x86); only differences mean something."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])

    return types.int64(), codegen


@intrinsic
def multiply_add(typingctx, a, b, c):
    """``a * b + c``, rounded once where the machine has an instruction for it; of three numbers of one type."""

    def codegen(context, builder, signature, args):
        real = context.get_value_type(signature.return_type)
        name = f"llvm.fmuladd.f{_FORMAT[signature.return_type][0]}"
        return builder.call(
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(real, [real] * 3), name), args
        )

    return a(a, a, a), codegen


_FORMAT = {types.float32: (32, 23, 127, 1.5 * 2**23), types.float64: (64, 52, 1023, 1.5 * 2**52)}


def rounder(dtype):
    """The number 1.5 * 2**p: adding it rounds to an integer, which then sits in the sum's lowest bits."""
    return _FORMAT[dtype][3]


@intrinsic
def multiply_wide(typingctx, a, b):
    """Upper and lower half of the product of two unsigned 64-bit numbers, which int64 hold the bits of."""

    def codegen(context, builder, signature, args):
        i64, i128 = ir.IntType(64), ir.IntType(128)
        product = builder.mul(*(builder.zext(arg, i128) for arg in args))
        halves = [builder.trunc(builder.lshr(product, i128(64)), i64), builder.trunc(product, i64)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(types.int64, 2)(types.int64, types.int64), codegen


@intrinsic
def exponent_factors(typingctx, t):
    """``(2**(k//2), 2**(k - k//2))`` from ``t = k + rounder``: two factors, as one would overflow near the ends."""

    def codegen(context, builder, signature, args):
        bits, mantissa, bias, magic = _FORMAT[signature.args[0]]
        real, integer = context.get_value_type(signature.args[0]), ir.IntType(bits)
        k = builder.sub(builder.bitcast(args[0], integer), builder.bitcast(ir.Constant(real, magic), integer))
        half = builder.ashr(k, integer(1))
        factors = [
            builder.bitcast(builder.shl(builder.add(h, integer(bias)), integer(mantissa)), real)
            for h in (half, builder.sub(k, half))
        ]
        return context.make_tuple(builder, signature.return_type, factors)

    return types.UniTuple(t, 2)(t), codegen


@intrinsic
def split_exponent(typingctx, x):
    """``(m, e)`` with ``x = m 2**e`` and m in [1, 2), of a positive normal number."""

    def codegen(context, builder, signature, args):
        bits, mantissa, bias, _ = _FORMAT[signature.args[0]]
        real, integer = context.get_value_type(signature.args[0]), ir.IntType(bits)
        whole = builder.bitcast(args[0], integer)
        exponent = builder.sub(builder.lshr(whole, integer(mantissa)), integer(bias))
        fraction = builder.and_(whole, integer((1 << mantissa) - 1))
        one_to_two = builder.bitcast(builder.or_(fraction, integer(bias << mantissa)), real)
        return context.make_tuple(builder, signature.return_type, [one_to_two, builder.sitofp(exponent, real)])

    return types.UniTuple(x, 2)(x), codegen


def polynomial(coefficients):
    """An intrinsic that evaluates a polynomial, lowest coefficient first, by Horner's rule."""

    @intrinsic
    def evaluate(typingctx, x):
        def codegen(context, builder, signature, args):
            real = context.get_value_type(signature.args[0])
            value = ir.Constant(real, coefficients[-1])
            for c in reversed(coefficients[:-1]):
                product = builder.fmul(value, args[0], flags=("contract",))
                value = builder.fadd(product, ir.Constant(real, c), flags=("contract",))
            return value

        return x(x), codegen

    return evaluate
