"""The weights of Keras's layers, as nnfast's have them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..layers import (
    GRU,
    LSTM,
    BatchNorm,
    Bidirectional,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    CrossAttention,
    Dense,
    DepthwiseConv2D,
    Embedding,
    GroupNorm,
    Layer,
    LayerNorm,
    MultiHeadAttention,
    RMSNorm,
    SimpleRNN,
)
from ..layers.graph import Built

__all__ = ["KINDS", "is_part", "named", "read"]

Arrays = dict[str, np.ndarray]

# Keras's names of weights by their places in a layer, where a file has no names
_PLACES: dict[str, tuple[str, ...]] = {
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "embedding": ("embeddings",),
    "group_normalization": ("gamma", "beta"),
    "layer_normalization": ("gamma", "beta"),
    "rms_normalization": ("scale",),
}
_OTHERS = ("kernel", "bias")
_CELL = ("kernel", "recurrent_kernel", "bias")
# Names of nnfast's arrays by Keras's
_NAMES = {
    "kernel": "W",
    "recurrent_kernel": "U",
    "bias": "b",
    "embeddings": "W",
    "gamma": "gamma",
    "scale": "gamma",
    "beta": "beta",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# What layers are called in files that go by the kinds of them
KINDS: dict[str, tuple[type[Layer], ...]] = {
    "batch_normalization": (BatchNorm,),
    "bidirectional": (Bidirectional,),
    "conv1d": (Conv1D,),
    "conv2d": (Conv2D,),
    "conv2d_transpose": (Conv2DTranspose,),
    "dense": (Dense,),
    "depthwise_conv2d": (DepthwiseConv2D,),
    "embedding": (Embedding,),
    "group_normalization": (GroupNorm,),
    "gru": (GRU,),
    "layer_normalization": (LayerNorm,),
    "lstm": (LSTM,),
    "multi_head_attention": (MultiHeadAttention, CrossAttention),
    "rms_normalization": (RMSNorm,),
    "simple_rnn": (SimpleRNN,),
}
# Parts of a layer, however a version of Keras calls them
_PARTS = {
    "query": "query", "query_dense": "query", "key": "key", "key_dense": "key", "value": "value",
    "value_dense": "value", "attention_output": "output", "output_dense": "output", "forward_layer": "forward",
    "backward_layer": "backward",
}  # fmt: skip


def named(kind: str, part: str, number: int) -> str:
    """Keras's name of a weight, by its place in a layer, or in a part of one."""
    places = _CELL if part.endswith("cell") else _PLACES.get(kind, _OTHERS)
    name = places[number] if number < len(places) else str(number)
    return f"{part}/{name}" if part else name


def read(built: Built, arrays: Mapping[str, np.ndarray], kind: str = "") -> Arrays:
    """Keras's arrays as a layer has them; what it does not have keeps its name.

    Parameters
    ----------
    built : Built
        The layer.
    arrays : mapping of str to ndarray
        By Keras's names, those of a part of the layer after it and a slash.
    kind : str
        What the layer is in Keras, where that is known.

    Raises
    ------
    ValueError
        If it is a layer of another kind.
    """
    layer = built.layer
    if kind in KINDS and type(layer) not in KINDS[kind]:
        raise ValueError(f"of the kind {kind}, not a {type(layer).__name__}")
    found: Arrays = {}
    for name, array in arrays.items():
        *parts, last = name.split("/")
        # The cell within a layer says nothing, its direction does
        part = next((_part(each) for each in parts if _part(each)), "")
        found[f"{part}/{last}" if part else last] = np.asarray(array)
    if isinstance(layer, Bidirectional):
        return _both_ways(layer, found)
    if isinstance(layer, (MultiHeadAttention, CrossAttention)):
        return _attention(layer, found)
    found = {_NAMES.get(name, name): array for name, array in found.items()}
    if isinstance(layer, GRU):
        return _gru(found)
    if isinstance(layer, DepthwiseConv2D) and "W" in found and found["W"].ndim == 4:
        W = found["W"]
        found["W"] = W.reshape(*W.shape[:2], 1, -1)
    return found


def is_part(name: str) -> bool:
    """Whether something with weights is part of a layer, by its name."""
    return bool(_part(name)) or name.endswith("cell")


def _part(name: str) -> str:
    """What a part of a layer is called here, or nothing."""
    if name.startswith(("forward_", "backward_")):  # and the name of the layer within
        return name.partition("_")[0]
    return _PARTS.get(name, "")


def _both_ways(layer: Bidirectional, found: Arrays) -> Arrays:
    result: Arrays = {}
    for direction in ("forward", "backward"):
        of_this = {name.rpartition("/")[2]: a for name, a in found.items() if name.startswith(f"{direction}/")}
        own = {_NAMES.get(name, name): array for name, array in of_this.items()}
        if isinstance(layer.layer, GRU):
            own = _gru(own)
        result |= {f"{direction}_{name}": array for name, array in own.items()}
    return result


def _gru(found: Arrays) -> Arrays:
    """Keras has update before reset, and both biases in one array where reset comes after the product."""
    if "b" in found and found["b"].ndim == 2:
        found["b"], found["c"] = found["b"]
    for name in ("W", "U", "b", "c"):
        if name in found:
            update, reset, new = np.split(found[name], 3, axis=-1)
            found[name] = np.concatenate([reset, update, new], axis=-1)
    return found


def _attention(layer: MultiHeadAttention | CrossAttention, found: Arrays) -> Arrays:
    """Keras has an axis for the heads."""
    result: Arrays = {}
    groups = {"qkv": "query key value"} if isinstance(layer, MultiHeadAttention) else {"q": "query", "kv": "key value"}
    for theirs, ours in (("kernel", "W"), ("bias", "b")):
        for suffix, parts in groups.items():
            arrays = [found.pop(f"{part}/{theirs}", None) for part in parts.split()]
            if all(a is not None for a in arrays):
                flat = [a.reshape(-1) if ours == "b" else a.reshape(len(a), -1) for a in arrays if a is not None]
                result[f"{ours}_{suffix}"] = np.concatenate(flat, axis=-1)
        out = found.pop(f"output/{theirs}", None)
        if out is not None:
            result[f"{ours}_out"] = out if ours == "b" else out.reshape(-1, out.shape[-1])
    return result | found
