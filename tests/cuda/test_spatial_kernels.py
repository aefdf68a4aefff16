"""Pooling, sizes, group and root-mean-square normalisation on the emulated device, against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnfast.backends.cupy_backend import CupyBackend
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.window import Window
from tests.backends.test_parity_cuda import check, each_storage, nan, new_state
from tests.cuda.emulator import emulated_backend

# Odd and even channels, windows that overlap, leave gaps, reach over the border or lie outside
WINDOWS = [
    (Window((2, 2), (2, 2)), (2, 6, 5, 8)),
    (Window((3, 3), (2, 1), ((1, 1), (1, 1))), (2, 7, 5, 3)),
    (Window((1, 3), (1, 2), ((0, 0), (2, 1)), (1, 2)), (3, 1, 9, 4)),
    (Window((2, 3), (1, 1), ((2, 2), (3, 3)), (2, 1)), (1, 4, 3, 16)),
]
each_window = pytest.mark.parametrize(("window", "shape"), WINDOWS, ids=range(len(WINDOWS)))


@pytest.fixture
def bk() -> CupyBackend:
    return emulated_backend()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def result_shape(window: Window, shape: tuple[int, ...], channels: int | None = None) -> tuple[int, ...]:
    n, h, w, c = shape
    return (n, *window.out_size(h, w), c if channels is None else channels)


# ---- pooling --------------------------------------------------------------------------------------
@each_storage
@each_window
def test_max_pool(bk: CupyBackend, rng: Any, dtype: str, window: Window, shape: tuple[int, ...]) -> None:
    """Small integers: many are equal, and the gradient goes to the first."""
    x, result = rng.integers(-2, 3, shape).astype(float), result_shape(window, shape)
    y = check(bk, "max_pool", dtype, x=x, out=nan(*result), options={"window": window})["out"].astype(float)
    dy = rng.integers(-8, 9, result).astype(float)
    check(bk, "max_pool_grad", dtype, ("dx",), dy=dy, x=x, y=y, dx=nan(*shape), options={"window": window})


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_max_pool_of_nan(bk: CupyBackend) -> None:
    """NaN wins, wherever it is in its window, and has the gradient."""
    window = Window((2, 2), (1, 1), ((0, 0), (1, 0)))
    x = np.arange(12.0).reshape(1, 3, 4, 1)
    x[0, 1, 1] = x[0, 1, 2] = np.nan
    result = result_shape(window, x.shape)
    y = check(bk, "max_pool", "float32", x=x, out=nan(*result), options={"window": window})["out"]
    assert np.isnan(y).sum() == 6
    dy = np.arange(float(y.size)).reshape(result)
    check(bk, "max_pool_grad", "float32", ("dx",), dy=dy, x=x, y=y, dx=nan(*x.shape), options={"window": window})


@each_storage
@each_window
@pytest.mark.parametrize("count_padding", [False, True])
def test_avg_pool(
    bk: CupyBackend, rng: Any, dtype: str, window: Window, shape: tuple[int, ...], count_padding: bool
) -> None:
    x, result = rng.standard_normal(shape), result_shape(window, shape)
    options = {"window": window, "count_padding": count_padding}
    check(bk, "avg_pool", dtype, x=x, out=nan(*result), options=options)
    dy = rng.standard_normal(result)
    check(bk, "avg_pool_grad", dtype, ("dx",), dy=dy, dx=nan(*shape), options=options, backward=True)


# ---- size -----------------------------------------------------------------------------------------
@each_storage
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 5, 1, 16)], ids=str)
def test_sizes(bk: CupyBackend, rng: Any, dtype: str, shape: tuple[int, ...]) -> None:
    n, h, w, c = shape
    x = rng.standard_normal(shape)
    check(bk, "pad", dtype, x=x, out=nan(n, h + 3, w + 2, c), options={"top": 1, "left": 2})
    check(bk, "crop", dtype, x=x, out=nan(n, h - 2, w, c), options={"top": 1, "left": 0})
    check(bk, "upsample", dtype, x=x, out=nan(n, 2 * h, 3 * w, c), options={"factors": (2, 3)})
    large = rng.standard_normal((n, 2 * h, 3 * w, c))
    check(bk, "upsample_grad", dtype, ("dx",), dy=large, dx=nan(*shape), options={"factors": (2, 3)}, backward=True)


# ---- normalisation and noise ------------------------------------------------------------------------
@each_storage
@pytest.mark.parametrize(("shape", "groups"), [((2, 6, 12), 3), ((3, 40, 16), 2), ((1, 70, 6), 6), ((2, 1, 5), 1)])
def test_group_norm(bk: CupyBackend, rng: Any, dtype: str, shape: tuple[int, int, int], groups: int) -> None:
    n, _, c = shape
    x, dy, gamma, beta = 2 + rng.standard_normal(shape), *(rng.standard_normal(s) for s in (shape, c, c))
    stats = {"mean": nan(n, groups), "rstd": nan(n, groups)}
    options = {"groups": groups, "eps": 1e-3}
    outs = ("out", "mean", "rstd")
    check(bk, "group_norm", dtype, outs, x=x, gamma=gamma, beta=beta, out=nan(*shape), **stats, options=options)
    exact = {name: np.zeros((n, groups)) for name in stats}
    NumpyBackend().group_norm(x, gamma, beta, **options, out=np.zeros(shape), **exact)
    arrays = {"dy": dy, "x": x, "gamma": gamma, **exact, "dgamma": nan(c), "dbeta": nan(c)}
    grads, only = ("dx", "dgamma", "dbeta"), {"groups": groups}
    check(bk, "group_norm_grad", dtype, grads, **arrays, dx=nan(*shape), options=only, backward=True)
    check(bk, "group_norm_grad", dtype, grads, **arrays, alias={"dx": "dy"}, options=only, backward=True)
    check(bk, "group_norm_grad", dtype, grads[1:], **arrays, dx=None, options=only, backward=True)


@each_storage
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (150, 12), (5, 300)], ids=str)
def test_rms_norm(bk: CupyBackend, rng: Any, dtype: str, shape: tuple[int, int]) -> None:
    n, m = shape
    x, dy, gamma = 1 + rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(m)
    options = {"eps": 1e-3}
    outs = ("out", "rstd")
    check(bk, "rms_norm", dtype, outs, x=x, gamma=gamma, out=nan(*shape), rstd=nan(n), options=options)
    rstd = 1 / np.sqrt((x**2).mean(1) + 1e-3)
    arrays = {"dy": dy, "x": x, "gamma": gamma, "rstd": rstd, "dgamma": nan(m)}
    check(bk, "rms_norm_grad", dtype, ("dx", "dgamma"), **arrays, dx=nan(*shape), backward=True)
    check(bk, "rms_norm_grad", dtype, ("dx", "dgamma"), **arrays, alias={"dx": "dy"}, backward=True)
    check(bk, "rms_norm_grad", dtype, ("dgamma",), **arrays, dx=None, backward=True)


@each_storage
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 40, 16), (1, 1, 1)], ids=str)
def test_spatial_dropout(bk: CupyBackend, rng: Any, dtype: str, shape: tuple[int, int, int]) -> None:
    state, x = new_state(STEP=2**32 + 5, SEED_LO=2**32 - 3, SEED_HI=12345), rng.standard_normal(shape)
    options = {"rate": 0.4, "stream": 3}
    check(bk, "spatial_dropout", dtype, x=x, state=state, out=nan(*shape), options=options)
    check(bk, "spatial_dropout", dtype, x=x, state=state, alias={"out": "x"}, options=options)
