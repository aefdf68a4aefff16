"""A team of threads does every task once, whoever comes, and in whatever order."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("numba")

from nnfast.kernels.cpu import pointwise, team
from nnfast.kernels.cpu.driver import Call, Program


def counting(size: int, chunk: int, shared: bool = True) -> tuple[Call, np.ndarray, np.ndarray]:
    """A call whose task t adds ones to chunk t of an array; the array, and the ones."""
    x, one = np.zeros(size, np.float32), np.ones(size, np.float32)
    call = pointwise.add_call(x, one, x)
    ints = call.ints.copy()
    ints[4] = chunk
    tasks = -(-size // chunk)
    return Call(call.function, ints, call.floats, tasks, shared, keep=(x, one)), x, one


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [1, 2, 5, 64, 1000])
def test_every_task_is_done_once(lanes: int, tasks: int) -> None:
    """Also with more lanes than threads: then some lanes begin when the leader has finished."""
    calls = [counting(tasks * 16, 16), counting(40, 16, shared=False), counting(tasks * 32, 32)]
    program = Program([call for call, *_ in calls])
    program._run_together(25, lanes)
    for _, x, _ in calls:
        np.testing.assert_array_equal(x, 25.0)


def test_calls_wait_for_those_before() -> None:
    """Each call reads, in other tasks than wrote it, what the one before has written."""
    size, chunk = 4096, 16
    calls: list[Call] = []
    arrays = [np.zeros(size, np.float32) for _ in range(6)]
    for source, out in pairwise(arrays):
        call = pointwise.add_call(source, source, out)
        # Tasks of another size: a task's elements were written by several others
        ints = call.ints.copy()
        ints[4] = chunk * (1 + len(calls) % 3)
        calls.append(Call(call.function, ints, call.floats, -(-size // int(ints[4])), True, keep=(source, out)))
    first = np.arange(size, dtype=np.float32)
    program = Program(calls)
    for step in range(200):
        arrays[0][:] = first + step
        program._run_together(1, 2)
        np.testing.assert_array_equal(arrays[-1], (first + step) * 32)


def test_two_python_threads_have_a_team_each() -> None:
    programs = [counting(3200, 16) for _ in range(2)]
    workers = [threading.Thread(target=Program([call]).run, args=(2000,)) for call, *_ in programs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for _, x, _ in programs:
        np.testing.assert_array_equal(x, 2000.0)


def test_more_tasks_than_a_word_can_count_are_not_shared() -> None:
    call, x, _ = counting(team.TASK_LIMIT + 5, 1)
    program = Program([call])
    assert not program.parallel
    program.run()
    np.testing.assert_array_equal(x, 1.0)


def test_cycles_count_every_call() -> None:
    calls = [counting(320, 16), counting(320, 16, shared=False)]
    cycles = Program([call for call, *_ in calls]).cycles(10)
    assert cycles.shape == (2,)
    assert (cycles > 0).all()
    for _, x, _ in calls:
        np.testing.assert_array_equal(x, 10.0)
