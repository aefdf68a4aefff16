"""A team of threads that stays together for many kernel calls.

A parallel region of a threading layer costs 1.5 to 3 us, as much as a whole kernel of a small network, and its end
waits for every thread, even one that the system has given no processor. Here the threads enter one region for
a whole run. The first to arrive is the leader: it goes through the list of calls, and where a call has several
tasks it offers them to the others, which wait for that in a loop. Sharing a call this way costs about 0.2 us. What
nobody has begun, the leader does itself, so a team whose other threads come late, or never, still finishes.

Each thread, or lane, has a range of the tasks, always the same one, so that it finds in its cache what it wrote
there; when it is done it takes tasks from the ends of the other ranges. A range and the call that it belongs to are
one 64-bit word, and taking a task is one compare-and-swap on it: a thread that acts on an old word fails.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache as once
from typing import Any

import numpy as np
from numba import njit

from .. import memory
from .atomics import call_address, compare_and_swap, fetch_add, load_acquire, pause, store_release
from .intrinsics import call_kernel, pointer_i64

# The control block, in bytes: every item has two cache lines, which processors fetch together
LINE = 128
ARRIVED, DONE, FINISHED, WORDS = 0, LINE, 2 * LINE, 3 * LINE
# A word: number of the call, first task, end of the tasks
TASK_BITS = 20
TASK_LIMIT = 1 << TASK_BITS
_MASK = TASK_LIMIT - 1
# Bytes of a row of the driver's table of calls
CALL_BYTES = 8 * 5
# Turns of a waiting loop, of some 20 to 40 ns each, after which the processor is offered to other programs
_PATIENCE = 2000


def control_block(lanes: int) -> np.ndarray:
    """The memory that a team of that many threads shares, all zeros; it starts on a line of its own."""
    return memory.zeros((WORDS + lanes * LINE) // 8, np.int64, LINE)


@once
def yield_address() -> int:
    """Address of the system's call that lets another thread run; 0 where none is known."""
    if os.name != "posix":
        return 0
    return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0


def function(template: Any) -> Any:
    """Compiled into the driver that calls it."""
    return njit(nogil=True, error_model="numpy")(template)


@function
def _wait(turns, give_way):
    """One turn of a waiting loop; returns the turns so far."""
    pause()
    if turns < _PATIENCE:
        return turns + 1
    if give_way != 0:
        call_address(give_way)
    return turns


@function
def _work(control, calls, lanes, lane):
    """Do tasks of the lane's range, then of others'; returns how many."""
    count = 0
    for step in range(lanes):
        owner = lane + step if lane + step < lanes else lane + step - lanes
        word_at = control + WORDS + owner * LINE
        while True:
            word = load_acquire(word_at)
            first, end = (word >> TASK_BITS) & _MASK, word & _MASK
            if first >= end:
                break
            # The owner takes the first task, others the last
            taken = word + TASK_LIMIT if step == 0 else word - 1
            if compare_and_swap(word_at, word, taken):
                call = pointer_i64(calls + (word >> (2 * TASK_BITS)) * CALL_BYTES)
                call_kernel(call[0], call[1], call[2], first if step == 0 else end - 1)
                count += 1
    return count


@function
def share(control, calls, lanes, call, tasks, done, give_way):
    """The leader's part: offer the tasks of a call, do tasks, wait for the rest; `done` of all calls before."""
    each, more = tasks // lanes, tasks % lanes
    first = 0
    for lane in range(lanes):
        end = first + each + (1 if lane < more else 0)
        word = (((call << TASK_BITS) + first) << TASK_BITS) + end
        store_release(control + WORDS + lane * LINE, word)
        first = end
    own = _work(control, calls, lanes, 0)
    fetch_add(control + DONE, own)
    turns = 0
    while load_acquire(control + DONE) != done + tasks:
        turns = _wait(turns, give_way)


@function
def follow(control, calls, lanes, lane, give_way):
    """The others' part: do tasks until the leader has finished."""
    turns = 0
    while load_acquire(control + FINISHED) == 0:
        word = load_acquire(control + WORDS + lane * LINE)
        if (word >> TASK_BITS) & _MASK < word & _MASK:
            fetch_add(control + DONE, _work(control, calls, lanes, lane))
            turns = 0
        else:
            turns = _wait(turns, give_way)


@function
def clear(control, lanes):
    """Make the control block ready for the next region; by one thread, after all have left this one."""
    for item in range(3 + lanes):
        store_release(control + item * LINE, 0)
