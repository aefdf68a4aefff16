"""Convolution on Numba kernels: checks, and where the windows lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import activations
from ..activations import Activation
from ..kernels.cpu import conv_calls, micro, product
from ..window import Window
from .base import Array
from .numba_checks import native, shapes, writable
from .spatial import SpatialOperations


class NumbaConv(SpatialOperations):
    """Mixin of :class:`~nnfast.backends.numba_backend.NumbaBackend`."""

    fused: bool
    _emit: Callable[..., None]
    _numpy: Callable[..., None]

    def conv(self, x: Array, W: Array, window: Window, *, groups: int = 1, out: Array) -> None:
        geometry = geometry_of("conv", x, W, window, groups, out) if native(x, W, out) else None
        if geometry is None:
            self._numpy("conv", x, W, window, groups=groups, out=out)
            return
        writable("conv", out=out)
        self._emit(*conv_calls.conv_calls(x, W, None, False, geometry, out))

    def conv_input_grad(self, dy: Array, W: Array, window: Window, *, groups: int = 1, dx: Array) -> None:
        geometry = geometry_of("conv_input_grad", dx, W, window, groups, dy) if native(dy, W, dx) else None
        if geometry is None:
            self._numpy("conv_input_grad", dy, W, window, groups=groups, dx=dx)
            return
        writable("conv_input_grad", dx=dx)
        self._emit(*conv_calls.input_grad_calls(dy, W, geometry, dx))

    def conv_weight_grad(self, dy: Array, x: Array, window: Window, *, groups: int = 1, dW: Array) -> None:
        geometry = geometry_of("conv_weight_grad", x, dW, window, groups, dy) if native(dy, x, dW) else None
        if geometry is None:
            self._numpy("conv_weight_grad", dy, x, window, groups=groups, dW=dW)
            return
        writable("conv_weight_grad", dW=dW)
        self._emit(*conv_calls.weight_grad_calls(dy, x, geometry, dW))

    def conv_act(
        self,
        x: Array,
        W: Array,
        b: Array | None,
        act: str | Activation,
        window: Window,
        *,
        groups: int = 1,
        out: Array,
        saved: Array | None = None,
    ) -> None:
        act = activations.get(act)
        usable = self.fused and native(x, W, b, out, saved)
        geometry = geometry_of("conv_act", x, W, window, groups, out) if usable else None
        if geometry is None:
            super().conv_act(x, W, b, act, window, groups=groups, out=out, saved=saved)
            return
        shapes("conv_act", b=(b, W.shape[-1:]), saved=(saved, out.shape))
        writable("conv_act", out=out, saved=saved)
        self._emit(*conv_calls.forward_calls(x, W, b, act.name, act.alpha, geometry, out, saved))

    def conv_act_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        saved: Array | None,
        act: str | Activation,
        window: Window,
        *,
        groups: int = 1,
        dx: Array | None,
        dW: Array,
        db: Array | None,
    ) -> None:
        act = activations.get(act)
        usable = self.fused and native(dy, x, W, saved, dx, dW, db)
        geometry = geometry_of("conv_act_grad", x, W, window, groups, dy) if usable else None
        if geometry is None:
            super().conv_act_grad(dy, x, W, saved, act, window, groups=groups, dx=dx, dW=dW, db=db)
            return
        if saved is None and act.name != "identity":
            raise ValueError(f"conv_act_grad: the gradient of {act.name!r} needs what the forward pass saved")
        shapes(
            "conv_act_grad",
            saved=(saved, dy.shape),
            dx=(dx, x.shape),
            dW=(dW, W.shape),
            db=(db, W.shape[-1:]),
        )
        writable("conv_act_grad", dy=dy, dx=dx, dW=dW, db=db)
        calls = conv_calls.backward_calls(dy, x, W, saved, act.name, act.alpha, geometry, dx, dW, db)
        self._emit(*calls)


def geometry_of(method: str, x: Any, W: Any, window: Window, groups: int, out: Any) -> conv_calls.Geometry | None:
    """Where the windows lie, with all shapes checked; ``None`` where the kernels do not do it."""
    if x.ndim != 4 or W.ndim != 4:
        raise ValueError(f"{method}: images (n, h, w, c) and kernels (h, w, c, m) are needed, got {x.shape}, {W.shape}")
    n, h, w, c = x.shape
    filters = W.shape[-1]
    rows, columns = window.out_size(h, w)
    if groups < 1 or c % groups or filters % groups:
        raise ValueError(f"{method}: {c} channels and {filters} filters cannot be in {groups} groups")
    shapes(method, W=(W, (*window.size, c // groups, filters)), out=(out, (n, rows, columns, filters)))
    blocks = product.blocking(x.dtype)
    masks = micro.masks_loads(blocks.shape.lanes * x.dtype.itemsize)
    if not masks and (filters // groups) % blocks.shape.columns:
        return None  # gradients read rows of filters where they lie
    (top, _), (left, _) = window.padding
    geometry = conv_calls.Geometry(
        h, w, c, window.size, window.stride, window.dilation, top, left, rows, columns, groups, filters
    )
    high, wide = geometry.covered
    # A border so wide that windows see nothing of the image
    return geometry if high > top and wide > left else None
