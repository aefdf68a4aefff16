"""What a schedule is: the learning rate of each optimizer step, as a function of its number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, ClassVar

import numpy as np

__all__ = ["Schedule", "check", "is_number"]


def check(condition: bool, name: str, key: str, expected: str, value: object) -> None:
    """Raise ``ValueError`` naming schedule, parameter, expectation and value unless `condition` holds."""
    if not condition:
        raise ValueError(f"schedule {name!r}: {key} must be {expected}, got {value!r}")


def monitored(name: str, logs: Mapping[str, float]) -> float:
    """The number of an epoch with this name, or a ``ValueError`` that says which there are."""
    if name not in logs:
        raise ValueError(f"{name!r} is not there to be monitored; there are {', '.join(logs)}")
    return logs[name]


def is_number(value: object) -> bool:
    """Whether `value` is a real number, and not a bool."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


@dataclass(kw_only=True)
class Schedule(ABC):
    """The learning rate as a function of the optimizer step; a subclass defines :meth:`rates`.

    Parameters
    ----------
    lr : float, optional
        The base learning rate; without it, the one that the optimizer was given.

    Attributes
    ----------
    adaptive : bool
        Whether :meth:`update` changes the rates of steps to come, so that a table of them must be
        made again after it.
    """

    name: ClassVar[str] = ""
    adaptive: ClassVar[bool] = False
    lr: float | None = None

    def __post_init__(self) -> None:
        self._base: float | None = None
        self._steps_per_epoch: int | None = None
        self._total_steps: int | None = None
        if self.lr is not None:
            check(is_number(self.lr) and 0.0 <= self.lr < inf, self.name, "lr", "finite and not negative", self.lr)

    # ---- what the training loop tells it -----------------------------------------------------------
    def bind(self, steps_per_epoch: int | None, total_steps: int | None) -> None:
        """Tell the lengths that schedules are measured in.

        Parameters
        ----------
        steps_per_epoch : int or None
            Optimizer steps in an epoch; ``None`` where that is not known.
        total_steps : int or None
            Steps of the whole training, counted from step 0; ``None`` where it has no set end.
        """
        for key, value in (("steps_per_epoch", steps_per_epoch), ("total_steps", total_steps)):
            check(value is None or value >= 1, self.name, key, "at least 1", value)
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps

    def bind_base(self, base_lr: float) -> None:
        """Tell the optimizer's learning rate; one given as `lr` has precedence."""
        self._base = base_lr

    def update(self, metric: float) -> None:  # noqa: B027 - most schedules do not look at it
        """Tell the metric at the end of an epoch, usually the validation loss."""

    def watch(self, logs: Mapping[str, float]) -> None:
        """Tell all numbers of an epoch at its end: the metric is the validation loss, or else the loss."""
        self.update(logs.get("val_loss", logs["loss"]))

    # ---- the rates -----------------------------------------------------------------------------------
    @abstractmethod
    def rates(self, steps: np.ndarray) -> np.ndarray:
        """Learning rates (float64) of 0-based step numbers (float64); equal shapes."""

    def __call__(self, step: int) -> float:
        """The learning rate of the 0-based optimizer step `step`."""
        return float(self.table(step, 1)[0])

    def table(self, first_step: int, n: int) -> np.ndarray:
        """The learning rates of the `n` steps from `first_step` on, float64."""
        if first_step < 0 or n < 0:
            raise ValueError(f"first_step and n must not be negative, got {first_step} and {n}")
        steps = np.arange(first_step, first_step + n, dtype=np.float64)
        return np.ascontiguousarray(self.rates(steps), np.float64)

    @property
    def base(self) -> float:
        """The learning rate that the schedule scales."""
        value = self._base if self.lr is None else self.lr
        if value is None:
            raise RuntimeError(f"schedule {self.name!r} has no learning rate: give lr=, or use it through an optimizer")
        return value

    def _epochs(self, steps: np.ndarray) -> np.ndarray:
        return np.floor(steps / self._need_steps_per_epoch())

    def _need_steps_per_epoch(self) -> int:
        if self._steps_per_epoch is None:
            raise RuntimeError(
                f"schedule {self.name!r} counts epochs: call bind(steps_per_epoch, total_steps) before its first step"
            )
        return self._steps_per_epoch

    def _need_total_steps(self) -> int:
        if self._total_steps is None:
            raise RuntimeError(
                f"schedule {self.name!r} needs the length of the training: "
                "give it, or call bind(steps_per_epoch, total_steps) before its first step"
            )
        return self._total_steps

    # ---- storing ---------------------------------------------------------------------------------------
    @property
    def config(self) -> dict[str, Any]:
        """Name and parameters, JSON-able; :func:`get` makes the same schedule of it."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {"name": self.name} | {k: v.config if isinstance(v, Schedule) else v for k, v in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`update` has changed so far, JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        if state:
            raise ValueError(f"schedule {self.name!r} has no state, got {sorted(state)}")
