"""Keras: the weights of its files, into a model of the same architecture.

Needs h5py (the extra ``keras``), not Keras.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..layers import Dense
from ..network import Network
from .weights import ForeignLayer, arranged, by_name, load

__all__ = ["load_weights"]

# Names of nnfast's arrays by Keras's, and by their places in a layer where a file has no names
_NAMES = {
    "kernel": "W",
    "bias": "b",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_PLACES = {
    "dense": ("W", "b"),
    "batch_normalization": ("gamma", "beta", "running_mean", "running_var"),
    "layer_normalization": ("gamma", "beta"),
}
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
        units = next((layer.units for layer in model.layers if isinstance(layer, Dense)), None)
        first = next((e.arrays["W"] for e in layers if "W" in e.arrays and e.arrays["W"].shape[1:] == (units,)), None)
        if first is not None:
            model.build(first.shape[0], dtype="float64" if first.dtype == np.float64 else "float32")
    load(model, layers if ordered else arranged(model, layers), str(path))


def _layers_of(file: Any) -> tuple[list[ForeignLayer], bool]:
    """Layers with weights, and whether their order is that of the model."""
    root = file.get("model_weights", file)
    names = root.attrs.get("layer_names")
    if names is not None:
        layers = [_named(root[_text(name)], _text(name)) for name in names]
        return [layer for layer in layers if layer.arrays], True
    found: list[ForeignLayer] = []

    def visit(name: str, item: Any) -> None:
        parts = name.split("/")
        if parts[-1] == "vars" and parts[0] != "optimizer" and len(item):
            kind = parts[-2].rstrip("0123456789").rstrip("_")
            arrays = [np.asarray(item[key]) for key in sorted(item, key=int)]
            places = _PLACES.get(kind, tuple(map(str, range(len(arrays)))))
            if len(arrays) > len(places):
                places += tuple(map(str, range(len(places), len(arrays))))
            found.append(ForeignLayer("/".join(parts[:-1]), dict(zip(places, arrays, strict=False))))

    file.visititems(visit)
    # What a layer draws at random has a state of its own
    found = [layer for layer in found if "seed_generator" not in layer.name]
    return sorted(found, key=lambda layer: by_name(layer.name)), False


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _named(group: Any, layer: str) -> ForeignLayer:
    """A layer of the older format, in which weights have names such as ``dense/kernel:0``."""
    arrays = {}
    for name in map(_text, group.attrs.get("weight_names", ())):
        last = name.rpartition("/")[2].partition(":")[0]
        arrays[_NAMES.get(last, last)] = np.asarray(group[name])
    return ForeignLayer(layer, arrays)
