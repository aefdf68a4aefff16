"""The CUDA kernels behind layers: elementwise operations, linear layers, normalisation, dropout.

A method returns ``NotImplemented`` for what its kernel does not support; the backend then uses CuPy's
own operations.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .. import activations
from ..activations import Activation
from ..kernels.cuda import loader
from ..random import keep_threshold
from .base import Array


def same(*arrays: Array | None) -> bool:
    """Whether the arrays that are there have one shape."""
    shapes = {x.shape for x in arrays if x is not None}
    return len(shapes) <= 1


class CudaLayers:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _kernels: loader.Kernels
    _launch: Any
    _type: Any
    _wide_type: Any
    _scratch: Any
    _array_type: Any

    # ---- elementwise and column sums ------------------------------------------------------------
    def _cast(self, src: Array, out: Array) -> bool:
        """``out = src`` between float32 and a dtype of 16 bits; whether it was done."""
        chars = src.dtype.char, out.dtype.char
        if "f" not in chars or not loader.HALVES.keys() & set(chars):
            return False
        if not same(src, out) or not all(isinstance(x, self._array_type) and x.flags.c_contiguous for x in (src, out)):
            return False
        types = loader.SCALARS[chars[0]], loader.SCALARS[chars[1]]
        self._launch("half", "cast", types, self._kernels.flat(src.size), src, out, src.size)
        return True

    def add(self, x: Array, y: Array, *, out: Array) -> Any:
        t = self._type(x, y, out)
        if t is None or not same(x, y, out):
            return NotImplemented
        self._launch("reduce", "add", (t,), self._kernels.flat(x.size), x, y, out, x.size)
        return None

    def multiply(self, x: Array, y: Array | float, *, out: Array) -> Any:
        number = isinstance(y, (int, float))
        t = self._type(x, None if number else y, out)
        if t is None or not same(x, None if number else y, out):
            return NotImplemented
        shape = self._kernels.flat(x.size)
        if number:
            self._launch("reduce", "scale", (t,), shape, x, float(y), out, x.size)
        else:
            self._launch("reduce", "multiply", (t,), shape, x, y, out, x.size)
        return None

    def add_bias(self, x: Array, b: Array, *, out: Array) -> Any:
        t = self._type(x, b, out)
        if t is None or not same(x, out) or b.shape != x.shape[-1:]:
            return NotImplemented
        self._bias_act(t, activations.get(None), x, b, None, out)
        return None

    def sum_rows(self, x: Array, *, out: Array) -> Any:
        t = self._type(x, wide=(out,))
        if t is None or x.ndim != 2 or out.shape != x.shape[1:]:
            return NotImplemented
        self._act_grad_bias(t, activations.get(None), x, None, None, out)
        return None

    def act(self, act: str | Activation, z: Array, *, out: Array) -> Any:
        act = activations.get(act)
        t = self._type(z, out)
        if t is None or not same(z, out) or z.ndim == 0:
            return NotImplemented
        if act.name == "softmax":
            self._rows(t, "softmax", z, z, out)
        else:
            self._bias_act(t, act, z, None, None, out)
        return None

    def act_grad(self, act: str | Activation, dy: Array, saved: Array, *, out: Array) -> Any:
        act = activations.get(act)
        t = self._type(dy, saved, out)
        if t is None or saved is None or not same(dy, saved, out) or dy.ndim == 0:
            return NotImplemented
        if act.name == "softmax":
            self._rows(t, "softmax_grad", dy, dy, saved, out)
            return None
        functor = loader.ACTIVATIONS[act.name]
        shape = self._kernels.flat(dy.size)
        self._launch("activation", "act_grad", (t, functor), shape, dy, saved, out, dy.size, float(act.alpha))
        return None

    def _rows(self, t: str, kernel: str, like: Array, *arrays: Array) -> None:
        """A kernel of ``rows.cu`` over the last axis of arrays shaped as `like`."""
        columns = like.shape[-1]
        rows = prod(like.shape[:-1])
        if like.size:
            self._launch("rows", kernel, (t,), self._kernels.warps(rows), *arrays, rows, columns)

    def _bias_act(self, t: str, act: Activation, x: Array, b: Array | None, z: Array | None, y: Array) -> None:
        functor = loader.ACTIVATIONS[act.name]
        shape = self._kernels.flat(x.size)
        self._launch("activation", "bias_act", (t, functor), shape, x, b, z, y, x.size, x.shape[-1], float(act.alpha))

    def _act_grad_bias(
        self, t: str, act: Activation, dy: Array, saved: Array | None, dz: Array | None, db: Array
    ) -> None:
        """``dz = dy * f'`` and ``db = dz.sum(0)`` in one reading; without `dz`, ``db = dy.sum(0)``."""
        grid, block, per_chunk, at_once = self._tiles(dy, saved, dz)
        functor = loader.ACTIVATIONS[act.name]
        (sums,) = self._chunk_sums(grid[1], db)
        arguments = (dy, saved, dz, sums, *dy.shape, per_chunk, at_once, float(act.alpha))
        self._launch("activation", "act_grad_bias", (t, functor), (grid, block), *arguments)
        self._finish_chunks(grid[1], (sums, db))

    def _tiles(self, *arrays: Array | None) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
        """Grid, block, rows of a chunk and elements at once of a kernel that sums up columns of 2-d `arrays`."""
        rows, columns = next(x.shape for x in arrays if x is not None)
        at_once = packed(columns, *arrays)
        return *self._kernels.tiles(rows, columns, at_once), at_once

    def _chunk_sums(self, chunks: int, *outs: Array) -> tuple[Array, ...]:
        """Where column sums go: straight to `outs`, or to scratch where there is more than one chunk."""
        if chunks == 1:
            return outs
        size = chunks * outs[0].size
        scratch = self._scratch(f"columns {outs[0].dtype.char}", size * len(outs), outs[0].dtype)
        return tuple(scratch[i * size : (i + 1) * size] for i in range(len(outs)))

    def _finish_chunks(self, chunks: int, *pairs: tuple[Array, Array]) -> None:
        """Add up the sums of chunks, such as those that :meth:`_chunk_sums` put into scratch."""
        if chunks == 1 and all(sums is out for sums, out in pairs):
            return
        t, columns = loader.SCALARS[pairs[0][1].dtype.char], pairs[0][1].size
        at_once = packed(columns, *(sums for sums, _ in pairs))
        grid, block, _ = self._kernels.tiles(1, columns, at_once)
        first, second = pairs[0], pairs[-1]
        shape = ((grid[0], len(pairs)), block)
        self._launch("reduce", "column_finish", (t,), shape, *first, *second, chunks, columns, at_once)

    # ---- random numbers ---------------------------------------------------------------------------
    def dropout(self, x: Array, state: Array, *, rate: float, stream: int, out: Array) -> Any:
        t = self._type(x, out)
        if t is None or not same(x, out):
            return NotImplemented
        shape = self._kernels.flat(x.size)
        arguments = (x, out, x.size, state, stream, keep_threshold(rate), 1.0 / (1.0 - rate))
        self._launch("dropout", "dropout", (t,), shape, *arguments)
        return None

    # ---- normalisation --------------------------------------------------------------------------
    def layer_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, rstd: Array
    ) -> Any:
        t = self._type(x, out, wide=(gamma, beta, mean, rstd))
        if t is None or not fits(x, columns=(gamma, beta), rows=(mean, rstd), like=(out,)):
            return NotImplemented
        shape = self._kernels.warps(len(x))
        self._launch("layer_norm", "layer_norm", (t,), shape, x, gamma, beta, out, mean, rstd, *x.shape, float(eps))
        return None

    def layer_norm_grad(
        self, dy: Array, x: Array, gamma: Array, mean: Array, rstd: Array, *, dx: Array, dgamma: Array, dbeta: Array
    ) -> Any:
        t = self._type(dy, x, dx, wide=(gamma, mean, rstd, dgamma, dbeta))
        if t is None or not fits(x, columns=(gamma, dgamma, dbeta), rows=(mean, rstd), like=(dy, dx)):
            return NotImplemented
        grid, block, per_chunk, at_once = self._tiles(dy, x)
        sums = self._chunk_sums(grid[1], dgamma, dbeta)
        arguments = (dy, x, mean, rstd, *sums, *x.shape, per_chunk, at_once)
        self._launch("layer_norm", "layer_norm_dparam", (t,), (grid, block), *arguments)
        self._finish_chunks(grid[1], (sums[0], dgamma), (sums[1], dbeta))
        if dx is not None:  # last, because it may overwrite dy
            shape = self._kernels.warps(len(x))
            self._launch("layer_norm", "layer_norm_dx", (t,), shape, dy, x, gamma, mean, rstd, dx, *x.shape)
        return None

    def batch_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, var: Array
    ) -> Any:
        t = self._type(x, out, wide=(gamma, beta, mean, var))
        if t is None or not fits(x, columns=(gamma, beta, mean, var), like=(out,)):
            return NotImplemented
        grid, block, per_chunk, at_once = self._tiles(x)
        size = grid[1] * mean.size
        scratch = self._scratch(f"columns {mean.dtype.char}", 2 * size, mean.dtype)
        means, deviations = scratch[:size], scratch[size : 2 * size]
        arguments = (x, means, deviations, *x.shape, per_chunk, at_once)
        self._launch("batch_norm", "batch_stats", (t,), (grid, block), *arguments)
        shape = self._kernels.flat(mean.size, per_thread=1)
        arguments = (means, deviations, mean, var, *x.shape, per_chunk, grid[1])
        self._launch("batch_norm", "batch_stats_finish", (loader.SCALARS[mean.dtype.char],), shape, *arguments)
        return self.batch_norm_inference(x, gamma, beta, mean, var, eps=eps, out=out)

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
    ) -> Any:
        t = self._type(dy, x, dx, wide=(gamma, mean, var, dgamma, dbeta))
        if t is None or not fits(x, columns=(gamma, mean, var, dgamma, dbeta), like=(dy, dx)):
            return NotImplemented
        grid, block, per_chunk, at_once = self._tiles(dy, x)
        sums = self._chunk_sums(grid[1], dgamma, dbeta)
        arguments = (dy, x, mean, var, *sums, *x.shape, per_chunk, at_once, float(eps))
        self._launch("batch_norm", "batch_norm_dparam", (t,), (grid, block), *arguments)
        self._finish_chunks(grid[1], (sums[0], dgamma), (sums[1], dbeta))
        if dx is not None:
            arguments = (dy, x, gamma, mean, var, dgamma, dbeta, dx, *x.shape, float(eps))
            self._launch("batch_norm", "batch_norm_dx", (t,), self._kernels.flat(x.size), *arguments)
        return None

    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float, out: Array
    ) -> Any:
        t = self._type(x, out, wide=(gamma, beta, mean, var))
        if t is None or not fits(x, columns=(gamma, beta, mean, var), like=(out,)):
            return NotImplemented
        arguments = (x, gamma, beta, mean, var, out, x.size, x.shape[1], float(eps))
        self._launch("batch_norm", "batch_norm_apply", (t,), self._kernels.flat(x.size), *arguments)
        return None

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
    ) -> Any:
        t = self._wide_type(mean, var, running_mean, running_var)
        if t is None or not same(mean, var, running_mean, running_var):
            return NotImplemented
        unbiased = rows / max(rows - 1, 1)
        arguments = (mean, var, state, mean.size, float(momentum), unbiased, running_mean, running_var)
        shape = self._kernels.flat(mean.size, per_thread=1)
        self._launch("batch_norm", "batch_norm_track", (t,), shape, *arguments)
        return None


def packed(columns: int, *arrays: Array | None) -> int:
    """How many elements of rows of `columns` can be moved at once: 16 bytes, where that divides them, or one."""
    held = [x for x in arrays if x is not None]
    at_once = 16 // held[0].dtype.itemsize
    fits = columns % at_once == 0 and all(x.data.ptr % 16 == 0 for x in held)
    return at_once if fits else 1


def fits(x: Array, *, columns: tuple[Array, ...], rows: tuple[Array, ...] = (), like: tuple[Array | None, ...]) -> bool:
    """Whether the shapes are those of a normalisation over a 2-d `x` that is not empty."""
    return (
        x.ndim == 2
        and x.size > 0
        and all(v.shape == x.shape[1:] for v in columns)
        and all(v.shape == x.shape[:1] for v in rows)
        and same(x, *like)
    )
