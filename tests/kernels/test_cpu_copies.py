"""Runs of many steps, where each thread has and updates weights of its own, against the same steps one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from nnfast.backends.base import Backend
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.backends.numba_replay import NumbaReplay
from nnfast.kernels import step_state as S
from nnfast.kernels.cpu import tuning
from nnfast.kernels.cpu.driver import FIRST_RUN, LAST_RUN, Call, Program
from nnfast.kernels.cpu.pointwise import copy_call
from nnfast.kernels.cpu.specialise import kernel
from nnfast.kernels.cpu.steps import end_step

ROWS, SIZES = 130, (20, 48, 7)
OPTIMIZERS = {
    "sgd": 0, "momentum": 1, "adagrad": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "adamax": 2, "nadam": 2, "lion": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: 2)


class Training:
    """Two layers, cross-entropy and an optimizer on the contract alone; three batches of data."""

    def __init__(self, optimizer: str = "adam", dtype: Any = np.float32, extra: str = "") -> None:
        rng = np.random.default_rng(0)
        self.optimizer, self.extra = optimizer, extra
        inputs, hidden, outputs = SIZES
        ends = np.cumsum([0, inputs * hidden, hidden, hidden * outputs, outputs])
        self.param = (0.2 * rng.standard_normal(ends[-1])).astype(dtype)
        self.grad = np.zeros_like(self.param)
        self.slots = [np.zeros_like(self.param) for _ in range(OPTIMIZERS[optimizer])]
        shapes = [(inputs, hidden), (hidden,), (hidden, outputs), (outputs,)]
        self.W1, self.b1, self.W2, self.b2 = (
            self.param[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)
        )
        self.dW1, self.db1, self.dW2, self.db2 = (
            self.grad[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)
        )
        self.X = rng.standard_normal((3 * ROWS, inputs)).astype(dtype)
        self.y = rng.integers(0, outputs, 3 * ROWS)
        self.order = np.tile(rng.permutation(3 * ROWS), 10)
        self.x, self.h, self.dh = (np.zeros((ROWS, n), dtype) for n in (inputs, hidden, hidden))
        self.z, self.dz = np.zeros((2, ROWS, outputs), dtype)
        self.labels = np.zeros(ROWS, np.int64)
        self.average = self.param.copy()
        self.state, self.rates = np.zeros(S.SIZE), np.full(100, 1e-2)
        self.state[[S.P0, S.P1, S.P2, S.P3, S.P4, S.EMA_DECAY]] = 0.9, 0.999, 1e-8, 0.004, 1.0, 0.9

    def step(self, bk: Backend, rows: int = ROWS) -> None:
        x, h, z, dz, dh, labels = (a[:rows] for a in (self.x, self.h, self.z, self.dz, self.dh, self.labels))
        bk.begin_step(self.state, self.rates)
        bk.take_batch(self.X, self.order, self.state, out=x)
        bk.take_batch(self.y, self.order, self.state, out=labels)
        bk.linear_act(x, self.W1, self.b1, "relu", out=h)
        bk.linear_act(h, self.W2, self.b2, "identity", out=z)
        bk.softmax_xent(z, labels, None, self.state, dlogits=dz)
        bk.record_loss(self.state)
        bk.linear_act_grad(dz, h, self.W2, None, "identity", dx=dh, dW=self.dW2, db=self.db2)
        bk.linear_act_grad(dh, x, self.W1, h, "relu", dx=None, dW=self.dW1, db=self.db1)
        if self.extra == "clip":
            bk.clip_norm(self.grad, self.state, max_norm=1.0)
        if self.extra == "python":
            bk.python(lambda backend: None)
        self.update(bk)
        if self.extra == "average":
            bk.ema_step(self.average, self.param, self.state)
        bk.end_step(self.state, rows)

    def update(self, bk: Backend) -> None:
        arrays = (self.param, self.grad, *self.slots)
        match self.optimizer:
            case "sgd":
                bk.sgd_step(*arrays, None, self.state, nesterov=False)
            case "momentum":
                bk.sgd_step(*arrays, self.state, nesterov=True)
            case "adam" | "adamw":
                bk.adam_step(*arrays, self.state, decoupled=self.optimizer == "adamw")
            case "rmsprop":
                bk.rmsprop_step(*arrays, None, None, self.state)
            case name:
                getattr(bk, f"{name}_step")(*arrays, self.state)

    def everything(self) -> list[np.ndarray]:
        return [self.param, self.grad, *self.slots, self.state]


def assert_same(a: Training, b: Training) -> None:
    for one, other in zip(a.everything(), b.everything(), strict=True):
        np.testing.assert_array_equal(one, other)


def run(training: Training, steps: list[int]) -> NumbaReplay:
    replay = NumbaBackend().capture(training.step)
    for number in steps:
        replay.run(number)
    return replay


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_all_steps_at_once_are_the_steps_one_by_one(optimizer: str, dtype: Any) -> None:
    one_by_one, at_once = Training(optimizer, dtype), Training(optimizer, dtype)
    run(one_by_one, [1] * 21)
    replay = run(at_once, [20, 1])
    assert at_once.state[S.STEP] == 21
    assert replay.many is not replay.parts[0]
    assert_same(at_once, one_by_one)


def test_what_is_set_between_runs_counts() -> None:
    trainings = Training(), Training()
    for training, steps in zip(trainings, ([10], [1] * 10), strict=True):
        replay = run(training, steps)
        training.param *= 0.5
        training.slots[0][:] = 0.01
        for number in steps:
            replay.run(number)
    assert_same(*trainings)


@pytest.mark.parametrize("extra", ["clip", "average", "python"])
def test_where_something_else_needs_the_weights_there_are_no_copies(extra: str) -> None:
    one_by_one, at_once = Training(extra=extra), Training(extra=extra)
    run(one_by_one, [1] * 12)
    replay = run(at_once, [12])
    assert replay.many is (None if extra == "python" else replay.parts[0])
    assert_same(at_once, one_by_one)


@pytest.mark.parametrize(("name", "value"), [("OWN_ELEMENTS", 100), ("OWN_COPIES", 1), ("PARALLEL_NS", 1e9)])
def test_where_it_would_not_pay_there_are_no_copies(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    monkeypatch.setattr(tuning, name, value)
    replay = NumbaBackend().capture(Training().step)
    assert replay.many is replay.parts[0]


def test_a_step_that_is_not_finite_stops_all_of_them() -> None:
    one_by_one, at_once = Training(), Training()
    for training in (one_by_one, at_once):
        training.X[training.order[ROWS], 0] = np.nan  # in the second batch
    run(one_by_one, [1] * 10)
    run(at_once, [10])
    assert at_once.state[S.BAD_STEP] == 2
    np.testing.assert_array_equal(at_once.param, one_by_one.param)
    assert np.isfinite(at_once.param).all()


@pytest.mark.parametrize("full", [2, 10])
@pytest.mark.parametrize("rest", [0, 70, 3])
def test_epochs(full: int, rest: int) -> None:
    """Whole batches, a smaller one, and the end of the epoch, natively, against one step after the other."""
    trainings = Training(), Training()
    results = np.zeros((2, 3, 3))
    bk = NumbaBackend()
    parts = []
    for training, table in zip(trainings, results, strict=True):
        replays = [(bk.capture(training.step), full)]
        if rest:
            replays.append((bk.capture(lambda backend, t=training: t.step(backend, rest)), 1))
        end = bk.capture(lambda backend, t=training, to=table: backend.end_epoch(t.state, to))
        parts.append([*replays, (end, 1)])
    native = bk.chain(parts[0])
    for _ in range(2):
        trainings[0].state[S.ROW] = 0
        native.run()
    for _ in range(2):
        trainings[1].state[S.ROW] = 0
        for replay, times in parts[1]:
            for _ in range(times):
                replay.run()
    assert_same(*trainings)
    np.testing.assert_array_equal(*results)
    native.run(0)
    assert_same(*trainings)


def test_what_comes_once_comes_once() -> None:
    ticks = np.zeros((4, 1))

    def count(kind: int, when: str = "") -> Call:
        """Adds 1 to ticks[kind], by the step's own row counter."""
        return Call(kernel(end_step), np.array([ticks[kind:].ctypes.data - 8 * S.ROW]), np.ones(1), when=when)

    program = Program([count(0, "first"), count(1), count(2, "last")])
    assert program.segments.tolist() == [[0, 1, FIRST_RUN], [1, 2, 1], [2, 3, LAST_RUN]]
    program.run(5)
    np.testing.assert_array_equal(ticks[:, 0], [1, 5, 1, 0])
    plain = Program([count(3)])
    ticks[:] = 0
    Program.chain([(program, 4), (plain, 2)]).run(3)
    np.testing.assert_array_equal(ticks[:, 0], [3, 12, 3, 6])
    ticks[:] = 0
    outer = Program.chain([(plain, 2), (program, 4)], 1)
    outer.run(3)
    np.testing.assert_array_equal(ticks[:, 0], [1, 12, 1, 6])
    ticks[:] = 0
    Program.chain([(outer, 2), (plain, 1)]).run(2)
    np.testing.assert_array_equal(ticks[:, 0], [2, 16, 2, 10])
    ticks[:] = 0
    Program.chain([(program, 0), (plain, 1)]).run(2)
    np.testing.assert_array_equal(ticks[:, 0], [0, 0, 0, 2])


def test_a_program_of_a_plain_call_has_one_segment() -> None:
    x = np.zeros(3)
    assert Program([copy_call(x, x.copy())]).segments.tolist() == [[0, 1, 1]]
    assert Program([]).segments.shape == (0, 3)
