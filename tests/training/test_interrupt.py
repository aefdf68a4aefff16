"""Ctrl-C stops training between two steps; the model stays usable and the handlers are as before."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend
from nnfast.training.engine import Engine

from .helpers import assert_same, fit, network, problem

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="a process cannot send itself Ctrl-C"),
    pytest.mark.usefixtures("ctrl_c"),
]


class Press(nf.Callback):
    """Ctrl-C at the end of some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_step_end(self, step: int, logs: dict[str, float]) -> None:
        if step in self.steps:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("streamed", [False, True])
def test_training_stops_after_the_step(streamed: bool, backend: Backend) -> None:
    X, y = problem()
    model, twin = network(dropout=0.3, norm=True), network(dropout=0.3, norm=True)
    batches = [(X[i : i + 8], y[i : i + 8]) for i in range(0, 41, 8)]
    data = (batches,) if streamed else (X, y)
    ended = []
    callback = Press(8)
    callback.on_train_end = ended.append  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match="interrupted in epoch 2, after step 8"):
        history = fit(model, *data, epochs=5, shuffle=False, device=backend, callbacks=[callback])
    assert history.stopped == "interrupted in epoch 2, after step 8"
    assert history.epochs == [1]
    assert ended == [model]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # Exactly eight steps were done, whole ones, and training goes on from there
    trainer = nf.Trainer(twin, "cross_entropy", "adam", device=backend, seed=3)
    for xb, yb in [*batches, *batches[:2]]:
        trainer.step(xb, yb)
    twin.training_state.epoch = 1
    assert_same(model, twin)
    assert fit(model, *data, device=backend).epochs == [2]
    assert np.isfinite(model.predict(X)).all()


def test_the_second_press_is_an_ordinary_interrupt(backend: Backend) -> None:
    class Twice(nf.Callback):
        def on_step_end(self, step: int, logs: dict[str, float]) -> None:
            if step == 2:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    model = network()
    with pytest.raises(KeyboardInterrupt):
        fit(model, *problem(), epochs=3, device=backend, callbacks=[Twice()])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert model.training_state.step == 2
    assert fit(model, *problem(), device=backend).epochs == [1]


@pytest.mark.parametrize(("epoch", "trained"), [(1, 1), (2, 2), (3, 3)])
def test_between_epochs(epoch: int, trained: int) -> None:
    class After(nf.Callback):
        def on_epoch_end(self, number: int, logs: dict[str, float]) -> None:
            if number == epoch:
                signal.raise_signal(signal.SIGINT)

    model = network()
    with pytest.warns(RuntimeWarning, match=f"interrupted after epoch {epoch}"):
        history = fit(model, *problem(), epochs=3, device="numpy", callbacks=[After()])
    assert history.epochs == list(range(1, trained + 1))
    assert model.training_state.step == 6 * trained


def test_from_outside_while_nobody_watches_steps(backend: Backend) -> None:
    X, y = problem()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    model = network()
    try:
        with pytest.warns(RuntimeWarning, match="interrupted"):
            history = fit(model, X.repeat(100, axis=0), y.repeat(100), epochs=400, batch_size=1, device=backend)
    finally:
        timer.cancel()
        timer.join()
    assert len(history.epochs) < 400
    assert model.training_state.step > 0
    assert np.isfinite(model.predict(X)).all()


def test_between_epochs_that_run_at_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Engine.run_epochs

    def pressed(self: Engine, rows: int, epochs: int) -> None:
        run(self, rows, epochs)
        if epochs == 9:
            signal.raise_signal(signal.SIGINT)

    model, twin = network(), network()
    with monkeypatch.context() as patch:
        patch.setattr("nnfast.training.run.next_chunk", lambda chunk, seconds: 3 * chunk)
        patch.setattr(Engine, "run_epochs", pressed)
        with pytest.warns(RuntimeWarning, match="interrupted after epoch 13"):
            history = fit(model, *problem(), epochs=100, device=backend)
    assert history.epochs == list(range(1, 14))
    assert history.stopped == "interrupted after epoch 13"
    fit(twin, *problem(), epochs=13, device=backend)
    assert_same(model, twin)


def test_short_epochs_from_outside(backend: Backend) -> None:
    """Training that would take minutes ends soon after Ctrl-C."""
    X, y = problem()
    model = network()
    fit(model, X, y, batch_size=64, device=backend)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.warns(RuntimeWarning, match="interrupted"):
            history = fit(model, X, y, batch_size=64, epochs=10**9, device=backend)
    finally:
        timer.cancel()
        timer.join()
    assert 0 < len(history.epochs) < 10**8
    assert history.stopped == f"interrupted after epoch {history.epochs[-1]}"
    assert model.training_state.step == model.training_state.epoch == history.epochs[-1]


def test_a_handler_of_the_users_own_is_left_alone() -> None:
    pressed: list[Any] = []

    def own(*arguments: Any) -> None:
        pressed.append(arguments)

    signal.signal(signal.SIGINT, own)
    history = fit(network(), *problem(), epochs=2, device="numpy", callbacks=[Press(3)])
    assert len(pressed) == 1
    assert history.epochs == [1, 2]
    assert signal.getsignal(signal.SIGINT) is own


def test_handlers_are_restored_after_an_error() -> None:
    class Broken(nf.Callback):
        def on_epoch_begin(self, epoch: int) -> None:
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(network(), *problem(), device="numpy", callbacks=[Broken()])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_in_another_thread_touches_no_handler() -> None:
    seen: list[Any] = []

    class Watch(nf.Callback):
        def on_epoch_begin(self, epoch: int) -> None:
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(
        target=fit, args=(network(), *problem()), kwargs={"device": "numpy", "callbacks": [Watch()]}
    )
    thread.start()
    thread.join(timeout=30)
    assert seen == [signal.default_int_handler]
