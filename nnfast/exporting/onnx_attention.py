"""Attention as ONNX nodes: products, a softmax, products."""

from __future__ import annotations

import numpy as np

from ..layers.attention import ROTARY_BASE
from ..positions import position_angles
from .onnx_graph import Graph, Node

__all__ = ["cross_attention", "self_attention"]

# Of a score that must not count; not -inf, whose softmax where nothing counts is no number
_NEVER = -1e30


def self_attention(node: Node) -> str:
    """MultiHeadAttention."""
    g, layer = node.g, node.layer
    width = node.weights["W_out"].shape[0]
    steps = node.built.in_shape[0]
    q, k, v = _heads(node, node.x, "qkv", 3)
    if layer.rotary:
        base = ROTARY_BASE if layer.rotary is True else float(layer.rotary)
        angles = position_angles(np, steps, width // layer.heads, base)
        cos, sin = (g.constant(f(angles).astype(np.float32), f.__name__) for f in (np.cos, np.sin))
        q, k = (_turned(g, x, cos, sin, width // layer.heads // 2) for x in (q, k))
    seen = np.tri(steps, dtype=bool) if layer.causal else None
    return _attention(node, q, k, v, node.masks[0], seen)


def cross_attention(node: Node) -> str:
    """CrossAttention."""
    [q] = _heads(node, node.inputs[0], "q", 1)
    k, v = _heads(node, node.inputs[1], "kv", 2)
    return _attention(node, q, k, v, node.masks[1], None)


def _product(node: Node, x: str, suffix: str) -> str:
    y = node.g.node("MatMul", x, node.weight(f"W_{suffix}"))
    return node.g.node("Add", y, node.weight(f"b_{suffix}")) if node.layer.bias else y


def _heads(node: Node, x: str, suffix: str, parts: int) -> list[str]:
    """One product's parts, each as (n, heads, steps, features of a head)."""
    g, heads = node.g, node.layer.heads
    width = node.weights["W_out"].shape[0]
    both = _product(node, x, suffix)
    found = []
    for i in range(parts):
        part = both if parts == 1 else g.slice(both, 2, i * width, (i + 1) * width)
        # 0 for the steps: those of the value
        found.append(g.transpose(g.reshape(part, 0, heads, width // heads), 0, 2, 1, 3))
    return found


def _turned(g: Graph, x: str, cos: str, sin: str, half: int) -> str:
    """Rotary positions: both halves of each head, turned by the step's angles."""
    left, right = g.slice(x, 3, 0, half), g.slice(x, 3, half, 2 * half)
    one = g.node("Sub", g.node("Mul", left, cos), g.node("Mul", right, sin))
    other = g.node("Add", g.node("Mul", left, sin), g.node("Mul", right, cos))
    return g.node("Concat", one, other, axis=-1)


def _attention(node: Node, q: str, k: str, v: str, mask: str | None, seen: np.ndarray | None) -> str:
    g = node.g
    width = node.weights["W_out"].shape[0]
    scale = g.number((width // node.layer.heads) ** -0.5)
    scores = g.node("MatMul", g.node("Mul", q, scale), g.transpose(k, 0, 1, 3, 2))
    allowed = None if seen is None else g.constant(seen, "seen")
    if mask is not None:
        keys = g.unsqueeze(g.node("Cast", mask, to=g.bool_type), 1, 2)
        allowed = keys if allowed is None else g.node("And", keys, allowed)
    if allowed is not None:
        scores = g.node("Where", allowed, scores, g.number(_NEVER))
    shares = g.node("Softmax", scores, axis=-1)
    if mask is not None:  # a step that may look at nothing gets nothing
        assert allowed is not None
        shares = g.node("Where", allowed, shares, g.number(0.0))
    together = g.transpose(g.node("MatMul", shares, v), 0, 2, 1, 3)
    return _product(node, g.reshape(together, 0, width), "out")
