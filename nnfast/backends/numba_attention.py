"""Attention, rotary positions and masks on Numba kernels."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ..kernels.cpu import attention as attention_kernels
from ..kernels.cpu import attention_grad as gradient_kernels
from ..kernels.cpu import sequence_rows
from ..positions import position_angles
from .base import Array
from .numba_checks import matrix, native, plain, shapes, writable


def _strided(*arrays: Any) -> bool:
    """Whether all are 3-d, with a last axis in one piece, whole elements from step to step, and not empty."""
    for x in arrays:
        if not isinstance(x, np.ndarray) or x.ndim != 3 or x.size == 0 or not x.flags.aligned:
            return False
        if any(n > 1 and (step <= 0 or step % x.itemsize) for n, step in zip(x.shape, x.strides, strict=True)):
            return False
        if x.strides[2] != x.itemsize and x.shape[2] > 1:
            return False
    return True


def _one_type(*arrays: Any) -> bool:
    """Whether all are of one dtype that kernels know; ``None`` passes."""
    dtypes = {x.dtype for x in arrays if x is not None}
    return len(dtypes) == 1 and dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}


def _head_width(method: str, x: np.ndarray, heads: int) -> int:
    if x.ndim != 3:
        raise ValueError(f"{method}: an array has shape {x.shape}, expected (n, steps, heads * features)")
    if heads < 1 or x.shape[2] % heads:
        raise ValueError(f"{method}: {x.shape[2]} features cannot be shared by {heads} heads")
    return int(x.shape[2]) // heads


def _check_shapes(
    method: str, q: Array, k: Array, v: Array, heads: int, mask: Array | None, lse: Array | None, **like_q: Array
) -> None:
    """Raise ``ValueError`` where shapes do not fit those of queries and keys."""
    (n, t, width), s = q.shape, k.shape[1]
    _head_width(method, q, heads)
    shapes(method, k=(k, (n, s, width)), v=(v, (n, s, width)), mask=(mask, (n, s)), lse=(lse, (n, heads, t)))
    shapes(method, **{name: (array, q.shape) for name, array in like_q.items()})


@lru_cache(maxsize=32)
def _turns(steps: int, width: int, base: float, first: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of rotary positions, (steps, width / 2)."""
    angles = position_angles(np, steps, width, base, first)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


class NumbaAttention:
    """The attention part of :class:`~nnfast.backends.numba_backend.NumbaBackend`."""

    _emit: Any
    _numpy: Any
    fused: bool

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
        usable = _strided(q, k, v, out) and native(mask, lse) and _one_type(q, k, v, mask, out, lse)
        if not (self.fused and usable):
            self._numpy("attention", q, k, v, heads=heads, causal=causal, scale=scale, mask=mask, out=out, lse=lse)
            return
        _check_shapes("attention", q, k, v, heads, mask, lse, out=out)
        writable("attention", out=out, lse=lse)
        self._emit(attention_kernels.attention_call(q, k, v, heads, causal, scale, mask, out, lse))

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
        arrays = (dy, q, k, v, out, dq, dk, dv)
        if not (self.fused and _strided(*arrays) and native(mask, lse) and _one_type(*arrays, mask, lse)):
            options = {"heads": heads, "causal": causal, "scale": scale, "mask": mask}
            self._numpy("attention_grad", dy, q, k, v, **options, out=out, lse=lse, dq=dq, dk=dk, dv=dv)
            return
        _check_shapes("attention_grad", q, k, v, heads, mask, lse, out=out, dy=dy, dq=dq)
        shapes("attention_grad", dk=(dk, k.shape), dv=(dv, k.shape))
        writable("attention_grad", dq=dq, dk=dk, dv=dv)
        self._emit(gradient_kernels.attention_grad_call(dy, q, k, v, heads, causal, scale, mask, out, lse, dq, dk, dv))

    def rotary(self, x: Array, *, heads: int, base: float, first: int = 0, inverse: bool = False, out: Array) -> None:
        if not (_strided(x, out) and _one_type(x, out)):
            self._numpy("rotary", x, heads=heads, base=base, first=first, inverse=inverse, out=out)
            return
        width = _head_width("rotary", x, heads)
        if width % 2:
            raise ValueError(f"rotary: the features of a head are turned in pairs, so {width} of them cannot be")
        shapes("rotary", out=(out, x.shape))
        writable("rotary", out=out)
        cos, sin = _turns(x.shape[1], width, float(base), int(first), x.dtype)
        self._emit(sequence_rows.rotary_call(x, heads, cos, sin, -1.0 if inverse else 1.0, out))

    def step_mask(self, x: Array, *, value: float, out: Array) -> None:
        indices = plain(x) and x.dtype == np.int64 and float(value).is_integer() and abs(value) < 2**53
        if not (native(out) if indices else native(x, out)):
            self._numpy("step_mask", x, value=value, out=out)
            return
        matrix("step_mask", x=x)
        shapes("step_mask", out=(out, x.shape[:1]))
        writable("step_mask", out=out)
        self._emit(sequence_rows.step_mask_call(x, value, out))

    def scale_rows(self, x: Array, scale: Array, *, out: Array) -> None:
        if not native(x, scale, out):
            self._numpy("scale_rows", x, scale, out=out)
            return
        matrix("scale_rows", x=x)
        shapes("scale_rows", scale=(scale, x.shape[:1]), out=(out, x.shape))
        writable("scale_rows", out=out)
        self._emit(sequence_rows.scale_rows_call(x, scale, out))
