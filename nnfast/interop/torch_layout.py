"""Where PyTorch has the channels: first in images, and so in what they are flattened to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ..layers import (
    Activation,
    Add,
    AvgPool2D,
    BatchNorm,
    Concat,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    GroupNorm,
    Layer,
    LayerNorm,
    MaxPool1D,
    MaxPool2D,
    RMSNorm,
    SpatialDropout,
    UpSampling2D,
    ZeroPadding2D,
)
from ..layers.convolution import ConvolutionLayer
from ..layers.graph import Built

__all__ = ["FIRST", "LAST", "Layout", "Place", "places"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Of a value in PyTorch.

    Attributes
    ----------
    first : bool
        Whether the channels come first.
    flat : tuple of int or None
        Shape, in nnfast, of the image that was flattened with its channels first to a row.
    """

    first: bool = False
    flat: Shape | None = None

    @property
    def order(self) -> np.ndarray | None:
        """Which feature of nnfast's row each one of PyTorch's is, where they differ."""
        if self.flat is None:
            return None
        return np.moveaxis(np.arange(prod(self.flat)).reshape(self.flat), -1, 0).ravel()


FIRST, LAST = Layout(True), Layout()


@dataclass(frozen=True)
class Place:
    """A node, with what the layouts around it are.

    Attributes
    ----------
    built : Built
    given : tuple of Layout
        Of the inputs, as what comes before gives them.
    taken : Layout
        What the inputs have to be brought to.
    out : Layout
    """

    built: Built
    given: tuple[Layout, ...]
    taken: Layout
    out: Layout


# What has the channels first wherever there is something beside them, and what does not care
_POOLING = (AvgPool2D, GlobalAvgPool1D, GlobalAvgPool2D, GlobalMaxPool1D, GlobalMaxPool2D, MaxPool1D, MaxPool2D)
_SPATIAL = (ConvolutionLayer, *_POOLING, ZeroPadding2D, UpSampling2D, GroupNorm, SpatialDropout, BatchNorm)
_EITHER: tuple[type[Layer], ...] = (Activation, Add, Concat, Dropout)
# What takes a row's features in any order, if the weights follow
_REORDERED = (Activation, Dropout, BatchNorm, LayerNorm, RMSNorm, Dense)


def places(built: Sequence[Built]) -> list[Place]:
    """The nodes of a model with the layouts that their values have in PyTorch."""
    inputs = FIRST if _begins_with_images(built) else LAST
    uses = [node.owner for node in built]
    found: list[Place] = []
    for node in built:
        given = tuple(found[i].out if i >= 0 else inputs for i in node.inputs)
        shared = uses.count(node.owner) > 1
        taken = _taken(node, given, shared)
        found.append(Place(node, given, taken, _out(node, taken)))
    return found


def _wants_first(node: Built) -> bool:
    return isinstance(node.layer, _SPATIAL) and len(node.in_shape) > 1


def _begins_with_images(built: Sequence[Built]) -> bool:
    """Whether the first layer to care wants the channels first."""
    same = {-1}  # the input, and what is laid out like it
    for node in built:
        if same.isdisjoint(node.inputs):
            continue
        if _wants_first(node):
            return True
        if not isinstance(node.layer, _EITHER):
            return False
        same.add(node.index)
    return False


def _taken(node: Built, given: tuple[Layout, ...], shared: bool) -> Layout:
    if _wants_first(node):
        return FIRST
    alike = len(set(given)) == 1
    if alike and given[0].first and isinstance(node.layer, (*_EITHER, Flatten)):
        return FIRST
    if alike and given[0].flat and not shared and isinstance(node.layer, _REORDERED):
        return given[0]
    return LAST


def _out(node: Built, taken: Layout) -> Layout:
    if isinstance(node.layer, Flatten):
        apart = taken.first and prod(node.in_shape[:-1]) > 1
        return Layout(flat=node.in_shape) if apart else LAST
    if isinstance(node.layer, Dense):
        return LAST
    return taken if len(node.out_shape) > 1 or taken.flat else LAST
