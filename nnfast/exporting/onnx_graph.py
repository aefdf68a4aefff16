"""An ONNX graph under construction, and activations as its nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi, sqrt
from typing import Any

import numpy as np

from ..activations import Activation
from ..layers.graph import Built

__all__ = ["GELU_SINCE", "Graph", "Node", "activation", "elementwise"]

# Operator sets from which on there is a node for what is composed before, or from which on axes are an input
GELU_SINCE, MISH_SINCE, AXES_SINCE = 20, 18, 18


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
        self._first: dict[str, str] = {}  # values with the channels last: the same ones with the channels first

    def name(self, wanted: str) -> str:
        """`wanted`, with a number where it is taken."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    @property
    def float_type(self) -> int:
        """What ONNX calls float32."""
        return self._type(np.float32)

    @property
    def bool_type(self) -> int:
        """What ONNX calls bool."""
        return self._type(np.bool_)

    def node(self, op: str, *inputs: str, wanted: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one result; returns the result's name."""
        self.uses_ml |= domain == "ai.onnx.ml"
        [out] = self.several(op, 1, *inputs, wanted=wanted, domain=domain, **attributes)
        return out

    def several(self, op: str, results: int, *inputs: str, wanted: str = "", **attributes: Any) -> list[str]:
        """Add a node with some results; returns their names."""
        out = [self.name(wanted or op.lower()) for _ in range(results)]
        self.nodes.append(self._onnx.helper.make_node(op, list(inputs), out, name=f"{out[0]}_node", **attributes))
        return out

    def scan(
        self,
        step: Callable[[Graph, list[str], list[str]], tuple[list[str], str]],
        states: Sequence[str],
        sequences: Sequence[str],
        *,
        reverse: bool,
    ) -> list[str]:
        """Add a loop over the second axis of `sequences`, float32.

        Parameters
        ----------
        step : callable
            From the loop's body, the states and a step of each sequence to the new states and the step's output. It may
            use values from outside.
        states, sequences : sequence of str
            The states before the first step; what there is a step of.
        reverse : bool
            Whether the last step comes first.

        Returns
        -------
        list of str
            The last states, and the outputs of all steps.
        """
        body = Graph(self.opset)
        body.constants, body._taken = self.constants, self._taken
        old = [body.name("state") for _ in states]
        now = [body.name("step") for _ in sequences]
        new, output = step(body, old, now)

        def infos(names: Sequence[str]) -> list[Any]:
            return [self._onnx.helper.make_tensor_value_info(name, self.float_type, None) for name in names]

        graph = self._onnx.helper.make_graph(body.nodes, self.name("body"), infos([*old, *now]), infos([*new, output]))
        return self.several(
            "Scan",
            len(new) + 1,
            *states,
            *sequences,
            body=graph,
            num_scan_inputs=len(sequences),
            scan_input_axes=[1] * len(sequences),
            scan_input_directions=[int(reverse)] * len(sequences),
            scan_output_axes=[1],
            scan_output_directions=[int(reverse)],
        )

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

    # ---- shapes ---------------------------------------------------------------------------------------
    def reshape(self, x: str, *shape: int) -> str:
        """Each row of `x` under another shape."""
        return self.node("Reshape", x, self.constant(np.array([0, *shape], np.int64), "shape"))

    def transpose(self, x: str, *order: int) -> str:
        """`x` with its axes in another order, that of the rows included."""
        return self.node("Transpose", x, perm=order)

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        """A part of one axis."""
        ends = (self.constant(np.array([n], np.int64), "at") for n in (start, stop, axis))
        return self.node("Slice", x, *ends)

    def reduce(self, op: str, x: str, axis: int, keepdims: int) -> str:
        """A reduction over one axis."""
        if self.opset >= AXES_SINCE or op == "ReduceSum":  # of which they have been one for longer
            return self.node(op, x, self.constant(np.array([axis], np.int64), "axes"), keepdims=keepdims)
        return self.node(op, x, axes=[axis], keepdims=keepdims)

    def unsqueeze(self, x: str, *axes: int) -> str:
        """`x` with axes of length one added."""
        return self.node("Unsqueeze", x, self.constant(np.array(axes, np.int64), "axes"))

    def squeeze(self, x: str, axis: int) -> str:
        """`x` without an axis of length one."""
        return self.node("Squeeze", x, self.constant(np.array([axis], np.int64), "axes"))

    def channels_first(self, x: str, rank: int) -> str:
        """Rows of `rank` axes with the last one first, as ONNX's operators on images want them."""
        if x in self._first:
            return self._first[x]
        return x if rank < 2 else self.transpose(x, 0, rank, *range(1, rank))

    def channels_last(self, x: str, rank: int) -> str:
        """The way back. What undoes one another is not done, by :meth:`channels_first` and by :meth:`model`."""
        if rank < 2:
            return x
        last = self.transpose(x, 0, *range(2, rank + 1), 1)
        self._first[last] = x
        return last

    def has_channels_first(self, x: str) -> bool:
        """Whether `x` came from a value with the channels first."""
        return x in self._first

    # ---- inputs and outputs ---------------------------------------------------------------------------
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
        nodes, constants = self._needed()
        graph = helper.make_graph(nodes, "nnfast", self.inputs, self.outputs, constants)
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

    def _needed(self) -> tuple[list[Any], list[Any]]:
        """The nodes and constants that an output needs."""
        needed, nodes = {output.name for output in self.outputs}, []
        for node in reversed(self.nodes):
            if needed.isdisjoint(node.output):
                continue
            nodes.append(node)
            needed.update(node.input)
            for attribute in node.attribute:  # the body of a loop reads what is around it
                needed.update(name for inner in attribute.g.node for name in inner.input)
        return nodes[::-1], [constant for constant in self.constants if constant.name in needed]


@dataclass
class Node:
    """A layer at its place, as it becomes part of a graph.

    Attributes
    ----------
    g : Graph
    built : Built
    inputs : list of str
        Values of the layer's inputs.
    weights : dict of str to ndarray
        Parameters and buffers by the layer's names, float32.
    masks : list of (str or None)
        Of the steps of each input, float32 (n, steps).
    out_mask : str or None
        Set by layers that make a mask.
    """

    g: Graph
    built: Built
    inputs: list[str]
    weights: dict[str, np.ndarray]
    masks: list[str | None]
    out_mask: str | None = None

    @property
    def layer(self) -> Any:
        """The description."""
        return self.built.layer

    @property
    def x(self) -> str:
        """The first input."""
        return self.inputs[0]

    @property
    def rank(self) -> int:
        """Axes of a row of the first input."""
        return len(self.built.in_shape)

    def weight(self, name: str) -> str:
        """A constant with one of the layer's arrays."""
        return self.g.constant(self.weights[name], name)


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


def elementwise(g: Graph, x: str, act: Activation, rank: int) -> str:
    """An activation of rows of `rank` axes: where the channels were first, they stay so as long as that does."""
    if act.name == "softmax" or not g.has_channels_first(x):
        return activation(g, x, act)
    return g.channels_last(activation(g, g.channels_first(x, rank), act), rank)
