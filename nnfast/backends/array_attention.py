"""Attention, rotary positions and masks in plain array code, for NumPy and CuPy."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from ..positions import position_angles

Array = Any


def _of_heads(x: Array, heads: int) -> Array:
    """(n, t, heads * d) as (n, heads, t, d), a view."""
    n, steps, width = x.shape
    return x.reshape(n, steps, heads, width // heads).transpose(0, 2, 1, 3)


def _side_by_side(x: Array) -> Array:
    """(n, heads, t, d) as (n, t, heads * d)."""
    n, heads, steps, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(n, steps, heads * width)


class ArrayAttention:
    """Mixin of :class:`~nnfast.backends.array_backend.ArrayBackend`."""

    xp: Any
    _wide: Callable[[Array], Array]

    def _scores(self, q: Array, k: Array, causal: bool, scale: float, mask: Array | None) -> Array:
        """``scale * q k^T`` of each head, -inf where a step may not look; (n, heads, t, s)."""
        xp = self.xp
        scores = scale * (q @ k.swapaxes(-1, -2))
        t, s = scores.shape[-2:]
        if mask is not None:
            scores = xp.where(mask[:, None, None, :] != 0, scores, -inf)
        if causal:
            scores = xp.where(xp.arange(s) <= xp.arange(t)[:, None] + (s - t), scores, -inf)
        return scores

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
        xp = self.xp
        q, k, v = (_of_heads(self._wide(x), heads) for x in (q, k, v))
        scores = self._scores(q, k, causal, scale, mask)
        top = scores.max(axis=-1, keepdims=True)
        e = xp.exp(scores - xp.where(top == -inf, 0.0, top))
        total = e.sum(axis=-1, keepdims=True)
        nothing = total == 0
        total = xp.where(nothing, 1.0, total)
        out[...] = _side_by_side(e / total @ v)
        if lse is not None:
            lse[...] = xp.where(nothing, -inf, top + xp.log(total))[..., 0]

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
        xp = self.xp
        q, k, v, dy, out = (_of_heads(self._wide(x), heads) for x in (q, k, v, dy, out))
        p = xp.exp(self._scores(q, k, causal, scale, mask) - xp.where(lse == -inf, 0.0, lse)[..., None])
        dp = dy @ v.swapaxes(-1, -2)
        # sum_j p_j dp_j, by the linearity of what follows
        dscores = scale * p * (dp - (dy * out).sum(axis=-1, keepdims=True))
        dq[...] = _side_by_side(dscores @ k)
        dk[...] = _side_by_side(dscores.swapaxes(-1, -2) @ q)
        dv[...] = _side_by_side(p.swapaxes(-1, -2) @ dy)

    def rotary(self, x: Array, *, heads: int, base: float, first: int = 0, inverse: bool = False, out: Array) -> None:
        xp, wide = self.xp, self._wide(x)
        n, t, width = x.shape
        if width % (2 * heads):
            raise ValueError(f"rotary: {heads} heads of an even number of features need another width than {width}")
        angles = position_angles(xp, t, width // heads, base, first)
        cos, sin = (f(angles).astype(wide.dtype)[:, None, :] for f in (xp.cos, xp.sin))
        if inverse:
            sin = -sin
        # (n, t, heads, 2, d / 2): both halves of each head
        halves, turned = (a.reshape(n, t, heads, 2, width // heads // 2) for a in (wide, out))
        left, right = halves[..., 0, :], halves[..., 1, :]
        turned[..., 0, :], turned[..., 1, :] = left * cos - right * sin, left * sin + right * cos

    def step_mask(self, x: Array, *, value: float, out: Array) -> None:
        out[...] = (x != value).any(axis=1)

    def scale_rows(self, x: Array, scale: Array, *, out: Array) -> None:
        out[...] = self._wide(x) * self._wide(scale)[:, None]
