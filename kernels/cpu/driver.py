"""Runs lists of kernel calls natively: one call from Python, whatever the number of kernels and steps."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit, prange, types

from . import team, threads
from .atomics import fetch_add, store_release
from .cache import compiled
from .intrinsics import call_kernel, pointer_i64

# The table of calls: function, integers, floats, tasks, whether to share them among threads
COLUMNS = 5


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


def _serial(calls, number, steps):
    for _ in range(steps):
        for c in range(number):
            call = pointer_i64(calls + 8 * COLUMNS * c)
            for task in range(call[3]):
                call_kernel(call[0], call[1], call[2], task)


@team.function
def _lead(control, calls, number, steps, lanes, give_way):
    """What the leader of a team does: all calls, those with tasks for several threads together with the others."""
    done = 0
    for _ in range(steps):
        for c in range(number):
            call = pointer_i64(calls + 8 * COLUMNS * c)
            if call[4] != 0:
                team.share(control, calls, lanes, c, call[3], done, give_way)
                done += call[3]
            else:
                for task in range(call[3]):
                    call_kernel(call[0], call[1], call[2], task)


def _parallel(calls, number, steps, control, lanes, give_way):
    for _ in prange(lanes):
        lane = fetch_add(control + team.ARRIVED, 1)
        if lane == 0:
            _lead(control, calls, number, steps, lanes, give_way)
            store_release(control + team.FINISHED, 1)
        else:
            team.follow(control, calls, lanes, lane, give_way)


_lock = threading.RLock()
_built: dict[bool, Any] = {}


def _driver(parallel: bool) -> Any:
    """The compiled driver. The serial one has no parallel region in it, so it starts no threads."""
    found = _built.get(parallel)
    if found is not None:
        return found
    with _lock:
        if parallel not in _built:
            if parallel:
                threads.find_tbb()
            template, arguments = (_parallel, 6) if parallel else (_serial, 3)
            signature = types.void(*[types.int64] * arguments)

            def decorate(cache: bool) -> Any:
                return njit(signature, parallel=parallel, nogil=True, cache=cache)(template)

            _built[parallel] = compiled(decorate, template.__name__)
        return _built[parallel]


class Program:
    """A fixed list of calls, ready to run."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = tuple(calls)
        self.table = np.empty((len(self.calls), COLUMNS), np.int64)
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
        table, number = self.table.ctypes.data, len(self.calls)
        if self.parallel and threads.count() > 1:
            lanes = threads.count()
            driver, control = _driver(True), team.control_block(lanes)
            with threads.region_guard():
                driver(table, number, steps, control.ctypes.data, lanes, team.yield_address())
        else:
            _driver(False)(table, number, steps)
