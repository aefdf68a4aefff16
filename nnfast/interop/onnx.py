"""ONNX: a model as a graph that other runtimes compute, and graphs of layers that nnfast has as models.

Needs the package ``onnx`` (the extra of that name).
"""

from __future__ import annotations

import os
from pathlib import Path

from ..exporting.onnx import export, package
from ..model import Sequential
from .onnx_import import chain_of

__all__ = ["export", "load"]


def load(path: str | os.PathLike[str]) -> Sequential:
    """A model from an ONNX file whose graph is a chain of layers that nnfast has.

    Activations that the file composes of several nodes, such as GELU, are recognised by what they compute. Linear maps
    of single features (a product with a vector, a sum) become a BatchNorm. Convolutions and pooling are read, too:
    images have their channels first in ONNX, but last in the model's inputs and outputs.

    Parameters
    ----------
    path : path_like
        The file.

    Returns
    -------
    Sequential
        Built, on the CPU, in float32, or float64 where the file's weights are.

    Raises
    ------
    ValueError
        If the graph is no such chain; the message names the node.
    FileNotFoundError, ImportError
        If there is no such file, or no package ``onnx``.
    """
    onnx = package()
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # of protobuf, of the checker: whatever is wrong with the file
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is no ONNX file that can be read: {lines[0]}") from None
    return chain_of(model)
