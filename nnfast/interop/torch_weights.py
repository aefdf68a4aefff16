"""The weights of PyTorch's modules, as nnfast's layers have them, and the way back. Needs no PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..layers import (
    GRU,
    LSTM,
    BatchNorm,
    Bidirectional,
    CrossAttention,
    Dense,
    Embedding,
    GroupNorm,
    LayerNorm,
    MultiHeadAttention,
    PositionalEmbedding,
    RMSNorm,
    SimpleRNN,
)
from ..layers.convolution import ConvolutionLayer
from ..layers.graph import Built

__all__ = ["grouped", "read", "written"]

Arrays = dict[str, np.ndarray]

_NORMS = (BatchNorm, GroupNorm, LayerNorm, RMSNorm)
# PyTorch's names for what nnfast calls ...; num_batches_tracked is a count that nothing here needs
_OF_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
_IGNORED = ("num_batches_tracked",)

# Those of one direction of one layer of a recurrent module
_RECURRENT = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)(_reverse)?$")


def grouped(state: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    """The arrays of a state dict by layers, in the order of their first appearance.

    Each layer of a recurrent module is one on its own, with names as those of the first; attention is one with the
    linear module inside of it.
    """
    groups: dict[str, Arrays] = {}
    for key, array in state.items():
        prefix, _, name = key.rpartition(".")
        if name in _IGNORED:
            continue
        if match := _RECURRENT.match(name):
            kind, layer, direction = match.groups()
            if layer != "0":
                prefix = f"{prefix}[{layer}]"
            name = f"{kind}_l0{direction or ''}"
        outer, _, last = prefix.rpartition(".")
        if last == "out_proj" and any("in_proj" in each or "q_proj" in each for each in groups.get(outer, ())):
            prefix, name = outer, f"out_proj.{name}"
        groups.setdefault(prefix, {})[name] = array
    return groups


# ---- in --------------------------------------------------------------------------------------------------
def read(built: Built, arrays: Arrays, order: np.ndarray | None = None) -> Arrays:
    """PyTorch's arrays as a layer has them; what it does not have keeps its name.

    Parameters
    ----------
    built : Built
        The layer.
    arrays : dict of str to ndarray
        By PyTorch's names.
    order : ndarray, optional
        Which feature of the layer's input each one of PyTorch's is.

    Raises
    ------
    ValueError
        If PyTorch has no such layer.
    """
    layer, found = built.layer, dict(arrays)
    if isinstance(layer, _NORMS):
        found = {_OF_NORM.get(name, name): array for name, array in found.items()}
        return {name: _ordered(array, order) for name, array in found.items()}
    if isinstance(layer, (SimpleRNN, GRU, LSTM)):
        return _read_direction(layer, found, "", "")
    if isinstance(layer, Bidirectional):
        for suffix, prefix in _directions(layer):
            found = _read_direction(layer.layer, found, suffix, prefix)
        return found
    if isinstance(layer, (MultiHeadAttention, CrossAttention)):
        return _read_attention(layer, found)
    if isinstance(layer, PositionalEmbedding) and len(found) == 1:
        return {"P": next(iter(found.values()))}
    if isinstance(layer, Dense):
        _rename(found, "weight", "W", 2, lambda w: _ordered(w.T, order))
    elif isinstance(layer, Embedding):
        _rename(found, "weight", "W", 2, lambda w: w)
    elif isinstance(layer, ConvolutionLayer):
        _rename(found, "weight", "W", 2 + layer.axes, lambda w: np.moveaxis(w, (0, 1), (-1, -2)))
    _rename(found, "bias", "b", 1, lambda b: b)
    return found


def _rename(found: Arrays, theirs: str, ours: str, axes: int, change: Any) -> None:
    if theirs in found and found[theirs].ndim == axes:
        found[ours] = change(found.pop(theirs))


def _ordered(array: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """Rows in nnfast's order."""
    if order is None or len(array) != len(order):
        return array
    result = np.empty_like(array)
    result[order] = array
    return result


def _directions(layer: Bidirectional) -> list[tuple[str, str]]:
    """PyTorch's suffix and nnfast's prefix of each direction; in PyTorch the first one goes forward."""
    suffixes = ("_reverse", "") if layer.layer.reverse else ("", "_reverse")
    return list(zip(suffixes, ("forward_", "backward_"), strict=True))


def _read_direction(layer: Any, found: Arrays, suffix: str, prefix: str) -> Arrays:
    if isinstance(layer, GRU) and not layer.reset_after:
        raise ValueError("PyTorch's GRU resets after the product, as with reset_after=True")
    found = dict(found)
    for theirs, ours in (("weight_ih", "W"), ("weight_hh", "U")):
        _rename(found, f"{theirs}_l0{suffix}", prefix + ours, 2, np.transpose)
    one, other = (found.pop(f"{name}_l0{suffix}", None) for name in ("bias_ih", "bias_hh"))
    if one is not None and other is not None:
        if isinstance(layer, GRU):
            found |= {f"{prefix}b": one, f"{prefix}c": other}
        else:
            found[f"{prefix}b"] = one + other
    return found


def _read_attention(layer: Any, found: Arrays) -> Arrays:
    names = [f"{part}_proj_weight" for part in "qkv"]
    if all(name in found for name in names):  # where the inputs differ in size
        parts = [found.pop(name).T for name in names]
    elif "in_proj_weight" in found:
        parts = np.split(found.pop("in_proj_weight").T, 3, axis=1)
    else:
        parts = []
    biases = np.split(found.pop("in_proj_bias"), 3) if "in_proj_bias" in found else []
    for kind, pieces in (("W", parts), ("b", biases)):
        if pieces and isinstance(layer, CrossAttention):
            found |= {f"{kind}_q": pieces[0], f"{kind}_kv": np.concatenate(pieces[1:], axis=-1)}
        elif pieces:
            found[f"{kind}_qkv"] = np.concatenate(pieces, axis=-1)
    _rename(found, "out_proj.weight", "W_out", 2, np.transpose)
    _rename(found, "out_proj.bias", "b_out", 1, lambda b: b)
    return found


# ---- out -------------------------------------------------------------------------------------------------
def written(built: Built, own: Arrays, order: np.ndarray | None = None) -> Arrays:
    """The way back: a layer's arrays by PyTorch's names.

    Raises
    ------
    ValueError
        If PyTorch has no such layer.
    """
    layer = built.layer
    if isinstance(layer, _NORMS):
        arrays = {theirs: own[ours] for theirs, ours in _OF_NORM.items() if ours in own}
        return arrays if order is None else {name: array[order] for name, array in arrays.items()}
    if isinstance(layer, (SimpleRNN, GRU, LSTM)):
        return _written_direction(layer, own, "", "")
    if isinstance(layer, Bidirectional):
        directions = (_written_direction(layer.layer, own, *names) for names in _directions(layer))
        return {name: array for arrays in directions for name, array in arrays.items()}
    if isinstance(layer, (MultiHeadAttention, CrossAttention)):
        return _written_attention(layer, own)
    if isinstance(layer, PositionalEmbedding):
        return dict(own)
    W = own["W"]
    if isinstance(layer, Dense):
        W = (W if order is None else W[order]).T
    elif isinstance(layer, ConvolutionLayer):
        W = np.moveaxis(W, (-1, -2), (0, 1))
    return {"weight": W} | ({"bias": own["b"]} if "b" in own else {})


def _written_direction(layer: Any, own: Arrays, suffix: str, prefix: str) -> Arrays:
    if isinstance(layer, GRU) and not layer.reset_after:
        raise ValueError("PyTorch's GRU resets after the product, as with reset_after=True")
    found = {f"weight_ih_l0{suffix}": own[f"{prefix}W"].T, f"weight_hh_l0{suffix}": own[f"{prefix}U"].T}
    if layer.bias:
        b = own[f"{prefix}b"]
        other = own.get(f"{prefix}c", np.zeros_like(b))
        found |= {f"bias_ih_l0{suffix}": b, f"bias_hh_l0{suffix}": other}
    return found


def _written_attention(layer: Any, own: Arrays) -> Arrays:
    found: Arrays = {}
    if isinstance(layer, MultiHeadAttention):
        found["in_proj_weight"] = own["W_qkv"].T
    elif own["W_q"].shape[0] == own["W_kv"].shape[0]:
        found["in_proj_weight"] = np.concatenate([own["W_q"], own["W_kv"]], axis=1).T
    else:
        parts = (own["W_q"], *np.split(own["W_kv"], 2, axis=1))
        found |= {f"{name}_proj_weight": part.T for name, part in zip("qkv", parts, strict=True)}
    if layer.bias:
        both = isinstance(layer, MultiHeadAttention)
        found["in_proj_bias"] = own["b_qkv"] if both else np.concatenate([own["b_q"], own["b_kv"]])
    found["out_proj.weight"] = own["W_out"].T
    if layer.bias:
        found["out_proj.bias"] = own["b_out"]
    return found
