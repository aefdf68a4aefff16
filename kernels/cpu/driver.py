"""Runs lists of kernel calls natively: one call from Python, whatever the number of kernels and steps."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit, prange, types

from . import threads
from .cache import compiled
from .intrinsics import call_kernel

# Columns of the table of calls
FUNCTION, INTS, FLOATS, TASKS, PARALLEL = range(5)


@dataclass(slots=True)
class Call:
    """One kernel call: its records, and whatever must stay alive for their addresses to stay valid."""

    function: int
    ints: np.ndarray
    floats: np.ndarray
    tasks: int = 1
    parallel: bool = False
    blas: bool = False
    keep: tuple[Any, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        # The kernel reads the bits: an integer among the parameters must not make the record one of integers
        self.ints = np.ascontiguousarray(self.ints, np.int64)
        self.floats = np.ascontiguousarray(self.floats, np.float64)


def fused(I, F, task):  # noqa: E741 - the kernels' own names
    """Run several kernels on the same task, one after the other; I: their number, then three columns each."""
    for c in range(I[0]):
        call_kernel(I[1 + 3 * c], I[2 + 3 * c], I[3 + 3 * c], task)


def sequence(calls: Sequence[Call]) -> Call:
    """One call that does, for each task, that task of all `calls`, so that they meet the data in the cache."""
    from .specialise import kernel

    if len(calls) == 1:
        return calls[0]
    tasks = {call.tasks for call in calls}
    if len(tasks) > 1:
        raise ValueError(f"calls that run as one need the same number of tasks, they have {sorted(tasks)}")
    columns = [v for call in calls for v in (call.function, call.ints.ctypes.data, call.floats.ctypes.data)]
    return Call(
        kernel(fused),
        np.array([len(calls), *columns]),
        np.zeros(1),
        tasks.pop(),
        any(call.parallel for call in calls),
        any(call.blas for call in calls),
        tuple(calls),
    )


def _serial(calls, steps):
    for _ in range(steps):
        for c in range(calls.shape[0]):
            for task in range(calls[c, 3]):
                call_kernel(calls[c, 0], calls[c, 1], calls[c, 2], task)


def _region(function, ints, floats, tasks):
    for task in prange(tasks):
        call_kernel(function, ints, floats, task)


def _parallel(calls, steps):
    for _ in range(steps):
        for c in range(calls.shape[0]):
            if calls[c, 4] != 0:
                REGION(calls[c, 0], calls[c, 1], calls[c, 2], calls[c, 3])
            else:
                for task in range(calls[c, 3]):
                    call_kernel(calls[c, 0], calls[c, 1], calls[c, 2], task)


REGION: Any = None  # the compiled _region, for _parallel
_lock = threading.RLock()
_built: dict[str, Any] = {}
_SIGNATURE = types.void(types.int64[:, ::1], types.int64)
_REGION_SIGNATURE = types.void(*[types.int64] * 4)


def _driver(parallel: bool) -> Any:
    """The compiled driver. The serial one has no parallel region in it, so it starts no threads."""
    global REGION
    key = "parallel" if parallel else "serial"
    found = _built.get(key)
    if found is not None:
        return found
    with _lock:
        if key not in _built:
            if parallel:
                threads.find_tbb()
                REGION = compiled(
                    lambda cache: njit(_REGION_SIGNATURE, parallel=True, nogil=True, cache=cache)(_region), "_region"
                )
            template = _parallel if parallel else _serial
            _built[key] = compiled(lambda cache: njit(_SIGNATURE, nogil=True, cache=cache)(template), template.__name__)
        return _built[key]


class Program:
    """A fixed list of calls, ready to run."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = tuple(calls)
        self.table = np.empty((len(self.calls), 5), np.int64)
        for row, call in zip(self.table, self.calls, strict=True):
            row[:] = (call.function, call.ints.ctypes.data, call.floats.ctypes.data, call.tasks, call.parallel)
        self.parallel = any(call.parallel for call in self.calls)
        self.blas = any(call.blas for call in self.calls)

    def run(self, steps: int = 1) -> None:
        """Run all calls, in order, `steps` times. Holds no lock of Python's meanwhile."""
        if self.blas:
            with threads.single_threaded_blas:
                self._run(steps)
        else:
            self._run(steps)

    def _run(self, steps: int) -> None:
        if self.parallel and threads.count() > 1:
            driver = _driver(True)
            with threads.region_guard():
                driver(self.table, steps)
        else:
            _driver(False)(self.table, steps)
