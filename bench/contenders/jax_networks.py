"""The layers of a network in JAX: images are (rows, height, width, channels), sequences go through `lax.scan`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import networks
from ..networks import LayerSpec

__all__ = ["apply", "initial_statistics"]

EPSILON = 1e-5
MOMENTUM = 0.1  # of running statistics


def initial_statistics(specs: tuple[LayerSpec, ...], params: Any) -> list[Any]:
    """Running mean and variance of each batch norm."""
    found = []
    for spec, own in zip(specs, params, strict=True):
        if isinstance(spec, networks.Norm):
            found.append((jnp.zeros_like(own[0]), jnp.ones_like(own[0])))
        elif isinstance(spec, networks.Residual):
            found += initial_statistics(spec.inner, own)
    return found


def apply(specs: tuple[LayerSpec, ...], params: Any, statistics: list[Any], x: Any, training: bool) -> Any:
    """The network; returns its logits and the running statistics after this batch."""
    left, after = list(statistics), []  # type: tuple[list[Any], list[Any]]
    for spec, own in zip(specs, params, strict=True):
        if isinstance(spec, networks.Norm):
            x, new = _norm(x, own, left.pop(0), training)
            after.append(new)
        elif isinstance(spec, networks.Residual):
            inner, new = apply(spec.inner, own, left, x, training)
            x = x + inner
            after += new
            left = left[len(new) :]
        else:
            x = _layer(spec, own, x)
    return x, after


def _layer(spec: LayerSpec, params: Any, x: Any) -> Any:
    match spec:
        case networks.Dense():
            return x @ params[0] + params[1]
        case networks.Conv():
            y = _conv(x, params[0], 1 if spec.filters else x.shape[-1])
            y = y + params[1] if spec.bias else y
            return jax.nn.relu(y) if spec.activation == "relu" else y
        case networks.Recurrent():
            return _lstm(x, *params) if spec.kind == "lstm" else _gru(x, *params)
        case networks.TransformerBlock():
            return _transformer_block(spec.heads, params, x)
        case networks.MaxPool():
            return _max_pool(x)
        case networks.GlobalAvgPool():
            return x.mean(axis=tuple(range(1, x.ndim - 1)))
        case networks.Relu():
            return jax.nn.relu(x)
        case networks.Flatten():
            return x.reshape(len(x), -1)
    raise TypeError(f"JAX has no {spec.describe()} here")


def _conv(x: Any, W: Any, groups: int) -> Any:
    """For depthwise and 1 x 1 kernels, what XLA does in half the time of its own convolution on a CPU."""
    height, width, *_ = W.shape
    if height == width == 1:
        return x @ W[0, 0]
    if groups > 1:
        _, rows, columns, _ = x.shape
        x = jnp.pad(x, ((0, 0), (height // 2, height // 2), (width // 2, width // 2), (0, 0)))
        return sum(x[:, i : i + rows, j : j + columns] * W[i, j, 0] for i in range(height) for j in range(width))
    return lax.conv_general_dilated(x, W, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _max_pool(x: Any) -> Any:
    """By slices: the gradient of `lax.reduce_window` takes ten times as long on a CPU."""
    upper, lower = jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2]), jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2])
    return jnp.maximum(upper, lower)


def _norm(x: Any, params: Any, running: Any, training: bool) -> tuple[Any, Any]:
    gamma, beta = params
    if not training:
        mean, var = running
    else:
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes), x.var(axes)
        rows = x.size // x.shape[-1]
        new = (mean, var * (rows / (rows - 1)))
        running = tuple(
            (1 - MOMENTUM) * old + MOMENTUM * lax.stop_gradient(now) for old, now in zip(running, new, strict=True)
        )
    return (x - mean) * (lax.rsqrt(var + EPSILON) * gamma) + beta, running


def _lstm(x: Any, W: Any, U: Any, b: Any) -> Any:
    """The inputs' products of all steps are one."""
    state = jnp.zeros((len(x), len(U)), x.dtype)

    def step(carry: Any, gates: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(gates + h @ U, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    (h, _), _ = lax.scan(step, (state, state), x.swapaxes(0, 1) @ W + b)
    return h


def _gru(x: Any, W: Any, U: Any, b: Any, c: Any) -> Any:
    state = jnp.zeros((len(x), len(U)), x.dtype)

    def step(h: Any, gates: Any) -> Any:
        r, z, n = jnp.split(gates, 3, axis=1)
        hr, hz, hn = jnp.split(h @ U + c, 3, axis=1)
        z = jax.nn.sigmoid(z + hz)
        n = jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn)
        return (1 - z) * n + z * h, None

    h, _ = lax.scan(step, state, x.swapaxes(0, 1) @ W + b)
    return h


def _layer_norm(x: Any, gamma: Any, beta: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    var = x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + EPSILON) * gamma + beta


def _transformer_block(heads: int, params: Any, x: Any) -> Any:
    gamma, beta, W_in, b_in, W_out, b_out, gamma2, beta2, W1, b1, W2, b2 = params
    n, steps, width = x.shape
    qkv = (_layer_norm(x, gamma, beta) @ W_in + b_in).reshape(n, steps, 3, heads, width // heads)
    y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
    x = x + y.reshape(n, steps, width) @ W_out + b_out
    hidden = jax.nn.gelu(_layer_norm(x, gamma2, beta2) @ W1 + b1, approximate=False)
    return x + hidden @ W2 + b2
