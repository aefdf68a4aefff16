"""A training that was cut off goes on: checkpoints while it runs, and the way back from one."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.base import Backend
from ..errors import CheckpointError
from ..layers.graph import within
from ..losses import Loss
from ..network import Network
from ..optimizers import Optimizer
from . import checkpoint
from .callbacks import Callback
from .history import History

__all__ = ["Position", "TrainingCheckpoint", "resume", "threads_of"]


class TrainingCheckpoint(Callback):
    """Write all that a training needs to go on, every so many steps or minutes, and when Ctrl-C ends it.

    ``model.fit(..., resume=path)`` with the same arguments goes on from there as if nothing had happened, from the
    middle of an epoch, too. The file is a model file: :func:`nnfast.load` reads the model as it was then.

    Parameters
    ----------
    path : str or Path
        The file; each checkpoint takes the place of the one before, whole or not at all.
    every_steps : int, optional
        Steps from one to the next.
    every_minutes : float, optional
        Minutes from one to the next, measured where training is looked at, some ten times a second.

    Raises
    ------
    ValueError
        If neither or both are given, or they are not positive.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, every_steps: int | None = None, every_minutes: float | None = None
    ) -> None:
        if (every_steps is None) == (every_minutes is None):
            raise ValueError("TrainingCheckpoint needs every_steps or every_minutes, one of them")
        if every_steps is not None and (isinstance(every_steps, bool) or int(every_steps) != every_steps):
            raise ValueError(f"TrainingCheckpoint: every_steps must be an integer, got {every_steps!r}")
        interval = every_steps if every_minutes is None else every_minutes
        if not (interval is not None and interval > 0):
            raise ValueError(f"TrainingCheckpoint: the interval must be above 0, got {interval}")
        self.path, self.every_steps, self.every_minutes = Path(path), every_steps, every_minutes

    def on_train_begin(self, model: Network) -> None:
        self.began(model.training_state.step)

    def began(self, step: int) -> None:
        """Count from this step and from now on."""
        self._step, self._time = step, time.monotonic()

    def next_step(self, step: int) -> int | None:
        """The step after which one is to be written, seen from `step`; None where time decides."""
        return None if self.every_steps is None else (step // self.every_steps + 1) * self.every_steps

    def due(self, step: int) -> bool:
        """Whether one is to be written after `step`."""
        if self.every_steps is not None:
            return step // self.every_steps > self._step // self.every_steps
        assert self.every_minutes is not None
        return time.monotonic() - self._time >= 60.0 * self.every_minutes

    def write(self, model: Network, position: Position) -> None:
        """Write one now."""
        checkpoint.save(model, self.path, None, position.described())
        self.began(model.training_state.step)


@dataclass
class Position:
    """Where a fit stands.

    Attributes
    ----------
    first, last : int
        Its epochs.
    first_step : int
        Steps that the model had done before it.
    epoch, rows : int
        The epoch that it is in, and the rows done in that.
    loss_sum, weight_sum, lr : float
        Sums over these rows, and the learning rate of the last step.
    size : tuple of (int or None, int)
        Rows of an epoch, and of a batch.
    device : str
    threads : int or None
    optimizer, loss : str
        Their classes.
    history : History
    callbacks : list of (str, dict)
        Class and state of each callback that has one.
    outputs : dict of int to ndarray
        Of the rows done, by number, those that metrics want.
    going_on : list of Callback
        Those of the fit that goes on that have the same states.
    carried : list of ndarray
        What layers hand on from step to step.
    """

    first: int
    last: int
    first_step: int
    epoch: int
    rows: int
    loss_sum: float
    weight_sum: float
    lr: float
    size: tuple[int | None, int]
    device: str
    threads: int | None
    optimizer: str
    loss: str
    history: History
    callbacks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    outputs: dict[int, np.ndarray] = field(default_factory=dict)
    going_on: list[Callback] = field(default_factory=list)
    carried: list[np.ndarray] = field(default_factory=list)

    def described(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """As JSON and arrays."""
        names = "first", "last", "first_step", "epoch", "rows", "device", "threads", "optimizer", "loss"
        run: dict[str, Any] = {name: getattr(self, name) for name in names}
        run |= {"size": list(self.size), "epochs": list(self.history.epochs), "callbacks": []}
        arrays = {"sums": np.array([self.loss_sum, self.weight_sum, self.lr])}
        arrays |= {f"history/{name}": np.array(curve, np.float64) for name, curve in self.history.items()}
        for number, (kind, state) in enumerate(self.callbacks):
            plain = {name: value for name, value in state.items() if not isinstance(value, np.ndarray)}
            run["callbacks"].append({"class": kind, "state": plain})
            arrays |= {f"callbacks/{number}/{k}": v for k, v in state.items() if isinstance(v, np.ndarray)}
        arrays |= {f"outputs/{number}" if number else "outputs": array for number, array in self.outputs.items()}
        arrays |= {f"carried/{number}": array for number, array in enumerate(self.carried)}
        return run, arrays

    @classmethod
    def from_file(cls, run: dict[str, Any], arrays: dict[str, np.ndarray]) -> Position:
        """What :meth:`described` gave, checked; raises ``LookupError``, ``TypeError`` or ``ValueError``."""
        history = History()
        epochs = [int(epoch) for epoch in run["epochs"]]
        curves = {k.removeprefix("history/"): v for k, v in arrays.items() if k.startswith("history/")}
        if any(curve.shape != (len(epochs),) for curve in curves.values()):
            raise ValueError("the curves are not as long as the history")
        if epochs:
            history.extend(epochs, {name: curve.astype(float).tolist() for name, curve in curves.items()})
        callbacks = []
        for number, each in enumerate(run["callbacks"]):
            prefix = f"callbacks/{number}/"
            own = {name.removeprefix(prefix): v for name, v in arrays.items() if name.startswith(prefix)}
            callbacks.append((str(each["class"]), {**dict(each["state"]), **own}))
        counts = [int(run[name]) for name in ("first", "last", "first_step", "epoch", "rows")]
        first, last, first_step, epoch, rows = counts
        if not (first_step >= 0 and 1 <= first <= epoch <= last + 1 and rows >= 0):
            raise ValueError(f"epoch {epoch} of {first} to {last}, row {rows}, is not possible")
        kept = {name: array for name, array in arrays.items() if name == "outputs" or name.startswith("outputs/")}
        outputs = {int(name.partition("/")[2] or 0): array for name, array in kept.items()}
        of_epoch, of_batch = run["size"]
        loss_sum, weight_sum, lr = (float(value) for value in arrays["sums"])
        return cls(
            first,
            last,
            first_step,
            epoch,
            rows,
            loss_sum,
            weight_sum,
            lr,
            (None if of_epoch is None else int(of_epoch), int(of_batch)),
            str(run["device"]),
            None if run["threads"] is None else int(run["threads"]),
            str(run["optimizer"]),
            str(run["loss"]),
            history,
            callbacks,
            outputs,
            carried=[arrays[f"carried/{k}"] for k in range(sum(name.startswith("carried/") for name in arrays))],
        )

    def fit_to(
        self, size: tuple[int | None, int], measured: Sequence[int], callbacks: Sequence[Callback], path: Any
    ) -> None:
        """Find the callbacks of a fit that take the states of this one's: :attr:`going_on`, in their order.

        Raises
        ------
        ValueError
            If one is missing, the data are others, or the fit has metrics of outputs that were not kept.
        """
        if self.size != size:
            raise ValueError(
                f"{path} is of a training on {self.size[0]} rows in batches of {self.size[1]}, this fit has {size[0]} "
                f"in batches of {size[1]}"
            )
        if self.rows and (missing := set(measured) - self.outputs.keys()):
            raise ValueError(
                f"{path} is of a training in the middle of an epoch that had no metrics of output {min(missing)}"
            )
        rest, self.going_on = list(callbacks), []
        for kind, _ in self.callbacks:
            places = [i for i, callback in enumerate(rest) if type(callback).__name__ == kind]
            if not places:
                names = [type(callback).__name__ for callback in callbacks]
                raise ValueError(f"{path} has the state of a callback {kind}, this fit has the callbacks {names}")
            self.going_on.append(rest.pop(places[0]))


def threads_of(backend: Backend) -> int | None:
    """The number of threads that results may depend on in their last bits; None where there is no such number."""
    if backend.name != "numba":
        return None
    from ..kernels.cpu import threads

    return threads.count()


def resume(
    model: Network,
    path: str | os.PathLike[str],
    *,
    loss: Loss,
    optimizer: Optimizer,
    backend: Backend,
    precision: str,
    seed: int | None,
) -> Position:
    """Give `model` the weights and the state of a training, and say where that stood.

    Raises
    ------
    CheckpointError
        If the file is damaged, or is of no training.
    ValueError
        If it is of another model or fit; nothing has changed then.
    """
    path = Path(path)
    custom = {type(layer).__name__: type(layer) for layer in within(model.layers)} | {type(loss).__name__: type(loss)}
    other, run, arrays = checkpoint.load_with_run(type(model), path, custom)
    if run is None:
        raise CheckpointError(f"{path} is a model, not a training that could go on; TrainingCheckpoint writes those")
    try:
        position = Position.from_file(run, arrays)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} does not describe a training that can go on: {error}") from error
    ours = [(type(layer).__name__, json.dumps(layer.config(), sort_keys=True)) for layer in model.layers]
    theirs = [(type(layer).__name__, json.dumps(layer.config(), sort_keys=True)) for layer in other.layers]
    if (ours, model.description()) != (theirs, other.description()):
        raise ValueError(f"{path} is of another model: {other!r}, not {model!r}")
    for what, wanted, found in (
        ("loss", position.loss, type(loss).__name__),
        ("optimizer", position.optimizer, type(optimizer).__name__),
        ("precision", other.precision, precision),
        ("seed", other.training_state.seed, other.training_state.seed if seed is None else seed),
    ):
        if wanted != found:
            raise ValueError(f"{path} is of a training with the {what} {wanted!r}, this fit has {found!r}")
    there, here = (position.device, position.threads), (backend.device, threads_of(backend))
    if there != here:
        was, now = (device if threads is None else f"{device}, {threads} threads" for device, threads in (there, here))
        message = f"{path} was written on {was}, this is {now}: the training goes on, but not bit for bit the same"
        warnings.warn(message, RuntimeWarning, stacklevel=5)
    model.build(other.in_shapes, dtype=other.dtype, initialise=False)
    params = model.parameters
    params.move(params.backend, other.dtype, other.precision)
    params.set(other.get_weights())
    if slots := other.parameters.get_slots():
        params.set_slots(slots)
    model.training_state = other.training_state
    return position
