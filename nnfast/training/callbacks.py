"""Callbacks: what may happen between steps and between epochs."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..network import Network
from ..optimizers.schedule import monitored
from . import checkpoint
from .history import History
from .output_metrics import metric_part

__all__ = [
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "FitInfo",
    "LearningRateLogger",
    "ModelCheckpoint",
    "StopOnNonFinite",
]


@dataclass(frozen=True)
class FitInfo:
    """What a callback may want to know of the fit that it is in.

    Attributes
    ----------
    first, last : int
        Numbers of the first and the last epoch.
    rows : int or None
        Rows in an epoch, where that is known.
    parameters : int
        Number of trained parameters.
    device : str
        Where the model is trained.
    history : History
        Grows with each epoch.
    resumed : bool
        Whether the fit goes on from a checkpoint.
    """

    first: int
    last: int
    rows: int | None
    parameters: int
    device: str
    history: History
    resumed: bool = False


class Callback:
    """Base class of all callbacks, and of the user's own.

    Override what you need. ``self.model.stop_training = True`` ends training after the current epoch, or
    after the current step from :meth:`on_step_end`.

    Attributes
    ----------
    model : Network
        The model in training.
    info : FitInfo
        The fit's length, size and device, and its history so far.
    """

    model: Network
    info: FitInfo

    def on_train_begin(self, model: Network) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Before an epoch; `epoch` counts from 1."""

    def on_step_end(self, step: int, logs: dict[str, float]) -> None:
        """After each step, with its ``loss`` and ``lr``. Overriding this makes every step wait for it."""

    def on_progress(self, rows: int, logs: dict[str, float]) -> None:
        """Some ten times a second within an epoch: `rows` rows are done, with this mean ``loss`` so far."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """After an epoch, with all its numbers; what is added to `logs` goes into the history."""

    def on_epochs(self, first: int, curves: dict[str, list[float]], seconds: float) -> None:
        """After several epochs that ran at once, in place of the three calls for each of them.

        Short epochs run at once for up to about a tenth of a second, which saves what a return to Python for each of
        them costs, where nothing has to happen in between: no metrics, no validation, and no callback that
        overrides :meth:`on_epoch_begin`, :meth:`on_progress` or :meth:`on_epoch_end`. One that does, but only looks
        at the numbers, may override this one, too; it must neither stop the training, nor change the model or the
        numbers. Where a class derived from it overrides one of the three again, those are called again.

        Parameters
        ----------
        first : int
            Number of the first of the epochs.
        curves : dict of list of float
            The numbers of each epoch, by name: ``loss`` and ``lr``.
        seconds : float
            What the epochs took together.
        """

    def on_train_end(self, model: Network) -> None:
        """After the last epoch, however training ended."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the training must keep: arrays, and what JSON can hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave, after :meth:`on_train_begin`, where a training goes on."""


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Raise ``TypeError`` for what is no callback."""
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be Callback objects, not {type(callback).__name__}")


def watches_steps(callback: Callback) -> bool:
    """Whether a callback wants to be called after each step."""
    return type(callback).on_step_end is not Callback.on_step_end


def acts_between_epochs(callback: Callback) -> bool:
    """Whether a callback has to be called for an epoch before the next one runs."""
    kinds = type(callback).__mro__

    def owner(method: str) -> type:
        return next(kind for kind in kinds if method in vars(kind))

    # on_epochs stands for what its own class and those above it do in an epoch, not for what others do
    several, methods = owner("on_epochs"), ("on_epoch_begin", "on_progress", "on_epoch_end")
    return any(method in vars(callback) or not issubclass(several, owner(method)) for method in methods)


# What the names of weights begin with, in the state of a callback
_WEIGHTS = "weights/"


class _Best:
    """Keeps the best value of a monitored number."""

    def __init__(self, monitor: str, mode: str, model: Network, min_delta: float = 0.0) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
        self.monitor = monitor
        if mode == "auto":
            metric = metric_part(monitor, model)
            loss_like = any(part in metric for part in ("loss", "error", "mae", "mse", "rmse"))
            mode = "min" if loss_like else "max"
        self.sign = 1.0 if mode == "min" else -1.0
        self.min_delta = abs(float(min_delta))
        self.value = math.inf

    def improved(self, logs: dict[str, float]) -> bool:
        value = self.sign * monitored(self.monitor, logs)
        if value < self.value - self.min_delta:
            self.value = value
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if math.isinf(self.value) else self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = math.inf if state["best"] is None else float(state["best"])


class EarlyStopping(Callback):
    """Stop when a number has not become better for some epochs.

    Parameters
    ----------
    monitor : str
        Name of the number, such as ``"val_loss"``, ``"val_accuracy"`` or, of one output of several,
        ``"val_<output>_accuracy"``.
    patience : int
        Epochs without an improvement after which training stops.
    min_delta : float
        An improvement must be larger than this.
    mode : {"auto", "min", "max"}
        Whether less or more is better; "auto" goes by the name.
    restore_best : bool
        Give the model the weights of its best epoch at the end.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        *,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping: patience must be at least 1, got {patience}")
        self.monitor, self.patience, self.min_delta, self.mode = monitor, int(patience), min_delta, mode
        self.restore_best = restore_best
        self.best_epoch = self.stopped_epoch = 0

    def on_train_begin(self, model: Network) -> None:
        self._best = _Best(self.monitor, self.mode, model, self.min_delta)
        self._weights: dict[str, Any] | None = None
        self._waited = 0
        self.best_epoch = self.stopped_epoch = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if self._best.improved(logs):
            self.best_epoch, self._waited = epoch, 0
            if self.restore_best:
                self._weights = self.model.get_weights()
            return
        self._waited += 1
        if self._waited >= self.patience:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def state_dict(self) -> dict[str, Any]:
        weights = {f"{_WEIGHTS}{name}": array for name, array in (self._weights or {}).items()}
        counts = {"waited": self._waited, "best_epoch": self.best_epoch}
        return {**self._best.state_dict(), **counts, **weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best.load_state_dict(state)
        self._waited, self.best_epoch = int(state["waited"]), int(state["best_epoch"])
        weights = {name.removeprefix(_WEIGHTS): v for name, v in state.items() if name.startswith(_WEIGHTS)}
        self._weights = weights or None

    def on_train_end(self, model: Network) -> None:
        if self._weights is not None:
            model.set_weights(self._weights)
            self._weights = None


class ModelCheckpoint(Callback):
    """Save the model after each epoch, or only when a number has become better.

    Parameters
    ----------
    path : str or Path
        Where to; ``{epoch}`` and the names of numbers may stand in it, as in ``"m-{epoch}.safetensors"``.
    monitor : str
        Name of the number that `save_best_only` goes by.
    mode : {"auto", "min", "max"}
        Whether less or more is better.
    save_best_only : bool
        Save only epochs that improve `monitor`.
    """

    def __init__(
        self, path: str | Path, monitor: str = "val_loss", *, mode: str = "auto", save_best_only: bool = False
    ) -> None:
        self.path, self.monitor, self.mode, self.save_best_only = str(path), monitor, mode, save_best_only

    def on_train_begin(self, model: Network) -> None:
        self._best = _Best(self.monitor, self.mode, model)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if not self.save_best_only or self._best.improved(logs):
            checkpoint.save(self.model, self.path.format(epoch=epoch, **logs), None)

    def state_dict(self) -> dict[str, Any]:
        return self._best.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best.load_state_dict(state)


class CSVLogger(Callback):
    """Write the numbers of each epoch as a line of a CSV file: at once, or some ten times a second.

    Parameters
    ----------
    path : str or Path
        The file; overwritten, unless `append`.
    append : bool
        Go on at the end of an existing file.
    """

    def __init__(self, path: str | Path, *, append: bool = False) -> None:
        self.path, self.append = Path(path), append

    def on_train_begin(self, model: Network) -> None:
        self._names: list[str] | None = None
        if (self.append or self.info.resumed) and self.path.exists():
            with self.path.open(newline="") as file:
                self._names = next(csv.reader(file), None)
        else:
            self.path.write_text("")

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._write(epoch, {name: [value] for name, value in logs.items()})

    def on_epochs(self, first: int, curves: dict[str, list[float]], seconds: float) -> None:
        self._write(first, curves)

    def _write(self, first: int, curves: dict[str, list[float]]) -> None:
        count = len(curves["loss"])
        columns: dict[str, Sequence[Any]] = {"epoch": range(first, first + count), **curves}
        with self.path.open("a", newline="") as file:
            if self._names is None:
                self._names = list(columns)
                csv.writer(file).writerow(self._names)
            rows = zip(*(columns.get(name, [""] * count) for name in self._names), strict=True)
            csv.writer(file).writerows(rows)

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.path.stat().st_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Lines of epochs after the checkpoint come again
        if self.path.exists() and self.path.stat().st_size > int(state["size"]):
            os.truncate(self.path, int(state["size"]))


class LearningRateLogger(Callback):
    """Keep the learning rate of every step in ``self.rates``."""

    def on_train_begin(self, model: Network) -> None:
        self.rates: list[float] = []

    def on_step_end(self, step: int, logs: dict[str, float]) -> None:
        self.rates.append(logs["lr"])

    def state_dict(self) -> dict[str, Any]:
        return {"rates": np.array(self.rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rates = np.asarray(state["rates"]).tolist()


class StopOnNonFinite(Callback):
    """End training quietly when the loss is NaN or infinite, instead of raising ``NonFiniteError``.

    The model keeps the weights from before the step in question, whose number is ``self.step``.
    """

    def __init__(self) -> None:
        self.step: int | None = None

    def on_train_begin(self, model: Network) -> None:
        self.step = None
