"""What a kernel may be given. Kernels work on addresses, so a wrong shape must be caught before."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import step_state as S

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def lines(x: Any) -> bool:
    """Whether it is a matrix, not empty, whose rows are each in one piece, one after the other."""
    return (
        isinstance(x, np.ndarray)
        and x.ndim == 2
        and x.size > 0
        and x.flags.aligned
        and (x.shape[1] == 1 or x.strides[1] == x.itemsize)
        and x.strides[0] >= x.shape[1] * x.itemsize
        and not x.dtype.hasobject
    )


def plain(*arrays: Any) -> bool:
    """Whether all are NumPy arrays in C order, aligned and not empty; ``None`` passes."""
    for a in arrays:
        if a is None:
            continue
        if not isinstance(a, np.ndarray) or a.size == 0 or not (a.flags.c_contiguous and a.flags.aligned):
            return False
    return True


def native(*arrays: Any) -> bool:
    """Whether the kernels support these together: :func:`plain`, and all float32 or all float64."""
    dtype = None
    for a in arrays:
        if a is None:
            continue
        if not plain(a):
            return False
        if dtype is None:
            dtype = a.dtype
            if dtype not in _FLOATS:
                return False
        elif a.dtype != dtype:
            return False
    return True


def is_state(state: Any) -> bool:
    """Whether `state` is a step state as the kernels read it."""
    return plain(state) and state.dtype == np.float64 and state.size >= S.SIZE


def is_index(index: Any) -> bool:
    """Whether `index` is a vector of int64."""
    return plain(index) and index.dtype == np.int64 and index.ndim == 1


def shapes(method: str, **wanted: tuple[Any, tuple[int, ...]]) -> None:
    """Raise ``ValueError`` where a named array has not the shape it must have; ``None`` passes."""
    for name, (array, shape) in wanted.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{method}: {name} has shape {array.shape}, expected {shape}")


def sizes(method: str, size: int, **arrays: Any) -> None:
    """Raise ``ValueError`` where a named array has not `size` elements; ``None`` passes."""
    for name, array in arrays.items():
        if array is not None and array.size != size:
            raise ValueError(f"{method}: {name} has {array.size} elements, expected {size}")


def writable(method: str, **arrays: Any) -> None:
    """Raise ``ValueError`` where a named array is read-only; ``None`` passes."""
    for name, array in arrays.items():
        if array is not None and not array.flags.writeable:
            raise ValueError(f"{method}: {name} is read-only")


def matrix(method: str, **arrays: Any) -> None:
    """Raise ``ValueError`` where a named array is not 2-d."""
    for name, array in arrays.items():
        if array.ndim != 2:
            raise ValueError(f"{method}: {name} has shape {array.shape}, expected two dimensions")


def in_range(method: str, index: np.ndarray, rows: int) -> None:
    """Raise ``IndexError`` where an index is outside ``[0, rows)``."""
    if index.size and (index.min() < 0 or index.max() >= rows):
        wrong = index[(index < 0) | (index >= rows)][0]
        raise IndexError(f"{method}: index {wrong} is outside the {rows} rows")
