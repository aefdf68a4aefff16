"""Pooling, sizes, group normalisation and spatial dropout of images on Numba kernels."""

from __future__ import annotations

from typing import Any

from ..kernels.cpu import bilinear, group_norm, images, masked_pooling, pooling
from ..random import keep_threshold
from ..window import Window
from .base import Array
from .numba_checks import is_state, native, shapes, writable


def _images(method: str, **arrays: Array) -> None:
    """Raise ``ValueError`` where a named array is not (n, height, width, channels)."""
    for name, array in arrays.items():
        if array.ndim != 4:
            raise ValueError(f"{method}: {name} has shape {array.shape}, expected (n, height, width, channels)")


def _windows(method: str, name: str, image: Array, window: Window, **results: Array) -> None:
    """Check arrays that have one pixel per window of `image`, the argument called `name`."""
    _images(method, **{name: image})
    n, h, w, c = image.shape
    shapes(method, **{key: (result, (n, *window.out_size(h, w), c)) for key, result in results.items()})


def _steps(method: str, name: str, x: Array, mask: Array, **results: Array) -> None:
    """Check sequences, the argument called `name`, their mask, and arrays that have one step of each."""
    if x.ndim != 3:
        raise ValueError(f"{method}: {name} has shape {x.shape}, expected (n, steps, channels)")
    n, t, c = x.shape
    shapes(method, mask=(mask, (n, t)), **{key: (result, (n, c)) for key, result in results.items()})


def _larger(method: str, name: str, outer: Array, inner: Array, top: int, left: int) -> None:
    """Check that `inner` lies inside of `outer`, the argument called `name`, if it begins there."""
    (n, h, w, c), (rows, columns) = inner.shape, outer.shape[1:3]
    if top < 0 or left < 0 or top + h > rows or left + w > columns or (n, c) != (outer.shape[0], outer.shape[3]):
        raise ValueError(
            f"{method}: {name} has shape {outer.shape}, expected ({n}, {top + h} or more, {left + w} or more, {c})"
        )


def _scaled(method: str, small: Array, factors: tuple[int, int], large: Array, name: str) -> None:
    """Check that `large`, the argument called `name`, is `factors` times as high and as wide as `small`."""
    n, h, w, c = small.shape
    shapes(method, **{name: (large, (n, h * factors[0], w * factors[1], c))})


class NumbaSpatial:
    """The part of :class:`~nnfast.backends.numba_backend.NumbaBackend` for images, but for convolution."""

    _emit: Any
    _numpy: Any

    # ---- pooling ----------------------------------------------------------------------------------
    def max_pool(self, x: Array, window: Window, *, out: Array) -> None:
        if not native(x, out):
            self._numpy("max_pool", x, window, out=out)
            return
        _windows("max_pool", "x", x, window, out=out)
        writable("max_pool", out=out)
        self._emit(pooling.max_pool_call(x, window, out))

    def max_pool_grad(self, dy: Array, x: Array, y: Array, window: Window, *, dx: Array) -> None:
        if not native(dy, x, y, dx):
            self._numpy("max_pool_grad", dy, x, y, window, dx=dx)
            return
        _windows("max_pool_grad", "x", x, window, dy=dy, y=y)
        shapes("max_pool_grad", dx=(dx, x.shape))
        writable("max_pool_grad", dx=dx)
        self._emit(pooling.max_pool_grad_call(dy, x, y, window, dx))

    def avg_pool(self, x: Array, window: Window, *, count_padding: bool = False, out: Array) -> None:
        if not native(x, out):
            self._numpy("avg_pool", x, window, count_padding=count_padding, out=out)
            return
        _windows("avg_pool", "x", x, window, out=out)
        writable("avg_pool", out=out)
        self._emit(pooling.sum_pool_call(x, window, _share(window, count_padding), out))

    def avg_pool_grad(self, dy: Array, window: Window, *, count_padding: bool = False, dx: Array) -> None:
        if not native(dy, dx):
            self._numpy("avg_pool_grad", dy, window, count_padding=count_padding, dx=dx)
            return
        _windows("avg_pool_grad", "dx", dx, window, dy=dy)
        writable("avg_pool_grad", dx=dx)
        self._emit(pooling.sum_pool_grad_call(dy, window, _share(window, count_padding), dx))

    def masked_max(self, x: Array, mask: Array, *, out: Array) -> None:
        if not native(x, mask, out):
            self._numpy("masked_max", x, mask, out=out)
            return
        _steps("masked_max", "x", x, mask, out=out)
        writable("masked_max", out=out)
        self._emit(masked_pooling.masked_max_call(x, mask, out))

    def masked_max_grad(self, dy: Array, x: Array, y: Array, mask: Array, *, dx: Array) -> None:
        if not native(dy, x, y, mask, dx):
            self._numpy("masked_max_grad", dy, x, y, mask, dx=dx)
            return
        _steps("masked_max_grad", "x", x, mask, dy=dy, y=y)
        shapes("masked_max_grad", dx=(dx, x.shape))
        writable("masked_max_grad", dx=dx)
        self._emit(masked_pooling.masked_max_grad_call(dy, x, y, mask, dx))

    def masked_mean(self, x: Array, mask: Array, *, out: Array) -> None:
        if not native(x, mask, out):
            self._numpy("masked_mean", x, mask, out=out)
            return
        _steps("masked_mean", "x", x, mask, out=out)
        writable("masked_mean", out=out)
        self._emit(masked_pooling.masked_mean_call(x, mask, out))

    def masked_mean_grad(self, dy: Array, mask: Array, *, dx: Array) -> None:
        if not native(dy, mask, dx):
            self._numpy("masked_mean_grad", dy, mask, dx=dx)
            return
        _steps("masked_mean_grad", "dx", dx, mask, dy=dy)
        writable("masked_mean_grad", dx=dx)
        self._emit(masked_pooling.masked_mean_grad_call(dy, mask, dx))

    # ---- size -------------------------------------------------------------------------------------
    def pad(self, x: Array, top: int, left: int, *, out: Array) -> None:
        if not native(x, out):
            self._numpy("pad", x, top, left, out=out)
            return
        _images("pad", x=x, out=out)
        _larger("pad", "out", out, x, top, left)
        writable("pad", out=out)
        self._emit(images.pad_call(x, top, left, out))

    def crop(self, x: Array, top: int, left: int, *, out: Array) -> None:
        if not native(x, out):
            self._numpy("crop", x, top, left, out=out)
            return
        _images("crop", x=x, out=out)
        _larger("crop", "x", x, out, top, left)
        writable("crop", out=out)
        self._emit(images.crop_call(x, top, left, out))

    def upsample(self, x: Array, factors: tuple[int, int], *, out: Array) -> None:
        if not native(x, out):
            self._numpy("upsample", x, factors, out=out)
            return
        _images("upsample", x=x)
        _scaled("upsample", x, factors, out, "out")
        writable("upsample", out=out)
        # Each pixel of `x` goes to a window of `out`, as the gradient of a sum over windows does
        self._emit(pooling.sum_pool_grad_call(x, Window(factors, factors), 1.0, out))

    def upsample_grad(self, dy: Array, factors: tuple[int, int], *, dx: Array) -> None:
        if not native(dy, dx):
            self._numpy("upsample_grad", dy, factors, dx=dx)
            return
        _images("upsample_grad", dx=dx)
        _scaled("upsample_grad", dx, factors, dy, "dy")
        writable("upsample_grad", dx=dx)
        self._emit(pooling.sum_pool_call(dy, Window(factors, factors), 1.0, dx))

    def upsample_bilinear(self, x: Array, factors: tuple[int, int], *, out: Array) -> None:
        if not native(x, out):
            self._numpy("upsample_bilinear", x, factors, out=out)
            return
        _images("upsample_bilinear", x=x)
        _scaled("upsample_bilinear", x, factors, out, "out")
        writable("upsample_bilinear", out=out)
        self._emit(bilinear.interpolate_call(x, factors, out))

    def upsample_bilinear_grad(self, dy: Array, factors: tuple[int, int], *, dx: Array) -> None:
        if not native(dy, dx):
            self._numpy("upsample_bilinear_grad", dy, factors, dx=dx)
            return
        _images("upsample_bilinear_grad", dx=dx)
        _scaled("upsample_bilinear_grad", dx, factors, dy, "dy")
        writable("upsample_bilinear_grad", dx=dx)
        self._emit(bilinear.interpolate_grad_call(dy, factors, dx))

    # ---- normalisation and noise ------------------------------------------------------------------
    def group_norm(
        self, x: Array, gamma: Array, beta: Array, *, groups: int, eps: float, out: Array, mean: Array, rstd: Array
    ) -> None:
        if not native(x, gamma, beta, out, mean, rstd):
            self._numpy("group_norm", x, gamma, beta, groups=groups, eps=eps, out=out, mean=mean, rstd=rstd)
            return
        _groups("group_norm", x, groups, {"out": out}, {"gamma": gamma, "beta": beta}, {"mean": mean, "rstd": rstd})
        writable("group_norm", out=out, mean=mean, rstd=rstd)
        self._emit(group_norm.group_norm_call(x, gamma, beta, groups, eps, out, mean, rstd))

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
        if not native(dy, x, gamma, mean, rstd, dx, dgamma, dbeta):
            self._numpy("group_norm_grad", dy, x, gamma, mean, rstd, groups=groups, dx=dx, dgamma=dgamma, dbeta=dbeta)
            return
        _groups(
            "group_norm_grad", x, groups, {"dy": dy, "dx": dx},
            {"gamma": gamma, "dgamma": dgamma, "dbeta": dbeta}, {"mean": mean, "rstd": rstd},
        )  # fmt: skip
        writable("group_norm_grad", dx=dx, dgamma=dgamma, dbeta=dbeta)
        self._emit(*group_norm.group_norm_grad_calls(dy, x, gamma, mean, rstd, groups, dx, dgamma, dbeta))

    def spatial_dropout(self, x: Array, state: Array, *, rate: float, stream: int, out: Array) -> None:
        if not (native(x, out) and is_state(state)):
            self._numpy("spatial_dropout", x, state, rate=rate, stream=stream, out=out)
            return
        _pixels("spatial_dropout", x)
        shapes("spatial_dropout", out=(out, x.shape))
        writable("spatial_dropout", out=out)
        self._emit(images.spatial_dropout_call(x, state, rate, keep_threshold(rate), stream, out))


def _share(window: Window, count_padding: bool) -> float:
    """What of its sum the mean of a window is; 0: as many as lie inside."""
    return 1.0 / (window.size[0] * window.size[1]) if count_padding else 0.0


def _pixels(method: str, x: Array) -> None:
    if x.ndim != 3:
        raise ValueError(f"{method}: x has shape {x.shape}, expected (n, pixels, channels)")


def _groups(
    method: str,
    x: Array,
    groups: int,
    like: dict[str, Array],
    of_channels: dict[str, Array],
    of_groups: dict[str, Array],
) -> None:
    """Check the arrays of a group normalisation of `x`."""
    _pixels(method, x)
    n, _, c = x.shape
    if groups < 1 or c % groups:
        raise ValueError(f"{method}: {groups} groups do not divide {c} channels")
    shapes(method, **{name: (array, x.shape) for name, array in like.items()})
    shapes(method, **{name: (array, (c,)) for name, array in of_channels.items()})
    shapes(method, **{name: (array, (n, groups)) for name, array in of_groups.items()})
