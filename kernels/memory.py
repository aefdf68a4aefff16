"""Memory that starts on a cache line.

NumPy's own arrays start 16 bytes after one where they are large. A vector as wide as a line then lies in two of them
each time it is read, and a product of one row takes a quarter longer.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

__all__ = ["ALIGNMENT", "empty", "zeros"]

ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register, and four of cuBLASLt's 16


def _aligned(make: Callable[..., np.ndarray], shape: Any, dtype: Any, alignment: int) -> np.ndarray:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    nbytes = prod(shape) * np.dtype(dtype).itemsize
    raw = make(nbytes + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def empty(shape: Any, dtype: Any, alignment: int = ALIGNMENT) -> np.ndarray:
    """A new array on the host, not initialised, at a multiple of `alignment` bytes."""
    return _aligned(np.empty, shape, dtype, alignment)


def zeros(shape: Any, dtype: Any, alignment: int = ALIGNMENT) -> np.ndarray:
    """A new array of zeros on the host, at a multiple of `alignment` bytes.

    Nothing is written, so that a system that gives memory when it is used gives none for what is never used.
    """
    return _aligned(np.zeros, shape, dtype, alignment)
