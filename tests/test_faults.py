"""Data and numbers that go wrong: a clear error before anything has changed, and the last good weights after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend
from nnfast.training.data import EmptyDataError

from .training.helpers import assert_same, differs, everything, fit, network, problem

X, y = problem()


def _with(array: np.ndarray, place: Any, value: float) -> np.ndarray:
    array = np.array(array, np.float64)
    array[place] = value
    return array


def _regression(**arguments: Any) -> dict[str, Any]:
    return {"loss": "mean_squared_error", **arguments}


# X, y, arguments of fit, what is raised, what it says
FAULTS: dict[str, tuple[Any, Any, dict[str, Any], type[Exception], str]] = {
    "NaN in X": (_with(X, (7, 2), np.nan), y, {}, ValueError, "X contains nan at row 7, column 2"),
    "infinity in X": (_with(X, (40, 0), -np.inf), y, {}, ValueError, "X contains -inf at row 40, column 0"),
    "too large for float32": (_with(X, (3, 1), 1e39), y, {}, ValueError, r"1e\+39 at row 3.*float32"),
    "NaN in images": (
        _with(np.zeros((4, 2, 3)), (1, 0, 2), np.nan), [0, 1, 2, 0], {}, ValueError, "row 1, column 0, 2",
    ),
    "NaN in y": (X, _with(X[:, :3], (5, 1), np.nan), _regression(), ValueError, "NaN or infinity.*row 5"),
    "infinity in y": (X, _with(X[:, :3], (6, 2), np.inf), _regression(), ValueError, "NaN or infinity.*row 6"),
    "y too large for float32": (X, _with(X[:, :3], (8, 0), 1e39), _regression(), ValueError, "float32, first in row 8"),
    "NaN among labels": (X, _with(y, 4, np.nan), {}, ValueError, "whole numbers, row 4 has nan"),
    "NaN in weights": (X, y, {"sample_weight": _with(y, 9, np.nan)}, ValueError, "sample_weight contains nan"),
    "infinity in weights": (X, y, {"sample_weight": _with(y, 9, np.inf)}, ValueError, "sample_weight contains inf"),
    "negative weight": (X, y, {"sample_weight": _with(y, 9, -1)}, ValueError, "row 9 has -1"),
    "no weight": (X, y, {"sample_weight": np.zeros(41)}, ValueError, "zero for every row"),
    "number of weights": (X, y, {"sample_weight": np.ones(40)}, ValueError, r"\(41,\), got \(40,\)"),
    "shape of weights": (X, y, {"sample_weight": np.ones((41, 1))}, ValueError, r"\(41,\), got \(41, 1\)"),
    "lengths": (X, y[:40], {}, ValueError, "X has 41 rows, y has 40"),
    "one axis": (X[:, 0], y, {}, ValueError, r"its shape is \(41,\); use X.reshape"),
    "a number": (5.0, y, {}, ValueError, "single number"),
    "ragged": ([[1.0, 2.0], [3.0]], [0, 1], {}, ValueError, "not a rectangular array"),
    "no y": (X, None, {}, TypeError, "y is missing"),
    "targets of another width": (X, np.ones((41, 2)), {}, ValueError, r"\(41, 2\) are neither \(n,\) nor \(n, 3\)"),
    "targets of another shape": (X, np.ones((41, 2)), _regression(), ValueError, r"\(41, 2\).*\(n, 3\)"),
    "objects": (X.astype(object), y, {}, TypeError, "real numbers, not dtype object"),
    "text": (X.astype(str), y, {}, TypeError, "real numbers, not dtype <U"),
    "complex": (X.astype(complex), y, {}, TypeError, "real numbers, not dtype complex"),
    "dates": (X.astype("M8[s]"), y, {}, TypeError, "real numbers, not dtype datetime"),
    "a mapping": ({"a": 1}, y, {}, TypeError, "not dict"),
    "nothing": (None, y, {}, TypeError, "not NoneType"),
    "text labels": (X, np.array(["a"] * 41), {}, TypeError, "y must hold real numbers"),
    "object labels": (X, y.astype(object), {}, TypeError, "y must hold real numbers"),
    "complex targets": (X, X[:, :3] + 1j, _regression(), TypeError, "y must hold real numbers"),
    "text weights": (X, y, {"sample_weight": ["a"] * 41}, TypeError, "sample_weight must hold real numbers"),
    "masked": (np.ma.masked_less(X, 0), y, {}, ValueError, "masked"),
    "negative label": (X, np.where(y == 2, -1, y), {}, ValueError, r"must be in 0\.\.2, row \d+ has -1"),
    "label out of range": (X, y + 1, {}, ValueError, r"must be in 0\.\.2, row \d+ has 3"),
    "huge label": (X, np.where(y == 2, 2**63 - 1, y), {}, ValueError, r"must be in 0\.\.2"),
    "unsigned label": (X, np.where(y == 2, 2**64 - 1, y).astype(np.uint64), {}, ValueError, r"must be in 0\.\.2"),
    "fractional label": (X, y + 0.5, {}, ValueError, "whole numbers"),
    "negative soft target": (X, -np.ones((41, 3)), {}, ValueError, "must not be negative"),
    "binary targets": (X, np.full((41, 3), 2), {"loss": "binary_cross_entropy"}, ValueError, r"\[0, 1\], row 0 has 2"),
    "hinge targets": (X, np.full((41, 3), 2), {"loss": "hinge"}, ValueError, "-1 and 1"),
    "counts": (X, -np.ones((41, 3)), {"loss": "poisson"}, ValueError, "must not be negative"),
    "no rows": (X[:0], y[:0], {}, EmptyDataError, "nothing to train on"),
    "no features": (X[:, :0], y, {}, ValueError, "at least 1|feature"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fit_that_fails_leaves_no_trace(fault: str, backend: Backend) -> None:
    inputs, targets, arguments, error, message = FAULTS[fault]
    images = fault == "NaN in images"
    unbuilt = nf.Sequential([nf.Flatten(), *network().layers]) if images else network()
    with pytest.raises(error, match=message):
        fit(unbuilt, inputs, targets, device=backend, **arguments)
    assert not unbuilt.is_built
    assert unbuilt.loss is None
    if images or fault == "no features":
        return
    model = network(norm=True)
    fit(model, X, y, epochs=2, device=backend)
    twin, state = model.copy(), model.training_state.config()
    with pytest.raises(error, match=message):
        fit(model, inputs, targets, device=backend, **{"seed": 99, **arguments})
    assert_same(model, twin)
    assert model.training_state.config() == state
    fit(model, X, y, device=backend)
    fit(twin, X, y, device=backend)
    assert_same(model, twin)


@pytest.mark.parametrize("shape", [(41, 3), (41, 5), (41, 4, 1), (41, 2, 2)])
def test_a_model_is_not_trained_on_another_shape(shape: tuple[int, ...], backend: Backend) -> None:
    model = network().build(4, seed=0)
    for use in (
        lambda wrong: fit(model, wrong, y, device=backend),
        lambda wrong: model.predict(wrong, device=backend),
        lambda wrong: model.evaluate(wrong, y, loss="cross_entropy", device=backend),
    ):
        with pytest.raises(ValueError, match=r"shape \(41, .*does not fit the model, which takes \(n, 4\)"):
            use(np.zeros(shape, np.float32))


def test_layers_that_do_not_fit_each_other() -> None:
    model = nf.Sequential([nf.Dense(6), nf.Dense(3, in_features=5)])
    with pytest.raises(ValueError, match=r"layer 1 \(dense_1\).*in_features=5.*6 features"):
        fit(model, X, y, device="numpy")
    assert not model.is_built


# ---- numbers that grow beyond all bounds ---------------------------------------------------------------
_overflows = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@_overflows
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "nadam", "rmsprop", "adagrad", "adamax", "adamw", "lion"])
@pytest.mark.parametrize("bad", [1, 4])
def test_the_weights_are_those_from_before_the_step(bad: int, optimizer: str, streamed: bool, backend: Backend) -> None:
    """Finite data, whose squared error is not: everything is as if training had ended one step earlier."""
    targets = X[:, :1].copy()
    targets[8 * bad - 2] = 3e38
    layers = lambda: nf.Sequential([nf.Dense(6, "tanh"), nf.BatchNorm(), nf.Dropout(0.2), nf.Dense(1)])  # noqa: E731
    model, twin = layers().build(4, seed=3), layers().build(4, seed=3)
    make = {"optimizer": nf.optimizers.get(optimizer, ema=0.9), "loss": "mse", "device": backend}
    batches = [(X[i : i + 8], targets[i : i + 8]) for i in range(0, 41, 8)]
    with pytest.raises(nf.NonFiniteError, match=f"at step {bad} ") as caught:
        fit(model, *((batches,) if streamed else (X, targets)), shuffle=False, epochs=3, **make)
    assert caught.value.step == bad
    assert isinstance(caught.value, ArithmeticError)
    if bad > 1:
        fit(twin, batches[: bad - 1], **make)
        twin.training_state.epoch = 0
        assert_same(model, twin)
    else:
        assert not differs(twin.get_weights(), model.get_weights())
    assert model.training_state.step == bad - 1
    assert np.isfinite(model.predict(X)).all()
    fit(model, X, X[:, :1], **make)  # and on it goes
    assert model.training_state.step == bad - 1 + 6


@_overflows
def test_a_learning_rate_that_is_too_large(backend: Backend) -> None:
    model = network(classes=1)
    with pytest.raises(nf.NonFiniteError, match=r"step \d+ \(learning rate 1e\+06\).*smaller learning rate") as caught:
        fit(model, X, X[:, 0], loss="mse", optimizer=nf.SGD(1e6), epochs=100, device=backend)
    assert caught.value.step > 1
    assert all(np.isfinite(array).all() for array in everything(model).values())


@_overflows
def test_an_update_that_overflows(backend: Backend) -> None:
    """The loss is finite, the updated weights would not be: no weight becomes infinite, and fit says so."""
    model = nf.Sequential([nf.Dense(3)])
    with pytest.raises(nf.NonFiniteError) as caught:
        fit(model, 1e4 * X, y, optimizer=nf.SGD(1e36), device=backend)
    assert caught.value.step in (1, 2)
    assert all(np.isfinite(array).all() for array in everything(model).values())


@_overflows
@pytest.mark.parametrize("where", ["value", "gradient"])
def test_a_loss_of_the_users_own_that_is_not_finite(where: str, backend: Backend) -> None:
    class Broken(nf.Loss):
        def value(self, y_pred: Any, y_true: Any) -> Any:
            return (y_pred - y_true) ** 2 * (np.nan if where == "value" else 1.0)

        def gradient(self, y_pred: Any, y_true: Any) -> Any:
            return 2 * (y_pred - y_true) * (np.nan if where == "gradient" else 1.0)

    model = network(classes=1).build(4, seed=0)
    before = model.get_weights()
    with pytest.raises(nf.NonFiniteError, match="step 1"):
        fit(model, X, X[:, 0], loss=Broken(), device=backend)
    assert not differs(before, model.get_weights())


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("value", lambda p: p.sum(), r"value must have shape \(8,\) or \(8, 1\), it has \(\)"),
        ("gradient", lambda p: p[:, 0], r"gradient must have shape \(8, 1\), it has \(8,\)"),
    ],
)
def test_a_loss_of_the_users_own_with_another_shape(
    method: str, result: Callable[[Any], Any], message: str, backend: Backend
) -> None:
    class Broken(nf.Loss):
        def value(self, y_pred: Any, y_true: Any) -> Any:
            return result(y_pred) if method == "value" else (y_pred - y_true) ** 2

        def gradient(self, y_pred: Any, y_true: Any) -> Any:
            return result(y_pred) if method == "gradient" else 2 * (y_pred - y_true)

    model = network(classes=1).build(4, seed=0)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(model, X, X[:, 0], loss=Broken(), device=backend)
    assert not differs(before, model.get_weights())


def test_validation_that_is_not_finite_is_reported_not_raised(backend: Backend) -> None:
    targets = _with(X[:, :1], 0, 3e38)
    history = fit(network(classes=1), X, X[:, 0], loss="mse", device=backend, validation_data=(X, targets), epochs=2)
    assert np.isnan(history["val_loss"]).all()
    assert np.isfinite(history["loss"]).all()
