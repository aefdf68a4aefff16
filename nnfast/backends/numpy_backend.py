"""NumPy on the CPU: the reference, as readable as the maths."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from ..errors import OutOfMemoryError
from ..kernels import memory
from .array_backend import ArrayBackend
from .base import Array, Backend, Replay


class NumpyBackend(ArrayBackend):
    """Plain NumPy arrays and NumPy's own operations."""

    name = "numpy"
    device = "numpy"

    @property
    def xp(self) -> Any:
        return np

    def empty(self, shape: Any, dtype: Any) -> Array:
        return self._allocated(memory.empty, shape, dtype)

    def zeros(self, shape: Any, dtype: Any) -> Array:
        return self._allocated(memory.zeros, shape, dtype)

    def _allocated(self, make: Callable[[Any, Any], np.ndarray], shape: Any, dtype: Any) -> Array:
        try:
            return make(shape, dtype)
        except MemoryError:
            shape = (shape,) if isinstance(shape, int) else shape
            needed = prod(shape) * np.dtype(dtype).itemsize
            raise OutOfMemoryError(self.device, needed, self.memory()[0]) from None

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        return np.asarray(x, dtype=dtype, order="C")

    def to_numpy(self, x: Array) -> np.ndarray:
        return np.asarray(x)

    def copy(self, src: Array, *, out: Array) -> None:
        np.copyto(out, src, casting="same_kind")

    def capture(
        self,
        step: Callable[[Backend], None],
        temporary: Sequence[Array] = (),
        before: Callable[[], None] = lambda: None,
    ) -> Replay:
        def quiet() -> None:
            # A value that is not finite is found where it counts, by record_loss and the optimizer's step
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                step(self)

        return Replay(quiet)

    def memory(self) -> tuple[int, int]:
        try:
            # What Linux could hand out, its file cache included
            with open("/proc/meminfo") as lines:
                sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
            return sizes["MemAvailable"], sizes["MemTotal"]
        except (OSError, KeyError, ValueError):
            pass
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            total = 1 << 33  # not told by this system; few machines have less than 8 GB
        return total // 2, total
