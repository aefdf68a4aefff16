"""Learning-rate schedules: the rate of each optimizer step, as a function of its number.

A schedule counts optimizer steps from 0. Those that the field counts in epochs turn the step into an
epoch with the number of steps per epoch, which the training loop binds before it starts. The formulas
are those of ``torch.optim.lr_scheduler``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from math import inf, isfinite
from typing import Any, ClassVar, cast

import numpy as np

__all__ = [
    "Constant",
    "Cosine",
    "Custom",
    "Exponential",
    "OneCycle",
    "ReduceOnPlateau",
    "Schedule",
    "Step",
    "WarmUp",
    "describe",
    "get",
    "names",
]


def _check(condition: bool, name: str, key: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"schedule {name!r}: {key} must be {expected}, got {value!r}")


def _is_number(value: object) -> bool:
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
            _check(_is_number(self.lr) and 0.0 <= self.lr < inf, self.name, "lr", "finite and not negative", self.lr)

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
            _check(value is None or value >= 1, self.name, key, "at least 1", value)
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps

    def bind_base(self, base_lr: float) -> None:
        """Tell the optimizer's learning rate; one given as `lr` has precedence."""
        self._base = base_lr

    def update(self, metric: float) -> None:  # noqa: B027 - most schedules do not look at it
        """Tell the metric at the end of an epoch, usually the validation loss."""

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


@dataclass(kw_only=True)
class Constant(Schedule):
    """The same learning rate at every step."""

    name: ClassVar[str] = "constant"

    def rates(self, steps: np.ndarray) -> np.ndarray:
        return np.full(steps.shape, self.base)


@dataclass(kw_only=True)
class Step(Schedule):
    """``lr * gamma ** (epoch // step_size)``.

    Parameters
    ----------
    step_size : int
        Epochs between two drops.
    gamma : float
        Factor of each drop.
    """

    name: ClassVar[str] = "step"
    step_size: int = 30
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(_is_number(self.step_size) and self.step_size >= 1, self.name, "step_size", "at least 1", self.step_size)
        _check(_is_number(self.gamma) and 0 < self.gamma < inf, self.name, "gamma", "positive and finite", self.gamma)

    def rates(self, steps: np.ndarray) -> np.ndarray:
        return self.base * self.gamma ** np.floor(self._epochs(steps) / self.step_size)


@dataclass(kw_only=True)
class Exponential(Schedule):
    """``lr * gamma ** epoch``."""

    name: ClassVar[str] = "exponential"
    gamma: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(_is_number(self.gamma) and 0 < self.gamma < inf, self.name, "gamma", "positive and finite", self.gamma)

    def rates(self, steps: np.ndarray) -> np.ndarray:
        return self.base * self.gamma ** self._epochs(steps)


@dataclass(kw_only=True)
class Cosine(Schedule):
    """Half a cosine from `lr` down to `eta_min`, step by step; `eta_min` afterwards.

    Loshchilov and Hutter, "SGDR" (2017), without restarts.

    Parameters
    ----------
    eta_min : float
        The learning rate at the end.
    epochs : float, optional
        Its length; without it, the whole training.
    """

    name: ClassVar[str] = "cosine"
    eta_min: float = 0.0
    epochs: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = _is_number(self.eta_min) and 0 <= self.eta_min < inf
        _check(ok, self.name, "eta_min", "finite and not negative", self.eta_min)
        ok = self.epochs is None or (_is_number(self.epochs) and 0 < self.epochs < inf)
        _check(ok, self.name, "epochs", "positive and finite", self.epochs)

    def rates(self, steps: np.ndarray) -> np.ndarray:
        length = self._need_total_steps() if self.epochs is None else self.epochs * self._need_steps_per_epoch()
        progress = np.minimum(steps / length, 1.0)
        # 1 + cos(pi p) = 2 cos(pi p / 2)**2, which keeps its relative accuracy near the end
        height = np.where(progress < 1.0, np.cos(0.5 * np.pi * progress) ** 2, 0.0)
        return self.eta_min + (self.base - self.eta_min) * height


@dataclass(kw_only=True)
class WarmUp(Schedule):
    """A linear rise to the full learning rate, then any other schedule, whose clock starts there.

    Parameters
    ----------
    after : str, float, mapping or Schedule
        What follows, as :func:`get` understands it.
    steps, epochs : int, float, optional
        Length of the rise, in one of the two units; 1 epoch where neither is given.
    start_factor : float
        Share of the learning rate at the first step.
    """

    name: ClassVar[str] = "warm_up"
    after: Any = "constant"
    steps: int | None = None
    epochs: float | None = None
    start_factor: float = 1.0 / 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"schedule 'warm_up' takes steps or epochs, not both: {self.steps!r} and {self.epochs!r}")
        for key in ("steps", "epochs"):
            value = getattr(self, key)
            ok = value is None or (_is_number(value) and 0 < value < inf)
            _check(ok, self.name, key, "positive and finite", value)
        if self.steps is None and self.epochs is None:
            self.epochs = 1.0
        ok = _is_number(self.start_factor) and 0 <= self.start_factor <= 1
        _check(ok, self.name, "start_factor", "between 0 and 1", self.start_factor)
        self.after = get(self.after)
        if self.lr is not None:
            self.after.bind_base(self.lr)

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        return self.after.adaptive

    def bind_base(self, base_lr: float) -> None:
        super().bind_base(base_lr)
        self.after.bind_base(self.base)

    def bind(self, steps_per_epoch: int | None, total_steps: int | None) -> None:
        super().bind(steps_per_epoch, total_steps)
        rest = None if total_steps is None else max(total_steps - self._length(), 1)
        self.after.bind(steps_per_epoch, rest)

    def _length(self) -> int:
        if self.steps is not None:
            return int(self.steps)
        return max(round(cast(float, self.epochs) * self._need_steps_per_epoch()), 1)

    def rates(self, steps: np.ndarray) -> np.ndarray:
        length = self._length()
        full = self.after(0)  # not `base`: a one-cycle starts far below it
        rise = full * (self.start_factor + (1.0 - self.start_factor) * np.minimum(steps / length, 1.0))
        later = steps >= length
        if later.any():
            rise[later] = self.after.rates(steps[later] - length)
        return rise

    def update(self, metric: float) -> None:
        self.after.update(metric)

    def state_dict(self) -> dict[str, Any]:
        return self.after.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.after.load_state_dict(state)


@dataclass(kw_only=True)
class OneCycle(Schedule):
    """Up to `lr` and down to nearly nothing, in two halves of a cosine: Smith and Topin (2018).

    Parameters
    ----------
    pct_start : float
        Share of the training that the rise takes.
    div_factor : float
        The first learning rate is ``lr / div_factor``.
    final_div_factor : float
        The last learning rate is ``lr / div_factor / final_div_factor``; it is held afterwards.
    total_steps : int, optional
        Length of the cycle; without it, the whole training.
    """

    name: ClassVar[str] = "one_cycle"
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    total_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = _is_number(self.pct_start) and 0 <= self.pct_start <= 1
        _check(ok, self.name, "pct_start", "between 0 and 1", self.pct_start)
        for key in ("div_factor", "final_div_factor"):
            value = getattr(self, key)
            _check(_is_number(value) and 1 <= value < inf, self.name, key, "finite and at least 1", value)
        ok = self.total_steps is None or (_is_number(self.total_steps) and self.total_steps >= 1)
        _check(ok, self.name, "total_steps", "at least 1", self.total_steps)

    def rates(self, steps: np.ndarray) -> np.ndarray:
        total = self._need_total_steps() if self.total_steps is None else self.total_steps
        high = self.base
        first = high / self.div_factor
        last = first / self.final_div_factor
        peak = float(self.pct_start * total) - 1.0
        up = _share(steps, 0.0, peak)
        down = _share(steps, peak, total - 1.0)
        rising = high + (first - high) * np.cos(0.5 * np.pi * up) ** 2
        falling = last + (high - last) * np.cos(0.5 * np.pi * down) ** 2
        return np.where(steps <= peak, rising, falling)


def _share(steps: np.ndarray, start: float, end: float) -> np.ndarray:
    """How far each step is on the way from `start` to `end`, in [0, 1]; 1 where there is no way to go."""
    if end <= start:
        return np.ones_like(steps)
    return np.clip((steps - start) / (end - start), 0.0, 1.0)


@dataclass(kw_only=True)
class ReduceOnPlateau(Schedule):
    """Multiply the learning rate by `factor` when the metric has stopped improving.

    Parameters
    ----------
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
        _check(self.mode in ("min", "max"), self.name, "mode", "'min' or 'max'", self.mode)
        ok = self.threshold_mode in ("rel", "abs")
        _check(ok, self.name, "threshold_mode", "'rel' or 'abs'", self.threshold_mode)
        _check(_is_number(self.factor) and 0 < self.factor < 1, self.name, "factor", "between 0 and 1", self.factor)
        for key in ("patience", "threshold", "cooldown", "min_lr", "eps"):
            value = getattr(self, key)
            _check(_is_number(value) and 0 <= value < inf, self.name, key, "finite and not negative", value)
        self._best = inf if self.mode == "min" else -inf

    def rates(self, steps: np.ndarray) -> np.ndarray:
        return np.full(steps.shape, self.base if self._current is None else self._current)

    def _improves(self, metric: float) -> bool:
        if not isfinite(self._best):
            return (metric < self._best) if self.mode == "min" else (metric > self._best)
        slack = self.threshold * (self._best if self.threshold_mode == "rel" else 1.0)
        return metric < self._best - slack if self.mode == "min" else metric > self._best + slack

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


@dataclass(kw_only=True)
class Custom(Schedule):
    """A function ``step -> lr`` of the user's own, which returns the rate itself, not a factor.

    A model file holds its name only; after loading, `function` is ``None`` and a call says so.
    """

    name: ClassVar[str] = "custom"
    function: Callable[[int], float] | None = None
    label: str = ""

    def rates(self, steps: np.ndarray) -> np.ndarray:
        if self.function is None:
            raise ValueError(f"the schedule {self.label!r} is a function, which a file does not hold; pass it again")
        out = np.empty(steps.shape)
        for i, step in enumerate(steps):
            lr = float(self.function(int(step)))
            if not 0.0 <= lr < inf:
                raise ValueError(f"the schedule {self.label!r} returned {lr!r} at step {int(step)}")
            out[i] = lr
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Custom:
        return copy.copy(self)  # what the function holds on to is not ours to copy

    @property
    def config(self) -> dict[str, Any]:
        return {"name": self.name, "label": self.label}


_TABLE: dict[str, type[Schedule]] = {
    row.name: row for row in (Constant, Step, Exponential, Cosine, WarmUp, OneCycle, ReduceOnPlateau, Custom)
}
_ALIASES = {"linear_warm_up": "warm_up", "warmup": "warm_up", "onecycle": "one_cycle", "plateau": "reduce_on_plateau"}


def names() -> list[str]:
    """Return the names that :func:`get` knows."""
    return [name for name in _TABLE if name != "custom"]


def get(
    spec: Any,
    base_lr: float | None = None,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
) -> Schedule:
    """Make a schedule of a description.

    Parameters
    ----------
    spec : float, str, Schedule, mapping, callable or None
        A learning rate, a name, a schedule (of which a copy is returned, so that one description can
        serve several trainings), a `config` such as ``{"name": "step", "step_size": 10}``, a function
        ``step -> lr``, or ``None`` for a constant `base_lr`.
    base_lr : float, optional
        The learning rate of a schedule that has none of its own.
    total_steps, steps_per_epoch : int, optional
        As in :meth:`Schedule.bind`, which may as well be called later.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If the name is unknown or a parameter does not fit it.
    TypeError
        If `spec` is of another type.
    """
    schedule = _resolve(spec)
    if base_lr is not None:
        if not (_is_number(base_lr) and 0.0 <= base_lr < inf):
            raise ValueError(f"base_lr must be finite and not negative, got {base_lr!r}")
        schedule.bind_base(float(base_lr))
    if total_steps is not None or steps_per_epoch is not None:
        schedule.bind(steps_per_epoch, total_steps)
    return schedule


def describe(spec: Any) -> Any:
    """What :func:`get` takes, ready for JSON: a rate or ``None`` as it is, anything else as its `config`."""
    if spec is None:
        return None
    return float(spec) if _is_number(spec) else _resolve(spec).config


def _resolve(spec: Any) -> Schedule:
    if spec is None:
        return Constant()
    if isinstance(spec, Schedule):
        return copy.deepcopy(spec)
    if _is_number(spec):
        return Constant(lr=float(spec))
    if isinstance(spec, str):
        return _make(spec, {})
    if isinstance(spec, Mapping):
        parameters = dict(spec)
        name = parameters.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"a schedule's config needs a 'name', got {dict(spec)!r}")
        return _make(name, parameters)
    if isinstance(spec, type) and issubclass(spec, Schedule):
        return spec()
    if callable(spec):
        return Custom(function=spec, label=getattr(spec, "__qualname__", type(spec).__qualname__))
    raise TypeError(
        "a schedule must be a learning rate, a name, a Schedule, a config or a function of the step, "
        f"not {type(spec).__name__}"
    )


def _make(spec: str, parameters: dict[str, Any]) -> Schedule:
    name = spec.strip().lower().replace("-", "_")
    cls = _TABLE.get(_ALIASES.get(name, name))
    if cls is None or (cls is Custom and set(parameters) != {"label"}):
        raise ValueError(f"unknown schedule {spec!r}; known are {', '.join(names())}")
    known = [f.name for f in fields(cls) if f.init and f.name != "function"]
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"schedule {cls.name!r} has no parameter {', '.join(unknown)}; it takes {', '.join(known)}")
    return cls(**parameters)
