"""Lion: the sign of a momentum."""

from __future__ import annotations

from typing import Any

from ..backends.base import Array, Backend
from ..kernels import step_state as S
from .base import Optimizer


class Lion(Optimizer):
    """``w -= lr * (sign(beta1 m + (1 - beta1) g) + weight_decay * w); m = beta2 m + (1 - beta2) g``.

    Chen et al., "Symbolic discovery of optimization algorithms" (2023). Needs a learning rate some 3 to
    10 times smaller, and a weight decay as much larger, than AdamW's.

    Parameters
    ----------
    lr : float, schedule or callable
        Learning rate.
    beta1, beta2 : float
        Weights of the momentum in the update, and in its own running mean, in ``[0, 1)``.
    **common
        As for :class:`Optimizer`.
    """

    replayable = True
    slots = ("m",)
    default_lr = 1e-4

    def __init__(self, lr: Any = None, beta1: float = 0.9, beta2: float = 0.99, **common: Any) -> None:
        super().__init__(lr, **common)
        self.beta1 = self._number("beta1", beta1, below=1.0)
        self.beta2 = self._number("beta2", beta2, below=1.0)

    def hyperparameters(self) -> dict[int, float]:
        return {S.P0: self.beta1, S.P1: self.beta2}

    def step(self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array) -> None:
        bk.lion_step(param, grad, slots["m"], state)
