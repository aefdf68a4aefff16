"""The wrapper of cuBLASLt, over a library with the same functions on the CPU."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnfast.kernels.cuda import cublaslt, cublaslt_library
from nnfast.kernels.cuda.algorithms import Algorithms
from nnfast.kernels.cuda.cublaslt import BIAS, DEFAULT, GELU_BIAS, RELU_BIAS, Plan, Problem, alignment
from nnfast.kernels.cuda.cublaslt_library import Algorithm, CublasLtError, Library
from tests.cuda.fake_cublaslt import WORKSPACE, after, library_path, run
from tests.cuda.host_shim import unavailable


@pytest.fixture(scope="module")
def library() -> Library:
    if reason := unavailable():
        pytest.skip(reason)
    return Library(library_path())


@pytest.fixture
def fake(library: Library) -> Iterator[ctypes.CDLL]:
    """The switches of the library, off again after the test."""
    switches = ctypes.CDLL(library_path())
    switches.fake_fail.argtypes = [ctypes.c_uint64]
    yield switches
    switches.fake_refuse(0)
    switches.fake_fail(0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("epilogue", [DEFAULT, BIAS, RELU_BIAS, GELU_BIAS])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (17, 4, 33), (1, 9, 5), (8, 1, 6)])
def test_a_product_of_rows(
    library: Library, size: tuple[int, int, int], trans_a: bool, trans_b: bool, epilogue: int, dtype: str
) -> None:
    m, n, k = size
    rng = np.random.default_rng(m + n + k)
    a, b, c = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (m, n)))
    bias = None if epilogue == DEFAULT else rng.standard_normal(n).astype(dtype)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    a, b = (np.ascontiguousarray(x.T) if trans else x for x, trans in ((a, trans_a), (b, trans_b)))
    for accumulate in (False, True):
        start = c.copy()
        wanted = expected + (start if accumulate else 0) + (0 if bias is None else bias)
        plan = Plan(library, Problem(m, n, k, dtype, dtype, trans_a, trans_b, epilogue, accumulate), WORKSPACE)
        run(plan, a, b, start, bias)
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(start, after(epilogue, wanted), rtol=4 * eps, atol=4 * eps)


def test_tf32_is_asked_for_by_the_compute_type_alone(library: Library) -> None:
    a = np.full((1, 1), 1 + 2**-11 - 2**-20, np.float32)  # rounds to 1 with ten bits
    results = {}
    for compute in ("float32", "tf32"):
        c = np.empty((1, 1), np.float32)
        run(Plan(library, Problem(1, 1, 1, "float32", compute), WORKSPACE), a, a, c)
        results[compute] = c[0, 0]
    assert results["tf32"] == 1.0
    assert results["float32"] == np.float32(a[0, 0] ** 2) != 1.0


def test_alignment() -> None:
    assert alignment(512) == 256
    assert alignment(512, 48) == 16
    assert alignment(512, 20, 64) == 4
    assert alignment(7) == 1


def test_structures_are_as_large_as_the_library_s() -> None:
    assert ctypes.sizeof(Algorithm) == 64
    assert ctypes.sizeof(cublaslt_library.Heuristic) == 96


# ---- which algorithm -------------------------------------------------------------------------------
PROBLEM = Problem(4, 4, 4, "float32", "float32")


def number(algorithm: Algorithm) -> int:
    return int(algorithm.data[0])


def test_candidates_fit_into_the_workspace(library: Library) -> None:
    assert [number(x) for x in Plan(library, PROBLEM, WORKSPACE).candidates] == [100, 101]
    assert [number(x) for x in Plan(library, PROBLEM, 0).candidates] == [100]


def test_the_fastest_candidate_is_used(library: Library) -> None:
    plan = Plan(library, PROBLEM, WORKSPACE)
    assert number(plan.algorithm) == 100
    plan.choose(lambda algorithm: {100: 2.0, 101: 1.0}[number(algorithm)])
    assert number(plan.algorithm) == 101


def test_a_candidate_that_fails_is_left_out(library: Library, fake: ctypes.CDLL) -> None:
    a = np.ones((4, 4), np.float32)
    plan = Plan(library, PROBLEM, WORKSPACE)

    def seconds(algorithm: Algorithm) -> float:
        run_with = plan.algorithm
        plan.algorithm = algorithm
        try:
            run(plan, a, a, np.empty_like(a))
        finally:
            plan.algorithm = run_with
        return float(number(algorithm))

    fake.fake_fail(100)
    plan.choose(seconds)
    assert number(plan.algorithm) == 101
    plan.candidates = plan.candidates[:1]
    with pytest.raises(CublasLtError, match="not supported"):
        plan.choose(seconds)


def test_an_algorithm_from_elsewhere_is_checked(library: Library) -> None:
    plan = Plan(library, PROBLEM, WORKSPACE)
    for name, good in ((100, True), (101, True), (102, False), (7, False)):  # 102 wants more room
        algorithm = Algorithm()
        algorithm.data[0] = name
        assert plan.accepts(algorithm) == good


def test_what_the_library_cannot_do_is_an_error_with_a_status(library: Library, fake: ctypes.CDLL) -> None:
    with pytest.raises(CublasLtError, match="cublasLtMatmulAlgoGetHeuristic: not supported") as caught:
        Plan(library, Problem(4, 4, 4, "float32", "float64"), WORKSPACE)
    assert caught.value.status == 15
    fake.fake_refuse(RELU_BIAS)
    with pytest.raises(CublasLtError, match="not supported"):
        Plan(library, Problem(4, 4, 4, "float32", "float32", epilogue=RELU_BIAS), WORKSPACE)
    with pytest.raises(CublasLtError, match="cublasLtMatmul: invalid value"):
        run(Plan(library, Problem(4, 4, 4, "float32", "float32", epilogue=BIAS), 0), *[np.ones((4, 4), "f4")] * 3)


def test_nothing_is_left_of_a_plan(library: Library, fake: ctypes.CDLL) -> None:
    gc.collect()
    before = fake.fake_alive()
    plan = Plan(library, PROBLEM, WORKSPACE)
    assert fake.fake_alive() > before
    del plan
    gc.collect()
    assert fake.fake_alive() == before
    with pytest.raises(CublasLtError):
        Plan(library, Problem(4, 4, 4, "bfloat16", "tf32"), WORKSPACE)
    gc.collect()
    assert fake.fake_alive() == before


# ---- the library -------------------------------------------------------------------------------------
def test_a_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"libcublasLt\.so\.99"):
        Library("libcublasLt.so.99")
    broken = tmp_path / "libcublasLt.so.13"
    broken.write_bytes(b"\x7fELF and nothing more")
    with pytest.raises(OSError, match="libcublasLt"):
        Library(str(broken))


def test_a_library_without_a_function() -> None:
    import _ctypes

    with pytest.raises(OSError, match="has no cublasLtCreate"):
        Library(_ctypes.__file__)


def test_no_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pathfinder = pytest.importorskip("cuda.pathfinder")

    def missing(name: str) -> None:
        raise pathfinder.DynamicLibNotFoundError(f"Failure finding {name}\n  tried this\n  and that")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
    with pytest.raises(OSError, match=r"^cuBLASLt cannot be loaded: Failure finding cublasLt$"):
        cublaslt_library.find()
    monkeypatch.setattr(
        pathfinder, "load_nvidia_dynamic_lib", lambda name: SimpleNamespace(abs_path=f"/lib/{name}.so.13")
    )
    assert cublaslt_library.find() == "/lib/cublasLt.so.13"


def test_names_of_choices_on_disk() -> None:
    """Those of float32 and float64 are what they have always been: choices of former versions hold."""
    known = {
        Problem(2, 3, 4, "float32", "tf32", True, False, BIAS, False, (16, 256, 4)): (
            "2-3-4-float32-tf32-True-False-4-False-(16, 256, 4)-0"
        ),
        Problem(2, 3, 8, "float64", "float64", epilogue=cublaslt.GELU_AUX_BIAS, accumulate=True, aux=8): (
            "2-3-8-float64-float64-False-False-164-True-(16, 16, 16)-8"
        ),
        Problem(2, 3, 4, "float16", "float32"): ("2-3-4-float16-float32-False-False-1-False-(16, 16, 16)-0-float16"),
        Problem(2, 3, 4, "bfloat16", "float32", out="float32"): (
            "2-3-4-bfloat16-float32-False-False-1-False-(16, 16, 16)-0-float32"
        ),
    }
    assert [problem.key for problem in known] == list(known.values())
    assert Problem(2, 3, 4, "float16", "float32", out="float16") == Problem(2, 3, 4, "float16", "float32")


# ---- memory of the choices -----------------------------------------------------------------------------
def algorithm(first: int) -> Algorithm:
    made = Algorithm()
    made.data[0], made.data[7] = first, 2**64 - 1
    return made


def test_choices_are_remembered_for_a_gpu_and_a_version(tmp_path: Path) -> None:
    Algorithms("NVIDIA H200 9.0", 130100, tmp_path).put("a", algorithm(1))
    other = Algorithms("NVIDIA H200 9.0", 130100, tmp_path)
    other.put("b", algorithm(2))
    again = Algorithms("NVIDIA H200 9.0", 130100, tmp_path)
    assert [bytes(again.get(key) or b"") for key in "ab"] == [bytes(algorithm(i)) for i in (1, 2)]
    assert again.get("c") is None
    assert Algorithms("NVIDIA H200 9.0", 130200, tmp_path).get("a") is None
    assert Algorithms("NVIDIA A100 8.0", 130100, tmp_path).get("a") is None
    assert [path.name for path in tmp_path.iterdir()] == ["cublaslt-130100-nvidia-h200-9.0.json"]


def test_two_processes_do_not_lose_each_other_s_choices(tmp_path: Path) -> None:
    one, other = Algorithms("gpu", 1, tmp_path), Algorithms("gpu", 1, tmp_path)
    one.put("a", algorithm(1))
    other.put("b", algorithm(2))
    assert all(Algorithms("gpu", 1, tmp_path).get(key) for key in "ab")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 5}', '{"a": "zz"}', '{"a": "00"}', "\xff"])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, text: str) -> None:
    choices = Algorithms("gpu", 1, tmp_path)
    choices.path.write_text(text, encoding="latin-1")
    damaged = Algorithms("gpu", 1, tmp_path)
    assert damaged.get("a") is None
    damaged.put("b", algorithm(3))
    assert Algorithms("gpu", 1, tmp_path).get("b") is not None


def test_where_nothing_can_be_written_the_choice_holds_for_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    choices = Algorithms("gpu", 1, tmp_path / "file" / "below")
    choices.put("a", algorithm(4))
    assert bytes(choices.get("a") or b"") == bytes(algorithm(4))


# ---- epilogues of training -------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [(3, 8, 7), (17, 24, 33), (1, 8, 5), (5, 136, 4)])
@pytest.mark.parametrize("kind", ["relu", "gelu"])
def test_what_the_forward_pass_leaves_is_what_the_backward_pass_needs(
    library: Library, kind: str, size: tuple[int, int, int], dtype: str
) -> None:
    m, n, k = size
    rng = np.random.default_rng(m + n)
    x, W, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (n,)))
    z = x.astype("f8") @ W.astype("f8") + bias
    if kind == "relu":
        forward, backward, leading = cublaslt.RELU_AUX_BIAS, cublaslt.DRELU_BGRAD, cublaslt.mask_bits(n)
        aux = np.full(m * leading // 8, 0x5A, np.uint8)
        expected, slope = np.maximum(z, 0), (z > 0).astype("f8")
    else:
        forward, backward, leading = cublaslt.GELU_AUX_BIAS, cublaslt.DGELU_BGRAD, n
        aux = np.zeros((m, n), dtype)
        step = 1e-6
        expected = after(GELU_BIAS, z)
        slope = (after(GELU_BIAS, z + step) - after(GELU_BIAS, z - step)) / (2 * step)
    out = np.zeros((m, n), dtype)
    run(Plan(library, Problem(m, n, k, dtype, dtype, epilogue=forward, aux=leading), WORKSPACE), x, W, out, bias, aux)
    tolerance = 1e-5 if dtype == "float32" else 1e-8
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)
    # dz of this layer from the one above, with weights V (n, p): (dy V^T) * slope, and its column sums
    p = 6
    dy, V = rng.standard_normal((m, p)).astype(dtype), rng.standard_normal((n, p)).astype(dtype)
    dz, db = np.zeros((m, n), dtype), np.zeros(n, dtype)
    problem = Problem(m, n, p, dtype, dtype, trans_b=True, epilogue=backward, aux=leading)
    run(Plan(library, problem, WORKSPACE), dy, V, dz, db, aux)
    wanted = (dy.astype("f8") @ V.T.astype("f8")) * slope
    np.testing.assert_allclose(dz, wanted, rtol=10 * tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(db, wanted.sum(axis=0), rtol=10 * tolerance, atol=10 * tolerance)


def test_rows_of_masks() -> None:
    assert [cublaslt.mask_bits(n) for n in (1, 128, 129, 1000)] == [128, 128, 256, 1024]


def test_auxiliary_memory_must_be_as_wide_as_the_library_wants(library: Library) -> None:
    for epilogue, leading in ((cublaslt.RELU_AUX_BIAS, 64), (cublaslt.GELU_AUX_BIAS, 12), (cublaslt.DRELU_BGRAD, 0)):
        with pytest.raises(CublasLtError, match="not supported"):
            Plan(library, Problem(4, 12, 4, "float32", "float32", epilogue=epilogue, aux=leading), WORKSPACE)
