"""The part of the contract that normalises 2-d arrays, each row or each column.

With `x`, `out`, `dy` and `dx` of 16 bits all other arrays are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Array


class NormOperations(ABC):
    """Mixin of :class:`~nnfast.backends.base.Backend`."""

    @abstractmethod
    def layer_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, rstd: Array
    ) -> None:
        """``out = (x - mean) * rstd * gamma + beta`` with the statistics of each row.

        `x`, `out` (n, m); `gamma`, `beta` (m,); `mean`, ``rstd = 1 / sqrt(var + eps)`` (n,), written.
        """

    @abstractmethod
    def layer_norm_grad(
        self, dy: Array, x: Array, gamma: Array, mean: Array, rstd: Array, *, dx: Array, dgamma: Array, dbeta: Array
    ) -> None:
        """Gradients of :meth:`layer_norm`; `dx` may be ``None`` or `dy`."""

    @abstractmethod
    def batch_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, var: Array
    ) -> None:
        """Normalise each column by the batch's own mean and (biased) variance, which are written.

        `x`, `out` (n, m); `gamma`, `beta`, `mean`, `var` (m,).
        """

    @abstractmethod
    def batch_norm_grad(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        mean: Array,
        var: Array,
        *,
        eps: float,
        dx: Array,
        dgamma: Array,
        dbeta: Array,
    ) -> None:
        """Gradients of :meth:`batch_norm`; `dx` may be ``None`` or `dy`."""

    @abstractmethod
    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float, out: Array
    ) -> None:
        """``out = (x - mean) / sqrt(var + eps) * gamma + beta`` with given statistics."""

    @abstractmethod
    def batch_norm_track(
        self,
        mean: Array,
        var: Array,
        state: Array,
        *,
        rows: int,
        momentum: float,
        running_mean: Array,
        running_var: Array,
    ) -> None:
        """``running = (1 - momentum) * running + momentum * batch``, unless a step was bad.

        The variance tracked is the unbiased one, ``var * rows / (rows - 1)``.
        """

    @abstractmethod
    def rms_norm(self, x: Array, gamma: Array, *, eps: float, out: Array, rstd: Array) -> None:
        """``out = x * rstd * gamma``, ``rstd = 1 / sqrt(mean(x**2) + eps)`` of each row (Zhang, Sennrich 2019).

        `x`, `out` (n, m); `gamma` (m,); `rstd` (n,), written. With 16 bits `gamma` and `rstd` are float32.
        """

    @abstractmethod
    def rms_norm_grad(self, dy: Array, x: Array, gamma: Array, rstd: Array, *, dx: Array | None, dgamma: Array) -> None:
        """Gradients of :meth:`rms_norm`; `dx` may be ``None`` or `dy`."""
