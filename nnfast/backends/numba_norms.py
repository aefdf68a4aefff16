"""Normalisation of 2-d arrays on Numba kernels."""

from __future__ import annotations

from typing import Any

from ..kernels.cpu import norms, sequence_rows
from .base import Array
from .numba_checks import is_state, matrix, native, shapes, writable


class NumbaNorms:
    """The normalisation part of :class:`~nnfast.backends.numba_backend.NumbaBackend`."""

    _emit: Any
    _numpy: Any

    def layer_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, rstd: Array
    ) -> None:
        if not native(x, gamma, beta, out, mean, rstd):
            self._numpy("layer_norm", x, gamma, beta, eps=eps, out=out, mean=mean, rstd=rstd)
            return
        matrix("layer_norm", x=x)
        n, m = x.shape
        shapes(
            "layer_norm",
            gamma=(gamma, (m,)),
            beta=(beta, (m,)),
            out=(out, x.shape),
            mean=(mean, (n,)),
            rstd=(rstd, (n,)),
        )
        writable("layer_norm", out=out, mean=mean, rstd=rstd)
        self._emit(norms.layer_norm_call(x, gamma, beta, eps, out, mean, rstd))

    def layer_norm_grad(
        self, dy: Array, x: Array, gamma: Array, mean: Array, rstd: Array, *, dx: Array, dgamma: Array, dbeta: Array
    ) -> None:
        if not native(dy, x, gamma, mean, rstd, dx, dgamma, dbeta):
            self._numpy("layer_norm_grad", dy, x, gamma, mean, rstd, dx=dx, dgamma=dgamma, dbeta=dbeta)
            return
        matrix("layer_norm_grad", x=x)
        n, m = x.shape
        shapes("layer_norm_grad", dy=(dy, x.shape), dx=(dx, x.shape), mean=(mean, (n,)), rstd=(rstd, (n,)))
        shapes("layer_norm_grad", gamma=(gamma, (m,)), dgamma=(dgamma, (m,)), dbeta=(dbeta, (m,)))
        writable("layer_norm_grad", dx=dx, dgamma=dgamma, dbeta=dbeta)
        self._emit(*norms.layer_norm_grad_calls(dy, x, gamma, mean, rstd, dx, dgamma, dbeta))

    def rms_norm(self, x: Array, gamma: Array, *, eps: float, out: Array, rstd: Array) -> None:
        if not native(x, gamma, out, rstd):
            self._numpy("rms_norm", x, gamma, eps=eps, out=out, rstd=rstd)
            return
        matrix("rms_norm", x=x)
        n, m = x.shape
        shapes("rms_norm", gamma=(gamma, (m,)), out=(out, (n, m)), rstd=(rstd, (n,)))
        writable("rms_norm", out=out, rstd=rstd)
        self._emit(sequence_rows.rms_norm_call(x, gamma, eps, out, rstd))

    def rms_norm_grad(self, dy: Array, x: Array, gamma: Array, rstd: Array, *, dx: Array | None, dgamma: Array) -> None:
        if not native(dy, x, gamma, rstd, dx, dgamma):
            self._numpy("rms_norm_grad", dy, x, gamma, rstd, dx=dx, dgamma=dgamma)
            return
        matrix("rms_norm_grad", x=x)
        n, m = x.shape
        shapes("rms_norm_grad", dy=(dy, (n, m)), dx=(dx, (n, m)))
        shapes("rms_norm_grad", gamma=(gamma, (m,)), dgamma=(dgamma, (m,)), rstd=(rstd, (n,)))
        writable("rms_norm_grad", dx=dx, dgamma=dgamma)
        self._emit(*sequence_rows.rms_norm_grad_calls(dy, x, gamma, rstd, dx, dgamma))

    def batch_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, var: Array
    ) -> None:
        if not native(x, gamma, beta, out, mean, var):
            self._numpy("batch_norm", x, gamma, beta, eps=eps, out=out, mean=mean, var=var)
            return
        self._columns("batch_norm", x, out=out, gamma=gamma, beta=beta, mean=mean, var=var)
        writable("batch_norm", out=out, mean=mean, var=var)
        self._emit(*norms.batch_norm_calls(x, gamma, beta, eps, out, mean, var))

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
        if not native(dy, x, gamma, mean, var, dx, dgamma, dbeta):
            self._numpy("batch_norm_grad", dy, x, gamma, mean, var, eps=eps, dx=dx, dgamma=dgamma, dbeta=dbeta)
            return
        shapes("batch_norm_grad", dy=(dy, x.shape))
        self._columns("batch_norm_grad", x, out=dx, gamma=gamma, mean=mean, var=var, dgamma=dgamma, dbeta=dbeta)
        writable("batch_norm_grad", dx=dx, dgamma=dgamma, dbeta=dbeta)
        self._emit(*norms.batch_norm_grad_calls(dy, x, gamma, mean, var, eps, dx, dgamma, dbeta))

    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float, out: Array
    ) -> None:
        if not native(x, gamma, beta, mean, var, out):
            self._numpy("batch_norm_inference", x, gamma, beta, mean, var, eps=eps, out=out)
            return
        self._columns("batch_norm_inference", x, out=out, gamma=gamma, beta=beta, mean=mean, var=var)
        writable("batch_norm_inference", out=out)
        self._emit(*norms.batch_norm_inference_calls(x, gamma, beta, mean, var, eps, out))

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
        if not (native(mean, var, running_mean, running_var) and is_state(state)):
            self._numpy(
                "batch_norm_track",
                *(mean, var, state),
                rows=rows,
                momentum=momentum,
                running_mean=running_mean,
                running_var=running_var,
            )
            return
        shapes(
            "batch_norm_track",
            var=(var, mean.shape),
            running_mean=(running_mean, mean.shape),
            running_var=(running_var, mean.shape),
        )
        writable("batch_norm_track", running_mean=running_mean, running_var=running_var)
        self._emit(norms.track_call(mean, var, state, rows, momentum, running_mean, running_var))

    def _columns(self, method: str, x: Array, *, out: Array | None, **columns: Array) -> None:
        """Check arrays that have one element per column of `x`."""
        matrix(method, x=x)
        shapes(method, out=(out, x.shape), **{name: (array, x.shape[1:]) for name, array in columns.items()})
