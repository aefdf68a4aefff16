"""Products of 16-bit factors: by the wrapper of cuBLASLt, by the backend, and by CuPy's cuBLAS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nnfast.kernels.cuda import cublaslt
from nnfast.kernels.cuda.cublaslt import BIAS, DEFAULT, GELU_BIAS, RELU_BIAS, Plan, Problem
from nnfast.kernels.cuda.cublaslt_library import Algorithm, CublasLtError, Library
from tests.cuda.emulator import EmulatedBackend, emulated_backend
from tests.cuda.fake_cublaslt import WORKSPACE, after, library_path, run
from tests.cuda.host_shim import unavailable

ml_dtypes = pytest.importorskip("ml_dtypes")

HALF = ("float16", "bfloat16")
EVERY = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
FORCED = (None, "epilogue", "cuBLASLt", "absent")


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


def assert_rounded_once(found: np.ndarray, exact: np.ndarray, size: np.ndarray | float) -> None:
    """`found` is `exact` within half a unit of its last place, and what float32 loses in sums of magnitude `size`."""
    info = ml_dtypes.finfo(found.dtype)
    error = np.abs(wide(found) - exact)
    in_sums = 32 * np.finfo(np.float32).eps * (np.abs(exact) + size)
    unit = float(info.eps) / 2 if found.dtype.itemsize == 2 else float(info.eps)
    assert (error <= unit * np.abs(exact) + float(info.smallest_subnormal) + in_sums).all(), error.max()


def stored(x: np.ndarray, transposed: bool) -> np.ndarray:
    return np.ascontiguousarray(x.T) if transposed else x


@pytest.fixture(scope="module")
def library() -> Library:
    if reason := unavailable():
        pytest.skip(reason)
    return Library(library_path())


# ---- the wrapper of cuBLASLt ----------------------------------------------------------------------------
@pytest.mark.parametrize("result", ["16 bits", "float32"])
@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("epilogue", [DEFAULT, BIAS, RELU_BIAS, GELU_BIAS])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (17, 4, 33), (1, 9, 5)])
def test_a_product_of_rows(
    library: Library,
    size: tuple[int, int, int],
    trans_a: bool,
    trans_b: bool,
    epilogue: int,
    name: str,
    result: str,
) -> None:
    m, n, k = size
    rng = np.random.default_rng(m + n + k)
    out = name if result == "16 bits" else result
    a, b = (drawn(rng, shape, dtype_of(name)) for shape in ((m, k), (k, n)))
    c, bias = (drawn(rng, shape, dtype_of(out)) for shape in ((m, n), (n,)))
    exact, magnitude = wide(a) @ wide(b), np.abs(wide(a)) @ np.abs(wide(b))
    for accumulate in (False, True):
        start = c.copy()
        wanted = exact + (wide(start) if accumulate else 0) + (0 if epilogue == DEFAULT else wide(bias))
        problem = Problem(m, n, k, name, "float32", trans_a, trans_b, epilogue, accumulate, out=out)
        plan = Plan(library, problem, WORKSPACE)
        run(plan, stored(a, trans_a), stored(b, trans_b), start, None if epilogue == DEFAULT else bias)
        assert_rounded_once(start, after(epilogue, wanted), magnitude)


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("size", [(3, 8, 7), (17, 24, 33), (1, 8, 5)])
@pytest.mark.parametrize("kind", ["relu", "gelu"])
def test_what_the_forward_pass_leaves_is_what_the_backward_pass_needs(
    library: Library, kind: str, size: tuple[int, int, int], name: str
) -> None:
    m, n, k = size
    dtype, rng = dtype_of(name), np.random.default_rng(m + n)
    x, W, bias = (drawn(rng, shape, dtype) for shape in ((m, k), (k, n), (n,)))
    z, magnitude = wide(x) @ wide(W) + wide(bias), np.abs(wide(x)) @ np.abs(wide(W))
    if kind == "relu":
        forward, backward, leading = cublaslt.RELU_AUX_BIAS, cublaslt.DRELU_BGRAD, cublaslt.mask_bits(n)
        aux: np.ndarray = np.full(m * leading // 8, 0x5A, np.uint8)
        expected, slope = np.maximum(z, 0), (z > 0).astype("f8")
    else:
        forward, backward, leading = cublaslt.GELU_AUX_BIAS, cublaslt.DGELU_BGRAD, n
        aux = np.zeros((m, n), dtype)
        expected = after(GELU_BIAS, z)
    out = np.zeros((m, n), dtype)
    problem = Problem(m, n, k, name, "float32", epilogue=forward, aux=leading)
    run(Plan(library, problem, WORKSPACE), x, W, out, bias, aux)
    assert_rounded_once(out, expected, magnitude)
    if kind == "gelu":  # its input, rounded as the result is; the slope is that of the rounded input
        assert_rounded_once(aux, z, magnitude)
        step = 1e-6
        slope = (after(GELU_BIAS, wide(aux) + step) - after(GELU_BIAS, wide(aux) - step)) / (2 * step)
    p = 6
    dy, V = drawn(rng, (m, p), dtype), drawn(rng, (n, p), dtype)
    dz, db = np.zeros((m, n), dtype), np.zeros(n, dtype)
    problem = Problem(m, n, p, name, "float32", trans_b=True, epilogue=backward, aux=leading)
    run(Plan(library, problem, WORKSPACE), dy, V, dz, db, aux)
    wanted, magnitude = (wide(dy) @ wide(V).T) * slope, np.abs(wide(dy)) @ np.abs(wide(V)).T
    assert_rounded_once(dz, wanted, magnitude)
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert_rounded_once(db, wanted.sum(axis=0), eps / 2 / np.finfo("f4").eps / 32 * np.abs(wanted).sum(axis=0) + 1)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_results_are_rounded_to_the_nearest_even(library: Library, dtype: np.dtype[Any]) -> None:
    """Every value times 1, and times a number: what lies between two, the largest, the smallest, infinity and NaN."""
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    one = np.ones((1, 1), dtype)
    problem = Problem(values.size, 1, 1, dtype.name, "float32")
    plan = Plan(library, problem, WORKSPACE)
    found = np.empty((values.size, 1), dtype)
    run(plan, values.reshape(-1, 1), one, found)
    np.testing.assert_array_equal(found.ravel().astype("f4"), values.astype("f4"))  # NaN equals NaN here
    rng = np.random.default_rng(0)
    b = drawn(rng, (1, 1), dtype)
    run(plan, values.reshape(-1, 1), b, found)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = values.astype("f4") * b.astype("f4")[0, 0]  # at most 22 bits: exact in float32, so rounded once
        np.testing.assert_array_equal(found.ravel().astype("f4"), exact.astype(dtype).astype("f4"))


@pytest.mark.parametrize("name", HALF)
def test_sums_are_not_rounded_midway(library: Library, name: str) -> None:
    """1 and many small numbers, which a sum of 16 bits loses: no algorithm that adds up so is a candidate."""
    k = 512
    a = np.full((1, k), 2.0**-12, np.float32).astype(dtype_of(name))
    a[0, 0] = 1
    c = np.empty((1, 1), dtype_of(name))
    plan = Plan(library, Problem(1, 1, k, name, "float32"), WORKSPACE)
    run(plan, a, np.ones((k, 1), c.dtype), c)
    assert float(c[0, 0]) == 1.125
    assert [int(x.data[0]) for x in plan.candidates] == [100, 101]
    result = Plan(library, Problem(1, 1, k, name, "float32", out="float32"), WORKSPACE)
    assert [int(x.data[0]) for x in result.candidates] == [100, 101]


@pytest.mark.parametrize(
    ("dtype", "compute", "out"),
    [
        *[("float16", compute, "float16") for compute in ("tf32", "float64")],
        *[("bfloat16", compute, "bfloat16") for compute in ("tf32", "float64")],
        *[("float16", "float32", out) for out in ("bfloat16", "float64")],
        *[("bfloat16", "float32", out) for out in ("float16", "float64")],
        *[("float32", "float32", out) for out in (*HALF, "float64")],
        ("float64", "float64", "float32"),
    ],
)
def test_types_that_do_not_go_together(library: Library, dtype: str, compute: str, out: str) -> None:
    with pytest.raises(CublasLtError, match="not supported") as caught:
        Plan(library, Problem(4, 4, 4, dtype, compute, out=out), WORKSPACE)
    assert caught.value.status == 15


def test_an_algorithm_from_elsewhere_is_checked(library: Library) -> None:
    plan = Plan(library, Problem(4, 4, 4, "float16", "float32", out="float32"), WORKSPACE)
    for name, good in ((100, True), (101, True), (102, False), (7, False)):  # 102 wants more room
        algorithm = Algorithm()
        algorithm.data[0] = name
        assert plan.accepts(algorithm) == good


# ---- the backend ------------------------------------------------------------------------------------------
@pytest.fixture
def bk() -> Iterator[EmulatedBackend]:
    backend = emulated_backend()
    yield backend
    backend._cublaslt.fake.fake_refuse(0)


def forced(bk: EmulatedBackend, way: str | None, epilogue: int = DEFAULT) -> Any:
    """`bk` without what `way` says: an epilogue, plain products too, the library."""
    if way == "epilogue":
        bk._cublaslt.fake.fake_refuse(epilogue)
    elif way == "cuBLASLt":
        bk._cublaslt.fake.fake_refuse(DEFAULT)
    elif way == "absent":
        return bk.fallbacks()["cuBLASLt"]
    return bk


@pytest.mark.parametrize("way", [None, "cuBLASLt", "absent"])
@pytest.mark.parametrize("result", ["16 bits", "float32"])
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("rounding", [False, True])
def test_gemm(bk: EmulatedBackend, dtype: np.dtype[Any], result: str, way: str | None, rounding: bool) -> None:
    other, rng = forced(bk, way), np.random.default_rng(2)
    out_dtype = dtype if result == "16 bits" else np.dtype(np.float32)
    for trans_a in (False, True):
        for trans_b in (False, True):
            for beta in (0.0, 1.0, 0.5):
                a, b, c = drawn(rng, (5, 70), dtype), drawn(rng, (70, 6), dtype), drawn(rng, (5, 6), out_dtype)
                if beta == 0.0:
                    c[...] = np.nan  # must not be read
                out = bk.asarray(c)
                bk.counts.reset()
                x, y = bk.asarray(stored(a, trans_a)), bk.asarray(stored(b, trans_b))
                if rounding:
                    with other.rounding():
                        other.gemm(x, y, out=out, trans_a=trans_a, trans_b=trans_b, beta=beta)
                else:
                    other.gemm(x, y, out=out, trans_a=trans_a, trans_b=trans_b, beta=beta)
                exact = wide(a) @ wide(b) + (beta * wide(c) if beta else 0)
                assert_rounded_once(bk.to_numpy(out), exact, np.abs(wide(a)) @ np.abs(wide(b)))
                kernel = "cublasLtMatmul" if way is None and beta != 0.5 else "gemmEx"
                assert set(bk.counts.kernels) == {kernel}
    assert {problem.compute for problem in bk._plans} <= {"float32"}
    assert bk._cupy.math_mode == 0


@pytest.mark.parametrize("way", [None, "absent"])
@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_gemm_of_views(bk: EmulatedBackend, dtype: np.dtype[Any], way: str | None) -> None:
    """Not contiguous, not aligned, without any number."""
    other, rng = forced(bk, way), np.random.default_rng(3)
    a, b, c = drawn(rng, (9, 14), dtype), drawn(rng, (7, 10), dtype), drawn(rng, (9, 10), dtype)
    for out_dtype in (dtype, np.dtype(np.float32)):
        for rows, columns in ((slice(None, None, 2), slice(None, None, 2)), (slice(1, 6), slice(None))):
            start = c.astype(out_dtype)
            out = bk.asarray(start)
            other.gemm(bk.asarray(a)[rows, ::2], bk.asarray(b)[:, columns], out=out[rows, columns], beta=1.0)
            exact = wide(start)
            exact[rows, columns] += wide(a[rows, ::2]) @ wide(b[:, columns])
            assert_rounded_once(bk.to_numpy(out), exact, 20.0)
    flat, out = bk.asarray(np.ones(26, dtype)), bk.empty((5, 5), np.float32)
    other.gemm(flat[1:26].reshape(5, 5), flat[:25].reshape(5, 5), out=out)
    np.testing.assert_array_equal(bk.to_numpy(out), 5.0)
    other.gemm(flat[:0].reshape(5, 0), flat[:0].reshape(0, 5), out=out)
    np.testing.assert_array_equal(bk.to_numpy(out), 0.0)
    with pytest.raises(ValueError, match=r"gemm: op\(a\) is \(5, 5\)"):
        other.gemm(flat[:25].reshape(5, 5), flat[:20].reshape(4, 5), out=out)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_factors_of_two_types_are_left_to_cupy(bk: EmulatedBackend, dtype: np.dtype[Any]) -> None:
    rng = np.random.default_rng(6)
    a, b = drawn(rng, (3, 4), dtype), drawn(rng, (4, 5), np.float32)
    out = bk.empty((3, 5), np.float32)
    bk.gemm(bk.asarray(a), bk.asarray(b), out=out)
    assert_rounded_once(bk.to_numpy(out), wide(a) @ wide(b), 10.0)
    bk.gemm(bk.asarray(b), bk.asarray(a), out=out.reshape(5, 3), trans_a=True, trans_b=True)
    assert_rounded_once(bk.to_numpy(out).reshape(5, 3), wide(b).T @ wide(a).T, 10.0)
    assert "gemmEx" not in bk.counts.kernels


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_sums_of_the_fallback_are_not_rounded_midway(bk: EmulatedBackend, dtype: np.dtype[Any]) -> None:
    unit = float(ml_dtypes.finfo(dtype).eps)
    a = np.array([[1, 0.75 * unit, 0.625 * unit, 0]], np.float32).astype(dtype)
    out = bk.empty((1, 1), dtype)
    forced(bk, "absent").gemm(bk.asarray(a), bk.asarray(np.ones((4, 1), dtype)), out=out)
    assert float(bk.to_numpy(out)[0, 0]) == 1 + unit  # 1 + 2 units, if the first half is rounded by itself


@pytest.mark.parametrize("way", FORCED)
@pytest.mark.parametrize("act", ["identity", "relu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_products_with_an_epilogue(bk: EmulatedBackend, dtype: np.dtype[Any], act: str, way: str | None) -> None:
    epilogue = bk.epilogues[act]
    other, rng = forced(bk, way, epilogue), np.random.default_rng(4)
    x, W, b = drawn(rng, (5, 7), dtype), drawn(rng, (7, 8), dtype), drawn(rng, (8,), dtype)
    out = bk.empty((5, 8), dtype)
    did = other._product(bk.asarray(x), bk.asarray(W), out, epilogue=epilogue, bias=bk.asarray(b))
    assert did == (way in (None, "cuBLASLt"))  # the one with plain products refused has this epilogue
    if did:
        exact = after(epilogue, wide(x) @ wide(W) + wide(b))
        assert_rounded_once(bk.to_numpy(out), exact, np.abs(wide(x)) @ np.abs(wide(W)))
        (problem,) = bk._plans
        assert (problem.dtype, problem.out, problem.compute) == (dtype.name, dtype.name, "float32")


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_what_an_epilogue_does_not_take(bk: EmulatedBackend, dtype: np.dtype[Any]) -> None:
    x, W, flat = (bk.zeros(shape, dtype) for shape in ((5, 7), (7, 8), 64))
    out, other = bk.zeros((5, 8), dtype), EVERY[1 - EVERY.index(dtype)]

    def product(out: Any = out, W: Any = W, bias: Any = None, epilogue: int = BIAS) -> bool:
        return bk._product(x, W, out, epilogue=epilogue, bias=flat[:8] if bias is None else bias)

    assert product()
    assert product(bias=flat[16:24])  # where a parameter may start
    counted = Counter(problem.epilogue for problem in bk._plans)
    assert not product(bias=flat[8:16])
    assert not product(bias=flat[1:9])
    assert not product(bias=bk.zeros(8, np.float32))
    assert not product(bias=bk.zeros(8, other))
    assert not product(out=bk.zeros((5, 8), np.float32), bias=bk.zeros(8, np.float32))
    assert not product(out=bk.zeros((5, 8), other), bias=bk.zeros(8, other))
    assert not product(W=bk.zeros((7, 8), other))
    assert not bk._product(x, W, bk.zeros((5, 8), other))
    assert not bk._product(x, bk.zeros((7, 8), np.float32), bk.zeros((5, 8), np.float32))
    assert not bk._product(bk.zeros((5, 7), np.float32), bk.zeros((7, 8), np.float32), out)
    assert Counter(problem.epilogue for problem in bk._plans) == counted == {BIAS: 1}


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_a_choice_is_remembered_by_the_type_of_the_result(bk: EmulatedBackend, dtype: np.dtype[Any]) -> None:
    a, b = bk.zeros((3, 4), dtype), bk.zeros((4, 5), dtype)
    for out in (dtype, np.dtype(np.float32)):
        bk.gemm(a, b, out=bk.zeros((3, 5), out))
    keys = [problem.key for problem in bk._plans]
    assert len(set(keys)) == 2
    for problem in bk._plans:
        assert bk._algorithms.get(problem.key) is not None
        assert problem.key.endswith(problem.out)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_products_of_a_graph(bk: EmulatedBackend, dtype: np.dtype[Any]) -> None:
    rng = np.random.default_rng(5)
    a, b = bk.asarray(drawn(rng, (3, 4), dtype)), bk.asarray(drawn(rng, (4, 5), dtype))
    out, wide_out = bk.zeros((3, 5), dtype), bk.zeros((3, 5), np.float32)

    def step(each: Any) -> None:
        each.gemm(a, b, out=out)
        each.gemm(a, b, out=wide_out)

    replay = bk.capture(step)
    bk.fill(wide_out, 0.0)
    bk.counts.reset()
    replay.run()
    assert bk.counts.graphs == 1
    exact = wide(bk.to_numpy(a)) @ wide(bk.to_numpy(b))
    assert_rounded_once(bk.to_numpy(wide_out), exact, 10.0)
    assert_rounded_once(bk.to_numpy(out), exact, 10.0)
