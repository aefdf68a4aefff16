"""Learning-rate schedules: the rate of each optimizer step, as a function of its number.

A schedule counts optimizer steps from 0. Those that the field counts in epochs turn the step into an
epoch with the number of steps per epoch, which the training loop binds before it starts. The formulas
are those of ``torch.optim.lr_scheduler``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, ClassVar, cast

import numpy as np

from .plateau import ReduceOnPlateau
from .schedule import Schedule, check, is_number

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
        check(is_number(self.step_size) and self.step_size >= 1, self.name, "step_size", "at least 1", self.step_size)
        check(is_number(self.gamma) and 0 < self.gamma < inf, self.name, "gamma", "positive and finite", self.gamma)

    def rates(self, steps: np.ndarray) -> np.ndarray:
        return self.base * self.gamma ** np.floor(self._epochs(steps) / self.step_size)


@dataclass(kw_only=True)
class Exponential(Schedule):
    """``lr * gamma ** epoch``."""

    name: ClassVar[str] = "exponential"
    gamma: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        check(is_number(self.gamma) and 0 < self.gamma < inf, self.name, "gamma", "positive and finite", self.gamma)

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
        ok = is_number(self.eta_min) and 0 <= self.eta_min < inf
        check(ok, self.name, "eta_min", "finite and not negative", self.eta_min)
        ok = self.epochs is None or (is_number(self.epochs) and 0 < self.epochs < inf)
        check(ok, self.name, "epochs", "positive and finite", self.epochs)

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
            ok = value is None or (is_number(value) and 0 < value < inf)
            check(ok, self.name, key, "positive and finite", value)
        if self.steps is None and self.epochs is None:
            self.epochs = 1.0
        ok = is_number(self.start_factor) and 0 <= self.start_factor <= 1
        check(ok, self.name, "start_factor", "between 0 and 1", self.start_factor)
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

    def watch(self, logs: Mapping[str, float]) -> None:
        self.after.watch(logs)

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
        ok = is_number(self.pct_start) and 0 <= self.pct_start <= 1
        check(ok, self.name, "pct_start", "between 0 and 1", self.pct_start)
        for key in ("div_factor", "final_div_factor"):
            value = getattr(self, key)
            check(is_number(value) and 1 <= value < inf, self.name, key, "finite and at least 1", value)
        ok = self.total_steps is None or (is_number(self.total_steps) and self.total_steps >= 1)
        check(ok, self.name, "total_steps", "at least 1", self.total_steps)

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
_ALIASES = {
    "linear_warm_up": "warm_up",
    "linear_warmup": "warm_up",
    "warmup": "warm_up",
    "onecycle": "one_cycle",
    "plateau": "reduce_on_plateau",
}


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
        if not (is_number(base_lr) and 0.0 <= base_lr < inf):
            raise ValueError(f"base_lr must be finite and not negative, got {base_lr!r}")
        schedule.bind_base(float(base_lr))
    if total_steps is not None or steps_per_epoch is not None:
        schedule.bind(steps_per_epoch, total_steps)
    return schedule


def describe(spec: Any) -> Any:
    """What :func:`get` takes, ready for JSON: a rate or ``None`` as it is, anything else as its `config`."""
    if spec is None:
        return None
    return float(spec) if is_number(spec) else _resolve(spec).config


def _resolve(spec: Any) -> Schedule:
    if spec is None:
        return Constant()
    if isinstance(spec, Schedule):
        return copy.deepcopy(spec)
    if is_number(spec):
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
