"""The schedule that looks at how training goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, ClassVar

import numpy as np

from .schedule import Schedule, check, is_number, monitored

__all__ = ["ReduceOnPlateau"]


@dataclass(kw_only=True)
class ReduceOnPlateau(Schedule):
    """Multiply the learning rate by `factor` when the metric has stopped improving.

    Parameters
    ----------
    monitor : str, optional
        Name of the metric in the history, such as ``"val_accuracy"`` with ``mode="max"``; by default ``"val_loss"``,
        or ``"loss"`` where there is no validation.
    mode : {"min", "max"}
        Whether a smaller or a larger metric is better.
    factor : float
        Factor of each reduction, below 1.
    patience : int
        Epochs without an improvement that are let pass.
    threshold : float
        How much better than the best so far counts as an improvement.
    threshold_mode : {"rel", "abs"}
        Whether `threshold` is a share of the best so far or a difference to it.
    cooldown : int
        Epochs after a reduction in which none is counted as bad.
    min_lr : float
        The learning rate never goes below it.
    eps : float
        A reduction by less than this is left out.
    """

    name: ClassVar[str] = "reduce_on_plateau"
    adaptive: ClassVar[bool] = True
    monitor: str | None = None
    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8
    _current: float | None = field(default=None, init=False, repr=False)
    _best: float = field(default=inf, init=False, repr=False)
    _bad_epochs: int = field(default=0, init=False, repr=False)
    _cooling: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        named = self.monitor is None or isinstance(self.monitor, str)
        check(named, self.name, "monitor", "the name of a number", self.monitor)
        check(self.mode in ("min", "max"), self.name, "mode", "'min' or 'max'", self.mode)
        ok = self.threshold_mode in ("rel", "abs")
        check(ok, self.name, "threshold_mode", "'rel' or 'abs'", self.threshold_mode)
        check(is_number(self.factor) and 0 < self.factor < 1, self.name, "factor", "between 0 and 1", self.factor)
        for key in ("patience", "threshold", "cooldown", "min_lr", "eps"):
            value = getattr(self, key)
            check(is_number(value) and 0 <= value < inf, self.name, key, "finite and not negative", value)
        self._best = inf if self.mode == "min" else -inf

    def rates(self, steps: np.ndarray) -> np.ndarray:
        return np.full(steps.shape, self.base if self._current is None else self._current)

    def _improves(self, metric: float) -> bool:
        if not isfinite(self._best):
            return (metric < self._best) if self.mode == "min" else (metric > self._best)
        slack = self.threshold * (self._best if self.threshold_mode == "rel" else 1.0)
        return metric < self._best - slack if self.mode == "min" else metric > self._best + slack

    def watch(self, logs: Mapping[str, float]) -> None:
        """Tell all numbers of an epoch at its end.

        Raises
        ------
        ValueError
            If `monitor` is none of them.
        """
        if self.monitor is None:
            super().watch(logs)
        else:
            self.update(monitored(self.monitor, logs))

    def update(self, metric: float) -> None:
        """Tell the metric at the end of an epoch; NaN counts as no improvement."""
        metric = float(metric)
        if self._improves(metric):
            self._best, self._bad_epochs = metric, 0
        else:
            self._bad_epochs += 1
        if self._cooling > 0:
            self._cooling -= 1
            self._bad_epochs = 0
        if self._bad_epochs > self.patience:
            self._bad_epochs, self._cooling = 0, self.cooldown
            old = self.base if self._current is None else self._current
            new = max(old * self.factor, self.min_lr)
            if old - new > self.eps:
                self._current = new

    def state_dict(self) -> dict[str, Any]:
        """Current rate, best metric (``None`` before the first) and counters."""
        best = self._best if isfinite(self._best) else None
        return {"current": self._current, "best": best, "bad_epochs": self._bad_epochs, "cooling": self._cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != set(self.state_dict()):
            raise ValueError(f"the state of {self.name!r} has {sorted(self.state_dict())}, got {sorted(state)}")
        self._current = None if state["current"] is None else float(state["current"])
        worst = inf if self.mode == "min" else -inf
        self._best = worst if state["best"] is None else float(state["best"])
        self._bad_epochs, self._cooling = int(state["bad_epochs"]), int(state["cooling"])
