"""Recurrent layers as ONNX nodes: its own operators, or a loop over the steps where some of them are padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layers import GRU, LSTM
from .onnx_graph import Graph, Node

__all__ = ["bidirectional", "recurrent"]

# Places of ONNX's gates among nnfast's: update, reset, new; in, out, forget, cell
_ORDERS = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "SimpleRNN": (0,)}
_OPERATORS = {"GRU": "GRU", "LSTM": "LSTM", "SimpleRNN": "RNN"}


def recurrent(node: Node) -> str:
    """A layer of one direction."""
    return _one_way(node, node.layer, node.weights)


def bidirectional(node: Node) -> str:
    """Both directions, each on its own."""
    g, ends = node.g, []
    for prefix, layer in zip(("forward_", "backward_"), node.layer.directions, strict=True):
        own = {name.removeprefix(prefix): a for name, a in node.weights.items() if name.startswith(prefix)}
        ends.append(_one_way(node, layer, own))
    match node.layer.merge:
        case "concat":
            return g.node("Concat", *ends, axis=-1)
        case "mul":
            return g.node("Mul", *ends)
        case "ave":
            return g.node("Mean", *ends)
        case _:
            return g.node("Sum", *ends)


def _one_way(node: Node, layer: Any, own: dict[str, np.ndarray]) -> str:
    if layer.stateful:
        raise ValueError(f"{type(layer).__name__} with stateful=True has no counterpart in ONNX: graphs keep no state")
    if node.masks[0] is not None:
        return _loop(node, layer, own, node.masks[0])
    return _operator(node, layer, own)


# ---- ONNX's operators ------------------------------------------------------------------------------------------
def _operator(node: Node, layer: Any, own: dict[str, np.ndarray]) -> str:
    g, kind, h = node.g, type(layer).__name__, layer.units

    def columns(a: np.ndarray) -> np.ndarray:
        """The gates in ONNX's order."""
        return np.concatenate([a[..., i * h : (i + 1) * h] for i in _ORDERS[kind]], axis=-1)

    inputs = [
        g.transpose(node.x, 1, 0, 2),
        g.constant(columns(own["W"]).T[None], "W"),
        g.constant(columns(own["U"]).T[None], "R"),
    ]
    if layer.bias:
        b = columns(own["b"])
        c = columns(own["c"]) if "c" in own else np.zeros_like(b)
        inputs.append(g.constant(np.concatenate([b, c])[None], "B"))
    attributes: dict[str, Any] = {"hidden_size": h, "direction": "reverse" if layer.reverse else "forward"}
    if kind == "GRU":
        attributes["linear_before_reset"] = int(layer.reset_after)
    elif kind == "SimpleRNN":
        attributes["activations"] = [layer.activation.name.capitalize()]
    # Both outputs: all states (steps, 1, n, h), and the last one (1, n, h)
    every, last = g.several(_OPERATORS[kind], 2, *inputs, **attributes)
    if layer.return_sequences:
        return g.transpose(g.squeeze(every, 1), 1, 0, 2)
    return g.squeeze(last, 0)


# ---- a loop ----------------------------------------------------------------------------------------------------
def _loop(node: Node, layer: Any, own: dict[str, np.ndarray], mask: str) -> str:
    """A step that is padding keeps the state: which ones these are is known when the graph runs only."""
    g, h = node.g, layer.units
    z = g.node("MatMul", node.x, g.constant(own["W"], "W"))
    if layer.bias:
        z = g.node("Add", z, g.constant(own["b"], "b"))
    constants = {name: g.constant(a, name) for name, a in own.items() if name in ("U", "c")}
    if isinstance(layer, GRU):
        # Apart where reset comes in between
        constants["U_gates"] = g.constant(own["U"][:, : 2 * h], "U")
        constants["U_new"] = g.constant(own["U"][:, 2 * h :], "U")
        if "c" in own:
            constants["c_gates"] = g.constant(own["c"][: 2 * h], "c")
            constants["c_new"] = g.constant(own["c"][2 * h :], "c")
    states = 2 if isinstance(layer, LSTM) else 1
    rows = g.slice(g.node("Shape", node.x), 0, 0, 1)
    start = g.node("ConstantOfShape", g.node("Concat", rows, g.constant(np.array([h], np.int64)), axis=0))
    results = g.scan(
        lambda body, state, now: _step(body, layer, constants, state, *now),
        [start] * states,
        [z, g.unsqueeze(mask, 2)],
        reverse=layer.reverse,
    )
    return results[states] if layer.return_sequences else results[0]


def _step(
    g: Graph, layer: Any, constants: dict[str, str], state: list[str], z: str, mask: str
) -> tuple[list[str], str]:
    """The new state of a step, from the old one and from ``x W + b``; and the step's output."""
    h = state[0]
    if isinstance(layer, LSTM):
        new = _lstm_cell(g, layer.units, g.node("Add", z, g.node("MatMul", h, constants["U"])), state[1])
    elif isinstance(layer, GRU):
        new = [_gru_cell(g, layer, constants, z, h)]
    else:
        total = g.node("Add", z, g.node("MatMul", h, constants["U"]))
        new = [g.node(layer.activation.name.capitalize(), total)]
    real = g.node("Cast", mask, to=g.bool_type)
    kept = [g.node("Where", real, one, old) for one, old in zip(new, state, strict=True)]
    return kept, g.node("Identity", kept[0])


def _lstm_cell(g: Graph, h: int, z: str, cell: str) -> list[str]:
    parts = [g.slice(z, 1, i * h, (i + 1) * h) for i in range(4)]
    take, forget, out = (g.node("Sigmoid", parts[i]) for i in (0, 1, 3))
    kept = g.node("Mul", forget, cell)
    cell = g.node("Add", kept, g.node("Mul", take, g.node("Tanh", parts[2])))
    return [g.node("Mul", out, g.node("Tanh", cell)), cell]


def _gru_cell(g: Graph, layer: Any, constants: dict[str, str], z: str, h: str) -> str:
    u = layer.units

    def product(x: str, part: str) -> str:
        y = g.node("MatMul", x, constants[f"U_{part}"])
        return g.node("Add", y, constants[f"c_{part}"]) if f"c_{part}" in constants else y

    gates = g.node("Sigmoid", g.node("Add", g.slice(z, 1, 0, 2 * u), product(h, "gates")))
    reset, update = g.slice(gates, 1, 0, u), g.slice(gates, 1, u, 2 * u)
    if layer.reset_after:
        before = g.node("Mul", reset, product(h, "new"))
    else:
        before = product(g.node("Mul", reset, h), "new")
    new = g.node("Tanh", g.node("Add", g.slice(z, 1, 2 * u, 3 * u), before))
    # (1 - update) new + update h
    return g.node("Add", new, g.node("Mul", update, g.node("Sub", h, new)))
