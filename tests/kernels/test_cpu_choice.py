"""Whether BLAS does a product: what is asked for, what was measured, and what is remembered of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from nnfast.kernels.cpu import choice, gemm, tuning

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


class Measure:
    """Measurements that come out as they are given, the last one again and again."""

    def __init__(self, *times: tuple[float, float]) -> None:
        self.times, self.asked = list(times), list[tuple[int, int, int, str]]()

    def __call__(self, m: int, n: int, k: int, dtype: np.dtype[Any]) -> tuple[float, float]:
        self.asked.append((m, n, k, dtype.name))
        return self.times[min(len(self.asked), len(self.times)) - 1]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A machine where nothing was measured, with SciPy; a call is a new process on it."""

    def restart() -> None:
        choice._remembered.cache_clear()
        choice._decided.clear()

    monkeypatch.delenv("NNFAST_GEMM", raising=False)
    monkeypatch.setattr(choice, "folder", lambda: tmp_path)
    monkeypatch.setattr(choice, "_blas_version", lambda: "1.0")
    monkeypatch.setattr(tuning, "CHOICE_PAUSE", 0.0)
    restart()
    yield restart
    restart()


def test_the_faster_one_is_used_and_remembered(machine: Callable[[], None], tmp_path: Path) -> None:
    measure = Measure((2.0, 1.0))
    assert choice.uses_blas(4096, 512, 300, F32, measure)
    assert set(measure.asked) == {(tuning.TILE_ROWS, 512, 512, "float32")}
    machine()
    never = Measure()
    assert choice.uses_blas(300, 2000, 256, F32, never)
    assert not never.asked
    assert json.loads((tmp_path / "products.json").read_text()) == {"scipy 1.0 float32 wide": [2.0, 1.0]}
    assert choice.measurements() == {"float32 wide": [2.0, 1.0]}


def test_classes_and_dtypes_are_measured_apart(machine: Callable[[], None]) -> None:
    fast, slow = Measure((2.0, 1.0)), Measure((1.0, 2.0))
    assert choice.uses_blas(4096, 512, 300, F32, fast)
    assert not choice.uses_blas(4096, 512, 300, F64, slow)
    assert not choice.uses_blas(4096, 64, 300, F32, slow)
    assert choice.uses_blas(32, 4096, 4096, F64, fast)
    assert list(choice.measurements()) == [
        "float32 wide",
        "float32 narrow",
        "float64 wide",
        "float64 narrow",
    ]


def test_a_tenth_is_needed(machine: Callable[[], None]) -> None:
    assert not choice.uses_blas(400, 400, 400, F32, Measure((1.0, 0.91)))
    assert choice.uses_blas(400, 400, 400, F64, Measure((1.0, 0.89)))


def test_what_was_disturbed_once_is_not_believed(machine: Callable[[], None]) -> None:
    measure = Measure((2.0, 1.0), (2.0, 1.0), (1.0, 1.1), (2.0, 1.0))
    assert not choice.uses_blas(400, 400, 400, F32, measure)
    assert len(measure.asked) == 3
    assert choice.measurements() == {"float32 wide": [1.0, 1.1]}
    sure = Measure((2.0, 1.0))
    assert choice.uses_blas(400, 400, 400, F64, sure)
    assert len(sure.asked) == tuning.CHOICE_TIMES


@pytest.mark.parametrize("size", [(1, 4096, 4096), (4096, 10, 300), (31, 31, 31)])
def test_small_and_thin_products_are_not_measured(machine: Callable[[], None], size: tuple[int, int, int]) -> None:
    measure = Measure((2.0, 1.0))
    assert not choice.uses_blas(*size, F32, measure)
    assert not measure.asked


def test_without_scipy_nothing_is_measured(machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_blas_version", lambda: None)
    measure = Measure((2.0, 1.0))
    assert not choice.uses_blas(400, 400, 400, F32, measure)
    assert not measure.asked
    assert choice.measurements() == {}


def test_another_version_is_measured_anew(machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.uses_blas(400, 400, 400, F32, Measure((2.0, 1.0)))
    monkeypatch.setattr(choice, "_blas_version", lambda: "2.0")
    machine()
    assert not choice.uses_blas(400, 400, 400, F32, Measure((1.0, 1.0)))


def test_a_broken_scipy_is_not_used(machine: Callable[[], None]) -> None:
    def broken(*_: Any) -> tuple[float, float]:
        raise ImportError("no cython_blas")

    assert not choice.uses_blas(400, 400, 400, F32, broken)
    machine()
    assert not choice.uses_blas(400, 400, 400, F32, Measure((2.0, 1.0)))
    assert choice.measurements()["float32 wide"][1] == math.inf


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"scipy 1.0 float32 wide": [2.0]}', '{"scipy 1.0 float32 wide": ["a", -1]}']
)
def test_a_damaged_file_is_measured_anew(machine: Callable[[], None], tmp_path: Path, text: str) -> None:
    (tmp_path / "products.json").write_text(text)
    measure = Measure((1.0, 2.0))
    assert not choice.uses_blas(400, 400, 400, F32, measure)
    assert len(measure.asked) == 1


@pytest.mark.parametrize(("asked", "blas"), [("generated", False), ("blas", True)])
def test_what_is_asked_for_is_not_measured(
    machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch, asked: str, blas: bool
) -> None:
    monkeypatch.setenv("NNFAST_GEMM", asked)
    measure = Measure((1.0, 1.0))
    assert choice.uses_blas(400, 400, 400, F32, measure) is blas
    assert not measure.asked


@pytest.mark.parametrize("dtype", [F32, F64])
def test_both_are_timed(dtype: np.dtype[Any]) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("threadpoolctl")
    own, blas = gemm._times(48, 40, 36, dtype)
    assert 0 < own < 1
    assert 0 < blas < 1


@pytest.mark.parametrize("blas", [False, True])
def test_products_follow_the_choice(machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch, blas: bool) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("threadpoolctl")
    monkeypatch.setattr(gemm, "_times", Measure((1.0, 0.5 if blas else 2.0)))
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 50)).astype("f"), rng.standard_normal((50, 60)).astype("f")
    out = np.empty((40, 60), np.float32)
    calls = gemm.gemm_calls(a, b, out, False, False, 0.0)
    assert any(call.blas for call in calls) is blas
    from nnfast.kernels.cpu.driver import Program

    Program(calls).run()
    np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-4)
