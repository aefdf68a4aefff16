"""Metrics of models with several outputs: names, values, where the rows come from, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast import metrics
from nnfast.backends.base import Backend

from .helpers import fit

ROWS = 41  # in batches of 8 the last one has a single row
LOSSES = ["cross_entropy", "mse", "hinge", "cross_entropy"]
WANTED: dict[str, Any] = {"kind": ["accuracy", "roc_auc"], "side": "acc", "steps": ["top_2_accuracy"]}


def four_outputs() -> nf.Model:
    """Classes as probabilities, a value, a margin, and logits of each of two steps."""
    x = nf.Input(4)
    h = nf.Dense(6, "tanh")(x)
    kind, price, side = nf.Dense(3, "softmax", name="kind")(h), nf.Dense(1, name="price")(h), nf.Dense(1, name="side")
    return nf.Model(x, [kind, price, side(h), nf.Reshape((2, 3), name="steps")(nf.Dense(6)(h))])


def data(rows: int = ROWS, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    targets = [rng.integers(0, 3, rows), rng.standard_normal(rows), rng.integers(0, 2, rows)]
    return rng.standard_normal((rows, 4)).astype(np.float32), [*targets, rng.integers(0, 3, (rows, 2))]


def expected(model: nf.Model, X: np.ndarray, y: list[np.ndarray], weight: Any = None) -> dict[str, float]:
    """What WANTED asks for, from predictions."""
    kind, _, side, steps = model.predict(X, device="numpy")
    twice = None if weight is None else np.repeat(weight, 2)
    return {
        "kind_accuracy": metrics.accuracy(y[0], kind, weight),
        "kind_roc_auc": metrics.roc_auc(y[0], kind, weight),
        "side_accuracy": metrics.accuracy(y[2], (side[:, 0] > 0).astype(int), weight),
        "steps_top_2_accuracy": metrics.top_k_accuracy(y[3].reshape(-1), steps.reshape(-1, 3), twice, k=2),
    }


def test_values(any_backend: Backend) -> None:
    """Steps too small to change a weight: the metrics of an epoch are those of the model."""
    (X, y), (X_val, y_val) = data(), data(13, 1)
    weight, weight_val = np.arange(ROWS) % 3 + 0.5, np.arange(13) % 4 + 0.5
    model = four_outputs()
    history = fit(
        model, X, y, loss=LOSSES, metrics=WANTED, optimizer=nf.SGD(1e-30), epochs=2, sample_weight=weight,
        validation_data=(X_val, y_val, weight_val), device=any_backend,
    )  # fmt: skip
    wanted = expected(model, X, y)
    wanted |= {f"val_{name}": value for name, value in expected(model, X_val, y_val, weight_val).items()}
    assert list(history) == ["loss", *list(wanted)[:4], "val_loss", *list(wanted)[4:], "lr"]
    for name, value in wanted.items():
        assert history[name] == pytest.approx([value] * 2, abs=1e-6), name
    found = model.evaluate(X_val, y_val, metrics=WANTED, sample_weight=weight_val, batch_size=5)
    assert found == pytest.approx({name: history[f"val_{name}"][1] for name in found}, abs=1e-6)
    assert len(found) == 5


class Batches:
    """The rows in their order, as an iterable."""

    def __iter__(self) -> Iterator[Any]:
        X, y = data()
        for start in range(0, ROWS, 8):
            yield X[start : start + 8], [one[start : start + 8] for one in y]


@pytest.mark.parametrize("source", ["streamed", "batches"])
def test_rows_that_do_not_live_on_the_device(
    any_backend: Backend, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = data()
    arguments: dict[str, Any] = {"loss": LOSSES, "metrics": {**WANTED, "price": "mse"}, "epochs": 2}
    arguments |= {"device": any_backend, "optimizer": nf.SGD(0.5)}
    arguments |= {"shuffle": source == "streamed", "validation_data": data(13, 1)}
    resident = fit(four_outputs(), X, y, **arguments)
    monkeypatch.setattr("nnfast.training.loop.fits_on", lambda *_: False)
    found = fit(four_outputs(), *((X, y) if source == "streamed" else (Batches(), None)), **arguments)
    assert list(found) == list(resident)
    for name in found:
        np.testing.assert_allclose(found[name], resident[name], rtol=1e-5, err_msg=name)


def heads(*names: str | None) -> nf.Model:
    """Classifiers on one input."""
    x = nf.Input(4)
    return nf.Model(x, [nf.Dense(3, name=name)(x) for name in names])


def classes(outputs: int) -> tuple[np.ndarray, list[np.ndarray]]:
    X, y = data()
    return X, [(y[0] + k) % 3 for k in range(outputs)]


def worst(y_true: Any, y_pred: Any) -> float:
    return float(np.abs(y_pred).max())


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("accuracy", ["a_accuracy", "b_accuracy"]),
        (worst, ["a_worst", "b_worst"]),
        (["accuracy", worst], ["a_accuracy", "a_worst", "b_accuracy", "b_worst"]),
        ([["accuracy"], ["top_2_accuracy", worst]], ["a_accuracy", "b_top_2_accuracy", "b_worst"]),
        ([[], "accuracy"], ["b_accuracy"]),
        ({"b": "accuracy", "a": (worst,)}, ["a_worst", "b_accuracy"]),
        ({"b": metrics.get("f1_macro")}, ["b_f1_macro"]),
        ({}, []),
        ([], []),
    ],
)
def test_ways_to_ask(given: Any, names: list[str]) -> None:
    X, y = classes(2)
    model = heads("a", "b")
    history = fit(model, X, y, metrics=given, validation_split=0.2, device="numpy")
    assert list(history) == ["loss", *names, "val_loss", *(f"val_{name}" for name in names), "lr"]
    assert list(model.evaluate(X, y, metrics=given)) == ["loss", *names]


def test_names_of_outputs(tmp_path: Path) -> None:
    x = nf.Input(4)
    once, twice, named = nf.Dense(4), nf.Dense(4), nf.Dense(4, name="head")
    outputs = [twice(x), twice(once(x)), nf.Residual(nf.Dense(4))(x), named(once(x)), named(x), nf.Dense(2)(x)]
    model = nf.Model(x, outputs)
    names = ["dense", "dense_2", "residual", "head", "head_1", "dense_4"]
    assert model.output_names == names
    model.build(seed=0).save(tmp_path / "m.safetensors")
    assert nf.load(tmp_path / "m.safetensors").output_names == model.copy().output_names == names
    assert heads("head_1", "head").output_names == ["head_1", "head"]
    shared = nf.Dense(3, name="head")
    thrice = nf.Model(x, [shared(x), shared(once(x)), nf.Dense(3, name="head_1")(x)])
    assert thrice.output_names == ["head", "head_2", "head_1"]
    chain = nf.Sequential([nf.Dense(3), nf.Dense(2)])
    with pytest.raises(nf.NotBuiltError):
        _ = chain.output_names
    assert chain.build(4).output_names == ["dense_1"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"c": "accuracy"}, ValueError, r"^metrics of 'c': the model has the outputs 'a', 'b'$"),
        ([["accuracy"]], ValueError, r"^metrics has 1 entries, one for each output: the model has the outputs 'a'"),
        ([["accuracy"], [], []], ValueError, "metrics has 3 entries"),
        ({"b": "accurate"}, ValueError, "^output 'b': unknown metric 'accurate'; known are accuracy"),
        ([["accuracy"], [3]], TypeError, r"^output 'b': a metric must be a name, a Metric or a function .*, not int"),
        ({"a": 3}, TypeError, "^output 'a': a metric must be a name"),
        (3, TypeError, "^output 'a': a metric must be a name"),
        (["accuracy", "acc"], ValueError, "two numbers of the history would be named 'a_accuracy'"),
        ({"b": "mae"}, ValueError, r"^output 'b': y_true and y_pred must have one shape, got \(41, 1\) and \(41, 3\)"),
    ],
)
def test_what_does_not_fit(given: Any, error: type[Exception], message: str) -> None:
    X, y = classes(2)
    with pytest.raises(error, match=message):
        fit(heads("a", "b"), X, y, metrics=given, device="numpy")
    with pytest.raises(error, match=message):
        heads("a", "b").build().evaluate(X, y, loss="cross_entropy", metrics=given, device="numpy")


def test_errors_of_one_output_name_none() -> None:
    X, y = data()
    for targets, message in ((y[0], "^y_true and y_pred must have one shape"), (y[1], "^class labels")):
        with pytest.raises(ValueError, match=message):
            fit(nf.Sequential([nf.Dense(3)]), X, targets, metrics=["mae"], device="numpy")


def test_no_two_numbers_have_one_name() -> None:
    X, y = classes(2)

    def b_worst(y_true: Any, y_pred: Any) -> float:
        return 0.0

    for names, given in ((("a", "a_b"), [[b_worst], [worst]]), (("a", "val_a"), "accuracy")):
        with pytest.raises(ValueError, match=r"two numbers of the history would be named '(a_b_worst|val_a_accuracy)'"):
            fit(heads(*names), X, y, metrics=given, device="numpy")


def test_callbacks_by_these_names(tmp_path: Path) -> None:
    """What is better goes by the metric, whatever the output is called."""
    X, y = classes(2)
    model = heads("gloss", "gloss_error")
    watched, saved = tmp_path / "{epoch}-{gloss_accuracy:.3f}.safetensors", tmp_path / "log.csv"
    stops = [nf.EarlyStopping(f"val_{name}", 9) for name in ("gloss_accuracy", "gloss_error_accuracy")]
    least = nf.EarlyStopping("val_gloss_brier_error", 9)

    def brier_error(y_true: Any, y_pred: Any) -> float:
        return float(((np.eye(3)[y_true] - y_pred) ** 2).sum(axis=1).mean())

    history = fit(
        model, X, y, metrics=["accuracy", brier_error], validation_split=0.3, epochs=8, optimizer=nf.SGD(2.0),
        callbacks=[*stops, least, nf.ModelCheckpoint(watched), nf.CSVLogger(saved)], device="numpy",
    )  # fmt: skip
    for stop in stops:
        assert stop.best_epoch == 1 + int(np.argmax(history[stop.monitor]))
        assert len(set(history[stop.monitor])) > 1
    assert least.best_epoch == 1 + int(np.argmin(history[least.monitor]))
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        f"{epoch}-{value:.3f}.safetensors"
        for epoch, value in zip(history.epochs, history["gloss_accuracy"], strict=True)
    }
    assert saved.read_text().splitlines()[0].split(",") == ["epoch", *history]
    with pytest.raises(ValueError, match="'val_accuracy' is not there to be monitored; there are loss, gloss_accuracy"):
        fit(model, X, y, metrics="accuracy", callbacks=[nf.EarlyStopping("val_accuracy")], device="numpy")


def test_a_schedule_by_these_names() -> None:
    X, y = classes(2)
    values = iter([0.1, 0.5, 0.4, 0.6, 0.5])

    def scripted(y_true: Any, y_pred: Any) -> float:
        return next(values)

    rates = {"name": "reduce_on_plateau", "monitor": "b_scripted", "mode": "max", "patience": 0, "lr": 1.0}
    optimizer = nf.SGD({**rates, "factor": 0.5})
    history = fit(heads("a", "b"), X, y, metrics={"b": scripted}, optimizer=optimizer, epochs=5, device="numpy")
    assert history["lr"] == [1.0, 1.0, 1.0, 0.5, 0.5]


def test_curves_of_each_output() -> None:
    pytest.importorskip("matplotlib")
    X, y = classes(2)
    history = fit(heads("a", "b"), X, y, metrics="accuracy", validation_split=0.2, epochs=2, device="numpy")
    figure = nf.plotting.history(history)
    panels = {ax.get_title(): len(ax.lines) for ax in figure.axes if ax.lines}
    assert panels == {"loss": 2, "a accuracy": 2, "b accuracy": 2, "learning rate": 1}


def test_none_is_no_metric() -> None:
    X, y = data()
    assert list(fit(four_outputs(), X, y, loss=LOSSES, metrics=None)) == ["loss", "lr"]
    assert list(fit(four_outputs(), X, y, loss=LOSSES, metrics={"kind": None, "side": "acc"})) == [
        "loss", "side_accuracy", "lr",
    ]  # fmt: skip
