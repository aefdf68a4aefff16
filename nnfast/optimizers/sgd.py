"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from ..backends.base import Array, Backend
from ..kernels import step_state as S
from .base import Optimizer


class SGD(Optimizer):
    """``v = momentum * v + g; w -= lr * v``, or ``w -= lr * (g + momentum * v)`` with Nesterov's form.

    Sutskever et al., "On the importance of initialization and momentum" (2013).

    Parameters
    ----------
    lr : float, schedule or callable
        Learning rate.
    momentum : float
        In ``[0, 1)``; 0 keeps no velocity.
    nesterov : bool
        Nesterov's form; needs a momentum.
    **common
        As for :class:`Optimizer`.
    """

    replayable = True
    default_lr = 1e-2

    def __init__(self, lr: Any = None, momentum: float = 0.0, nesterov: bool = False, **common: Any) -> None:
        super().__init__(lr, **common)
        self.momentum = self._number("momentum", momentum, below=1.0)
        self.nesterov = bool(nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov=True needs a momentum above 0")
        self.slots = ("velocity",) if self.momentum else ()

    def hyperparameters(self) -> dict[int, float]:
        return {S.P0: self.momentum}

    def step(self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array) -> None:
        bk.sgd_step(param, grad, slots.get("velocity"), state, nesterov=self.nesterov)
