"""What fit does with its arguments: validation, shuffling, weights, metrics, and what it reports."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast import random
from nnfast.backends.base import Backend
from nnfast.training import data

from .helpers import assert_same, differs, everything, fit, network, problem


# ---- validation ----------------------------------------------------------------------------------------
def test_validation_data_are_evaluated_and_not_trained_on(backend: Backend) -> None:
    X, y = problem()
    one, other = network(), network()
    history = fit(one, X[:30], y[:30], epochs=3, device=backend, metrics=["accuracy"], validation_data=(X[30:], y[30:]))
    fit(other, X[:30], y[:30], epochs=3, device=backend)
    assert_same(one, other)
    scores = other.evaluate(X[30:], y[30:], metrics=["accuracy"])
    assert history["val_loss"][-1] == scores["loss"]
    assert history["val_accuracy"][-1] == scores["accuracy"]


def test_validation_split_is_random_seeded_and_never_trained_on(backend: Backend) -> None:
    X, y = problem()
    rows, held = data.split(len(X), 0.25, 3)
    assert len(held) == 10
    assert sorted([*rows, *held]) == list(range(41))
    assert held.tolist() != list(range(31, 41)), "not the last rows"
    one, other = network(), network()
    a = fit(one, X, y, epochs=2, device=backend, validation_split=0.25)
    b = fit(other, X[rows], y[rows], epochs=2, device=backend, validation_data=(X[held], y[held]))
    assert_same(one, other)
    assert dict(a) == dict(b)
    assert data.split(len(X), 0.25, 4)[1].tolist() != held.tolist()


def test_validation_weights(backend: Backend) -> None:
    X, y = problem()
    weight = np.linspace(0, 3, len(y))
    _, held = data.split(len(X), 0.25, 3)
    model = network()
    history = fit(model, X, y, device=backend, validation_split=0.25, sample_weight=weight)
    assert history["val_loss"] == [model.evaluate(X[held], y[held], sample_weight=weight[held])["loss"]]
    assert model.evaluate(X[held], y[held])["loss"] != history["val_loss"][0]
    given = fit(network(), X, y, device=backend, validation_data=(X, y, weight))
    assert np.isfinite(given["val_loss"]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"validation_split": 1.0}, ValueError, "validation_split"),
        ({"validation_split": -0.1}, ValueError, "validation_split"),
        ({"validation_split": 0.001}, ValueError, "leaves one part empty"),
        ({"validation_split": 0.2, "validation_data": ([[1.0] * 4], [0])}, ValueError, "not both"),
        ({"validation_data": 5}, TypeError, r"\(X, y\)"),
        ({"validation_data": ([[1.0] * 4], [0], [1.0], [1.0])}, TypeError, r"\(X, y\)"),
        ({"validation_data": ([[1.0] * 3], [0])}, ValueError, r"\(1, 3\) does not fit"),
        ({"validation_data": ([[1.0] * 4], [0, 1])}, ValueError, "validation X has 1 rows, validation y has 2"),
        ({"validation_data": (np.ones((0, 4)), [])}, ValueError, "no rows"),
        ({"validation_data": ([[np.nan] * 4], [0])}, ValueError, "validation X contains nan"),
    ],
)
def test_validation_that_does_not_fit(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    with pytest.raises(error, match=message):
        fit(model, *problem(), device="numpy", **arguments)
    assert not model.is_built


# ---- order ---------------------------------------------------------------------------------------------
def test_shuffle_gives_each_epoch_an_order_of_its_own(backend: Backend) -> None:
    X, y = problem()
    one, other, plain = network(), network(), network()
    fit(one, X, y, epochs=2, device=backend)
    for epoch in range(2):
        order = random.permutation(3, epoch, len(X))
        fit(other, X[order], y[order], device=backend, shuffle=False)
    assert_same(one, other)
    fit(plain, X, y, epochs=2, device=backend, shuffle=False)
    assert differs(plain.get_weights(), one.get_weights())


def test_one_seed_one_result(backend: Backend) -> None:
    models = [network(dropout=0.5) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        fit(model, *problem(), epochs=2, device=backend, seed=seed)
    assert_same(models[0], models[1])
    assert differs(models[0].get_weights(), models[2].get_weights())


def test_numpy_and_numba_take_the_same_batches_and_masks() -> None:
    X, y = problem()
    reference = network(dropout=0.3, norm=True)
    fit(reference, X, y, epochs=3, device="numpy", dtype="float64")
    if nf.available_devices()["numba"] is not None:
        pytest.skip("no numba")
    model = network(dropout=0.3, norm=True)
    fit(model, X, y, epochs=3, device="numba", dtype="float64")
    for name, value in reference.get_weights().items():
        np.testing.assert_allclose(model.get_weights()[name], value, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_builds_as_build_does(dtype: str, backend: Backend) -> None:
    X, y = problem()
    one, other = network(), network().build(4, seed=3, dtype=dtype)
    for model in (one, other):
        fit(model, X, y, device=backend, dtype=dtype)
    assert one.dtype == dtype
    assert_same(one, other)


# ---- weights -------------------------------------------------------------------------------------------
def test_a_row_of_weight_two_is_a_row_given_twice(backend: Backend) -> None:
    X, y = problem(12)
    counts = np.array([2, 1, 0] * 4)
    one, other = network(), network()
    common = {"optimizer": nf.SGD(0.1), "batch_size": 64, "shuffle": False, "device": backend, "dtype": "float64"}
    fit(one, X, y, epochs=3, sample_weight=counts, **common)
    fit(other, X.repeat(counts, axis=0), y.repeat(counts), epochs=3, **common)
    for name, value in other.get_weights().items():
        np.testing.assert_allclose(one.get_weights()[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "hinge"])
def test_class_weight_is_a_factor_on_the_rows_of_a_class(loss: str, backend: Backend) -> None:
    X, y = problem()
    labels = y if loss == "cross_entropy" else y % 2
    weight = np.linspace(1, 2, len(y))
    one, other = (network(classes=3 if loss == "cross_entropy" else 1) for _ in range(2))
    common = {"loss": loss, "device": backend, "dtype": "float64"}
    fit(one, X, labels, sample_weight=weight, class_weight={0: 0.5, 1: 4.0}, **common)
    fit(other, X, labels, sample_weight=weight * np.array([0.5, 4.0, 1.0])[labels], **common)
    assert_same(one, other)


def test_balanced_class_weight(backend: Backend) -> None:
    X, y = problem()
    counts = np.bincount(y)
    one, other = network(), network()
    fit(one, X, y, class_weight="balanced", device=backend)
    fit(other, X, y, class_weight={k: 41 / (3 * n) for k, n in enumerate(counts)}, device=backend)
    assert_same(one, other)


@pytest.mark.parametrize(
    ("class_weight", "error", "message"),
    [
        ("even", ValueError, "'balanced', got 'even'"),
        ([1.0, 2.0, 3.0], TypeError, "not list"),
        ({0: -1.0}, ValueError, r"class_weight\[0\]"),
        ({0: float("nan")}, ValueError, r"class_weight\[0\]"),
    ],
)
def test_class_weight_that_is_none(class_weight: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(network(), *problem(), class_weight=class_weight, device="numpy")


def test_class_weight_needs_classes() -> None:
    X, _ = problem()
    with pytest.raises(ValueError, match="class_weight needs a loss of classes"):
        fit(network(classes=1), X, X[:, 0], loss="mse", class_weight={0: 2.0}, device="numpy")


# ---- metrics and history -------------------------------------------------------------------------------
def test_history(backend: Backend) -> None:
    X, y = problem()

    def share_of_zero(y_true: np.ndarray, y_pred: np.ndarray) -> float:
        assert y_true.shape == (len(y_pred),)
        np.testing.assert_allclose(y_pred.sum(axis=1), 1.0, rtol=1e-5)  # probabilities, not logits
        return float((y_true == 0).mean())

    history = fit(network(), X, y, epochs=3, device=backend, metrics=["acc", share_of_zero], validation_data=(X, y))
    assert set(history) == {
        "loss", "accuracy", "share_of_zero", "val_loss", "val_accuracy", "val_share_of_zero", "lr"
    }  # fmt: skip
    assert history.epochs == [1, 2, 3]
    assert all(len(curve) == 3 for curve in history.values())
    assert history["share_of_zero"] == [float((y == 0).mean())] * 3
    assert history["lr"] == [1e-3] * 3
    assert history.stopped is None
    assert "3 epochs" in repr(history)
    with pytest.raises(KeyError, match="val_accuracy"):
        history["val_acc"]


def test_the_loss_of_an_epoch_is_the_mean_over_its_rows(backend: Backend) -> None:
    X, y = problem()
    model = network().build(4, seed=3)
    expected = model.evaluate(X, y, loss="cross_entropy", metrics=["accuracy"], device=backend)
    # With a learning rate of zero the weights stay, so the mean over the epoch is that of one pass
    history = fit(model, X, y, device=backend, optimizer=nf.SGD(0.0), metrics="accuracy")
    assert history["loss"][0] == pytest.approx(expected["loss"], rel=1e-6)
    assert history["accuracy"][0] == expected["accuracy"]


def test_hinge_and_accuracy(backend: Backend) -> None:
    X, _ = problem(60)
    y = np.where(X[:, 0] > 0, 1, -1)
    model = network(classes=1)
    history = fit(model, X, y, loss="hinge", optimizer=nf.Adam(0.05), epochs=40, device=backend, metrics=["accuracy"])
    assert history["accuracy"][-1] >= 0.95
    assert model.evaluate(X, y, metrics="accuracy")["accuracy"] == (model.predict_classes(X) == (y > 0)).mean()


def test_moving_average(backend: Backend) -> None:
    X, y = problem()
    model = network().build(4, seed=3)
    weights = [model.get_flat_weights()]

    class Watch(nf.Callback):
        def on_step_end(self, step: int, logs: dict[str, float]) -> None:
            weights.append(self.model.get_flat_weights())

    fit(model, X, y, device=backend, optimizer=nf.SGD(0.5, ema=0.8), callbacks=[Watch()])
    average = weights[0].astype(np.float64)
    for after in weights[1:]:
        average = 0.8 * average + 0.2 * after
    with model.averaged() as averaged:
        assert averaged is model
        np.testing.assert_allclose(model.get_flat_weights(), average, rtol=1e-5, atol=1e-6)
        outputs = model.predict(X)
    np.testing.assert_array_equal(model.get_flat_weights(), weights[-1])
    assert not np.array_equal(model.predict(X), outputs)
    with pytest.raises(ValueError, match="ema="), network().build(4).averaged():
        pass


# ---- what is shown -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("verbose", "epochs", "lines"), [(0, 3, 0), (1, 3, 4), (1, 120, 62), (2, 120, 121)])
def test_lines(verbose: int, epochs: int, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    X, y = problem(8)
    fit(network(), X, y, epochs=epochs, device="numpy", verbose=verbose, metrics=["accuracy"], validation_data=(X, y))
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert len(shown.splitlines()) == lines
    if lines:
        first, *epochs_shown = shown.splitlines()
        assert "51 parameters on 8 rows, device numpy, float32" in first
        for part in ("epoch", f"/{epochs}", "loss", "accuracy", "val_loss", "val_accuracy", "samples/s"):
            assert part in epochs_shown[-1]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo terminals")
@pytest.mark.parametrize(("epochs", "callbacks"), [(2, "[Slow()]"), (3000, "[]")], ids=["long", "at once"])
def test_a_bar_on_a_terminal(epochs: int, callbacks: str) -> None:
    script = f"""
        import numpy as np, nnfast as nf, time
        class Slow(nf.Callback):
            def on_step_end(self, step, logs):
                time.sleep(0.05)
        X, y = np.random.default_rng(0).random((40, 3)), np.arange(40) % 2
        nf.Sequential([nf.Dense(2)]).fit(X, y, loss="cross_entropy", epochs={epochs}, batch_size=4, device="numpy",
                                         callbacks={callbacks})
    """
    main, terminal = os.openpty()
    found = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "PYTHONPATH": found}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:
        pass  # how Linux says that the other end is closed
    finally:
        os.close(main)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    for part in (f"1/{epochs}", f"epoch {epochs}/{epochs}", "loss", "samples/s", "━"):
        assert part in text
    assert text.count("samples/s") > 4, "the bar moves"


def test_arguments_are_checked() -> None:
    X, y = problem()
    for arguments, error, message in [
        ({"loss": None}, TypeError, "fit needs loss="),
        ({"loss": "mean"}, ValueError, "unknown loss 'mean'"),
        ({"optimizer": "sdg"}, ValueError, "unknown optimizer 'sdg'"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"epochs": 2.5}, TypeError, "epochs must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"dtype": "float16"}, ValueError, "float32, float64"),
        ({"device": "gpu"}, ValueError, "'gpu' is not known"),
        ({"metrics": ["accurate"]}, ValueError, "unknown metric 'accurate'"),
        ({"callbacks": [print]}, TypeError, "Callback objects"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 1.5}, TypeError, "seed"),
    ]:
        model = network()
        with pytest.raises(error, match=message):
            fit(model, X, y, **{"device": "numpy", **arguments})
        assert not model.is_built
    model = network().build(4, seed=1)
    before = everything(model)
    with pytest.raises(ValueError, match="seed"):
        fit(model, X, y, device="numpy", seed=2**64)
    assert not differs(before, everything(model))
