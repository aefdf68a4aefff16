"""The bias gradient of a last layer comes with the loss, in a recorded step; and only where it is that gradient's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.kernels import step_state as S
from tests.cuda.emulator import EmulatedBackend, emulated_backend


@pytest.fixture
def bk() -> EmulatedBackend:
    return emulated_backend()


class Last:
    """A last layer, and its loss, at one size."""

    def __init__(self, bk: EmulatedBackend, rows: int = 37, classes: int = 5, dtype: Any = np.float32) -> None:
        rng = np.random.default_rng(0)
        full = np.float64 if dtype == np.float64 else np.float32

        def put(*shape: int, kind: Any = dtype) -> Any:
            return bk.asarray(rng.standard_normal(shape).astype(kind))

        self.x, self.W, self.b = put(rows, 4), put(4, classes), put(classes)
        self.z, self.dz = bk.zeros((rows, classes), dtype), bk.zeros((rows, classes), dtype)
        self.dx, self.dW, self.db = put(rows, 4), put(4, classes, kind=full), put(classes, kind=full)
        self.labels = bk.asarray(rng.integers(0, classes, rows))
        self.weight = bk.asarray(rng.random(rows).astype(full))
        self.state = bk.zeros(S.SIZE, np.float64)

    def loss(self, bk: Any) -> None:
        bk.linear_act(self.x, self.W, self.b, "identity", out=self.z)
        bk.softmax_xent(self.z, self.labels, self.weight, self.state, smoothing=0.1, dlogits=self.dz)
        bk.record_loss(self.state)

    def backward(self, bk: Any) -> None:
        bk.linear_act_grad(self.dz, self.x, self.W, None, "identity", dx=self.dx, dW=self.dW, db=self.db)

    def step(self, bk: Any) -> None:
        self.loss(bk)
        self.backward(bk)


def kernels(bk: EmulatedBackend, step: Any) -> list[str]:
    """Names of the kernels of a recorded step."""
    replay = bk.capture(step)
    bk.counts.reset()
    replay.run()
    return [name.partition("<")[0] for name in bk.counts.kernels]


@pytest.mark.parametrize("rows", [1, 8, 37, 300])
@pytest.mark.parametrize("classes", [2, 10, 32, 33, 100, 257, 1032, 2056])  # the last two: more than a block holds
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_sums_are_those_of_the_gradient(bk: EmulatedBackend, rows: int, classes: int, dtype: str) -> None:
    last = Last(bk, rows, classes, np.dtype(dtype))
    done = kernels(bk, last.step)
    assert "act_grad_bias" not in done
    assert done.count("column_finish") == 1
    dz = bk.to_numpy(last.dz).astype(np.float64)
    np.testing.assert_allclose(bk.to_numpy(last.db), dz.sum(0), rtol=1e-5, atol=1e-7)


def test_rows_are_not_held_for_sums_that_nobody_takes(bk: EmulatedBackend) -> None:
    """Without a gradient there is nothing to sum up."""
    last = Last(bk, 50, 33)

    def evaluate(bk: Any) -> None:
        bk.softmax_xent(last.z, last.labels, None, last.state, dlogits=None)

    kernels(bk, evaluate)
    assert bk._recording.sums is None
    assert not any(use.startswith("loss") for _, _, use in bk._work)


def test_outside_of_a_recorded_step(bk: EmulatedBackend) -> None:
    last = Last(bk)
    last.step(bk)
    np.testing.assert_allclose(bk.to_numpy(last.db), bk.to_numpy(last.dz).sum(0), rtol=1e-5, atol=1e-6)
    assert bk._recording.sums is None


@pytest.mark.parametrize("between", ["fill", "clip_value", "python"])
def test_not_after_something_that_may_write(bk: EmulatedBackend, between: str) -> None:
    last = Last(bk)

    def step(bk: Any) -> None:
        last.loss(bk)
        if between == "fill":
            bk.fill(last.dz, 0.25)
        elif between == "clip_value":
            bk.clip_value(last.dz, limit=0.01)
        else:
            bk.python(lambda backend: backend.fill(last.dz, 0.25))
        last.backward(bk)

    bk.capture(step).run()
    np.testing.assert_allclose(bk.to_numpy(last.db), bk.to_numpy(last.dz).sum(0), rtol=1e-4, atol=1e-6)


def test_not_for_another_gradient(bk: EmulatedBackend) -> None:
    """The array of the loss's gradient holds another one by the time a second layer takes its sums."""
    last = Last(bk, 20, 4)
    other = bk.zeros((20, 4), np.float32)
    db = bk.zeros(4, np.float32)

    def step(bk: Any) -> None:
        last.loss(bk)
        bk.linear_act_grad(last.dz, last.x, last.W, None, "identity", dx=other, dW=last.dW, db=last.db)
        bk.linear_act_grad(other, last.x, last.W, None, "identity", dx=last.dz, dW=last.dW, db=last.db)
        bk.linear_act_grad(last.dz, last.x, last.W, None, "identity", dx=None, dW=last.dW, db=db)

    bk.capture(step).run()
    np.testing.assert_allclose(bk.to_numpy(db), bk.to_numpy(last.dz).sum(0), rtol=1e-4, atol=1e-6)


def test_a_training(bk: EmulatedBackend) -> None:
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((70, 6)).astype(np.float32), rng.integers(0, 6, 70)
    found = []
    for device in (bk, "numpy"):
        model = nf.Sequential([nf.Dense(6, "relu"), nf.Dense(6), nf.Dense(6)])
        model.fit(X, y, loss="cross_entropy", epochs=3, batch_size=32, device=device, seed=0, verbose=0)
        found.append(model.predict(X))
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-5)
