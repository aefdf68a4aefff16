"""Runs lists of kernel calls natively: one call from Python, whatever the number of kernels, steps and epochs."""

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
# Columns of the table of segments: the calls from FIRST up to END, REPEATS times
FIRST, END, REPEATS = range(3)


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


def _serial(calls, segments, times):
    for _ in range(times):
        for s in range(segments.shape[0]):
            for _ in range(segments[s, 2]):
                for c in range(segments[s, 0], segments[s, 1]):
                    for task in range(calls[c, 3]):
                        call_kernel(calls[c, 0], calls[c, 1], calls[c, 2], task)


def _region(function, ints, floats, tasks):
    for task in prange(tasks):
        call_kernel(function, ints, floats, task)


def _parallel(calls, segments, times):
    for _ in range(times):
        for s in range(segments.shape[0]):
            for _ in range(segments[s, 2]):
                for c in range(segments[s, 0], segments[s, 1]):
                    if calls[c, 4] != 0:
                        REGION(calls[c, 0], calls[c, 1], calls[c, 2], calls[c, 3])
                    else:
                        for task in range(calls[c, 3]):
                            call_kernel(calls[c, 0], calls[c, 1], calls[c, 2], task)


REGION: Any = None  # the compiled _region, for _parallel
_lock = threading.RLock()
_built: dict[str, Any] = {}
_SIGNATURE = types.void(types.int64[:, ::1], types.int64[:, ::1], types.int64)
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
    """Fixed lists of calls, ready to run.

    Attributes
    ----------
    calls : tuple of Call
    table : ndarray of int64
        (calls, 5), a row for each of them.
    segments : ndarray of int64
        (segments, 3): which of the calls run, how often, in which order.
    """

    def __init__(self, calls: Sequence[Call], segments: np.ndarray | None = None) -> None:
        self.calls = tuple(calls)
        self.table = np.empty((len(self.calls), 5), np.int64)
        for row, call in zip(self.table, self.calls, strict=True):
            row[:] = (call.function, call.ints.ctypes.data, call.floats.ctypes.data, call.tasks, call.parallel)
        self.segments = np.array([[0, len(self.calls), 1]], np.int64) if segments is None else segments
        self.parallel = any(call.parallel for call in self.calls)
        self.blas = any(call.blas for call in self.calls)

    @classmethod
    def chain(cls, parts: Sequence[tuple[Program, int]]) -> Program:
        """One program that runs each of `parts` so many times, in order."""
        calls: list[Call] = []
        segments: list[np.ndarray] = [np.empty((0, 3), np.int64)]
        for program, times in parts:
            own = program.segments.copy()
            own[:, [FIRST, END]] += len(calls)
            if len(own) == 1:
                own[:, REPEATS] *= times
            else:
                own = np.tile(own, (times, 1))
            calls.extend(program.calls)
            segments.append(own)
        return cls(calls, np.concatenate(segments))

    def run(self, times: int = 1) -> None:
        """Run all segments, in order, so many times. Holds no lock of Python's meanwhile."""
        if self.blas:
            with threads.single_threaded_blas:
                self._run(times)
        else:
            self._run(times)

    def _run(self, times: int) -> None:
        if self.parallel and threads.count() > 1:
            driver = _driver(True)
            with threads.region_guard():
                driver(self.table, self.segments, times)
        else:
            _driver(False)(self.table, self.segments, times)
