"""The generated matrix product: every edge, every way its operands are read, all vector widths."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from itertools import product as combinations
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from nnfast.kernels.cpu import gemm, linear, micro, product, threads, tuning
from nnfast.kernels.cpu.driver import Call, Program
from nnfast.kernels.cpu.fusion import fused

WIDTHS = (16, 32, 64)
# Around the tiles' 4, 8, 12 rows and 4 to 32 columns, and around the depth of a block
ROWS = (1, 3, 5, 10, 12, 13, 25, 100)
COLUMNS = (1, 8, 10, 16, 17, 31, 32, 33, 64, 300)
DEPTHS = (1, 7, 64, tuning.PRODUCT_DEPTH - 1, tuning.PRODUCT_DEPTH + 5)


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Vectors of each width; LLVM makes two of one that the host does not have."""
    monkeypatch.setattr(micro, "vector_bytes", lambda: request.param)
    product.blocking.cache_clear()
    yield request.param
    monkeypatch.undo()
    product.blocking.cache_clear()


def _run(calls: list[Call]) -> None:
    Program(calls).run()


@lru_cache(maxsize=1000)
def _problem(m: int, n: int, k: int, dtype: str) -> tuple[np.ndarray, ...]:
    """A, B, their product in float64 and the bound of the numerics policy, 8 eps |A| |B|; not to be written to."""
    rng = np.random.default_rng([m, n, k])
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    wide = a.astype(np.float64), b.astype(np.float64)
    return a, b, wide[0] @ wide[1], 8 * np.finfo(dtype).eps * (np.abs(wide[0]) @ np.abs(wide[1]))


def _operands(m: int, n: int, k: int, trans_a: bool, trans_b: bool, dtype: str) -> tuple[np.ndarray, ...]:
    a, b, expected, bound = _problem(m, n, k, dtype)
    return *(np.array(x.T if t else x, order="C") for x, t in ((a, trans_a), (b, trans_b))), expected, bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("trans_a", "trans_b"), list(combinations((False, True), repeat=2)))
def test_every_edge(width: int, trans_a: bool, trans_b: bool, dtype: str) -> None:
    sizes = list(combinations(ROWS, COLUMNS, DEPTHS))
    if width != micro.fused_vector_bytes():
        sizes = sizes[WIDTHS.index(width) :: 2]  # every other one where the host would not use these vectors
    for m, n, k in sizes:
        a, b, expected, bound = _operands(m, n, k, trans_a, trans_b, dtype)
        out = np.full((m, n), np.nan, dtype)
        _run(gemm.gemm_calls(a, b, out, trans_a, trans_b, 0.0))
        assert (np.abs(out - expected) <= bound).all(), (m, n, k)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_beta(width: int, beta: float) -> None:
    for m, n, k in ((5, 10, 64), (25, 33, 400)):
        a, b, expected, bound = _operands(m, n, k, False, False, "float32")
        start = np.random.default_rng(0).standard_normal((m, n)).astype(np.float32)
        out = start.copy()
        _run(gemm.gemm_calls(a, b, out, False, False, beta))
        assert (np.abs(out - (expected + beta * start)) <= bound + 1e-6).all()


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("per_task", [1, 2, 100])
def test_tiles_of_rows(width: int, trans_b: bool, per_task: int) -> None:
    for m, n, k in ((30, 48, 130), (30, 1, 130), (9, 17, 500)):
        a, b, expected, bound = _operands(m, n, k, False, trans_b, "float32")
        for tile in (1, 4, 7, 12, m - 1, m):
            out = np.full((m, n), np.nan, np.float32)
            _run(fused(gemm.rows_product(a, b, out, tuning.Tiles(m, tile, per_task), trans_b)))
            assert (np.abs(out - expected) <= bound).all(), (m, n, k, tile)


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_threads_share_the_columns_of_few_rows(
    width: int, trans_b: bool, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "PARALLEL_FLOPS", 0)
    for number, (m, n, k) in combinations(
        (2, 3), ((1, 300, 40), (3, 97, 130), (7, 65, 500), (30, 33, 70), (1, 9, 300))
    ):
        monkeypatch.setattr(threads, "count", lambda number=number: number)
        a, b, expected, bound = _operands(m, n, k, False, trans_b, "float32")
        # Only a forward pass has a bias, and one row gets it later: there threads share the steps of the sum
        later = trans_b or not gemm.starts_from_bias(m, n, k, np.dtype(np.float32))
        assert later == (trans_b or m == 1)
        bias = None if later else np.random.default_rng(1).standard_normal(n).astype(np.float32)
        expected = expected if bias is None else expected + bias
        out = np.full((m, n), np.nan, np.float32)
        relu = relu and not later
        calls = gemm.rows_product(a, b, out, tuning.row_tiles(m, number), trans_b, bias, relu)
        assert max(call.tasks for call in calls) > 1 or n < 32
        _run(fused(calls))
        expected = np.maximum(expected, 0) if relu else expected
        assert (np.abs(out - expected) <= bound + 1e-6).all(), (m, n, k)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_row_and_a_large_matrix(width: int, dtype: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a matrix is read in the order of its memory, in one piece by each thread."""
    monkeypatch.setattr(threads, "count", lambda: number)
    for n, k in ((1000, 403), (4096, 81), (601, 602), (300, 2)):
        a, b, expected, bound = _operands(1, n, k, False, False, dtype)
        assert k == 2 or b.nbytes > tuning.STREAMED_BYTES
        bias = np.random.default_rng(1).standard_normal(n).astype(dtype)
        expected = np.maximum(expected + bias, 0)
        bound = 4 * bound + 8 * np.finfo(dtype).eps * np.abs(bias)
        for name, saved in (("relu", None), ("tanh", np.empty((1, n), dtype))):
            out = np.full((1, n), np.nan, dtype)
            _run(fused(linear.forward_calls(a, b, bias, name, 0.0, out, saved)))
            if saved is None:
                assert (np.abs(out - expected) <= bound).all(), (n, k)
            else:
                assert (np.abs(np.maximum(saved, 0) - expected) <= bound).all(), (n, k)
                np.testing.assert_allclose(out, np.tanh(saved), rtol=1e-5, atol=1e-6)
    # A product that adds to what is there, and a row that is a column of its matrix
    a, b, expected, bound = _operands(700, 1, 520, True, False, dtype)
    out = np.ones((700, 1), dtype)
    _run(gemm.gemm_calls(a, b, out, True, False, 1.0))
    assert (np.abs(out - 1 - expected) <= 4 * bound + 1e-6).all()


def test_a_large_matrix_passes_nan_on() -> None:
    a, b = np.ones((1, 600), np.float32), np.ones((600, 520), np.float32)
    b[599, 3], b[:, 4], b[1, 5], b[2, 5] = np.nan, -1.0, np.inf, -np.inf
    out = np.empty((1, 520), np.float32)
    _run(fused(linear.forward_calls(a, b, None, "relu", 0.0, out, None)))
    expected = np.full((1, 520), 600.0)
    expected[0, 3], expected[0, 4], expected[0, 5] = np.nan, 0.0, np.nan
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("per_task", [1, 2, 100])
def test_tiles_of_depth(width: int, per_task: int) -> None:
    for m, n, k in ((30, 48, 130), (30, 1, 130), (1, 40, 130), (2, 3, 130)):
        a, b, expected, bound = _operands(m, n, k, True, False, "float32")
        for tile in (4, 13, 50, 130):
            tiles = tuning.Tiles(k, tile, per_task)
            parts = np.full((tiles.tasks, m, n), np.nan, np.float32)
            _run(fused(gemm.depth_product(a, b, parts, tiles)))
            assert (np.abs(parts.sum(axis=0) - expected) <= 2 * bound).all(), (m, n, k, tile)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bias_and_relu(width: int, relu: bool, dtype: str) -> None:
    for m, n, k in combinations((1, 5, 30), (1, 9, 70, 300), (40, tuning.PRODUCT_DEPTH + 5)):
        if not gemm.starts_from_bias(m, n, k, np.dtype(dtype)):
            assert m == 1 or m * n * k <= tuning.TINY_PRODUCT
            continue
        a, b, expected, bound = _operands(m, n, k, False, False, dtype)
        bias = np.random.default_rng(1).standard_normal(n).astype(dtype)
        expected = expected + bias
        if relu:
            expected = np.maximum(expected, 0)
        out = np.full((m, n), np.nan, dtype)
        _run(fused(gemm.rows_product(a, b, out, tuning.Tiles(m, 4), bias=bias, relu=relu)))
        assert (np.abs(out - expected) <= bound + 8 * np.finfo(dtype).eps * np.abs(bias)).all(), (m, n, k)


def test_relu_keeps_nan(width: int) -> None:
    a, b = np.ones((5, 64), np.float32), np.ones((64, 20), np.float32)
    a[2], b[:, 7] = np.nan, -1.0
    out = np.empty((5, 20), np.float32)
    _run(fused(gemm.rows_product(a, b, out, tuning.Tiles(5, 5), relu=True)))
    expected = np.full((5, 20), 64.0)
    expected[:, 7], expected[2] = 0.0, np.nan
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("width", "dtype"), [(16, "float32"), (64, "float32"), (32, "float64")], indirect=["width"])
def test_copies_and_packed_blocks(width: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large products copy A and pack B by blocks; here all do, and blocks are small enough to have several."""
    small = {
        "FAR_ROWS": 0,
        "PACKED_FOR_ROWS": 1,
        "PACKED_FROM_DEPTH": 1,
        "COPIED_FOR_COLUMNS": 0,
        "COPIED_TILES": 2,
        "CLASHING_STRIDE": 1,
        "PRODUCT_BLOCK_BYTES": 1 << 16,
        "PARALLEL_FLOPS": 0,
    }
    for name, value in small.items():
        monkeypatch.setattr(tuning, name, value)
    product.blocking.cache_clear()
    sizes = combinations((2, 13, 61), (9, 200), (33, tuning.PRODUCT_DEPTH + 5))
    for (m, n, k), trans_a, trans_b in combinations(list(sizes), (False, True), (False, True)):
        a, b, expected, bound = _operands(m, n, k, trans_a, trans_b, dtype)
        # Packed by each task for itself, or for all of them before
        for number, packed_bytes, beta in combinations((1, 3), (0, 1 << 30), (0.0, 1.0)):
            monkeypatch.setattr(threads, "count", lambda number=number: number)
            monkeypatch.setattr(tuning, "PACKED_BYTES", packed_bytes)
            out = np.full((m, n), 2.0 if beta else np.nan, dtype)
            _run(gemm.gemm_calls(a, b, out, trans_a, trans_b, beta))
            more = 8 * np.finfo(dtype).eps * beta * (2 + np.abs(expected))
            assert (np.abs(out - 2 * beta - expected) <= bound + more).all(), (m, n, k, trans_a, trans_b)


def test_how_large_products_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share the larger side of a product whose B each of them packs; a gradient may still be cut by rows."""
    monkeypatch.setattr(threads, "count", lambda: 2)
    monkeypatch.setattr(tuning, "PACKED_BYTES", 1 << 16)
    for m, n, mode in ((96, 256, gemm.COLUMNS), (256, 96, gemm.ROWS)):
        a, b, expected, bound = _operands(m, n, 700, True, False, "float32")
        out = np.empty((m, n), np.float32)
        (call,) = gemm.gemm_calls(a, b, out, True, False, 0.0)
        assert call.ints[12] == mode
        assert call.cut is not None
        for calls in ([call], call.cut(tuning.Tiles(m, 20))):
            out[:] = np.nan
            _run(calls)
            assert (np.abs(out - expected) <= bound).all()


def test_rows_that_clash_in_the_cache_are_packed(width: int) -> None:
    blocks = product.blocking(np.dtype(np.float32))
    assert blocks is not None
    stride = tuning.CLASHING_STRIDE // 4
    assert not blocks.reads_rows(stride)
    assert blocks.reads_rows(stride + 16)
    a, b, expected, bound = _operands(40, 40, stride, False, False, "float32")
    out = np.empty((40, 40), np.float32)
    _run(gemm.gemm_calls(a, b, out, False, False, 0.0))
    assert (np.abs(out - expected) <= bound).all()


def test_what_is_not_finite_stays_where_it_belongs(width: int) -> None:
    a, b, expected, _ = _operands(25, 33, 40, False, False, "float32")
    a[3, 5], b[7, 32] = np.nan, np.inf
    expected = a.astype(np.float64) @ b.astype(np.float64)
    out = np.empty((25, 33), np.float32)
    _run(gemm.gemm_calls(a, b, out, False, False, 0.0))
    np.testing.assert_array_equal(np.isfinite(out), np.isfinite(expected))


def test_denormal_numbers_are_numbers(width: int) -> None:
    tiny = np.full((25, 40), 1e-40, np.float32)
    tiny[::2] *= -3
    out = np.empty((25, 40), np.float32)
    _run(gemm.gemm_calls(tiny, np.eye(40, dtype=np.float32), out, False, False, 0.0))
    np.testing.assert_array_equal(out, tiny)


def test_the_result_does_not_depend_on_the_number_of_threads(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _, _ = _operands(150, 300, 500, False, False, "float32")
    results = []
    for number in (1, 2, 3):
        monkeypatch.setattr(threads, "count", lambda number=number: number)
        results.append(np.empty((150, 300), np.float32))
        _run(gemm.gemm_calls(a, b, results[-1], False, False, 0.0))
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()


def test_blas_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("threadpoolctl")
    monkeypatch.setenv("NNFAST_GEMM", "blas")
    for trans_a, trans_b in combinations((False, True), repeat=2):
        a, b, expected, bound = _operands(25, 33, 64, trans_a, trans_b, "float32")
        out = np.empty((25, 33), np.float32)
        calls = gemm.gemm_calls(a, b, out, trans_a, trans_b, 0.0)
        assert any(call.blas for call in calls)
        _run(calls)
        assert (np.abs(out - expected) <= bound).all()


@pytest.mark.parametrize("missing", ["scipy.linalg.cython_blas", "threadpoolctl"])
def test_blas_needs_its_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setenv("NNFAST_GEMM", "blas")
    monkeypatch.setitem(sys.modules, missing, None)
    gemm.blas_address.cache_clear()
    a = np.ones((20, 20), np.float32)
    with pytest.raises(ImportError, match=r"NNFAST_GEMM=blas needs SciPy.*nnfast\[blas\]"):
        gemm.gemm_calls(a, a, np.empty_like(a), False, False, 0.0)


def test_another_choice_of_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNFAST_GEMM", "mkl")
    a = np.ones((20, 20), np.float32)
    with pytest.raises(ValueError, match=r"NNFAST_GEMM is 'mkl'; expected 'measured', 'generated' or 'blas'"):
        gemm.gemm_calls(a, a, np.empty_like(a), False, False, 0.0)


@pytest.mark.parametrize(
    ("triple", "features", "fused", "width"),
    [
        ("x86_64-unknown-linux-gnu", ("avx512f", "avx2", "fma"), 64, 64),
        ("x86_64-unknown-linux-gnu", ("avx2", "fma"), 32, 32),
        ("x86_64-unknown-linux-gnu", ("avx", "sse2"), 0, 16),
        ("arm64-apple-darwin", (), 16, 16),
        ("riscv64-unknown-linux-gnu", (), 0, 16),
    ],
)
def test_vectors(
    monkeypatch: pytest.MonkeyPatch, triple: str, features: tuple[str, ...], fused: int, width: int
) -> None:
    monkeypatch.setattr(micro.llvm, "get_process_triple", lambda: triple)
    monkeypatch.setattr(micro.llvm, "get_host_cpu_features", lambda: dict.fromkeys(features, True))
    micro.fused_vector_bytes.cache_clear()
    try:
        assert (micro.fused_vector_bytes(), micro.vector_bytes()) == (fused, width)
    finally:
        micro.fused_vector_bytes.cache_clear()


def test_a_host_whose_vectors_are_not_known(tmp_path: Path) -> None:
    """In a process that compiles for a machine with no fused multiply-add and few registers."""
    script = """
        import numpy as np
        from nnfast.kernels.cpu import micro
        micro.fused_vector_bytes = lambda: 0
        from nnfast.backends.numba_backend import NumbaBackend
        from nnfast.kernels.cpu import specialise
        rng = np.random.default_rng(0)
        for dtype in (np.float32, np.float64):
            for m, n, k in ((25, 33, 64), (1, 40, 30), (30, 1, 70), (9, 17, 400)):
                a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
                out = np.full((m, n), np.nan, dtype)
                NumbaBackend().gemm(a, b, out=out)
                wide = [x.astype(np.float64) for x in (a, b)]
                bound = 8 * np.finfo(dtype).eps * (np.abs(wide[0]) @ np.abs(wide[1]))
                assert (np.abs(out - wide[0] @ wide[1]) <= bound).all(), (dtype, m, n, k)
        kernels = [f for (template, *_), f in specialise._kernels.items() if template.__name__ == "generated_product"]
        assert len(kernels) == 2
        for found in kernels:
            ir = found.inspect_llvm()
            assert "llvm.fma." not in ir, "the C library would do it"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "NNFAST_CACHE": str(tmp_path), "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
