"""The straight-line functions against extended precision, over their whole range, as compiled into a loop."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

from nnfast.kernels.cpu import scalar
from nnfast.kernels.cpu.driver import Call, Program
from nnfast.kernels.cpu.specialise import kernel

LONG = np.longdouble


def map_function(I, F, task):  # noqa: E741
    """``y = f(x)`` over a whole array, so that the vectorised form is what is tested."""
    x, y = ptr(I[0]), ptr(I[1])  # noqa: F821
    for i in range(I[2]):
        y[i] = FUNCTION(x[i])  # noqa: F821


def apply(name, x):
    y = np.empty_like(x)
    address = kernel(map_function, x.dtype, name, FUNCTION=scalar.names(x.dtype)[name.upper()])
    ints = np.array([x.ctypes.data, y.ctypes.data, x.size])
    Program([Call(address, ints, np.zeros(1), keep=(x, y))]).run()
    return y


def reference_sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def reference_erf(x):
    # SciPy's is good to one unit of the last place of float64
    return scipy.special.erf(x.astype(np.float64)).astype(LONG)


# name: (reference, range, largest error in units of the last place for float32 and float64)
FUNCTIONS = {
    "exp": (np.exp, (-87, 88.5), 1.2, 1.2),
    "expm1": (np.expm1, (-110, 0), 1.2, 1.3),
    "log1p": (np.log1p, (0, 1), 2.2, 2.2),
    "log_above_1": (np.log, (1, 1e6), 2.2, 2.2),
    "sigmoid": (reference_sigmoid, (-86, 95), 2.3, 2.3),
    "tanh": (np.tanh, (-12, 12), 2.8, 2.8),
    "softplus": (reference_softplus, (-86, 95), 2.9, 2.9),
    "erf": (reference_erf, (-7, 7), 1.8, 4.0),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy(name, dtype):
    reference, (low, high), *limits = FUNCTIONS[name]
    near_zero = np.geomspace(1e-30, 1, 5000)
    x = np.concatenate([np.linspace(low, high, 200_001), np.linspace(-1.5, 1.5, 100_001), near_zero, -near_zero])
    x = x[(x >= low) & (x <= high)].astype(dtype)
    want = reference(x.astype(LONG))
    error = np.abs(apply(name, x).astype(LONG) - want) / np.spacing(np.abs(want).astype(dtype))
    assert error.max() <= limits[dtype == np.float64], x[error.argmax()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 1e4, -1e4], dtype)
    nan, inf = np.nan, np.inf
    expected = {
        "exp": [nan, inf, 0, inf, 0],
        "sigmoid": [nan, 1, 0, 1, 0],
        "tanh": [nan, 1, -1, 1, -1],
        "softplus": [nan, inf, 0, 1e4, 0],
        "erf": [nan, 1, -1, 1, -1],
    }
    for name, want in expected.items():
        np.testing.assert_array_equal(apply(name, x), np.array(want, dtype), err_msg=name)
    np.testing.assert_array_equal(apply("log_above_1", x[:2]), np.array([nan, inf], dtype))
    np.testing.assert_array_equal(apply("expm1", x[[0, 2, 4]]), np.array([nan, -1, -1], dtype))


@pytest.mark.parametrize(("dtype", "low"), [(np.float32, -103.9), (np.float64, -745.1)])
def test_exp_reaches_the_subnormals(dtype, low):
    x = np.linspace(low, low + 15, 1001).astype(dtype)
    want = np.exp(x.astype(LONG))
    assert (np.abs(apply("exp", x).astype(LONG) - want) <= np.spacing(want.astype(dtype)) * 1.2).all()
