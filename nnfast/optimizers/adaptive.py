"""Optimizers that divide by the size of past gradients, without Adam's bias correction."""

from __future__ import annotations

from typing import Any

from ..backends.base import Array, Backend
from ..kernels import step_state as S
from .base import Optimizer


class Adagrad(Optimizer):
    """``total += g**2; w -= lr * g / (sqrt(total) + eps)``.

    Duchi, Hazan, Singer: "Adaptive subgradient methods" (2011).

    Parameters
    ----------
    lr : float, schedule or callable
        Learning rate.
    eps : float
        Keeps the denominator away from zero.
    **common
        As for :class:`Optimizer`.
    """

    replayable = True
    slots = ("total",)
    default_lr = 1e-2

    def __init__(self, lr: Any = None, eps: float = 1e-10, **common: Any) -> None:
        super().__init__(lr, **common)
        self.eps = self._number("eps", eps, positive=True)

    def hyperparameters(self) -> dict[int, float]:
        return {S.P0: self.eps}

    def step(self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array) -> None:
        bk.adagrad_step(param, grad, slots["total"], state)


class RMSprop(Optimizer):
    """``sq = rho * sq + (1 - rho) * g**2; w -= lr * g / (sqrt(sq) + eps)``.

    Tieleman, Hinton: lecture 6.5 of "Neural networks for machine learning" (2012); the centered form
    subtracts the squared mean of the gradient (Graves, 2013).

    Parameters
    ----------
    lr : float, schedule or callable
        Learning rate.
    rho : float
        Decay of the running mean of squares, in ``[0, 1)``.
    eps : float
        Keeps the denominator away from zero.
    momentum : float
        In ``[0, 1)``, applied to the scaled gradient.
    centered : bool
        Divide by an estimate of the variance instead of the second moment.
    **common
        As for :class:`Optimizer`.
    """

    replayable = True

    def __init__(
        self,
        lr: Any = None,
        rho: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(lr, **common)
        self.rho = self._number("rho", rho, below=1.0)
        self.eps = self._number("eps", eps, positive=True)
        self.momentum = self._number("momentum", momentum, below=1.0)
        self.centered = bool(centered)
        self.slots = ("sq", *(("mean",) if self.centered else ()), *(("velocity",) if self.momentum else ()))

    def hyperparameters(self) -> dict[int, float]:
        return {S.P0: self.rho, S.P1: self.eps, S.P2: self.momentum}

    def step(self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array) -> None:
        bk.rmsprop_step(param, grad, slots["sq"], slots.get("mean"), slots.get("velocity"), state)
