"""Typed views into one allocation: reserve all sizes first, then allocate once."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from .kernels.memory import ALIGNMENT

__all__ = ["Arena", "Slot"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A reserved place: byte offset, shape and dtype of the view it will become."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Arena:
    """Collects reservations, then hands out views of one buffer.

    Examples
    --------
    >>> arena = Arena()
    >>> slot = arena.reserve((2, 3), "float32")
    >>> buffer = np.zeros(arena.nbytes, np.uint8)
    >>> Arena.view(buffer, slot).shape
    (2, 3)
    """

    def __init__(self) -> None:
        self.nbytes = 0

    def reserve(self, shape: tuple[int, ...], dtype: Any) -> Slot:
        """Reserve room for an array; returns its place."""
        dtype = np.dtype(dtype)
        slot = Slot(self.nbytes, tuple(shape), dtype)
        nbytes = prod(shape) * dtype.itemsize
        self.nbytes += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return slot

    @staticmethod
    def view(buffer: Any, slot: Slot, rows: int | None = None) -> Any:
        """The array at `slot` of a uint8 buffer; with `rows`, only its first rows (a prefix)."""
        shape = slot.shape if rows is None else (rows, *slot.shape[1:])
        nbytes = prod(shape) * slot.dtype.itemsize
        return buffer[slot.offset : slot.offset + nbytes].view(slot.dtype).reshape(shape)
