"""Convolution on Numba kernels against NumPy: strides, borders, dilation, groups, sizes that fill no tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnfast.backends import numba_conv
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels.cpu import winograd_calls
from nnfast.window import Window

NUMPY, NUMBA, COMPOSED = NumpyBackend(), NumbaBackend(), NumbaBackend(fused=False)
SAME = {"padding": ((1, 1), (1, 1))}
# images, kernel, filters, window, groups
CASES = [
    ((3, 9, 11, 5), (3, 3), 7, SAME, 1),
    ((3, 9, 11, 5), (3, 3), 7, {}, 1),
    ((2, 13, 12, 1), (3, 3), 33, SAME, 1),
    ((5, 13, 7, 6), (5, 3), 10, {"padding": ((2, 1), (0, 3)), "stride": (2, 3), "dilation": (2, 1)}, 2),
    ((5, 13, 7, 6), (2, 3), 12, {"padding": ((2, 1), (0, 3)), "stride": (3, 1), "dilation": (1, 2)}, 6),
    ((1, 1, 17, 3), (1, 5), 130, {"padding": ((0, 0), (4, 0)), "dilation": (1, 2)}, 1),
    ((3, 1, 1, 200), (1, 1), 13, {}, 1),
    ((2, 6, 6, 300), (3, 3), 40, {"padding": ((1, 1), (1, 1)), "stride": (2, 2)}, 1),  # several blocks of the sum
    ((4, 8, 8, 3), (2, 2), 4, {"stride": (5, 5)}, 1),  # pixels that no window sees
    ((2, 3, 3, 2), (3, 3), 5, {"padding": ((4, 0), (0, 5))}, 1),  # windows that see no pixel
    ((2, 3, 3, 2), (2, 2), 5, {"padding": ((7, 0), (7, 0)), "stride": (9, 9)}, 1),  # all of them
    ((2, 7, 5, 37), (3, 3), 37, SAME, 37),  # depthwise
    ((2, 7, 5, 16), (3, 2), 48, {"stride": (2, 1)}, 16),
]
# Those that go by Winograd's method
WINOGRAD = [
    ((3, 9, 11, 17), (3, 3), 37, SAME, 1),
    ((4, 10, 12, 16), (3, 3), 16, {}, 1),
    ((5, 8, 9, 33), (3, 3), 12, {"padding": ((2, 1), (0, 2))}, 1),
    ((1, 21, 40, 70), (3, 3), 70, {"padding": ((0, 2), (1, 0))}, 1),  # a row of tiles at a time
    ((1, 21, 41, 13), (3, 3), 14, {"padding": ((0, 4), (3, 0))}, 1),  # but for the gradient of the images
]


def _arrays(case, dtype):
    shape, size, filters, options, groups = case
    rng, window = np.random.default_rng(0), Window(size, **options)
    x = rng.standard_normal(shape).astype(dtype)
    W = rng.standard_normal((*size, shape[3] // groups, filters)).astype(dtype)
    dy = rng.standard_normal((shape[0], *window.out_size(*shape[1:3]), filters)).astype(dtype)
    return window, x, W, rng.standard_normal(filters).astype(dtype), dy


def _results(bk, case, dtype, act="gelu"):
    window, x, W, b, dy = _arrays(case, dtype)
    groups = case[-1]
    out, z, relu, plain, dx, dW, db, dx2, dW2 = (np.full_like(like, np.nan) for like in (dy, dy, dy, dy, x, W, b, x, W))
    bk.conv_act(x, W, b, act, window, groups=groups, out=out, saved=z)
    bk.conv_act(x, W, b, "relu", window, groups=groups, out=relu)
    bk.conv(x, W, window, groups=groups, out=plain)
    bk.conv_input_grad(dy, W, window, groups=groups, dx=dx2)
    bk.conv_weight_grad(dy, x, window, groups=groups, dW=dW2)
    bk.conv_act_grad(dy, x, W, z, act, window, groups=groups, dx=dx, dW=dW, db=db)
    return {"out": out, "z": z, "relu": relu, "conv": plain, "dx": dx, "dW": dW, "db": db, "dx2": dx2, "dW2": dW2}


def _products(bk, window, x, W, dy):
    """The convolution and its gradients for the images and the weights."""
    out, dx, dW = np.empty_like(dy), np.empty_like(x), np.empty_like(W)
    with np.errstate(invalid="ignore"):
        bk.conv(x, W, window, out=out)
        bk.conv_input_grad(dy, W, window, dx=dx)
        bk.conv_weight_grad(dy, x, window, dW=dW)
    return out, dx, dW


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [*CASES, *WINOGRAD], ids=str)
def test_parity(case, dtype):
    want = _results(NUMPY, case, "float64")
    for backend in (NUMBA, COMPOSED):
        got = _results(backend, case, dtype)
        for name, value in got.items():
            scale = max(1.0, float(np.abs(want[name]).max()))
            if dtype == "float64":
                np.testing.assert_allclose(value, want[name], rtol=1e-10, atol=1e-12 * scale, err_msg=name)
            else:  # of the data rounded to float32
                np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=2e-5 * scale, err_msg=name)


@pytest.mark.parametrize(("case", "by_winograd"), [(CASES[0], False), *((case, True) for case in WINOGRAD)], ids=str)
def test_what_goes_by_winograds_method(case, by_winograd):
    """Else what the test above says of it would mean nothing."""
    window, x, W, _, dy = _arrays(case, "float32")
    geometry = numba_conv.geometry_of("conv", x, W, window, 1, dy)
    turned = winograd_calls.turned(geometry)
    assert winograd_calls.pays(len(x), geometry, x.dtype) == by_winograd
    assert winograd_calls.pays_for_weights(len(x), geometry, x.dtype) == by_winograd
    if max(window.padding)[0] > 2:
        assert turned is None
    else:
        assert winograd_calls.pays(len(x), turned, x.dtype) == by_winograd


@pytest.mark.parametrize("case", [WINOGRAD[0], WINOGRAD[3]], ids=str)
def test_rounding_by_winograds_method(case):
    """Each element is within the bound that sums of products have, 8 eps of the sum of their sizes."""
    window, x, W, _, dy = _arrays(case, "float32")

    exact = [a.astype(np.float64) for a in (x, W, dy)]
    bounds = _products(NUMPY, window, *map(np.abs, exact))
    found, wanted = _products(NUMBA, window, x, W, dy), _products(NUMPY, window, *exact)
    for got, want, bound in zip(found, wanted, bounds, strict=True):
        assert (np.abs(got - want) <= 8 * np.finfo(np.float32).eps * bound).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_by_winograds_method(value):
    """The results whose windows see the pixel, and no others, though infinity may become NaN on the way."""
    window, x, W, _, dy = _arrays(WINOGRAD[0], "float32")
    x[1, 4, 5, 2] = x[2, 0, 10, 0] = value
    (want, _, want_dW), (got, _, got_dW) = (map(np.isfinite, _products(bk, window, x, W, dy)) for bk in (NUMPY, NUMBA))
    np.testing.assert_array_equal(got, want)
    assert not got_dW[~want_dW].any()
    assert got_dW.all(axis=(0, 1, 3)).tolist() == [channel not in (0, 2) for channel in range(17)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_window(data):
    def pair(least, most):
        return data.draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    n, groups, c, m = (data.draw(st.integers(1, k)) for k in (3, 3, 3, 4))
    window = Window(pair(1, 4), pair(1, 3), (pair(0, 3), pair(0, 3)), pair(1, 2))
    h, w = pair(1, 9)
    if min(window.out_size(h, w)) < 1:
        return
    case = ((n, h, w, c * groups), window.size, m * groups,
            {"stride": window.stride, "padding": window.padding, "dilation": window.dilation}, groups)  # fmt: skip
    want, got = (_results(backend, case, "float64", "tanh") for backend in (NUMPY, NUMBA))
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_not_a_number_comes_through():
    """0 times NaN is NaN, as in a sum that is written down; borders must not hold what an image left there."""
    window, x, W, _, dy = _arrays(CASES[0], "float32")
    x[0, 4, 5, 2] = np.nan
    x[1, 0, 0, 0] = np.inf
    for want, got in zip(*(_products(bk, window, x, W, dy) for bk in (NUMPY, NUMBA)), strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    clean = np.empty_like(dy)
    NUMBA.conv(np.nan_to_num(x, posinf=0.0), W, window, out=clean)
    assert np.isfinite(clean).all()


def test_shapes_are_checked():
    window, x, W, b, dy = _arrays(CASES[0], "float32")
    with pytest.raises(ValueError, match=r"conv_act: out has shape \(3, 9, 11, 8\), expected \(3, 9, 11, 7\)"):
        NUMBA.conv_act(x, W, b, "relu", window, out=np.empty((3, 9, 11, 8), "float32"))
    with pytest.raises(ValueError, match="5 channels and 7 filters cannot be in 2 groups"):
        NUMBA.conv(x, W, window, groups=2, out=dy)
    with pytest.raises(ValueError, match=r"images \(n, h, w, c\) and kernels"):
        NUMBA.conv(x[0], W, window, out=dy)
    with pytest.raises(ValueError, match="needs what the forward pass saved"):
        NUMBA.conv_act_grad(dy, x, W, None, "relu", window, dx=None, dW=W, db=b)
