"""When each array of a step is written and read: what may share memory, and who adds to whose gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from .layers.graph import Built, outputs_of

__all__ = ["FOREVER", "Backward", "Flow", "Interval"]

Interval = tuple[int, int]  # first and last time, both included
FOREVER = 1 << 40


@dataclass(frozen=True, slots=True)
class Backward:
    """One layer's backward pass.

    Attributes
    ----------
    node : int
    into : tuple of (int or None)
        For each input the node whose gradient it is a part of; ``None``: there is none to write.
    adds : tuple of bool
        Whether another layer wrote a part before, so that this one is added.
    weights_add : bool
        Whether a later place of the same layer wrote the gradients of its weights before.
    again : tuple of int
        Nodes whose forward pass is done again before.
    """

    node: int
    into: tuple[int | None, ...]
    adds: tuple[bool, ...]
    weights_add: bool = False
    again: tuple[int, ...] = ()


class Flow:
    """The order of a step, forward and backward, and the times at which arrays are in use.

    Parameters
    ----------
    built : sequence of Built
        The nodes.
    training : bool
        Whether there is a backward pass.

    Attributes
    ----------
    root : list of int
        The node whose array each node's output is: another one's for a view, negative for a model's input.
    outs : list of int
        The roots of the model's outputs.
    home : list of int
        The node whose gradient's memory holds the gradient of each root.
    wants : list of bool
        Whether the gradient of each node's output is of use.
    backward : list of Backward
        In order.
    """

    def __init__(self, built: Sequence[Built], training: bool) -> None:
        self.built, self.training = built, training
        self.root: list[int] = []
        self.wants: list[bool] = []
        self._readers: list[list[int]] = [[] for _ in built]  # by root
        for node in built:
            roots = [self._root_of(i) for i in node.inputs]
            view = node.layer.is_view(training)
            self.root.append(roots[0] if view else node.index)
            wants = any(root >= 0 and self.wants[root] for root in roots) or node.has_parameters
            self.wants.append(wants and training)
            for root in roots if not view else ():
                if root >= 0:
                    self._readers[root].append(node.index)
        self.outs = [self._root_of(node.index) for node in outputs_of(built)]
        self.home = list(range(len(built)))
        self._last_of_segment = {node.segment: node.index for node in built if node.segment is not None}
        self.backward = self._backward() if training else []

    def _root_of(self, node: int) -> int:
        return node if node < 0 else self.root[node]

    # ---- times -----------------------------------------------------------------------------------------
    @staticmethod
    def forward_time(node: int) -> int:
        """When a node's forward pass is."""
        return 2 * node

    @property
    def loss_time(self) -> int:
        """When the loss is computed."""
        return 2 * len(self.built)

    def backward_time(self, node: int) -> int:
        """When a node's backward pass is."""
        return 2 * (2 * len(self.built) - node)

    def again_time(self, segment: int) -> int:
        """When the forward pass of a segment is done again."""
        return self.backward_time(self._last_of_segment[segment]) - 1

    # ---- gradients -------------------------------------------------------------------------------------
    def _backward(self) -> list[Backward]:
        written = set(self.outs)
        steps: list[Backward] = []
        begun: set[int | None] = {None}
        owners: set[int] = set()
        for node in reversed(self.built):
            i = node.index
            if not self.wants[i] or self.root[i] != i or i not in written:
                continue
            into: list[int | None] = []
            adds: list[bool] = []
            shared = False
            for source in node.inputs:
                root = self._root_of(source)
                if root < 0 or not self.wants[root]:
                    into.append(None)
                    adds.append(False)
                    continue
                alone = self._readers[root] == [i] and root not in self.outs
                alike = prod(self.built[root].out_shape) == prod(node.out_shape)
                if node.layer.shares_gradient and alone and alike and not shared:
                    # What this layer would copy is where it is to be
                    self.home[root], shared = self.home[i], True
                    into.append(None)
                    adds.append(False)
                else:
                    into.append(root)
                    adds.append(root in written)
                written.add(root)
            again: tuple[int, ...] = ()
            if node.segment not in begun:
                begun.add(node.segment)
                again = tuple(n.index for n in self.built if node.segment == self._own_segment(n))
            steps.append(Backward(i, tuple(into), tuple(adds), node.owner in owners, again))
            owners.add(node.owner)
        return steps

    def _own_segment(self, node: Built) -> int | None:
        """The segment of a node that has an array of its own."""
        return node.segment if self.root[node.index] == node.index else None

    # ---- lifetimes -------------------------------------------------------------------------------------
    def outputs(self) -> dict[int, list[Interval]]:
        """When the output of each root is in use."""
        passes = {step.node for step in self.backward}
        found: dict[int, list[Interval]] = {}
        for node in self.built:
            i = node.index
            if self.root[i] != i:
                continue
            readers = [self.built[j] for j in self._readers[i]]
            end = max([self.forward_time(i), *(self.forward_time(j.index) for j in readers)])
            if i in self.outs:
                end = FOREVER
            late = [self.backward_time(j.index) for j in readers if j.index in passes and j.layer.needs_input]
            if i in passes and node.layer.needs_output:
                late.append(self.backward_time(i))
            if passes:  # what a segment is computed from again
                others = {j.segment for j in readers} - {node.segment}
                late += [self.again_time(segment) for segment in others if segment is not None]
            if node.segment is None or not passes:
                found[i] = [(self.forward_time(i), max([end, *late]))]
                continue
            again = self.again_time(node.segment)
            if readers and all(j.segment == node.segment for j in readers):
                found[i] = [(self.forward_time(i), end), (again, max([again, *late]))]
            else:
                found[i] = [(self.forward_time(i), max([end, again, *late]))]
        return found

    def saved(self, node: Built) -> list[Interval]:
        """When what a layer saves for its backward pass is in use."""
        i = node.index
        if node.segment is None:
            return [(self.forward_time(i), self.backward_time(i))]
        return [(self.forward_time(i),) * 2, (self.again_time(node.segment), self.backward_time(i))]

    def gradients(self) -> dict[int, list[Interval]]:
        """When the memory of each home of gradients is in use."""
        first: dict[int, int] = {self.home[out]: self.loss_time for out in self.outs if out >= 0}
        last = dict(first)
        for step in self.backward:
            now, own = self.backward_time(step.node), self.home[step.node]
            last[own] = now
            for root in step.into:
                if root is not None:
                    first.setdefault(self.home[root], now)
                    last.setdefault(self.home[root], now)
        return {home: [(first[home], max(last[home], first[home]))] for home in first}
