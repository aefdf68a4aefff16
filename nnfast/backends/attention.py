"""The part of the contract that attention is made of: also rotary positions and masks of steps.

Arguments that may be `strided` are views whose last axis is in one piece, such as columns of one wider array: queries,
keys and values that one product gave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Array

__all__ = ["AttentionOperations"]


class AttentionOperations(ABC):
    """Mixin of :class:`~nnfast.backends.base.Backend`."""

    @abstractmethod
    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        *,
        heads: int,
        causal: bool,
        scale: float,
        mask: Array | None = None,
        out: Array,
        lse: Array | None,
    ) -> None:
        """Scaled dot-product attention of several heads (Vaswani et al. 2017), without keeping the scores.

        Per head ``out = softmax(scale * q k^T) v``. `q`, `out` (n, t, heads * d), `k`, `v` (n, s, heads * d), all
        strided; head `i` has the columns ``[i d, (i + 1) d)``. `mask` (n, s): keys with 0 are not looked at. With
        `causal` step `i` looks at the steps up to ``i + s - t``. A step that may look at nothing gives 0.
        `lse` (n, heads, t), of the type of weights, takes ``log sum exp`` of the scores for the gradient (-inf for
        such a step); ``None`` outside training.
        """

    @abstractmethod
    def attention_grad(
        self,
        dy: Array,
        q: Array,
        k: Array,
        v: Array,
        *,
        heads: int,
        causal: bool,
        scale: float,
        mask: Array | None = None,
        out: Array,
        lse: Array,
        dq: Array,
        dk: Array,
        dv: Array,
    ) -> None:
        """Gradients of :meth:`attention`, which computes the scores again (Dao et al. 2022); all but `lse` strided."""

    @abstractmethod
    def rotary(self, x: Array, *, heads: int, base: float, first: int = 0, inverse: bool = False, out: Array) -> None:
        """Rotary position embedding (Su et al. 2021): pair `i` of a head's halves turns by ``t / base**(2 i / d)``.

        ``out[i] = x[i] cos - x[i + d / 2] sin``, ``out[i + d / 2] = x[i] sin + x[i + d / 2] cos`` for ``i < d / 2``.
        `x`, `out` (n, t, heads * d), strided; step `t` has the position ``first + t``; `d` is even. `out` may be `x`.
        `inverse` turns back, which is the gradient.
        """

    @abstractmethod
    def step_mask(self, x: Array, *, value: float, out: Array) -> None:
        """``out[i] = 1`` where any number of row `i` is not `value`, else 0; NaN is none.

        `x` (n, m), floats or int64; `out` (n,), of the type of activations.
        """

    @abstractmethod
    def scale_rows(self, x: Array, scale: Array, *, out: Array) -> None:
        """``out[i] = x[i] * scale[i]``; `x`, `out` (n, m), `scale` (n,), all of one type; `out` may be `x`."""
