"""Positions, for layers that see a sequence as a set."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from .. import initializers
from ..backends.base import Array, Backend
from ..positions import position_angles
from .base import BuildContext, Layer, Shape, positive_int

__all__ = ["PositionalEmbedding", "sinusoids"]


def sinusoids(steps: int, features: int) -> np.ndarray:
    """Sines and cosines of each step's angles, in turn: Vaswani et al., "Attention is all you need" (2017).

    Parameters
    ----------
    steps, features : int
        Size of the table.

    Returns
    -------
    ndarray of float64
        (steps, features): ``sin(t / 10000**(2 i / features))`` in column ``2 i``, its cosine in the next one.
    """
    angles = position_angles(np, steps, features, 10_000.0)
    table = np.empty((steps, features))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)[:, : features // 2]
    return table


class PositionalEmbedding(Layer):
    """``y = x + P``, a row of `P` for each step.

    Parameters
    ----------
    kind : {"learned", "sinusoidal"}
        Whether `P` is trained, or the sines and cosines of :func:`sinusoids`.
    length : int, optional
        Number of steps that a learned `P` has rows for; by default those of the inputs, which may be fewer.
    initializer : str, Initializer or callable
        For a learned `P`.
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Shapes: `x`, `y` (n, steps, features), `P` (length, features). The gradient of `P` is the sum over the batch, and
    zero for rows beyond the steps.
    """

    replayable = True
    needs_input = needs_output = False
    in_place = True
    shares_gradient = True

    P: Array
    dP: Array

    def __init__(
        self,
        kind: Literal["learned", "sinusoidal"] = "learned",
        length: int | None = None,
        *,
        initializer: Any = "uniform",
        name: str | None = None,
    ) -> None:
        if kind not in ("learned", "sinusoidal"):
            raise ValueError(f"PositionalEmbedding: kind must be 'learned' or 'sinusoidal', got {kind!r}")
        self.kind = kind
        self.length = None if length is None else positive_int(length, "PositionalEmbedding: length")
        self.initializer = initializers.get(initializer) if callable(initializer) else initializer
        self.name = name

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        if len(in_shape) != 2:
            raise ValueError(f"PositionalEmbedding takes inputs of shape (steps, features), got {tuple(in_shape)}")
        steps, features = in_shape
        if self.length is not None and steps > self.length:
            raise ValueError(f"PositionalEmbedding has length={self.length}, but its input has {steps} steps")
        if self.kind == "learned":
            ctx.param("P", (self.length or steps, features), self.initializer)
        else:
            ctx.buffer("P", (steps, features), lambda shape, rng: sinusoids(*shape))
        return in_shape

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        n, steps = x.shape[:2]
        bk.add_bias(x.reshape(n, -1), self.P[:steps].reshape(-1), out=y.reshape(n, -1))

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        n, steps = dy.shape[:2]
        if self.kind == "learned":
            bk.sum_rows(dy.reshape(n, -1), out=self.dP[:steps].reshape(-1))
            if steps < len(self.dP):
                bk.fill(self.dP[steps:], 0.0)
        if dx is not None:
            bk.copy(dy, out=dx)
