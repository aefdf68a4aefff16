"""Layers as PyTorch's modules. Importing this imports PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import torch
from torch import nn

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
from ..layers.attention import ROTARY_BASE
from ..layers.windows import spread, window_on
from ..window import Window
from . import torch_parts as parts
from .torch_activations import activation_module
from .torch_layout import Place
from .torch_weights import written

__all__ = ["MODULES", "modules_of"]

Own = dict[str, np.ndarray]


def modules_of(place: Place, own: Own) -> list[nn.Module]:
    """What a layer is in PyTorch, with its weights in it: modules one after the other.

    Raises
    ------
    ValueError
        If PyTorch has no such layer.
    """
    layer = place.built.layer
    made = MODULES[type(layer)](place, own)
    if own and not isinstance(layer, PositionalEmbedding):
        holder = next(module for module in made if module.state_dict())
        target = holder.rnn if isinstance(holder, parts.Sequences) else holder
        arrays = written(place.built, own, place.taken.order)
        state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        target.to(next(iter(state.values())).dtype)
        # What nnfast does not have, such as a count of batches, stays as it is
        target.load_state_dict({**target.state_dict(), **state})
    activation = getattr(layer, "activation", None)
    if activation is not None and activation.name != "identity" and not isinstance(layer, SimpleRNN):
        made.append(activation_module(activation, 1 if place.taken.first else -1))
    return made or [nn.Identity()]


# ---- images ----------------------------------------------------------------------------------------------
def _sides(window: Window, axes: int) -> list[int]:
    """Padding as ``functional.pad`` takes it: the last axis first."""
    return [side for pair in reversed(window.padding[-axes:]) for side in pair]


def _even(window: Window, axes: int) -> tuple[int, ...] | None:
    """Padding that is the same on both sides of each axis."""
    pairs = window.padding[-axes:]
    return tuple(pair[0] for pair in pairs) if all(pair[0] == pair[1] for pair in pairs) else None


def _kind(name: str, axes: int) -> Any:
    return getattr(nn, f"{name}{axes}d")


def _convolution(place: Place, own: Own) -> list[nn.Module]:
    layer: Any = place.built.layer
    axes = layer.axes
    *spatial, channels = place.built.in_shape
    window = window_on(tuple(spatial), layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    outputs, inputs = own["W"].shape[-1], own["W"].shape[-2]
    even = _even(window, axes)
    convolution = _kind("Conv", axes)(
        channels, outputs, window.size[-axes:], stride=window.stride[-axes:], dilation=window.dilation[-axes:],
        padding=0 if even is None else even, groups=channels // inputs, bias=layer.bias,
    )  # fmt: skip
    before = [] if even is not None else [_kind("ZeroPad", axes)(tuple(_sides(window, axes)))]
    return [*before, convolution]


def _transposed(place: Place, own: Own) -> list[nn.Module]:
    layer: Any = place.built.layer
    *spatial, channels = place.built.in_shape
    sizes, window = layer.output_and_window(tuple(spatial))
    cuts = window.padding
    both = tuple(min(cut) for cut in cuts)
    more = tuple(
        out - ((n - 1) * stride + extent - sum(cut))
        for out, n, stride, extent, cut in zip(sizes, spatial, window.stride, window.extent, cuts, strict=True)
    )
    options: dict[str, Any] = {"padding": both, "output_padding": more, "dilation": window.dilation}
    made: list[nn.Module] = [
        nn.ConvTranspose2d(
            channels, layer.filters, window.size, window.stride, groups=layer.groups, bias=layer.bias, **options
        )
    ]
    rest: Any = [side - least for cut, least in zip(reversed(cuts), reversed(both), strict=True) for side in cut]
    if any(rest):
        made.append(nn.ZeroPad2d(tuple(-side for side in rest)))
    return made


def _pooling(place: Place) -> tuple[Window, int, tuple[int, ...] | None]:
    """The window, the number of axes, and the padding where PyTorch's own modules can do it."""
    layer: Any = place.built.layer
    stride = layer.size if layer.stride is None else layer.stride
    window = window_on(place.built.in_shape[:-1], layer.size, stride, layer.padding)
    even = _even(window, layer.axes)
    if even is not None and any(2 * side > n for side, n in zip(even, window.size[-layer.axes :], strict=True)):
        even = None
    return window, layer.axes, even


def _max_pool(place: Place, own: Own) -> list[nn.Module]:
    window, axes, even = _pooling(place)
    pool = _kind("MaxPool", axes)(window.size[-axes:], window.stride[-axes:], 0 if even is None else even)
    return [pool] if even is not None else [_kind("ConstantPad", axes)(tuple(_sides(window, axes)), -inf), pool]


def _avg_pool(place: Place, own: Own) -> list[nn.Module]:
    window, axes, even = _pooling(place)
    counted = bool(place.built.layer.count_padding)  # type: ignore[attr-defined]
    sizes = window.size[-axes:], window.stride[-axes:]
    if even is not None:
        return [_kind("AvgPool", axes)(*sizes, even, count_include_pad=counted)]
    pool, sides = _kind("AvgPool", axes)(*sizes), _sides(window, axes)
    return [_kind("ZeroPad", axes)(tuple(sides)), pool] if counted else [parts.MeanOfPixels(pool, sides)]


def _global(name: str, axes: int) -> Callable[[Place, Own], list[nn.Module]]:
    return lambda place, own: [_kind(name, axes)(1), nn.Flatten()]


def _zero_padding(place: Place, own: Own) -> list[nn.Module]:
    layer: Any = place.built.layer
    window = window_on((1,) * layer.axes, 1, padding=layer.padding)
    return [_kind("ZeroPad", layer.axes)(tuple(_sides(window, layer.axes)))]


def _upsampling(place: Place, own: Own) -> list[nn.Module]:
    layer: Any = place.built.layer
    # Modes have the names of interpolations
    return [nn.Upsample(scale_factor=tuple(map(float, spread(layer.size, layer.axes))), mode=layer.interpolation)]


def _batch_norm(place: Place, own: Own) -> list[nn.Module]:
    layer: Any = place.built.layer
    axes = max(len(place.built.in_shape) - 1, 1)
    if axes > 3:
        raise ValueError(f"PyTorch's BatchNorm takes up to three axes beside the channels, not {axes}")
    return [_kind("BatchNorm", axes)(len(own["gamma"]), eps=layer.eps, momentum=layer.momentum)]


def _spatial_dropout(place: Place, own: Own) -> list[nn.Module]:
    layer: Any = place.built.layer
    axes = len(place.built.in_shape) - 1
    return [nn.Dropout(layer.rate) if axes < 1 else _kind("Dropout", min(axes, 3))(layer.rate)]


# ---- others ----------------------------------------------------------------------------------------------
def _dense(place: Place, own: Own) -> list[nn.Module]:
    inputs, outputs = own["W"].shape
    return [nn.Linear(inputs, outputs, bias="b" in own)]


def _reshape(place: Place, own: Own) -> list[nn.Module]:
    flatten: list[nn.Module] = [] if len(place.built.in_shape) == 1 else [nn.Flatten()]
    out = place.built.out_shape
    return flatten if len(out) == 1 else [*flatten, nn.Unflatten(1, out)]


def _positional(place: Place, own: Own) -> list[nn.Module]:
    layer: Any = place.built.layer
    return [parts.Positions(torch.from_numpy(own["P"].copy()), layer.kind == "learned")]


def _recurrent(place: Place, own: Own) -> list[nn.Module]:
    outer: Any = place.built.layer
    layer: Any = outer.layer if isinstance(outer, Bidirectional) else outer
    kind = {SimpleRNN: nn.RNN, GRU: nn.GRU, LSTM: nn.LSTM}[type(layer)]
    more = {"nonlinearity": layer.activation.name} if kind is nn.RNN else {}
    both = isinstance(outer, Bidirectional)
    rnn = kind(place.built.in_shape[-1], layer.units, bias=layer.bias, batch_first=True, bidirectional=both, **more)
    merge = {"merge": outer.merge} if both else {}
    return [parts.Sequences(rnn, every=layer.return_sequences, reverse=layer.reverse, **merge)]


def _attention(place: Place, own: Own) -> list[nn.Module]:
    layer: Any = place.built.layer
    shapes = place.built.in_shapes
    sizes = shapes[0][-1], shapes[-1][-1], *own["W_out"].shape
    if isinstance(layer, CrossAttention):
        return [parts.Attention(sizes, layer.heads, bias=layer.bias)]
    base = None if not layer.rotary else ROTARY_BASE if layer.rotary is True else float(layer.rotary)
    return [parts.Attention(sizes, layer.heads, bias=layer.bias, causal=layer.causal, base=base)]


def _one(make: Callable[[Any, Place], nn.Module]) -> Callable[[Place, Own], list[nn.Module]]:
    """What is one module, from the layer and its place."""
    return lambda place, own: [make(place.built.layer, place)]


MODULES: dict[type[Layer], Callable[[Place, Own], list[nn.Module]]] = {
    Activation: lambda place, own: [],
    Add: lambda place, own: [],
    AvgPool1D: _avg_pool,
    AvgPool2D: _avg_pool,
    BatchNorm: _batch_norm,
    Bidirectional: _recurrent,
    Concat: lambda place, own: [],
    Conv1D: _convolution,
    Conv2D: _convolution,
    Conv2DTranspose: _transposed,
    CrossAttention: _attention,
    Dense: _dense,
    DepthwiseConv2D: _convolution,
    Dropout: _one(lambda layer, place: nn.Dropout(layer.rate)),
    Embedding: _one(lambda layer, place: nn.Embedding(layer.vocabulary, layer.features)),
    Flatten: _one(lambda layer, place: nn.Flatten()),
    GRU: _recurrent,
    GlobalAvgPool1D: _global("AdaptiveAvgPool", 1),
    GlobalAvgPool2D: _global("AdaptiveAvgPool", 2),
    GlobalMaxPool1D: _global("AdaptiveMaxPool", 1),
    GlobalMaxPool2D: _global("AdaptiveMaxPool", 2),
    GroupNorm: _one(lambda layer, place: nn.GroupNorm(layer.groups, place.built.in_shape[-1], eps=layer.eps)),
    LSTM: _recurrent,
    LayerNorm: _one(lambda layer, place: nn.LayerNorm(place.built.in_shape[-1], eps=layer.eps)),
    Masking: _one(lambda layer, place: parts.Masking(layer.value)),
    MaxPool1D: _max_pool,
    MaxPool2D: _max_pool,
    MultiHeadAttention: _attention,
    PositionalEmbedding: _positional,
    RMSNorm: _one(lambda layer, place: nn.RMSNorm(place.built.in_shape[-1], eps=layer.eps)),
    Reshape: _reshape,
    SimpleRNN: _recurrent,
    SpatialDropout: _spatial_dropout,
    UpSampling1D: _upsampling,
    UpSampling2D: _upsampling,
    ZeroPadding1D: _zero_padding,
    ZeroPadding2D: _zero_padding,
}
