"""Keras: the weights of its files, into a model of the same architecture.

Needs h5py (the extra ``keras``), not Keras.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..layers import Activation, BatchNorm, Dense, Dropout, Flatten, LayerNorm
from ..layers.graph import Built
from ..network import Network
from .keras_weights import KINDS, is_part, named, read
from .weights import ForeignLayer, arranged, by_name, load

__all__ = ["load_weights"]

_IN_KERAS = "model.weights.h5"


def load_weights(model: Network, path: str | os.PathLike[str]) -> None:
    """Write the weights of a Keras model of the same architecture into a model, or, if anything does not fit, none.

    Weights only: that layers have equal activations and ``eps`` (Keras's own is 1e-3) is up to the caller.

    Parameters
    ----------
    model : Sequential
        Built, or with a first layer that a weight of the file tells the inputs of.
    path : path_like
        What ``model.save("....keras")``, ``model.save_weights("....weights.h5")`` or, in older versions,
        ``model.save("....h5")`` wrote. In the first two layers are numbered for each kind of them: a layer gets the
        first weights, by that number, that fit it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is none of Keras's, or the layers, or their shapes, differ.
    ImportError
        If h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'Keras\'s files need h5py: pip install "nnfast[keras]" ({error})') from error
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        source: Any = path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                source = io.BytesIO(archive.read(_IN_KERAS))
        with h5py.File(source, "r") as file:
            layers, ordered = _layers_of(file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of Keras's weights: {error}") from None
    if not layers:
        raise ValueError(f"{path} has no weights of layers that nnfast has")
    if not model.is_built:
        _build_by(model, layers)
    load(model, layers if ordered else arranged(model, layers), str(path))


def _build_by(model: Network, layers: list[ForeignLayer]) -> None:
    """Build a model that begins with a dense layer, for the inputs that its weights have."""
    simple = (Activation, BatchNorm, Dropout, Flatten, LayerNorm)
    first = next((layer for layer in model.layers if not isinstance(layer, simple)), None)
    if isinstance(first, Dense):
        kernels = (layer.arrays["kernel"] for layer in layers if "kernel" in layer.arrays)
        W = next((W for W in kernels if W.shape[1:] == (first.units,)), None)
        if W is not None:
            model.build(W.shape[0], dtype="float64" if W.dtype == np.float64 else "float32")


def _layers_of(file: Any) -> tuple[list[ForeignLayer], bool]:
    """Layers with weights, and whether their order is that of the model."""
    root = file.get("model_weights", file)
    names = root.attrs.get("layer_names")
    if names is not None:
        return [layer for name in names for layer in _with_names(root[_text(name)], _text(name))], True
    found: dict[str, dict[str, np.ndarray]] = {}

    def visit(name: str, item: Any) -> None:
        parts = name.split("/")
        # What a layer draws at random has a state of its own
        if parts[-1] != "vars" or parts[0] == "optimizer" or "seed_generator" in parts or not len(item):
            return
        # layers/functional/layers/dense/...: what follows the last of these is part of a layer
        end = len(parts) - parts[::-1].index("layers") + 1 if "layers" in parts else len(parts) - 1
        kind, part = _kind(parts[end - 1]), "/".join(parts[end:-1])
        own = found.setdefault("/".join(parts[:end]), {})
        own |= {named(kind, part, int(key)): np.asarray(item[key]) for key in sorted(item, key=int)}

    file.visititems(visit)
    layers = [ForeignLayer(name, own, partial(_read_kind, _kind(name))) for name, own in found.items()]
    return sorted(layers, key=lambda layer: by_name(layer.name)), False


def _kind(name: str) -> str:
    """The kind of a layer, from the name that a file gives it."""
    last = name.rpartition("/")[2]
    return last if last in KINDS else re.sub(r"_\d+$", "", last)


def _read_kind(kind: str, built: Built, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return read(built, arrays, kind)


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _with_names(group: Any, layer: str) -> list[ForeignLayer]:
    """The layers in an entry of the older format, in which weights have names such as ``dense/kernel:0``.

    A model within a model is one entry: its layers follow its name.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in map(_text, group.attrs.get("weight_names", ())):
        *parts, last = name.partition(":")[0].split("/")
        # Parts of a layer, such as a cell, follow the layer's name
        depth = next((k for k, part in enumerate(parts) if k and is_part(part)), len(parts))
        owner, inner = parts[:depth], parts[depth:]
        own = found.setdefault("/".join(owner) or layer, {})
        own["/".join([*inner, last])] = np.asarray(group[name])
    return [ForeignLayer(owner, own, read) for owner, own in found.items()]
