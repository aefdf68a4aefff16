"""Training in 16 bits on a CUDA backend: the contract beside what each method computes, and the scale of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnfast.backends.numba_backend import NumbaBackend
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels import step_state as S
from tests.backends.halves import HALVES, each_half
from tests.backends.test_parity_cuda import check, new_state, widened
from tests.cuda.emulator import EmulatedBackend, emulated_backend

ml_dtypes = pytest.importorskip("ml_dtypes")

NUMPY = NumpyBackend()
# What overflows float16 is infinite, and NumPy says so
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


# ---- the contract ---------------------------------------------------------------------------------
def test_dtypes_of_precisions() -> None:
    bk = emulated_backend()
    assert [bk.reduced(name) for name in ("fp16", "bf16")] == HALVES
    assert [bk.reduced(name) for name in ("float32", "tf32", "float64")] == [None] * 3
    bk.fused = False
    for other in (bk, NumpyBackend(), NumbaBackend()):
        assert other.reduced("fp16") is other.reduced("bf16") is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bk = emulated_backend()
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="'bf16' needs the package ml_dtypes; install the extra cuda13 or cuda12"):
        bk.reduced("bf16")
    assert bk.reduced("fp16") == np.float16


# ---- layers and losses ----------------------------------------------------------------------------
@each_half
@pytest.mark.parametrize("act", ["identity", "tanh", "gelu", "softmax"])
@pytest.mark.parametrize("keep", [False, True])
def test_the_bias_is_added_before_the_product_is_rounded(half: np.dtype, act: str, keep: bool) -> None:
    bk = emulated_backend()
    x, W, b = np.array([[1.0, 0.5]]), np.array([[1000.0, 2000.0, 500.0], [0.5, 0.75, 2.0]]), [-1000.0, -2000.0, -500.0]
    out, z = bk.zeros((1, 3), half), bk.zeros((1, 3), half) if keep else None
    for _ in range(2):  # algorithms are chosen the first time
        bk.counts.reset()
        bk.linear_act(*(bk.asarray(np.asarray(a, half)) for a in (x, W, b)), act, out=out, saved=z)
    exact = x @ W + b
    wanted = np.zeros((1, 3))
    NumpyBackend().act(act, exact, out=wanted)
    np.testing.assert_allclose(bk.to_numpy(out).astype(float), wanted, rtol=2 * float(ml_dtypes.finfo(half).eps))
    if z is not None:
        np.testing.assert_array_equal(bk.to_numpy(z).astype(float), exact)
    kernels = [name.partition("<")[0] for name in bk.counts.kernels]
    more = ["bias_act"] * (act in ("tanh", "gelu") or keep) + ["softmax"] * (act == "softmax")
    assert kernels == ["cublasLtMatmul", *more]


@each_half
def test_sample_weights_of_16_bits(bk: EmulatedBackend, rng: Any, half: np.dtype) -> None:
    pred, target, weight = rng.standard_normal((6, 2)), rng.standard_normal((6, 2)), rng.integers(1, 4, 6)
    losses = []
    for dtype in (half, np.dtype(np.float64)):
        state = bk.asarray(new_state())
        arrays = (
            bk.asarray(pred.astype(half)),
            bk.asarray(target.astype(np.float32)),
            bk.asarray(weight.astype(dtype)),
        )
        bk.elementwise_loss("huber", *arrays, state, param=1.0, dpred=None)
        losses.append(bk.to_numpy(state)[[S.LOSS, S.BATCH_WEIGHT]].tolist())
    assert losses[0] == losses[1]


EVERYTHING: dict[str, tuple[dict[str, tuple[int, ...]], tuple[str, ...], dict[str, Any]]] = {
    "sum_rows": ({"x": (9, 4), "out": (4,)}, ("out",), {}),
    "layer_norm": (
        {"x": (9, 4), "gamma": (4,), "beta": (4,), "out": (9, 4), "mean": (9,), "rstd": (9,)},
        ("out", "mean"),
        {"eps": 1e-3},
    ),
    "layer_norm_grad": (
        {"dy": (9, 4), "x": (9, 4), "gamma": (4,), "mean": (9,), "rstd": (9,), "dx": (9, 4), "dgamma": (4,)}
        | {"dbeta": (4,)},
        ("dx", "dgamma", "dbeta"),
        {},
    ),
    "batch_norm": (
        {"x": (9, 4), "gamma": (4,), "beta": (4,), "out": (9, 4), "mean": (4,), "var": (4,)},
        ("out", "var"),
        {"eps": 1e-3},
    ),
    "batch_norm_grad": (
        {"dy": (9, 4), "x": (9, 4), "gamma": (4,), "mean": (4,), "var": (4,), "dx": (9, 4), "dgamma": (4,)}
        | {"dbeta": (4,)},
        ("dx", "dgamma", "dbeta"),
        {"eps": 1e-3},
    ),
    "batch_norm_inference": (
        {"x": (9, 4), "gamma": (4,), "beta": (4,), "out": (9, 4), "mean": (4,), "var": (4,)},
        ("out",),
        {"eps": 1e-3},
    ),
    "linear_act_grad": (
        {"dy": (9, 4), "x": (9, 3), "W": (3, 4), "saved": (9, 4), "dx": (9, 3), "dW": (3, 4), "db": (4,)},
        ("dx", "dW", "db"),
        {"act": "tanh"},
    ),
    "clip_value": ({"grad": (9,)}, ("grad",), {"limit": 0.5}),
    "add_at_rows": ({"x": (9, 4), "out": (9, 4)}, ("out",), {}),
}


@each_half
@pytest.mark.parametrize("method", EVERYTHING)
def test_arrays_of_16_bits_where_kernels_take_float32(
    bk: EmulatedBackend, rng: Any, half: np.dtype, method: str
) -> None:
    """They are computed all the same, by CuPy's own operations."""
    shapes, outs, options = EVERYTHING[method]
    host = {name: rng.random(shape).astype(half) for name, shape in shapes.items()}
    given, wanted = ({k: on.asarray(v, kind) for k, v in host.items()} for on, kind in ((bk, half), (NUMPY, float)))
    more = {"index": np.arange(9)} if method == "add_at_rows" else {}
    getattr(bk, method)(**given, **{k: bk.asarray(v) for k, v in more.items()}, **options)
    getattr(NUMPY, method)(**wanted, **more, **options)
    for name in outs:
        got = bk.to_numpy(given[name]).astype(float)
        np.testing.assert_allclose(got, wanted[name], rtol=0.05, atol=0.05, err_msg=name)


# ---- the scale of the loss ------------------------------------------------------------------------
SLOTS = ("LOSS_SCALE", "GOOD_STEPS", "SKIP_STEP")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 5, 4099])
@pytest.mark.parametrize(
    ("bad", "before", "after"),
    [
        (None, (0, 0, 0), (0, 1, 0)),
        (None, (1024, 7, 0), (1024, 8, 0)),
        (None, (1024, 1999, 0), (2048, 0, 0)),
        (None, (0, 1999, 0), (2, 0, 0)),
        (None, (2**24, 1999, 0), (2**24, 0, 0)),
        (None, (1.5 * 2**23, 1999, 0), (2**24, 0, 0)),
        (np.inf, (1024, 1999, 0), (512, 0, 1)),
        (np.nan, (1024, 7, 0), (512, 0, 1)),
        (-np.inf, (1.5, 7, 0), (1, 0, 1)),
        (np.nan, (0, 7, 0), (1, 0, 1)),
    ],
)
def test_unscale(
    bk: EmulatedBackend, rng: Any, dtype: str, size: int, bad: float | None, before: Any, after: Any
) -> None:
    grad = rng.standard_normal(size)
    if bad is not None:
        grad[size // 2] = bad
    state = new_state(**dict(zip(SLOTS, before, strict=True)))
    got = check(bk, "unscale", dtype, ("grad", "state"), grad=grad, state=state)
    assert [got["state"][getattr(S, name)] for name in SLOTS] == list(after)
    np.testing.assert_array_equal(got["grad"], grad.astype(dtype) / np.dtype(dtype).type(before[0] or 1))


def test_a_bad_step_keeps_the_scale(bk: EmulatedBackend, rng: Any) -> None:
    grad, state = rng.standard_normal(9), new_state(LOSS_SCALE=8, GOOD_STEPS=5, BAD_STEP=3)
    grad[4] = np.nan
    got = check(bk, "unscale", "float32", ("grad", "state"), grad=grad, state=state)
    np.testing.assert_array_equal(got["state"], state)
    np.testing.assert_array_equal(got["grad"], grad.astype(np.float32))


def test_working_memory_is_left_as_it_was(rng: Any) -> None:
    """One step that is skipped, and the next one that is not; optimizers share the counters."""
    bk = emulated_backend(multiprocessors=4)
    grad, state = bk.asarray(rng.standard_normal(100_000).astype(np.float32)), bk.asarray(new_state(LOSS_SCALE=4))
    grad[99_999] = np.inf
    for skipped in (1, 0):
        bk.begin_step(state, bk.asarray(np.array([0.1])))
        bk.unscale(grad, state)
        assert bk.to_numpy(state)[S.SKIP_STEP] == skipped
        bk.sgd_step(bk.zeros(100_000, "float32"), grad, None, state, nesterov=False)
        assert bk.to_numpy(state)[S.BAD_STEP] == 0
        assert not bk.to_numpy(bk._sync()).any()
        grad[99_999] = 1.0


def test_a_step_begins_without_being_skipped(bk: EmulatedBackend) -> None:
    got = check(bk, "begin_step", "float64", ("state",), state=new_state(SKIP_STEP=1), lr_table=np.array([0.1]))
    assert got["state"][S.SKIP_STEP] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 512.0])
def test_gradients_of_losses_are_scaled_and_losses_are_not(
    bk: EmulatedBackend, rng: Any, dtype: str, scale: float
) -> None:
    shape, weight = (33, 5), rng.random(33)
    for name, arrays in (
        ("elementwise_loss", {"pred": rng.standard_normal(shape), "target": rng.random(shape), "dpred": None}),
        ("softmax_xent", {"logits": rng.standard_normal(shape), "labels": rng.integers(0, 5, 33), "dlogits": None}),
        ("softmax_xent", {"logits": rng.standard_normal(shape), "labels": rng.random(shape), "dlogits": None}),
    ):
        options = {"name": "mean_squared_error"} if name == "elementwise_loss" else {}
        out = next(key for key, value in arrays.items() if value is None)
        given = {**arrays, out: np.full(shape, np.nan), "weight": weight, "options": options}
        found = check(bk, name, dtype, ("state", out), **given, state=new_state(LOSS_SCALE=scale))
        plain = check(bk, name, dtype, ("state", out), **given, state=new_state())
        assert found["state"][S.LOSS] == plain["state"][S.LOSS]
        rtol = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 1e-6)
        np.testing.assert_allclose(found[out], scale * plain[out], rtol=rtol, atol=1e-4 if scale > 1 else 0)


def test_gradients_too_small_for_float16_survive(bk: EmulatedBackend) -> None:
    """What the scale is for: without it they are zero."""
    pred, target = np.full((1000, 10), 1e-4), np.zeros((1000, 10))
    for scale, survives in ((1.0, False), (2.0**16, True)):
        state, dpred = bk.asarray(new_state(LOSS_SCALE=scale)), bk.zeros((1000, 10), np.float16)
        bk.elementwise_loss(
            "mean_squared_error", bk.asarray(pred, np.float16), bk.asarray(target, np.float32), None, state, dpred=dpred
        )
        assert bk.to_numpy(dpred).any() == survives


def test_the_numba_backend_unscales_where_a_step_is_recorded() -> None:
    bk: Any = NumbaBackend()
    grad, state = np.full(5, 6.0, np.float32), new_state(LOSS_SCALE=2)
    replay = bk.capture(lambda each: each.unscale(grad, state))
    np.testing.assert_array_equal(grad, 6.0)
    replay.run()
    np.testing.assert_array_equal(grad, 3.0)
    assert state[S.GOOD_STEPS] == 1


# ---- the ends of the range ------------------------------------------------------------------------
@each_half
def test_infinity_and_nan(bk: EmulatedBackend, half: np.dtype) -> None:
    """float16 overflows where bfloat16 does not; what is not finite stays so in every element that it reaches."""
    large, smallest = np.full((2, 9), 60000.0), float(ml_dtypes.finfo(half).smallest_subnormal)
    x = bk.asarray(large.astype(half))
    out = bk.zeros((2, 9), half)
    bk.add(x, x, out=out)
    expected = np.inf if half == np.float16 else 2 * float(np.array(60000.0, half))
    np.testing.assert_array_equal(widened(bk.to_numpy(out)), expected)
    bk.sum_rows(x, out=(sums := bk.zeros(9, "float32")))  # which is wide enough
    np.testing.assert_array_equal(bk.to_numpy(sums), 2 * float(np.array(60000.0, half)))
    values = np.array([[np.inf, -np.inf, np.nan, smallest, -smallest, 0.0, 1.0, 2.0, 3.0]]).astype(half)
    bk.act("relu", bk.asarray(values), out=(y := bk.zeros((1, 9), half)))
    np.testing.assert_array_equal(
        widened(bk.to_numpy(y))[0], np.array([np.inf, 0, np.nan, smallest, 0, 0, 1, 2, 3], np.float32)
    )
    logits = np.zeros((3, 4))
    logits[1, 2] = np.inf
    bk.act("softmax", bk.asarray(logits.astype(half)), out=(p := bk.zeros((3, 4), half)))
    assert np.isnan(widened(bk.to_numpy(p))[1]).any()
    np.testing.assert_array_equal(widened(bk.to_numpy(p))[::2], 0.25)


def test_a_gradient_that_overflows_skips_the_step(bk: EmulatedBackend) -> None:
    """From the loss on: the scaled gradient is infinite in float16, and so is what comes of it."""
    state = bk.asarray(new_state(LOSS_SCALE=2.0**24, LR=0.1, STEP=1))
    pred, target = bk.asarray(np.full((4, 3), 8.0, np.float16)), bk.zeros((4, 3), "float32")
    dpred, grad, param = bk.zeros((4, 3), np.float16), bk.zeros(3, "float32"), bk.zeros(3, "float32")
    bk.elementwise_loss("mean_squared_error", pred, target, None, state, dpred=dpred)
    bk.record_loss(state)
    bk.sum_rows(dpred, out=grad)
    bk.unscale(grad, state)
    bk.sgd_step(param, grad, None, state, nesterov=False)
    host = bk.to_numpy(state)
    assert (host[S.LOSS], host[S.LOSS_SCALE], host[S.SKIP_STEP], host[S.BAD_STEP]) == (64.0, 2.0**23, 1, 0)
    assert not bk.to_numpy(param).any()
