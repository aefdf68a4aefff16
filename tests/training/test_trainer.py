"""Trainer: the steps of fit, one by one, for loops of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend
from nnfast.training.data import EmptyDataError

from .helpers import assert_same, differs, everything, fit, network, problem


def _loop(trainer: nf.Trainer, X: np.ndarray, y: np.ndarray, epochs: int, *weight: np.ndarray) -> list[float]:
    return [
        trainer.step(*(a[start : start + 8] for a in (X, y, *weight)))
        for _ in range(epochs)
        for start in range(0, len(X), 8)
    ]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "nadam", "sgd"])
def test_steps_equal_fit(optimizer: str, weighted: bool, backend: Backend) -> None:
    X, y = problem()
    weight = [np.linspace(0.5, 2, len(y))] if weighted else []
    one, other = network(dropout=0.3, norm=True), network(dropout=0.3, norm=True)
    losses: list[float] = []

    class Watch(nf.Callback):
        def on_step_end(self, step: int, logs: dict[str, float]) -> None:
            losses.append(logs["loss"])

    fit(
        one, X, y, epochs=2, optimizer=optimizer, shuffle=False, device=backend, callbacks=[Watch()],
        sample_weight=weight[0] if weight else None,
    )  # fmt: skip
    trainer = nf.Trainer(other, "cross_entropy", optimizer, device=backend, seed=3)
    assert trainer.steps == 0
    assert _loop(trainer, X, y, 2, *weight) == losses
    assert trainer.steps == len(losses) == 12
    other.training_state.epoch = 2  # epochs are the loop's own affair
    assert_same(one, other)


def test_the_loss_is_that_before_the_update(backend: Backend) -> None:
    X, y = problem()
    model = network().build(4, seed=0)
    before = model.evaluate(X, y, loss="cross_entropy", device=backend)["loss"]
    trainer = nf.Trainer(model, "cross_entropy", nf.SGD(0.1), device=backend)
    assert trainer.step(X, y) == pytest.approx(before, rel=1e-6)
    assert trainer.step(X, y) < before


def test_batches_of_all_sizes(backend: Backend) -> None:
    X, y = problem()
    trainer = nf.Trainer(network(), "cross_entropy", device=backend, batch_size=20, seed=0)
    for rows in (3, 20, 1, 7, 2, 11, 5, 13, 17, 19, 3, 20):
        assert np.isfinite(trainer.step(X[:rows], y[:rows]))
    with pytest.raises(ValueError, match="21 rows, batch_size is 20"):
        trainer.step(X[:21], y[:21])
    assert trainer.steps == 12


def test_the_first_batch_says_the_size() -> None:
    X, y = problem()
    trainer = nf.Trainer(network(), "cross_entropy", device="numpy")
    trainer.step(X[:4], y[:4])
    with pytest.raises(ValueError, match="5 rows, batch_size is 4"):
        trainer.step(X[:5], y[:5])


def test_inputs_of_all_kinds(backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    X, y = problem()
    models = [network() for _ in range(3)]
    batches: list[Any] = [(X, y), (torch.tensor(X), torch.tensor(y)), (X.tolist(), y.tolist())]
    losses = [
        nf.Trainer(model, "cross_entropy", device=backend, seed=0).step(*batch)
        for model, batch in zip(models, batches, strict=True)
    ]
    assert len(set(losses)) == 1
    assert_same(models[0], models[1])
    assert_same(models[0], models[2])


# ---- errors --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("xb", "yb", "weight", "error", "message"),
    [
        (np.ones((2, 4)), [0, 1, 2], None, ValueError, "xb has 2 rows, yb has 3"),
        (np.ones((0, 4)), [], None, EmptyDataError, "no rows"),
        (np.ones(4), [0], None, ValueError, "row axis"),
        (np.ones((2, 5)), [0, 1], None, ValueError, r"\(2, 5\) does not fit the model, which takes \(n, 4\)"),
        (np.full((2, 4), np.nan), [0, 1], None, ValueError, "xb contains nan"),
        (np.full((2, 4), 1e300), [0, 1], None, ValueError, "finite as float32"),
        (np.full((2, 4), "a"), [0, 1], None, TypeError, "real numbers"),
        (np.ones((2, 4)), [0, 3], None, ValueError, r"0\.\.2"),
        (np.ones((2, 4)), [0, 0.5], None, ValueError, "whole numbers"),
        (np.ones((2, 4)), [[1, 0, 0], [0, 1, 0]], None, ValueError, "array of shape"),
        (np.ones((2, 4)), [0, 1], [1, 1], ValueError, "every step brings sample_weight"),
    ],
)
def test_a_batch_that_does_not_fit_changes_nothing(
    xb: Any, yb: Any, weight: Any, error: type[Exception], message: str
) -> None:
    X, y = problem()
    model = network()
    trainer = nf.Trainer(model, "cross_entropy", device="numpy", seed=0)
    trainer.step(X, y)
    before = everything(model)
    with pytest.raises(error, match=message):
        trainer.step(xb, yb, weight)
    assert not differs(before, everything(model))
    assert trainer.steps == 1
    assert np.isfinite(trainer.step(X, y))


def test_a_bad_first_batch_leaves_the_model_unbuilt() -> None:
    X, y = problem()
    model = network()
    trainer = nf.Trainer(model, "cross_entropy", device="numpy")
    for broken in ((X, y + 1), (np.full_like(X, np.inf), y), (X[:, 0], y), (X, y[1:])):
        with pytest.raises(ValueError, match=r"0\.\.2|inf|row axis|41 rows, yb has 40"):
            trainer.step(*broken)
        assert not model.is_built
    trainer.step(X, y)


def test_weights_must_come_with_every_step(backend: Backend) -> None:
    X, y = problem()
    trainer = nf.Trainer(network(), "cross_entropy", device=backend)
    trainer.step(X, y, np.ones(41))
    with pytest.raises(ValueError, match="every step brings sample_weight, or none"):
        trainer.step(X, y)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_step_that_is_not_finite_raises_once(backend: Backend) -> None:
    X, _ = problem()
    target = X[:, :1] * 2
    one, other = network(classes=1).build(4, seed=0), network(classes=1).build(4, seed=0)
    trainers = [nf.Trainer(model, "mse", "adam", device=backend, batch_size=41) for model in (one, other)]
    for trainer in trainers:
        trainer.step(X, target)
    before = everything(one)
    with pytest.raises(nf.NonFiniteError, match="step 2") as caught:
        trainers[0].step(X, np.full_like(target, 3e38))
    assert caught.value.step == 2
    assert not differs(before, everything(one))
    assert trainers[0].steps == 1
    for trainer in trainers:
        trainer.step(X, target)
    assert_same(one, other)  # as if the bad batch had never been


# ---- beside fit ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ["steps then fit", "fit then steps", "steps, fit, steps"])
def test_steps_and_fits_take_turns(order: str, backend: Backend) -> None:
    X, y = problem()
    one, other = network(dropout=0.3).build(4, seed=3), network(dropout=0.3).build(4, seed=3)
    optimizer = nf.NAdam(lambda step: 0.05 / (1 + step))
    trainer = nf.Trainer(one, "cross_entropy", optimizer, device=backend)
    for turn in order.replace(",", "").split():
        if turn == "steps":
            _loop(trainer, X, y, 1)
            one.training_state.epoch += 1
        elif turn == "fit":
            fit(one, X, y, shuffle=False, optimizer=optimizer, device=backend)
    fit(other, X, y, epochs=one.training_state.epoch, shuffle=False, optimizer=optimizer, device=backend)
    assert_same(one, other)


def test_another_optimizer_in_between(backend: Backend) -> None:
    X, y = problem()
    model, twin = network().build(4, seed=0), network().build(4, seed=0)
    trainer = nf.Trainer(model, "cross_entropy", "adam", device=backend)
    trainer.step(X, y)
    fit(model, X, y, optimizer="rmsprop", device=backend)
    twin.set_weights(model.get_weights())
    trainer.step(X, y)
    nf.Trainer(twin, "cross_entropy", "adam", device=backend).step(X, y)  # fresh moments: Adam was put aside
    for name, value in everything(twin).items():
        np.testing.assert_array_equal(everything(model)[name], value)


def test_a_model_that_is_built_anew(backend: Backend) -> None:
    X, y = problem()
    model = network().build(4, seed=0)
    trainer = nf.Trainer(model, "cross_entropy", device=backend)
    first = [trainer.step(X, y) for _ in range(3)]
    model.build(4, seed=0)
    assert [trainer.step(X, y) for _ in range(3)] == first


def test_schedules_in_epochs_know_the_lengths(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    model = nf.Sequential([nf.Dense(1)])
    rates = nf.optimizers.schedules.get("step", base_lr=0.1)
    trainer = nf.Trainer(model, "mean_squared_error", nf.SGD(rates), device=backend, steps_per_epoch=2, seed=0)
    for _ in range(3):
        trainer.step(rng.standard_normal((4, 2)), rng.standard_normal((4, 1)))
    assert trainer.steps == 3
