"""Convolution on the emulated device, against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnfast import activations
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels.cuda import loader
from nnfast.window import Window
from tests.backends.test_parity_cuda import check, dtype_of, nan, place, tolerance, widened
from tests.cuda.emulator import EmulatedBackend, emulated_backend

DTYPES = ["float32", "float64", "float16", "bfloat16"]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

# window, images, result channels, groups
CASES = {
    "odd": (Window((3, 2), (1, 1), ((1, 0), (0, 1))), (2, 5, 4, 3), 5, 1),
    "packed": (Window((3, 3), (1, 1), ((1, 1), (1, 1))), (2, 6, 7, 16), 40, 1),
    "stride": (Window((3, 3), (2, 3), ((1, 1), (2, 1))), (2, 7, 8, 8), 8, 1),
    "dilation": (Window((2, 3), (3, 2), ((2, 1), (0, 3)), (2, 4)), (1, 9, 11, 4), 6, 1),
    "gaps": (Window((1, 2), (3, 2), ((0, 0), (0, 0)), (1, 2)), (2, 7, 9, 2), 3, 1),
    "groups": (Window((2, 2), (1, 2), ((1, 1), (0, 0))), (2, 5, 6, 16), 24, 2),
    "sequence": (Window((1, 5), (1, 2), ((0, 0), (4, 0))), (3, 1, 13, 6), 4, 2),
    "depthwise": (Window((3, 3), (2, 1), ((1, 1), (1, 1))), (2, 6, 5, 16), 16, 16),
    "multiplier": (Window((2, 3), (1, 2), ((0, 1), (1, 1)), (2, 1)), (2, 6, 5, 3), 6, 3),
    "pointwise": (Window((1, 1)), (2, 3, 5, 8), 16, 1),
    "wide": (Window((1, 1), (1, 2)), (1, 2, 6, 8), 130, 1),
}
each_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def bk() -> EmulatedBackend:
    return emulated_backend()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def shapes(case: str) -> tuple[Window, tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Window, and shapes of images, weights and result."""
    window, image, m, groups = CASES[case]
    result = (image[0], *window.out_size(*image[1:3]), m)
    return window, image, (*window.size, image[3] // groups, m), result, groups


def near(found: Any, wanted: np.ndarray, terms: np.ndarray, dtype: str, backward: bool) -> None:
    """Within the policy's bound: by the sum of the absolute values of the products that were added up."""
    found = widened(np.asarray(found))
    if dtype in ("float32", "float64"):
        np.testing.assert_array_less(np.abs(found - wanted), 8 * np.finfo(dtype).eps * terms + 1e-300)
    else:
        rtol, atol = tolerance(dtype, "linear", found, backward)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol + rtol * float(np.abs(wanted).mean()))


def run(bk: Any, method: str, given: dict[str, np.ndarray], out: tuple[str, tuple[int, ...], Any], offset: int, **options: Any) -> Any:
    arrays = {name: place(bk, value, offset) for name, value in given.items()}
    arrays[out[0]] = place(bk, np.full(out[1], np.nan, out[2]), offset)
    getattr(bk, method)(**arrays, **options)
    return np.array(bk.to_numpy(arrays[out[0]]))


@each_dtype
@each_case
def test_convolution_and_gradients(bk: EmulatedBackend, rng: Any, dtype: str, case: str) -> None:
    window, image, weights, result, groups = shapes(case)
    narrow, full = dtype_of(dtype, "conv", "x"), dtype_of(dtype, "conv", "dW")
    x, W, dy = (rng.standard_normal(shape).astype(narrow) for shape in (image, weights, result))
    for method, given, out in (
        ("conv", {"x": x, "W": W}, ("out", result, narrow)),
        ("conv_input_grad", {"dy": dy, "W": W}, ("dx", image, narrow)),
        ("conv_weight_grad", {"dy": dy, "x": x}, ("dW", weights, full)),
    ):
        exact = {name: value.astype(float) for name, value in given.items()}
        options = {"window": window, "groups": groups}
        wanted = run(NumpyBackend(), method, exact, (*out[:2], float), 0, **options)
        terms = run(NumpyBackend(), method, {k: np.abs(v) for k, v in exact.items()}, (*out[:2], float), 0, **options)
        for offset in (0, 1):
            near(run(bk, method, given, out, offset, **options), wanted, terms, dtype, method != "conv")
