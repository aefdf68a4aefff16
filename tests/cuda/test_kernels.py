"""The second gate: the kernels' numbers, run on the CPU from the very source that a GPU gets."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels.cuda import FILES, expressions
from nnfast.selftest.operations import Operations
from tests.cuda.emulator import emulated_backend
from tests.cuda.host_shim import HostShim

SHAPES = [(300, 37), (1, 1), (33, 64), (7, 3)]


def run(dtype: str, shape: tuple[int, int], offset: int = 0, multiprocessors: int = 2) -> dict[str, np.ndarray]:
    sweep = Operations(emulated_backend(multiprocessors=multiprocessors), dtype, *_usable(shape), offset)
    sweep.run()
    return sweep.results()


@cache
def expected(shape: tuple[int, int], dtype: str) -> dict[str, np.ndarray]:
    sweep = Operations(NumpyBackend(), dtype, *_usable(shape))
    sweep.run()
    return sweep.results()


def _usable(shape: tuple[int, int]) -> tuple[int, int]:
    return max(shape[0], 6), shape[1]  # the batch of the sweep leaves out five rows


def compare(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.isfinite(got[name]).all(), name
        # Sums of hundreds of terms, relative to the largest
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(got[name], value, rtol=tolerance, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 2e-5)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_numbers(dtype: str, tolerance: float, shape: tuple[int, int], offset: int) -> None:
    compare(run(dtype, shape, offset), expected(shape, dtype), tolerance)


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_numbers_at_other_launch_shapes(multiprocessors: int) -> None:
    compare(run("float64", SHAPES[0], 0, multiprocessors), expected(SHAPES[0], "float64"), 1e-11)


@pytest.mark.parametrize("order", ["backward", "strided"])
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(shim: HostShim, order: str) -> None:
    """A missing barrier, or a sum in the order of arrival, would show."""
    straight = run("float32", SHAPES[0])
    try:
        shim.order(order)
        other = run("float32", SHAPES[0])
    finally:
        shim.order("forward")
    for name, value in straight.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_every_instantiation_runs() -> None:
    launched: set[str] = set()
    for dtype in ("float32", "float64"):
        bk = emulated_backend()
        Operations(bk, dtype).run()
        launched.update(bk.counts.kernels)
    assert launched - {"cublasLtMatmul"} == {name for file in FILES for name in expressions(file)}
