"""Layers that are made of layers: branches, shortcuts, the Transformer's block."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Layer
from .graph import Block, GraphBuilder, Value
from .merge import Add, Concat

__all__ = ["Chain", "Parallel", "Residual"]


def layers_of(given: Layer | Sequence[Layer], what: str) -> list[Layer]:
    """One layer, or several, as a list.

    Raises
    ------
    TypeError
        If anything else is among them.
    ValueError
        If there is none.
    """
    layers = [given] if isinstance(given, Layer) else list(given)
    for layer in layers:
        if not isinstance(layer, Layer):
            raise TypeError(f"{what} must be layers, not {type(layer).__name__}")
    if not layers:
        raise ValueError(f"{what} must be at least one layer")
    return layers


class Chain(Block):
    """Layers one after the other, as one.

    Parameters
    ----------
    layers : sequence of Layer
        Each one's output is the next one's input.
    checkpoint : bool
        Whether activations inside are computed again in the backward pass, in place of being kept: less memory, for the
        time of one more forward pass (Chen et al., 2016).
    name : str, optional
        Name of the block in the model; its layers' names follow, after a slash.
    """

    def __init__(self, layers: Sequence[Layer], *, checkpoint: bool = False, name: str | None = None) -> None:
        self.layers = layers_of(layers, "Chain: layers")
        self.checkpoint = bool(checkpoint)
        self.name = name

    def wire(self, graph: GraphBuilder, x: Value) -> Value:
        return graph.chain(self.layers, x)


class Residual(Block):
    """``y = inner(x) + shortcut(x)`` (He et al., 2016).

    Parameters
    ----------
    inner : Layer or sequence of Layer
        The branch.
    shortcut : Layer or sequence of Layer, optional
        What brings `x` to the shape of the branch's output; by default `x` itself is added.
    checkpoint : bool
        As for :class:`Chain`.
    name : str, optional
        Name of the block in the model.
    """

    def __init__(
        self,
        inner: Layer | Sequence[Layer],
        shortcut: Layer | Sequence[Layer] | None = None,
        *,
        checkpoint: bool = False,
        name: str | None = None,
    ) -> None:
        self.inner = layers_of(inner, "Residual: inner")
        self.shortcut = None if shortcut is None else layers_of(shortcut, "Residual: shortcut")
        self.checkpoint = bool(checkpoint)
        self.name = name

    def wire(self, graph: GraphBuilder, x: Value) -> Value:
        branch = graph.chain(self.inner, x)
        straight = x if self.shortcut is None else graph.chain(self.shortcut, x)
        return graph.add(Add(name="add"), branch, straight)


class Parallel(Block):
    """Branches of one input, and their outputs together.

    Parameters
    ----------
    branches : sequence of (Layer or sequence of Layer)
        Each one sees the whole input.
    merge : {"concat", "add"}
        Side by side along the last axis, or their sum.
    checkpoint : bool
        As for :class:`Chain`.
    name : str, optional
        Name of the block in the model.
    """

    def __init__(
        self,
        branches: Sequence[Layer | Sequence[Layer]],
        merge: str = "concat",
        *,
        checkpoint: bool = False,
        name: str | None = None,
    ) -> None:
        if merge not in ("concat", "add"):
            raise ValueError(f"Parallel: merge must be 'concat' or 'add', got {merge!r}")
        self.branches = [layers_of(branch, "Parallel: branches") for branch in branches]
        if len(self.branches) < 2:
            raise ValueError(f"Parallel takes two branches or more, got {len(self.branches)}")
        self.merge = merge
        self.checkpoint = bool(checkpoint)
        self.name = name

    def wire(self, graph: GraphBuilder, x: Value) -> Value:
        ends = [graph.chain(branch, x) for branch in self.branches]
        return graph.add(Concat(name="concat") if self.merge == "concat" else Add(name="add"), *ends)
