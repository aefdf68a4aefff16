"""An ONNX graph under construction, and activations as its nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, sqrt
from typing import Any

import numpy as np

from ..activations import Activation

__all__ = ["GELU_SINCE", "Graph", "activation"]

# Operator sets from which on there is a node for what is composed before
GELU_SINCE, MISH_SINCE = 20, 18


class Graph:
    """Nodes and constants in the order of the computation; values go by their names.

    Parameters
    ----------
    opset : int
        Version of the operators.
    """

    def __init__(self, opset: int) -> None:
        import onnx

        self._onnx, self.opset = onnx, opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.uses_ml = False
        self._taken: set[str] = set()

    def name(self, wanted: str) -> str:
        """`wanted`, with a number where it is taken."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def node(self, op: str, *inputs: str, wanted: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one result; returns the result's name."""
        out = self.name(wanted or op.lower())
        self.uses_ml |= domain == "ai.onnx.ml"
        self.nodes.append(
            self._onnx.helper.make_node(op, list(inputs), [out], name=f"{out}_node", domain=domain, **attributes)
        )
        return out

    def constant(self, value: Any, wanted: str = "c") -> str:
        """Add a constant; returns its name."""
        name = self.name(wanted)
        array = np.asarray(value)
        if array.dtype.kind in "UO":
            texts: Any = [str(v).encode() for v in array.ravel()]
            made = self._onnx.helper.make_tensor(name, self._onnx.TensorProto.STRING, array.shape, texts)
        else:
            made = self._onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        self.constants.append(made)
        return name

    def number(self, value: float) -> str:
        """A float32 constant without dimensions."""
        return self.constant(np.float32(value))

    def input(self, name: str, dtype: Any, shape: Sequence[Any]) -> str:
        """Declare an input; numbers and names of dimensions."""
        name = self.name(name)
        self.inputs.append(self._onnx.helper.make_tensor_value_info(name, self._type(dtype), list(shape)))
        return name

    def output(self, value: str, name: str, dtype: Any, shape: Sequence[Any]) -> None:
        """Declare `value` as an output under its own name."""
        name = self.name(name)
        self.nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=f"{name}_node"))
        self.outputs.append(self._onnx.helper.make_tensor_value_info(name, self._type(dtype), list(shape)))

    def _type(self, dtype: Any) -> int:
        if dtype is str:
            return int(self._onnx.TensorProto.STRING)
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def model(self, ir_version: int, description: str) -> Any:
        """The finished model, checked; of `ir_version`, or a newer one where the operators ask for that."""
        from .. import __version__

        helper = self._onnx.helper
        graph = helper.make_graph(self.nodes, "nnfast", self.inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        if self.uses_ml:
            opsets.append(helper.make_opsetid("ai.onnx.ml", 3))
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=max(ir_version, helper.find_min_ir_version_for(opsets)),
            producer_name="nnfast",
            producer_version=__version__,
            doc_string=description,
        )
        self._onnx.checker.check_model(model, full_check=True)
        return model


def _gelu(g: Graph, x: str, act: Activation) -> str:
    if g.opset >= GELU_SINCE:
        return g.node("Gelu", x, approximate="none")
    inner = g.node("Erf", g.node("Mul", x, g.number(1 / sqrt(2))))
    return g.node("Mul", g.node("Mul", x, g.number(0.5)), g.node("Add", inner, g.number(1.0)))


def _gelu_tanh(g: Graph, x: str, act: Activation) -> str:
    if g.opset >= GELU_SINCE:
        return g.node("Gelu", x, approximate="tanh")
    cubic = g.node("Mul", g.node("Mul", x, g.node("Mul", x, x)), g.number(0.044715))
    inner = g.node("Tanh", g.node("Mul", g.node("Add", x, cubic), g.number(sqrt(2 / pi))))
    return g.node("Mul", g.node("Mul", x, g.number(0.5)), g.node("Add", inner, g.number(1.0)))


def _mish(g: Graph, x: str, act: Activation) -> str:
    if g.opset >= MISH_SINCE:
        return g.node("Mish", x)
    return g.node("Mul", x, g.node("Tanh", g.node("Softplus", x)))


def _single(op: str, **attributes: Any) -> Callable[[Graph, str, Activation], str]:
    return lambda g, x, act: g.node(op, x, **attributes)


_NODES: dict[str, Callable[[Graph, str, Activation], str]] = {
    "identity": lambda g, x, act: x,
    "relu": _single("Relu"),
    "leaky_relu": lambda g, x, act: g.node("LeakyRelu", x, alpha=act.alpha),
    "elu": lambda g, x, act: g.node("Elu", x, alpha=act.alpha),
    "selu": _single("Selu"),
    "sigmoid": _single("Sigmoid"),
    "tanh": _single("Tanh"),
    "softplus": _single("Softplus"),
    "softsign": _single("Softsign"),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda g, x, act: g.node("Mul", x, g.node("Sigmoid", x)),
    "mish": _mish,
    "hard_sigmoid": _single("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_swish": _single("HardSwish"),
    "softmax": _single("Softmax", axis=-1),
}


def activation(g: Graph, x: str, act: Activation) -> str:
    """Add what computes an activation of `x`; returns the result's name."""
    return _NODES[act.name](g, x, act)
