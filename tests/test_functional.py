"""The backends' primitives as functions: what is made, what is checked, and NumPy's formulas beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends import formulas
from nnfast.backends.base import Backend
from nnfast.functional import _OPERATIONS, Functions
from nnfast.kernels import step_state as S


@pytest.fixture
def bk(backend: Backend) -> Any:
    return nf.get_backend(backend)


RNG = np.random.default_rng(0)
X, W, B = (RNG.standard_normal(shape) for shape in ((6, 3), (3, 4), (4,)))
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def test_one_view_of_one_backend(backend: Backend) -> None:
    view = nf.get_backend(backend)
    assert view is nf.get_backend(backend.device) is nf.get_backend(view)
    assert isinstance(view, type(backend))
    assert isinstance(view, Functions)
    assert nf.devices.get_backend(view) is view.plain
    assert repr(view) == f"<backend {backend.device}>"
    model = nf.Sequential([nf.Dense(2)]).build(3)
    model.fit(X, X[:, :2], loss="mse", device=view, epochs=1, verbose=0)
    assert model.parameters.backend is view.plain


def test_a_layer_and_its_gradient(bk: Any) -> None:
    y = bk.linear_act(X, W, B, "tanh")
    np.testing.assert_allclose(y, np.tanh(X @ W + B), **CLOSE)
    dy = RNG.standard_normal(y.shape)
    dz = dy * (1 - y**2)
    dx, dW, db = bk.linear_act_grad(dy.copy(), X, W, y, "tanh")
    for found, expected in ((dx, dz @ W.T), (dW, X.T @ dz), (db, dz.sum(0))):
        np.testing.assert_allclose(found, expected, **CLOSE)
    # Some are given, one is not wanted
    own = np.empty((3, 4))
    db = bk.linear_act_grad(dy.copy(), X, W, y, "tanh", dx=None, dW=own)
    np.testing.assert_allclose(own, X.T @ dz, **CLOSE)
    np.testing.assert_allclose(db, dz.sum(0), **CLOSE)


def test_calls_can_be_recorded(bk: Any) -> None:
    """Nothing is done before the replay, and all of it then."""
    x, out = X.copy(), np.zeros((6, 4))
    made = []

    def step(recorder: Any) -> None:
        recorder.linear_act(x, W, B, "tanh", out=out)
        made.append(recorder.act("relu", out))

    replay = bk.capture(step)
    x *= 2
    replay.run()
    np.testing.assert_allclose(out, np.tanh(x @ W + B), **CLOSE)
    np.testing.assert_allclose(made[-1], np.maximum(out, 0), **CLOSE)


def test_with_all_outputs_it_is_the_contract(bk: Any) -> None:
    out = np.empty((6, 4))
    assert bk.linear_act(X, W, None, "identity", out=out) is None
    np.testing.assert_allclose(out, X @ W, **CLOSE)
    assert bk.gemm(X, W, out=out) is None


def test_products(bk: Any) -> None:
    np.testing.assert_allclose(bk.gemm(X, W), X @ W, **CLOSE)
    np.testing.assert_allclose(bk.gemm(X, X, trans_a=True), X.T @ X, **CLOSE)
    np.testing.assert_allclose(bk.gemm(X, X, trans_b=True), X @ X.T, **CLOSE)
    with pytest.raises(ValueError, match=r"gemm: b has shape \(6, 3\), expected \(k, m\) with .*k = 3"):
        bk.gemm(X, X)


def test_elementwise(bk: Any) -> None:
    np.testing.assert_allclose(bk.add(X, X), 2 * X, **CLOSE)
    np.testing.assert_allclose(bk.add_bias(X @ W, B), X @ W + B, **CLOSE)
    np.testing.assert_allclose(bk.sum_rows(X), X.sum(0), **CLOSE)
    for x in (X, X[0], X.reshape(2, 3, 3)):
        np.testing.assert_allclose(bk.act("sigmoid", x), formulas.sigmoid(np, x), **CLOSE)
    np.testing.assert_allclose(bk.act_grad("relu", X, np.abs(X)), X, **CLOSE)
    np.testing.assert_array_equal(bk.take_rows(X, [4, 0, 4]), X[[4, 0, 4]])


def test_dropout_by_seed_and_step(bk: Any) -> None:
    x = np.ones((50, 40))
    a, b = bk.dropout(x, rate=0.25, stream=0, seed=1), bk.dropout(x, rate=0.25, stream=0, seed=1, t=2)
    assert set(np.unique(a)) == {0.0, 1 / 0.75}
    assert 0.2 < (a == 0).mean() < 0.3
    assert (a != b).any()
    np.testing.assert_array_equal(bk.dropout(x, rate=0.25, stream=0, seed=1), a)


def test_normalisation(bk: Any) -> None:
    gamma, beta = np.full(3, 2.0), np.ones(3)
    out, mean, rstd = bk.layer_norm(X, gamma, beta, eps=1e-5)
    np.testing.assert_allclose(mean, X.mean(1), **CLOSE)
    np.testing.assert_allclose(out, (X - mean[:, None]) * rstd[:, None] * 2 + 1, **CLOSE)
    dx, dgamma, dbeta = bk.layer_norm_grad(X.copy(), X, gamma, mean, rstd)
    assert (dx.shape, dgamma.shape, dbeta.shape) == ((6, 3), (3,), (3,))
    out, mean, var = bk.batch_norm(X, gamma, beta, eps=1e-5)
    np.testing.assert_allclose(var, X.var(0), **CLOSE)
    np.testing.assert_allclose(bk.batch_norm_inference(X, gamma, beta, mean, var, eps=1e-5), out, **CLOSE)
    assert len(bk.batch_norm_grad(X.copy(), X, gamma, mean, var, eps=1e-5)) == 3


def test_losses(bk: Any) -> None:
    z, labels = X @ W, np.array([0, 3, 1, 2, 2, 0])
    p = formulas.softmax(np, z)
    loss, dz = bk.softmax_xent(z, labels)
    assert loss == pytest.approx(-np.log(p[np.arange(6), labels]).mean())
    np.testing.assert_allclose(dz, (p - np.eye(4)[labels]) / 6, **CLOSE)
    weight = np.arange(6.0)
    weighted, _ = bk.softmax_xent(z, np.eye(4)[labels], weight)
    assert weighted == pytest.approx((-np.log(p[np.arange(6), labels]) * weight).sum() / weight.sum())
    loss, dp = bk.elementwise_loss("mean_squared_error", z, z + 1)
    assert loss == pytest.approx(1.0)
    np.testing.assert_allclose(dp, np.full((6, 4), -2 / 24), **CLOSE)


def test_optimizers(bk: Any) -> None:
    p, g, m, v = np.ones(5), np.full(5, 0.5), np.zeros(5), np.zeros(5)
    assert bk.adam_step(p, g, m, v, lr=0.1, t=1) is None
    np.testing.assert_allclose(p, 0.9, rtol=1e-6)
    np.testing.assert_allclose(m, 0.05)
    bk.sgd_step(p, g, lr=0.1)
    np.testing.assert_allclose(p, 0.85, rtol=1e-6)
    velocity = np.zeros(5)
    bk.sgd_step(p, g, velocity, lr=0.1, momentum=0.9, nesterov=True)
    np.testing.assert_allclose(velocity, 0.5)
    before = p.copy()
    with pytest.raises(FloatingPointError, match="adam_step: a new value is not finite"):
        bk.adam_step(p, np.full(5, np.nan), m, v, lr=0.1, t=2)
    np.testing.assert_array_equal(p, before)
    with pytest.raises(TypeError, match="adam_step needs lr="):
        bk.adam_step(p, g, m, v, t=1)
    with pytest.raises(TypeError, match="adam_step needs t="):
        bk.adam_step(p, g, m, v, lr=1)


def test_a_state_of_ones_own(bk: Any) -> None:
    state = bk.zeros(S.SIZE, np.float64)
    state[[S.LR, S.GRAD_SCALE]] = 0.1, 1
    p = np.ones(3)
    bk.sgd_step(p, np.ones(3), None, state, nesterov=False)
    np.testing.assert_allclose(p, 0.9)
    dz = bk.softmax_xent(X, np.zeros(6, int), None, state)
    assert dz.shape == X.shape
    assert state[S.LOSS] > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda bk: bk.linear_act(X, W.T, B, "relu"), ValueError, r"linear_act: W has shape \(4, 3\).* with k = 3"),
        (lambda bk: bk.linear_act(X[0], W, B, "relu"), ValueError, r"x has shape \(3,\), expected \(n, k\)"),
        (lambda bk: bk.linear_act(X, W, B[:2], "relu"), ValueError, r"b has shape \(2,\), expected \(m\) with m = 4"),
        (lambda bk: bk.linear_act(X, W.astype("f4"), B, "relu"), TypeError, "one dtype, got x float64, W float32"),
        (lambda bk: bk.linear_act(X.astype(int), W, B, "relu"), TypeError, "x must be floats, not int64"),
        (lambda bk: bk.linear_act(X, W), TypeError, "linear_act needs act"),
        (lambda bk: bk.linear_act(X, W, B, "relu", bias=1), TypeError, "linear_act has no argument bias"),
        (lambda bk: bk.linear_act(X, W, B, "relu", W=W), TypeError, "linear_act got W twice"),
        (lambda bk: bk.add(X, X, X), TypeError, "add takes 2 positional arguments, got 3"),
        (lambda bk: bk.add(X, X[:, :2]), ValueError, r"add: y has shape \(6, 2\)"),
        (lambda bk: bk.softmax_xent(X, np.zeros((6, 2))), ValueError, r"labels .*expected \(n\) or \(n, c\)"),
        (lambda bk: bk.sgd_step(np.ones((4, 2))[:, 0], np.ones(4), lr=1), ValueError, "sgd_step: param is written to"),
    ],
)  # fmt: skip
def test_errors_name_both_sides(bk: Any, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(bk)


def test_arrays_of_others(bk: Any) -> None:
    torch = pytest.importorskip("torch")
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    np.testing.assert_allclose(bk.linear_act(x, w, None, "identity"), X @ W, **CLOSE)
    p = torch.ones(4, dtype=torch.float64)
    bk.sgd_step(p, torch.ones(4, dtype=torch.float64), lr=0.5)
    np.testing.assert_allclose(p.numpy(), 0.5)  # the tensor's own memory
    np.testing.assert_allclose(bk.add(X[:, ::-1], X), X[:, ::-1] + X, **CLOSE)


def test_a_network_trains(bk: Any) -> None:
    """XOR, with a loop over the functions alone."""
    x, y = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), np.array([[0.0], [1], [1], [0]])
    rng = np.random.default_rng(1)
    W1, b1, W2, b2 = rng.standard_normal((2, 8)), np.zeros(8), rng.standard_normal((8, 1)), np.zeros(1)
    moments = [(np.zeros(p.size), np.zeros(p.size)) for p in (W1, b1, W2, b2)]
    for t in range(1, 400):
        h = bk.linear_act(x, W1, b1, "tanh")
        z = bk.linear_act(h, W2, b2, "identity")
        loss, dz = bk.elementwise_loss("binary_cross_entropy", z, y)
        dh, dW2, db2 = bk.linear_act_grad(dz, h, W2, None, "identity")
        dW1, db1 = bk.linear_act_grad(dh, x, W1, h, "tanh", dx=None)
        for p, g, (m, v) in zip((W1, b1, W2, b2), (dW1, db1, dW2, db2), moments, strict=True):
            bk.adam_step(p.reshape(-1), g.reshape(-1), m, v, lr=0.05, t=t)
    assert loss < 0.01


def test_every_operation_is_the_contracts() -> None:
    for name, operation in _OPERATIONS.items():
        assert callable(getattr(Backend, name))
        assert getattr(Functions, name).__doc__.endswith("is made.")
        assert operation.inputs


def test_on_the_emulated_device() -> None:
    emulator = pytest.importorskip("tests.cuda.emulator")
    bk = nf.get_backend(emulator.emulated_backend())
    y = bk.linear_act(X.astype("f4"), W.astype("f4"), B.astype("f4"), "relu")
    np.testing.assert_allclose(bk.to_numpy(y), np.maximum(X @ W + B, 0), rtol=1e-5, atol=1e-5)
    loss, dz = bk.softmax_xent(y, np.array([0, 3, 1, 2, 2, 0]))
    assert loss > 0
    assert dz.shape == (6, 4)
