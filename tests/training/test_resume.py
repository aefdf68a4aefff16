"""Training that was cut off goes on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend
from nnfast.training import checkpoint

from .helpers import assert_same, fit, network, problem


class Crash(Exception):  # noqa: N818
    pass


class CrashAfter(nf.Callback):
    """Ends a process, in a manner of speaking, after a step; before that nothing is different."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step: int, logs: dict[str, float]) -> None:
        if step == self.step:
            raise Crash


class Noisy(nf.Callback):
    """Has something of its own to keep."""

    def on_train_begin(self, model: Any) -> None:
        self.sum, self.losses = 0.0, np.zeros(0)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.sum += logs["loss"]
        self.losses = np.append(self.losses, logs["loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum, self.losses = state["sum"], state["losses"]


EPOCHS, STEPS = 4, 6  # 41 rows in batches of 8


def interrupted(path: Path, at: int, arguments: dict[str, Any], **more: Any) -> nf.Sequential:
    """A new model whose training was cut off after step `at`, checkpoints on the way."""
    model = network(norm=True, dropout=0.3)
    saver = nf.TrainingCheckpoint(path, every_steps=1)
    callbacks = [*arguments.pop("callbacks", ()), saver, CrashAfter(at)]
    with pytest.raises(Crash):
        fit(model, *problem(), callbacks=callbacks, **{"epochs": EPOCHS, **arguments, **more})
    return network(norm=True, dropout=0.3)


def assert_histories(a: nf.History, b: nf.History) -> None:
    assert a.epochs == b.epochs
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float64, sgd": {"dtype": "float64", "optimizer": nf.SGD(0.1, momentum=0.9)},
    "metrics, validation": {"metrics": ["accuracy"], "validation_split": 0.2},
    "average, decay": {"optimizer": nf.AdamW(0.01, ema=0.9, clip_norm=0.5)},
    "nadam, weights": {"optimizer": nf.NAdam(0.01), "class_weight": "balanced"},
    "schedule": {"optimizer": nf.Adam(nf.optimizers.schedules.get({"name": "cosine", "lr": 0.01}))},
    "plateau": {
        "optimizer": nf.SGD(
            nf.optimizers.schedules.get({"name": "plateau", "lr": 0.1, "patience": 1, "threshold": 9.0})
        )
    },
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_bit_for_bit_from_any_step(any_backend: Backend, settings: str, tmp_path: Path) -> None:
    arguments = {**SETTINGS[settings], "device": any_backend}
    whole = network(norm=True, dropout=0.3)
    history = fit(whole, *problem(), epochs=EPOCHS, **arguments)
    steps = whole.training_state.step
    path = tmp_path / "training.safetensors"
    each = {"plain": 1, "metrics, validation": 1}.get(settings, 3) if any_backend.name == "numpy" else 5
    for at in range(2, steps, each):
        model = interrupted(path, at, dict(arguments))
        assert nf.load(path).training_state.step == at - 1  # callbacks come before the checkpoint of their step
        found = fit(model, *problem(), epochs=EPOCHS, resume=path, **arguments)
        assert_same(model, whole)
        assert_histories(found, history)


@pytest.mark.parametrize("interval", [1, 4, 6, 7])
def test_where_they_are_written(
    backend: Backend, interval: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, int, int]] = []
    write = nf.TrainingCheckpoint.write

    def noted(self: Any, model: Any, position: Any) -> None:
        written.append((model.training_state.step, position.epoch, position.rows))
        write(self, model, position)

    monkeypatch.setattr(nf.TrainingCheckpoint, "write", noted)
    model = network()
    saver = nf.TrainingCheckpoint(tmp_path / "t.safetensors", every_steps=interval)
    fit(model, *problem(), epochs=EPOCHS, callbacks=[saver], device=backend)
    wanted = [s for s in range(1, EPOCHS * STEPS + 1) if s % interval == 0]
    assert [step for step, _, _ in written] == wanted
    assert [(epoch, rows) for _, epoch, rows in written] == [(s // STEPS + 1, s % STEPS * 8) for s in wanted]


def test_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "t.safetensors", iter(np.arange(0, 1e6))
    monkeypatch.setattr("nnfast.training.resuming.time.monotonic", lambda: float(next(clock)))
    seen: list[int] = []
    write = nf.TrainingCheckpoint.write
    monkeypatch.setattr(
        nf.TrainingCheckpoint, "write", lambda self, model, at: (seen.append(at.epoch), write(self, model, at))
    )
    model = network()
    callbacks = [nf.TrainingCheckpoint(path, every_minutes=0.2), Noisy()]
    history = fit(model, *problem(), epochs=30, callbacks=callbacks, device="numpy")
    assert 3 <= len(seen) < 30
    again = network()
    found = fit(again, *problem(), epochs=30, callbacks=[Noisy()], device="numpy", resume=path)
    assert_same(again, model)
    assert_histories(found, history)


def test_callbacks_go_on(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"

    def callbacks(name: str) -> list[nf.Callback]:
        return [
            nf.EarlyStopping("val_loss", 2, min_delta=0.02),
            nf.ModelCheckpoint(tmp_path / f"{name}-best.safetensors", save_best_only=True),
            nf.CSVLogger(tmp_path / f"{name}.csv"),
            nf.LearningRateLogger(),
            Noisy(),
        ]

    arguments: dict[str, Any] = {"validation_split": 0.3, "device": backend, "optimizer": nf.Adam(0.3)}
    whole, wanted = network(norm=True, dropout=0.3), callbacks("whole")
    history = fit(whole, *problem(), epochs=40, callbacks=wanted, **arguments)
    assert history.stopped
    steps = len(history.epochs) * 4
    for at in (6, steps - 3):
        interrupted(path, at, {**arguments, "callbacks": callbacks("parts")}, epochs=40)
        model, found = network(norm=True, dropout=0.3), callbacks("parts")
        again = fit(model, *problem(), epochs=40, callbacks=found, resume=path, **arguments)
        assert_same(model, whole)
        assert_histories(again, history)
        assert again.stopped == history.stopped
        assert (tmp_path / "parts.csv").read_text() == (tmp_path / "whole.csv").read_text()
        assert_same(nf.load(tmp_path / "parts-best.safetensors"), nf.load(tmp_path / "whole-best.safetensors"))
        assert (found[0].best_epoch, found[3].rates) == (wanted[0].best_epoch, wanted[3].rates)
        assert found[4].sum == wanted[4].sum
        np.testing.assert_array_equal(found[4].losses, wanted[4].losses)


class Batches:
    """An iterable that can be gone through again."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        X, y = problem()
        for start in range(0, len(X), 8):
            yield X[start : start + 8], y[start : start + 8]


@pytest.mark.parametrize("source", ["streamed", "batches"])
def test_data_that_do_not_live_on_the_device(
    backend: Backend, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnfast.training.loop.fits_on", lambda *_: False)
    data = problem() if source == "streamed" else (Batches(), None)
    arguments: dict[str, Any] = {"device": backend, "metrics": ["accuracy"], "epochs": 3}
    whole = network(dropout=0.3)
    history = fit(whole, *data, **arguments)
    for at in (4, 9, 13):
        path = tmp_path / "t.safetensors"
        callbacks = [nf.TrainingCheckpoint(path, every_steps=1), CrashAfter(at)]
        with pytest.raises(Crash):
            fit(network(dropout=0.3), *data, callbacks=callbacks, **arguments)
        model = network(dropout=0.3)
        assert_histories(fit(model, *data, resume=path, **arguments), history)
        assert_same(model, whole)


@pytest.mark.parametrize("source", ["resident", "streamed"])
def test_metrics_of_several_outputs(
    backend: Backend, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "streamed":
        monkeypatch.setattr("nnfast.training.loop.fits_on", lambda *_: False)
    X, y = problem()
    targets, path = [y, y > 1, y == 0], tmp_path / "t.safetensors"

    def make() -> nf.Model:
        x = nf.Input(4)
        h = nf.Dropout(0.3)(nf.Dense(6, "tanh")(x))
        return nf.Model(x, [nf.Dense(n, name=name)(h) for n, name in ((3, "kind"), (1, "large"), (1, "least"))])

    arguments: dict[str, Any] = {"loss": ["cross_entropy", *["binary_cross_entropy"] * 2], "device": backend}
    arguments |= {"metrics": {"kind": "accuracy", "least": ["roc_auc", "f1"]}, "validation_split": 0.2, "epochs": 3}
    whole = make()
    history = fit(whole, X, targets, **arguments)
    assert len(history) == 9
    for at in (3, 8):
        callbacks = [nf.TrainingCheckpoint(path, every_steps=1), CrashAfter(at)]
        with pytest.raises(Crash):
            fit(make(), X, targets, callbacks=callbacks, **arguments)
        fit(make(), X, targets, **{**arguments, "seed": 9})  # leaves its own outputs in the memory that comes next
        model = make()
        assert_histories(fit(model, X, targets, resume=path, **arguments), history)
        assert_same(model, whole)
    with pytest.raises(ValueError, match="in the middle of an epoch that had no metrics of output 1"):
        fit(make(), X, targets, resume=path, **{**arguments, "metrics": "accuracy"})


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_one(tmp_path: Path) -> None:
    class Press(nf.Callback):
        def on_step_end(self, step: int, logs: dict[str, float]) -> None:
            if step == 9:
                signal.raise_signal(signal.SIGINT)

    path = tmp_path / "t.safetensors"
    arguments: dict[str, Any] = {"epochs": 3, "device": "numpy"}
    whole = network(dropout=0.3)
    fit(whole, *problem(), **arguments)
    saver = nf.TrainingCheckpoint(path, every_minutes=1000)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        fit(network(dropout=0.3), *problem(), callbacks=[saver, Press()], **arguments)
    model = network(dropout=0.3)
    fit(model, *problem(), resume=path, **arguments)
    assert_same(model, whole)


def test_other_devices_and_threads_are_said(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    interrupted(path, 8, {"device": "numba"})
    with pytest.warns(RuntimeWarning, match=r"written on numba, \d+ threads, this is numpy"):
        fit(network(norm=True, dropout=0.3), *problem(), epochs=EPOCHS, device="numpy", resume=path)
    whole = network(norm=True, dropout=0.3)
    fit(whole, *problem(), epochs=EPOCHS, device="numpy")
    model = network(norm=True, dropout=0.3)
    with pytest.warns(RuntimeWarning, match="not bit for bit"):
        fit(model, *problem(), epochs=EPOCHS, device="numpy", resume=path)
    np.testing.assert_allclose(model.get_flat_weights(), whole.get_flat_weights(), atol=1e-4)


# ---- what does not fit -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"optimizer": "sgd"}, "the optimizer 'Adam', this fit has 'SGD'"),
        ({"loss": nf.CrossEntropy, "dtype": "float64"}, "the precision 'float32', this fit has 'float64'"),
        ({"seed": 4}, "the seed 3, this fit has 4"),
        ({"batch_size": 9}, "on 41 rows in batches of 8, this fit has 41 in batches of 9"),
        ({"callbacks": [CrashAfter(-1)]}, r"has the state of a callback Noisy, this fit has the callbacks"),
    ],
)
def test_another_fit(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    interrupted(path, 8, {"device": "numpy", "callbacks": [Noisy()]})
    model = network(norm=True, dropout=0.3)
    defaults: dict[str, Any] = {"device": "numpy", "callbacks": [Noisy()]}
    change = {k: v() if k == "loss" else v for k, v in change.items()}
    with pytest.raises(ValueError, match=match):
        fit(model, *problem(), epochs=EPOCHS, resume=path, **{**defaults, **change})
    assert not model.is_built


def test_another_model_or_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    interrupted(path, 8, {"device": "numpy"})
    with pytest.raises(ValueError, match="is of another model"):
        fit(network(), *problem(), resume=path, device="numpy")
    with pytest.raises(FileNotFoundError):
        fit(network(), *problem(), resume=tmp_path / "missing", device="numpy")
    plain = tmp_path / "m.safetensors"
    network().build(4).save(plain)
    with pytest.raises(nf.CheckpointError, match="is a model, not a training that could go on"):
        fit(network(), *problem(), resume=plain, device="numpy")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"every_steps": 1, "every_minutes": 1}, {"every_steps": 0}, {"every_minutes": -1}, {"every_steps": 1.5}],
)
def test_bad_intervals(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="TrainingCheckpoint"):
        nf.TrainingCheckpoint("t", **arguments)


@pytest.mark.parametrize(
    "forge",
    [
        lambda run, arrays: run.pop("epoch"),
        lambda run, arrays: run.update(epoch=10**9),
        lambda run, arrays: run.update(epoch="x"),
        lambda run, arrays: run.update(rows=-1),
        lambda run, arrays: run.update(epochs=[1, 2, 3, 4, 5]),
        lambda run, arrays: run.update(callbacks=3),
        lambda run, arrays: run.update(callbacks=[{"class": "Noisy", "state": 7}]),
        lambda run, arrays: run.update(size=[1]),
        lambda run, arrays: arrays.pop("sums"),
        lambda run, arrays: arrays.update(sums=np.zeros((2, 2))),
    ],
)
def test_forged_positions(forge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    described = nf.training.resuming.Position.described

    def forged(self: Any) -> Any:
        run, arrays = described(self)
        forge(run, arrays)
        return run, arrays

    monkeypatch.setattr(nf.training.resuming.Position, "described", forged)
    interrupted(path, 8, {"device": "numpy"})
    with pytest.raises(nf.CheckpointError, match="does not describe a training"):
        fit(network(norm=True, dropout=0.3), *problem(), resume=path, device="numpy")


# ---- killed while writing ----------------------------------------------------------------------------------------
_CHILD = """
import os, signal, sys
from pathlib import Path
import numpy as np
import nnfast as nf
from nnfast.training import checkpoint

path, how, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
X = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
y = (X[:, 0] > 0).astype(int)
calls = 0

def killing(function, after):
    def call(*arguments, **more):
        global calls
        calls += 1
        if calls == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **more)
        if calls == at and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

class Arm(nf.Callback):
    def on_step_end(self, step, logs):
        if step != 5:
            return
        if how == "write":
            import resource
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills at this byte
            resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
        elif how.startswith("fsync"):
            os.fsync = killing(os.fsync, how.endswith("after"))
        else:
            Path.replace = killing(Path.replace, how.endswith("after"))

model = nf.Sequential([nf.Dense(8, "relu"), nf.Dense(2)])
model.fit(X, y, loss="cross_entropy", epochs=2, batch_size=8, device="numpy", seed=0, verbose=0,
          callbacks=[nf.TrainingCheckpoint(path, every_steps=4), Arm()])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals and limits")
@pytest.mark.parametrize(
    ("how", "at"),
    [
        *(("write", at) for at in (0, 1, 7, 8, 9, 500, 1500, 2500)),
        *((f"{call} {when}", at) for call, counts in (("fsync", (1, 2)), ("replace", (1,))) for at in counts
          for when in ("before", "after")),
    ],
)  # fmt: skip
def test_killed_at_any_moment(how: str, at: int, tmp_path: Path) -> None:
    """The checkpoint of step 4 is there when that of step 8 is written, and the process killed in the middle of it."""
    path = tmp_path / "t.safetensors"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(_CHILD), str(path), how, str(at)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert -done.returncode in (signal.SIGKILL, signal.SIGXFSZ), done.stderr
    step = nf.load(path).training_state.step
    new = (how, at) in (("fsync before", 2), ("fsync after", 2), ("replace after", 1))
    assert step == (8 if new else 4)
    assert "run" in checkpoint.read(path)[0]


def test_states_that_steps_hand_on(backend: Backend, tmp_path: Path) -> None:
    """Truncated backpropagation through time, cut off in the middle of an epoch, with layers within a block."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((24, 5, 3)), rng.integers(0, 3, 24)

    def model() -> nf.Sequential:
        return nf.Sequential([nf.Chain([nf.GRU(4, stateful=True)]), nf.Dense(3)])

    arguments: dict[str, Any] = {
        "loss": "cross_entropy", "batch_size": 4, "epochs": 2, "shuffle": False,
        "device": backend, "seed": 0, "verbose": 0,
    }  # fmt: skip
    path = tmp_path / "t.safetensors"
    whole = model()
    saver = nf.TrainingCheckpoint(path, every_steps=4)

    class Cut(nf.Callback):
        def on_step_end(self, step: int, logs: dict[str, float]) -> None:
            if step == 5:
                raise KeyError("cut off")

    with pytest.raises(KeyError):
        model().fit(X, y, callbacks=[saver, Cut()], **arguments)
    history = whole.fit(X, y, **arguments)
    again = model()
    found = again.fit(X, y, resume=path, **arguments)
    np.testing.assert_array_equal(again.get_flat_weights(), whole.get_flat_weights())
    assert list(found["loss"]) == list(history["loss"])
    unlike = nf.Sequential([nf.GRU(4), nf.Dense(3)])
    unlike.fit(X, y, **arguments)
    assert unlike.get_flat_weights().tolist() != whole.get_flat_weights().tolist()
