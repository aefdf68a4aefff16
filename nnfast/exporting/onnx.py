"""A model as an ONNX graph, which other runtimes compute. Needs the package ``onnx`` (the extra of that name)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import activations
from ..files import replacing
from ..layers import Activation, BatchNorm, Dense, Dropout, Flatten, Layer, LayerNorm
from ..network import Network
from .onnx_graph import Graph, activation

if TYPE_CHECKING:
    from ..preprocessing import Preprocessor

__all__ = ["export", "package"]

# What is written: an old version of the file format, which every runtime of the last years reads
IR_VERSION = 8
OPSETS = range(17, 22)


def export(
    model: Network,
    path: str | os.PathLike[str],
    *,
    opset: int = 17,
    probabilities: bool = False,
    preprocessing: Preprocessor | None = None,
) -> None:
    """Write a built model as an ONNX file, whole or not at all.

    The graph has one input ``x`` (n, ...) and one output ``y`` (n, ...), float32, with any number of rows. With
    `preprocessing`, it takes what ``nnfast predict`` takes: an array ``x`` of raw numbers, or an input (n, 1) for each
    column of a table, by its name, of floats (NaN where a value is missing) or texts (empty where missing); and its
    outputs are ``label`` (n,) and ``probabilities`` (n, classes; ``margins`` after the hinge loss), or ``prediction``
    (n, k) in the units of the target.

    Parameters
    ----------
    model : Sequential
        Of layers that nnfast has; dropout is left out.
    path : path_like
        The file.
    opset : int
        Version of ONNX's operators, 17 to 21.
    probabilities : bool
        Whether the output goes through the loss's link (softmax, sigmoid, exp): ``predict_proba`` in place of
        ``predict``.
    preprocessing : Preprocessor, optional
        Made part of the graph.

    Raises
    ------
    ValueError
        If `opset` is another one, or a layer has no counterpart in ONNX.
    ImportError
        If the package ``onnx`` is not installed.
    OSError
        If the file cannot be written.
    """
    from .onnx_preprocessing import encoded_inputs, named_outputs

    if opset not in OPSETS:
        raise ValueError(f"opset must be {OPSETS.start} to {OPSETS.stop - 1}, got {opset}")
    onnx = package()
    g = Graph(opset)
    if preprocessing is None:
        x = g.input("x", np.float32, ("n", *model.in_shape))
    else:
        x = encoded_inputs(g, preprocessing.inputs)
    weights = {name: value.astype(np.float32) for name, value in model.get_weights().items()}
    for built in model.built:
        emit = next((f for kind, f in _LAYERS.items() if type(built.layer) is kind), None)
        if emit is None:
            kind = type(built.layer).__name__
            raise ValueError(f"layer {built.index} ({built.name}): {kind} has no counterpart in ONNX")
        own = {name.rpartition(".")[2]: v for name, v in weights.items() if name.rpartition(".")[0] == built.name}
        x = emit(g, x, built.layer, own, len(built.in_shape))
    link = None if model.loss is None or not (probabilities or preprocessing) else _link(model)
    if link == "exp":
        x = g.node("Exp", x)
    elif link is not None:
        x = activation(g, x, activations.get(link))
    if preprocessing is None:
        g.output(x, "y", np.float32, ("n", *model.out_shape))
    else:
        named_outputs(g, x, preprocessing.target, model.out_shape[-1], model.loss)
    made = g.model(IR_VERSION, f"{model!r}")
    with replacing(path) as temporary:
        onnx.save(made, str(temporary))


def _link(model: Network) -> str | None:
    """What the loss's link still has to do: nothing where the model ends in that activation."""
    assert model.loss is not None
    last = model.built[-1].layer
    own = getattr(last, "activation", None)
    return None if own is not None and own.name == model.loss.link else model.loss.link


def package() -> Any:
    """The package ``onnx``.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f'ONNX files need the package onnx: pip install "nnfast[onnx]" ({error})') from error
    return onnx


# ---- layers: (graph, input, layer, its weights, dimensions of a row) -> output ------------------------------------
def _dense(g: Graph, x: str, layer: Any, own: dict[str, np.ndarray], rank: int) -> str:
    W = g.constant(own["W"], "W")
    if rank == 1:
        z = g.node("Gemm", x, W, *([g.constant(own["b"], "b")] if layer.bias else []))
    else:
        z = g.node("MatMul", x, W)
        if layer.bias:
            z = g.node("Add", z, g.constant(own["b"], "b"))
    return activation(g, z, layer.activation)


def _layer_norm(g: Graph, x: str, layer: Any, own: dict[str, np.ndarray], rank: int) -> str:
    gamma, beta = g.constant(own["gamma"], "gamma"), g.constant(own["beta"], "beta")
    return g.node("LayerNormalization", x, gamma, beta, axis=-1, epsilon=layer.eps)


def _batch_norm(g: Graph, x: str, layer: Any, own: dict[str, np.ndarray], rank: int) -> str:
    if rank == 1:
        names = ("gamma", "beta", "running_mean", "running_var")
        return g.node("BatchNormalization", x, *(g.constant(own[name], name) for name in names), epsilon=layer.eps)
    # ONNX has the features on the second axis, nnfast on the last: as a line
    slope = own["gamma"] / np.sqrt(own["running_var"] + np.float32(layer.eps))
    scaled = g.node("Mul", x, g.constant(slope, "scale"))
    return g.node("Add", scaled, g.constant(own["beta"] - own["running_mean"] * slope, "shift"))


_LAYERS: dict[type[Layer], Callable[[Graph, str, Any, dict[str, np.ndarray], int], str]] = {
    Dense: _dense,
    Activation: lambda g, x, layer, own, rank: activation(g, x, layer.activation),
    LayerNorm: _layer_norm,
    BatchNorm: _batch_norm,
    Dropout: lambda g, x, layer, own, rank: x,
    Flatten: lambda g, x, layer, own, rank: g.node("Flatten", x, axis=1),
}
