"""Attention on a GPU, tile by tile, so that the scores are never in memory; rotary positions, masks of steps.

A method returns ``NotImplemented`` for what its kernel does not support; the backend then uses CuPy's own operations.
"""

from __future__ import annotations

from typing import Any

from ..kernels.cuda import loader
from .base import Array
from .cupy_layers import same

__all__ = ["CudaAttention"]

# Of attention.cuh: threads of a block, and its tile's rows by the size of the type that is computed with
_THREADS, _TILE = 256, {4: 64, 8: 32}
# Of attention_tensor.cuh: its tile is the larger one
_TENSOR_THREADS = 128


class CudaAttention:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _kernels: loader.Kernels
    _launch: Any
    _type: Any
    _wide_type: Any
    _scratch: Any
    _array_type: Any

    def _strided_type(self, *arrays: Array) -> str | None:
        """The CUDA type of these arrays (n, t, m), if they have the one, and their last axis is in one piece."""
        first = arrays[0].dtype
        for x in arrays:
            if not isinstance(x, self._array_type) or x.dtype != first or x.ndim != 3 or x.size == 0:
                return None
            if x.shape[2] > 1 and x.strides[2] != first.itemsize:
                return None
            if any(stride % first.itemsize for stride in x.strides):
                return None
        return loader.SCALARS.get(first.char)

    def _attention_type(
        self, q: Array, k: Array, like_q: tuple[Array, ...], like_k: tuple[Array, ...], heads: int, mask: Any, lse: Any
    ) -> str | None:
        """The CUDA type of an attention that its kernels can do."""
        t = self._strided_type(q, k, *like_q, *like_k)
        if t is None or not (same(q, *like_q) and same(k, *like_k)) or q.shape[2] % heads:
            return None
        n, steps, columns = q.shape
        if k.shape[0] != n or k.shape[2] != columns:
            return None
        if mask is not None and not (mask.shape == k.shape[:2] and mask.flags.c_contiguous):
            return None
        if lse is not None and (lse.shape != (n, heads, steps) or self._wide_type(lse) != _wide(t)):
            return None
        return t

    def _attend(self, kernel: str, tiled: Array, heads: int, tensor: bool, *arguments: Any) -> None:
        """A kernel of which each block takes a tile of the rows of `tiled`, and columns of one of its heads."""
        n, rows, columns = tiled.shape
        char, d = tiled.dtype.char, columns // heads
        widths = loader.TENSOR_WIDTHS if tensor else loader.WIDTHS[char]
        width = next((width for width in widths if width >= d), widths[-1])
        tile = _TILE[8 if char == "d" else 4]
        blocks = (-(-rows // tile) * n * heads, -(-d // width)), (_TENSOR_THREADS if tensor else _THREADS,)
        name = "attention_tensor" if tensor else "attention"
        file = f"{name}_grad" if kernel else name
        self._launch(file, name + kernel, (loader.SCALARS[char], str(width)), blocks, *arguments)

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
    ) -> Any:
        t = self._attention_type(q, k, (out,), (v,), heads, mask, lse)
        if t is None:
            return NotImplemented
        sizes = (heads, q.shape[1], k.shape[1], q.shape[2] // heads, *_strides(q, k, v, out))
        arguments = (q, k, v, *_masked(mask), out, lse, *sizes, int(causal), float(scale))
        self._attend("", q, heads, _for_tensor_cores(heads, q, k, v, out), *arguments)
        return None

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
    ) -> Any:
        t = self._attention_type(q, k, (dy, out, dq), (v, dk, dv), heads, mask, lse)
        if t is None or lse is None:
            return NotImplemented
        n, steps, columns = q.shape
        sizes, last = (heads, steps, k.shape[1], columns // heads), (int(causal), float(scale))
        delta = self._scratch(f"attention delta {lse.dtype.char}", lse.size, lse.dtype)
        arguments = (dy, out, delta, n, heads, steps, columns // heads, *_strides(dy, out))
        self._launch("attention_grad", "attention_delta", (t,), self._kernels.warps(lse.size), *arguments)
        given = (dy, q, k, v, *_masked(mask), lse, delta)
        tensor = _for_tensor_cores(heads, dy, q, k, v, dq, dk, dv)
        self._attend("_dq", q, heads, tensor, *given, dq, *sizes, *_strides(dy, q, k, v, dq), *last)
        self._attend("_dkv", k, heads, tensor, *given, dk, dv, *sizes, *_strides(dy, q, k, v, dk, dv), *last)
        return None

    def rotary(self, x: Array, *, heads: int, base: float, first: int = 0, inverse: bool = False, out: Array) -> Any:
        t = self._strided_type(x, out)
        if t is None or not same(x, out) or x.shape[2] % (2 * heads):
            return NotImplemented
        n, steps, columns = x.shape
        shape = self._kernels.flat(n * steps * columns // (2 * heads), per_thread=1)
        sizes = (n, steps, heads, columns // heads, *_strides(x, out))
        self._launch("rotary", "rotary", (t,), shape, x, out, *sizes, int(first), float(base), int(inverse))
        return None

    # ---- masks of steps ---------------------------------------------------------------------------
    def step_mask(self, x: Array, *, value: float, out: Array) -> Any:
        t, kind = self._type(out), "index_t" if x.dtype.char in "lq" else self._type(x)
        known = kind is not None and (kind, t) in loader.FILES["masks"]["step_mask"]
        contiguous = isinstance(x, self._array_type) and x.flags.c_contiguous
        if not known or not contiguous or x.ndim != 2 or out.shape != x.shape[:1] or x.size == 0:
            return NotImplemented
        self._launch("masks", "step_mask", (kind, t), self._kernels.warps(len(x)), x, float(value), out, *x.shape)
        return None

    def scale_rows(self, x: Array, scale: Array, *, out: Array) -> Any:
        t = self._type(x, scale, out)
        if t is None or x.ndim != 2 or not same(x, out) or scale.shape != x.shape[:1] or x.size == 0:
            return NotImplemented
        self._launch("masks", "scale_rows", (t,), self._kernels.flat(x.size), x, scale, out, *x.shape)
        return None


def _wide(t: str) -> str:
    """The CUDA type that one is computed with."""
    return "double" if t == "double" else "float"


def _for_tensor_cores(heads: int, *arrays: Array) -> bool:
    """Whether attention has 16 bits, and heads that tensor cores can take, 16 bytes at a time."""
    d = arrays[0].shape[2] // heads
    if arrays[0].dtype.char not in loader.HALVES or d > loader.TENSOR_WIDTHS[-1] or d % 8:
        return False
    return all((x.data.ptr | x.strides[0] | x.strides[1]) % 16 == 0 for x in arrays)


def _masked(mask: Array | None) -> tuple[Array | None, int]:
    """A mask, and the bytes of its elements."""
    return mask, 0 if mask is None else mask.dtype.itemsize


def _strides(*arrays: Array) -> tuple[int, ...]:
    """Of each array, the elements between sequences and between rows."""
    return tuple(stride // x.dtype.itemsize for x in arrays for stride in x.strides[:2])
