"""Every method of the contract on Numba kernels against NumPy, at the tolerances of the numerics policy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from nnfast import activations
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels import step_state as S

NUMPY = NumpyBackend()
NUMBA = NumbaBackend()
COMPOSED = NumbaBackend(fused=False)

DTYPES = [np.float32, np.float64]
# (rtol, atol) of the forward and of the gradient
FORWARD = {np.float32: (1e-5, 1e-5), np.float64: (1e-12, 1e-13)}
GRADIENT = {np.float32: (1e-4, 1e-4), np.float64: (1e-10, 1e-10)}
SHAPES = [(1, 1), (7, 10), (33, 129), (257, 10), (257, 1), (1, 129)]
# Large enough for several tasks
LARGE = (1031, 67)
ACTS = [*activations.names(), "leaky_relu(0.3)", "elu(0.7)"]

dtypes = pytest.mark.parametrize("dtype", DTYPES)
shapes = pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)


def close(got, want, dtype, table=FORWARD):
    rtol, atol = table[dtype]
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def product_bound(a, b, dtype):
    """The policy's bound of a product: 8 eps |A| |B|, or the depth's worst case where that is larger."""
    scale = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    return 8 * np.finfo(dtype).eps * scale + 1e-300


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def new_state(**slots):
    state = np.zeros(S.SIZE)
    state[[S.GRAD_SCALE, S.STEP, S.SEED_LO, S.SEED_HI, S.LR]] = 1.0, 3.0, 12345.0, 678.0, 1e-2
    for name, value in slots.items():
        state[getattr(S, name)] = value
    return state


def both(call, *outputs, backends=(NUMPY, NUMBA)):
    """Run `call(backend, *copies)` on each backend with its own copies of `outputs`; returns both tuples."""
    results = []
    for backend in backends:
        mine = tuple(None if o is None else o.copy() for o in outputs)
        call(backend, *mine)
        results.append(mine)
    return results


# ---- products -----------------------------------------------------------------------------------------
@dtypes
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (7, 3, 5), (33, 129, 10), (257, 64, 1), (129, 257, 200), (10, 9000, 20)]
)
def test_gemm(rng, dtype, trans_a, trans_b, beta, m, k, n):
    a = rng.standard_normal((k, m) if trans_a else (m, k)).astype(dtype)
    b = rng.standard_normal((n, k) if trans_b else (k, n)).astype(dtype)
    out = rng.standard_normal((m, n)).astype(dtype)
    (want,), (got,) = both(lambda bk, o: bk.gemm(a, b, out=o, trans_a=trans_a, trans_b=trans_b, beta=beta), out)
    bound = product_bound(a.T if trans_a else a, b.T if trans_b else b, dtype) + 8 * np.finfo(dtype).eps * np.abs(out)
    assert np.all(np.abs(got.astype(np.float64) - want) <= bound)


def test_gemm_overwrites_nan():
    out = np.full((40, 30), np.nan, np.float32)
    NUMBA.gemm(np.ones((40, 20), np.float32), np.ones((20, 30), np.float32), out=out)
    assert np.all(out == 20)


@dtypes
@shapes
def test_sums(rng, dtype, shape):
    x, y = rng.standard_normal((2, *shape)).astype(dtype)
    b = rng.standard_normal(shape[1]).astype(dtype)
    for call in (
        lambda bk, o: bk.add(x, y, out=o),
        lambda bk, o: bk.add_bias(x, b, out=o),
    ):
        (want,), (got,) = both(call, np.empty_like(x))
        close(got, want, dtype)
    for call in (
        lambda bk, o: bk.add(o, y, out=o),
        lambda bk, o: bk.add(y, o, out=o),
        lambda bk, o: bk.add(o, o, out=o),
        lambda bk, o: bk.add_bias(o, b, out=o),
    ):
        (want,), (got,) = both(call, x)
        close(got, want, dtype)
    (want,), (got,) = both(lambda bk, o: bk.sum_rows(x, out=o), np.empty_like(b))
    close(got, want, dtype, GRADIENT)


# ---- activations --------------------------------------------------------------------------------------
@dtypes
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", [(7, 10), (257, 129), (3, 5, 11)], ids=str)
def test_act(rng, dtype, act, shape):
    z = (4 * rng.standard_normal(shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    (want,), (got,) = both(lambda bk, o: bk.act(act, z, out=o), np.empty_like(z))
    close(got, want, dtype)
    (want_same,), (got_same,) = both(lambda bk, o: bk.act(act, o, out=o), z)
    close(got_same, want_same, dtype)
    saved = z if activations.get(act).saves == "input" else want
    for call, start in (
        (lambda bk, o: bk.act_grad(act, dy, saved, out=o), np.empty_like(z)),
        (lambda bk, o: bk.act_grad(act, o, saved, out=o), dy),
    ):
        (want_grad,), (got_grad,) = both(call, start)
        close(got_grad, want_grad, dtype, GRADIENT)


@dtypes
@pytest.mark.parametrize("act", activations.names())
def test_act_at_extremes(dtype, act):
    extremes = [0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0, 100.0, -100.0, 1e30, -1e30, np.inf, -np.inf, np.nan]
    z = np.array([[0.5, extreme, -0.25, 1.0] for extreme in extremes], dtype)
    with np.errstate(all="ignore"):
        (want,), (got,) = both(lambda bk, o: bk.act(act, z, out=o), np.empty_like(z))
    close(got, want, dtype)


@dtypes
@pytest.mark.parametrize("act", activations.names())
def test_linear_act_passes_nan(dtype, act):
    x, W, out = np.ones((5, 3), dtype), np.ones((3, 4), dtype), np.zeros((5, 4), dtype)
    x[2, 1] = np.nan
    NUMBA.linear_act(x, W, None, act, out=out)
    assert np.isnan(out[2]).all()
    assert np.isfinite(out[[0, 1, 3, 4]]).all()


# ---- a fully connected layer --------------------------------------------------------------------------
def linear_case(rng, dtype, n, k, m, bias, act):
    x, W, dy = (rng.standard_normal(s).astype(dtype) for s in ((n, k), (k, m), (n, m)))
    W /= np.sqrt(k).astype(dtype)
    b = rng.standard_normal(m).astype(dtype) if bias else None
    z, y = np.empty_like(dy), np.empty_like(dy)
    NUMPY.linear_act(x, W, b, act, out=y, saved=z)
    return x, W, b, dy, z, y


LINEAR_SIZES = [(1, 1, 1), (7, 10, 1), (33, 129, 10), (257, 10, 129), (257, 129, 129), (600, 257, 200), (5000, 16, 16)]


@dtypes
@pytest.mark.parametrize("backend", [NUMBA, COMPOSED], ids=["fused", "composed"])
@pytest.mark.parametrize(("n", "k", "m"), LINEAR_SIZES)
@pytest.mark.parametrize(
    ("act", "bias", "keep"), [("relu", True, False), ("gelu", True, True), ("identity", False, False)]
)
def test_linear(rng, dtype, backend, n, k, m, act, bias, keep):
    x, W, b, dy, z, y = linear_case(rng, dtype, n, k, m, bias, act)
    got_y, got_z = np.empty_like(y), np.empty_like(z)
    backend.linear_act(x, W, b, act, out=got_y, saved=got_z if keep else None)
    close(got_y, y, dtype)
    if keep:
        close(got_z, z, dtype)
    saved = z if activations.get(act).saves == "input" else y
    outputs = (dy, np.empty_like(x), np.empty_like(W), None if b is None else np.empty_like(b))

    def call(bk, d, dx, dW, db):
        bk.linear_act_grad(d, x, W, saved, act, dx=dx, dW=dW, db=db)

    want, got = both(call, *outputs, backends=(NUMPY, backend))
    scale = np.sqrt(n)  # of a sum over the batch
    for w, g, size in zip(want[1:], got[1:], (1.0, scale, scale), strict=True):
        if w is not None:
            close(g / size, w / size, dtype, GRADIENT)


@dtypes
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("backend", [NUMBA, COMPOSED], ids=["fused", "composed"])
def test_linear_of_each_activation(rng, dtype, act, backend):
    x, W, b, dy, z, y = linear_case(rng, dtype, 65, 20, 33, True, act)
    got = np.empty_like(y)
    backend.linear_act(x, W, b, act, out=got)
    close(got, y, dtype)
    saved = z if activations.get(act).saves == "input" else y

    def call(bk, d, dW, db):
        bk.linear_act_grad(d, x, W, saved, act, dx=None, dW=dW, db=db)

    want, got = both(call, dy, np.empty_like(W), np.empty_like(b), backends=(NUMPY, backend))
    for w, g in zip(want[1:], got[1:], strict=True):
        close(g / 8, w / 8, dtype, GRADIENT)


# ---- dropout ------------------------------------------------------------------------------------------
@dtypes
@pytest.mark.parametrize("shape", [(1,), (3,), (4, 5), (33, 7), (1031, 67)], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("step", [1, 2**32 + 5])
def test_dropout_is_bit_identical(rng, dtype, shape, rate, step):
    x = rng.standard_normal(shape).astype(dtype)
    state = new_state(STEP=step, SEED_LO=2**32 - 1, SEED_HI=2**31 + 7)
    (want,), (got,) = both(lambda bk, o: bk.dropout(x, state, rate=rate, stream=9, out=o), np.empty_like(x))
    np.testing.assert_array_equal(got, want)
    (want,), (got,) = both(lambda bk, o: bk.dropout(o, state, rate=rate, stream=9, out=o), x)
    np.testing.assert_array_equal(got, want)


# ---- rows ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.float16])
@pytest.mark.parametrize("trailing", [(), (1,), (7,), (3, 5), (784,)], ids=str)
@pytest.mark.parametrize("rows", [1, 33, 257])
def test_rows(rng, dtype, trailing, rows):
    x = (100 * rng.standard_normal((400, *trailing))).astype(dtype)
    index = rng.integers(0, 400, rows)
    out = np.zeros((rows, *trailing), dtype)
    (want,), (got,) = both(lambda bk, o: bk.take_rows(x, index, out=o), out)
    np.testing.assert_array_equal(got, want)
    order, state = rng.permutation(400), new_state(ROW=100)
    (want,), (got,) = both(lambda bk, o: bk.take_batch(x, order, state, out=o), out)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, x[order[100 : 100 + rows]])
    (want,), (got,) = both(lambda bk, o: bk.store_batch(x[:rows], state, out=o), x)
    np.testing.assert_array_equal(got, want)


@dtypes
@pytest.mark.parametrize("trailing", [(), (1,), (200,)], ids=str)
def test_add_at_rows_counts_repeats(rng, dtype, trailing):
    x = rng.standard_normal((300, *trailing)).astype(dtype)
    index = rng.integers(0, 12, 300)
    (want,), (got,) = both(lambda bk, o: bk.add_at_rows(x, index, out=o), np.ones((12, *trailing), dtype))
    close(got, want, dtype, GRADIENT)


@dtypes
@pytest.mark.parametrize("size", [1, 7, 1000, 300_000])
def test_sq_norm(rng, dtype, size):
    x = rng.standard_normal(size).astype(dtype)
    (want,), (got,) = both(lambda bk, o: bk.sq_norm(x, out=o), np.zeros(1))
    np.testing.assert_allclose(got, want, rtol=1e-12)


# ---- normalisation ------------------------------------------------------------------------------------
@dtypes
@shapes
@pytest.mark.parametrize("want_dx", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_layer_norm(rng, dtype, shape, want_dx, in_place):
    n, m = shape
    x, dy = (3 + rng.standard_normal((2, *shape))).astype(dtype)
    gamma, beta = rng.standard_normal((2, m)).astype(dtype)
    outputs = (np.empty_like(x), np.empty(n, dtype), np.empty(n, dtype))

    def forward(bk, out, mean, rstd):
        bk.layer_norm(x, gamma, beta, eps=1e-3, out=out, mean=mean, rstd=rstd)

    want, got = both(forward, *outputs)
    for w, g in zip(want, got, strict=True):
        close(g, w, dtype)
    _, mean, rstd = want

    def backward(bk, d, dx, dgamma, dbeta):
        target = (d if in_place else dx) if want_dx else None
        bk.layer_norm_grad(d, x, gamma, mean, rstd, dx=target, dgamma=dgamma, dbeta=dbeta)

    want, got = both(backward, dy, np.zeros_like(x), np.empty(m, dtype), np.empty(m, dtype))
    for w, g, size in zip(want, got, (1, 1, np.sqrt(n), np.sqrt(n)), strict=True):
        close(g / size, w / size, dtype, GRADIENT)


@dtypes
@pytest.mark.parametrize("shape", [(7, 10), (33, 129), (257, 1), LARGE], ids=str)
@pytest.mark.parametrize("want_dx", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_batch_norm(rng, dtype, shape, want_dx, in_place):
    n, m = shape
    x, dy = (3 + rng.standard_normal((2, *shape))).astype(dtype)
    gamma, beta = rng.standard_normal((2, m)).astype(dtype)

    def forward(bk, out, mean, var):
        bk.batch_norm(x, gamma, beta, eps=1e-5, out=out, mean=mean, var=var)

    want, got = both(forward, np.empty_like(x), np.empty(m, dtype), np.empty(m, dtype))
    for w, g in zip(want, got, strict=True):
        close(g, w, dtype)
    _, mean, var = want

    def inference(bk, out):
        bk.batch_norm_inference(x, gamma, beta, mean, var, eps=1e-5, out=out)

    (w,), (g,) = both(inference, np.empty_like(x))
    close(g, w, dtype)

    def backward(bk, d, dx, dgamma, dbeta):
        target = (d if in_place else dx) if want_dx else None
        bk.batch_norm_grad(d, x, gamma, mean, var, eps=1e-5, dx=target, dgamma=dgamma, dbeta=dbeta)

    want, got = both(backward, dy, np.zeros_like(x), np.empty(m, dtype), np.empty(m, dtype))
    for w, g, size in zip(want, got, (1, 1, np.sqrt(n), np.sqrt(n)), strict=True):
        close(g / size, w / size, dtype, GRADIENT)


@dtypes
@pytest.mark.parametrize("bad_step", [0.0, 2.0])
@pytest.mark.parametrize("rows", [1, 33])
def test_batch_norm_track(rng, dtype, bad_step, rows):
    mean, var, running_mean, running_var = np.abs(rng.standard_normal((4, 9))).astype(dtype)
    mean[3] = np.nan
    state = new_state(BAD_STEP=bad_step)

    def call(bk, a, b):
        bk.batch_norm_track(mean, var, state, rows=rows, momentum=0.1, running_mean=a, running_var=b)

    want, got = both(call, running_mean, running_var)
    for w, g in zip(want, got, strict=True):
        close(g, w, dtype)
    assert (got[0] == running_mean).all() == (bad_step != 0)


# ---- losses -------------------------------------------------------------------------------------------
LOSSES = {
    "mean_squared_error": 0.0,
    "mean_absolute_error": 0.0,
    "huber": 0.7,
    "binary_cross_entropy": 0.0,
    "poisson": 0.0,
    "hinge": 0.0,
}


def loss_parity(call, pred, want_gradient, in_place, dtype, other=NUMBA):
    states = new_state(), new_state()
    gradients = []
    for backend, state in zip((NUMPY, other), states, strict=True):
        p = pred.copy()
        d = None if not want_gradient else p if in_place else np.full_like(p, np.nan)
        call(backend, p, state, d)
        gradients.append(d)
    close(states[1][S.LOSS], states[0][S.LOSS], dtype)
    np.testing.assert_allclose(states[1][S.BATCH_WEIGHT], states[0][S.BATCH_WEIGHT], rtol=1e-12)
    if want_gradient:
        # The gradient of a mean shrinks with the batch: compare per element
        close(gradients[1] * pred.size, gradients[0] * pred.size, dtype, GRADIENT)


modes = pytest.mark.parametrize(("want_gradient", "in_place"), [(False, False), (True, False), (True, True)])
weights = pytest.mark.parametrize("weighted", ["none", "random", "zero"])


def make_weight(rng, weighted, n, dtype):
    if weighted == "none":
        return None
    return (rng.random(n) * (weighted == "random")).astype(dtype)


@dtypes
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(1, 1), (257, 1), (33, 129)], ids=str)
@weights
@modes
def test_elementwise_loss(rng, dtype, name, shape, weighted, want_gradient, in_place):
    pred = (2 * rng.standard_normal(shape)).astype(dtype)
    target = rng.integers(0, 2, shape).astype(dtype)
    weight = make_weight(rng, weighted, shape[0], dtype)

    def call(bk, p, state, d):
        bk.elementwise_loss(name, p, target, weight, state, param=LOSSES[name], dpred=d)

    loss_parity(call, pred, want_gradient, in_place, dtype)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (257, 3), (1031, 67), (3, 5000)], ids=str)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@weights
@modes
def test_softmax_xent(rng, dtype, shape, soft, smoothing, weighted, want_gradient, in_place):
    n, c = shape
    logits = (5 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.random(shape) if soft else rng.integers(0, c, n)
    if soft:  # of a mass other than 1, which the formula allows
        labels = (0.8 * labels / labels.sum(axis=1, keepdims=True)).astype(dtype)
    weight = make_weight(rng, weighted, n, dtype)

    def call(bk, z, state, d):
        bk.softmax_xent(z, labels, weight, state, smoothing=smoothing, dlogits=d)

    loss_parity(call, logits, want_gradient, in_place, dtype)


@dtypes
def test_softmax_xent_of_large_and_bad_logits(dtype):
    labels = np.array([0, 1, 2])
    for value, finite in ((1e4, True), (np.nan, False), (np.inf, False)):
        logits = np.array([[value, 0, 1], [0, 1, 2], [-value, 0, 5]], dtype)
        state = new_state()
        NUMBA.softmax_xent(logits, labels, None, state, dlogits=None)
        assert np.isfinite(state[S.LOSS]) == finite


def test_softmax_xent_label_out_of_range_is_not_silent():
    logits, state = np.zeros((3, 4), np.float32), new_state()
    dlogits = np.zeros_like(logits)
    NUMBA.softmax_xent(logits, np.array([0, 4, -1]), None, state, dlogits=dlogits)
    assert np.isnan(state[S.LOSS])
    assert np.isnan(dlogits[1:]).any(axis=1).all()


# ---- the step's bookkeeping ---------------------------------------------------------------------------
@pytest.mark.parametrize("loss", [0.5, np.nan, np.inf])
@pytest.mark.parametrize("bad_step", [0.0, 2.0])
def test_bookkeeping(loss, bad_step):
    table = np.array([0.1, 0.2, 0.3])
    results = []
    for backend in (NUMPY, NUMBA):
        state = new_state(LOSS=loss, BATCH_WEIGHT=32.0, BAD_STEP=bad_step, LOSS_SUM=1.0, CURSOR=1.0, GRAD_SCALE=0.2)
        backend.begin_step(state, table)
        backend.record_loss(state)
        backend.end_step(state, 32)
        results.append(state)
    np.testing.assert_array_equal(results[1], results[0])
    assert results[1][S.LR] == 0.2


@pytest.mark.parametrize("bad_step", [0.0, 2.0])
@pytest.mark.parametrize("recorded", [False, True])
def test_end_of_an_epoch(bad_step, recorded):
    for backend in (NUMPY, NUMBA):
        state = new_state(LOSS_SUM=6.0, WEIGHT_SUM=4.0, LR=0.5, EPOCH_INDEX=1.0, BAD_STEP=bad_step, ROW=7.0)
        results, before = np.full((3, 3), -1.0), state.copy()
        if recorded:
            backend.capture(lambda bk, state=state, results=results: bk.end_epoch(state, results)).run()
        else:
            backend.end_epoch(state, results)
        if bad_step:
            np.testing.assert_array_equal(state, before)
            assert (results == -1).all()
            continue
        assert results.tolist() == [[-1] * 3, [6.0, 4.0, 0.5], [-1] * 3]
        before[[S.LOSS_SUM, S.WEIGHT_SUM]] = 0.0
        before[S.EPOCH_INDEX] = 2.0
        np.testing.assert_array_equal(state, before)


def test_an_epoch_past_the_table_of_results_is_an_error_or_does_not_count():
    results, state = np.zeros((3, 3)), new_state(EPOCH_INDEX=2.0, WEIGHT_SUM=4.0)
    for backend in (NUMPY, NUMBA):
        with pytest.raises(IndexError):
            backend.end_epoch(state, results[:2])
    with pytest.raises(IndexError, match="EPOCH_INDEX is 2, results has 2 rows"):
        NUMBA.end_epoch(state, results[:2])
    NUMBA.capture(lambda bk: bk.end_epoch(state, results[:2])).run()
    assert state[S.EPOCH_INDEX] == 2
    assert not results.any()


@pytest.mark.parametrize("wrong", [(3,), (3, 2), (2, 3, 3)])
def test_results_of_another_shape(wrong):
    with pytest.raises(ValueError, match="results has shape"):
        NUMBA.end_epoch(new_state(), np.zeros(wrong))


def test_a_rate_past_the_table_is_an_error_or_a_step_that_is_not_done():
    table, state = np.array([0.1]), new_state(CURSOR=1.0)
    with pytest.raises(IndexError, match="CURSOR is 1, the table has 1"):
        NUMBA.begin_step(state, table)
    NUMBA.capture(lambda bk: bk.begin_step(state, table)).run()
    assert np.isnan(state[S.LR])


@dtypes
@pytest.mark.parametrize("size", [1, 1000, 100_001])
@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
def test_clipping(rng, dtype, size, bad):
    grad = rng.standard_normal(size).astype(dtype)
    if bad is not None:
        grad[size // 2] = bad
    (want,), (got,) = both(lambda bk, g: bk.clip_value(g, limit=0.5), grad)
    np.testing.assert_array_equal(got, want)
    (want,), (got,) = both(lambda bk, s: bk.clip_norm(grad, s, max_norm=0.1), new_state())
    np.testing.assert_allclose(got, want, rtol=1e-12)


@dtypes
@pytest.mark.parametrize("size", [1, 1000, 100_001])
@pytest.mark.parametrize("weight", [0.0, 7.5])
def test_l2_penalty(rng, dtype, size, weight):
    param, grad = rng.standard_normal((2, size)).astype(dtype)
    state = new_state(LOSS=2.0, LOSS_SUM=3.0, BATCH_WEIGHT=weight)
    want, got = both(lambda bk, g, s: bk.l2_penalty(param, g, s, strength=0.3, share=0.5), grad, state)
    close(got[0], want[0], dtype)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-12)
    divisor = weight or 1.0
    close(got[0], grad + 0.3 / divisor * param, dtype)
    penalty = 0.5 * 0.15 * (param.astype(np.float64) ** 2).sum() / divisor
    np.testing.assert_allclose(got[1][[S.LOSS, S.LOSS_SUM]], [2.0 + penalty, 3.0 + penalty * weight], rtol=1e-12)


# ---- optimizers ---------------------------------------------------------------------------------------
# name: (own arrays, hyperparameters, keywords)
OPTIMIZERS = {
    "sgd": ("sgd_step", (None,), {}, {"nesterov": False}),
    "momentum": ("sgd_step", (0.0,), {"P0": 0.9}, {"nesterov": False}),
    "nesterov": ("sgd_step", (0.0,), {"P0": 0.9}, {"nesterov": True}),
    "adagrad": ("adagrad_step", (0.1,), {"P0": 1e-7}, {}),
    "rmsprop": ("rmsprop_step", (0.0, None, None), {"P0": 0.9, "P1": 1e-7}, {}),
    "rmsprop_momentum": ("rmsprop_step", (0.0, None, 0.0), {"P0": 0.9, "P1": 1e-7, "P2": 0.5}, {}),
    "rmsprop_centered": ("rmsprop_step", (0.0, 0.0, None), {"P0": 0.9, "P1": 1e-3}, {}),
    "rmsprop_both": ("rmsprop_step", (0.0, 0.0, 0.0), {"P0": 0.9, "P1": 1e-3, "P2": 0.5}, {}),
    "adam": ("adam_step", (0.0, 0.0), {"P0": 0.9, "P1": 0.999, "P2": 1e-8}, {"decoupled": False}),
    "adamw": ("adam_step", (0.0, 0.0), {"P0": 0.9, "P1": 0.999, "P2": 1e-8}, {"decoupled": True}),
    "adam, hat": ("adam_step", (0.0, 0.0), {"P0": 0.9, "P1": 0.99, "P2": 1e-2, "P3": 1.0}, {"decoupled": False}),
    "adamax": ("adamax_step", (0.0, 0.0), {"P0": 0.9, "P1": 0.999, "P2": 1e-8}, {}),
    "nadam": ("nadam_step", (0.0, 0.0), {"P0": 0.9, "P1": 0.999, "P2": 1e-8, "P3": 0.004, "P4": 1.0}, {}),
    "lion": ("lion_step", (0.0,), {"P0": 0.9, "P1": 0.99}, {}),
    "ema": ("ema_step", (), {"EMA_DECAY": 0.95}, {}),
}


def run_optimizer(backend, name, dtype, size, gradients, **slots):
    """Steps on fixed numbers; returns all arrays and the state."""
    method, own, hyper, keywords = OPTIMIZERS[name]
    param = np.random.default_rng(1).standard_normal(size).astype(dtype)
    arrays = [None if start is None else np.full(size, start, dtype) for start in own]
    state = new_state(STEP=0, **hyper, **slots)
    for grad in gradients:
        state[S.STEP] += 1
        grad = grad.astype(dtype)
        if method == "ema_step":
            backend.ema_step(grad, param, state)
        else:
            getattr(backend, method)(param, grad, *arrays, state, **keywords)
    return [param, *(a for a in arrays if a is not None)], state


@dtypes
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 257, 50_001])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_optimizer(rng, dtype, name, size, decay):
    gradients = rng.standard_normal((4, size))
    want, want_state = run_optimizer(NUMPY, name, dtype, size, gradients, WEIGHT_DECAY=decay, GRAD_SCALE=0.5)
    got, got_state = run_optimizer(NUMBA, name, dtype, size, gradients, WEIGHT_DECAY=decay, GRAD_SCALE=0.5)
    for w, g in zip(want, got, strict=True):
        close(g, w, dtype)
    np.testing.assert_allclose(got_state, want_state, rtol=1e-12)
    assert got_state[S.BAD_STEP] == 0


@dtypes
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_does_nothing_after_a_bad_step(rng, dtype, name):
    gradients = rng.standard_normal((2, 300))
    start, _ = run_optimizer(NUMBA, name, dtype, 300, [])
    got, state = run_optimizer(NUMBA, name, dtype, 300, gradients, BAD_STEP=1.0)
    for s, g in zip(start, got, strict=True):
        np.testing.assert_array_equal(g, s)
    assert state[S.P4] == OPTIMIZERS[name][2].get("P4", 0.0)


@dtypes
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "ema"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 50_000])
def test_optimizer_keeps_the_elements_that_would_not_be_finite(rng, dtype, name, bad, at):
    size = 50_001
    gradients = rng.standard_normal((3, size))
    gradients[1, at] = bad
    with np.errstate(all="ignore"):
        want, want_state = run_optimizer(NUMPY, name, dtype, size, gradients)
    got, got_state = run_optimizer(NUMBA, name, dtype, size, gradients)
    for w, g in zip(want, got, strict=True):
        close(g, w, dtype)
    assert want_state[S.BAD_STEP] == got_state[S.BAD_STEP]
    np.testing.assert_allclose(got_state, want_state, rtol=1e-12)


@dtypes
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_unfused_optimizer_is_numpys(rng, dtype, name):
    gradients = rng.standard_normal((3, 100))
    want, _ = run_optimizer(NUMPY, name, dtype, 100, gradients)
    got, _ = run_optimizer(COMPOSED, name, dtype, 100, gradients)
    np.testing.assert_array_equal(got[0], want[0])


# ---- memory -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("target", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(33, 7), LARGE], ids=str)
@pytest.mark.parametrize("recorded", [False, True])
def test_copy_and_fill(rng, source, target, shape, recorded):
    src = (10 * rng.standard_normal(shape)).astype(source)

    def run(bk, step):
        bk.capture(step).run() if recorded else step(bk)

    (want,), (got,) = both(lambda bk, o: run(bk, lambda b: b.copy(src, out=o)), np.zeros(shape, target))
    np.testing.assert_array_equal(got, want)
    assert (got == src.astype(target)).all()
    for value in (2.5, np.inf, np.nan, -1e30):
        (want,), (got,) = both(lambda bk, o, v=value: run(bk, lambda b: b.fill(o, v)), np.zeros(shape, target))
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(got, np.full(shape, value, target))


@pytest.mark.parametrize("shape", [(33, 7), LARGE], ids=str)
def test_copy_and_fill_on_numba_at_the_limits(shape):
    """Small arrays, which NumPy does, as large ones: no warning of overflow, nothing written to what is read-only."""
    x = np.zeros(shape, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NUMBA.fill(x, 1e300)
    assert np.isposinf(x).all()
    y = np.zeros(shape, np.float32)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="fill: x is read-only"):
        NUMBA.fill(y, 1.0)
    with pytest.raises(ValueError, match="copy: out is read-only"):
        NUMBA.copy(x, out=y)
    with pytest.raises(ValueError, match="could not convert string to float"):
        NUMBA.fill(x, "one")
    assert not y.any()
