"""A model as nodes in the order of their computation: what containers of layers are taken apart into.

A node is a layer at its place: with the nodes that its inputs come from, what it declared for their shapes, and a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .base import BuildContext, Layer, Shape, TensorSpec

__all__ = [
    "Block",
    "Built",
    "GraphBuilder",
    "Value",
    "build_chain",
    "chain_names",
    "names_of_outputs",
    "outputs_of",
    "within",
]


@dataclass(frozen=True)
class Built:
    """A node: a layer at its place, with what it declared for the shapes of its inputs.

    Attributes
    ----------
    index : int
        Place among the nodes.
    layer : Layer
    name : str
        ``block/layer`` for a layer of a block.
    in_shapes : tuple of Shape
        Shapes of one row of each input.
    out_shape : Shape
    specs : tuple of TensorSpec
        What the layer declared.
    inputs : tuple of int
        Nodes that the inputs come from; ``-1 - k`` is the model's input k.
    owner : int
        The node that has the parameters: this one, or the first one of the same layer.
    masks : tuple of (int or None)
        For each input the node whose ``out_mask`` masks its steps.
    segment : int or None
        Number of the block whose activations are computed again in the backward pass.
    out_mask : int or None
        Likewise of the output.
    output : int or None
        Which of the model's outputs it is.
    """

    index: int
    layer: Layer
    name: str
    in_shapes: tuple[Shape, ...]
    out_shape: Shape
    specs: tuple[TensorSpec, ...]
    inputs: tuple[int, ...]
    owner: int
    masks: tuple[int | None, ...] = (None,)
    segment: int | None = None
    out_mask: int | None = None
    output: int | None = None

    @property
    def in_shape(self) -> Shape:
        """Shape of one row of the first input."""
        return self.in_shapes[0]

    @property
    def has_parameters(self) -> bool:
        """Whether there is something to train."""
        return any(spec.kind == "param" for spec in self.specs)


def outputs_of(nodes: Sequence[Built]) -> list[Built]:
    """The nodes that give the model's outputs, in their order."""
    found = [node for node in nodes if node.output is not None]
    return sorted(found, key=lambda node: node.output or 0)


def names_of_outputs(nodes: Sequence[Built]) -> list[str]:
    """Names of the model's outputs: those of the layers that give them, of a block the block's own.

    A layer with a name that gives several outputs is numbered from the second on.
    """
    taken = {node.name.partition("/")[0] for node in nodes}
    found: list[str] = []
    for node in outputs_of(nodes):
        stem = name = node.name.partition("/")[0]
        number = 0
        while name in found or (number and name in taken):
            number += 1
            name = f"{stem}_{number}"
        found.append(name)
    return found


class Value(NamedTuple):
    """What a node gives: its number, the shape of a row, and the node that masks its steps."""

    node: int
    shape: Shape
    mask: int | None = None


class Block(Layer):
    """Base class of layers that are made of layers: :meth:`wire` says how."""

    #: Whether activations inside are computed again in the backward pass, in place of being kept
    checkpoint = False

    def wire(self, graph: GraphBuilder, x: Value) -> Value:
        """Add the layers to the graph by ``graph.add`` and ``graph.chain``; returns the result."""
        raise NotImplementedError(f"{type(self).__name__} does not define wire")


@dataclass
class _Scope:
    """Names within a block."""

    prefix: str = ""
    taken: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)


class GraphBuilder:
    """Collects nodes.

    Parameters
    ----------
    in_shapes : sequence of Shape
        Shapes of one row of each of the model's inputs.

    Attributes
    ----------
    nodes : list of Built
    inputs : list of Value
        The model's inputs.
    """

    def __init__(self, in_shapes: Sequence[Shape]) -> None:
        self.nodes: list[Built] = []
        self.inputs = [Value(-1 - k, tuple(int(n) for n in shape)) for k, shape in enumerate(in_shapes)]
        self._scopes = [_Scope()]
        self._owners: dict[int, Built] = {}
        self._segment: int | None = None
        self._segments = 0

    def chain(self, layers: Sequence[Layer], x: Value) -> Value:
        """Add layers, each on the result of the one before; returns the last result."""
        self.reserve(layers)
        for layer in layers:
            x = self.add(layer, x)
        return x

    def reserve(self, layers: Sequence[Layer]) -> None:
        """Keep the names that these layers were given from being given to others.

        Raises
        ------
        ValueError
            If two of them, or one before, have the same name.
        """
        scope = self._scopes[-1]
        for layer in {id(layer): layer for layer in layers}.values():
            if layer.name is not None and id(layer) not in self._owners:
                self._check_name(layer.name, scope)
                scope.taken.add(layer.name)

    @staticmethod
    def _check_name(name: object, scope: _Scope) -> None:
        if not isinstance(name, str) or not name or "." in name or "/" in name:
            raise ValueError(f"a layer's name must be a non-empty string without dots and slashes, not {name!r}")
        if name in scope.taken:
            raise ValueError(f"two layers are named {name!r}")

    def name_of(self, layer: Layer) -> str:
        """A name for a layer of the current block: its own, or its class in lower case, numbered from the second on."""
        scope = self._scopes[-1]
        if layer.name is not None:
            if layer.name not in scope.taken:
                self._check_name(layer.name, scope)
                scope.taken.add(layer.name)
            return layer.name
        stem = type(layer).__name__.lower()
        while True:
            number = scope.counts.get(stem, 0)
            scope.counts[stem] = number + 1
            name = f"{stem}_{number}" if number else stem
            if name not in scope.taken:
                return name

    def add(self, layer: Layer, *inputs: Value) -> Value:
        """Add a layer, or the layers of a block, on these inputs.

        The same layer added again has the same parameters.

        Raises
        ------
        ValueError
            From a layer that cannot take its inputs, with the layer named.
        """
        name = self.name_of(layer)
        if isinstance(layer, Block):
            with self._within(name, layer.checkpoint):
                return layer.wire(self, *inputs)
        index, ctx = len(self.nodes), BuildContext()
        full = self._scopes[-1].prefix + name
        shapes = tuple(value.shape for value in inputs)
        try:
            if not layer.many and len(inputs) != 1:
                raise ValueError(f"{type(layer).__name__} takes one input, got {len(inputs)}")
            if layer.refuses_mask and inputs[0].mask is not None:
                kind, source = type(layer).__name__, self.nodes[inputs[0].mask].name
                raise ValueError(f"{kind} does not leave out the steps that {source} masks")
            made = layer.build(list(shapes) if layer.many else shapes[0], ctx)  # type: ignore[arg-type]
            out_shape = tuple(int(n) for n in made)
            owner = self._owners.get(id(layer))
            specs = tuple(ctx.specs)
            if owner is not None and _trained(owner.specs) != _trained(specs):
                raise ValueError(f"it is used again on inputs of shape {shapes[0]}, for which its weights do not fit")
            if self._segment is not None and any(spec.kind == "carried" for spec in specs):
                raise ValueError(f"{type(layer).__name__} carries a state, which cannot be computed twice (checkpoint)")
        except ValueError as error:
            raise ValueError(f"layer {index} ({full}): {error}") from error
        mask = inputs[0].mask
        if any(spec.name == "out_mask" for spec in specs):
            mask = index
        elif not layer.passes_mask:
            mask = None
        node = Built(
            index, layer, full, shapes, out_shape, specs, tuple(value.node for value in inputs),
            index if owner is None else owner.index, tuple(value.mask for value in inputs), self._segment, mask,
        )  # fmt: skip
        if owner is None:
            self._owners[id(layer)] = node
        self.nodes.append(node)
        return Value(index, out_shape, mask)

    def ending_in(self, outputs: Sequence[Value]) -> list[Built]:
        """The nodes, those marked that give the model's outputs.

        Raises
        ------
        ValueError
            If an output is an input, or two of them are the same.
        """
        for number, value in enumerate(outputs):
            if value.node < 0 or self.nodes[value.node].output is not None:
                raise ValueError(f"output {number} must be what a layer of its own gives")
            self.nodes[value.node] = replace(self.nodes[value.node], output=number)
        return self.nodes

    @contextmanager
    def _within(self, name: str, checkpoint: bool) -> Iterator[None]:
        """Names within the block get the block's before them."""
        outer = self._segment
        if checkpoint and outer is None:
            self._segments += 1
            self._segment = self._segments
        self._scopes.append(_Scope(f"{self._scopes[-1].prefix}{name}/"))
        try:
            yield
        finally:
            self._scopes.pop()
            self._segment = outer


def chain_names(layers: Sequence[Layer]) -> list[str]:
    """The names that the layers of a chain get."""
    graph = GraphBuilder([])
    graph.reserve(layers)
    return [graph.name_of(layer) for layer in layers]


def within(layers: Sequence[Layer]) -> Iterator[Layer]:
    """The layers, and those that they are made of."""
    for layer in layers:
        yield layer
        for value in vars(layer).values():
            yield from within(list(_layers_in(value)))


def _layers_in(value: Any) -> Iterator[Layer]:
    """A layer, or those in lists, and in lists of these."""
    if isinstance(value, Layer):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _layers_in(each)


def _trained(specs: Sequence[TensorSpec]) -> list[tuple[str, Shape]]:
    return [(spec.name, spec.shape) for spec in specs if spec.kind in ("param", "buffer")]


def build_chain(layers: Sequence[Layer], in_shape: Shape) -> list[Built]:
    """The nodes of a chain of layers.

    Raises
    ------
    ValueError
        From a layer that cannot take its input, with the layer named, or if two have the same name.
    """
    graph = GraphBuilder([in_shape])
    return graph.ending_in([graph.chain(layers, graph.inputs[0])])
