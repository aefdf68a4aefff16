"""Graphs written down as calls: ``y = layer(x)`` on inputs that have a shape and no numbers yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Layer, Shape, positive_int
from .graph import Built, GraphBuilder, Value

__all__ = ["Calls", "Input", "Tensor", "call"]


class Tensor:
    """What a layer will give, or what a model will be given.

    Attributes
    ----------
    shape : tuple of int
        Of one row.
    layer : Layer or None
        What gives it; ``None`` for an input.
    inputs : tuple of Tensor
        What the layer is called on.
    """

    def __init__(self, shape: Shape, layer: Layer | None = None, inputs: tuple[Tensor, ...] = ()) -> None:
        self.shape, self.layer, self.inputs = shape, layer, inputs

    def __repr__(self) -> str:
        source = "input" if self.layer is None else repr(self.layer)
        return f"<Tensor (n, {', '.join(map(str, self.shape))}) of {source}>"


def Input(shape: int | Sequence[int]) -> Tensor:
    """An input of a model.

    Parameters
    ----------
    shape : int or sequence of int
        Of one row, without the batch axis.

    Examples
    --------
    >>> import nnfast as nf
    >>> x = nf.Input(8)
    >>> h = nf.Dense(16, "relu")(x)
    >>> model = nf.Model(x, nf.Dense(2)(nf.Concat()([x, h])))
    >>> model.build(seed=0).out_shape
    (2,)
    """
    sizes = [shape] if isinstance(shape, int) else list(shape)
    return Tensor(tuple(positive_int(n, "Input: each number of the shape") for n in sizes))


def call(layer: Layer, given: tuple[Any, ...]) -> Tensor:
    """The result of a layer on tensors, each given on its own or in a list.

    Raises
    ------
    TypeError
        If something else is given.
    ValueError
        If the layer cannot take inputs of these shapes.
    """
    inputs: list[Tensor] = []
    for one in given:
        inputs += one if isinstance(one, (list, tuple)) else [one]
    for one in inputs:
        if not isinstance(one, Tensor):
            raise TypeError(
                f"{type(layer).__name__} is called on tensors that begin at nf.Input, not {type(one).__name__}"
            )
    if not inputs:
        raise TypeError(f"{type(layer).__name__} is called on one tensor or more, got none")
    graph = GraphBuilder([one.shape for one in inputs])
    return Tensor(graph.add(layer, *graph.inputs).shape, layer, tuple(inputs))


class Calls:
    """The calls that lead from a model's inputs to its outputs, in an order in which they can be done.

    Attributes
    ----------
    in_shapes : list of Shape
    layers : list of Layer
        Each one once.
    calls : list of (int, list of int)
        Number of the layer, and of what it is called on: a call, or input k as ``-1 - k``.
    outputs : list of int
        Likewise.
    """

    def __init__(
        self, in_shapes: list[Shape], layers: list[Layer], calls: list[tuple[int, list[int]]], outputs: list[int]
    ) -> None:
        self.in_shapes, self.layers, self.calls, self.outputs = in_shapes, layers, calls, outputs
        for number, (layer, sources) in enumerate(calls):
            if not 0 <= layer < len(layers) or not sources or any(not -len(in_shapes) <= s < number for s in sources):
                raise ValueError(f"call {number}, of layer {layer} on {sources}, is not possible")
        if not outputs or any(not 0 <= out < len(calls) for out in outputs):
            raise ValueError(f"the outputs {outputs} are not those of calls")

    @classmethod
    def between(cls, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Calls:
        """What is written down between some tensors.

        Raises
        ------
        ValueError
            If an output needs an input that is not given.
        """
        found: dict[int, int] = {id(tensor): -1 - k for k, tensor in enumerate(inputs)}
        layers: list[Layer] = []
        calls: list[tuple[int, list[int]]] = []
        for output in outputs:
            pending = [output]
            while pending:
                tensor = pending[-1]
                missing = [one for one in tensor.inputs if id(one) not in found]
                if id(tensor) in found or missing:
                    pending = pending[:-1] if id(tensor) in found else [*pending, *reversed(missing)]
                    continue
                if tensor.layer is None:
                    raise ValueError(f"an output needs {tensor!r}, which is not among the model's inputs")
                number = next((k for k, layer in enumerate(layers) if layer is tensor.layer), len(layers))
                if number == len(layers):
                    layers.append(tensor.layer)
                found[id(tensor)] = len(calls)
                calls.append((number, [found[id(one)] for one in tensor.inputs]))
                pending.pop()
        return cls([tensor.shape for tensor in inputs], layers, calls, [found[id(tensor)] for tensor in outputs])

    def nodes(self) -> list[Built]:
        """The calls as nodes."""
        graph = GraphBuilder(self.in_shapes)
        graph.reserve(self.layers)
        values: list[Value] = []
        for layer, sources in self.calls:
            given = [values[s] if s >= 0 else graph.inputs[-1 - s] for s in sources]
            values.append(graph.add(self.layers[layer], *given))
        return graph.ending_in([values[out] for out in self.outputs])

    def config(self) -> dict[str, Any]:
        """All but the layers, ready for JSON."""
        return {"in_shapes": [list(shape) for shape in self.in_shapes], "calls": self.calls, "outputs": self.outputs}
