"""The command line's preprocessing as ONNX nodes: raw inputs to a model's, and its outputs to labels or numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..losses import Hinge, Loss
from .onnx_graph import Graph

if TYPE_CHECKING:
    from ..preprocessing import ClassTarget
    from ..preprocessing.inputs import ArrayInputs, CategoryColumn, ImageInputs, TableInputs
    from ..preprocessing.targets import NumberTarget

__all__ = ["encoded_inputs", "named_outputs"]


def encoded_inputs(g: Graph, inputs: TableInputs | ArrayInputs | ImageInputs) -> str:
    """Declare the raw inputs and encode them; returns the name of the encoded ones, float32."""
    if inputs.kind == "image":
        x = g.input("x", np.float32, ("n", *inputs.shape))
        return g.node("Div", x, g.number(inputs.pixel_max))
    if inputs.kind == "array":
        x = g.input("x", np.float32, ("n", *inputs.shape))
        fill, mean, std = (np.array(v).reshape(inputs.shape) for v in (inputs.fill, inputs.mean, inputs.std))
        return _standardised(g, x, fill, mean, std)
    columns = []
    for column in inputs.columns:
        if column.kind == "number":
            x = g.input(column.name, np.float32, ("n", 1))
            columns.append(_standardised(g, x, *(np.array([v]) for v in (column.fill, column.mean, column.std))))
        else:
            columns.append(_one_hot(g, g.input(column.name, str, ("n", 1)), column))
    return columns[0] if len(columns) == 1 else g.node("Concat", *columns, axis=1)


def _standardised(g: Graph, x: str, fill: np.ndarray, mean: np.ndarray, std: np.ndarray) -> str:
    """In float64, as the command line does: a year's mean in float32 would lose its digits."""
    double, single = (g._onnx.TensorProto.DOUBLE, g._onnx.TensorProto.FLOAT)
    wide = g.node("Cast", x, to=double)
    known = g.node("Where", g.node("IsNaN", wide), g.constant(fill.astype(np.float64), "fill"), wide)
    centred = g.node("Sub", known, g.constant(mean.astype(np.float64), "mean"))
    return g.node("Cast", g.node("Div", centred, g.constant(std.astype(np.float64), "std")), to=single)


def _one_hot(g: Graph, x: str, column: CategoryColumn) -> str:
    """The categories, then "missing" (an empty text), then "anything else"."""
    number = len(column.categories)
    index = g.node(
        "LabelEncoder", x, domain="ai.onnx.ml", keys_strings=[*column.categories, ""],
        values_int64s=list(range(number + 1)), default_int64=number + 1,
    )  # fmt: skip
    flat = g.node("Reshape", index, g.constant(np.array([-1], np.int64), "shape"))
    depth, values = g.constant(np.array(column.width, np.int64), "depth"), g.constant(np.array([0, 1], np.float32))
    return g.node("OneHot", flat, depth, values, axis=-1)


def named_outputs(g: Graph, x: str, target: ClassTarget | NumberTarget, columns: int, loss: Loss | None) -> None:
    """Declare the outputs from the model's, `columns` of them, which have gone through the loss's link."""
    if target.kind == "numbers":
        if target.link != "log":  # a rate is what it is
            x = g.node("Mul", x, g.constant(np.array(target.std, np.float32), "std"))
            x = g.node("Add", x, g.constant(np.array(target.mean, np.float32), "mean"))
        g.output(x, "prediction", np.float32, ("n", len(target.mean)))
        return
    margins = isinstance(loss, Hinge)
    if columns == 1:  # of the second class
        first = g.node("Neg", x) if margins else g.node("Sub", g.number(1.0), x)
        x = g.node("Concat", first, x, axis=1)
    index = g.node("ArgMax", x, axis=1, keepdims=0)
    text = isinstance(target.classes[0], str)
    labels = g.constant(np.array(target.classes, object) if text else np.array(target.classes, np.int64), "labels")
    g.output(g.node("Gather", labels, index), "label", str if text else np.int64, ("n",))
    g.output(x, "margins" if margins else "probabilities", np.float32, ("n", len(target.classes)))
