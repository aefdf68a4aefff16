"""An ONNX graph, read as a chain of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import activations
from ..layers import Activation, BatchNorm, Dense, Flatten, Layer, LayerNorm
from ..layers.convolution import ConvolutionLayer
from ..layers.graph import build_chain
from ..model import Sequential
from .onnx_import_activations import ELEMENTWISE, POINTS, recognised, single
from .onnx_import_spatial import begins_with_images, is_spatial, order_of_flattened, spatial_layer, transposed

__all__ = ["chain_of"]


@dataclass
class _Read:
    """Layers so far, their weights by layer, and the features of a row.

    `in_shape` is that of the model's rows. `first`: the current value is of images with their channels first. `order`:
    it is a row of features that such an image was flattened to. `pooled`: it still has axes of one pixel.
    """

    layers: list[Layer]
    weights: list[dict[str, np.ndarray]]
    width: int | None = None
    in_shape: tuple[int, ...] | None = None
    first: bool = False
    order: np.ndarray | None = None
    pooled: bool = False

    def add(self, layer: Layer, **weights: np.ndarray) -> None:
        self.layers.append(layer)
        self.weights.append(weights)


class _Chain:
    """The nodes of a graph, walked from its input to its output."""

    def __init__(self, model: Any) -> None:
        from onnx import helper, numpy_helper

        graph = model.graph
        self.constants = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
        self.nodes = []
        for node in graph.node:
            if node.op_type == "Constant":
                [value] = [helper.get_attribute_value(a) for a in node.attribute][:1]
                self.constants[node.output[0]] = (
                    numpy_helper.to_array(value) if hasattr(value, "data_type") else np.asarray(value)
                )
            else:
                self.nodes.append(node)
        self.attributes = {id(n): {a.name: helper.get_attribute_value(a) for a in n.attribute} for n in self.nodes}
        inputs = [i for i in graph.input if i.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ValueError(
                f"the graph must have one input and one output, it has {len(inputs)} and {len(graph.output)}"
            )
        self.at, self.end = inputs[0].name, graph.output[0].name
        dims = [int(d.dim_value) for d in inputs[0].type.tensor_type.shape.dim][1:]
        self.in_shape = tuple(dims) if dims and all(dims) else None  # 0: not known, or known by name only

    def users(self, value: str) -> list[Any]:
        return [node for node in self.nodes if value in node.input]

    def operand(self, node: Any, place: int) -> np.ndarray | None:
        """A constant operand, ``None`` where it is none."""
        return self.constants.get(node.input[place]) if place < len(node.input) else None

    def constant_beside(self, node: Any) -> np.ndarray | None:
        """The constant of a node of two operands, the other of which is the current value."""
        others = [self.constants.get(name) for name in node.input if name != self.at]
        return others[0] if len(others) == 1 else None


def _refused(node: Any, why: str) -> ValueError:
    return ValueError(f"node {node.name or node.output[0]!r} ({node.op_type}): {why}")


def chain_of(model: Any) -> Sequential:
    """The model that a checked ONNX model's graph describes.

    Raises
    ------
    ValueError
        If it describes none.
    """
    chain, read = _Chain(model), _Read([], [])
    read.first = begins_with_images(chain.nodes)
    if read.first and chain.in_shape is not None:
        chain.in_shape = (*chain.in_shape[1:], chain.in_shape[0])
    if chain.in_shape is not None:
        read.in_shape, read.width = chain.in_shape, chain.in_shape[-1]
    while chain.at != chain.end:
        users = chain.users(chain.at)
        if not users:
            raise ValueError(f"the value {chain.at!r} is used by no node, and is not the graph's output")
        if _elementwise(chain, read, users):
            continue
        if len(users) > 1:
            raise _refused(users[1], "the graph is not a chain of layers: several nodes go on from one value")
        _node(chain, read, users[0])
        chain.at = users[0].output[0]
    in_shape = chain.in_shape
    if in_shape is None:
        first = next((w["W"].shape[0] for w in read.weights if "W" in w), None)
        if first is None:
            raise ValueError("the graph does not tell the shape of its input")
        in_shape = (first,)
    double = any(v.dtype == np.float64 for w in read.weights for v in w.values())
    result = Sequential(read.layers or [Activation("identity")])
    result.build(in_shape, dtype="float64" if double else "float32", initialise=False)
    result.set_weights(
        {
            f"{b.name}.{key}": value
            for b, own in zip(result.built, read.weights, strict=False)
            for key, value in own.items()
        }
    )
    return result


# ---- elementwise parts -------------------------------------------------------------------------------------------
def _elementwise(chain: _Chain, read: _Read, users: list[Any]) -> bool:
    """Take the shortest run of elementwise nodes with numbers that is an activation; whether there was one."""
    values: dict[str, np.ndarray] = {chain.at: POINTS}
    used: set[int] = set()
    for node in chain.nodes:  # in the order of the computation
        if not any(name in values for name in node.input):
            continue
        function = ELEMENTWISE.get(node.op_type)
        operands = [values[n] if n in values else single(chain.constants.get(n)) for n in node.input if n]
        if function is None or any(operand is None for operand in operands):
            continue
        with np.errstate(all="ignore"):
            values[node.output[0]] = function(*operands, **chain.attributes[id(node)])
        used.add(id(node))
        # Nothing but this result may be needed by what comes after
        open_ends = [v for v in values if v != node.output[0] and any(id(u) not in used for u in chain.users(v))]
        if open_ends or (chain.end in values and chain.end != node.output[0]):
            continue
        found = recognised(values[node.output[0]])
        if found is not None:
            if found.name != "identity":
                _append(read, found)
            chain.at = node.output[0]
            return True
    return False


def _append(read: _Read, activation: activations.Activation) -> None:
    """As a layer, or as part of the dense layer before it."""
    last: Any = read.layers[-1] if read.layers else None
    if isinstance(last, (Dense, ConvolutionLayer)) and last.activation.name == "identity":
        read.layers[-1] = type(last)(**(last.config() | {"activation": str(activation)}))
    else:
        read.add(Activation(activation))


# ---- nodes with weights ------------------------------------------------------------------------------------------
def _node(chain: _Chain, read: _Read, node: Any) -> None:
    attributes = chain.attributes[id(node)]
    if _of_images(chain, read, node, attributes):
        return
    match node.op_type:
        case "Gemm":
            _gemm(chain, read, node, attributes)
        case "MatMul":
            W = chain.operand(node, 1)
            if node.input[0] != chain.at or W is None or W.ndim != 2:
                raise _refused(node, "only a product of the layer's input with a constant matrix is a layer")
            _dense(read, W, None)
        case "Add" | "Sub" | "Mul" | "Div":
            _line(chain, read, node)
        case "Flatten" if attributes.get("axis", 1) == 1:
            read.add(Flatten())
        case "Reshape" if _flattens(chain.operand(node, 1)):
            read.add(Flatten())
        case "Softmax" if attributes.get("axis", -1) in (-1, 1 if _rank(chain, read) == 2 else -1):
            _append(read, activations.get("softmax"))
        case "LayerNormalization" if attributes.get("axis", -1) == -1:
            gamma = chain.operand(node, 1)
            if gamma is None:
                raise _refused(node, "its scale is not a constant")
            beta = chain.operand(node, 2)
            read.add(
                LayerNorm(float(attributes.get("epsilon", 1e-5))),
                gamma=gamma,
                beta=np.zeros_like(gamma) if beta is None else beta,
            )
        case "BatchNormalization" if read.first or _rank(chain, read) == 2:
            arrays = [chain.operand(node, i) for i in range(1, 5)]
            if any(a is None for a in arrays):
                raise _refused(node, "its statistics are not constants")
            gamma, beta, mean, var = (np.asarray(a) for a in arrays)
            layer = BatchNorm(eps=float(attributes.get("epsilon", 1e-5)))
            read.add(layer, gamma=gamma, beta=beta, running_mean=mean, running_var=var)
        case "Dropout":
            pass  # of inference
        case _:
            raise _refused(node, "nnfast has no such layer")


def _of_images(chain: _Chain, read: _Read, node: Any, attributes: dict[str, Any]) -> bool:
    """Take a node that has to do with images; whether it is one."""
    flat = node.op_type == "Flatten" or (node.op_type == "Reshape" and _flattens(chain.operand(node, 1)))
    if read.pooled:
        if not flat and node.op_type != "Squeeze":
            raise _refused(node, "after global pooling only what makes rows of numbers is read")
        read.pooled = False
        return True
    if read.order is not None and node.op_type not in ("Gemm", "MatMul", "Dropout"):
        raise _refused(node, "after an image is flattened with its channels first only a dense layer is read")
    if node.op_type == "Transpose":
        first = transposed(attributes.get("perm"), read.first)
        if first is None:
            raise _refused(node, "only channels can be brought to the front, and back")
        read.first = first
        return True
    if is_spatial(node.op_type):
        if not read.first or read.in_shape is None:
            raise _refused(node, "the size of the images is not known, or their channels are not first")
        constants = [chain.operand(node, place) for place in range(1, len(node.input))]
        try:
            layer, weights = spatial_layer(node.op_type, attributes, constants, len(read.in_shape) - 1)
        except ValueError as error:
            raise _refused(node, str(error)) from None
        read.add(layer, **weights)
        if node.op_type.startswith("Global"):
            read.first, read.pooled, read.width = False, True, _shape(read)[-1]
        return True
    if not read.first:
        return False
    if flat:
        read.order, read.first = order_of_flattened(_shape(read)), False
        read.add(Flatten())
    elif node.op_type == "Softmax" and attributes.get("axis", -1) == 1:
        _append(read, activations.get("softmax"))
    elif node.op_type in ("BatchNormalization", "Dropout"):
        return False
    else:
        raise _refused(node, "nnfast has no such layer of images with their channels first")
    return True


def _shape(read: _Read) -> tuple[int, ...]:
    """Shape of a row of the current value, as nnfast has it."""
    assert read.in_shape is not None
    return build_chain(read.layers, read.in_shape)[-1].out_shape if read.layers else read.in_shape


def _rank(chain: _Chain, read: _Read) -> int:
    """Dimensions of the current value, rows included."""
    flat = any(isinstance(layer, Flatten) for layer in read.layers)
    return 2 if flat or chain.in_shape is None else len(chain.in_shape) + 1


def _flattens(shape: np.ndarray | None) -> bool:
    """Whether a Reshape to this keeps the rows, and makes one dimension of the rest."""
    return shape is not None and shape.size == 2 and (shape[1] == -1 or (shape[0] == -1 and shape[1] > 0))


def _gemm(chain: _Chain, read: _Read, node: Any, attributes: dict[str, Any]) -> None:
    W, b = chain.operand(node, 1), chain.operand(node, 2)
    if node.input[0] != chain.at or W is None or attributes.get("transA", 0):
        raise _refused(node, "only a product of the layer's input with a constant matrix is a layer")
    if len(node.input) > 2 and b is None:
        raise _refused(node, "its bias is not a constant")
    W = np.asarray(attributes.get("alpha", 1.0), W.dtype) * (W.T if attributes.get("transB", 0) else W)
    if b is not None:
        b = np.broadcast_to(np.asarray(attributes.get("beta", 1.0), b.dtype) * b, (1, W.shape[1]))[0]
    _dense(read, W, b)


def _dense(read: _Read, W: np.ndarray, b: np.ndarray | None) -> None:
    if read.order is not None:
        theirs, W = W, np.empty_like(W)
        W[read.order], read.order = theirs, None
    own = {"W": W} if b is None else {"W": W, "b": b}
    read.add(Dense(W.shape[1], bias=b is not None), **own)
    read.width = W.shape[1]


def _line(chain: _Chain, read: _Read, node: Any) -> None:
    """A sum or a product with a constant: the bias of a dense layer, or a line of its own for each feature."""
    constant = chain.constant_beside(node)
    width = read.width
    if (
        constant is None
        or width is None
        or constant.size not in (1, width)
        or constant.shape[-1:] not in ((1,), (width,), ())
    ):
        raise _refused(node, "only a constant for each feature can be added or multiplied")
    value = np.broadcast_to(constant.reshape(-1), (width,)).copy()
    swapped = node.input[0] != chain.at
    slope, shift = np.ones_like(value), np.zeros_like(value)
    match node.op_type:
        case "Add":
            shift = value
        case "Sub":
            slope, shift = (-slope, value) if swapped else (slope, -value)
        case "Mul":
            slope = value
        case _ if swapped:
            raise _refused(node, "division by the layer's input is no layer")
        case _:
            slope = 1 / value
    last = read.layers[-1] if read.layers else None
    if isinstance(last, Dense) and last.activation.name == "identity":
        own = read.weights[-1]
        own["W"] = own["W"] * slope
        own["b"] = own.get("b", np.zeros_like(value)) * slope + shift
        read.layers[-1] = Dense(last.units, bias=True)
    elif isinstance(last, BatchNorm):
        own = read.weights[-1]
        own["gamma"], own["beta"] = own["gamma"] * slope, own["beta"] * slope + shift
    else:
        layer = BatchNorm()
        statistics = {"running_mean": np.zeros_like(value), "running_var": np.full_like(value, 1 - layer.eps)}
        read.add(layer, gamma=slope, beta=shift, **statistics)
