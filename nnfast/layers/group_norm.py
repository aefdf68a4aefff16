"""Group normalisation."""

from __future__ import annotations

from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape, pixels, positive_int
from .norm import check_eps

__all__ = ["GroupNorm"]


class GroupNorm(Layer):
    """``y = (x - mean) / sqrt(var + eps) * gamma + beta``, statistics of each row's groups of channels over all pixels.

    Wu, He: "Group normalization" (2018). One group is layer normalisation of images; a group for each channel is
    instance normalisation.

    Parameters
    ----------
    groups : int
        Number of groups, which divides that of the channels.
    eps : float
        Added to the variance.
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Shapes: `x`, `y` (n, ..., channels), `gamma`, `beta` (channels,).
    """

    replayable = True
    needs_output = False
    gamma: Array
    beta: Array
    dgamma: Array
    dbeta: Array
    mean: Array
    rstd: Array

    def __init__(self, groups: int, eps: float = 1e-5, *, name: str | None = None) -> None:
        self.groups = positive_int(groups, "GroupNorm: groups")
        self.eps = check_eps(eps, "GroupNorm")
        self.name = name

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        if not in_shape:
            raise ValueError("GroupNorm needs at least one feature axis; the input rows are scalars")
        if in_shape[-1] % self.groups:
            raise ValueError(f"GroupNorm: {self.groups} groups do not divide {in_shape[-1]} channels")
        ctx.param("gamma", in_shape[-1:], "ones", full=True)
        ctx.param("beta", in_shape[-1:], "zeros", full=True)
        # Scratch and not saved: inference writes them, too
        ctx.scratch("mean", (self.groups,), full=True)
        ctx.scratch("rstd", (self.groups,), full=True)
        return in_shape

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        bk.group_norm(
            pixels(x),
            self.gamma,
            self.beta,
            groups=self.groups,
            eps=self.eps,
            out=pixels(y),
            mean=self.mean,
            rstd=self.rstd,
        )

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        bk.group_norm_grad(
            pixels(dy),
            pixels(self.x),
            self.gamma,
            self.mean,
            self.rstd,
            groups=self.groups,
            dx=None if dx is None else pixels(dx),
            dgamma=self.dgamma,
            dbeta=self.dbeta,
        )
