"""A recurrent layer in both directions."""

from __future__ import annotations

import copy
from dataclasses import replace

from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape, rows
from .recurrent import Recurrent

__all__ = ["Bidirectional"]

_MERGES = ("concat", "sum", "mul", "ave")
_PREFIXES = ("forward_", "backward_")


class Bidirectional(Layer):
    """The outputs of a recurrent layer that goes forward, and of another one that goes backward, together.

    Schuster, Paliwal: "Bidirectional recurrent neural networks" (1997).

    Parameters
    ----------
    layer : Recurrent
        A :class:`~nnfast.layers.SimpleRNN`, :class:`~nnfast.layers.GRU` or :class:`~nnfast.layers.LSTM`; the other
        direction is a copy of it with weights of its own.
    merge : {"concat", "sum", "mul", "ave"}
        Outputs side by side, their sum, product or mean. With `return_sequences` those of one step are put together,
        else the last state of each direction.
    name : str, optional
        Name of the layer in the model; by default ``bidirectional``, ``bidirectional_1``, ...

    Notes
    -----
    The weights are those of the layer, once as ``forward_W`` and so on, once as ``backward_W``. Shapes: `x` (n, t, k),
    `y` (n, t, 2 h) or (n, 2 h) for "concat", else (n, t, h) or (n, h).
    """

    replayable = True
    needs_output = False
    y_forward: Array
    y_backward: Array
    dy_forward: Array | None = None
    dy_backward: Array | None = None
    dx_backward: Array

    def __init__(self, layer: Recurrent, merge: str = "concat", *, name: str | None = None) -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(f"Bidirectional takes a SimpleRNN, GRU or LSTM, not {type(layer).__name__}")
        if merge not in _MERGES:
            raise ValueError(f"Bidirectional: merge must be one of {', '.join(_MERGES)}, got {merge!r}")
        self.layer, self.merge, self.name = layer, merge, name
        other = copy.copy(layer)
        other.reverse = not layer.reverse
        self.directions: tuple[Recurrent, Recurrent] = (layer, other)
        self.passes_mask = layer.return_sequences

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        out_shape: Shape = ()
        for prefix, layer in zip(_PREFIXES, self.directions, strict=True):
            own = BuildContext()
            out_shape = layer.build(in_shape, own)
            for spec in own.specs:
                ctx.specs.append(replace(spec, name=prefix + spec.name))
        ctx.scratch("y_forward", out_shape)
        ctx.scratch("y_backward", out_shape)
        ctx.saved("dx_backward", in_shape)
        if self.merge != "sum":
            ctx.saved("dy_forward", out_shape)
        if self.merge in ("concat", "mul"):
            ctx.saved("dy_backward", out_shape)
        return (*out_shape[:-1], 2 * out_shape[-1]) if self.merge == "concat" else out_shape

    def bind(self, arrays: dict[str, Array | None], *, training: bool, stream: int) -> Layer:
        bound = super().bind(arrays, training=training, stream=stream)
        assert isinstance(bound, Bidirectional)
        ways = []
        for prefix, layer in zip(_PREFIXES, self.directions, strict=True):
            own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            of_gradients = "d" + prefix
            for name, array in arrays.items():
                if name.startswith(of_gradients):
                    own["d" + name.removeprefix(of_gradients)] = array
            way = layer.bind(own, training=training, stream=stream)
            assert isinstance(way, Recurrent)
            ways.append(way)
        bound.directions = (ways[0], ways[1])
        return bound

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        outputs = self.y_forward, self.y_backward
        for layer, out in zip(self.directions, outputs, strict=True):
            layer.x, layer.y, layer.mask = x, out, self.mask
            layer.forward(bk, x, out)
        one, other = map(rows, outputs)
        y = rows(y)
        if self.merge == "concat":
            for out, part in zip((one, other), self._halves(y), strict=True):
                bk.copy_columns(out, out=part)
        elif self.merge == "mul":
            bk.multiply(one, other, out=y)
        else:
            bk.add(one, other, out=y)
            if self.merge == "ave":
                bk.multiply(y, 0.5, out=y)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        self._split(bk, dy)
        one, other = self.directions
        of_one = dy if self.dy_forward is None else self.dy_forward
        of_other = of_one if self.dy_backward is None else self.dy_backward
        one.backward(bk, of_one, dx)
        other.backward(bk, of_other, None if dx is None else self.dx_backward)
        if dx is not None:
            bk.add(dx, self.dx_backward, out=dx)

    def _halves(self, y: Array) -> tuple[Array, Array]:
        """The columns of each direction in an output."""
        h = self.layer.units
        return y[:, :h], y[:, h:]

    def _split(self, bk: Backend, dy: Array) -> None:
        """Write the gradients of both outputs, where they are not `dy` itself."""
        if self.merge == "concat":
            for part, out in zip(self._halves(rows(dy)), (self.dy_forward, self.dy_backward), strict=True):
                bk.copy_columns(part, out=rows(out))
        elif self.merge == "mul":
            bk.multiply(dy, self.y_backward, out=self.dy_forward)
            bk.multiply(dy, self.y_forward, out=self.dy_backward)
        elif self.merge == "ave":
            bk.multiply(dy, 0.5, out=self.dy_forward)
