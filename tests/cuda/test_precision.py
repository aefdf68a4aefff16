"""Precisions on the emulated device, whose products round as tensor cores do where they are allowed to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.kernels.cuda.cublaslt import DEFAULT
from nnfast.precision import resolve
from tests.cuda.emulator import EmulatedBackend, emulated_backend
from tests.cuda.fake_cupy import tf32


@pytest.fixture
def bk() -> Iterator[EmulatedBackend]:
    backend = emulated_backend()
    yield backend
    backend._cublaslt.fake.fake_refuse(0)


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((37, 5)).astype(np.float32), rng.integers(0, 3, 37)


def trained(device: Any, **arguments: Any) -> nf.Sequential:
    model = nf.Sequential([nf.Dense(8, "relu"), nf.Dense(3)])
    defaults = {"loss": "cross_entropy", "epochs": 3, "batch_size": 16, "seed": 0, "verbose": 0}
    return model.fit(*problem(), device=device, **{**defaults, **arguments}) and model


@pytest.mark.parametrize("refused", [0, DEFAULT])
def test_a_product_rounds_its_factors_within_rounding_only(bk: EmulatedBackend, refused: int) -> None:
    """By cuBLASLt, and by CuPy's cuBLAS where that has nothing."""
    bk._cublaslt.fake.fake_refuse(refused)
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((4, 6)).astype("f4"), rng.standard_normal((6, 5)).astype("f4")
    out = bk.empty((4, 5), np.float32)

    def product() -> np.ndarray:
        bk.gemm(bk.asarray(a), bk.asarray(b), out=out)
        return bk.to_numpy(out)

    exact = a.astype("f8") @ b.astype("f8")
    rounded = tf32(a).astype("f8") @ tf32(b).astype("f8")
    assert np.abs(rounded - exact).max() > 1e-4
    np.testing.assert_allclose(product(), exact, rtol=1e-5, atol=1e-6)
    with bk.rounding():
        np.testing.assert_allclose(product(), rounded, rtol=1e-5, atol=1e-6)
        with bk.rounding():
            pass
        np.testing.assert_allclose(product(), rounded, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(product(), exact, rtol=1e-5, atol=1e-6)
    assert bk._cupy.math_mode == 0


def test_rounding_ends_with_an_error(bk: EmulatedBackend) -> None:
    with pytest.raises(KeyError), bk.rounding():
        raise KeyError
    assert not bk._recording.rounding


def test_float64_products_are_not_rounded(bk: EmulatedBackend) -> None:
    a = bk.asarray(np.full((1, 1), 1 + 2.0**-40))
    with bk.rounding():
        bk.gemm(a, a, out=(out := bk.empty((1, 1), np.float64)))
    assert float(out[0, 0]) == (1 + 2.0**-40) ** 2


def test_tf32_trains_and_predicts_with_rounded_products(bk: EmulatedBackend) -> None:
    exact, rounded = trained(bk), trained(bk, precision="tf32")
    X, _ = problem()
    a, b = exact.predict(X), rounded.predict(X)
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(b, a, rtol=1e-2, atol=5e-3)
    assert (exact.precision, rounded.precision) == ("float32", "tf32")
    assert rounded.dtype == np.float32
    # The same weights, once more in float32: predictions are made anew, not from a plan of the former precision
    before = rounded.predict(X)
    rounded.parameters.move(bk, np.float32, "float32")
    assert not np.array_equal(rounded.predict(X), before)


def test_one_step_of_a_trainer(bk: EmulatedBackend) -> None:
    X, y = problem()
    losses = []
    for precision in ("float32", "tf32"):
        model = nf.Sequential([nf.Dense(8, "relu"), nf.Dense(3)])
        trainer = nf.Trainer(model, "cross_entropy", device=bk, precision=precision, seed=0)
        losses.append([trainer.step(X, y) for _ in range(3)])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)


@pytest.mark.parametrize("device", ["numpy", "numba"])
def test_a_cpu_computes_tf32_as_float32(device: str) -> None:
    if nf.available_devices()[device] is not None:
        pytest.skip(f"no {device}")
    X, _ = problem()
    np.testing.assert_array_equal(trained(device).predict(X), trained(device, precision="tf32").predict(X))


@pytest.mark.parametrize("precision", ["float32", "tf32", "float64"])
def test_it_is_saved_with_the_model(tmp_path: Path, precision: str) -> None:
    model = trained("numpy", precision=precision)
    model.save(tmp_path / "m.safetensors")
    again = nf.load(tmp_path / "m.safetensors")
    assert (again.precision, again.dtype) == (model.precision, model.dtype) == resolve(precision)
    copy = model.copy()
    assert copy.precision == precision
    # the next fit says anew what it wants
    X, y = problem()
    again.fit(X, y, verbose=0, device="numpy")
    assert again.precision == "float32"


def test_what_goes_together() -> None:
    assert resolve(None) == ("float32", np.float32)
    assert resolve(None, "float64") == ("float64", np.float64)
    assert resolve("tf32", "float32") == ("tf32", np.float32)
    for precision, dtype, names in (
        ("float16", None, "float32, tf32, bf16, fp16, float64"),
        ("tf32", "float64", "tf32.*float64"),
        ("float64", np.float32, "float64.*float32"),
        (None, "int32", "float32, float64"),
    ):
        with pytest.raises(ValueError, match=names):
            resolve(precision, dtype)
