"""The second gate: the kernels' numbers, run on the CPU from the very source that a GPU gets."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from nnfast import activations
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels import step_state as S
from nnfast.kernels.cuda import FILES, expressions
from nnfast.selftest.operations import Operations
from tests.cuda.emulator import emulated_backend
from tests.cuda.host_shim import HostShim
from tests.cuda.test_sequence_kernels import FILES as SEQUENCES

# Odd sizes, which are moved one by one; short rows in packs of 16 bytes; and more columns than a block has threads for
SHAPES = [(300, 37), (1, 1), (33, 64), (7, 3), (150, 24), (20, 1032)]
# Where an address does not allow packs, sizes matter less; beside float64 one size for each path is enough
STARTS = [*((shape, 0) for shape in SHAPES), ((300, 37), 1), ((33, 64), 1)]
FEW_STARTS = [((300, 37), 0), ((20, 1032), 0), ((33, 64), 1)]

# Files whose instantiations are counted in tests of their own
ELSEWHERE = ("conv", "depthwise", "dropout", "group_norm", "images", "pooling", "rms_norm", *SEQUENCES)


def run(
    dtype: str, shape: tuple[int, int], offset: int = 0, multiprocessors: int = 2, full: str | None = None
) -> dict[str, np.ndarray]:
    sweep = Operations(emulated_backend(multiprocessors=multiprocessors), dtype, *_usable(shape), offset, full=full)
    sweep.run()
    return sweep.results()


@cache
def expected(shape: tuple[int, int], dtype: str) -> dict[str, np.ndarray]:
    sweep = Operations(NumpyBackend(), dtype, *_usable(shape))
    sweep.run()
    return sweep.results()


@cache
def expected_of_half(shape: tuple[int, int], dtype: Any) -> dict[str, np.ndarray]:
    """In float64, from the numbers as they are rounded to `dtype`."""
    sweep = Operations(NumpyBackend(), dtype, *_usable(shape), full="float32", exact=True)
    sweep.run()
    return sweep.results()


def _usable(shape: tuple[int, int]) -> tuple[int, int]:
    return max(shape[0], 6), shape[1]  # the batch of the sweep leaves out five rows


def compare(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        found = got[name].astype(np.float64)
        finite = np.isfinite(value)  # the log of no sum is not
        np.testing.assert_array_equal(np.isfinite(found), finite, err_msg=name)
        assert finite.all() or name.startswith("lse"), name
        # Sums of hundreds of terms, relative to the largest
        scale = max(1.0, float(np.abs(value[finite]).max(initial=0.0)))
        np.testing.assert_allclose(found, value, rtol=tolerance, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(("shape", "offset"), STARTS, ids=str)
def test_numbers(shape: tuple[int, int], offset: int) -> None:
    compare(run("float64", shape, offset), expected(shape, "float64"), 1e-11)


@pytest.mark.parametrize(("shape", "offset"), FEW_STARTS, ids=str)
def test_numbers_of_32_bits(shape: tuple[int, int], offset: int) -> None:
    compare(run("float32", shape, offset), expected(shape, "float32"), 2e-5)


@pytest.mark.parametrize(("half", "tolerance"), [("float16", 2e-3), ("bfloat16", 1.6e-2)])
@pytest.mark.parametrize(("shape", "offset"), FEW_STARTS, ids=str)
def test_numbers_of_16_bits(half: str, tolerance: float, shape: tuple[int, int], offset: int) -> None:
    """Near those of float64 from the same rounded numbers; results that are float32 carry what was rounded before."""
    dtype = getattr(pytest.importorskip("ml_dtypes"), half) if half == "bfloat16" else half
    # A slope jumps where the output that it is taken from was rounded across a kink
    jumps = tuple(f" {name}" for name in activations.names() if activations.get(name).kinks)
    gradients = ("act_grad", "linear d")

    def smooth(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k: v for k, v in results.items() if not (k.startswith(gradients) and k.endswith(jumps))}

    found, wanted = run(dtype, shape, offset, full="float32"), expected_of_half(shape, dtype)
    compare(smooth(found), smooth(wanted), tolerance)


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_numbers_at_other_launch_shapes(multiprocessors: int) -> None:
    compare(run("float64", SHAPES[0], 0, multiprocessors), expected(SHAPES[0], "float64"), 1e-11)


@pytest.mark.parametrize("order", ["backward", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(shim: HostShim, order: str, dtype: str) -> None:
    """A missing barrier, or a sum in the order of arrival, would show."""
    straight = run(dtype, SHAPES[0], full="float32")
    try:
        shim.order(order)
        other = run(dtype, SHAPES[0], full="float32")
    finally:
        shim.order("forward")
    for name, value in straight.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_every_instantiation_runs() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    launched: set[str] = set()
    for dtype in ("float32", "float64", "float16", bfloat16):
        bk = emulated_backend()
        Operations(bk, dtype, full="float64" if dtype == "float64" else "float32").run()
        wide, low = bk.zeros(5, "float32"), bk.zeros(5, dtype)
        bk.copy(wide, out=low)
        bk.copy(low, out=wide)
        bk.unscale(wide, bk.zeros(S.SIZE, "float64"))
        launched.update(bk.counts.kernels)
    launched -= {"cublasLtMatmul"}
    elsewhere = {name for file in ELSEWHERE for name in expressions(file)}
    assert launched - elsewhere == {name for file in FILES for name in expressions(file)} - elsewhere


@pytest.mark.parametrize("columns", [3, 4, 40, 201])
def test_softmax_of_what_is_not_finite(columns: int) -> None:
    """One reading finds the maximum and the sum: infinities and NaN come out as of two."""
    z = np.random.default_rng(0).standard_normal((7, columns))
    z[0, 0] = z[4, :] = z[5, -1] = np.nan
    z[1, :] = z[2, 1] = z[6, :2] = -np.inf
    z[3, 0] = np.inf
    found = []
    for bk in (emulated_backend(), NumpyBackend()):
        out = bk.zeros(z.shape, "float64")
        with np.errstate(invalid="ignore"):
            bk.act("softmax", bk.asarray(z), out=out)
        found.append(bk.to_numpy(out))
    np.testing.assert_allclose(*found, rtol=1e-12)
    assert list(np.isnan(found[0]).all(1)) == [True, True, False, True, True, True, False]
