"""Layers as ONNX nodes: each function adds what a layer computes, and returns the result's name."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from ..layers import (
    GRU,
    LSTM,
    Activation,
    Add,
    AvgPool1D,
    AvgPool2D,
    BatchNorm,
    Bidirectional,
    Concat,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    CrossAttention,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    GroupNorm,
    Layer,
    LayerNorm,
    Masking,
    MaxPool1D,
    MaxPool2D,
    MultiHeadAttention,
    PositionalEmbedding,
    Reshape,
    RMSNorm,
    SimpleRNN,
    SpatialDropout,
    UpSampling1D,
    UpSampling2D,
    ZeroPadding1D,
    ZeroPadding2D,
)
from . import onnx_attention, onnx_recurrent, onnx_spatial
from .onnx_graph import Node, activation, elementwise

__all__ = ["EMITTERS"]


def _dense(node: Node) -> str:
    g, W = node.g, node.weight("W")
    if node.rank == 1:
        z = g.node("Gemm", node.x, W, *([node.weight("b")] if node.layer.bias else []))
    else:
        z = g.node("MatMul", node.x, W)
        if node.layer.bias:
            z = g.node("Add", z, node.weight("b"))
    return activation(g, z, node.layer.activation)


def _layer_norm(node: Node) -> str:
    gamma, beta = node.weight("gamma"), node.weight("beta")
    return node.g.node("LayerNormalization", node.x, gamma, beta, axis=-1, epsilon=node.layer.eps)


def _rms_norm(node: Node) -> str:
    g, x = node.g, node.x
    mean = g.reduce("ReduceMean", g.node("Mul", x, x), -1, 1)
    root = g.node("Sqrt", g.node("Add", mean, g.number(node.layer.eps)))
    return g.node("Mul", g.node("Div", x, root), node.weight("gamma"))


def _batch_norm(node: Node) -> str:
    g, own = node.g, node.weights
    if node.rank == 1 or g.has_channels_first(node.x):
        names = ("gamma", "beta", "running_mean", "running_var")
        x = g.channels_first(node.x, node.rank)
        y = g.node("BatchNormalization", x, *map(node.weight, names), epsilon=node.layer.eps)
        return g.channels_last(y, node.rank)
    # ONNX has the features on the second axis, nnfast on the last: as a line
    slope = own["gamma"] / np.sqrt(own["running_var"] + np.float32(node.layer.eps))
    scaled = g.node("Mul", node.x, g.constant(slope, "scale"))
    return g.node("Add", scaled, g.constant(own["beta"] - own["running_mean"] * slope, "shift"))


def _add(node: Node) -> str:
    g = node.g
    if not all(map(g.has_channels_first, node.inputs)):
        return g.node("Sum", *node.inputs)
    return g.channels_last(g.node("Sum", *(g.channels_first(x, node.rank) for x in node.inputs)), node.rank)


def _concat(node: Node) -> str:
    g = node.g
    if not all(map(g.has_channels_first, node.inputs)):
        return g.node("Concat", *node.inputs, axis=-1)
    parts = (g.channels_first(x, node.rank) for x in node.inputs)
    return g.channels_last(g.node("Concat", *parts, axis=1), node.rank)


def _flatten(node: Node) -> str:
    return node.g.node("Flatten", node.x, axis=1)


def _reshape(node: Node) -> str:
    assert prod(node.built.out_shape) == prod(node.built.in_shape)
    return node.g.reshape(node.x, *node.built.out_shape)


def _embedding(node: Node) -> str:
    g = node.g
    if node.layer.mask_zero:
        zero = g.node("Equal", node.x, g.constant(np.int64(0)))
        node.out_mask = g.node("Cast", g.node("Not", zero), to=g.float_type)
    return g.node("Gather", node.weight("W"), node.x, axis=0)


def _masking(node: Node) -> str:
    g = node.g
    padding = g.node("Equal", node.x, g.number(node.layer.value))
    differs = g.node("Cast", g.node("Not", padding), to=g.float_type)
    node.out_mask = g.reduce("ReduceMax", differs, -1, 0)
    return g.node("Mul", node.x, g.unsqueeze(node.out_mask, 2))


def _positions(node: Node) -> str:
    steps = node.built.in_shape[0]
    return node.g.node("Add", node.x, node.g.constant(node.weights["P"][:steps], "P"))


def _nothing(node: Node) -> str:
    return node.x


EMITTERS: dict[type[Layer], Callable[[Node], str]] = {
    Activation: lambda node: elementwise(node.g, node.x, node.layer.activation, node.rank),
    Add: _add,
    BatchNorm: _batch_norm,
    Concat: _concat,
    Dense: _dense,
    Dropout: _nothing,
    Embedding: _embedding,
    Flatten: _flatten,
    LayerNorm: _layer_norm,
    Masking: _masking,
    PositionalEmbedding: _positions,
    RMSNorm: _rms_norm,
    Reshape: _reshape,
    SpatialDropout: _nothing,
    # Images
    AvgPool1D: onnx_spatial.average,
    AvgPool2D: onnx_spatial.average,
    Conv1D: onnx_spatial.convolution,
    Conv2D: onnx_spatial.convolution,
    Conv2DTranspose: onnx_spatial.transposed_convolution,
    DepthwiseConv2D: onnx_spatial.convolution,
    GlobalAvgPool1D: onnx_spatial.of_all("GlobalAveragePool"),
    GlobalAvgPool2D: onnx_spatial.of_all("GlobalAveragePool"),
    GlobalMaxPool1D: onnx_spatial.of_all("GlobalMaxPool"),
    GlobalMaxPool2D: onnx_spatial.of_all("GlobalMaxPool"),
    GroupNorm: onnx_spatial.group_norm,
    MaxPool1D: onnx_spatial.maximum,
    MaxPool2D: onnx_spatial.maximum,
    UpSampling1D: onnx_spatial.upsampling,
    UpSampling2D: onnx_spatial.upsampling,
    ZeroPadding1D: onnx_spatial.zero_padding,
    ZeroPadding2D: onnx_spatial.zero_padding,
    # Sequences
    Bidirectional: onnx_recurrent.bidirectional,
    CrossAttention: onnx_attention.cross_attention,
    GRU: onnx_recurrent.recurrent,
    LSTM: onnx_recurrent.recurrent,
    MultiHeadAttention: onnx_attention.self_attention,
    SimpleRNN: onnx_recurrent.recurrent,
}
