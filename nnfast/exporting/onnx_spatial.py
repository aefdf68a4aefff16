"""Layers of images, and of sequences with windows, as ONNX nodes, which have the channels first."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from ..layers.windows import spread, window_on
from ..window import Window
from .onnx_graph import Graph, Node, elementwise

__all__ = [
    "average",
    "convolution",
    "group_norm",
    "maximum",
    "of_all",
    "transposed_convolution",
    "upsampling",
    "zero_padding",
]


def _attributes(window: Window, axes: int) -> dict[str, Any]:
    """A window as ONNX's operators have it, without the height where a sequence has none."""
    pads = window.padding[-axes:]
    return {
        "kernel_shape": window.size[-axes:],
        "strides": window.stride[-axes:],
        "pads": [side[0] for side in pads] + [side[1] for side in pads],
    }


def _kernel(W: np.ndarray) -> np.ndarray:
    """(*sizes, inputs, outputs) as (outputs, inputs, *sizes)."""
    return np.ascontiguousarray(np.moveaxis(W, (-1, -2), (0, 1)))


def _bias(node: Node) -> list[str]:
    return [node.weight("b")] if node.layer.bias else []


def convolution(node: Node) -> str:
    """Conv."""
    g, layer, axes = node.g, node.layer, node.layer.axes
    *spatial, channels = node.built.in_shape
    window = window_on(tuple(spatial), layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    y = g.node(
        "Conv",
        g.channels_first(node.x, node.rank),
        g.constant(_kernel(node.weights["W"]), "W"),
        *_bias(node),
        dilations=window.dilation[-axes:],
        group=channels // node.weights["W"].shape[-2],
        **_attributes(window, axes),
    )
    return elementwise(g, g.channels_last(y, node.rank), layer.activation, node.rank)


def transposed_convolution(node: Node) -> str:
    """ConvTranspose."""
    g, layer = node.g, node.layer
    *spatial, _ = node.built.in_shape
    sizes, window = layer.output_and_window(tuple(spatial))
    more = [
        out - ((n - 1) * stride + extent - sum(cut))
        for out, n, stride, extent, cut in zip(
            sizes, spatial, window.stride, window.extent, window.padding, strict=True
        )
    ]
    y = g.node(
        "ConvTranspose",
        g.channels_first(node.x, 3),
        g.constant(_kernel(node.weights["W"]), "W"),
        *_bias(node),
        dilations=window.dilation,
        group=layer.groups,
        output_padding=more,
        **_attributes(window, 2),
    )
    return elementwise(g, g.channels_last(y, 3), layer.activation, 3)


def _pooled(node: Node, op: str, **attributes: Any) -> str:
    g, layer = node.g, node.layer
    window = window_on(
        node.built.in_shape[:-1], layer.size, layer.size if layer.stride is None else layer.stride, layer.padding
    )
    x = g.channels_first(node.x, node.rank)
    return g.channels_last(g.node(op, x, **_attributes(window, layer.axes), **attributes), node.rank)


def maximum(node: Node) -> str:
    """MaxPool."""
    return _pooled(node, "MaxPool")


def average(node: Node) -> str:
    """AveragePool."""
    return _pooled(node, "AveragePool", count_include_pad=int(node.layer.count_padding))


def of_all(op: str) -> Callable[[Node], str]:
    """What reduces each channel to a number."""

    def emit(node: Node) -> str:
        g = node.g
        if node.masks[0] is not None:
            return _MASKED[op](g, node.x, node.masks[0])
        return g.node("Flatten", g.node(op, g.channels_first(node.x, node.rank)), axis=1)

    return emit


def _there(g: Graph, x: str, mask: str, padding: float) -> str:
    """The steps of `x` that are there, and numbers in place of the others."""
    return g.node("Where", g.unsqueeze(g.node("Cast", mask, to=g.bool_type), 2), x, g.number(padding))


def _masked_mean(g: Graph, x: str, mask: str) -> str:
    steps = g.node("Max", g.reduce("ReduceSum", mask, 1, 1), g.number(1.0))
    return g.node("Div", g.reduce("ReduceSum", _there(g, x, mask, 0.0), 1, 0), steps)


def _masked_max(g: Graph, x: str, mask: str) -> str:
    largest = g.reduce("ReduceMax", _there(g, x, mask, -inf), 1, 0)
    some = g.node("Cast", g.reduce("ReduceMax", mask, 1, 1), to=g.bool_type)
    return g.node("Where", some, largest, g.number(0.0))


_MASKED = {"GlobalAveragePool": _masked_mean, "GlobalMaxPool": _masked_max}


def zero_padding(node: Node) -> str:
    """Pad."""
    g, axes = node.g, node.layer.axes
    sides = window_on((1,) * axes, 1, padding=node.layer.padding).padding[-axes:]
    pads = [0, 0, *(side[0] for side in sides), 0, 0, *(side[1] for side in sides)]
    x = g.channels_first(node.x, node.rank)
    return g.channels_last(g.node("Pad", x, g.constant(np.array(pads, np.int64), "pads")), node.rank)


def upsampling(node: Node) -> str:
    """Resize."""
    g, axes = node.g, node.layer.axes
    scales = g.constant(np.array([1, 1, *spread(node.layer.size, axes)], np.float32), "scales")
    x = g.channels_first(node.x, node.rank)
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if node.layer.interpolation != "nearest":
        options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return g.channels_last(g.node("Resize", x, "", scales, **options), node.rank)


def group_norm(node: Node) -> str:
    """InstanceNormalization of groups as channels: GroupNormalization changed its meaning between versions."""
    g, groups, rank = node.g, node.layer.groups, node.rank
    channels = node.built.in_shape[-1]
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    together = g.reshape(g.channels_first(node.x, rank), groups, -1)
    normed = g.node("InstanceNormalization", together, g.constant(ones), g.constant(zeros), epsilon=node.layer.eps)
    shape = (channels, *node.built.in_shape[:-1])
    y = g.reshape(normed, *shape)
    gamma, beta = (g.constant(node.weights[name].reshape(-1, *(1,) * (rank - 1)), name) for name in ("gamma", "beta"))
    return g.channels_last(g.node("Add", g.node("Mul", y, gamma), beta), rank)
