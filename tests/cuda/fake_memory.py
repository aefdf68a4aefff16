"""Memory of the emulated device: allocations with guards, and the pool that they come from."""

from __future__ import annotations

import numpy as np

_GUARD = 64
_PATTERN = 0xA5


class Memory:
    """One allocation: bytes with a guard before and after, aligned as CuPy's pool aligns."""

    def __init__(self, nbytes: int) -> None:
        raw = np.empty(nbytes + 2 * _GUARD + 512, np.uint8)
        start = (-(raw.ctypes.data + _GUARD)) % 512 + _GUARD
        self.bytes = raw[start : start + nbytes]
        self._guards = raw[start - _GUARD : start], raw[start + nbytes : start + nbytes + _GUARD]
        for guard in self._guards:
            guard.fill(_PATTERN)
        self.bytes.fill(0xFF)  # NaN, for floats: reading what nobody wrote shows

    def intact(self) -> bool:
        """Whether nothing was written outside."""
        return all((guard == _PATTERN).all() for guard in self._guards)


class FakeOutOfMemoryError(MemoryError):
    """``cupy.cuda.memory.OutOfMemoryError``."""


class FakePool:
    """``cupy.cuda.MemoryPool``: keeps what is given back until all of that is freed.

    Attributes
    ----------
    limit : int
        Bytes of the device.
    held, used : int
        Bytes that it took from the device, and those of them that are in use.
    """

    def __init__(self) -> None:
        self.limit, self.held, self.used = 4 << 30, 0, 0

    def take(self, nbytes: int) -> None:
        more = max(0, self.used + nbytes - self.held)
        if self.held + more > self.limit:
            raise FakeOutOfMemoryError(
                f"Out of memory allocating {nbytes:,} bytes (allocated so far: {self.used:,} bytes)."
            )
        self.held += more
        self.used += nbytes

    def give_back(self, nbytes: int) -> None:
        self.used -= nbytes

    def free_bytes(self) -> int:
        return self.held - self.used

    def free_all_blocks(self) -> None:
        self.held = self.used
