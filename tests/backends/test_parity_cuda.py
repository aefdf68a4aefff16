"""Every method of the contract on CUDA against NumPy in float64: emulated everywhere, on a GPU where there is one.

Each check also runs with arrays that start one element after an aligned address, and compares all
outputs, the step state included. With activations of 16 bits the reference starts from the rounded ones, and what is
elementwise must be within one rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnfast import activations
from nnfast.backends.cupy_backend import CupyBackend
from nnfast.backends.formulas import LOSSES
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels import step_state as S
from tests.cuda.emulator import emulated_backend

# NumPy warns where a test feeds it NaN and infinity
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

SHAPES = [(1, 1), (3, 5), (7, 33), (150, 12), (130, 300)]
# DESIGN: rtol and atol by dtype, forward and gradient
TOLERANCE = {
    ("float64", False): (1e-12, 1e-13),
    ("float64", True): (1e-10, 1e-11),
    ("float32", False): (1e-5, 1e-5),
    ("float32", True): (1e-4, 1e-4),
}
# Of the policy, for what is rounded on the way: where a product's operands are results
HALF_PRODUCTS = {
    ("float16", False): (1e-3, 1e-3),
    ("float16", True): (1e-2, 1e-2),
    ("bfloat16", False): (1.6e-2, 1e-2),
    ("bfloat16", True): (1e-1, 1e-1),
}
#: Relative error of one rounding
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
#: Arguments that have 16 bits where activations have: the others are then float32
ACTIVATIONS = {"x", "y", "z", "out", "saved", "dy", "dx", "pred", "dpred", "logits", "dlogits", "W", "b", "mask"}
ALWAYS_DOUBLE = {"state", "lr_table"}
#: Arguments that a method may overwrite though the test does not look at what is in them
USED_UP = {"linear_act_grad": ("dy",), "conv_act_grad": ("dy",)}


@pytest.fixture(
    params=[
        "emulated",
        "emulated-composed",
        pytest.param("gpu", marks=pytest.mark.gpu),
        pytest.param("gpu-composed", marks=pytest.mark.gpu),
    ]
)
def bk(request: pytest.FixtureRequest) -> CupyBackend:
    where, _, composed = request.param.partition("-")
    if where == "emulated":
        return emulated_backend(fused=not composed)
    return CupyBackend(0, fused=not composed)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def new_state(**slots: float) -> np.ndarray:
    state = np.zeros(S.SIZE)
    state[S.GRAD_SCALE] = 1.0
    for name, value in slots.items():
        state[getattr(S, name)] = value
    return state


def dtype_of(dtype: str, method: str, name: str) -> np.dtype[Any]:
    """The dtype of an argument where activations have `dtype`."""
    if dtype in ROUNDING and (name not in ACTIVATIONS or (method, name) == ("sum_rows", "out")):
        return np.dtype("float32")
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)


def tolerance(dtype: str, method: str, found: np.ndarray, backward: bool) -> tuple[float, float]:
    """rtol and atol for an output."""
    if dtype not in ROUNDING:
        return TOLERANCE[dtype, backward]
    if method.startswith(("linear", "conv")):
        return HALF_PRODUCTS[dtype, backward]
    rtol, atol = TOLERANCE["float32", backward]
    return (rtol + ROUNDING[dtype] if found.dtype.itemsize == 2 else rtol), atol


def widened(x: np.ndarray) -> np.ndarray:
    """16-bit floats as float32: NumPy's own tests do not know bfloat16."""
    return x.astype(np.float32) if x.dtype.char in "eE" else x


def place(bk: Any, value: np.ndarray, offset: int) -> Any:
    """`value` on the backend, starting `offset` elements after an aligned address."""
    whole = bk.zeros((value.size + offset,), value.dtype)
    out = whole[offset:].reshape(value.shape)
    bk.copy(value, out=out)
    return out


def check(
    bk: CupyBackend,
    method: str,
    dtype: str,
    outs: tuple[str, ...] = ("out",),
    *,
    backward: bool = False,
    alias: dict[str, str] | None = None,
    options: dict[str, Any] | None = None,
    **arrays: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Call the method on NumPy in float64 and here in `dtype`, at two alignments; compare `outs`.

    Float arrays take `dtype` here; ``alias`` names outputs that share an input's memory.
    """
    reference = NumpyBackend()
    results: dict[str, np.ndarray] = {}

    def call(on: Any, offset: int) -> dict[str, np.ndarray]:
        given: dict[str, Any] = {}
        for name, value in arrays.items():
            if value is None:
                given[name] = None
                continue
            fixed = name in ALWAYS_DOUBLE or value.dtype.kind != "f"
            stored = value.dtype if fixed else dtype_of(dtype, method, name)
            # Both sides start from what fits into the narrow type
            narrow = value.astype(stored)
            narrow = narrow.astype(np.float64) if on is reference and not fixed else narrow
            given[name] = place(on, np.ascontiguousarray(narrow).reshape(value.shape), 0 if fixed else offset)
        for out, source in (alias or {}).items():
            given[out] = given[source]
        before = {name: widened(np.array(on.to_numpy(x))) for name, x in given.items() if x is not None}
        getattr(on, method)(**given, **(options or {}))
        written = {*outs, *(alias or {}).values(), *USED_UP.get(method, ())}
        for name in before.keys() - written:
            if before[name].dtype.kind == "f" and np.isnan(before[name]).all():
                continue  # an output that this check does not ask for
            after = widened(on.to_numpy(given[name]))
            np.testing.assert_array_equal(after, before[name], err_msg=f"{method} changed {name}")
        return {name: np.array(on.to_numpy(given[name])) for name in outs}

    expected = call(reference, 0)
    for offset in (0, 1):
        results = call(bk, offset)
        for name in outs:
            rtol, atol = tolerance(dtype, method, results[name], backward)
            results[name] = widened(results[name])
            tight = expected[name].dtype.kind != "f"
            np.testing.assert_allclose(
                results[name],
                expected[name],
                rtol=0 if tight else rtol,
                atol=0 if tight else atol,
                err_msg=f"{method} {name}, offset {offset}",
            )
    return results


def nan(*shape: int) -> np.ndarray:
    """An output that nobody has written."""
    return np.full(shape, np.nan)


each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_storage = pytest.mark.parametrize("dtype", ["float32", "float64", *ROUNDING])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


# ---- memory ---------------------------------------------------------------------------------------
def test_memory_methods(bk: CupyBackend) -> None:
    x = np.arange(12, dtype=np.int32).reshape(3, 4)
    device = bk.asarray(x)
    assert device.dtype == np.int32
    assert bk.asarray(device) is device or bk.asarray(device).data.ptr == device.data.ptr
    np.testing.assert_array_equal(bk.to_numpy(device), x)
    for odd in (x[::2, ::-1], x.T, x.astype(">f8"), np.asfortranarray(x), x.tolist(), np.float32(3)):
        np.testing.assert_array_equal(bk.to_numpy(bk.asarray(odd)), np.asarray(odd))
    assert bk.asarray(x.T, "float32").flags.c_contiguous
    assert bk.asarray(np.float32(3)).shape == ()
    out = bk.zeros((3, 4), "float32")
    bk.copy(x, out=out)
    np.testing.assert_array_equal(bk.to_numpy(out), x)
    bk.copy(device, out=out)
    bk.fill(out, 2.5)
    np.testing.assert_array_equal(bk.to_numpy(out), np.full((3, 4), 2.5, "float32"))
    with pytest.raises(TypeError):
        bk.copy(np.ones((3, 4)), out=bk.zeros((3, 4), np.int64))
    free, total = bk.memory()
    assert 0 < free <= total * 1.1
    bk.synchronize()
    assert bk.empty((2, 3), "float32").data.ptr % 64 == 0


# ---- primitives -----------------------------------------------------------------------------------
@each_dtype
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 5), (1, 7, 4), (33, 17, 65)], ids=str)
def test_gemm(
    bk: CupyBackend, rng: Any, dtype: str, trans_a: bool, trans_b: bool, beta: float, sizes: tuple[int, int, int]
) -> None:
    n, k, m = sizes
    a, b = rng.standard_normal((n, k)).astype(dtype), rng.standard_normal((k, m)).astype(dtype)
    start = rng.standard_normal((n, m)).astype(dtype) if beta else np.full((n, m), np.nan, dtype)
    out = bk.asarray(start)
    left, right = (bk.asarray(x.T if t else x) for x, t in ((a, trans_a), (b, trans_b)))
    bk.gemm(left, right, out=out, trans_a=trans_a, trans_b=trans_b, beta=beta)
    wide = a.astype(float) @ b.astype(float) + (beta * start.astype(float) if beta else 0)
    bound = 8 * np.finfo(dtype).eps * (np.abs(a).astype(float) @ np.abs(b) + np.abs(start if beta else 0))
    assert (np.abs(bk.to_numpy(out) - wide) <= bound).all()


def test_gemm_shapes_that_do_not_fit(bk: CupyBackend) -> None:
    a, b = bk.zeros((2, 3), "float32"), bk.zeros((4, 5), "float32")
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(4, 5\)"):
        bk.gemm(a, b, out=bk.zeros((2, 5), "float32"))


@each_storage
@each_shape
def test_sums(bk: CupyBackend, rng: Any, dtype: str, shape: tuple[int, int]) -> None:
    x, y, b = rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(shape[1])
    check(bk, "add", dtype, x=x, y=y, out=nan(*shape))
    check(bk, "add", dtype, x=x, y=y, alias={"out": "y"})
    check(bk, "add_bias", dtype, x=x, b=b, out=nan(*shape))
    check(bk, "add_bias", dtype, x=x, b=b, alias={"out": "x"})
    check(bk, "sum_rows", dtype, x=x, out=nan(shape[1]), backward=True)


@each_dtype
@pytest.mark.parametrize("shape", [(1,), (5,), (70, 90), (3, 4, 5)], ids=str)
def test_sq_norm(bk: CupyBackend, rng: Any, dtype: str, shape: tuple[int, ...]) -> None:
    x = rng.standard_normal(shape).astype(dtype)
    out = bk.zeros(1, "float64")
    for offset in (0, 1):
        bk.sq_norm(place(bk, x, offset), out=out)
        np.testing.assert_allclose(bk.to_numpy(out)[0], (x.astype(float) ** 2).sum(), rtol=1e-13)


@each_storage
@pytest.mark.parametrize("name", activations.names())
@pytest.mark.parametrize("shape", [(3, 5), (70, 36)], ids=str)
def test_activations(bk: CupyBackend, rng: Any, dtype: str, name: str, shape: tuple[int, int]) -> None:
    act = activations.get(name)
    z, dy = 3 * rng.standard_normal(shape), rng.standard_normal(shape)
    z.flat[:4] = 0.0, -40.0, 40.0, 1e-6
    y = check(bk, "act", dtype, z=z, out=nan(*shape), options={"act": name})["out"]
    check(bk, "act", dtype, z=z, alias={"out": "z"}, options={"act": act})
    saved = y.astype(float) if act.saves == "output" else z
    check(bk, "act_grad", dtype, dy=dy, saved=saved, out=nan(*shape), options={"act": name}, backward=True)
    check(bk, "act_grad", dtype, dy=dy, saved=saved, alias={"out": "dy"}, options={"act": name}, backward=True)


@pytest.mark.parametrize("name", ["leaky_relu(0.2)", "elu(0.5)"])
def test_parameter_of_an_activation(bk: CupyBackend, rng: Any, name: str) -> None:
    z = rng.standard_normal((5, 7))
    check(bk, "act", "float64", z=z, out=nan(5, 7), options={"act": name})
    check(bk, "act_grad", "float64", dy=z[::-1].copy(), saved=z, out=nan(5, 7), options={"act": name})


@pytest.mark.parametrize("dtype", ["float32", *ROUNDING])
@pytest.mark.parametrize("name", activations.names())
def test_nan_passes_through(bk: CupyBackend, dtype: str, name: str) -> None:
    z = bk.asarray(np.array([[1.0, np.nan, -1.0]], dtype_of(dtype, "act", "z")))
    bk.act(name, z, out=z)
    assert np.isnan(widened(bk.to_numpy(z))[0, 1])


def test_softmax_of_any_rank(bk: CupyBackend, rng: Any) -> None:
    z = rng.standard_normal((2, 3, 4, 5))
    check(bk, "act", "float64", z=z, out=nan(2, 3, 4, 5), options={"act": "softmax"})
    check(bk, "act", "float64", z=1000 * z[0, 0, 0], out=nan(5), options={"act": "softmax"})


@each_storage
@pytest.mark.parametrize("size", [1, 3, 4, 5, 1027])
@pytest.mark.parametrize("step", [1, 2**32 + 5])
def test_dropout_masks_are_those_of_numpy(bk: CupyBackend, rng: Any, dtype: str, size: int, step: int) -> None:
    state = new_state(STEP=step, SEED_LO=2**32 - 3, SEED_HI=12345)
    x = rng.standard_normal(size)
    options = {"rate": 0.3, "stream": 5}
    here = check(bk, "dropout", dtype, x=x, state=state, out=nan(size), options=options)["out"]
    reference = np.zeros(size)
    NumpyBackend().dropout(x, state, out=reference, **options)
    np.testing.assert_array_equal(here == 0, reference == 0)
    check(bk, "dropout", dtype, x=x, state=state, alias={"out": "x"}, options=options)


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32", "float64", "int64"])
@pytest.mark.parametrize("row", [(), (1,), (3,), (4,), (2, 8), (5, 7)], ids=str)
def test_rows_by_index(bk: CupyBackend, rng: Any, kind: str, row: tuple[int, ...]) -> None:
    x = rng.integers(0, 200, (40, *row)).astype(kind)
    order = rng.permutation(40)
    state = new_state(ROW=9)
    index = rng.integers(0, 40, 25)
    on_device, order_there, index_there = bk.asarray(x), bk.asarray(order), bk.asarray(index)
    batch, rows = bk.zeros((17, *row), kind), bk.zeros((25, *row), kind)
    bk.take_batch(on_device, order_there, bk.asarray(state), out=batch)
    np.testing.assert_array_equal(bk.to_numpy(batch), x[order[9:26]])
    bk.take_rows(on_device, index_there, out=rows)
    np.testing.assert_array_equal(bk.to_numpy(rows), x[index])
    whole = bk.zeros((40, *row), kind)
    bk.store_batch(batch, bk.asarray(state), out=whole)
    expected = np.zeros_like(x)
    expected[9:26] = x[order[9:26]]
    np.testing.assert_array_equal(bk.to_numpy(whole), expected)


@each_dtype
@pytest.mark.parametrize("row", [(), (3,), (2, 20)], ids=str)
def test_add_at_rows(bk: CupyBackend, rng: Any, dtype: str, row: tuple[int, ...]) -> None:
    index = rng.integers(0, 6, 90)  # each row many times, beyond one warp's reading
    x, start = rng.standard_normal((90, *row)), rng.standard_normal((8, *row))
    check(bk, "add_at_rows", dtype, x=x, index=index, out=start, backward=True)


# ---- linear layers --------------------------------------------------------------------------------
@each_storage
@pytest.mark.parametrize("name", ["identity", "relu", "gelu", "softmax", "tanh"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_act(bk: CupyBackend, rng: Any, dtype: str, name: str, bias: bool) -> None:
    n, k, m = 150, 8, 11
    x, W = rng.standard_normal((n, k)), rng.standard_normal((k, m)) / np.sqrt(k)
    b = rng.standard_normal(m) if bias else None
    options = {"act": name}
    keep = check(
        bk, "linear_act", dtype, ("out", "saved"), x=x, W=W, b=b, out=nan(n, m), saved=nan(n, m), options=options
    )
    check(bk, "linear_act", dtype, x=x, W=W, b=b, out=nan(n, m), options=options)
    saved = (keep["out"] if activations.get(name).saves == "output" else keep["saved"]).astype(float)
    backward = {"dy": rng.standard_normal((n, m)), "x": x, "W": W, "saved": saved, "dW": nan(k, m)}
    db = nan(m) if bias else None
    names = ("dW", "db") if bias else ("dW",)
    check(bk, "linear_act_grad", dtype, names, **backward, db=db, dx=None, options=options, backward=True)
    check(bk, "linear_act_grad", dtype, (*names, "dx"), **backward, db=db, dx=nan(n, k), options=options, backward=True)


# ---- normalisation --------------------------------------------------------------------------------
@each_storage
@each_shape
def test_layer_norm(bk: CupyBackend, rng: Any, dtype: str, shape: tuple[int, int]) -> None:
    n, m = shape
    x, gamma, beta = 3 + rng.standard_normal(shape), rng.standard_normal(m), rng.standard_normal(m)
    given = {"x": x, "gamma": gamma, "beta": beta, "mean": nan(n), "rstd": nan(n)}
    got = check(bk, "layer_norm", dtype, ("out", "mean", "rstd"), **given, out=nan(*shape), options={"eps": 1e-3})
    check(bk, "layer_norm", dtype, **given, alias={"out": "x"}, options={"eps": 1e-3})
    rstd = 1 / np.sqrt(x.var(axis=1) + 1e-3)
    back = {"dy": rng.standard_normal(shape), "x": x, "gamma": gamma, "mean": got["mean"].astype(float), "rstd": rstd}
    sums = {"dgamma": nan(m), "dbeta": nan(m)}
    check(bk, "layer_norm_grad", dtype, ("dx", "dgamma", "dbeta"), **back, **sums, dx=nan(*shape), backward=True)
    check(bk, "layer_norm_grad", dtype, ("dx", "dgamma", "dbeta"), **back, **sums, alias={"dx": "dy"}, backward=True)
    check(bk, "layer_norm_grad", dtype, ("dgamma", "dbeta"), **back, **sums, dx=None, backward=True)


@each_storage
@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (150, 12), (700, 40)], ids=str)
def test_batch_norm(bk: CupyBackend, rng: Any, dtype: str, shape: tuple[int, int]) -> None:
    n, m = shape
    x, gamma, beta = 3 + rng.standard_normal(shape), rng.standard_normal(m), rng.standard_normal(m)
    given = {"x": x, "gamma": gamma, "beta": beta}
    options = {"eps": 1e-3}
    stats = {"mean": nan(m), "var": nan(m)}
    check(bk, "batch_norm", dtype, ("out", "mean", "var"), **given, **stats, out=nan(*shape), options=options)
    check(bk, "batch_norm", dtype, ("out", "mean", "var"), **given, **stats, alias={"out": "x"}, options=options)
    stats = {"mean": x.mean(axis=0), "var": x.var(axis=0)}
    check(bk, "batch_norm_inference", dtype, **given, **stats, out=nan(*shape), options=options)
    back = {"dy": rng.standard_normal(shape), "x": x, "gamma": gamma, **stats, "dgamma": nan(m), "dbeta": nan(m)}
    names = ("dx", "dgamma", "dbeta")
    check(bk, "batch_norm_grad", dtype, names, **back, dx=nan(*shape), options=options, backward=True)
    check(bk, "batch_norm_grad", dtype, names, **back, alias={"dx": "dy"}, options=options, backward=True)
    check(bk, "batch_norm_grad", dtype, names[1:], **back, dx=None, options=options, backward=True)
    for bad in (0, 3):
        stats["mean"][0] = np.nan if bad else stats["mean"][0]
        running = {"running_mean": rng.standard_normal(m), "running_var": rng.standard_normal(m) ** 2}
        check(
            bk, "batch_norm_track", dtype, tuple(running), **stats, **running,
            state=new_state(BAD_STEP=bad), options={"rows": n, "momentum": 0.1},
        )  # fmt: skip
    check(
        bk, "batch_norm_track", dtype, tuple(running), **stats, **running,
        state=new_state(), options={"rows": 1, "momentum": 0.1},
    )  # fmt: skip


def test_batch_norm_far_from_zero(bk: CupyBackend, rng: Any) -> None:
    """The variance is that of the deviations, not a difference of large squares."""
    x = (1e4 + rng.standard_normal((500, 3))).astype("float32")
    out, mean, var = bk.zeros((500, 3), "float32"), bk.zeros(3, "float32"), bk.zeros(3, "float32")
    one, zero = bk.asarray(np.ones(3, "float32")), bk.zeros(3, "float32")
    bk.batch_norm(bk.asarray(x), one, zero, eps=1e-5, out=out, mean=mean, var=var)
    np.testing.assert_allclose(bk.to_numpy(var), x.astype(float).var(axis=0), rtol=1e-3)


# ---- losses ---------------------------------------------------------------------------------------
WEIGHTS = ["none", "random", "zero"]


def some_weight(kind: str, n: int, rng: Any) -> np.ndarray | None:
    return {"none": None, "random": rng.random(n) + 0.1, "zero": np.zeros(n)}[kind]


@each_storage
@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("weights", WEIGHTS)
def test_elementwise_losses(bk: CupyBackend, rng: Any, dtype: str, name: str, weights: str) -> None:
    for shape in ((1, 1), (9, 3), (333, 7)):
        pred, target = rng.standard_normal(shape), rng.integers(0, 2, shape).astype(float)
        weight = some_weight(weights, shape[0], rng)
        given = {"pred": pred, "target": target, "weight": weight, "state": new_state()}
        options = {"name": name, "param": 0.7}
        check(bk, "elementwise_loss", dtype, ("state", "dpred"), **given, dpred=nan(*shape), options=options)
        check(bk, "elementwise_loss", dtype, ("state", "dpred"), **given, alias={"dpred": "pred"}, options=options)
        check(bk, "elementwise_loss", dtype, ("state",), **given, dpred=None, options=options)


@each_storage
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_softmax_xent(bk: CupyBackend, rng: Any, dtype: str, smoothing: float, weights: str) -> None:
    for n, c in ((1, 1), (5, 3), (150, 10), (9, 70)):
        logits, soft = 3 * rng.standard_normal((n, c)), rng.random((n, c))
        weight = some_weight(weights, n, rng)
        for labels in (rng.integers(0, c, n), soft):
            given = {"logits": logits, "labels": labels, "weight": weight, "state": new_state()}
            options = {"smoothing": smoothing}
            check(bk, "softmax_xent", dtype, ("state", "dlogits"), **given, dlogits=nan(n, c), options=options)
            check(
                bk, "softmax_xent", dtype, ("state", "dlogits"), **given, alias={"dlogits": "logits"}, options=options
            )
            check(bk, "softmax_xent", dtype, ("state",), **given, dlogits=None, options=options)


def test_weights_of_another_dtype(bk: CupyBackend, rng: Any) -> None:
    weight = rng.integers(1, 4, 6)
    given = {"pred": rng.standard_normal((6, 2)), "target": rng.standard_normal((6, 2)), "state": new_state()}
    check(
        bk, "elementwise_loss", "float64", ("state", "dpred"),
        **given, weight=weight, dpred=nan(6, 2), options={"name": "huber", "param": 1.0},
    )  # fmt: skip


# ---- the step's own bookkeeping -------------------------------------------------------------------
def test_bookkeeping(bk: CupyBackend) -> None:
    state = new_state(STEP=4, CURSOR=2, GRAD_SCALE=0.5, LOSS=2.0, BATCH_WEIGHT=3.0, LOSS_SUM=1.0, ROW=8)
    check(bk, "begin_step", "float64", ("state",), state=state, lr_table=np.array([0.1, 0.2, 0.3]))
    check(bk, "end_step", "float64", ("state",), state=state, options={"rows": 5})
    for loss, bad in ((2.0, 0), (np.nan, 0), (np.inf, 0), (2.0, 3), (np.nan, 3)):
        state[S.LOSS], state[S.BAD_STEP] = loss, bad
        check(bk, "record_loss", "float64", ("state",), state=state)
        state[S.EPOCH_INDEX] = 1
        given = {"state": state, "results": np.zeros((3, 3))}
        check(bk, "end_epoch", "float64", ("state", "results"), **given)


@each_dtype
@pytest.mark.parametrize("size", [1, 5, 4099])
def test_clipping(bk: CupyBackend, rng: Any, dtype: str, size: int) -> None:
    grad = rng.standard_normal(size)
    for limit in (1e-3, 0.5, 1e3):
        check(bk, "clip_value", dtype, ("grad",), grad=grad, options={"limit": limit})
        check(bk, "clip_norm", dtype, ("state",), grad=grad, state=new_state(), options={"max_norm": limit})
    grad[0] = np.nan
    check(bk, "clip_value", dtype, ("grad",), grad=grad, options={"limit": 0.5})
    check(bk, "clip_norm", dtype, ("state",), grad=grad, state=new_state(), options={"max_norm": 0.5})


# ---- optimizers -----------------------------------------------------------------------------------
OPTIMIZERS: dict[str, tuple[str, tuple[str, ...], dict[str, float], dict[str, Any]]] = {
    "sgd": ("sgd_step", (), {"P0": 0.0}, {"nesterov": False}),
    "momentum": ("sgd_step", ("velocity",), {"P0": 0.9}, {"nesterov": False}),
    "nesterov": ("sgd_step", ("velocity",), {"P0": 0.9}, {"nesterov": True}),
    "adagrad": ("adagrad_step", ("total",), {"P0": 1e-7}, {}),
    "rmsprop": ("rmsprop_step", ("sq",), {"P0": 0.9, "P1": 1e-7}, {}),
    "rmsprop centered": ("rmsprop_step", ("sq", "mean"), {"P0": 0.9, "P1": 1e-3}, {}),
    "rmsprop momentum": ("rmsprop_step", ("sq", "velocity"), {"P0": 0.9, "P1": 1e-7, "P2": 0.5}, {}),
    "rmsprop both": ("rmsprop_step", ("sq", "mean", "velocity"), {"P0": 0.9, "P1": 1e-3, "P2": 0.5}, {}),
    "adam": ("adam_step", ("m", "v"), {"P0": 0.9, "P1": 0.999, "P2": 1e-8}, {"decoupled": False}),
    "adamw": ("adam_step", ("m", "v"), {"P0": 0.9, "P1": 0.999, "P2": 1e-8}, {"decoupled": True}),
    "adam, hat": ("adam_step", ("m", "v"), {"P0": 0.9, "P1": 0.99, "P2": 1e-2, "P3": 1.0}, {"decoupled": False}),
    "adamax": ("adamax_step", ("m", "u"), {"P0": 0.9, "P1": 0.999, "P2": 1e-7}, {}),
    "nadam": ("nadam_step", ("m", "v"), {"P0": 0.9, "P1": 0.999, "P2": 1e-8, "P3": 0.004, "P4": 0.8}, {}),
    "lion": ("lion_step", ("m",), {"P0": 0.9, "P1": 0.99}, {}),
}
ALL_MOMENTS = {"sgd_step": ("velocity",), "rmsprop_step": ("sq", "mean", "velocity")}


def optimizer_arrays(name: str, size: int, rng: Any) -> dict[str, np.ndarray | None]:
    method, moments, _, _ = OPTIMIZERS[name]
    arrays: dict[str, np.ndarray | None] = dict.fromkeys(ALL_MOMENTS.get(method, ()))
    arrays.update({"param": rng.standard_normal(size), "grad": rng.standard_normal(size)})
    for moment in moments:
        signed = moment in ("m", "velocity", "mean")
        arrays[moment] = 0.3 * rng.standard_normal(size) if signed else 0.2 + rng.random(size)
    return arrays


@each_dtype
@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("case", ["plain", "decayed and clipped", "stopped", "not finite"])
def test_optimizers(bk: CupyBackend, rng: Any, dtype: str, name: str, case: str) -> None:
    method, moments, slots, options = OPTIMIZERS[name]
    for size in (1, 7, 2061):
        arrays = optimizer_arrays(name, size, rng)
        state = new_state(STEP=3, LR=0.1, **slots)
        if case == "decayed and clipped":
            state[S.WEIGHT_DECAY], state[S.GRAD_SCALE] = 0.02, 0.25
        elif case == "stopped":
            state[S.BAD_STEP] = 2
        elif case == "not finite":
            assert arrays["grad"] is not None
            arrays["grad"][size // 2] = np.inf
            arrays["grad"][-1] = np.nan
        got = check(bk, method, dtype, ("param", "state", *moments), **arrays, state=state, options=options)
        assert got["state"][S.BAD_STEP] == {"stopped": 2, "not finite": 3}.get(case, 0)
        assert all(np.isfinite(got[x]).all() for x in ("param", *moments))


@each_dtype
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_what_lies_beyond_the_last_element_does_not_count(bk: CupyBackend, rng: Any, dtype: str, size: int) -> None:
    """Threads work on packs of elements; without an eps, a zero beyond the end would divide by zero."""
    arrays = {"param": rng.standard_normal(size), "grad": rng.standard_normal(size), "total": np.zeros(size)}
    state = new_state(STEP=1, LR=0.1)
    got = check(bk, "adagrad_step", dtype, ("param", "total", "state"), **arrays, state=state)
    assert got["state"][S.BAD_STEP] == 0


@each_dtype
def test_ema(bk: CupyBackend, rng: Any, dtype: str) -> None:
    for bad in (0, 1):
        given = {"param": rng.standard_normal(77), "average": rng.standard_normal(77)}
        check(bk, "ema_step", dtype, ("average",), **given, state=new_state(EMA_DECAY=0.99, BAD_STEP=bad))
