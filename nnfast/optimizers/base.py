"""What an optimizer is: hyperparameters, some flat arrays of moments, and one call on the flat weights."""

from __future__ import annotations

import inspect
from math import inf, isfinite
from typing import Any, ClassVar

from ..backends.base import Array, Backend
from ..kernels import step_state as S
from . import schedules

__all__ = ["Optimizer"]


class Optimizer:
    """Base class of all optimizers, and of the user's own.

    An optimizer of one's own names its moments in :attr:`slots` and defines :meth:`step`.

    Parameters
    ----------
    lr : float, schedule or callable
        Learning rate, or what gives it for each step; see :mod:`nnfast.optimizers.schedules`.
    weight_decay : float
        Pulls every parameter towards zero: added to the gradient as ``weight_decay * param``, or
        decoupled from it where the optimizer says so.
    clip_value : float, optional
        Clip each element of the gradient to ``[-clip_value, clip_value]``.
    clip_norm : float, optional
        Scale the whole gradient down to this global norm where it is larger.
    ema : float, optional
        Keep an exponential moving average of the weights,
        ``average = ema * average + (1 - ema) * weights`` after each step; ``model.averaged()`` uses it.

    Attributes
    ----------
    slots : tuple of str
        Names of the flat moment arrays, zero at the start.
    replayable : bool
        Whether :meth:`step` does all its work through the backend.
    """

    replayable = False
    slots: tuple[str, ...] = ()
    default_lr: ClassVar[float] = 1e-3

    def __init__(
        self,
        lr: Any = None,
        *,
        weight_decay: float = 0.0,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        ema: float | None = None,
    ) -> None:
        self.lr = self.default_lr if lr is None else lr
        if isinstance(self.lr, (int, float)):
            self.lr = self._number("lr", self.lr)
        self.weight_decay = self._number("weight_decay", weight_decay)
        self.clip_value = None if clip_value is None else self._number("clip_value", clip_value, positive=True)
        self.clip_norm = None if clip_norm is None else self._number("clip_norm", clip_norm, positive=True)
        self.ema = None if ema is None else self._number("ema", ema, below=1.0)

    def _number(self, name: str, value: Any, *, positive: bool = False, below: float = inf) -> float:
        """`value` as a float in ``[0, below)``, or ``(0, below)`` if `positive`."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{type(self).__name__}: {name} must be a number, not {value!r}") from None
        if not isfinite(number) or number < 0 or number >= below or (positive and number == 0):
            bounds = ("above 0" if positive else "at least 0") + (f" and below {below:g}" if below < inf else "")
            raise ValueError(f"{type(self).__name__}: {name} must be {bounds}, got {number!r}")
        return number

    def hyperparameters(self) -> dict[int, float]:
        """What :meth:`step` reads from the step state, by slot; the base adds what is common to all."""
        return {}

    def fill_state(self) -> dict[int, float]:
        """All hyperparameters by slot of the step state."""
        return {S.WEIGHT_DECAY: self.weight_decay, S.EMA_DECAY: self.ema or 0.0, **self.hyperparameters()}

    def step(self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array) -> None:
        """Update `param` in place, from `grad` and `slots`, all flat arrays of one length.

        ``state[step_state.LR]`` and ``state[step_state.STEP]`` hold the learning rate and the number of
        the step, from 1. Multiply the gradient by ``state[step_state.GRAD_SCALE]``, and do nothing if
        ``state[step_state.BAD_STEP]`` is set.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define step")

    def record(
        self,
        bk: Backend,
        param: Array,
        grad: Array,
        slots: dict[str, Array],
        average: Array | None,
        state: Array,
        *,
        scaled: bool = False,
    ) -> None:
        """Clipping, the step and the moving average as part of a recorded step.

        A gradient that was `scaled` may have overflown; then SKIP_STEP is set, and nothing must happen.
        """
        if scaled:
            bk.unscale(grad, state)
        if self.clip_value is not None:
            bk.clip_value(grad, limit=self.clip_value)
        if self.clip_norm is not None:
            bk.clip_norm(grad, state, max_norm=self.clip_norm)
        if self.replayable:
            self.step(bk, param, grad, slots, state)
        else:
            bk.python(self._step_unless_left_out if scaled else self.step, param, grad, slots, state)
        if average is not None:
            bk.ema_step(param, average, state)

    def _step_unless_left_out(
        self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array
    ) -> None:
        """:meth:`step` of a user's own, which need not know of SKIP_STEP."""
        if not float(bk.to_numpy(state)[S.SKIP_STEP]):
            self.step(bk, param, grad, slots, state)

    def schedule(self) -> schedules.Schedule:
        """The learning rate as a schedule."""
        return schedules.get(self.lr, base_lr=self.default_lr)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON, with the name under ``"name"``."""
        names: list[str] = []
        for kind in type(self).__mro__:
            if "__init__" in vars(kind) and kind is not object:
                parameters = list(inspect.signature(vars(kind)["__init__"]).parameters.values())[1:]
                names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in names]
        arguments = {name: getattr(self, name) for name in names if name != "lr"}
        return {"name": type(self).__name__, "lr": schedules.describe(self.lr), **arguments}

    def __repr__(self) -> str:
        arguments = {k: v for k, v in self.config().items() if k != "name" and v is not None}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
