"""Recurrent layers: a state that goes along the steps of a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import activations, initializers
from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape, positive_int

__all__ = ["GRU", "LSTM", "Recurrent", "SimpleRNN"]


class Recurrent(Layer):
    """What the recurrent layers share; subclasses say what their cell is.

    Attributes
    ----------
    gates : int
        Gates side by side in the columns of `W`, `U` and `b`.
    carries : tuple of str
        What a stateful layer hands on: the state and, where there is one, the cell.
    """

    replayable = True
    gates = 1
    carries: tuple[str, ...] = ("hidden",)

    W: Array
    U: Array
    dW: Array
    dU: Array
    b: Array | None = None
    db: Array | None = None
    states: Array | None = None
    hidden: Array | None = None
    hidden0: Array | None = None

    def __init__(
        self,
        units: int,
        *,
        return_sequences: bool,
        reverse: bool,
        stateful: bool,
        bias: bool,
        initializer: Any,
        recurrent_initializer: Any,
        bias_initializer: Any,
        name: str | None,
    ) -> None:
        self.units = positive_int(units, f"{type(self).__name__}: units")
        self.return_sequences = self.passes_mask = self.needs_output = bool(return_sequences)
        self.reverse, self.stateful, self.bias = bool(reverse), bool(stateful), bool(bias)
        # A function gets a description, under which a model file names it
        self.initializer, self.recurrent_initializer, self.bias_initializer = (
            initializers.get(given) if callable(given) else given
            for given in (initializer, recurrent_initializer, bias_initializer)
        )
        self.name = name

    # ---- declarations ---------------------------------------------------------------------------------
    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        kind = type(self).__name__
        if len(in_shape) != 2:
            raise ValueError(f"{kind} takes sequences, rows of shape (steps, features), got rows of shape {in_shape}")
        steps, features = in_shape
        if steps < 1 or features < 1:
            raise ValueError(f"{kind} takes sequences of at least one step and one feature, got {in_shape}")
        columns = self.gates * self.units
        ctx.param("W", (features, columns), self.initializer)
        ctx.param("U", (self.units, columns), self.recurrent_initializer)
        if self.bias:
            ctx.param("b", (columns,), self._bias_values())
        if not self.return_sequences:
            ctx.scratch("states", (steps, self.units))
        for name in self.carries if self.stateful else ():
            ctx.carried(name, (self.units,))
            ctx.saved(name + "0", (self.units,))
        return (steps, self.units) if self.return_sequences else (self.units,)

    def _bias_values(self) -> Any:
        return self.bias_initializer

    # ---- steps ------------------------------------------------------------------------------------------
    def _states(self, y: Array) -> Array:
        """All states: the output, or an array of their own."""
        return y if self.states is None else self.states

    def _start(self, bk: Backend, name: str) -> Array | None:
        """What the first step begins with: ``None`` for zeros, or what was carried here, or the copy for `backward`."""
        carried: Array | None = getattr(self, name)
        kept: Array | None = getattr(self, name + "0")
        if carried is None or kept is None:
            return carried
        bk.copy(carried, out=kept)
        return kept

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        states = self._states(y)
        self._run(bk, x, states, self._start(bk, "hidden"))
        last = states[:, 0 if self.reverse else -1]
        for out in (None if self.return_sequences else y, self.hidden):
            if out is not None:
                bk.copy_columns(last, out=out)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        shared = {
            "y": self._states(self.y),
            "h0": self.hidden0,
            "mask": self.mask,
            "reverse": self.reverse,
            "dx": dx,
            "dW": self.dW,
            "dU": self.dU,
            "db": self.db,
        }
        self._run_back(bk, dy, shared)

    def _run(self, bk: Backend, x: Array, states: Array, h0: Array | None) -> None:
        """Write all states of the sequences."""
        raise NotImplementedError

    def _run_back(self, bk: Backend, dy: Array, shared: dict[str, Any]) -> None:
        """Write all gradients; `shared` are arguments that all cells have."""
        raise NotImplementedError


class SimpleRNN(Recurrent):
    """Elman's network, ``h_t = f(x_t W + h_{t-1} U + b)``.

    Elman: "Finding structure in time" (1990).

    Parameters
    ----------
    units : int
        Size `h` of the state.
    activation : {"tanh", "relu"}
        Name of `f`.
    return_sequences : bool
        Whether the output is the state of each step, (n, t, h), or that of the last one, (n, h).
    reverse : bool
        Whether the steps are done from the last one to the first. States stay at their steps' places.
    stateful : bool
        Whether a row of a batch goes on from the state of the same row of the batch before: truncated backpropagation
        through time, since the gradient stops there.
    bias : bool
        Whether there is a bias.
    initializer, recurrent_initializer, bias_initializer : str, Initializer or callable
        For `W`, `U` and `b`.
    name : str, optional
        Name of the layer in the model; by default ``simplernn``, ``simplernn_1``, ...

    Notes
    -----
    Shapes: `x` (n, t, k), `W` (k, h), `U` (h, h), `b` (h,). A step that is masked keeps the state.
    """

    def __init__(
        self,
        units: int,
        activation: str | activations.Activation = "tanh",
        *,
        return_sequences: bool = False,
        reverse: bool = False,
        stateful: bool = False,
        bias: bool = True,
        initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        name: str | None = None,
    ) -> None:
        super().__init__(
            units,
            return_sequences=return_sequences,
            reverse=reverse,
            stateful=stateful,
            bias=bias,
            initializer=initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            name=name,
        )
        self.activation = activations.cell_activation(activation, "SimpleRNN")

    def _run(self, bk: Backend, x: Array, states: Array, h0: Array | None) -> None:
        bk.rnn(
            x, self.W, self.U, self.b, self.activation, h0=h0, mask=self.mask, reverse=self.reverse, y=states
        )  # fmt: skip

    def _run_back(self, bk: Backend, dy: Array, shared: dict[str, Any]) -> None:
        bk.rnn_grad(dy, self.x, self.W, self.U, self.activation, **shared)


class GRU(Recurrent):
    """Gated recurrent unit: ``h_t = (1 - z) n + z h_{t-1}``, with gates reset, update and new.

    ``r = sigmoid(x W_r + b_r + h U_r + c_r)``, ``z = sigmoid(x W_z + b_z + h U_z + c_z)`` and
    ``n = tanh(x W_n + b_n + r (h U_n + c_n))``, or without `reset_after` ``n = tanh(x W_n + b_n + (r h) U_n)``, where
    there is no `c`. Cho et al.: "Learning phrase representations using RNN encoder-decoder" (2014).

    Parameters
    ----------
    units : int
        Size `h` of the state.
    reset_after : bool
        Whether reset comes after the product with `U`, as in PyTorch, cuDNN and Keras, or before it, as published.
    return_sequences : bool
        Whether the output is the state of each step, (n, t, h), or that of the last one, (n, h).
    reverse : bool
        Whether the steps are done from the last one to the first. States stay at their steps' places.
    stateful : bool
        Whether a row of a batch goes on from the state of the same row of the batch before: truncated backpropagation
        through time, since the gradient stops there.
    bias : bool
        Whether there are biases.
    initializer, recurrent_initializer, bias_initializer : str, Initializer or callable
        For `W`, `U`, and `b` and `c`.
    name : str, optional
        Name of the layer in the model; by default ``gru``, ``gru_1``, ...

    Notes
    -----
    Shapes: `x` (n, t, k), `W` (k, 3 h), `U` (h, 3 h), `b`, `c` (3 h,); the columns are reset, update, new. A step that
    is masked keeps the state.
    """

    gates = 3
    c: Array | None = None
    dc: Array | None = None
    kept: Array | None = None

    def __init__(
        self,
        units: int,
        *,
        reset_after: bool = True,
        return_sequences: bool = False,
        reverse: bool = False,
        stateful: bool = False,
        bias: bool = True,
        initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        name: str | None = None,
    ) -> None:
        super().__init__(
            units,
            return_sequences=return_sequences,
            reverse=reverse,
            stateful=stateful,
            bias=bias,
            initializer=initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            name=name,
        )
        self.reset_after = bool(reset_after)

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        out_shape = super().build(in_shape, ctx)
        if self.bias and self.reset_after:
            ctx.param("c", (self.gates * self.units,), self.bias_initializer)
        ctx.saved("kept", (in_shape[0], 4 * self.units))
        return out_shape

    def _run(self, bk: Backend, x: Array, states: Array, h0: Array | None) -> None:
        more: dict[str, Any] = {"h0": h0, "mask": self.mask, "reverse": self.reverse, "y": states, "gates": self.kept}
        bk.gru(x, self.W, self.U, self.b, self.c, reset_after=self.reset_after, **more)

    def _run_back(self, bk: Backend, dy: Array, shared: dict[str, Any]) -> None:
        more: dict[str, Any] = {"reset_after": self.reset_after, "gates": self.kept, "dc": self.dc}
        bk.gru_grad(dy, self.x, self.W, self.U, **more, **shared)


class LSTM(Recurrent):
    """Long short-term memory: ``c_t = f c_{t-1} + i g``, ``h_t = o tanh(c_t)``, with gates in, forget, cell and out.

    ``i, f, o = sigmoid(...)`` and ``g = tanh(...)`` of ``x_t W + h_{t-1} U + b``. Hochreiter, Schmidhuber: "Long
    short-term memory" (1997); the forget gate is of Gers, Schmidhuber, Cummins (2000).

    Parameters
    ----------
    units : int
        Size `h` of the state and of the cell.
    return_sequences : bool
        Whether the output is the state of each step, (n, t, h), or that of the last one, (n, h).
    reverse : bool
        Whether the steps are done from the last one to the first. States stay at their steps' places.
    stateful : bool
        Whether a row of a batch goes on from the state and cell of the same row of the batch before: truncated
        backpropagation through time, since the gradient stops there.
    bias : bool
        Whether there is a bias.
    initializer, recurrent_initializer, bias_initializer : str, Initializer or callable
        For `W`, `U` and `b`.
    unit_forget_bias : bool
        Whether the forget gate's bias starts at 1, so that cells keep what they have (Jozefowicz et al., 2015).
    name : str, optional
        Name of the layer in the model; by default ``lstm``, ``lstm_1``, ...

    Notes
    -----
    Shapes: `x` (n, t, k), `W` (k, 4 h), `U` (h, 4 h), `b` (4 h,); the columns are in, forget, cell, out. A step that is
    masked keeps the state and the cell.
    """

    gates = 4
    carries = ("hidden", "cell")
    kept: Array | None = None
    cells: Array | None = None
    cell: Array | None = None
    cell0: Array | None = None

    def __init__(
        self,
        units: int,
        *,
        return_sequences: bool = False,
        reverse: bool = False,
        stateful: bool = False,
        bias: bool = True,
        initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(
            units,
            return_sequences=return_sequences,
            reverse=reverse,
            stateful=stateful,
            bias=bias,
            initializer=initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            name=name,
        )
        self.unit_forget_bias = bool(unit_forget_bias)

    def _bias_values(self) -> Any:
        if not self.unit_forget_bias:
            return self.bias_initializer

        def values(shape: Shape, rng: np.random.Generator) -> np.ndarray:
            drawn = initializers.get(self.bias_initializer)(shape, rng)
            drawn[self.units : 2 * self.units] = 1.0
            return drawn

        return values

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        out_shape = super().build(in_shape, ctx)
        ctx.saved("cells", (in_shape[0], self.units))
        ctx.saved("kept", (in_shape[0], 4 * self.units))
        return out_shape

    def _run(self, bk: Backend, x: Array, states: Array, h0: Array | None) -> None:
        more: dict[str, Any] = {"h0": h0, "c0": self._start(bk, "cell"), "mask": self.mask, "reverse": self.reverse}
        more |= {"y": states, "cells": self.cells, "gates": self.kept, "last_cell": self.cell}
        bk.lstm(x, self.W, self.U, self.b, **more)

    def _run_back(self, bk: Backend, dy: Array, shared: dict[str, Any]) -> None:
        more: dict[str, Any] = {"cells": self.cells, "gates": self.kept, "c0": self.cell0}
        bk.lstm_grad(dy, self.x, self.W, self.U, **more, **shared)
