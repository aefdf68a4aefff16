"""exp, expm1, log1p, tanh, sigmoid, softplus and erf as straight-line arithmetic that LLVM vectorises.

LLVM does not vectorise calls of libm: a loop over ``exp`` takes 3 ns per element, over these 0.1 to 0.5.
Both sides of a condition are computed and one is selected, so there is no branch; NaN and infinity come
through. The polynomials were fitted for this file: interpolation of the stated function at the Chebyshev
nodes of the stated interval, in 60 digits, then rounded; within a factor of two of the best polynomial of
the degree. ``tests/kernels/test_cpu_scalar.py`` states and checks the errors.
"""

from __future__ import annotations

from functools import cache as once
from math import inf, log
from typing import Any

import numpy as np
from numba import types

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
# erf(x) / x - 1 as a function of x**2 in [0, 1]; relative error in erf 4.3e-8 and 8e-18
ERF_COEFFICIENTS = {
    np.dtype(np.float32): (
        0.12837912142276764,
        -0.37612342834472656,
        0.11280316859483719,
        -0.026715055108070374,
        0.004921761807054281,
        -0.0005648059886880219,
    ),
    np.dtype(np.float64): (
        0.12837916709551256,
        -0.37612638903183543,
        0.11283791670945006,
        -0.02686617064323777,
        0.0052239776071164225,
        -0.0008548325975389692,
        0.00012055294904839707,
        -1.492473690741966e-05,
        1.6447424703317362e-06,
        -1.6208483801871705e-07,
        1.3720064546777686e-08,
        -7.795898827002142e-10,
    ),
}
# exp(a**2) erfc(a) as a function of 2 / (2 + a) - 0.4375, a in [1, 5] and [1, 6] (erfc is below half a unit
# of erf's last place beyond); error times exp(-a**2): 1e-9 and 9e-18
ERFC_COEFFICIENTS = {
    np.dtype(np.float32): (
        0.2056201994419098,
        0.7408718466758728,
        0.8501078486442566,
        0.6084527373313904,
        0.12427818030118942,
        -0.19030135869979858,
        -0.07289934903383255,
    ),
    np.dtype(np.float64): (
        0.2056202208281023,
        0.7408717917397519,
        0.8500965210244251,
        0.6084810582264709,
        0.1254729852496592,
        -0.19360571481569017,
        -0.10609512849615774,
        0.10706373196576377,
        0.06363899814683142,
        -0.09192902609288423,
        -0.023557191330054857,
        0.08959082622842449,
        -0.022692787441832986,
        -0.07106557518515765,
        0.06417709956997757,
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


def erf(x):
    a = abs(x)
    w = x * x
    inner = x + x * ERF_POLYNOMIAL(w)
    # An infinite or huge x must not meet 0 * inf in the branch that is selected
    b = T(ERF_END) if a > T(ERF_END) else a
    outer = T(1.0) - EXP(-b * b) * ERFC_POLYNOMIAL(T(2.0) / (T(2.0) + b) - T(0.4375))
    outer = -outer if x < T(0.0) else outer
    return inner if a < T(1.0) else outer


@once
def names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """The functions of this file for `dtype`, under the names that templates use: ``EXP``, ``TANH``, ..."""
    kind = types.float32 if dtype == np.float32 else types.float64
    constants = {**_REDUCTION[dtype], "ROUNDER": rounder(kind), "ERF_END": 5.0 if dtype == np.float32 else 6.0}
    polynomials = {
        "EXP_POLYNOMIAL": polynomial(EXP_COEFFICIENTS[dtype]),
        "LOG1P_POLYNOMIAL": polynomial(LOG1P_COEFFICIENTS[dtype]),
        "ERF_POLYNOMIAL": polynomial(ERF_COEFFICIENTS[dtype]),
        "ERFC_POLYNOMIAL": polynomial(ERFC_COEFFICIENTS[dtype]),
    }
    found: dict[str, Any] = {}
    for template in (exp, expm1, log1p, log_above_1, sigmoid, softplus, tanh, erf):
        found[template.__name__.upper()] = function(template, dtype, exact=True, **constants, **polynomials, **found)
    return found
