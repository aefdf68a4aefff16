"""Numba on the CPU: NumPy arrays, fused kernels, native replay of a recorded step.

Each method checks what it was given and emits kernel calls, which run at once, or are kept where a step is
being recorded. What the kernels do not support (other dtypes, strided or empty arrays) goes to
:class:`~nnfast.backends.numpy_backend.NumpyBackend`'s method of the same name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import activations
from ..activations import Activation
from ..kernels import step_state as S
from ..kernels.cpu import activations as tiles
from ..kernels.cpu import gemm, linear, losses, pointwise, rows, shuffle, tuning
from ..kernels.cpu.driver import Call, Program
from ..kernels.cpu.fusion import fused
from ..random import SHUFFLE, keep_threshold
from .base import Array, Backend, Replay
from .numba_attention import NumbaAttention
from .numba_checks import in_range, is_index, is_state, lines, matrix, native, plain, shapes, sizes, writable
from .numba_conv import NumbaConv
from .numba_norms import NumbaNorms
from .numba_optimizers import NumbaOptimizers
from .numba_recurrent import NumbaRecurrent
from .numba_repeat import NumbaRepeat
from .numba_replay import NumbaReplay
from .numba_spatial import NumbaSpatial
from .numpy_backend import NumpyBackend


class NumbaBackend(
    NumbaRepeat,
    NumbaOptimizers,
    NumbaNorms,
    NumbaConv,
    NumbaSpatial,
    NumbaRecurrent,
    NumbaAttention,
    NumpyBackend,
):
    """NumPy arrays and Numba kernels, for float32 and float64."""

    name = "numba"
    device = "numba"
    fetch_bytes = tuning.FETCH_BYTES

    def __init__(self, fused: bool = True) -> None:
        super().__init__(fused)
        # While recording: the kernel calls and Python functions so far, and the backend that runs the latter
        self._record: list[Any] | None = None
        self._eager: NumbaBackend = self

    # ---- running and recording --------------------------------------------------------------------
    def _emit(self, *calls: Call) -> None:
        if self._record is None:
            Program(fused(calls)).run()
        else:
            self._record.extend(calls)

    def _numpy(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call NumPy's method of that name, now or in each replay."""
        function = getattr(NumpyBackend, method)
        self.python(lambda backend: function(backend, *args, **kwargs))

    def capture(
        self,
        step: Callable[[Backend], None],
        temporary: Sequence[Array] = (),
        before: Callable[[], None] = lambda: None,
    ) -> NumbaReplay:
        """Record the calls that ``step(backend)`` makes; nothing is computed now."""
        recorder = copy.copy(self)
        record: list[Any] = []
        recorder._record = record
        recorder._eager = self._eager
        step(recorder)
        return NumbaReplay(self._eager, record, temporary)

    def chain(self, parts: Sequence[tuple[Replay, int]]) -> Replay:
        replays = [(replay, times) for replay, times in parts if isinstance(replay, NumbaReplay) and replay.native]
        return NumbaReplay.chained(self._eager, replays) if len(replays) == len(parts) else super().chain(parts)

    def shuffle(self, seed: int, numbers: Sequence[int], table: np.ndarray) -> None:
        if table.size and plain(table) and table.dtype == np.int64 and table.ndim == 3:
            shuffle.shuffle(seed + (SHUFFLE << 64), numbers, table)
        else:
            super().shuffle(seed, numbers, table)

    def python(self, function: Callable[..., None], *args: Any) -> None:
        if self._record is None:
            function(self, *args)
        else:
            self._record.append(lambda backend: function(backend, *args))

    # ---- memory -----------------------------------------------------------------------------------
    def copy(self, src: Array, *, out: Array) -> None:
        # The way that a single row takes into a plan
        if isinstance(src, np.ndarray) and isinstance(out, np.ndarray) and self._by_numpy(src):
            if not out.flags.writeable:
                writable("copy", out=out)
            np.copyto(out, src, casting="same_kind")
            return
        alike = plain(src, out) and src.dtype == out.dtype and src.shape == out.shape
        if not alike or src.dtype.hasobject or np.may_share_memory(src, out):
            self._numpy("copy", src, out=out)
            return
        writable("copy", out=out)
        self._emit(pointwise.copy_call(src, out))

    def fill(self, x: Array, value: float) -> None:
        if not native(x):
            self._numpy("fill", x, value)
            return
        writable("fill", x=x)
        if self._by_numpy(x):
            with np.errstate(over="ignore"):  # too large for float32 is infinite, as in the kernel
                np.copyto(x, np.float64(value), casting="same_kind")
        else:
            self._emit(pointwise.fill_call(x, value))

    def _by_numpy(self, x: Array) -> bool:
        """Whether to do it now, and so little that a kernel's call costs several times as much."""
        return self._record is None and x.nbytes < tuning.EAGER_COPY_BYTES

    # ---- primitives -------------------------------------------------------------------------------
    def gemm(
        self, a: Array, b: Array, *, out: Array, trans_a: bool = False, trans_b: bool = False, beta: float = 0.0
    ) -> None:
        if not native(a, b, out):
            self._numpy("gemm", a, b, out=out, trans_a=trans_a, trans_b=trans_b, beta=beta)
            return
        matrix("gemm", a=a, b=b, out=out)
        m, k = a.shape[::-1] if trans_a else a.shape
        n = b.shape[0] if trans_b else b.shape[1]
        shapes("gemm", b=(b, (n, k) if trans_b else (k, n)), out=(out, (m, n)))
        writable("gemm", out=out)
        self._emit(*gemm.gemm_calls(a, b, out, trans_a, trans_b, beta))

    def add(self, x: Array, y: Array, *, out: Array) -> None:
        if not native(x, y, out):
            self._numpy("add", x, y, out=out)
            return
        shapes("add", y=(y, x.shape), out=(out, x.shape))
        writable("add", out=out)
        self._emit(pointwise.add_call(x, y, out))

    def add_bias(self, x: Array, b: Array, *, out: Array) -> None:
        if not native(x, b, out):
            self._numpy("add_bias", x, b, out=out)
            return
        matrix("add_bias", x=x)
        shapes("add_bias", b=(b, x.shape[1:]), out=(out, x.shape))
        writable("add_bias", out=out)
        self._emit(tiles.add_bias_call(x, b, out))

    def sum_rows(self, x: Array, *, out: Array) -> None:
        if not native(x, out):
            self._numpy("sum_rows", x, out=out)
            return
        matrix("sum_rows", x=x)
        shapes("sum_rows", out=(out, x.shape[1:]))
        writable("sum_rows", out=out)
        self._emit(*tiles.sum_rows_calls(x, out))

    def act(self, act: str | Activation, z: Array, *, out: Array) -> None:
        act = activations.get(act)
        if not native(z, out):
            self._numpy("act", act, z, out=out)
            return
        shapes("act", out=(out, z.shape))
        writable("act", out=out)
        self._emit(tiles.act_call(act.name, act.alpha, z, out))

    def act_grad(self, act: str | Activation, dy: Array, saved: Array, *, out: Array) -> None:
        act = activations.get(act)
        if not native(dy, saved, out):
            self._numpy("act_grad", act, dy, saved, out=out)
            return
        shapes("act_grad", saved=(saved, dy.shape), out=(out, dy.shape))
        writable("act_grad", out=out)
        self._emit(tiles.act_grad_call(act.name, act.alpha, dy, dy if saved is None else saved, out))

    def dropout(self, x: Array, state: Array, *, rate: float, stream: int, out: Array) -> None:
        if not (native(x, out) and is_state(state)):
            self._numpy("dropout", x, state, rate=rate, stream=stream, out=out)
            return
        shapes("dropout", out=(out, x.shape))
        writable("dropout", out=out)
        self._emit(pointwise.dropout_call(x, state, rate, keep_threshold(rate), stream, out))

    # ---- rows -------------------------------------------------------------------------------------
    def take_rows(self, x: Array, index: Array, *, out: Array) -> None:
        if not (plain(x, out) and is_index(index) and x.dtype == out.dtype and not x.dtype.hasobject):
            self._numpy("take_rows", x, index, out=out)
            return
        shapes("take_rows", out=(out, (index.size, *x.shape[1:])))
        writable("take_rows", out=out)
        if self._record is None:
            in_range("take_rows", index, len(x))
        self._emit(rows.gather_call(x, index, None, out))

    def add_at_rows(self, x: Array, index: Array, *, out: Array) -> None:
        if not (native(x, out) and is_index(index)):
            self._numpy("add_at_rows", x, index, out=out)
            return
        shapes("add_at_rows", x=(x, (index.size, *out.shape[1:])))
        writable("add_at_rows", out=out)
        if self._record is None:
            in_range("add_at_rows", index, len(out))
        self._emit(rows.scatter_add_call(x, index, out))

    def take_batch(self, x: Array, order: Array, state: Array, *, out: Array) -> None:
        alike = plain(x, out) and is_index(order) and x.dtype == out.dtype
        if not alike or x.dtype.hasobject or not is_state(state):
            self._numpy("take_batch", x, order, state, out=out)
            return
        shapes("take_batch", out=(out, (len(out), *x.shape[1:])))
        writable("take_batch", out=out)
        if self._record is None:
            first = int(state[S.ROW])
            shapes("take_batch", order=(order[first : first + len(out)], (len(out),)))
            in_range("take_batch", order[first : first + len(out)], len(x))
        self._emit(rows.gather_call(x, order, state, out))

    def copy_columns(self, x: Array, *, out: Array) -> None:
        if not (lines(x) and lines(out) and x.dtype == out.dtype):
            self._numpy("copy_columns", x, out=out)
            return
        shapes("copy_columns", out=(out, x.shape))
        writable("copy_columns", out=out)
        self._emit(rows.columns_call(x, out))

    def fetch(self, where: Array, *, out: Array) -> None:
        self._emit(rows.fetch_call(where, out))

    def store_batch(self, x: Array, state: Array, *, out: Array) -> None:
        alike = plain(x, out) and x.dtype == out.dtype and not x.dtype.hasobject
        if not (alike and is_state(state)):
            self._numpy("store_batch", x, state, out=out)
            return
        shapes("store_batch", x=(x, (len(x), *out.shape[1:])))
        writable("store_batch", out=out)
        if self._record is None:
            first = int(state[S.ROW])
            shapes("store_batch", out=(out[first : first + len(x)], x.shape))
        self._emit(rows.store_call(x, state, out))

    def sq_norm(self, x: Array, *, out: Array) -> None:
        if not (native(x) and plain(out) and out.dtype == np.float64):
            self._numpy("sq_norm", x, out=out)
            return
        sizes("sq_norm", 1, out=out)
        writable("sq_norm", out=out)
        self._emit(*pointwise.sq_norm_calls(x, out))

    # ---- losses -----------------------------------------------------------------------------------
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
        known = name in losses.LOSSES and self.fused
        if not (known and native(pred, target, weight, dpred) and is_state(state)):
            self._numpy("elementwise_loss", name, pred, target, weight, state, param=param, dpred=dpred)
            return
        matrix("elementwise_loss", pred=pred)
        n, m = pred.shape
        shapes("elementwise_loss", target=(target, (n, m)), weight=(weight, (n,)), dpred=(dpred, (n, m)))
        writable("elementwise_loss", dpred=dpred)
        self._emit(*losses.elementwise_calls(name, pred, target, weight, state, param, dpred))

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
        soft = isinstance(labels, np.ndarray) and labels.ndim == 2
        usable = (
            native(logits, labels, weight, dlogits) if soft else is_index(labels) and native(logits, weight, dlogits)
        )
        if not (self.fused and usable and is_state(state)):
            self._numpy("softmax_xent", logits, labels, weight, state, smoothing=smoothing, dlogits=dlogits)
            return
        matrix("softmax_xent", logits=logits)
        n = logits.shape[:1]
        shapes(
            "softmax_xent",
            labels=(labels, logits.shape if soft else n),
            weight=(weight, n),
            dlogits=(dlogits, logits.shape),
        )
        writable("softmax_xent", dlogits=dlogits)
        self._emit(*losses.softmax_xent_calls(logits, labels, weight, state, smoothing, dlogits))

    # ---- fused ------------------------------------------------------------------------------------
    def linear_act(
        self, x: Array, W: Array, b: Array | None, act: str | Activation, *, out: Array, saved: Array | None = None
    ) -> None:
        act = activations.get(act)
        if not (self.fused and native(x, W, b, out, saved)):
            super().linear_act(x, W, b, act, out=out, saved=saved)
            return
        matrix("linear_act", x=x, W=W)
        (n, k), m = x.shape, W.shape[1]
        shapes("linear_act", W=(W, (k, m)), b=(b, (m,)), out=(out, (n, m)), saved=(saved, (n, m)))
        writable("linear_act", out=out, saved=saved)
        self._emit(*linear.forward_calls(x, W, b, act.name, act.alpha, out, saved))

    def linear_act_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        saved: Array | None,
        act: str | Activation,
        *,
        dx: Array | None,
        dW: Array,
        db: Array | None,
    ) -> None:
        act = activations.get(act)
        if not (self.fused and native(dy, x, W, saved, dx, dW, db)):
            super().linear_act_grad(dy, x, W, saved, act, dx=dx, dW=dW, db=db)
            return
        matrix("linear_act_grad", x=x, W=W)
        (n, k), m = x.shape, W.shape[1]
        if saved is None and act.name != "identity":
            raise ValueError(f"linear_act_grad: the gradient of {act.name!r} needs what the forward pass saved")
        shapes(
            "linear_act_grad",
            dy=(dy, (n, m)),
            W=(W, (k, m)),
            saved=(saved, (n, m)),
            dx=(dx, (n, k)),
            dW=(dW, (k, m)),
            db=(db, (m,)),
        )
        writable("linear_act_grad", dy=dy, dx=dx, dW=dW, db=db)
        self._emit(*linear.backward_calls(dy, x, W, saved, act.name, act.alpha, dx, dW, db))
