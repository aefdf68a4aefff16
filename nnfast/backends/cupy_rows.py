"""The CUDA kernels that move rows: by index, of the current batch, between parts of wider arrays.

A method returns ``NotImplemented`` for what its kernel does not support; the backend then uses CuPy's own
operations.
"""

from __future__ import annotations

from math import prod
from typing import Any

from ..kernels.cuda import loader
from .base import Array

__all__ = ["CudaRows"]


class CudaRows:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _kernels: loader.Kernels
    _launch: Any
    _type: Any
    _array_type: Any

    def _contiguous(self, *arrays: Array) -> bool:
        return all(isinstance(x, self._array_type) and x.flags.c_contiguous for x in arrays)

    def _move(
        self, kernel: str, rows: int, row_bytes: int, strides: tuple[int, ...], src: Array, dst: Array, *between: Any
    ) -> None:
        """A kernel of ``gather.cu``, in the widest unit that divides a row and the strides, and fits both addresses."""
        if rows == 0 or row_bytes == 0:
            return
        fits = row_bytes | src.data.ptr | dst.data.ptr
        for stride in strides:
            fits |= stride
        unit = next(size for size in loader.UNITS if fits % size == 0)
        units = row_bytes // unit
        steps = (stride // unit for stride in strides)
        shape = self._kernels.flat(rows * units)
        self._launch("gather", kernel, (loader.UNITS[unit],), shape, src, *between, dst, rows, units, *steps)

    def _copy_rows(self, kernel: str, src: Array, dst: Array, rows: int, *between: Any) -> Any:
        """Whole rows of contiguous arrays."""
        if src.dtype != dst.dtype or src.shape[1:] != dst.shape[1:] or not self._contiguous(src, dst):
            return NotImplemented
        self._move(kernel, rows, prod(src.shape[1:]) * src.dtype.itemsize, (), src, dst, *between)
        return None

    def take_rows(self, x: Array, index: Array, *, out: Array) -> Any:
        if index.dtype.char not in "lq" or not index.flags.c_contiguous or out.shape[:1] != index.shape:
            return NotImplemented
        return self._copy_rows("gather_rows", x, out, len(out), index, None)

    def take_batch(self, x: Array, order: Array, state: Array, *, out: Array) -> Any:
        if order.dtype.char not in "lq" or not order.flags.c_contiguous:
            return NotImplemented
        return self._copy_rows("gather_rows", x, out, len(out), order, state)

    def store_batch(self, x: Array, state: Array, *, out: Array) -> Any:
        if x.dtype != out.dtype:
            x = x.astype(out.dtype)  # allocates: outputs are kept in the dtype that they have
        return self._copy_rows("store_rows", x, out, len(x), state)

    def copy_columns(self, x: Array, *, out: Array) -> Any:
        if x.dtype != out.dtype or x.shape != out.shape or not (self._lines(x) and self._lines(out)):
            return NotImplemented
        strides = x.strides[0], out.strides[0]
        self._move("copy_rows", len(x), x.shape[1] * x.dtype.itemsize, strides, x, out)
        return None

    def _lines(self, x: Array) -> bool:
        """Whether `x` is a matrix whose rows are each in one piece, one after the other."""
        matrix = isinstance(x, self._array_type) and x.ndim == 2
        return matrix and (x.shape[1] < 2 or x.strides[1] == x.dtype.itemsize) and x.strides[0] >= 0

    def add_at_rows(self, x: Array, index: Array, *, out: Array) -> Any:
        t = self._type(x, wide=(out,))
        if t is None or index.dtype.char not in "lq" or not index.flags.c_contiguous:
            return NotImplemented
        if x.shape[1:] != out.shape[1:] or x.shape[:1] != index.shape:
            return NotImplemented
        args, shape = (t, loader.SCALARS[out.dtype.char]), self._kernels.warps(len(x))
        self._launch("scatter", "add_at_rows", args, shape, x, index, out, len(x), prod(x.shape[1:]))
        return None
