"""predict, predict_proba, predict_classes, evaluate and summary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend
from nnfast.plan import Plan
from nnfast.training import inference
from nnfast.training.data import EmptyDataError

from .helpers import assert_same, fit, network, problem


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.fixture
def model(backend: Backend) -> nf.Sequential:
    model = network(norm=True, dropout=0.5)
    fit(model, *problem(), epochs=2, device=backend)
    return model


@pytest.mark.parametrize("batch_size", [1, 7, 41, 1000, None])
def test_chunks_change_nothing(batch_size: int | None, model: nf.Sequential) -> None:
    X, _ = problem()
    whole = model.predict(X)
    np.testing.assert_allclose(model.predict(X, batch_size=batch_size), whole, rtol=1e-5, atol=1e-6)
    assert whole.dtype == np.float32


def test_memory_of_predict_is_bounded(model: nf.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    X, _ = problem()
    whole = model.predict(X)
    monkeypatch.setattr(inference, "_CHUNK_BYTES", 512)
    assert inference.chunk_rows(model, len(X), None) < 10
    np.testing.assert_allclose(model.predict(X), whole, rtol=1e-5, atol=1e-6)


def test_no_rows(model: nf.Sequential) -> None:
    empty = np.zeros((0, 4), np.float32)
    assert model.predict(empty).shape == (0, 3)
    assert model.predict_proba(empty).shape == (0, 3)
    assert model.predict_classes(empty).shape == (0,)
    with pytest.raises(EmptyDataError, match="no rows"):
        model.evaluate(empty, [])


def test_prediction_has_no_noise_and_leaves_no_trace(model: nf.Sequential) -> None:
    X, _ = problem()
    twin, before = model.copy(), X.copy()
    np.testing.assert_array_equal(model.predict(X), model.predict(X))
    assert_same(model, twin)
    np.testing.assert_array_equal(X, before)


def test_what_is_returned_is_the_callers(model: nf.Sequential) -> None:
    X, _ = problem()
    first = model.predict(X)
    kept = first.copy()
    model.predict(X[::-1])
    np.testing.assert_array_equal(first, kept)
    first[...] = 0
    np.testing.assert_array_equal(model.predict(X), kept)


def test_a_batch_like_the_last_one(model: nf.Sequential) -> None:
    """It takes a shorter way, on which nothing may be missed that another batch, or the model, brings."""
    X, y = problem()

    def check(rows: Any) -> None:
        expected = model.copy().predict(rows)
        for _ in range(3):
            np.testing.assert_allclose(model.predict(rows), expected, rtol=1e-6, atol=1e-7)

    check(X[:1])
    check(X[1:2])
    check(X[::-1][:1])
    check(X[:1].astype(np.float64))
    check(X[:1].astype(">f4"))
    check(X[:1].tolist())
    check(np.asfortranarray(X[:5]))
    check(X[:5])
    check(X[7:12].view(np.recarray))
    model.set_weights({name: 0.5 * value for name, value in model.get_weights().items()})
    check(X[:5])
    model.evaluate(X[:5], y[:5])
    check(X[:5])
    fit(model, X, y, device=model.parameters.backend)
    check(X[:5])
    fit(model, X, y, device=model.parameters.backend, dtype="float64")
    check(X[:5])
    model.predict(X[:5], device="numpy")
    check(X[:5])
    check(X[:5].astype(np.float64))
    for wrong in (X[:5, :3], X[0], X[:5].astype(str)):
        with pytest.raises((ValueError, TypeError)):
            model.predict(wrong)
    check(X[:5])
    model.build(3, seed=0)
    assert model.predict(X[:5, :3]).shape == (5, 3)


def test_rows_of_any_shape(backend: Backend) -> None:
    images = np.random.default_rng(0).random((10, 2, 3))
    model = nf.Sequential([nf.Dense(5, "relu"), nf.Flatten(), nf.Dense(2)])
    fit(model, images, np.arange(10) % 2, device=backend)
    assert model.predict(images).shape == (10, 2)
    sequence = nf.Sequential([nf.Dense(5, "tanh"), nf.LayerNorm(), nf.Dense(3)])
    fit(sequence, images, images, loss="mse", device=backend)
    assert sequence.predict(images[:4]).shape == (4, 2, 3)
    with pytest.raises(ValueError, match=r"\(10, 6\) does not fit the model, which takes \(n, 2, 3\)"):
        model.predict(images.reshape(10, 6))


# ---- from outputs to classes ---------------------------------------------------------------------------
def _fitted(loss: str, layers: list[nf.Layer], backend: Backend, **arguments: Any) -> tuple[nf.Sequential, Any, Any]:
    X, y = problem()
    y = y if loss == "cross_entropy" else y % 2
    model = nf.Sequential(layers)
    fit(model, X, y, loss=loss, epochs=10, optimizer=nf.Adam(0.05), device=backend, dtype="float64", **arguments)
    return model, X, y


def test_classes_of_logits(backend: Backend) -> None:
    model, X, _ = _fitted("cross_entropy", [nf.Dense(3)], backend)
    logits = model.predict(X)
    np.testing.assert_allclose(model.predict_proba(X), _softmax(logits), rtol=1e-12)
    np.testing.assert_array_equal(model.predict_classes(X), logits.argmax(axis=1))
    assert model.predict_classes(X).dtype == np.int64


def test_classes_of_one_logit(backend: Backend) -> None:
    model, X, _ = _fitted("binary_cross_entropy", [nf.Dense(1)], backend)
    logits = model.predict(X)
    np.testing.assert_allclose(model.predict_proba(X), _sigmoid(logits), rtol=1e-12)
    np.testing.assert_array_equal(model.predict_classes(X), logits[:, 0] > 0)
    assert len(np.unique(model.predict_classes(X))) == 2


def test_classes_of_a_margin(backend: Backend) -> None:
    model, X, _ = _fitted("hinge", [nf.Dense(1)], backend)
    np.testing.assert_array_equal(model.predict_classes(X), model.predict(X)[:, 0] > 0)
    np.testing.assert_array_equal(model.predict_proba(X), model.predict(X))


def test_classes_of_values(backend: Backend) -> None:
    model, X, _ = _fitted("mean_squared_error", [nf.Dense(1)], backend)
    np.testing.assert_array_equal(model.predict_classes(X), model.predict(X)[:, 0] > 0.5)


def test_rates(backend: Backend) -> None:
    model, X, _ = _fitted("poisson", [nf.Dense(1)], backend)
    np.testing.assert_allclose(model.predict_proba(X), np.exp(model.predict(X)), rtol=1e-12)


@pytest.mark.parametrize(
    ("loss", "units", "last"), [("cross_entropy", 3, "softmax"), ("binary_cross_entropy", 1, "sigmoid")]
)
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_a_model_may_end_in_its_probabilities(
    loss: str, units: int, last: str, hidden: bool, apart: bool, backend: Backend
) -> None:
    first: list[nf.Layer] = [nf.Dense(5, "tanh")] if hidden else []
    ending = [nf.Dense(units), nf.Activation(last)] if apart else [nf.Dense(units, last, initializer="glorot_uniform")]
    common = {"metrics": ["accuracy"], "validation_split": 0.2}
    one, X, y = _fitted(loss, [*first, *ending], backend, **common)
    other, _, _ = _fitted(loss, [*first, nf.Dense(units, initializer="glorot_uniform")], backend, **common)
    for name, value in other.get_weights().items():
        np.testing.assert_array_equal(one.get_weights()[name], value)
    np.testing.assert_allclose(one.predict(X), other.predict_proba(X), rtol=1e-12)
    np.testing.assert_allclose(one.predict_proba(X), one.predict(X), rtol=1e-12)
    np.testing.assert_array_equal(one.predict_classes(X), other.predict_classes(X))
    assert one.evaluate(X, y, metrics="accuracy") == other.evaluate(X, y, metrics="accuracy")


def test_a_model_of_nothing_but_probabilities(backend: Backend) -> None:
    model = nf.Sequential([nf.Activation("softmax")]).build(3)
    logits, labels = np.random.default_rng(0).standard_normal((5, 3)), np.array([0, 1, 2, 0, 1])
    proba = _softmax(logits)
    loss = model.evaluate(logits, labels, loss="cross_entropy", device=backend)["loss"]
    assert loss == pytest.approx(-np.log(proba[np.arange(5), labels]).mean(), rel=1e-5)
    np.testing.assert_allclose(model.predict(logits), proba, rtol=1e-5)


# ---- evaluate ------------------------------------------------------------------------------------------
def test_evaluate(model: nf.Sequential) -> None:
    X, y = problem()
    weight = np.linspace(0, 1, len(y))
    proba = model.predict_proba(X).astype(np.float64)
    losses = -np.log(proba[np.arange(len(y)), y])
    right = proba.argmax(axis=1) == y
    found = model.evaluate(X, y, metrics=["accuracy"])
    assert found == {"loss": pytest.approx(losses.mean(), rel=1e-5), "accuracy": pytest.approx(right.mean())}
    found = model.evaluate(X, y, metrics=["accuracy"], sample_weight=weight, batch_size=5)
    assert found["loss"] == pytest.approx((losses * weight).sum() / weight.sum(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((right * weight).sum() / weight.sum())


def test_evaluate_before_fit(backend: Backend) -> None:
    X, y = problem()
    model = network()
    with pytest.raises(TypeError, match="needs loss="):
        model.evaluate(X, y)
    with pytest.raises(nf.NotBuiltError, match="in_features"):
        model.evaluate(X, y, loss="cross_entropy")
    with pytest.raises(nf.NotBuiltError, match="in_features"):
        model.predict(X)
    model.build(4, seed=0)
    loss = model.evaluate(X, y, loss="cross_entropy", device=backend)["loss"]
    proba = _softmax(model.predict(X).astype(np.float64))
    assert loss == pytest.approx(-np.log(proba[np.arange(len(y)), y]).mean(), rel=1e-5)
    assert model.device == backend.device


# ---- build, summary ------------------------------------------------------------------------------------
def test_summary() -> None:
    with pytest.raises(nf.NotBuiltError, match="input size is not known"):
        network().summary()
    model = network(norm=True, dropout=0.25).build(4)
    text = str(model.summary(batch_size=16))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "layer output parameters"
    assert "input (n, 4)" in lines
    assert "dense Dense(units=6, activation='tanh') (n, 6) 30" in lines
    assert "batchnorm BatchNorm() (n, 6) 12" in lines
    assert "dropout Dropout(rate=0.25) (n, 6) 0" in lines
    assert "dense_1 Dense(units=3) (n, 3) 21" in lines
    assert lines[-1].startswith("63 parameters, float32")
    assert "16 rows" in lines[-1]
    assert model.summary(1000).plan_bytes > model.summary(10).plan_bytes
    assert repr(model.summary()) == str(model.summary())


def test_build_without_a_size_keeps_what_is_there() -> None:
    model = network()
    with pytest.raises(nf.NotBuiltError, match="build\\(in_shape\\)"):
        model.build()
    model.build(4, seed=0)
    before = model.get_flat_weights()
    with pytest.raises(nf.NotBuiltError):
        model.build()
    np.testing.assert_array_equal(model.get_flat_weights(), before)
    assert nf.Sequential([nf.Dense(2, in_features=3)]).build().in_shape == (3,)


def test_weights_in_and_out(model: nf.Sequential) -> None:
    X, _ = problem()
    weights, outputs = model.get_weights(), model.predict(X)
    model.set_flat_weights(np.zeros_like(model.get_flat_weights()))
    assert not model.predict(X).any()
    model.set_weights(weights)
    np.testing.assert_array_equal(model.predict(X), outputs)
    for broken, error in [
        ({}, ValueError),
        ({**weights, "more": 1}, ValueError),
        ({**weights, "dense.b": np.zeros(5)}, ValueError),
        ({**weights, "dense.b": np.full(6, np.inf)}, ValueError),
        ({**weights, "dense.b": ["a"] * 6}, TypeError),
    ]:
        with pytest.raises(error, match=r"dense|more"):
            model.set_weights(broken)
        np.testing.assert_array_equal(model.predict(X), outputs)


@pytest.mark.parametrize(
    "form", ["plain", "rows apart", "columns apart", "reversed", "float64", "integers", "read-only"]
)
@pytest.mark.parametrize("rows", [1, 300, 301])
def test_large_inputs_are_read_where_they_are(backend: Backend, form: str, rows: int) -> None:
    """Threads fetch them from the user's own array, whatever lies between its rows, or from a copy."""
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((rows, 200)).astype(np.float32)
    X = {
        "plain": lambda: whole[:, :100].copy(),
        "rows apart": lambda: whole[:, :100],
        "columns apart": lambda: whole[:, ::2],
        "reversed": lambda: whole[::-1, 100:],
        "float64": lambda: whole[:, :100].astype(np.float64),
        "integers": lambda: (whole[:, :100] * 10).astype(np.int64),
        "read-only": lambda: np.frombuffer(whole[:, :100].tobytes(), np.float32).reshape(rows, 100),
    }[form]()
    model = nf.Sequential([nf.Dense(7, "tanh"), nf.Dense(3)]).build(100, seed=0)
    W1, b1, W2, b2 = model.get_weights().values()
    wanted = np.tanh(X.astype(np.float32) @ W1 + b1) @ W2 + b2
    before = X.copy()
    for _ in range(3):  # the second and the third as the first was
        np.testing.assert_allclose(model.predict(X, device=backend), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(X, before)
    other = -X
    np.testing.assert_allclose(
        model.predict(other, device=backend), np.tanh(-X.astype(np.float32) @ W1 + b1) @ W2 + b2, rtol=1e-4, atol=1e-5
    )
    plan = model.plans._last[0] if model.plans._last else None
    if plan is not None:  # nothing of the user's is kept
        assert all(program._inputs is None for program in plan._programs.values())


def test_a_plan_that_is_fed(backend: Backend) -> None:
    """What is fed is copied: the array may change before the step."""
    model = nf.Sequential([nf.Dense(3)]).build(100, seed=0)
    model.place(backend)
    plan = Plan(model.built, model.parameters, 300)
    X = np.random.default_rng(0).standard_normal((300, 100)).astype(np.float32)
    wanted = model.predict(X)
    fed = X.copy()
    plan.feed(fed)
    fed[:] = 0
    plan.run(300)
    np.testing.assert_allclose(backend.to_numpy(plan.output(300)), wanted, rtol=1e-5, atol=1e-6)
