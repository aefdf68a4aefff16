"""Normalisation layers."""

from __future__ import annotations

from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape, rows


def check_eps(eps: float, who: str) -> float:
    """`eps` as a float, if it is positive; `who` is named where it is not."""
    if not eps > 0.0:
        raise ValueError(f"{who}: eps must be positive, got {eps}")
    return float(eps)


class LayerNorm(Layer):
    """``y = (x - mean) / sqrt(var + eps) * gamma + beta``, statistics of each row over the last axis.

    Ba, Kiros, Hinton: "Layer normalization" (2016).

    Parameters
    ----------
    eps : float
        Added to the variance.
    name : str, optional
        Name of the layer in the model.
    """

    replayable = True
    needs_output = False
    gamma: Array
    beta: Array
    dgamma: Array
    dbeta: Array
    mean: Array
    rstd: Array

    def __init__(self, eps: float = 1e-5, *, name: str | None = None) -> None:
        self.eps = check_eps(eps, "LayerNorm")
        self.name = name

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        if not in_shape:
            raise ValueError("LayerNorm needs at least one feature axis; the input rows are scalars")
        ctx.param("gamma", in_shape[-1:], "ones", full=True)
        ctx.param("beta", in_shape[-1:], "zeros", full=True)
        # Declared as scratch of the forward pass as well: inference writes them, too
        ctx.scratch("mean", in_shape[:-1], full=True)
        ctx.scratch("rstd", in_shape[:-1], full=True)
        return in_shape

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        mean, rstd = self.mean.reshape(-1), self.rstd.reshape(-1)
        bk.layer_norm(rows(x), self.gamma, self.beta, eps=self.eps, out=rows(y), mean=mean, rstd=rstd)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        bk.layer_norm_grad(
            rows(dy),
            rows(self.x),
            self.gamma,
            self.mean.reshape(-1),
            self.rstd.reshape(-1),
            dx=None if dx is None else rows(dx),
            dgamma=self.dgamma,
            dbeta=self.dbeta,
        )


class RMSNorm(Layer):
    """``y = x / sqrt(mean(x**2) + eps) * gamma``, the mean of each row over the last axis.

    Zhang, Sennrich: "Root mean square layer normalization" (2019).

    Parameters
    ----------
    eps : float
        Added to the mean of the squares.
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Shapes: `x`, `y` (n, ..., m), `gamma` (m,).
    """

    replayable = True
    needs_output = False
    gamma: Array
    dgamma: Array
    rstd: Array

    def __init__(self, eps: float = 1e-6, *, name: str | None = None) -> None:
        self.eps = check_eps(eps, "RMSNorm")
        self.name = name

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        if not in_shape:
            raise ValueError("RMSNorm needs at least one feature axis; the input rows are scalars")
        ctx.param("gamma", in_shape[-1:], "ones", full=True)
        # Declared as scratch of the forward pass as well: inference writes it, too
        ctx.scratch("rstd", in_shape[:-1], full=True)
        return in_shape

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        bk.rms_norm(rows(x), self.gamma, eps=self.eps, out=rows(y), rstd=self.rstd.reshape(-1))

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        into = None if dx is None else rows(dx)
        bk.rms_norm_grad(rows(dy), rows(self.x), self.gamma, self.rstd.reshape(-1), dx=into, dgamma=self.dgamma)


class BatchNorm(Layer):
    """Normalise each feature by the batch's statistics in training, by running ones afterwards.

    Ioffe, Szegedy: "Batch normalization" (2015). The running statistics move by
    ``running = (1 - momentum) * running + momentum * batch`` after each step, with the unbiased variance.

    Parameters
    ----------
    momentum : float
        Weight of the current batch, in ``(0, 1]``.
    eps : float
        Added to the variance.
    name : str, optional
        Name of the layer in the model.
    """

    replayable = True
    needs_output = False
    gamma: Array
    beta: Array
    dgamma: Array
    dbeta: Array
    running_mean: Array
    running_var: Array
    mean: Array
    var: Array
    state: Array

    def __init__(self, momentum: float = 0.1, eps: float = 1e-5, *, name: str | None = None) -> None:
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"BatchNorm: momentum must be in (0, 1], got {momentum}")
        self.momentum = float(momentum)
        self.eps = check_eps(eps, "BatchNorm")
        self.name = name

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        if not in_shape:
            raise ValueError("BatchNorm needs at least one feature axis; the input rows are scalars")
        features = in_shape[-1:]
        ctx.param("gamma", features, "ones", full=True)
        ctx.param("beta", features, "zeros", full=True)
        ctx.buffer("running_mean", features, "zeros")
        ctx.buffer("running_var", features, "ones")
        ctx.saved("mean", features, per_row=False, full=True)
        ctx.saved("var", features, per_row=False, full=True)
        return in_shape

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        x, y = rows(x), rows(y)
        if self.training:
            bk.batch_norm(x, self.gamma, self.beta, eps=self.eps, out=y, mean=self.mean, var=self.var)
        else:
            bk.batch_norm_inference(x, self.gamma, self.beta, self.running_mean, self.running_var, eps=self.eps, out=y)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        x = rows(self.x)
        bk.batch_norm_grad(
            rows(dy),
            x,
            self.gamma,
            self.mean,
            self.var,
            eps=self.eps,
            dx=None if dx is None else rows(dx),
            dgamma=self.dgamma,
            dbeta=self.dbeta,
        )
        # Here and not in forward: by now the loss is known, and a bad step must leave no trace
        bk.batch_norm_track(
            self.mean,
            self.var,
            self.state,
            rows=x.shape[0],
            momentum=self.momentum,
            running_mean=self.running_mean,
            running_var=self.running_var,
        )
