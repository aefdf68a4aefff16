"""Layers that are made of layers: branches, shortcuts, the Transformer's block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .attention import MultiHeadAttention
from .base import Layer, positive_int
from .dense import Dense
from .graph import Block, GraphBuilder, Value
from .merge import Add, Concat
from .norm import LayerNorm, RMSNorm
from .pointwise import Dropout

__all__ = ["Chain", "Parallel", "Residual", "TransformerBlock"]


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


class TransformerBlock(Block):
    """``h = x + attention(norm(x)); y = h + feed_forward(norm(h))``, with the norms first (Xiong et al., 2020).

    Parameters
    ----------
    heads : int
        Of the attention; they share the features.
    hidden : int, optional
        Units of the feed-forward layer; by default four times the features.
    activation : str
        Of the feed-forward layer.
    causal : bool
        Whether a step sees only those before it, and itself.
    rotary : bool or float
        Whether the attention turns queries and keys by their position; see :class:`MultiHeadAttention`.
    norm : {"layer", "rms"}
        :class:`LayerNorm` or :class:`RMSNorm`.
    dropout : float
        Share of the elements dropped at the end of both branches.
    bias : bool
        Whether products have a bias.
    checkpoint : bool
        As for :class:`Chain`.
    name : str, optional
        Name of the block in the model.

    Notes
    -----
    Shapes: `x`, `y` (n, steps, features).
    """

    def __init__(
        self,
        heads: int,
        hidden: int | None = None,
        *,
        activation: str = "gelu",
        causal: bool = False,
        rotary: Any = False,
        norm: str = "layer",
        dropout: float = 0.0,
        bias: bool = True,
        checkpoint: bool = False,
        name: str | None = None,
    ) -> None:
        self.heads = positive_int(heads, "TransformerBlock: heads")
        self.hidden = None if hidden is None else positive_int(hidden, "TransformerBlock: hidden")
        if norm not in ("layer", "rms"):
            raise ValueError(f"TransformerBlock: norm must be 'layer' or 'rms', got {norm!r}")
        self.activation, self.causal, self.rotary, self.norm = activation, bool(causal), rotary, norm
        self.dropout = Dropout(dropout).rate
        self.bias = bool(bias)
        self.checkpoint = bool(checkpoint)
        self.name = name

    def _branch(self, layers: list[Layer], name: str) -> Residual:
        norm = LayerNorm() if self.norm == "layer" else RMSNorm()
        return Residual([norm, *layers, *([Dropout(self.dropout)] if self.dropout else [])], name=name)

    def wire(self, graph: GraphBuilder, x: Value) -> Value:
        if len(x.shape) != 2:
            raise ValueError(f"TransformerBlock takes inputs of shape (steps, features), got {x.shape}")
        features = x.shape[-1]
        attention = MultiHeadAttention(self.heads, causal=self.causal, rotary=self.rotary, bias=self.bias)
        hidden = Dense(self.hidden or 4 * features, self.activation, bias=self.bias)
        x = graph.add(self._branch([attention], "attention"), x)
        return graph.add(self._branch([hidden, Dense(features, bias=self.bias)], "feed_forward"), x)
