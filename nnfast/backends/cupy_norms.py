"""The CUDA kernels of group normalisation, and of normalisation by the root mean square.

A method returns ``NotImplemented`` for what its kernel does not support; the backend then uses CuPy's own operations.
"""

from __future__ import annotations

from typing import Any

from ..kernels.cuda import loader
from .base import Array
from .cupy_layers import fits, same

__all__ = ["CudaNorms"]

# Threads of the block that a group of an image has
_THREADS = 256


class CudaNorms:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _kernels: loader.Kernels
    _launch: Any
    _type: Any
    _tiles: Any
    _chunk_sums: Any
    _finish_chunks: Any

    def group_norm(
        self, x: Array, gamma: Array, beta: Array, *, groups: int, eps: float, out: Array, mean: Array, rstd: Array
    ) -> Any:
        t = self._type(x, out, wide=(gamma, beta, mean, rstd))
        if t is None or not same(x, out) or not _grouped(x, groups, (gamma, beta), (mean, rstd)):
            return NotImplemented
        arguments = (x, gamma, beta, out, mean, rstd, *x.shape[1:], groups, float(eps))
        self._launch("group_norm", "group_norm", (t,), ((mean.size,), (_THREADS,)), *arguments)
        return None

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
    ) -> Any:
        t = self._type(dy, x, dx, wide=(gamma, mean, rstd, dgamma, dbeta))
        if t is None or not same(dy, x, dx) or not _grouped(x, groups, (gamma, dgamma, dbeta), (mean, rstd)):
            return NotImplemented
        _, pixels, c = x.shape
        rows_dy, rows_x = dy.reshape(-1, c), x.reshape(-1, c)
        grid, block, per_chunk, at_once = self._tiles(rows_dy, rows_x)
        sums = self._chunk_sums(grid[1], dgamma, dbeta)
        arguments = (dy, x, mean, rstd, *sums, *rows_x.shape, pixels, groups, per_chunk, at_once)
        self._launch("group_norm", "group_norm_dparam", (t,), (grid, block), *arguments)
        self._finish_chunks(grid[1], (sums[0], dgamma), (sums[1], dbeta))
        if dx is not None:  # last, because it may overwrite dy
            arguments = (dy, x, gamma, mean, rstd, dx, pixels, c, groups)
            self._launch("group_norm", "group_norm_dx", (t,), ((mean.size,), (_THREADS,)), *arguments)
        return None

    def rms_norm(self, x: Array, gamma: Array, *, eps: float, out: Array, rstd: Array) -> Any:
        t = self._type(x, out, wide=(gamma, rstd))
        if t is None or not fits(x, columns=(gamma,), rows=(rstd,), like=(out,)):
            return NotImplemented
        arguments = (x, gamma, out, rstd, *x.shape, float(eps))
        self._launch("rms_norm", "rms_norm", (t,), self._kernels.warps(len(x)), *arguments)
        return None

    def rms_norm_grad(self, dy: Array, x: Array, gamma: Array, rstd: Array, *, dx: Array | None, dgamma: Array) -> Any:
        t = self._type(dy, x, dx, wide=(gamma, rstd, dgamma))
        if t is None or not fits(x, columns=(gamma, dgamma), rows=(rstd,), like=(dy, dx)):
            return NotImplemented
        grid, block, per_chunk, at_once = self._tiles(dy, x)
        (sums,) = self._chunk_sums(grid[1], dgamma)
        arguments = (dy, x, rstd, sums, *x.shape, per_chunk, at_once)
        self._launch("rms_norm", "rms_norm_dparam", (t,), (grid, block), *arguments)
        self._finish_chunks(grid[1], (sums, dgamma))
        if dx is not None:  # last, because it may overwrite dy
            shape = self._kernels.warps(len(x))
            self._launch("rms_norm", "rms_norm_dx", (t,), shape, dy, x, gamma, rstd, dx, *x.shape)
        return None


def _grouped(x: Array, groups: int, columns: tuple[Array, ...], statistics: tuple[Array, ...]) -> bool:
    """Whether the shapes are those of a normalisation of groups of channels of an `x` (n, pixels, c), not empty."""
    return (
        x.ndim == 3
        and x.size > 0
        and groups >= 1
        and x.shape[2] % groups == 0
        and all(v.shape == x.shape[2:] for v in columns)
        and all(v.shape == (len(x), groups) for v in statistics)
    )
