"""Adam and its relatives."""

from __future__ import annotations

from typing import Any

from ..backends.base import Array, Backend
from ..kernels import step_state as S
from .base import Optimizer


class Adam(Optimizer):
    """Running means of the gradient and of its square, corrected for their start at zero.

    Kingma, Ba: "Adam: a method for stochastic optimization" (2015), algorithm 1.

    Parameters
    ----------
    lr : float, schedule or callable
        Learning rate.
    beta1, beta2 : float
        Decays of the two running means, in ``[0, 1)``.
    eps : float
        Keeps the denominator away from zero.
    epsilon_hat : bool
        Add `eps` to the root of the second moment before its correction, not after it: the form at the end of the
        paper's section 2, which Keras and scikit-learn have.
    **common
        As for :class:`Optimizer`; the weight decay is added to the gradient.
    """

    replayable = True
    slots: tuple[str, ...] = ("m", "v")
    decoupled = False

    def __init__(
        self,
        lr: Any = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        epsilon_hat: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(lr, **common)
        self.beta1 = self._number("beta1", beta1, below=1.0)
        self.beta2 = self._number("beta2", beta2, below=1.0)
        self.eps = self._number("eps", eps, positive=True)
        self.epsilon_hat = bool(epsilon_hat)
        if self.epsilon_hat and type(self).step is not Adam.step:
            raise ValueError(f"{type(self).__name__} has no form with epsilon_hat")

    def hyperparameters(self) -> dict[int, float]:
        return {S.P0: self.beta1, S.P1: self.beta2, S.P2: self.eps, S.P3: float(self.epsilon_hat)}

    def step(self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array) -> None:
        bk.adam_step(param, grad, slots["m"], slots["v"], state, decoupled=self.decoupled)


class AdamW(Adam):
    """Adam with the weight decay apart from the gradient: ``w *= 1 - lr * weight_decay`` first.

    Loshchilov, Hutter: "Decoupled weight decay regularization" (2019).

    Parameters
    ----------
    lr, beta1, beta2, eps
        As for :class:`Adam`.
    weight_decay : float
        Share of each weight that goes per unit of learning rate.
    **common
        As for :class:`Optimizer`.
    """

    decoupled = True

    def __init__(
        self,
        lr: Any = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **common: Any,
    ) -> None:
        super().__init__(lr, beta1, beta2, eps, weight_decay=weight_decay, **common)


class Adamax(Adam):
    """Adam with the running maximum of the gradient's size in place of the mean square (algorithm 2).

    Parameters
    ----------
    lr, beta1, beta2, eps
        As for :class:`Adam`.
    **common
        As for :class:`Optimizer`.
    """

    slots = ("m", "u")
    default_lr = 2e-3

    def step(self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array) -> None:
        bk.adamax_step(param, grad, slots["m"], slots["u"], state)


class NAdam(Adam):
    """Adam with Nesterov's look ahead and a schedule of its momentum.

    Dozat: "Incorporating Nesterov momentum into Adam" (2016).

    Parameters
    ----------
    lr, beta1, beta2, eps
        As for :class:`Adam`.
    momentum_decay : float
        Speed of the schedule ``mu_t = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay))``.
    **common
        As for :class:`Optimizer`.
    """

    default_lr = 2e-3

    def __init__(
        self,
        lr: Any = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        momentum_decay: float = 4e-3,
        **common: Any,
    ) -> None:
        super().__init__(lr, beta1, beta2, eps, **common)
        self.momentum_decay = self._number("momentum_decay", momentum_decay)

    def hyperparameters(self) -> dict[int, float]:
        return {**super().hyperparameters(), S.P3: self.momentum_decay, S.P4: 1.0}

    def step(self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array) -> None:
        bk.nadam_step(param, grad, slots["m"], slots["v"], state)
