"""The training loop behind ``model.fit``."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import metrics as metrics_module
from ..backends.base import Backend
from ..kernels import step_state as S
from ..losses import Hinge, Loss
from ..network import Network
from ..optimizers import Optimizer
from . import data
from .callbacks import Callback, FitInfo, StopOnNonFinite, watches_steps
from .engine import Engine
from .history import History
from .inference import forward
from .predictions import through_link
from .progress import ProgressBar
from .sources import BatchSource, ResidentSource, Source, StreamedSource

__all__ = ["Validation", "fit"]

# Share of the free memory that the data set may take to live on the device
_RESIDENT_SHARE = 0.5


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


class Validation:
    """A checked validation set, evaluated after each epoch."""

    def __init__(self, model: Network, x: Any, y: Any, weight: Any, loss: Loss, metrics: list[Any], dtype: Any) -> None:
        x, y = data.as_array(x, "validation X"), data.as_array(y, "validation y")
        data.check_inputs(x, model.in_shape, "validation X")
        if len(x) != len(y):
            raise ValueError(f"validation X has {len(x)} rows, validation y has {len(y)}")
        if len(x) == 0:
            raise data.EmptyDataError("the validation data have no rows")
        data.check_finite(x, "validation X", dtype)
        self.x, self.loss, self.metrics = x, loss, metrics
        self.target = loss.targets(y, model.out_shape, dtype)
        self.weight = data.sample_weights(weight, None, self.target, len(x), dtype)

    def evaluate(self, model: Network, batch_size: int | None = None) -> dict[str, float]:
        """Loss and metrics, by name."""
        outputs, loss = forward(
            model,
            self.x,
            loss=self.loss,
            target=self.target,
            weight=self.weight,
            batch_size=batch_size,
            outputs=bool(self.metrics),
        )
        logs = {"loss": loss}
        if outputs is not None:
            logs |= compute_metrics(self.metrics, self.loss, self.target, outputs, self.weight)
        return logs


def compute_metrics(
    metrics: list[Any], loss: Loss, target: np.ndarray, outputs: np.ndarray, weight: np.ndarray | None = None
) -> dict[str, float]:
    """Each metric of predictions made from what the loss starts from."""
    outputs = outputs.reshape(len(outputs), -1)
    if isinstance(loss, Hinge):
        # Metrics know classes 0 and 1 and a threshold of 0.5; the sigmoid puts the margin's 0 there
        predicted, target = through_link("sigmoid", outputs), (target > 0).astype(np.int64)
    else:
        predicted = through_link(loss.link, outputs)
    return {metric.name: float(metric(target, predicted, sample_weight=weight)) for metric in metrics}


def _fits(backend: Backend, x: np.ndarray, dtype: Any) -> bool:
    """Whether the inputs may live on the device as `dtype`."""
    if backend.xp is np and x.dtype == dtype and x.flags.c_contiguous:
        return True  # gathered from where they are
    free, _ = backend.memory()
    return x.size * np.dtype(dtype).itemsize <= _RESIDENT_SHARE * free


def fit(
    model: Network,
    x: Any,
    y: Any,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    backend: Backend,
    dtype: Any,
    validation_data: Any,
    validation_split: float,
    shuffle: bool,
    sample_weight: Any,
    class_weight: Any,
    metrics: Sequence[Any],
    callbacks: Sequence[Callback],
    seed: int | None,
    verbose: int,
) -> History:
    """Train `model`; the arguments are those of ``Sequential.fit``, resolved."""
    metric_list = [metrics_module.get(metric) for metric in metrics]
    if class_weight is not None and not loss.classification:
        raise ValueError(f"class_weight needs a loss of classes; the targets of {type(loss).__name__} are none")
    with model.unbuilt_on_error():
        if y is None and data.is_batches(x):
            if validation_split:
                raise ValueError("validation_split needs arrays; give validation_data beside an iterable of batches")
            if sample_weight is not None:
                raise ValueError("sample_weight needs arrays; yield (x, y, sample_weight) from the iterable")
            if isinstance(class_weight, str):
                raise ValueError(f"class_weight={class_weight!r} needs arrays; beside an iterable, give a dict")
            batches = BatchSource(x, loss, class_weight, dtype)
            model.prepare(batches.in_shape, seed, dtype)
            batches.expect(model.in_shape, model.out_shape)
            source: Source = batches
        else:
            x, y = _checked_arrays(model, backend, x, y, dtype)
            model.prepare(x.shape[1:], seed, dtype)
            target = loss.targets(y, model.out_shape, dtype)
            if sample_weight is not None:
                sample_weight = data.sample_weights(sample_weight, None, target, len(y), np.float64)
            if validation_split:
                if validation_data is not None:
                    raise ValueError("give validation_data or validation_split, not both")
                rows, held = data.split(len(x), validation_split, model.training_state.seed)
                own = None if sample_weight is None else sample_weight[held]
                index = backend.asarray if data.on_gpu(x) else np.asarray
                validation_data = (x[index(held)], y[held], own)
                x, target = x[index(rows)], target[rows]
                sample_weight = None if sample_weight is None else sample_weight[rows]
            # After the split: "balanced" counts the rows that are trained on
            weight = data.sample_weights(sample_weight, class_weight, target, len(target), dtype)
            kind = ResidentSource if data.on_gpu(x) or _fits(backend, x, dtype) else StreamedSource
            source = kind(x, target, weight, min(batch_size, len(target)), shuffle, model.training_state.seed)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
                raise TypeError("validation_data must be (X, y) or (X, y, sample_weight)")
            held_x, held_y, held_weight = (*validation_data, None)[:3]
            validation = Validation(model, held_x, held_y, held_weight, loss, metric_list, dtype)
        engine = Engine(
            model,
            loss,
            optimizer,
            backend,
            dtype,
            source.batch,
            target=source.target,
            weighted=source.weighted,
            lr_steps=min(source.steps or 256, 4096),
        )
        source.attach(engine, bool(metric_list))
    return _Run(model, engine, source, validation, metric_list, callbacks, epochs, verbose).run()


def _checked_arrays(model: Network, backend: Backend, x: Any, y: Any, dtype: Any) -> tuple[Any, np.ndarray]:
    """Inputs, which stay on a GPU if they are there and the backend is, and targets on the host."""
    if y is None:
        raise TypeError("y is missing; only an iterable of (x, y) batches goes without it")
    resident = data.on_gpu(x) and backend.xp is not np
    x = backend.asarray(x) if resident else data.as_array(x, "X")
    y = data.as_array(y, "y")
    data.check_inputs(x, model.in_shape if model.is_built else None)
    if len(x) != len(y):
        raise ValueError(f"X has {len(x)} rows, y has {len(y)}")
    if len(x) == 0:
        raise data.EmptyDataError("X has no rows: there is nothing to train on")
    if resident and x.dtype.kind == "f" and not bool(backend.xp.isfinite(x).all()):
        raise ValueError("X contains NaN or infinity; training needs finite numbers")
    if not resident:
        data.check_finite(x, "X", dtype)
    return x, y


class _Run:
    """One call of fit, epoch by epoch."""

    def __init__(
        self,
        model: Network,
        engine: Engine,
        source: Source,
        validation: Validation | None,
        metrics: list[Any],
        callbacks: Sequence[Callback],
        epochs: int,
        verbose: int,
    ) -> None:
        self.model, self.engine, self.source, self.validation = model, engine, source, validation
        # The bar comes last: its line of an epoch shows what the other callbacks added
        bar = [ProgressBar(lines=verbose > 1)] if verbose else []
        self.metrics, self.callbacks = metrics, [*callbacks, *bar]
        self.first = engine.progress.epoch + 1
        self.last = engine.progress.epoch + epochs
        self.history = History()
        info = FitInfo(self.first, self.last, source.rows, model.parameters.count, engine.backend.device, self.history)
        for callback in self.callbacks:
            callback.model, callback.info = model, info
        self.each_step = any(watches_steps(callback) for callback in self.callbacks)
        self.quiet = [callback for callback in self.callbacks if isinstance(callback, StopOnNonFinite)]
        steps = source.steps
        engine.schedule.bind(steps, None if steps is None else engine.step + epochs * steps)

    def run(self) -> History:
        model = self.model
        model.stop_training = False
        for callback in self.callbacks:
            callback.on_train_begin(model)
        try:
            with _catch_interrupt() as self.interrupt:
                for epoch in range(self.first, self.last + 1):
                    if not self._epoch(epoch):
                        break
        finally:
            self.engine.finish()
            for callback in self.callbacks:
                callback.on_train_end(model)
        if self.interrupt.pressed:
            stopped = self.history.stopped or "interrupted after its last epoch"
            warnings.warn(f"training was {stopped}", RuntimeWarning, stacklevel=4)
        return self.history

    def _epoch(self, epoch: int) -> bool:
        """Run an epoch; whether another one may follow."""
        engine, model = self.engine, self.model
        for callback in self.callbacks:
            callback.on_epoch_begin(epoch)
        engine.begin_epoch()
        self.shown = 0
        rows = self.source.run_epoch(engine, epoch - 1, self._pause, self.each_step)
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
            logs |= compute_metrics(self.metrics, engine.loss, target, outputs)
        if self.validation is not None:
            logs |= {f"val_{name}": value for name, value in self.validation.evaluate(model).items()}
        logs["lr"] = float(state[S.LR])
        engine.progress.epoch = epoch
        if engine.schedule.adaptive:
            engine.schedule.update(logs.get("val_loss", logs["loss"]))
            engine.forget_rates()
        engine.note(state)  # a callback may save the model
        if self.shown != rows:
            self._show(rows, logs["loss"])
        for callback in self.callbacks:
            callback.on_epoch_end(epoch, logs)
        self.history.append(epoch, logs)
        if self.interrupt.pressed:
            self.history.stopped = f"interrupted after epoch {epoch}"
        elif model.stop_training and epoch < self.last:
            self.history.stopped = f"stopped by a callback after epoch {epoch}"
        return not (model.stop_training or self.interrupt.pressed)

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
        return bool(self.interrupt.pressed or state[S.BAD_STEP] or (self.each_step and self.model.stop_training))
