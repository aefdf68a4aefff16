"""scikit-learn's networks, in and out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.interop import sklearn as interop

pytest.importorskip("sklearn")
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor

RNG = np.random.default_rng(0)
X = RNG.standard_normal((80, 5))
WORDS = np.array(["ant", "bee", "cat"])
TARGETS: dict[str, Any] = {
    "classes": WORDS[RNG.integers(0, 3, 80)],
    "two classes": RNG.integers(0, 2, 80) * 3 + 4,
    "yes or no each": RNG.integers(0, 2, (80, 4)),
    "a number": X[:, 0] * 2 + 1,
    "numbers": X[:, :2] @ [[1.0, 2.0], [3.0, -1.0]],
}
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def fitted(target: str, **options: Any) -> Any:
    kind = MLPRegressor if "number" in target else MLPClassifier
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kind(hidden_layer_sizes=(6, 7), max_iter=5, random_state=0, **options).fit(X, TARGETS[target])


def predicted(model: nf.Sequential, target: str) -> np.ndarray:
    if "number" in target:
        return model.predict(X, device="numpy")
    return model.predict_proba(X, device="numpy")


def expected_of(estimator: Any, target: str) -> np.ndarray:
    if "number" in target:
        return estimator.predict(X).reshape(len(X), -1)
    proba = estimator.predict_proba(X)
    return proba[:, 1:] if target == "two classes" else proba


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("target", TARGETS)
def test_there_and_back(target: str, activation: str) -> None:
    estimator = fitted(target, activation=activation)
    model = nf.interop.sklearn.from_sklearn(estimator)
    assert model.dtype == np.float64
    np.testing.assert_allclose(predicted(model, target), expected_of(estimator, target), **CLOSE)
    if target == "yes or no each":
        return  # several labels a row
    labels = None if "number" in target else estimator.classes_
    again = interop.to_sklearn(model, labels)
    assert type(again) is type(estimator)
    assert (again.activation, again.out_activation_, again.hidden_layer_sizes) == (
        estimator.activation, estimator.out_activation_, (6, 7),
    )  # fmt: skip
    np.testing.assert_array_equal(again.predict(X), estimator.predict(X))
    for ours, theirs in zip(again.coefs_ + again.intercepts_, estimator.coefs_ + estimator.intercepts_, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # and goes on
    before = again.coefs_[0].copy()
    again.partial_fit(X, TARGETS[target])
    assert (again.coefs_[0] != before).any()
    again.set_params(warm_start=True, max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        again.fit(X, TARGETS[target])


def test_float32_and_a_single_layer() -> None:
    estimator = MLPRegressor(hidden_layer_sizes=(), max_iter=300, random_state=0, learning_rate_init=0.1).fit(
        X.astype(np.float32), TARGETS["a number"]
    )
    model = interop.from_sklearn(estimator)
    assert (model.dtype, len(model.layers)) == (np.float32, 1)
    np.testing.assert_allclose(model.predict(X)[:, 0], estimator.predict(X), rtol=1e-4, atol=1e-4)


def test_poisson_rates() -> None:
    if "loss" not in MLPRegressor().get_params():
        pytest.skip("this scikit-learn has no Poisson loss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator = MLPRegressor(hidden_layer_sizes=(6,), loss="poisson", max_iter=5, random_state=0)
        estimator.fit(X, RNG.integers(0, 9, 80))
    model = interop.from_sklearn(estimator)
    np.testing.assert_allclose(model.predict_proba(X)[:, 0], estimator.predict(X), **CLOSE)
    np.testing.assert_allclose(interop.to_sklearn(model).predict(X), estimator.predict(X), **CLOSE)


@pytest.mark.parametrize("last", [None, "softmax"])
def test_a_model_that_nnfast_trained(last: str | None) -> None:
    y = RNG.integers(0, 3, 80)
    model = nf.Sequential([nf.Dense(6, "tanh"), nf.Dense(3, last)])
    model.fit(X, y, loss="cross_entropy", epochs=3, device="numpy", verbose=0, dtype="float64", seed=0)
    estimator = interop.to_sklearn(model, WORDS)
    np.testing.assert_allclose(estimator.predict_proba(X), model.predict_proba(X), **CLOSE)
    assert estimator.predict(X).tolist() == WORDS[model.predict_classes(X)].tolist()
    assert interop.to_sklearn(model).classes_.tolist() == [0, 1, 2]
    assert estimator.n_iter_ == 3


def test_training_goes_on_in_nnfast() -> None:
    estimator = fitted("two classes")
    model = interop.from_sklearn(estimator)
    y = (TARGETS["two classes"] == 7).astype(float)[:, None]
    first = model.evaluate(X, y)["loss"]
    model.fit(X, y, loss="binary_cross_entropy", optimizer=nf.Adam(1e-2), epochs=30, device="numpy", verbose=0, seed=0)
    assert model.evaluate(X, y)["loss"] < first


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="got LogisticRegression"):
        interop.from_sklearn(LogisticRegression())  # type: ignore[arg-type]
    with pytest.raises(NotFittedError):
        interop.from_sklearn(MLPClassifier())


def built(*layers: nf.Layer, loss: Any = "cross_entropy") -> nf.Sequential:
    model = nf.Sequential(list(layers)).build(4)
    model.loss = None if loss is None else nf.losses.get(loss)
    return model


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [
        (built(nf.Dense(3), loss=None), None, "the model has no loss"),
        (built(nf.Dense(3, bias=False)), None, r"layer 0 \(dense\): scikit-learn has no Dense"),
        (built(nf.Dense(5, "gelu"), nf.Dense(3)), None, r"layer 0 \(dense\): scikit-learn has no gelu"),
        (built(nf.Dense(5, "relu"), nf.Dense(5, "tanh"), nf.Dense(3)), None, "one activation .* not relu, tanh"),
        (built(nf.Dense(5), nf.BatchNorm(), nf.Dense(3)), None, r"layer 1 \(batchnorm\)"),
        (built(nf.Dense(3, "tanh")), None, r"outputs have no tanh"),
        (built(nf.Dense(3)), ["a", "b"], r"the model has 3 classes, got the labels \['a', 'b'\]"),
        (built(nf.Dense(3)), ["b", "a", "c"], "sorted order"),
        (built(nf.Dense(1), loss="hinge"), None, "no classifier with the loss hinge"),
        (built(nf.Dense(1), loss="mse"), [0, 1], "MeanSquaredError is no loss of classes"),
    ],
)  # fmt: skip
def test_models_that_it_has_not(model: nf.Sequential, classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interop.to_sklearn(model, classes)
