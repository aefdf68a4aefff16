"""The error function in array code."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnfast.backends import formulas

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def _units(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Errors in units of the last place of what was found."""
    return np.abs(found.astype(np.longdouble) - wanted) / np.spacing(np.abs(wanted).astype(found.dtype))


def _points(dtype: type) -> np.ndarray:
    small = np.geomspace(1e-30, 1, 5000)
    return np.concatenate([np.linspace(-7, 7, 100_001), np.linspace(-1.5, 1.5, 100_001), small, -small]).astype(dtype)


@DTYPES
def test_erf_against_scipy(dtype: type) -> None:
    special = pytest.importorskip("scipy.special")
    x = _points(dtype)
    # SciPy's own float64 is off by up to 2.8 units
    limit = 1.8 if dtype == np.float32 else 4.0
    assert _units(formulas.erf(np, x), special.erf(x.astype(np.float64))).max() <= limit


@DTYPES
def test_erf_against_the_c_library(dtype: type) -> None:
    x = _points(dtype)[::20]
    wanted = np.array([math.erf(v) for v in x.astype(np.float64)])
    limit = 1.8 if dtype == np.float32 else 2.5
    assert _units(formulas.erf(np, x), wanted).max() <= limit


@DTYPES
def test_erf_of_special_values(dtype: type) -> None:
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    x = np.array([0.0, -0.0, np.inf, -np.inf, huge, -huge, np.nan, tiny], dtype)
    with np.errstate(all="raise", under="ignore"):
        found = formulas.erf(np, x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[:-1], np.array([0, 0, 1, -1, 1, -1, np.nan], dtype))
    assert found[-1] == tiny  # 1.128 of it, rounded
    np.testing.assert_array_equal(np.signbit(found[:6]), [False, True, False, True, False, True])


@pytest.mark.parametrize(
    ("given", "computed"), [("float16", "float32"), ("int64", "float64"), ("float32", "float32"), ("bool", "float64")]
)
def test_erf_of_other_shapes_and_dtypes(given: str, computed: str) -> None:
    for shape in ((), (0,), (2, 3)):
        x = np.ones(shape, given)
        found = formulas.erf(np, x)
        assert found.shape == shape
        assert found.dtype == computed
        np.testing.assert_allclose(found, math.erf(1.0), rtol=1e-6)
        assert (x == 1).all()
