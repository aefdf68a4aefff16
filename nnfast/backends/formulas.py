"""The formulas of activations and elementwise losses, for any array namespace with NumPy's names.

These are the readable reference: NumPy and CuPy compute with them, the fused kernels are tested
against them. Each activation is a pair ``value(xp, z, alpha)`` and ``slope(xp, s, alpha)``, where `s` is
the output or the input as :mod:`nnfast.activations` says. Intermediate arrays are allocated freely.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import numpy as np

from ..kernels import erf_coefficients

Array = Any

# Klambauer et al., "Self-normalizing neural networks" (2017)
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
_SQRT_2_PI = sqrt(2.0 / pi)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Horner's rule, lowest coefficient first."""
    value = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        value += c
        value *= x
    return value + coefficients[0]


def erf(xp: Any, x: Array) -> Array:
    """The error function; CuPy's own, or array code.

    The array code is that of the fused kernels (``kernels/erf_coefficients.py``): a polynomial in ``x**2`` below 1,
    from there on ``1 - exp(-x**2)`` times one in ``2 / (2 + x)``, both interpolated at Chebyshev nodes for this
    package. Largest errors found: 1.8 units in the last place in float32 and 1.3 in float64, where SciPy's are 2.8.

    Parameters
    ----------
    xp : module
        NumPy or CuPy.
    x : array
        Of any shape. Computed in float64 unless it is float32 or float16.

    Returns
    -------
    array
        Of the shape of `x`, float32 or float64.
    """
    if xp.__name__ != "numpy":
        from cupyx.scipy.special import erf as cupyx_erf

        return cupyx_erf(x)
    x = xp.asarray(x)
    dtype = np.dtype(np.float32 if x.dtype in (np.float16, np.float32) else np.float64)
    x = x.astype(dtype, copy=False)
    a = xp.minimum(xp.abs(x), erf_coefficients.END[dtype.name])
    below = xp.minimum(a, 1.0)  # neither branch must meet a number that makes it overflow
    inner = below + below * _polynomial(erf_coefficients.ERF[dtype.name], below * below)
    tail = _polynomial(erf_coefficients.ERFC[dtype.name], 2.0 / (2.0 + a) - erf_coefficients.CENTRE)
    return xp.copysign(xp.where(a < 1.0, inner, 1.0 - xp.exp(-a * a) * tail), x)


def sigmoid(xp: Any, z: Array) -> Array:
    """``1 / (1 + exp(-z))``; exp never overflows, and both tails keep their relative accuracy."""
    e = xp.exp(-xp.abs(z))
    return xp.where(z >= 0, 1.0, e) / (1.0 + e)


def softplus(xp: Any, z: Array) -> Array:
    """``log(1 + exp(z))`` without overflow."""
    return xp.maximum(z, 0.0) + xp.log1p(xp.exp(-xp.abs(z)))


def _mish_parts(xp: Any, z: Array) -> tuple[Array, Array]:
    t = xp.tanh(softplus(xp, z))
    return t, sigmoid(xp, z)


def _mish_slope(xp: Any, z: Array, alpha: float) -> Array:
    t, s = _mish_parts(xp, z)
    return t + z * s * (1.0 - t * t)


def _gelu_slope(xp: Any, z: Array, alpha: float) -> Array:
    cdf = 0.5 * (1.0 + erf(xp, z / sqrt(2.0)))
    return cdf + z * xp.exp(-0.5 * z * z) / sqrt(2.0 * pi)


def _gelu_tanh_inner(xp: Any, z: Array) -> Array:
    return xp.tanh(_SQRT_2_PI * (z + 0.044715 * z * z * z))


def _gelu_tanh_slope(xp: Any, z: Array, alpha: float) -> Array:
    t = _gelu_tanh_inner(xp, z)
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * _SQRT_2_PI * (1.0 + 3 * 0.044715 * z * z)


def _silu_slope(xp: Any, z: Array, alpha: float) -> Array:
    s = sigmoid(xp, z)
    return s * (1.0 + z * (1.0 - s))


def _hard_swish_slope(xp: Any, z: Array, alpha: float) -> Array:
    inside = z / 3.0 + 0.5
    return xp.where(z <= -3.0, 0.0, xp.where(z >= 3.0, 1.0, inside))


def softmax(xp: Any, z: Array) -> Array:
    """``exp(z - max) / sum`` over the last axis."""
    e = xp.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


Pair = tuple[Callable[[Any, Array, float], Array], Callable[[Any, Array, float], Array]]

ACTIVATIONS: dict[str, Pair] = {
    "identity": (lambda xp, z, a: z, lambda xp, y, a: xp.ones_like(y)),
    "relu": (lambda xp, z, a: xp.maximum(z, 0.0), lambda xp, y, a: (y > 0).astype(y.dtype)),
    "leaky_relu": (lambda xp, z, a: xp.where(z > 0, z, a * z), lambda xp, y, a: xp.where(y > 0, 1.0, a)),
    "elu": (
        lambda xp, z, a: xp.where(z > 0, z, a * xp.expm1(xp.minimum(z, 0.0))),
        lambda xp, y, a: xp.where(y > 0, 1.0, y + a),
    ),
    "selu": (
        lambda xp, z, a: SELU_SCALE * xp.where(z > 0, z, SELU_ALPHA * xp.expm1(xp.minimum(z, 0.0))),
        lambda xp, y, a: xp.where(y > 0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA),
    ),
    "sigmoid": (lambda xp, z, a: sigmoid(xp, z), lambda xp, y, a: y * (1.0 - y)),
    "tanh": (lambda xp, z, a: xp.tanh(z), lambda xp, y, a: 1.0 - y * y),
    "softplus": (lambda xp, z, a: softplus(xp, z), lambda xp, y, a: -xp.expm1(-y)),
    "softsign": (lambda xp, z, a: z / (1.0 + xp.abs(z)), lambda xp, y, a: (1.0 - xp.abs(y)) ** 2),
    "gelu": (lambda xp, z, a: 0.5 * z * (1.0 + erf(xp, z / sqrt(2.0))), _gelu_slope),
    "gelu_tanh": (lambda xp, z, a: 0.5 * z * (1.0 + _gelu_tanh_inner(xp, z)), _gelu_tanh_slope),
    "silu": (lambda xp, z, a: z * sigmoid(xp, z), _silu_slope),
    "mish": (lambda xp, z, a: z * _mish_parts(xp, z)[0], _mish_slope),
    "hard_sigmoid": (
        lambda xp, z, a: xp.clip(z / 6.0 + 0.5, 0.0, 1.0),
        lambda xp, y, a: xp.where((y > 0) & (y < 1), 1.0 / 6.0, 0.0),
    ),
    "hard_swish": (lambda xp, z, a: z * xp.clip(z / 6.0 + 0.5, 0.0, 1.0), _hard_swish_slope),
}


# Elementwise losses: value(xp, p, t, param) and slope with respect to p. p is the model's output:
# a logit for binary_cross_entropy, a log rate for poisson.
def _huber(xp: Any, p: Array, t: Array, delta: float) -> Array:
    d = xp.abs(p - t)
    return xp.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta))


def _signed(t: Array) -> Array:
    """Labels 0 and 1 as -1 and 1; targets that are already -1 and 1 stay."""
    return t + (t - 1.0) * (t == 0)


LOSSES: dict[str, tuple[Callable[[Any, Array, Array, float], Array], Callable[[Any, Array, Array, float], Array]]] = {
    "mean_squared_error": (lambda xp, p, t, a: (p - t) ** 2, lambda xp, p, t, a: 2.0 * (p - t)),
    "mean_absolute_error": (lambda xp, p, t, a: xp.abs(p - t), lambda xp, p, t, a: xp.sign(p - t)),
    "huber": (_huber, lambda xp, p, t, a: xp.clip(p - t, -a, a)),
    "binary_cross_entropy": (
        lambda xp, p, t, a: xp.maximum(p, 0.0) - p * t + xp.log1p(xp.exp(-xp.abs(p))),
        lambda xp, p, t, a: sigmoid(xp, p) - t,
    ),
    "poisson": (lambda xp, p, t, a: xp.exp(p) - p * t, lambda xp, p, t, a: xp.exp(p) - t),
    "hinge": (
        lambda xp, p, t, a: xp.maximum(1.0 - _signed(t) * p, 0.0),
        lambda xp, p, t, a: xp.where(_signed(t) * p < 1.0, -_signed(t), 0.0),
    ),
}
