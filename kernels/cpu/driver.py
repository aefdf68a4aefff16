"""Runs lists of kernel calls natively: one call from Python, whatever the number of kernels, steps and epochs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit, prange, types

from . import team, threads, tuning
from .atomics import fetch_add, store_release
from .cache import compiled
from .intrinsics import call_kernel, cycle_count, pointer_i64

# Columns of the table of calls: function, integers, floats, tasks, whether threads share them
FUNCTION, INTS, FLOATS, TASKS, PARALLEL = range(5)
# Columns of the table of segments: the calls from FIRST up to END, REPEATS times
FIRST, END, REPEATS = range(3)
# In place of a number of times: once, before the first or after the last of several runs
FIRST_RUN, LAST_RUN = -1, -2
SEGMENT_BYTES = 8 * 3


@dataclass(frozen=True, slots=True)
class Packing:
    """Weights and what they are packed to.

    Attributes
    ----------
    weights, to : ndarray
        The arrays.
    copies : callable
        ``copies(number, address, step)`` is a call that packs so many copies of the weights, one every `step` bytes
        from `address` on, a task each, and the array that has what each is packed to.
    """

    weights: np.ndarray
    to: np.ndarray
    copies: Callable[[int, int, int], tuple[Call, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Updating:
    """Calls to do an optimizer's step on flat arrays in another way.

    Attributes
    ----------
    pieces : callable
        ``pieces(cuts)`` are calls that do it for ``(first, size, chunk)`` of the elements, one for each.
    copies : callable
        ``copies(arrays, parts)`` is a call with a task for each row of `arrays`, the weights and the rest; the
        gradient of all of them is the sum of the rows of `parts`. Rows may lie apart.
    """

    pieces: Callable[[Sequence[tuple[int, int, int]]], list[Call]]
    copies: Callable[[Sequence[np.ndarray | None], np.ndarray], Call]


@dataclass(slots=True)
class Call:
    """One kernel call: its records, and whatever must stay alive for their addresses to stay valid.

    Attributes
    ----------
    function : int
        Address of the kernel.
    ints, floats : ndarray
        The records.
    tasks : int
        Numbers that it is called with; where there are `tiles`, those of the tiles.
    parallel : bool
        Whether threads share the tasks.
    blas : bool
        Whether it calls BLAS.
    keep : tuple
        Owners of memory.
    tiles : Tiles or None
        Set where task t does nothing but tile t of the rows of a batch; such calls can run tile by tile (fusion.py).
    reads, writes : tuple of ndarray
        The arrays that have the batch's rows: those of a call with tiles, and those that a late one reads.
    sums : tuple of ndarray
        What a call with tiles adds up over them: whole only after the last one.
    when : {"", "early", "late", "first", "last"}
        "early": depends on no array of the batch's rows. "late": nothing but late calls, and calls without tiles,
        depends on it. So it may be done before, or after, calls with tiles. "first" and "last" are done once, before
        and after several runs.
    reduces : bool
        Whether it is a sum of parts, which others can join.
    cut : callable, optional
        Of a product that goes by rows of its result: ``cut(tiles, claimed)`` are calls that go by these rows, and ask
        for what lies `claimed` bytes after the result, since it will be written next.
    update : Updating, optional
        Of an optimizer's step on flat arrays: other ways to do it; `reads` is the gradient, `writes` the weights and
        the rest.
    nanoseconds : float
        About what it takes on one thread.
    packs : Packing, optional
        Set where it packs weights.
    ahead : int, optional
        Place in `ints` of how far after its result it asks for memory; 0 there is not at all.
    room : tuple of ndarray
        Working memory that belongs to this call alone.
    """

    function: int
    ints: np.ndarray
    floats: np.ndarray
    tasks: int = 1
    parallel: bool = False
    blas: bool = False
    keep: tuple[Any, ...] = field(default=(), repr=False)
    tiles: tuning.Tiles | None = None
    reads: tuple[np.ndarray | None, ...] = field(default=(), repr=False)
    writes: tuple[np.ndarray | None, ...] = field(default=(), repr=False)
    sums: tuple[np.ndarray | None, ...] = field(default=(), repr=False)
    when: str = ""
    reduces: bool = False
    cut: Callable[[tuning.Tiles, int], list[Call]] | None = field(default=None, repr=False)
    update: Updating | None = field(default=None, repr=False)
    nanoseconds: float = 0.0
    packs: Packing | None = field(default=None, repr=False)
    ahead: int | None = None
    room: tuple[np.ndarray, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        # The kernel reads the bits: an integer among the parameters must not make the record one of integers
        self.ints = np.ascontiguousarray(self.ints, np.int64)
        self.floats = np.ascontiguousarray(self.floats, np.float64)


@team.function
def _repeats(segment, run, runs):
    """How often a segment is done in a run."""
    if segment[2] == FIRST_RUN:
        return 1 if run == 0 else 0
    if segment[2] == LAST_RUN:
        return 1 if run == runs - 1 else 0
    return segment[2]


def _serial(calls, segments, number, times):
    for run in range(times):
        for s in range(number):
            segment = pointer_i64(segments + s * SEGMENT_BYTES)
            for _ in range(_repeats(segment, run, times)):
                for c in range(segment[0], segment[1]):
                    call = pointer_i64(calls + c * team.CALL_BYTES)
                    for task in range(call[3]):
                        call_kernel(call[0], call[1], call[2], task)


@team.function
def _lead(control, calls, segments, number, times, lanes, give_way, clocks):
    """What the leader of a team does: all calls, those that threads share together with the others.

    Where `clocks` is not 0, the cycles that each call took are added to the number there.
    """
    done = 0
    for run in range(times):
        for s in range(number):
            segment = pointer_i64(segments + s * SEGMENT_BYTES)
            for _ in range(_repeats(segment, run, times)):
                for c in range(segment[0], segment[1]):
                    call = pointer_i64(calls + c * team.CALL_BYTES)
                    began = cycle_count() if clocks != 0 else 0
                    if call[4] != 0:
                        team.share(control, calls, lanes, c, call[3], done, give_way)
                        done += call[3]
                    else:
                        for task in range(call[3]):
                            call_kernel(call[0], call[1], call[2], task)
                    if clocks != 0:
                        pointer_i64(clocks)[c] += cycle_count() - began


def _parallel(calls, segments, number, times, control, lanes, give_way, clocks):
    for _ in prange(lanes):
        lane = fetch_add(control + team.ARRIVED, 1)
        if lane == 0:
            _lead(control, calls, segments, number, times, lanes, give_way, clocks)
            store_release(control + team.FINISHED, 1)
        else:
            team.follow(control, calls, lanes, lane, give_way)
    team.clear(control, lanes)


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
            template, arguments = (_parallel, 8) if parallel else (_serial, 4)
            signature = types.void(*[types.int64] * arguments)

            def decorate(cache: bool) -> Any:
                return njit(signature, parallel=parallel, nogil=True, cache=cache)(template)

            _built[parallel] = compiled(decorate, template.__name__)
        return _built[parallel]


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
            shared = call.parallel and call.tasks < team.TASK_LIMIT
            row[:] = (call.function, call.ints.ctypes.data, call.floats.ctypes.data, call.tasks, shared)
        self.segments = self._in_runs() if segments is None else segments
        self.parallel = bool(self.table[:, PARALLEL].any())
        self.blas = any(call.blas for call in self.calls)
        self._addresses = self.table.ctypes.data, self.segments.ctypes.data, len(self.segments)
        self._control: tuple[int, int, np.ndarray] | None = None  # lanes, address, the memory

    def _in_runs(self) -> np.ndarray:
        """The segments of a plain list of calls: what comes once, and what every run does."""
        once = [{"first": FIRST_RUN, "last": LAST_RUN}.get(call.when, 1) for call in self.calls]
        cuts = [0, *(i for i in range(1, len(once)) if once[i] != once[i - 1]), len(once)]
        return np.array([[a, b, once[a]] for a, b in pairwise(cuts) if a < b], np.int64).reshape(-1, 3)

    @classmethod
    def chain(cls, parts: Sequence[tuple[Program, int]], outer: int = -1) -> Program:
        """One program that runs each of `parts` so many times, in order.

        What comes once, before and after the runs of a part, is done once in each run of the whole; of part number
        `outer` once before the first and after the last run of the whole.
        """
        calls: list[Call] = []
        before, segments, after = [], [np.empty((0, 3), np.int64)], []
        for number, (program, times) in enumerate(parts):
            own = program.segments.copy()
            own[:, [FIRST, END]] += len(calls)
            calls.extend(program.calls)
            repeats = own[:, REPEATS]
            opening, closing = own[repeats == FIRST_RUN], own[repeats == LAST_RUN]
            body = own[repeats >= 0]
            if len(body) == 1:
                body[:, REPEATS] *= times
            else:
                body = np.tile(body, (times, 1))
            if number == outer:
                before, after = [opening], [closing]
                segments.append(body)
            else:
                opening[:, REPEATS] = closing[:, REPEATS] = min(times, 1)
                segments += [opening, body, closing]
        return cls(calls, np.concatenate([*before, *segments, *after]))

    def run(self, times: int = 1) -> None:
        """Run all segments, in order, so many times. Holds no lock of Python's meanwhile; one caller at a time."""
        if self.blas:
            with threads.single_threaded_blas:
                self._run(times)
        else:
            self._run(times)

    def _run(self, times: int) -> None:
        if self.parallel and (lanes := threads.count()) > 1:
            self._run_together(times, lanes)
        else:
            _driver(False)(*self._addresses, times)

    def _run_together(self, times: int, lanes: int, clocks: int = 0) -> None:
        driver, control = _driver(True), self._control
        if control is None or control[0] != lanes:
            block = team.control_block(lanes)
            self._control = control = lanes, block.ctypes.data, block
        if threads.excludes_others():
            with threads.region_lock():
                driver(*self._addresses, times, control[1], lanes, team.yield_address(), clocks)
        else:
            driver(*self._addresses, times, control[1], lanes, team.yield_address(), clocks)

    def cycles(self, times: int) -> np.ndarray:
        """Cycles that each call took in `times` runs, as the thread that leads saw it; int64."""
        clocks = np.zeros(len(self.calls), np.int64)
        self._run_together(times, threads.count() if self.parallel else 1, clocks.ctypes.data)
        return clocks
