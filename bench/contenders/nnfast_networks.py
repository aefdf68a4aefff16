"""The layers of a network as nnfast's."""

from __future__ import annotations

from collections.abc import Sequence

import nnfast as nf

from .. import networks
from ..networks import LayerSpec, Network

__all__ = ["layers_of"]


def layers_of(network: Network) -> list[nf.Layer]:
    """A layer for each."""
    return _layers(network.layers, network.kind == "images")


def _layers(specs: Sequence[LayerSpec], images: bool) -> list[nf.Layer]:
    return [_layer(spec, images) for spec in specs]


def _layer(spec: LayerSpec, images: bool) -> nf.Layer:
    match spec:
        case networks.Dense():
            return nf.Dense(spec.units)
        case networks.Conv(filters=0):
            return nf.DepthwiseConv2D(spec.size, spec.activation, padding="same", bias=spec.bias)
        case networks.Conv():
            return nf.Conv2D(spec.filters, spec.size, spec.activation, padding="same", bias=spec.bias)
        case networks.Recurrent(kind="lstm"):
            return nf.LSTM(spec.units)
        case networks.Recurrent():
            return nf.GRU(spec.units)
        case networks.TransformerBlock():
            return nf.TransformerBlock(spec.heads, spec.hidden)
        case networks.Residual():
            return nf.Residual(_layers(spec.inner, images))
        case networks.MaxPool():
            return nf.MaxPool2D(2)
        case networks.GlobalAvgPool():
            return nf.GlobalAvgPool2D() if images else nf.GlobalAvgPool1D()
        case networks.Norm():
            return nf.BatchNorm()
        case networks.Relu():
            return nf.Activation("relu")
        case networks.Flatten():
            return nf.Flatten()
    raise TypeError(f"nnfast has no {spec.describe()} here")
