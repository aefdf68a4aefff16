"""Pooling, sizes, group normalisation and spatial dropout of images, in plain array code."""

from __future__ import annotations

from math import inf
from typing import Any

from ..window import Window
from .array_conv import places
from .base import Array


def _shares(factor: int) -> list[tuple[int, float]]:
    """For each place of a pixel's block: the neighbour that is nearest, -1 or 1, and its share of the value."""
    return [(1 if off > 0 else -1, abs(off) / (2 * factor)) for off in range(1 - factor, factor, 2)]


class ArraySpatial:
    """The part of :class:`~nnfast.backends.array_backend.ArrayBackend` for images, but for convolution."""

    xp: Any
    _wide: Any
    _dropout_mask: Any

    # ---- pooling ----------------------------------------------------------------------------------
    def max_pool(self, x: Array, window: Window, *, out: Array) -> None:
        wide = self._wide(x)
        largest = self.xp.full(out.shape, -inf, wide.dtype)
        for _, _, outside, inside in places(window, x, out):
            largest[outside] = self.xp.maximum(largest[outside], wide[inside])  # NaN where either is
        out[...] = largest

    def max_pool_grad(self, dy: Array, x: Array, y: Array, window: Window, *, dx: Array) -> None:
        xp, dy, x, y = self.xp, self._wide(dy), self._wide(x), self._wide(y)
        total, found = xp.zeros(dx.shape, dy.dtype), xp.zeros(dy.shape, bool)
        for _, _, outside, inside in places(window, x, y):
            there, largest = x[inside], y[outside]
            hit = ~found[outside] & ((there == largest) | (xp.isnan(there) & xp.isnan(largest)))
            total[inside] += xp.where(hit, dy[outside], 0.0)
            found[outside] |= hit
        dx[...] = total

    def avg_pool(self, x: Array, window: Window, *, count_padding: bool = False, out: Array) -> None:
        wide = self._wide(x)
        total = self.xp.zeros(out.shape, wide.dtype)
        for _, _, outside, inside in places(window, x, out):
            total[outside] += wide[inside]
        out[...] = total / self._counts(window, x, out, count_padding, wide.dtype)

    def avg_pool_grad(self, dy: Array, window: Window, *, count_padding: bool = False, dx: Array) -> None:
        wide = self._wide(dy)
        share = wide / self._counts(window, dx, dy, count_padding, wide.dtype)
        total = self.xp.zeros(dx.shape, wide.dtype)
        for _, _, outside, inside in places(window, dx, dy):
            total[inside] += share[outside]
        dx[...] = total

    def _counts(self, window: Window, image: Array, result: Array, count_padding: bool, dtype: Any) -> Array:
        """What each window's sum is divided by, (1, oh, ow, 1); at least 1."""
        counts = self.xp.zeros((1, *result.shape[1:3], 1), dtype)
        if count_padding:
            counts[...] = window.size[0] * window.size[1]
        else:
            for _, _, outside, _ in places(window, image, result):
                counts[outside] += 1.0
        return self.xp.maximum(counts, 1.0)

    def masked_max(self, x: Array, mask: Array, *, out: Array) -> None:
        xp, there = self.xp, (mask != 0)[:, :, None]
        largest = xp.where(there, self._wide(x), -inf).max(axis=1)  # NaN where one is
        out[...] = xp.where(there.any(axis=1), largest, 0.0)

    def masked_max_grad(self, dy: Array, x: Array, y: Array, mask: Array, *, dx: Array) -> None:
        xp, dy, x, y = self.xp, self._wide(dy)[:, None], self._wide(x), self._wide(y)[:, None]
        hit = (mask != 0)[:, :, None] & ((x == y) | (xp.isnan(x) & xp.isnan(y)))
        first = xp.arange(x.shape[1])[:, None] == xp.argmax(hit, axis=1)[:, None]
        dx[...] = xp.where(hit & first, dy, 0.0)

    def masked_mean(self, x: Array, mask: Array, *, out: Array) -> None:
        wide, there = self._wide(x), (mask != 0)[:, :, None]
        # Not times the mask: what is padding may be anything
        out[...] = self.xp.where(there, wide, 0.0).sum(axis=1) / self._steps_there(there, wide.dtype)

    def masked_mean_grad(self, dy: Array, mask: Array, *, dx: Array) -> None:
        wide, there = self._wide(dy), (mask != 0)[:, :, None]
        dx[...] = self.xp.where(there, (wide / self._steps_there(there, wide.dtype))[:, None], 0.0)

    def _steps_there(self, there: Array, dtype: Any) -> Array:
        """How many steps of each sequence are there, (n, 1); at least 1."""
        return self.xp.maximum(there.sum(axis=1), 1).astype(dtype)

    # ---- size -------------------------------------------------------------------------------------
    def pad(self, x: Array, top: int, left: int, *, out: Array) -> None:
        out[...] = 0.0
        out[:, top : top + x.shape[1], left : left + x.shape[2]] = x

    def crop(self, x: Array, top: int, left: int, *, out: Array) -> None:
        out[...] = x[:, top : top + out.shape[1], left : left + out.shape[2]]

    def upsample(self, x: Array, factors: tuple[int, int], *, out: Array) -> None:
        n, h, w, c = x.shape
        blocks = out.reshape(n, h, factors[0], w, factors[1], c)
        blocks[...] = x[:, :, None, :, None]

    def upsample_grad(self, dy: Array, factors: tuple[int, int], *, dx: Array) -> None:
        n, h, w, c = dx.shape
        dx[...] = self._wide(dy).reshape(n, h, factors[0], w, factors[1], c).sum(axis=(2, 4))

    def upsample_bilinear(self, x: Array, factors: tuple[int, int], *, out: Array) -> None:
        out[...] = self._interpolated(self._interpolated(self._wide(x), factors[0], 1), factors[1], 2)

    def upsample_bilinear_grad(self, dy: Array, factors: tuple[int, int], *, dx: Array) -> None:
        dx[...] = self._interpolated_grad(self._interpolated_grad(self._wide(dy), factors[1], 2), factors[0], 1)

    def _interpolated(self, x: Array, factor: int, axis: int) -> Array:
        """`x` with `factor` places for each pixel along `axis`."""
        xp, x = self.xp, x.swapaxes(0, axis)
        neighbours = {-1: xp.concatenate([x[:1], x[:-1]]), 1: xp.concatenate([x[1:], x[-1:]])}
        places = [(1.0 - w) * x + w * neighbours[side] if w else x for side, w in _shares(factor)]
        return xp.stack(places, 1).reshape(len(x) * factor, *x.shape[1:]).swapaxes(0, axis)

    def _interpolated_grad(self, dy: Array, factor: int, axis: int) -> Array:
        """The gradient of :meth:`_interpolated`."""
        xp, dy = self.xp, dy.swapaxes(0, axis)
        blocks = dy.reshape(len(dy) // factor, factor, *dy.shape[1:])
        dx = xp.zeros((len(blocks), *dy.shape[1:]), dy.dtype)
        for k, (side, w) in enumerate(_shares(factor)):
            dx += (1.0 - w) * blocks[:, k]
            neighbours = w * blocks[:, k] if w else xp.zeros_like(dx)
            if side < 0:
                dx[:-1] += neighbours[1:]
                dx[:1] += neighbours[:1]
            else:
                dx[1:] += neighbours[:-1]
                dx[-1:] += neighbours[-1:]
        return dx.swapaxes(0, axis)

    # ---- normalisation and noise ----------------------------------------------------------------------
    def group_norm(
        self, x: Array, gamma: Array, beta: Array, *, groups: int, eps: float, out: Array, mean: Array, rstd: Array
    ) -> None:
        xp, grouped = self.xp, self._grouped(x, groups)
        mean[...] = xp.mean(grouped, axis=(1, 3))
        centered = grouped - mean[:, None, :, None]
        rstd[...] = 1.0 / xp.sqrt(xp.mean(centered * centered, axis=(1, 3)) + eps)
        out[...] = (centered * rstd[:, None, :, None]).reshape(x.shape) * gamma + beta

    def group_norm_grad(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        mean: Array,
        rstd: Array,
        *,
        groups: int,
        dx: Array,
        dgamma: Array,
        dbeta: Array,
    ) -> None:
        xp, wide = self.xp, self._wide(dy)
        scale = rstd[:, None, :, None]
        xhat = (self._grouped(x, groups) - mean[:, None, :, None]) * scale
        g = self._grouped(wide * gamma, groups)
        dgamma[...] = (wide * xhat.reshape(x.shape)).sum(axis=(0, 1))
        dbeta[...] = wide.sum(axis=(0, 1))
        if dx is not None:
            of_mean = xp.mean(g, axis=(1, 3), keepdims=True)
            of_scale = xhat * xp.mean(g * xhat, axis=(1, 3), keepdims=True)
            dx[...] = (scale * (g - of_mean - of_scale)).reshape(x.shape)

    def _grouped(self, x: Array, groups: int) -> Array:
        """`x` (n, pixels, c) as (n, pixels, groups, c / groups)."""
        n, pixels, c = x.shape
        return self._wide(x).reshape(n, pixels, groups, c // groups)

    def spatial_dropout(self, x: Array, state: Array, *, rate: float, stream: int, out: Array) -> None:
        kept = self._dropout_mask((x.shape[0], 1, x.shape[2]), state, rate, stream)
        out[...] = self.xp.where(kept, self._wide(x) * (1.0 / (1.0 - rate)), 0.0)
