"""The layers of a network as PyTorch's, with the given weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import networks
from ..networks import LayerSpec, Network, Shape, along

__all__ = ["module_of"]


class _Attention(nn.Module):
    """Self-attention with the three products of the inputs in one, and the fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.outputs = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, steps, width = x.shape
        q, k, v = self.inputs(x).view(n, steps, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.outputs(y.transpose(1, 2).reshape(n, steps, width))


class _Residual(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + x


class _LastState(nn.Module):
    """nn.LSTM or nn.GRU, and of what it gives the last state."""

    def __init__(self, kind: str, inputs: int, units: int) -> None:
        super().__init__()
        self.inner = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](inputs, units, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0][:, -1]


class _Mean(nn.Module):
    """Over all axes but rows and channels."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(self.axes)


class _Permute(nn.Module):
    """A view with the axes in another order."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.axes)


def module_of(network: Network, weights: list[Any], dtype: torch.dtype, channels_last: bool) -> nn.Sequential:
    """The network.

    Parameters
    ----------
    network : Network
        What to make.
    weights : list of tuple
        As :func:`~nnfast.bench.workloads.initial_weights` gives them.
    dtype : torch.dtype
        Of the weights.
    channels_last : bool
        Whether images are in memory as (rows, height, width, channels), which is how they are passed then;
        otherwise they are passed as (rows, channels, height, width).
    """
    images = network.kind == "images"
    channels_last = channels_last and images
    builder = _Builder(images, channels_last)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        module = nn.Sequential(*builder.layers(network.layers, network.in_shape, weights))
    finally:
        torch.set_default_dtype(before)
    if channels_last:
        module = nn.Sequential(_Permute(0, 3, 1, 2), *module)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


class _Builder:
    def __init__(self, images: bool, channels_last: bool) -> None:
        self.images, self.channels_last = images, channels_last
        self.flattened: Shape | None = None  # what a dense layer's inputs were, if not in nnfast's order

    def layers(self, specs: tuple[LayerSpec, ...], shape: Shape, weights: Any) -> list[nn.Module]:
        return [
            module
            for (spec, at), arrays in zip(along(specs, shape), weights, strict=True)
            for module in self._layer(spec, at, arrays)
        ]

    def _layer(self, spec: LayerSpec, shape: Shape, arrays: Any) -> list[nn.Module]:
        match spec:
            case networks.Dense():
                W, b = arrays
                if self.flattened is not None:  # from height, width, channels to channels first
                    W = W.reshape(*self.flattened, -1).transpose(2, 0, 1, 3).reshape(W.shape)
                    self.flattened = None
                return [_linear(nn.Linear(*W.shape), W, b)]
            case networks.Conv():
                W, *b = arrays
                groups = 1 if spec.filters else shape[-1]
                conv = nn.Conv2d(shape[-1], W.shape[-1], spec.size, padding="same", groups=groups, bias=spec.bias)
                _fill(conv.weight, W.transpose(3, 2, 0, 1))
                if b:
                    _fill(conv.bias, b[0])
                return [conv, *([nn.ReLU(inplace=True)] if spec.activation == "relu" else [])]
            case networks.Recurrent():
                return [_recurrent(spec, shape[-1], arrays)]
            case networks.TransformerBlock():
                return _transformer_block(spec, shape[-1], arrays)
            case networks.Residual():
                return [_Residual(*self.layers(spec.inner, shape, arrays))]
            case networks.Norm():
                norm = nn.BatchNorm2d(shape[-1])
                _fill(norm.weight, arrays[0])
                _fill(norm.bias, arrays[1])
                return [norm]
            case networks.MaxPool():
                return [nn.MaxPool2d(2)]
            case networks.GlobalAvgPool():
                return [_Mean(2, 3) if self.images else _Mean(1)]
            case networks.Relu():
                return [nn.ReLU(inplace=True)]
            case networks.Flatten():
                if self.channels_last:  # a view
                    return [_Permute(0, 2, 3, 1), nn.Flatten()]
                self.flattened = shape
                return [nn.Flatten()]
        raise TypeError(f"PyTorch has no {spec.describe()} here")


def _fill(parameter: Any, array: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(array))


def _linear(layer: nn.Linear, W: np.ndarray, b: np.ndarray) -> nn.Linear:
    _fill(layer.weight, W.T)
    _fill(layer.bias, b)
    return layer


def _normed(gamma: np.ndarray, beta: np.ndarray) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(gamma))
    _fill(norm.weight, gamma)
    _fill(norm.bias, beta)
    return norm


def _recurrent(spec: networks.Recurrent, inputs: int, arrays: Any) -> nn.Module:
    """Its gates are in nnfast's order; an LSTM has two biases that are added, of which one is left at zero."""
    module = _LastState(spec.kind, inputs, spec.units)
    inner = module.inner
    W, U, b, *c = arrays
    _fill(inner.weight_ih_l0, W.T)
    _fill(inner.weight_hh_l0, U.T)
    _fill(inner.bias_ih_l0, b)
    _fill(inner.bias_hh_l0, c[0] if c else np.zeros_like(b))
    # Adam would make twice the step with both
    inner.bias_hh_l0.requires_grad_(bool(c))
    return module


def _transformer_block(spec: networks.TransformerBlock, width: int, arrays: Any) -> list[nn.Module]:
    gamma, beta, W_in, b_in, W_out, b_out, *rest = arrays
    attention = _Attention(width, spec.heads)
    _linear(attention.inputs, W_in, b_in)
    _linear(attention.outputs, W_out, b_out)
    gamma2, beta2, W1, b1, W2, b2 = rest
    hidden, outputs = _linear(nn.Linear(*W1.shape), W1, b1), _linear(nn.Linear(*W2.shape), W2, b2)
    return [
        _Residual(_normed(gamma, beta), attention),
        _Residual(_normed(gamma2, beta2), hidden, nn.GELU(), outputs),
    ]
