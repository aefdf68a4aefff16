"""exp, expm1, log1p, tanh, sigmoid, softplus and erf as straight-line arithmetic that LLVM vectorises.

LLVM does not vectorise calls of libm: a loop over ``exp`` takes 3 ns per element, over these 0.1 to 0.5.
Both sides of a condition are computed and one is selected, so there is no branch; NaN and infinity come
through. The polynomials were fitted for this file: interpolation of the stated function at the Chebyshev
nodes of the stated interval, in 60 digits, then rounded; within a factor of two of the best polynomial of
the degree. ``tests/kernels/test_cpu_scalar.py`` states and checks the errors. Those of erf are in
``erf_coefficients.py``, since array code computes with them too.
"""

from __future__ import annotations

from functools import cache as once
from math import inf, log
from typing import Any

import numpy as np
from numba import types

from .. import erf_coefficients
from .intrinsics import exponent_factors, polynomial, rounder, split_exponent
from .specialise import function

# (exp(r) - 1 - r) / r**2 on |r| <= ln(2)/2; what it adds to exp(r) is off by 2.3e-8 and 4e-17
EXP_COEFFICIENTS = {
    np.dtype(np.float32): (0.5, 0.16666576266288757, 0.041666556149721146, 0.008363178931176662, 0.0013926184037700295),
    np.dtype(np.float64): (
        0.5000000000000001,
        0.16666666666666669,
        0.04166666666662413,
        0.008333333333330062,
        0.0013888888917213717,
        0.00019841269863053618,
        2.4801521295954376e-05,
        2.7557268459997064e-06,
        2.7620088445409746e-07,
        2.510038549551032e-08,
    ),
}
# (log1p(u) - 2 s) / s**3 as a function of s**2, s = u / (2 + u), s**2 in [0, 1/9]; relative error in
# log1p(u): 1.5e-8 and 5e-18
LOG1P_COEFFICIENTS = {
    np.dtype(np.float32): (0.6666663885116577, 0.40007561445236206, 0.28236618638038635, 0.2685149908065796),
    np.dtype(np.float64): (
        0.6666666666666666,
        0.40000000000014585,
        0.2857142856710876,
        0.22222222717427864,
        0.18181789436132859,
        0.15385570064958623,
        0.13314144209654935,
        0.12001072809590713,
        0.08800738486144674,
        0.1616404561194353,
    ),
}


# Range reduction x = k ln 2 + r (Cody and Waite): ln 2 in two parts, the first short enough that k times it
# is exact. Beyond LOWEST and HIGHEST the result is 0 or infinite anyway, and k would leave its field.
_REDUCTION = {
    np.dtype(np.float32): {
        "LN2_HIGH": 0.693359375,
        "LN2_LOW": -2.12194440054690583e-4,
        "LOWEST": -105.0,
        "HIGHEST": 90.0,
    },
    np.dtype(np.float64): {
        "LN2_HIGH": 6.93147180369123816490e-01,
        "LN2_LOW": 1.90821492927058770002e-10,
        "LOWEST": -746.0,
        "HIGHEST": 711.0,
    },
}
LOG2_E = 1.0 / log(2.0)


def exp(x):
    c = T(LOWEST) if x < T(LOWEST) else x
    c = T(HIGHEST) if c > T(HIGHEST) else c
    t = c * T(LOG2_E) + T(ROUNDER)
    k = t - T(ROUNDER)
    r = (c - k * T(LN2_HIGH)) - k * T(LN2_LOW)
    first, second = exponent_factors(t)
    return (T(1.0) + (r + r * r * EXP_POLYNOMIAL(r))) * first * second


def expm1(x):
    """For x <= 0 only (or small): 2**k is not split in two."""
    c = T(LOWEST) if x < T(LOWEST) else x
    t = c * T(LOG2_E) + T(ROUNDER)
    k = t - T(ROUNDER)
    r = (c - k * T(LN2_HIGH)) - k * T(LN2_LOW)
    first, second = exponent_factors(t)
    power = first * second
    return power * (r + r * r * EXP_POLYNOMIAL(r)) + (power - T(1.0))


def log1p(u):
    """For u in [0, 1]."""
    s = u / (T(2.0) + u)
    w = s * s
    return T(2.0) * s + s * w * LOG1P_POLYNOMIAL(w)


def log_above_1(x):
    """Natural logarithm for x >= 1; infinity and NaN stay."""
    m, e = split_exponent(x)
    result = e * T(LN2_HIGH) + (LOG1P(m - T(1.0)) + e * T(LN2_LOW))
    return result if x < T(inf) else x


def sigmoid(z):
    """Both tails keep their relative accuracy."""
    e = EXP(-abs(z))
    return (T(1.0) if z >= T(0.0) else e) / (T(1.0) + e)


def softplus(z):
    return (T(0.0) if z < T(0.0) else z) + LOG1P(EXP(-abs(z)))


def tanh(z):
    m = EXPM1(T(-2.0) * abs(z))
    y = -m / (T(2.0) + m)
    return -y if z < T(0.0) else y


def erf_from(x, bell):
    """The error function, where ``bell = exp(-x**2)`` is known."""
    a = abs(x)
    w = x * x
    inner = x + x * ERF_POLYNOMIAL(w)
    # An infinite or huge x must not meet 0 * inf in the branch that is selected
    b = T(ERF_END) if a > T(ERF_END) else a
    outer = T(1.0) - bell * ERFC_POLYNOMIAL(T(2.0) / (T(2.0) + b) - T(ERFC_CENTRE))
    outer = -outer if x < T(0.0) else outer
    return inner if a < T(1.0) else outer


def erf(x):
    return ERF_FROM(x, EXP(-x * x))


@once
def names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """The functions of this file for `dtype`, under the names that templates use: ``EXP``, ``TANH``, ..."""
    kind = types.float32 if dtype == np.float32 else types.float64
    constants = {
        **_REDUCTION[dtype],
        "ROUNDER": rounder(kind),
        "ERFC_CENTRE": erf_coefficients.CENTRE,
        "ERF_END": erf_coefficients.END[dtype.name],
    }
    polynomials = {
        "EXP_POLYNOMIAL": polynomial(EXP_COEFFICIENTS[dtype]),
        "LOG1P_POLYNOMIAL": polynomial(LOG1P_COEFFICIENTS[dtype]),
        "ERF_POLYNOMIAL": polynomial(erf_coefficients.ERF[dtype.name]),
        "ERFC_POLYNOMIAL": polynomial(erf_coefficients.ERFC[dtype.name]),
    }
    found: dict[str, Any] = {}
    for template in (exp, expm1, log1p, log_above_1, sigmoid, softplus, tanh, erf_from, erf):
        found[template.__name__.upper()] = function(template, dtype, exact=True, **constants, **polynomials, **found)
    return found
