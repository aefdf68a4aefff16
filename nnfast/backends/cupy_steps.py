"""The CUDA kernels of a training step: losses, bookkeeping, clipping, optimizers.

A method returns ``NotImplemented`` for what its kernel does not support; the backend then uses CuPy's
own operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import step_state as S
from ..kernels.cuda import loader
from .base import Array

_ONE_THREAD = ((1,), (1,))


class CudaSteps:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _kernels: loader.Kernels
    _launch: Any
    _type: Any
    _wide_type: Any
    _recording: Any
    _sync: Any
    _partial: Any
    _scratch: Any
    _cupy: Any

    # ---- losses ---------------------------------------------------------------------------------
    def _weight(self, weight: Array | None, rows: int, state: Array) -> tuple[Any, int] | None:
        """The weights as the loss kernels take them; their sum goes to BATCH_WEIGHT first."""
        if weight is None:
            return None, 0
        if weight.shape != (rows,):
            return None
        if weight.dtype.char not in "fd" or not weight.flags.c_contiguous:
            weight = self._cupy.ascontiguousarray(weight, dtype=np.float64)
        itemsize = weight.dtype.itemsize
        self._launch("xent", "weight_total", (), ((1,), (1024,)), weight, itemsize, rows, state)
        return weight, itemsize

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
    ) -> Any:
        t = self._type(pred, dpred, wide=(target,))
        shapes = {x.shape for x in (pred, target, dpred) if x is not None}
        if t is None or pred.ndim != 2 or len(shapes) != 1 or name not in loader.LOSSES or not pred.size:
            return NotImplemented
        if (weights := self._weight(weight, len(pred), state)) is None:
            return NotImplemented
        arguments = (pred, target, *weights, state, dpred, *pred.shape, float(param), self._partial(), self._sync())
        shape = self._kernels.flat(pred.size)
        self._launch("losses", "elementwise_loss", (t, loader.LOSSES[name]), shape, *arguments)
        return None

    def softmax_xent(
        self,
        logits: Array,
        labels: Array,
        weight: Array | None,
        state: Array,
        *,
        smoothing: float = 0.0,
        dlogits: Array | None,
    ) -> Any:
        t = self._type(logits, dlogits)
        computed = loader.WIDE.get(logits.dtype.char)
        if t is None or logits.ndim != 2 or not logits.size or (dlogits is not None and dlogits.shape != logits.shape):
            return NotImplemented
        hard = labels.ndim == 1 and labels.dtype.char in "lq" and labels.shape == logits.shape[:1]
        soft = labels.dtype.char == computed and labels.shape == logits.shape
        if not (hard or soft) or not labels.flags.c_contiguous:
            return NotImplemented
        if (weights := self._weight(weight, len(logits), state)) is None:
            return NotImplemented
        args = (t, "index_t" if hard else loader.SCALARS[labels.dtype.char])
        grid, block, at_a_time = self._kernels.row_tiles(*logits.shape)
        sums = self._sums_of(dlogits, grid[0])
        arguments = (logits, labels, *weights, state, dlogits, sums, *logits.shape, float(smoothing), at_a_time)
        self._launch("xent", "softmax_xent", args, (grid, block), *arguments, self._partial(), self._sync())
        return None

    def _sums_of(self, dlogits: Array | None, blocks: int) -> Array | None:
        """Where a recorded step's loss leaves the column sums of its gradient: the next call may want them."""
        if dlogits is None or self._recording.auxiliary is None:
            return None
        dtype = loader.WIDE[dlogits.dtype.char]
        sums = self._scratch(f"loss {dtype}", blocks * dlogits.shape[1], dtype)[: blocks * dlogits.shape[1]]
        self._recording.sums = dlogits.data.ptr, dlogits.shape, sums, blocks
        return sums

    # ---- the step's own bookkeeping -------------------------------------------------------------
    def begin_step(self, state: Array, lr_table: Array) -> Any:
        self._launch("step", "begin_step", (), _ONE_THREAD, state, lr_table, lr_table.size)

    def sum_losses(self, state: Array, *, weight: float, first: bool) -> Any:
        self._launch("step", "sum_losses", (), _ONE_THREAD, state, float(weight), int(first))

    def record_loss(self, state: Array) -> Any:
        self._launch("step", "record_loss", (), _ONE_THREAD, state)

    def end_step(self, state: Array, rows: int) -> Any:
        self._launch("step", "end_step", (), _ONE_THREAD, state, int(rows))

    def end_epoch(self, state: Array, results: Array) -> Any:
        if results.dtype.char != "d" or results.shape[1:] != (3,) or not results.flags.c_contiguous:
            return NotImplemented
        self._launch("step", "end_epoch", (), _ONE_THREAD, state, results, len(results))
        return None

    def sq_norm(self, x: Array, *, out: Array) -> Any:
        return self._sq_norm(x, out, None, 0.0)

    def clip_norm(self, grad: Array, state: Array, *, max_norm: float) -> Any:
        return self._sq_norm(grad, state[S.GRAD_SQ_NORM : S.GRAD_SQ_NORM + 1], state, float(max_norm))

    def _sq_norm(self, x: Array, out: Array, state: Array | None, max_norm: float) -> Any:
        t = self._wide_type(x)
        if t is None or out.dtype.char != "d":
            return NotImplemented
        shape = self._kernels.flat(x.size)
        self._launch("reduce", "sq_norm", (t,), shape, x, x.size, out, state, max_norm, self._partial(), self._sync())
        return None

    def l2_penalty(self, param: Array, grad: Array, state: Array, *, strength: float, share: float = 1.0) -> Any:
        t = self._wide_type(param, grad)
        if t is None or param.shape != grad.shape:
            return NotImplemented
        arguments = (param, grad, param.size, state, float(strength), float(share), self._partial(), self._sync())
        self._launch("reduce", "l2_penalty", (t,), self._kernels.flat(param.size), *arguments)
        return None

    def clip_value(self, grad: Array, *, limit: float) -> Any:
        t = self._wide_type(grad)
        if t is None:
            return NotImplemented
        self._launch("reduce", "clip_value", (t,), self._kernels.flat(grad.size), grad, grad.size, float(limit))
        return None

    def unscale(self, grad: Array, state: Array) -> Any:
        if self._type(grad) != "float":
            return NotImplemented
        self._launch("half", "unscale", (), self._kernels.flat(grad.size), grad, grad.size, state, self._sync())
        return None

    # ---- optimizers -----------------------------------------------------------------------------
    def _optimize(
        self, rule: str, param: Array, grad: Array, moments: tuple[Array | None, ...], state: Array, *flags: bool
    ) -> Any:
        """One flat step; `moments` in the rule's order, those that are ``None`` left out."""
        held = [x for x in moments if x is not None]
        t = self._wide_type(param, grad, *held)
        if t is None or any(x.shape != param.shape for x in (grad, *held)):
            return NotImplemented
        name = f"{rule}<{', '.join((t, *(str(flag).lower() for flag in flags)))}>"
        slots = (*held, *(None,) * (3 - len(held)))
        low = self._low(param)
        arguments = (param, grad, *slots, state, self._sync(), param.size)
        half = (None, 0) if low is None else (low, loader.HALVES[low.dtype.char])
        self._launch("optimizers", "optimizer_step", (name,), self._kernels.flat(param.size), *arguments, *half)
        self._recording.copied = low is not None
        return None

    def _low(self, param: Array) -> Array | None:
        """Where the kernel of a step leaves `param` rounded, if it is to and can."""
        if self._recording.copying is None:
            return None
        wanted, low = self._recording.copying
        alike = (wanted.data.ptr, wanted.shape, param.dtype.char) == (param.data.ptr, low.shape, "f")
        fits = alike and param.shape == low.shape and low.dtype.char in loader.HALVES
        return low if fits and self._type(low) is not None else None

    def sgd_step(self, param: Array, grad: Array, velocity: Array | None, state: Array, *, nesterov: bool) -> Any:
        if velocity is None:
            return self._optimize("Sgd", param, grad, (), state)
        return self._optimize("Momentum", param, grad, (velocity,), state, nesterov)

    def adagrad_step(self, param: Array, grad: Array, total: Array, state: Array) -> Any:
        return self._optimize("Adagrad", param, grad, (total,), state)

    def rmsprop_step(
        self, param: Array, grad: Array, sq: Array, mean: Array | None, velocity: Array | None, state: Array
    ) -> Any:
        flags = (mean is not None, velocity is not None)
        return self._optimize("RmsProp", param, grad, (sq, mean, velocity), state, *flags)

    def adam_step(self, param: Array, grad: Array, m: Array, v: Array, state: Array, *, decoupled: bool) -> Any:
        return self._optimize("Adam", param, grad, (m, v), state, decoupled)

    def adamax_step(self, param: Array, grad: Array, m: Array, u: Array, state: Array) -> Any:
        return self._optimize("Adamax", param, grad, (m, u), state)

    def nadam_step(self, param: Array, grad: Array, m: Array, v: Array, state: Array) -> Any:
        return self._optimize("Nadam", param, grad, (m, v), state)

    def lion_step(self, param: Array, grad: Array, m: Array, state: Array) -> Any:
        return self._optimize("Lion", param, grad, (m,), state)

    def ema_step(self, param: Array, average: Array, state: Array) -> Any:
        t = self._wide_type(param, average)
        if t is None or param.shape != average.shape:
            return NotImplemented
        self._launch("optimizers", "ema_step", (t,), self._kernels.flat(param.size), param, average, state, param.size)
        return None
