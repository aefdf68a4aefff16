"""The epochs of one fit: one by one, or many at once where nothing has to happen in between."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..kernels import step_state as S
from ..network import Network
from . import data
from .callbacks import Callback, FitInfo, StopOnNonFinite, acts_between_epochs, watches_steps
from .engine import Engine
from .history import History
from .output_metrics import OutputMetrics, compute_metrics
from .progress import ProgressBar
from .resuming import Position, TrainingCheckpoint, threads_of
from .sources import Source, next_chunk
from .validation import Validation

__all__ = ["Run"]


class _Interrupt:
    """Whether Ctrl-C was pressed; the second press is an ordinary KeyboardInterrupt."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self, *_: Any) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


@contextmanager
def _catch_interrupt() -> Iterator[_Interrupt]:
    """Turn the first Ctrl-C into a flag that is looked at between steps."""
    interrupt = _Interrupt()
    # Only the main thread may set handlers, and another program's own handler is left alone
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


class Run:
    """One call of fit."""

    def __init__(
        self,
        model: Network,
        engine: Engine,
        source: Source,
        validation: Validation | None,
        metrics: Sequence[OutputMetrics],
        callbacks: Sequence[Callback],
        epochs: int,
        verbose: int,
        resumed: Position | None = None,
    ) -> None:
        self.model, self.engine, self.source, self.validation = model, engine, source, validation
        # The bar comes last: its line of an epoch shows what the other callbacks added
        bar = [ProgressBar(lines=verbose > 1)] if verbose else []
        self.metrics, self.callbacks = metrics, [*callbacks, *bar]
        self.resumed = resumed
        self.first = engine.progress.epoch + 1 if resumed is None else resumed.first
        self.last = self.first + epochs - 1
        self.first_step = engine.step if resumed is None else resumed.first_step
        self.history = History() if resumed is None else resumed.history
        device = engine.backend.device
        info = FitInfo(
            self.first, self.last, source.rows, model.parameters.count, device, self.history, resumed is not None
        )
        for callback in self.callbacks:
            callback.model, callback.info = model, info
        self.savers = [callback for callback in callbacks if isinstance(callback, TrainingCheckpoint)]
        self.each_step = any(watches_steps(callback) for callback in self.callbacks)
        self.quiet = [callback for callback in self.callbacks if isinstance(callback, StopOnNonFinite)]
        waits = validation is not None or engine.schedule.adaptive or self.each_step
        alone = waits or any(map(acts_between_epochs, self.callbacks))
        alone = alone or any(saver.every_steps is not None for saver in self.savers)
        self.most_at_once = 1 if alone else source.at_once
        steps = source.steps
        engine.bind(steps, None if steps is None else self.first_step + epochs * steps)

    def run(self) -> History:
        model = self.model
        model.stop_training = False
        for callback in self.callbacks:
            callback.on_train_begin(model)
        if self.resumed is not None:
            for callback, (_, state) in zip(self.resumed.going_on, self.resumed.callbacks, strict=True):
                callback.load_state_dict(state)
        try:
            with _catch_interrupt() as self.interrupt:
                self._epochs()
        finally:
            self.engine.finish()
            for callback in self.callbacks:
                callback.on_train_end(model)
        if self.interrupt.pressed:
            stopped = self.history.stopped or "interrupted after its last epoch"
            warnings.warn(f"training was {stopped}", RuntimeWarning, stacklevel=4)
        return self.history

    def _epochs(self) -> None:
        epoch, at_once = self.first if self.resumed is None else self.resumed.epoch, 1
        while epoch <= self.last:
            count = min(at_once, self.last - epoch + 1)
            if count > 1:
                assert self.source.steps is not None
                count = max(1, min(count, self.engine.epochs_ready(self.source.steps)))
            began = time.perf_counter()
            goes_on = self._several(epoch, count) if count > 1 else self._epoch(epoch)
            epoch += count
            if self.history.epochs[-1:] == [epoch - 1]:  # not cut off in the middle
                self._save(epoch, 0)
            if not goes_on:
                return
            if count == at_once:  # as many as were wanted: the time tells
                at_once = min(self.most_at_once, next_chunk(count, time.perf_counter() - began))

    def _several(self, first: int, count: int) -> bool:
        """Run `count` epochs at once; whether another one may follow."""
        engine = self.engine
        began = time.perf_counter()
        engine.begin_epochs()
        self.source.run_epochs(engine, first - 1, count)
        state = engine.read()
        seconds = (time.perf_counter() - began) / count
        done = int(state[S.EPOCH_INDEX])  # those before a bad step
        if done:
            sums, weights, rates = engine.plan.read_results(done).T
            losses = np.divide(sums, weights, out=np.full(done, np.nan), where=weights != 0)
            # A number object of its own for each epoch costs a tenth of an epoch of the smallest networks
            constant = (rates == rates[0]).all()
            lr = [float(rates[0])] * done if constant else rates.tolist()
            curves = {"loss": losses.tolist(), "lr": lr}
            engine.progress.epoch = first + done - 1
            engine.note(state)
            for callback in self.callbacks:
                callback.on_epochs(first, curves, seconds * done)
            self.history.extend(range(first, first + done), curves)
        if state[S.BAD_STEP]:
            return self._bad_step(state)
        return self._goes_on(first + count - 1)

    def _epoch(self, epoch: int) -> bool:
        """Run an epoch; whether another one may follow."""
        engine, model = self.engine, self.model
        for callback in self.callbacks:
            callback.on_epoch_begin(epoch)
        engine.begin_epochs()
        self.shown, self.current = 0, epoch
        start, outputs = 0, {}
        resumed, self.resumed = self.resumed, None
        if resumed is not None and resumed.rows:
            start, outputs = resumed.rows, resumed.outputs
            slots = {S.ROW: start, S.LOSS_SUM: resumed.loss_sum, S.WEIGHT_SUM: resumed.weight_sum, S.LR: resumed.lr}
            for slot, value in slots.items():
                engine.set(slot, float(value))
            engine.plan.set_carried(resumed.carried)
        self._look_next()
        rows = self.source.run_epoch(engine, epoch - 1, self._pause, self.each_step, start, outputs)
        state = engine.read()
        if state[S.BAD_STEP]:
            return self._bad_step(state)
        if rows == 0:
            raise data.EmptyDataError(f"epoch {epoch} brought no batches; an iterator can be gone through only once")
        if self.interrupt.pressed:
            self.history.stopped = f"interrupted in epoch {epoch}, after step {engine.step}"
            return False
        logs = {"loss": float(state[S.LOSS_SUM] / state[S.WEIGHT_SUM]) if state[S.WEIGHT_SUM] else float("nan")}
        if self.metrics:
            target, outputs = self.source.kept(rows)
            logs |= compute_metrics(self.metrics, target, outputs)
        if self.validation is not None:
            logs |= {f"val_{name}": value for name, value in self.validation.evaluate(model).items()}
        logs["lr"] = float(state[S.LR])
        engine.progress.epoch = epoch
        if engine.schedule.adaptive:
            engine.schedule.watch(logs)
            engine.forget_rates()
        engine.note(state)  # a callback may save the model
        if self.shown != rows:
            self._show(rows, logs["loss"])
        for callback in self.callbacks:
            callback.on_epoch_end(epoch, logs)
        self.history.append(epoch, logs)
        return self._goes_on(epoch)

    def _goes_on(self, epoch: int) -> bool:
        """Whether there may be another epoch after `epoch`."""
        if self.interrupt.pressed:
            self.history.stopped = f"interrupted after epoch {epoch}"
        elif self.model.stop_training and epoch < self.last:
            self.history.stopped = f"stopped by a callback after epoch {epoch}"
        return not (self.model.stop_training or self.interrupt.pressed)

    def _bad_step(self, state: np.ndarray) -> bool:
        if not self.quiet:
            self.engine.check(state)
        step = int(state[S.BAD_STEP])
        for callback in self.quiet:
            callback.step = step
        self.history.stopped = f"stopped: not finite at step {step}"
        return False

    def _show(self, rows: int, loss: float) -> None:
        self.shown = rows
        for callback in self.callbacks:
            callback.on_progress(rows, {"loss": loss})

    def _pause(self, rows: int) -> bool:
        """Between steps: show progress, call callbacks; whether to stop here."""
        state = self.engine.read()
        if state[S.WEIGHT_SUM]:
            self._show(rows, float(state[S.LOSS_SUM] / state[S.WEIGHT_SUM]))
        if self.each_step:
            logs = {"loss": float(state[S.LOSS]), "lr": float(state[S.LR])}
            for callback in self.callbacks:
                callback.on_step_end(self.engine.step, logs)
        stop = bool(self.interrupt.pressed or state[S.BAD_STEP] or (self.each_step and self.model.stop_training))
        if not state[S.BAD_STEP] and rows != self.source.rows:
            self._save(self.current, rows, state)
            self._look_next()
        return stop

    # ---- checkpoints of the training -----------------------------------------------------------------------
    def _look_next(self) -> None:
        """Let the source pause after the step of the next checkpoint."""
        steps = [step for saver in self.savers if (step := saver.next_step(self.engine.step)) is not None]
        self.engine.pause_at = min(steps, default=None)

    def _save(self, epoch: int, rows: int, state: np.ndarray | None = None) -> None:
        """Write the checkpoints that are due, or all when training was interrupted, before row `rows` of `epoch`."""
        engine = self.engine
        due = [saver for saver in self.savers if self.interrupt.pressed or saver.due(engine.step)]
        if not due:
            return
        state = engine.read() if state is None else state
        engine.note(state)
        position = Position(
            self.first,
            self.last,
            self.first_step,
            epoch,
            rows,
            float(state[S.LOSS_SUM]) if rows else 0.0,
            float(state[S.WEIGHT_SUM]) if rows else 0.0,
            float(state[S.LR]),
            (self.source.rows, self.source.batch),
            engine.backend.device,
            threads_of(engine.backend),
            type(engine.optimizer).__name__,
            type(engine.loss).__name__,
            self.history,
            [(type(c).__name__, kept) for c in self.callbacks if (kept := c.state_dict())],
            self.source.kept(rows)[1] if rows and self.metrics else {},
            carried=engine.plan.carried() if rows else [],
        )
        for saver in due:
            saver.write(self.model, position)
