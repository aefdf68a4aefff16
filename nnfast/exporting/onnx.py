"""A model as an ONNX graph, which other runtimes compute. Needs the package ``onnx`` (the extra of that name)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import activations
from ..files import replacing
from ..network import Network
from .onnx_graph import Graph, Node, activation

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

    The graph has one input ``x`` (n, ...), float32, or int64 where the model takes indices, and one output ``y``
    (n, ...), float32, with any number of rows. Images have their channels last, as everywhere in nnfast. With
    `preprocessing`, it takes what ``nnfast predict`` takes: an array ``x`` of raw numbers, or an input (n, 1) for each
    column of a table, by its name, of floats (NaN where a value is missing) or texts (empty where missing); and its
    outputs are ``label`` (n,) and ``probabilities`` (n, classes; ``margins`` after the hinge loss), or ``prediction``
    (n, k) in the units of the target.

    Parameters
    ----------
    model : Model
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
        If `opset` is another one, or a layer has no counterpart in ONNX, such as a recurrent one with ``stateful``.
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
        x = g.input("x", np.int64 if model.takes_indices else np.float32, ("n", *model.in_shape))
    else:
        if model.takes_indices:
            raise ValueError("preprocessing gives numbers, but the model takes indices")
        x = encoded_inputs(g, preprocessing.inputs)
    x = _layers(g, model, x)
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


def _layers(g: Graph, model: Network, x: str) -> str:
    """Add what computes the model's layers; returns the result's name."""
    from .onnx_layers import EMITTERS

    weights: dict[str, dict[str, np.ndarray]] = {}
    for name, value in model.get_weights().items():
        owner, _, own = name.rpartition(".")
        weights.setdefault(owner, {})[own] = value.astype(np.float32)
    values: list[str] = []
    masks: dict[int | None, str] = {}
    for built in model.built:
        kind = type(built.layer)
        where = f"layer {built.index} ({built.name})"
        if kind not in EMITTERS:
            raise ValueError(f"{where}: {kind.__name__} has no counterpart in ONNX")
        node = Node(
            g,
            built,
            [values[i] if i >= 0 else x for i in built.inputs],
            weights.get(model.built[built.owner].name, {}),
            [masks.get(source) for source in built.masks],
        )
        try:
            values.append(EMITTERS[kind](node))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if node.out_mask is not None:
            masks[built.index] = node.out_mask
    return values[-1]


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
