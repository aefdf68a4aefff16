"""Where the arrays of a plan lie that depend on the batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from .arena import Arena, Slot
from .layers import Layer
from .layers.graph import Built, outputs_of
from .plan_flow import Flow, Interval

__all__ = ["LayerSlots", "PlanLayout", "input_dtypes", "readers_of_inputs"]


@dataclass(frozen=True, slots=True)
class LayerSlots:
    """Places of one layer's output and of what it declared."""

    output: Slot | None  # None: a view of the input
    declared: tuple[tuple[str, Slot | None, bool], ...]  # name, place (None: not kept), per row
    carried: frozenset[str] = frozenset()  # the names of those that steps hand on


@dataclass(slots=True)
class _Room:
    """Memory for arrays of one size of rows, and when it is in use."""

    offset: int
    used: list[Interval] = field(default_factory=list)

    def free(self, intervals: Sequence[Interval]) -> bool:
        return all(end < a or b < start for a, b in self.used for start, end in intervals)


class _Rooms:
    """Memory that arrays use in turn.

    Arrays whose rows differ in size do not share it: a backend may run a part of the batch through several layers
    before the next part.
    """

    def __init__(self, arena: Arena, batch: int) -> None:
        self._arena, self._batch = arena, batch
        self._rooms: dict[int, list[_Room]] = {}

    def take(self, shape: tuple[int, ...], dtype: Any, intervals: Sequence[Interval]) -> Slot:
        """A place for an array (batch, *shape) that is in use at these times."""
        size = prod(shape) * np.dtype(dtype).itemsize
        rooms = self._rooms.setdefault(size, [])
        room = next((room for room in rooms if room.free(intervals)), None)
        if room is None:
            room = _Room(self._arena.reserve((self._batch, size), np.uint8).offset)
            rooms.append(room)
        room.used += intervals
        return Slot(room.offset, (self._batch, *shape), np.dtype(dtype))


def _readers(built: Sequence[Built]) -> Iterator[tuple[int, Built]]:
    """Each layer that reads an input of the model, perhaps through views of it, and the input, as ``-1 - k``."""
    root: dict[int, int] = {}
    for node in built:
        for source in node.inputs:
            k = source if source < 0 else root.get(source)
            if k is None:
                continue
            if node.layer.is_view(True):
                root[node.index] = k
            else:
                yield k, node


def readers_of_inputs(built: Sequence[Built]) -> list[tuple[int, Layer]]:
    """The layers that read the model's inputs, each with the input, as ``-1 - k``."""
    return [(k, node.layer) for k, node in _readers(built)]


def input_dtypes(built: Sequence[Built], dtype: Any) -> list[Any]:
    """The dtype of each of the model's inputs: int64 where layers take indices, else `dtype`.

    Raises
    ------
    ValueError
        If some layers take an input as indices and others as numbers.
    """
    found: dict[int, Any] = {}
    for k, node in _readers(built):
        kind = np.dtype(np.int64) if node.layer.takes_indices else np.dtype(dtype)
        if found.setdefault(k, kind) != kind:
            raise ValueError(f"layer {node.index} ({node.name}) takes as {kind} what another one takes otherwise")
    return [found.get(-1 - k, np.dtype(dtype)) for k in range(max([1, *(-s for n in built for s in n.inputs)]))]


class PlanLayout:
    """Where everything that depends on the batch size will be; nothing is allocated yet.

    Parameters
    ----------
    built : list of Built
        The nodes.
    batch : int
        Rows.
    dtype : dtype
        Of activations and their gradients.
    training : bool
        Whether there is a backward pass.
    full : dtype, optional
        Of sample weights, and of what layers want in full; by default `dtype`.
    targets : sequence of (shape, dtype)
        One row of the targets of each output, where there are any.
    weighted : bool
        Whether there are sample weights.
    positions : sequence of int
        For each output: places in a row that each have a loss of their own.

    Attributes
    ----------
    flow : Flow
        The order of a step.
    gradients : dict of int to Slot
        Gradients of outputs, by root.
    parts : dict of (int, int) to Slot
        By node and number of its input: what is added to a gradient.
    shared : dict of (int, str) to Slot
        By node and name: gradients of weights that are added to those of the layer's other places.
    nbytes : int
        Size of the one allocation.
    """

    def __init__(
        self,
        built: list[Built],
        batch: int,
        dtype: Any,
        *,
        training: bool,
        full: Any = None,
        targets: Sequence[tuple[tuple[int, ...], Any]] = (),
        weighted: bool = False,
        positions: Sequence[int] = (),
    ) -> None:
        arena = Arena()
        self.flow = flow = Flow(built, training)
        full = dtype if full is None else full
        kinds = input_dtypes(built, dtype)
        shapes = {source: shape for node in built for source, shape in zip(node.inputs, node.in_shapes, strict=True)}
        self.inputs = [arena.reserve((batch, *shapes[-1 - k]), kind) for k, kind in enumerate(kinds)]
        self.targets = [arena.reserve((batch, *shape), kind) for shape, kind in targets]
        self.weight = arena.reserve((batch,), full) if weighted else None
        self.position_weights: list[tuple[Slot, Slot] | None] = []  # and a row of ones
        for count, node in zip(positions, outputs_of(built), strict=bool(positions)):
            if count > 1 and (weighted or node.out_mask is not None):
                self.position_weights.append((arena.reserve((batch, count), full), arena.reserve((1, count), full)))
            else:
                self.position_weights.append(None)
        rooms = _Rooms(arena, batch)
        places = self._outputs(rooms, built, dtype)
        self.layers: list[LayerSlots] = []
        for node in built:
            declared = []
            for spec in node.specs:
                if spec.kind not in ("saved", "scratch", "carried"):
                    continue
                kind, shape = full if spec.full else dtype, spec.shape
                if spec.kind == "saved" and not training:
                    place = None
                elif spec.kind == "saved" and spec.per_row:
                    place = rooms.take(shape, kind, flow.saved(node))
                else:
                    place = arena.reserve((batch, *shape) if spec.per_row else shape, kind)
                declared.append((spec.name, place, spec.per_row))
            carried = frozenset(spec.name for spec in node.specs if spec.kind == "carried")
            self.layers.append(LayerSlots(places.get(node.index), tuple(declared), carried))
        self.gradients: dict[int, Slot] = {}
        self.parts: dict[tuple[int, int], Slot] = {}
        self.shared: dict[tuple[int, str], Slot] = {}
        if training:
            self._gradients(arena, batch, dtype, full)
        self.nbytes = arena.nbytes

    @property
    def x(self) -> Slot:
        """Place of the first input."""
        return self.inputs[0]

    @property
    def fed(self) -> list[Slot]:
        """Places of what comes with a batch: inputs, targets, weights."""
        return [*self.inputs, *self.targets, *([] if self.weight is None else [self.weight])]

    def _outputs(self, rooms: _Rooms, built: list[Built], dtype: Any) -> dict[int, Slot]:
        """Places of the nodes' outputs."""
        lifetimes = self.flow.outputs()
        # A layer that can work in place does so where nobody reads its input later
        joined: dict[int, int] = {}
        for node in built:
            i, source = node.index, self.flow.root[node.inputs[0]] if node.inputs[0] >= 0 else -1
            if source < 0 or not node.layer.in_place or i not in lifetimes:
                continue
            source = joined.get(source, source)
            ends = lifetimes[source][-1][1]
            alike = prod(node.out_shape) == prod(built[source].out_shape)
            once = len(lifetimes[source]) == len(lifetimes[i]) == 1
            if alike and once and ends == self.flow.forward_time(i):
                joined[i] = source
                lifetimes[source] = [(lifetimes[source][0][0], lifetimes.pop(i)[0][1])]
        places = {i: rooms.take(built[i].out_shape, dtype, times) for i, times in lifetimes.items()}
        for i, source in joined.items():
            where = places[source]
            places[i] = Slot(where.offset, (where.shape[0], *built[i].out_shape), where.dtype)
        return places

    def _gradients(self, arena: Arena, batch: int, dtype: Any, full: Any) -> None:
        flow, rooms = self.flow, _Rooms(arena, batch)
        built = flow.built
        homes: dict[int, Slot] = {}
        # In the order of the backward pass, with what is added where it comes
        times = flow.gradients()
        for home in sorted(times, key=lambda home: times[home][0]):
            homes[home] = rooms.take(built[home].out_shape, dtype, times[home])
        for step in flow.backward:
            now = flow.backward_time(step.node)
            for k, (root, adds) in enumerate(zip(step.into, step.adds, strict=True)):
                if root is not None and adds:
                    self.parts[step.node, k] = rooms.take(built[root].out_shape, dtype, [(now, now)])
            for spec in built[step.node].specs if step.weights_add else ():
                if spec.kind == "param":
                    self.shared[step.node, spec.name] = arena.reserve(spec.shape, full)
        for i, home in enumerate(flow.home):
            if home in homes and flow.root[i] == i:
                where = homes[home]
                self.gradients[i] = Slot(where.offset, (batch, *built[i].out_shape), where.dtype)
