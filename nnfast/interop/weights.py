"""Weights of another library's layers, matched with a model's layers in their order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..layers.graph import Built
from ..network import Network

__all__ = ["ForeignLayer", "arranged", "by_name", "load", "with_weights"]


@dataclass(frozen=True)
class ForeignLayer:
    """One layer's arrays, as the other library has them.

    Attributes
    ----------
    name : str
        What the other library calls the layer; for messages.
    arrays : dict of str to ndarray
        By the other library's names.
    read : callable
        From a node and `arrays` to the arrays by the names and in the layout of the node's layer; those that it does
        not have keep their names.
    """

    name: str
    arrays: dict[str, np.ndarray]
    read: Callable[[Built, dict[str, np.ndarray]], dict[str, np.ndarray]]

    def for_layer(self, built: Built) -> dict[str, np.ndarray]:
        """The arrays as a layer has them."""
        return self.read(built, self.arrays)

    def fits(self, built: Built) -> bool:
        """Whether these are the arrays of a layer, by their names and shapes."""
        try:
            return {name: array.shape for name, array in self.for_layer(built).items()} == _shapes(built)
        except ValueError:
            return False


def _shapes(built: Built) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in built.specs if spec.kind in ("param", "buffer")}


def with_weights(model: Network) -> list[Built]:
    """The layers of a built model that have parameters, each one once."""
    return [b for b in model.built if b.has_parameters and b.owner == b.index]


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
        fitting = [layer for layer in rest if layer.fits(built)]
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
    values = model.get_weights()  # for buffers that are the same in every model
    for built, layer in zip(own, layers, strict=True):
        expected = _shapes(built)
        where = f"{layer.name!r} of {source} does not fit layer {built.name}, {built.layer!r}"
        try:
            arrays = layer.for_layer(built)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        missing, unknown = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
        if missing or unknown:
            raise ValueError(f"{where}: missing {missing}, unknown {unknown}")
        for name, shape in expected.items():
            array = arrays[name]
            if array.shape != shape:
                raise ValueError(f"{where}: its {name} has shape {array.shape}, expected {shape}")
            values[f"{built.name}.{name}"] = array
    model.set_weights(values)
