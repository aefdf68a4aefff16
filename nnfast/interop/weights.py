"""Weights of another library's layers, matched with a model's layers in their order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..layers.graph import Built
from ..network import Network

__all__ = ["ForeignLayer", "arranged", "by_name", "load", "with_weights"]


@dataclass(frozen=True)
class ForeignLayer:
    """One layer's arrays, named and laid out as nnfast's layers have them.

    Attributes
    ----------
    name : str
        What the other library calls the layer; for messages.
    arrays : dict of str to ndarray
        By the names of nnfast's layer: ``W`` (inputs, outputs) and ``b``; ``gamma``, ``beta``; ``running_mean``,
        ``running_var``.
    """

    name: str
    arrays: dict[str, np.ndarray]


def with_weights(model: Network) -> list[Built]:
    """The layers of a built model that have parameters or buffers."""
    return [b for b in model.built if any(spec.kind in ("param", "buffer") for spec in b.specs)]


def by_name(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts names with numbers in them by these: ``fc2`` before ``fc10``."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name) if part]


def arranged(model: Network, layers: Sequence[ForeignLayer]) -> list[ForeignLayer]:
    """`layers`, whose order says nothing, in that of the model's layers which they fit.

    Of several that fit the first by name is taken. What fits nowhere comes last.
    """
    rest = sorted(layers, key=lambda layer: by_name(layer.name))
    result = []
    for built in with_weights(model):
        expected = {s.name: s.shape for s in built.specs if s.kind in ("param", "buffer")}
        fitting = [layer for layer in rest if {k: v.shape for k, v in layer.arrays.items()} == expected]
        if fitting:
            result.append(fitting[0])
            rest = [layer for layer in rest if layer is not fitting[0]]
    return [*result, *rest]


def load(model: Network, layers: Sequence[ForeignLayer], source: str) -> None:
    """Write all weights of `model`, layer by layer, or, if anything does not fit, none of them.

    Raises
    ------
    ValueError
        If the number of layers, an array's presence or its shape differs, or a value is not finite.
    """
    own = with_weights(model)
    if len(own) != len(layers):
        raise ValueError(
            f"the model has {len(own)} layers with weights ({', '.join(b.name for b in own)}), {source} has "
            f"{len(layers)} ({', '.join(layer.name for layer in layers)})"
        )
    values: dict[str, np.ndarray] = {}
    for built, layer in zip(own, layers, strict=True):
        expected = {s.name: s.shape for s in built.specs if s.kind in ("param", "buffer")}
        where = f"{layer.name!r} of {source} does not fit layer {built.name}, {built.layer!r}"
        missing, unknown = sorted(expected.keys() - layer.arrays.keys()), sorted(layer.arrays.keys() - expected.keys())
        if missing or unknown:
            raise ValueError(f"{where}: missing {missing}, unknown {unknown}")
        for name, shape in expected.items():
            array = layer.arrays[name]
            if array.shape != shape:
                raise ValueError(f"{where}: its {name} has shape {array.shape}, expected {shape}")
            values[f"{built.name}.{name}"] = array
    model.set_weights(values)
