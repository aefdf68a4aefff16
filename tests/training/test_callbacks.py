"""Callbacks, and what they may do to a fit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend

from .helpers import assert_same, differs, everything, fit, network, problem


class Script(nf.Callback):
    """Puts given numbers into the logs, as a measurement of the user's own would."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values = name, values

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        logs[self.name] = self.values[epoch - 1]


class Recorder(nf.Callback):
    """Keeps the weights after every epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.weights.append(self.model.get_weights())


# ---- early stopping ------------------------------------------------------------------------------------
@pytest.mark.parametrize("restore", [True, False])
def test_early_stopping(restore: bool, backend: Backend) -> None:
    seen, stop = Recorder(), nf.EarlyStopping("score", patience=2, mode="min", restore_best=restore)
    model = network(norm=True)
    script = Script("score", [3.0, 1.0, 2.0, 1.0, 0.0])
    history = fit(model, *problem(), epochs=5, device=backend, callbacks=[script, seen, stop])
    assert history.epochs == [1, 2, 3, 4]
    assert history["score"] == [3, 1, 2, 1]
    assert history.stopped == "stopped by a callback after epoch 4"
    assert (stop.best_epoch, stop.stopped_epoch) == (2, 4)
    expected = seen.weights[1 if restore else 3]
    assert not differs(expected, model.get_weights())
    assert differs(seen.weights[1], seen.weights[3])


def test_early_stopping_that_never_stops_restores_too(backend: Backend) -> None:
    seen, stop = Recorder(), nf.EarlyStopping("score", patience=9, mode="max")
    model = network()
    fit(model, *problem(), epochs=3, device=backend, callbacks=[Script("score", [1, 3, 2]), seen, stop])
    assert stop.stopped_epoch == 0
    assert not differs(seen.weights[1], model.get_weights())


@pytest.mark.parametrize(
    ("name", "values", "arguments", "best"),
    [
        ("val_loss", [3, 2, 1], {}, 3),
        ("val_accuracy", [3, 2, 1], {}, 1),
        ("val_rmse", [3, 2, 1], {}, 3),
        ("score", [1.0, 1.05, 1.2], {"min_delta": 0.1}, 3),
        ("score", [1.0, 1.05, 1.09], {"min_delta": 0.1}, 1),
        ("score", [float("nan"), 2.0, float("nan")], {}, 2),
    ],
)
def test_what_is_best(name: str, values: list[float], arguments: dict[str, Any], best: int) -> None:
    stop = nf.EarlyStopping(name, patience=9, **arguments)
    fit(network(), *problem(), epochs=3, device="numpy", callbacks=[Script(name, values), stop])
    assert stop.best_epoch == best


def test_early_stopping_watches_validation() -> None:
    X, y = problem()
    stop = nf.EarlyStopping(patience=1)
    model = network()
    history = fit(
        model, X, y, epochs=100, optimizer=nf.SGD(5.0), device="numpy", validation_data=(X, y), callbacks=[stop]
    )
    assert len(history.epochs) < 100
    assert model.evaluate(X, y)["loss"] == min(history["val_loss"])
    with pytest.raises(ValueError, match="'val_loss' is not there to be monitored; there are loss, lr"):
        fit(model, X, y, device="numpy", callbacks=[nf.EarlyStopping()])
    with pytest.raises(ValueError, match="patience"):
        nf.EarlyStopping(patience=0)


# ---- files ---------------------------------------------------------------------------------------------
def test_a_checkpoint_of_an_epoch_goes_on_from_there(backend: Backend, tmp_path: Path) -> None:
    X, y = problem()
    model = network(norm=True, dropout=0.3)
    common = {"device": backend, "optimizer": nf.NAdam({"name": "reduce_on_plateau", "patience": 0, "lr": 0.1})}
    fit(model, X, y, epochs=4, callbacks=[nf.ModelCheckpoint(tmp_path / "m-{epoch}.safetensors")], **common)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"m-{n}.safetensors" for n in (1, 2, 3, 4)]
    for epoch in (1, 2, 3):
        early = nf.load(tmp_path / f"m-{epoch}.safetensors")
        assert (early.training_state.epoch, early.training_state.step) == (epoch, 6 * epoch)
        history = fit(early, X, y, epochs=4 - epoch, **common)
        assert history.epochs[-1] == 4
        assert_same(early, model)


def test_only_the_best_is_kept(tmp_path: Path) -> None:
    seen = Recorder()
    keep = nf.ModelCheckpoint(tmp_path / "best.safetensors", "score", mode="max", save_best_only=True)
    fit(network(), *problem(), epochs=3, device="numpy", callbacks=[Script("score", [1, 3, 2]), seen, keep])
    assert not differs(nf.load(tmp_path / "best.safetensors").get_weights(), seen.weights[1])
    assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]


def test_csv_logger(tmp_path: Path) -> None:
    X, y = problem()
    path, model = tmp_path / "log.csv", network()
    histories = [
        fit(model, X, y, epochs=2, device="numpy", callbacks=[nf.CSVLogger(path, append=append)])
        for append in (False, True)
    ]
    rows = list(csv.DictReader(path.open(newline="")))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["loss"]) for row in rows] == histories[0]["loss"] + histories[1]["loss"]
    fit(model, X, y, device="numpy", callbacks=[nf.CSVLogger(path)])
    assert [row["epoch"] for row in csv.DictReader(path.open(newline=""))] == ["5"]
    # Numbers that the file has no column for are left out, missing ones stay empty
    with path.open("w", newline="") as file:
        csv.writer(file).writerow(["epoch", "val_loss", "loss"])
    fit(model, X, y, device="numpy", metrics="accuracy", callbacks=[nf.CSVLogger(path, append=True)])
    (row,) = csv.DictReader(path.open(newline=""))
    assert (row["epoch"], row["val_loss"]) == ("6", "")


# ---- steps ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [40, 41])
def test_learning_rate_of_every_step(rows: int, backend: Backend) -> None:
    X, y = problem(rows)
    logger = nf.LearningRateLogger()
    optimizer = nf.SGD(lambda step: 0.1 / (1 + step))
    fit(network(), X, y, epochs=2, optimizer=optimizer, device=backend, callbacks=[logger])
    steps = 2 * -(-rows // 8)
    assert logger.rates == [0.1 / (1 + step) for step in range(steps)]


def test_the_order_of_the_calls(backend: Backend) -> None:
    X, y = problem(17)
    calls: list[Any] = []

    class Watch(nf.Callback):
        def on_train_begin(self, model: Any) -> None:
            calls.append("begin")
            assert self.model is model

        def on_epoch_begin(self, epoch: int) -> None:
            calls.append(("epoch", epoch))

        def on_step_end(self, step: int, logs: dict[str, float]) -> None:
            assert logs.keys() == {"loss", "lr"}
            calls.append(step)

        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            calls.append(("end", epoch))
            logs["mine"] = 7.0

        def on_train_end(self, model: Any) -> None:
            calls.append("end")

    history = fit(network(), X, y, epochs=2, device=backend, callbacks=[Watch()])
    assert calls == ["begin", ("epoch", 1), 1, 2, 3, ("end", 1), ("epoch", 2), 4, 5, 6, ("end", 2), "end"]
    assert history["mine"] == [7.0, 7.0]


def test_watching_changes_nothing(backend: Backend) -> None:
    one, other = network(dropout=0.2), network(dropout=0.2)
    fit(one, *problem(), epochs=2, device=backend, callbacks=[nf.LearningRateLogger()])
    fit(other, *problem(), epochs=2, device=backend)
    assert_same(one, other)


@pytest.mark.parametrize("streamed", [False, True])
def test_stopping_after_a_step(streamed: bool, backend: Backend) -> None:
    X, y = problem()

    class Stop(nf.Callback):
        def on_step_end(self, step: int, logs: dict[str, float]) -> None:
            if step == 8:
                self.weights = self.model.get_weights()
                self.model.stop_training = True

    model, stop = network(), Stop()
    batches = [(X[i : i + 8], y[i : i + 8]) for i in range(0, 41, 8)]
    data = (batches,) if streamed else (X, y)
    history = fit(model, *data, epochs=5, device=backend, callbacks=[stop], metrics=["accuracy"])
    assert history.epochs == [1, 2]
    assert model.training_state.step == 8
    assert not differs(stop.weights, model.get_weights())
    assert np.isfinite(history["loss"] + history["accuracy"]).all()
    fit(model, *data, device=backend)
    assert model.training_state.step == 14


def test_an_error_in_a_callback_reaches_the_caller(backend: Backend) -> None:
    ended = []

    class Broken(nf.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            raise KeyError("mine")

        def on_train_end(self, model: Any) -> None:
            ended.append(model)

    model = network()
    with pytest.raises(KeyError, match="mine"):
        fit(model, *problem(), epochs=3, device=backend, callbacks=[Broken()])
    assert ended == [model]
    assert model.training_state.step == 6
    assert fit(model, *problem(), device=backend).epochs == [2]


# ---- not finite ----------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_stop_on_non_finite(backend: Backend) -> None:
    X, _ = problem()
    y = X[:, :1].copy()
    y[20] = 3e38
    quiet, raising = network(classes=1), network(classes=1)
    callback = nf.StopOnNonFinite()
    common = {"loss": "mse", "shuffle": False, "device": backend, "epochs": 2}
    history = fit(quiet, X, y, callbacks=[callback], **common)
    assert callback.step == 3
    assert history.stopped == "stopped: not finite at step 3"
    assert history.epochs == []
    with pytest.raises(nf.NonFiniteError):
        fit(raising, X, y, **common)
    assert_same(quiet, raising)
    assert quiet.training_state.step == 2
    fit(quiet, X, X[:, :1], loss="mse", device=backend, callbacks=[callback])
    assert callback.step is None
    assert all(np.isfinite(array).all() for array in everything(quiet).values())


@pytest.mark.parametrize("each_step", [False, True])
def test_progress_bar_as_a_callback_and_what_callbacks_know(
    each_step: bool, backend: Backend, capsys: pytest.CaptureFixture
) -> None:
    class Watch(nf.Callback):
        def __init__(self) -> None:
            self.rows: list[int] = []

        def on_progress(self, rows: int, logs: dict[str, float]) -> None:
            assert logs["loss"] > 0
            self.rows.append(rows)

        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            assert len(self.info.history.epochs) == epoch - self.info.first

    X, y = problem()
    watch = Watch()
    callbacks = [watch, nf.ProgressBar(), *([nf.LearningRateLogger()] if each_step else [])]
    network().fit(X, y, loss="cross_entropy", epochs=2, device=backend, seed=0, verbose=0, callbacks=callbacks)
    assert watch.rows.count(len(X)) == 2  # once at each epoch's end
    assert (watch.info.first, watch.info.last, watch.info.rows) == (1, 2, len(X))
    out = capsys.readouterr().out
    assert f"on {len(X):,} rows, device {backend.device}" in out
    assert out.count("samples/s") == 2
