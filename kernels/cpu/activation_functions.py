"""Value and slope of each pointwise activation, as scalar functions that are compiled into kernels.

The formulas are those of ``nnfast/backends/formulas.py``; ``value(z, alpha)`` and ``slope(s, alpha)``, where s is
the output or the input as ``nnfast/activations.py`` says.
"""

from __future__ import annotations

from math import pi, sqrt

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
SQRT_HALF = sqrt(0.5)
SQRT_2_PI = sqrt(2.0 / pi)
NORMAL_PEAK = 1.0 / sqrt(2.0 * pi)


def relu(z, alpha):
    return T(0.0) if z < T(0.0) else z


def relu_slope(y, alpha):
    return T(1.0) if y > T(0.0) else T(0.0)


def leaky_relu(z, alpha):
    return z if z > T(0.0) else alpha * z


def leaky_relu_slope(y, alpha):
    return T(1.0) if y > T(0.0) else alpha


def elu(z, alpha):
    m = alpha * EXPM1(T(0.0) if z > T(0.0) else z)
    return z if z > T(0.0) else m


def elu_slope(y, alpha):
    return T(1.0) if y > T(0.0) else y + alpha


def selu(z, alpha):
    m = T(SELU_ALPHA) * EXPM1(T(0.0) if z > T(0.0) else z)
    return T(SELU_SCALE) * (z if z > T(0.0) else m)


def selu_slope(y, alpha):
    return T(SELU_SCALE) if y > T(0.0) else y + T(SELU_SCALE * SELU_ALPHA)


def sigmoid(z, alpha):
    return SIGMOID(z)


def sigmoid_slope(y, alpha):
    return y * (T(1.0) - y)


def tanh(z, alpha):
    return TANH(z)


def tanh_slope(y, alpha):
    return T(1.0) - y * y


def softplus(z, alpha):
    return SOFTPLUS(z)


def softplus_slope(y, alpha):
    return -EXPM1(-y)


def softsign(z, alpha):
    return z / (T(1.0) + abs(z))


def softsign_slope(y, alpha):
    root = T(1.0) - abs(y)
    return root * root


def gelu(z, alpha):
    return T(0.5) * z * (T(1.0) + ERF(z * T(SQRT_HALF)))


def gelu_slope(z, alpha):
    bell = EXP(T(-0.5) * z * z)
    return T(0.5) * (T(1.0) + ERF_FROM(z * T(SQRT_HALF), bell)) + z * bell * T(NORMAL_PEAK)


def gelu_tanh(z, alpha):
    return T(0.5) * z * (T(1.0) + TANH(T(SQRT_2_PI) * (z + T(0.044715) * z * z * z)))


def gelu_tanh_slope(z, alpha):
    t = TANH(T(SQRT_2_PI) * (z + T(0.044715) * z * z * z))
    inner = T(SQRT_2_PI) * (T(1.0) + T(3 * 0.044715) * z * z)
    return T(0.5) * (T(1.0) + t) + T(0.5) * z * (T(1.0) - t * t) * inner


def silu(z, alpha):
    return z * SIGMOID(z)


def silu_slope(z, alpha):
    s = SIGMOID(z)
    return s * (T(1.0) + z * (T(1.0) - s))


def mish(z, alpha):
    # tanh(log(1 + e)) = n / (n + 2) with n = e**2 + 2 e; it is 1 to the last bit from z = 20 on
    e = EXP(T(20.0) if z > T(20.0) else z)
    n = e * e + T(2.0) * e
    return z * (n / (n + T(2.0)))


def mish_slope(z, alpha):
    e = EXP(T(20.0) if z > T(20.0) else z)
    n = e * e + T(2.0) * e
    d = T(1.0) / (n + T(2.0))
    return n * d + z * (e / (T(1.0) + e)) * (T(4.0) * (n + T(1.0)) * d * d)


def hard_sigmoid(z, alpha):
    y = z * T(1.0 / 6.0) + T(0.5)
    y = T(0.0) if y < T(0.0) else y
    return T(1.0) if y > T(1.0) else y


def hard_sigmoid_slope(y, alpha):
    return (T(1.0 / 6.0) if y < T(1.0) else T(0.0)) if y > T(0.0) else T(0.0)


def hard_swish(z, alpha):
    y = z * T(1.0 / 6.0) + T(0.5)
    y = T(0.0) if y < T(0.0) else y
    return z * (T(1.0) if y > T(1.0) else y)


def hard_swish_slope(z, alpha):
    inside = z * T(1.0 / 3.0) + T(0.5)
    inside = T(1.0) if z >= T(3.0) else inside
    return T(0.0) if z <= T(-3.0) else inside


POINTWISE = {
    f.__name__: (f, slope)
    for f, slope in (
        (relu, relu_slope),
        (leaky_relu, leaky_relu_slope),
        (elu, elu_slope),
        (selu, selu_slope),
        (sigmoid, sigmoid_slope),
        (tanh, tanh_slope),
        (softplus, softplus_slope),
        (softsign, softsign_slope),
        (gelu, gelu_slope),
        (gelu_tanh, gelu_tanh_slope),
        (silu, silu_slope),
        (mish, mish_slope),
        (hard_sigmoid, hard_sigmoid_slope),
        (hard_swish, hard_swish_slope),
    )
}
