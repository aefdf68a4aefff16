"""Epochs that run at once are, bit for bit, those that run one by one; and when they may not run at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend
from nnfast.training.callbacks import FitInfo, acts_between_epochs
from nnfast.training.engine import Engine
from nnfast.training.history import History
from nnfast.training.sources import next_chunk

from .helpers import assert_same, everything, fit, network, problem


class OneByOne(nf.Callback):
    """Does nothing, but between two epochs."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        pass


class Numbers(nf.Callback):
    """Keeps what it is told, however it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float, float]] = []
        self.chunks: list[int] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.calls.append((epoch, logs["loss"], logs["lr"]))
        self.chunks.append(1)

    def on_epochs(self, first: int, curves: dict[str, list[float]], seconds: float) -> None:
        assert seconds > 0
        self.calls += zip(range(first, first + len(curves["loss"])), curves["loss"], curves["lr"], strict=True)
        self.chunks.append(len(curves["loss"]))


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many epochs ran at once, each time; chunks grow whatever the time that they take."""
    monkeypatch.setattr("nnfast.training.run.next_chunk", lambda chunk, seconds: 3 * chunk)
    counts: list[int] = []
    run = Engine.run_epochs

    def counted(self: Engine, rows: int, epochs: int) -> None:
        counts.append(epochs)
        run(self, rows, epochs)

    monkeypatch.setattr(Engine, "run_epochs", counted)
    return counts


class Absolute(nf.Loss):
    """A loss of the user's own: its steps have Python in them."""

    def value(self, y_pred: Any, y_true: Any) -> Any:
        return abs(y_pred - y_true)

    def gradient(self, y_pred: Any, y_true: Any) -> Any:
        return (y_pred > y_true) * 2.0 - 1.0


WEIGHT = np.linspace(0, 2, 41)
CASES: dict[str, dict[str, Any]] = {
    "adam": {},
    "no smaller batch": {"rows": 40},
    "one batch": {"batch_size": 64},
    "one row a step": {"batch_size": 1, "rows": 5},
    "in order": {"shuffle": False},
    "weights": {"sample_weight": WEIGHT},
    "double": {"dtype": "float64"},
    "rates of each step": {"optimizer": nf.SGD(lambda step: 0.1 / (1 + step), momentum=0.9)},
    "rates of each epoch": {"optimizer": nf.SGD({"name": "step", "step_size": 2, "gamma": 0.5, "lr": 0.1})},
    "rates to the end": {"optimizer": nf.AdamW({"name": "cosine", "lr": 0.01})},
    "carried": {"optimizer": nf.NAdam(0.01, clip_norm=0.5, ema=0.9)},
    "Python in the step": {"loss": Absolute(), "regression": True},
}


def data(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    arguments = dict(case)
    X, y = problem(arguments.pop("rows", 41))
    return X, X[:, :3] if arguments.pop("regression", False) else y, arguments


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layers", [{}, {"dropout": 0.3, "norm": True}], ids=["plain", "noisy"])
def test_at_once_is_one_by_one(case: str, layers: dict[str, Any], backend: Backend, chunks: list[int]) -> None:
    X, y, arguments = data(CASES[case])
    arguments = {"device": backend, "epochs": 20, **arguments}
    together, single = network(**layers), network(**layers)
    a = fit(together, X, y, **arguments)
    assert chunks == [3, 9, 7]
    b = fit(single, X, y, callbacks=[OneByOne()], **arguments)
    assert chunks == [3, 9, 7]
    assert_same(together, single)
    assert a.epochs == b.epochs == list(range(1, 21))
    assert dict(a) == dict(b)
    assert list(a) == ["loss", "lr"]
    assert together.training_state.config() == single.training_state.config()


def test_on_every_device(any_backend: Backend, chunks: list[int]) -> None:
    X, y = problem(9)
    together, single = network(dropout=0.3), network(dropout=0.3)
    a = fit(together, X, y, epochs=5, device=any_backend)
    assert chunks == [3]
    b = fit(single, X, y, epochs=5, device=any_backend, callbacks=[OneByOne()])
    assert_same(together, single)
    assert dict(a) == dict(b)


@pytest.mark.parametrize("rows", [4, 41])
def test_fits_add_up(rows: int, backend: Backend, chunks: list[int]) -> None:
    X, y = problem(rows)
    parts, whole = network(dropout=0.2), network(dropout=0.2)
    histories = [fit(parts, X, y, epochs=n, device=backend) for n in (3, 1, 7, 2)]
    expected = fit(whole, X, y, epochs=13, device=backend)
    assert_same(parts, whole)
    assert [loss for history in histories for loss in history["loss"]] == expected["loss"]
    assert [epoch for history in histories for epoch in history.epochs] == expected.epochs
    assert chunks == [2, 3, 3, 3, 9]


# ---- the table of learning rates -----------------------------------------------------------------------
@pytest.mark.parametrize(("room", "expected"), [(4, []), (6, []), (20, [2, 3, 3, 3, 3, 3, 2]), (4096, [3, 9, 7])])
def test_where_the_table_of_rates_ends(
    room: int, expected: list[int], backend: Backend, chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = problem()
    optimizer = nf.SGD(lambda step: 0.1 / (1 + step))
    reference, model = network(), network()
    fit(reference, X, y, epochs=20, optimizer=optimizer, device=backend, callbacks=[OneByOne()])
    monkeypatch.setattr("nnfast.training.loop._MOST_RATES", room)
    fit(model, X, y, epochs=20, optimizer=optimizer, device=backend)
    assert chunks == expected
    assert_same(model, reference)


def test_no_rate_is_asked_for_beyond_the_end(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnfast.training.loop._MOST_RATES", 13)  # two epochs, and three are to come
    X, y = problem()
    rates = [0.1] * (5 * 6)
    model = network()
    fit(model, X, y, epochs=2, optimizer=nf.SGD(lambda step: rates[int(step)]), device=backend)
    history = fit(model, X, y, epochs=3, optimizer=nf.SGD(lambda step: rates[int(step)]), device=backend)
    assert history["lr"] == [0.1] * 3


# ---- when something has to happen in between -----------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [
        {"metrics": ["accuracy"]},
        {"validation_data": problem(5)},
        {"optimizer": nf.SGD({"name": "reduce_on_plateau", "lr": 0.1})},
        {"callbacks": [nf.LearningRateLogger()]},
        {"callbacks": [nf.EarlyStopping("loss")]},
        {"callbacks": [nf.CSVLogger(Path("none")), OneByOne()]},
    ],
    ids=["metrics", "validation", "adaptive", "steps", "stopping", "own"],
)
def test_not_at_once(
    arguments: dict[str, Any], chunks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    history = fit(network(), *problem(), epochs=6, device="numpy", **arguments)
    assert chunks == []
    assert history.epochs == [1, 2, 3, 4, 5, 6]


def test_a_callback_of_the_users_own_stops_after_its_epoch(backend: Backend, tmp_path: Path, chunks: list[int]) -> None:
    class Stop(nf.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            self.model.stop_training = epoch == 5

    model, numbers = network(), Numbers()
    path = tmp_path / "log.csv"
    history = fit(model, *problem(), epochs=50, device=backend, callbacks=[numbers, nf.CSVLogger(path), Stop()])
    assert history.epochs == [1, 2, 3, 4, 5]
    assert history.stopped == "stopped by a callback after epoch 5"
    assert model.training_state.step == 30
    assert numbers.chunks == [1] * 5
    assert len(path.read_text().splitlines()) == 6
    assert chunks == []


def test_what_acts_between_epochs() -> None:
    class Begin(nf.Callback):
        def on_epoch_begin(self, epoch: int) -> None: ...

    class Progress(nf.Callback):
        def on_progress(self, rows: int, logs: dict[str, float]) -> None: ...

    class Derived(nf.CSVLogger):
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None: ...

    class Again(Derived):
        def on_epochs(self, first: int, curves: dict[str, list[float]], seconds: float) -> None: ...

    class Mixed(Begin, nf.ProgressBar): ...

    class Ends(nf.Callback):
        def on_train_begin(self, model: Any) -> None: ...

        def on_train_end(self, model: Any) -> None: ...

    patched = Ends()
    patched.on_epoch_end = print  # type: ignore[method-assign]
    path = Path("none")
    acting = [Begin(), Progress(), OneByOne(), Derived(path), Mixed(), patched, nf.ModelCheckpoint(path)]
    looking = [Ends(), Again(path), nf.CSVLogger(path), nf.ProgressBar(), nf.StopOnNonFinite(), Numbers()]
    assert [acts_between_epochs(callback) for callback in acting] == [True] * len(acting)
    assert [acts_between_epochs(callback) for callback in looking] == [False] * len(looking)


# ---- what is reported ----------------------------------------------------------------------------------
def test_callbacks_that_only_look_see_every_epoch(backend: Backend, chunks: list[int]) -> None:
    numbers = Numbers()
    optimizer = nf.SGD(lambda step: 0.1 / (1 + step))
    history = fit(network(), *problem(), epochs=20, device=backend, optimizer=optimizer, callbacks=[numbers])
    assert numbers.chunks == [1, 3, 9, 7]
    assert numbers.calls == list(zip(history.epochs, history["loss"], history["lr"], strict=True))


def test_csv_logger_writes_the_same_file(backend: Backend, tmp_path: Path, chunks: list[int]) -> None:
    texts = []
    for callbacks in ([], [OneByOne()]):
        path, model = tmp_path / f"{len(callbacks)}.csv", network()
        for append in (False, True):
            logger = nf.CSVLogger(path, append=append)
            fit(model, *problem(), epochs=6, device=backend, callbacks=[*callbacks, logger])
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 13
    assert chunks == [3, 2] * 2


def test_lines_of_progress(backend: Backend, chunks: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    X, y = problem(8)
    history = fit(network(), X, y, epochs=120, device=backend, verbose=1)
    assert chunks
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 61
    shown = [int(line.split()[1].partition("/")[0]) for line in lines]
    assert shown == [1, *range(2, 121, 2)]
    for epoch, line in zip(shown, lines, strict=True):
        assert f"loss {history['loss'][epoch - 1]:.4f}" in line


def test_times_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """Four epochs of 100 rows in two seconds are 200 rows a second, however late they are reported."""
    bar = nf.ProgressBar(lines=True)
    bar.info = FitInfo(first=1, last=9, rows=100, parameters=3, device="numpy", history=History())
    bar.on_train_begin(network().build(4))
    bar.on_epochs(2, {"loss": [4.0, 3.0, 2.0, 1.0], "lr": [0.1] * 4}, 2.0)
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines == [f"epoch {n}/9  loss {6 - n}.0000  200 samples/s  0.50 s" for n in (2, 3, 4, 5)]


def test_history_of_several_epochs() -> None:
    history = History()
    history.append(1, {"loss": 4.0, "mine": 7})
    history.extend(range(2, 4), {"loss": [3.0, 2.0], "lr": [0.5, 0.25]})
    assert history.epochs == [1, 2, 3]
    assert history["loss"] == [4.0, 3.0, 2.0]
    np.testing.assert_array_equal(history["mine"], [7.0, np.nan, np.nan])
    np.testing.assert_array_equal(history["lr"], [np.nan, 0.5, 0.25])


# ---- a step that is not finite -------------------------------------------------------------------------
def fails_late(step: int) -> float:
    return 0.01 if step < 50 else 1e30 if step < 56 else 0.5


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("optimizer", [nf.SGD(fails_late), nf.Adam(fails_late), nf.NAdam(fails_late, ema=0.9)])
def test_not_finite_in_the_middle(optimizer: nf.Optimizer, backend: Backend, chunks: list[int], tmp_path: Path) -> None:
    X, _ = problem()
    common = {"loss": "mse", "optimizer": optimizer, "epochs": 30, "device": backend}
    results = []
    for callbacks in ([], [OneByOne()]):
        model, raising = network(classes=1, norm=True), network(classes=1, norm=True)
        quiet, path = nf.StopOnNonFinite(), tmp_path / "log.csv"
        history = fit(model, X, X[:, :1], callbacks=[*callbacks, quiet, nf.CSVLogger(path)], **common)
        with pytest.raises(nf.NonFiniteError) as caught:
            fit(raising, X, X[:, :1], callbacks=callbacks, **common)
        assert_same(model, raising)
        assert all(np.isfinite(array).all() for array in everything(model).values())
        results.append((model, history, quiet.step, caught.value.step, str(caught.value), path.read_text()))
    (model, history, step, raised, message, _), (other, expected, *_) = results
    assert chunks == [3, 9] * 2
    assert_same(model, other)
    assert model.training_state.config() == other.training_state.config()
    assert results[0][2:] == results[1][2:]
    assert dict(history) == dict(expected)
    assert history.epochs == expected.epochs == list(range(1, 1 + (step - 1) // 6))
    assert 8 <= len(history.epochs) < 12
    assert history.stopped == expected.stopped == f"stopped: not finite at step {step}"
    assert step == raised > 50
    assert f"at step {step} (learning rate 1e+30)" in message


# ---- how many ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("chunk", "seconds", "expected"), [(1, 0.0, 4), (1, 5.0, 1), (64, 1e-4, 256), (64, 0.1, 64), (64, 0.2, 32)]
)
def test_chunks_grow_to_a_tenth_of_a_second(chunk: int, seconds: float, expected: int) -> None:
    assert next_chunk(chunk, seconds) == expected


def test_memory_of_many_epochs_is_bounded(backend: Backend, chunks: list[int]) -> None:
    """Their orders take half a megabyte at most, or one epoch's."""
    X, y = problem(20_001)
    fit(network(), X, y, epochs=8, batch_size=10_000, device=backend)
    assert chunks == [2, 2, 2]
