"""Clipping, the flat optimizer steps and the step's bookkeeping on Numba kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import step_state as S
from ..kernels.cpu import optimizer_steps, pointwise, steps
from .base import Array
from .numba_checks import is_state, native, plain, shapes, sizes, writable


class NumbaOptimizers:
    """The optimizer part of :class:`~nnfast.backends.numba_backend.NumbaBackend`."""

    fused: bool
    _record: list[Any] | None
    _emit: Any
    _numpy: Any

    def begin_step(self, state: Array, lr_table: Array) -> None:
        if not (is_state(state) and plain(lr_table) and lr_table.dtype == np.float64):
            self._numpy("begin_step", state, lr_table)
            return
        if self._record is None and not 0 <= state[S.CURSOR] < lr_table.size:
            raise IndexError(f"begin_step: CURSOR is {state[S.CURSOR]:.0f}, the table has {lr_table.size} rates")
        self._emit(steps.state_call(steps.begin_step, state, lr_table.ctypes.data, lr_table.size, keep=lr_table))

    def sum_losses(self, state: Array, *, weight: float, first: bool) -> None:
        if not is_state(state):
            self._numpy("sum_losses", state, weight=weight, first=first)
            return
        # Not late: the losses write to one place, one after the other
        self._emit(steps.state_call(steps.sum_losses, state, int(first), value=weight))

    def record_loss(self, state: Array) -> None:
        if not is_state(state):
            self._numpy("record_loss", state)
            return
        self._emit(steps.state_call(steps.record_loss, state, when="late"))

    def end_step(self, state: Array, rows: int) -> None:
        if not is_state(state):
            self._numpy("end_step", state, rows)
            return
        self._emit(steps.state_call(steps.end_step, state, value=rows))

    def end_epoch(self, state: Array, results: Array) -> None:
        if not (is_state(state) and plain(results) and results.dtype == np.float64):
            self._numpy("end_epoch", state, results)
            return
        shapes("end_epoch", results=(results, (len(results), 3)))
        writable("end_epoch", results=results)
        if self._record is None and not 0 <= state[S.EPOCH_INDEX] < len(results):
            raise IndexError(f"end_epoch: EPOCH_INDEX is {state[S.EPOCH_INDEX]:.0f}, results has {len(results)} rows")
        self._emit(steps.state_call(steps.end_epoch, state, results.ctypes.data, len(results), keep=results))

    def clip_value(self, grad: Array, *, limit: float) -> None:
        if not native(grad):
            self._numpy("clip_value", grad, limit=limit)
            return
        writable("clip_value", grad=grad)
        self._emit(pointwise.clip_call(grad, limit))

    def clip_norm(self, grad: Array, state: Array, *, max_norm: float) -> None:
        if not (native(grad) and is_state(state)):
            self._numpy("clip_norm", grad, state, max_norm=max_norm)
            return
        self._emit(*pointwise.sq_norm_calls(grad, state[S.GRAD_SQ_NORM : S.GRAD_SQ_NORM + 1]))
        self._emit(steps.state_call(steps.scale_to_norm, state, value=max_norm))

    def l2_penalty(self, param: Array, grad: Array, state: Array, *, strength: float, share: float = 1.0) -> None:
        if not (native(param, grad) and is_state(state)):
            self._numpy("l2_penalty", param, grad, state, strength=strength, share=share)
            return
        shapes("l2_penalty", grad=(grad, param.shape))
        writable("l2_penalty", grad=grad)
        self._emit(*pointwise.l2_penalty_calls(param, grad, state, float(strength), float(share)))

    def unscale(self, grad: Array, state: Array) -> None:
        self._numpy("unscale", grad, state)  # of use to no precision of this backend

    # ---- the steps; their own arrays may be None ---------------------------------------------------
    def _step(self, kind: str, state: Array, method: str, *arrays: Array | None, **flags: bool) -> None:
        fusible = self.fused or method == "ema_step"
        if not (fusible and native(*arrays) and is_state(state)):
            self._numpy(method, *arrays, state, **flags)
            return
        assert arrays[0] is not None
        named = {f"array {i} of the step": a for i, a in enumerate(arrays)}
        sizes(method, arrays[0].size, **named)
        read_only = "array 0 of the step" if method == "ema_step" else "array 1 of the step"
        writable(method, **{name: a for name, a in named.items() if name != read_only})
        self._emit(*optimizer_steps.step_calls(kind, state, arrays))

    def sgd_step(self, param: Array, grad: Array, velocity: Array | None, state: Array, *, nesterov: bool) -> None:
        kind = "sgd" if velocity is None else "nesterov" if nesterov else "momentum"
        self._step(kind, state, "sgd_step", param, grad, velocity, nesterov=nesterov)

    def adagrad_step(self, param: Array, grad: Array, total: Array, state: Array) -> None:
        self._step("adagrad", state, "adagrad_step", param, grad, total)

    def rmsprop_step(
        self, param: Array, grad: Array, sq: Array, mean: Array | None, velocity: Array | None, state: Array
    ) -> None:
        self._step("rmsprop", state, "rmsprop_step", param, grad, sq, mean, velocity)

    def adam_step(self, param: Array, grad: Array, m: Array, v: Array, state: Array, *, decoupled: bool) -> None:
        self._step("adamw" if decoupled else "adam", state, "adam_step", param, grad, m, v, decoupled=decoupled)

    def adamax_step(self, param: Array, grad: Array, m: Array, u: Array, state: Array) -> None:
        self._step("adamax", state, "adamax_step", param, grad, m, u)

    def nadam_step(self, param: Array, grad: Array, m: Array, v: Array, state: Array) -> None:
        self._step("nadam", state, "nadam_step", param, grad, m, v)

    def lion_step(self, param: Array, grad: Array, m: Array, state: Array) -> None:
        self._step("lion", state, "lion_step", param, grad, m)

    def ema_step(self, param: Array, average: Array, state: Array) -> None:
        self._step("ema", state, "ema_step", param, average)
