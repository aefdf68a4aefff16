"""The fully connected layer."""

from __future__ import annotations

from typing import Any

from .. import activations, initializers
from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape, positive_int, rows


class Dense(Layer):
    """``y = f(x @ W + b)`` over the last axis.

    Parameters
    ----------
    units : int
        Number of outputs.
    activation : str, Activation or None
        Name of `f`; see :mod:`nnfast.activations`. Softmax is over the outputs.
    bias : bool
        Whether `b` is added.
    initializer : str, Initializer or callable, optional
        For `W`; by default what suits the activation (He for the relu family, LeCun for selu, Glorot
        for the others).
    bias_initializer : str, Initializer or callable
        For `b`.
    in_features : int, optional
        Size of the input's last axis; by default taken from the data.
    name : str, optional
        Name of the layer in the model; by default ``dense``, ``dense_1``, ...

    Notes
    -----
    Shapes: `x` (n, ..., in_features), `W` (in_features, units), `b` (units,), `y` (n, ..., units).
    """

    replayable = True

    W: Array
    dW: Array
    b: Array | None = None
    db: Array | None = None
    z: Array | None = None

    def __init__(
        self,
        units: int,
        activation: str | activations.Activation | None = "identity",
        *,
        bias: bool = True,
        initializer: Any = None,
        bias_initializer: Any = "zeros",
        in_features: int | None = None,
        name: str | None = None,
    ) -> None:
        self.units = positive_int(units, "Dense: units")
        self.activation = activations.get(activation)
        self.bias = bool(bias)
        # A function gets a description, under which a model file names it
        self.initializer = initializers.get(initializer) if callable(initializer) else initializer
        self.bias_initializer = initializers.get(bias_initializer) if callable(bias_initializer) else bias_initializer
        self.needs_output = self.activation.saves == "output" and self.activation.name != "identity"
        self.in_features = None if in_features is None else positive_int(in_features, "Dense: in_features")
        self.name = name

    @property
    def in_shape(self) -> Shape | None:
        """Shape of one input row where `in_features` was given."""
        return None if self.in_features is None else (self.in_features,)

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        if not in_shape:
            raise ValueError("Dense needs at least one feature axis; the input rows are scalars")
        features = in_shape[-1]
        if self.in_features not in (None, features):
            raise ValueError(f"Dense was given in_features={self.in_features}, but its input has {features} features")
        ctx.param("W", (features, self.units), self.initializer or self.activation.initializer)
        if self.bias:
            ctx.param("b", (self.units,), self.bias_initializer)
        out_shape = (*in_shape[:-1], self.units)
        if self.activation.saves == "input":
            ctx.saved("z", out_shape)
        return out_shape

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        z = None if self.z is None else rows(self.z)
        bk.linear_act(rows(x), self.W, self.b, self.activation, out=rows(y), saved=z)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        saved = rows(self.y) if self.z is None else rows(self.z)
        dx = None if dx is None else rows(dx)
        bk.linear_act_grad(rows(dy), rows(self.x), self.W, saved, self.activation, dx=dx, dW=self.dW, db=self.db)

    def without_activation(self) -> Dense:
        """A copy that stops before the activation: what a loss that starts from logits wants."""
        layer = self.bind({"activation": activations.get("identity")}, training=False, stream=0)
        assert isinstance(layer, Dense)
        return layer
