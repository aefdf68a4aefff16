"""Every primitive in plain array code, for NumPy and CuPy alike: read this to see what is computed."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import activations
from ..activations import Activation
from ..kernels import step_state as S
from ..random import keep_threshold, philox_4x32
from . import formulas
from .array_attention import ArrayAttention
from .array_conv import ArrayConv
from .array_optimizers import ArrayOptimizers
from .array_recurrent import ArrayRecurrent
from .array_spatial import ArraySpatial
from .base import Array, Backend


class ArrayBackend(ArrayOptimizers, ArrayConv, ArraySpatial, ArrayRecurrent, ArrayAttention, Backend):
    """The primitives through ``self.xp``; a subclass adds the memory methods."""

    # ---- memory ---------------------------------------------------------------------------------
    def fill(self, x: Array, value: float) -> None:
        x.fill(value)

    # ---- primitives -----------------------------------------------------------------------------
    def _wide(self, x: Array) -> Array:
        """`x` in the dtype that it is computed with: float32 for 16 bits."""
        return x.astype(np.float32) if x.dtype.itemsize == 2 else x

    def gemm(
        self, a: Array, b: Array, *, out: Array, trans_a: bool = False, trans_b: bool = False, beta: float = 0.0
    ) -> None:
        a, b = (a.T if trans_a else a), (b.T if trans_b else b)
        if beta == 0.0:
            self.xp.matmul(a, b, out=out)
        else:
            out *= beta
            out += a @ b

    def add(self, x: Array, y: Array, *, out: Array) -> None:
        self.xp.add(x, y, out=out)

    def add_bias(self, x: Array, b: Array, *, out: Array) -> None:
        self.xp.add(x, b, out=out)

    def sum_rows(self, x: Array, *, out: Array) -> None:
        self.xp.sum(x, axis=0, dtype=out.dtype, out=out)

    def act(self, act: str | Activation, z: Array, *, out: Array) -> None:
        act, z = activations.get(act), self._wide(z)
        if act.name == "softmax":
            out[...] = formulas.softmax(self.xp, z)
        else:
            out[...] = formulas.ACTIVATIONS[act.name][0](self.xp, z, act.alpha)

    def act_grad(self, act: str | Activation, dy: Array, saved: Array, *, out: Array) -> None:
        act, dy, saved = activations.get(act), self._wide(dy), self._wide(saved)
        if act.name == "softmax":
            inner = self.xp.sum(dy * saved, axis=-1, keepdims=True)
            out[...] = saved * (dy - inner)
        else:
            slope = formulas.ACTIVATIONS[act.name][1](self.xp, saved, act.alpha)
            out[...] = dy * slope.astype(dy.dtype, copy=False)

    def _dropout_mask(self, shape: tuple[int, ...], state: Array, rate: float, stream: int) -> Array:
        """Which elements of an array of this shape dropout keeps in the current step, bool."""
        host = self.to_numpy(state)
        step, size = int(host[S.STEP]), prod(shape)
        blocks = np.arange(-(-size // 4), dtype=np.uint64)
        words = philox_4x32(
            (blocks, stream, step & 0xFFFFFFFF, step >> 32), (int(host[S.SEED_LO]), int(host[S.SEED_HI]))
        )
        return self.asarray(np.stack(words, axis=-1).reshape(-1)[:size].reshape(shape) < keep_threshold(rate))

    def dropout(self, x: Array, state: Array, *, rate: float, stream: int, out: Array) -> None:
        scaled = self._wide(x) * (1.0 / (1.0 - rate))
        out[...] = self.xp.where(self._dropout_mask(x.shape, state, rate, stream), scaled, 0.0)

    def take_rows(self, x: Array, index: Array, *, out: Array) -> None:
        out[...] = x[index]

    def add_at_rows(self, x: Array, index: Array, *, out: Array) -> None:
        self.xp.add.at(out, index, x)

    def copy_columns(self, x: Array, *, out: Array) -> None:
        out[...] = x

    def _row(self, state: Array) -> int:
        return int(state[S.ROW])

    def take_batch(self, x: Array, order: Array, state: Array, *, out: Array) -> None:
        row = self._row(state)
        out[...] = x[order[row : row + len(out)]]

    def store_batch(self, x: Array, state: Array, *, out: Array) -> None:
        row = self._row(state)
        out[row : row + len(x)] = x

    def sq_norm(self, x: Array, *, out: Array) -> None:
        wide = x.astype(np.float64, copy=False).reshape(-1)
        out[0] = wide @ wide

    # ---- normalisation --------------------------------------------------------------------------
    def layer_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, rstd: Array
    ) -> None:
        xp, x = self.xp, self._wide(x)
        mean[...] = xp.mean(x, axis=1)
        centered = x - mean[:, None]
        rstd[...] = 1.0 / xp.sqrt(xp.mean(centered * centered, axis=1) + eps)
        out[...] = centered * rstd[:, None] * gamma + beta

    def layer_norm_grad(
        self, dy: Array, x: Array, gamma: Array, mean: Array, rstd: Array, *, dx: Array, dgamma: Array, dbeta: Array
    ) -> None:
        xp, dy, x = self.xp, self._wide(dy), self._wide(x)
        xhat = (x - mean[:, None]) * rstd[:, None]
        g = dy * gamma
        dgamma[...] = (dy * xhat).sum(axis=0)
        dbeta[...] = dy.sum(axis=0)
        if dx is not None:
            of_mean = xp.mean(g, axis=1, keepdims=True)
            of_scale = xhat * xp.mean(g * xhat, axis=1, keepdims=True)
            dx[...] = rstd[:, None] * (g - of_mean - of_scale)

    def rms_norm(self, x: Array, gamma: Array, *, eps: float, out: Array, rstd: Array) -> None:
        xp, x = self.xp, self._wide(x)
        rstd[...] = 1.0 / xp.sqrt(xp.mean(x * x, axis=1) + eps)
        out[...] = x * rstd[:, None] * gamma

    def rms_norm_grad(self, dy: Array, x: Array, gamma: Array, rstd: Array, *, dx: Array | None, dgamma: Array) -> None:
        xp, dy, x = self.xp, self._wide(dy), self._wide(x)
        xhat = x * rstd[:, None]
        g = dy * gamma
        dgamma[...] = (dy * xhat).sum(axis=0)
        if dx is not None:
            dx[...] = rstd[:, None] * (g - xhat * xp.mean(g * xhat, axis=1, keepdims=True))

    def batch_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, var: Array
    ) -> None:
        xp, x = self.xp, self._wide(x)
        mean[...] = xp.mean(x, axis=0)
        centered = x - mean
        var[...] = xp.mean(centered * centered, axis=0)
        out[...] = centered * (gamma / xp.sqrt(var + eps)) + beta

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
        dy, x = self._wide(dy), self._wide(x)
        rstd = 1.0 / self.xp.sqrt(var + eps)
        xhat = (x - mean) * rstd
        dgamma[...] = (dy * xhat).sum(axis=0)
        dbeta[...] = dy.sum(axis=0)
        if dx is not None:
            n = x.shape[0]
            dx[...] = (gamma * rstd) * (dy - dbeta / n - xhat * (dgamma / n))

    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float, out: Array
    ) -> None:
        out[...] = (self._wide(x) - mean) * (gamma / self.xp.sqrt(var + eps)) + beta

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
        weight = self.xp.where(state[S.BAD_STEP] == 0, momentum, 0.0).astype(mean.dtype)
        unbiased = rows / max(rows - 1, 1)
        finite = self.xp.isfinite(mean) & self.xp.isfinite(var)
        running_mean[...] = self.xp.where(finite, running_mean + weight * (mean - running_mean), running_mean)
        running_var[...] = self.xp.where(finite, running_var + weight * (unbiased * var - running_var), running_var)

    # ---- losses ---------------------------------------------------------------------------------
    def _mean_factors(self, weight: Array | None, rows: int, columns: int, state: Array) -> Array:
        """Per-row factors ``w_i / (columns * sum w)``, as a column; writes BATCH_WEIGHT."""
        xp = self.xp
        if weight is None:
            state[S.BATCH_WEIGHT] = rows
            return xp.full((rows, 1), 1.0 / (columns * rows), np.float64)
        wide = weight.astype(np.float64)
        total = wide.sum()
        state[S.BATCH_WEIGHT] = total
        return (wide / (columns * xp.where(total == 0, 1.0, total)))[:, None]

    def _of_gradient(self, factor: Array, state: Array, dtype: Any) -> Array:
        """The factors of a loss as its gradient takes them, times LOSS_SCALE."""
        scale = state[S.LOSS_SCALE]
        return (factor * self.xp.where(scale == 0, 1.0, scale)).astype(dtype)

    def elementwise_loss(
        self,
        name: str,
        pred: Array,
        target: Array,
        weight: Array | None,
        state: Array,
        *,
        param: float = 0.0,
        dpred: Array | None,
    ) -> None:
        value, slope = formulas.LOSSES[name]
        pred, target = self._wide(pred), self._wide(target)
        rows, columns = pred.shape
        factor = self._mean_factors(weight, rows, columns, state)
        state[S.LOSS] = (value(self.xp, pred, target, param) * factor).sum(dtype=np.float64)
        if dpred is not None:
            dpred[...] = slope(self.xp, pred, target, param) * self._of_gradient(factor, state, pred.dtype)

    def softmax_xent(
        self,
        logits: Array,
        labels: Array,
        weight: Array | None,
        state: Array,
        *,
        smoothing: float = 0.0,
        dlogits: Array | None,
    ) -> None:
        xp, logits = self.xp, self._wide(logits)
        n, c = logits.shape
        if labels.ndim == 1:
            target = xp.zeros((n, c), logits.dtype)
            target[xp.arange(n), labels] = 1.0
        else:
            target = self._wide(labels)
        if smoothing:
            target = (1.0 - smoothing) * target + smoothing / c
        factor = self._mean_factors(weight, n, 1, state)
        shifted = logits - logits.max(axis=1, keepdims=True)
        e = xp.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        log_prob = shifted - xp.log(total)
        state[S.LOSS] = -(target * log_prob * factor).sum(dtype=np.float64)
        if dlogits is not None:
            # d/dz_j of -sum_k t_k log p_k; targets need not sum to one
            mass = target.sum(axis=1, keepdims=True)
            dlogits[...] = (e / total * mass - target) * self._of_gradient(factor, state, logits.dtype)

    # ---- the step's own bookkeeping -------------------------------------------------------------
    def begin_step(self, state: Array, lr_table: Array) -> None:
        cursor = int(state[S.CURSOR])
        state[S.STEP] += 1
        state[S.LR] = lr_table[cursor]
        state[S.CURSOR] += 1
        state[S.GRAD_SCALE] = 1.0
        state[S.SKIP_STEP] = 0.0

    def sum_losses(self, state: Array, *, weight: float, first: bool) -> None:
        state[S.LOSS] = weight * state[S.LOSS] + (0.0 if first else state[S.TOTAL_LOSS])
        state[S.TOTAL_LOSS] = state[S.LOSS]

    def record_loss(self, state: Array) -> None:
        if state[S.BAD_STEP] != 0:
            return
        if not self.xp.isfinite(state[S.LOSS]):
            state[S.BAD_STEP] = state[S.STEP]
            return
        state[S.LOSS_SUM] += state[S.LOSS] * state[S.BATCH_WEIGHT]
        state[S.WEIGHT_SUM] += state[S.BATCH_WEIGHT]

    def end_step(self, state: Array, rows: int) -> None:
        state[S.ROW] += rows

    def end_epoch(self, state: Array, results: Array) -> None:
        if state[S.BAD_STEP] != 0:
            return
        row = results[int(state[S.EPOCH_INDEX])]
        row[0], row[1], row[2] = state[S.LOSS_SUM], state[S.WEIGHT_SUM], state[S.LR]
        state[S.LOSS_SUM] = state[S.WEIGHT_SUM] = 0.0
        state[S.EPOCH_INDEX] += 1
