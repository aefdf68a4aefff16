"""Layers that act on each element: an activation of its own, dropout, and a change of shape."""

from __future__ import annotations

from math import prod

from .. import activations
from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape, pixels


class Activation(Layer):
    """``y = f(x)``, with softmax over the last axis.

    Parameters
    ----------
    activation : str or Activation
        Name of `f`; see :mod:`nnfast.activations`.
    name : str, optional
        Name of the layer in the model.
    """

    replayable = True
    in_place = True

    def __init__(self, activation: str | activations.Activation, *, name: str | None = None) -> None:
        self.activation = activations.get(activation)
        self.needs_output = self.activation.saves == "output"
        self.needs_input = not self.needs_output
        self.name = name

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        bk.act(self.activation, x, out=y)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        if dx is not None:
            saved = self.y if self.activation.saves == "output" else self.x
            bk.act_grad(self.activation, dy, saved, out=dx)


class Dropout(Layer):
    """Zero each element with probability `rate` in training and scale the rest by ``1 / (1 - rate)``.

    No mask is stored: the backward pass draws the same counter-based random numbers again.

    Parameters
    ----------
    rate : float
        Share of the elements that is dropped, in ``[0, 1)``.
    name : str, optional
        Name of the layer in the model.
    """

    replayable = True
    needs_input = needs_output = False
    in_place = True
    state: Array

    def __init__(self, rate: float, *, name: str | None = None) -> None:
        rate = float(rate)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{type(self).__name__}: rate must be in [0, 1), got {rate}")
        self.rate = rate
        self.name = name

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        bk.dropout(x, self.state, rate=self.rate, stream=self.stream, out=y)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        if dx is not None:
            bk.dropout(dy, self.state, rate=self.rate, stream=self.stream, out=dx)

    def is_view(self, training: bool) -> bool:
        return not training or self.rate == 0.0


class SpatialDropout(Dropout):
    """Zero each channel of a row as a whole with probability `rate` in training and scale the rest.

    Neighbouring pixels, or steps, tell the same: to drop some of them alone would change little (Tompson et al.:
    "Efficient object localization using convolutional networks", 2015).

    Parameters
    ----------
    rate : float
        Share of the channels that is dropped, in ``[0, 1)``.
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Shapes: `x`, `y` (n, ..., channels).
    """

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        if not in_shape:
            raise ValueError("SpatialDropout needs at least one feature axis; the input rows are scalars")
        return in_shape

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        bk.spatial_dropout(pixels(x), self.state, rate=self.rate, stream=self.stream, out=pixels(y))

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        if dx is not None:
            bk.spatial_dropout(pixels(dy), self.state, rate=self.rate, stream=self.stream, out=pixels(dx))


class Flatten(Layer):
    """All axes of a row become one; the data stay where they are.

    Parameters
    ----------
    name : str, optional
        Name of the layer in the model.
    """

    replayable = True

    def __init__(self, *, name: str | None = None) -> None:
        self.name = name

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        return (prod(in_shape),)

    def is_view(self, training: bool) -> bool:
        return True
