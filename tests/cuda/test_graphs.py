"""Products through cuBLASLt and steps as graphs, on an emulated device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends import cupy_graph
from nnfast.backends.base import Replay
from nnfast.kernels.cuda.cublaslt import BIAS, DEFAULT, RELU_BIAS
from nnfast.kernels.cuda.cublaslt_library import CublasLtError
from tests.cuda.emulator import EmulatedBackend, emulated_backend
from tests.cuda.fake_streams import CaptureError


@pytest.fixture
def bk() -> Iterator[EmulatedBackend]:
    backend = emulated_backend()
    yield backend
    library = backend._cublaslt
    library.fake.fake_refuse(0)
    library.fake.fake_fail(0)


def arrays(bk: EmulatedBackend, dtype: str = "float32") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"x": (6, 5), "W": (5, 7), "b": (7,), "out": (6, 7)}
    return {name: bk.asarray(rng.standard_normal(shape).astype(dtype)) for name, shape in shapes.items()}


# ---- products --------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("refused", "kernels"),
    [(0, ["cublasLtMatmul"]), (RELU_BIAS, ["cublasLtMatmul", "bias_act"]), (DEFAULT, ["cublasLtMatmul"])],
)
def test_a_layer_is_one_launch_or_falls_back(bk: EmulatedBackend, dtype: str, refused: int, kernels: list[str]) -> None:
    bk._cublaslt.fake.fake_refuse(refused)
    given = arrays(bk, dtype)
    for _ in range(2):
        bk.counts.reset()
        bk.linear_act(given["x"], given["W"], given["b"], "relu", out=given["out"])
    x, W, b = (bk.to_numpy(given[name]).astype(np.float64) for name in "xWb")
    np.testing.assert_allclose(bk.to_numpy(given["out"]), np.maximum(x @ W + b, 0), rtol=1e-5, atol=1e-6)
    assert [name.partition("<")[0] for name in bk.counts.kernels] == kernels


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5])
def test_a_product_without_cublaslt_is_cupy_s(bk: EmulatedBackend, dtype: str, beta: float) -> None:
    given = arrays(bk, dtype)
    start = bk.to_numpy(given["out"])
    results = []
    for refused, name in ((0, "cublasLtMatmul" if beta != 0.5 else "gemm"), (DEFAULT, "gemm")):
        bk._plans.clear()
        bk._cublaslt.fake.fake_refuse(refused)
        bk.copy(start, out=given["out"])
        bk.counts.reset()
        bk.gemm(given["x"], given["W"], out=given["out"], beta=beta)
        assert bk.counts.kernels[-1] == name
        results.append(bk.to_numpy(given["out"]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_an_algorithm_that_fails_when_it_runs_is_passed_over(bk: EmulatedBackend) -> None:
    given = arrays(bk)
    bk._cublaslt.fake.fake_fail(100)
    bk.gemm(given["x"], given["W"], out=given["out"])
    x, W = (bk.to_numpy(given[name]) for name in "xW")
    np.testing.assert_allclose(bk.to_numpy(given["out"]), x @ W, rtol=1e-5)
    assert [int(plan.algorithm.data[0]) for plan in bk._plans.values() if plan] == [101]


def test_without_the_library_there_is_a_warning_and_no_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loading itself fails here, as with a broken installation."""
    monkeypatch.setattr("nnfast.backends.cupy_products.find", lambda: "/nowhere/libcublasLt.so.13")
    monkeypatch.setattr(EmulatedBackend, "_open_cublaslt", nf.backends.cupy_products.CudaProducts._open_cublaslt)
    with caplog.at_level(logging.WARNING, "nnfast"):
        bk = emulated_backend()
    assert "/nowhere/libcublasLt.so.13" in caplog.text
    given = arrays(bk)
    replay = bk.capture(lambda each: each.linear_act(given["x"], given["W"], given["b"], "relu", out=given["out"]))
    assert type(replay) is Replay
    replay.run()
    x, W, b = (bk.to_numpy(given[name]) for name in "xWb")
    np.testing.assert_allclose(bk.to_numpy(given["out"]), np.maximum(x @ W + b, 0), rtol=1e-5, atol=1e-6)


# ---- graphs ----------------------------------------------------------------------------------------
def test_a_graph_does_the_step_on_what_is_in_the_buffers_then(bk: EmulatedBackend) -> None:
    given = arrays(bk)
    replay = bk.capture(lambda each: each.linear_act(given["x"], given["W"], given["b"], "tanh", out=given["out"]))
    assert isinstance(replay, cupy_graph.GraphReplay)
    for factor in (1.0, -2.0):
        bk.copy(factor * np.ones((6, 5), np.float32), out=given["x"])
        bk.counts.reset()
        replay.run(3)
        assert (bk.counts.graphs, bk.counts.syncs, bk.counts.allocations, bk.counts.uploads) == (3, 0, 0, 0)
        x, W, b = (bk.to_numpy(given[name]) for name in "xWb")
        np.testing.assert_allclose(bk.to_numpy(given["out"]), np.tanh(x @ W + b), rtol=1e-5, atol=1e-6)


def test_many_steps_are_few_graphs(bk: EmulatedBackend) -> None:
    x = bk.zeros(5, "float64")
    one = bk.asarray(np.ones(5))
    replay = bk.capture(lambda each: each.add(x, one, out=x))
    bk.fill(x, 0.0)
    bk.counts.reset()
    replay.run(2 * cupy_graph.SEVERAL + 3)
    assert bk.counts.graphs == 5
    np.testing.assert_array_equal(bk.to_numpy(x), 2 * cupy_graph.SEVERAL + 3)
    assert bk._recording.capturing is False


def test_each_call_in_a_graph_keeps_its_own_bias(bk: EmulatedBackend) -> None:
    """Layers of one size share a plan, and with it the operation that holds the bias's address."""
    given = arrays(bk)
    first, second = bk.asarray(np.zeros(7, np.float32)), bk.asarray(np.full(7, 5.0, np.float32))
    outs = [bk.zeros((6, 7), "float32") for _ in range(2)]

    def step(each: Any) -> None:
        for bias, out in zip((first, second), outs, strict=True):
            each.linear_act(given["x"], given["W"], bias, "identity", out=out)

    bk.capture(step).run()
    x, W = (bk.to_numpy(given[name]) for name in "xW")
    for out, number in zip(outs, (0, 5), strict=True):
        np.testing.assert_allclose(bk.to_numpy(out), x @ W + number, rtol=1e-5, atol=1e-5)


REFUSALS = {
    "python": lambda bk, given: bk.python(lambda each: None),
    "strided": lambda bk, given: bk.act("relu", given["out"][:, ::2], out=given["out"][:, ::2]),
    "two dtypes": lambda bk, given: bk.act("relu", given["half"], out=given["full"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_step_that_cannot_be_a_graph_runs_as_it_is_and_says_so_once(
    bk: EmulatedBackend, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    given = {**arrays(bk), "half": bk.zeros((2, 2), np.float16), "full": bk.zeros((2, 2), np.float32)}

    def step(each: Any) -> None:
        each.linear_act(given["x"], given["W"], given["b"], "relu", out=given["out"])
        REFUSALS[name](each, given)

    with caplog.at_level(logging.WARNING, "nnfast"):
        replays = [bk.capture(step) for _ in range(2)]
    assert len([r for r in caplog.records if "cannot be captured" in r.message]) == 1
    bk.counts.reset()
    replays[1].run(2)
    assert bk.counts.graphs == 0
    assert bk.counts.kernels.count("cublasLtMatmul") == 2


def test_a_capture_that_cuda_refuses_leaves_the_step_as_it_is(
    bk: EmulatedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    given = arrays(bk)
    bk._cupy.streams.refuse_capture = True
    with caplog.at_level(logging.WARNING, "nnfast"):
        replay = bk.capture(lambda each: each.gemm(given["x"], given["W"], out=given["out"]))
    assert "cudaErrorStreamCaptureUnsupported" in caplog.text
    replay.run()
    assert bk._recording.capturing is False
    x, W = (bk.to_numpy(given[name]) for name in "xW")
    np.testing.assert_allclose(bk.to_numpy(given["out"]), x @ W, rtol=1e-5)


def test_an_error_of_the_step_itself_is_not_hidden(bk: EmulatedBackend) -> None:
    given = arrays(bk)

    def wrong(each: Any) -> None:
        each.gemm(given["x"], given["x"], out=given["out"])

    with pytest.raises(ValueError, match="gemm"):
        bk.capture(wrong)
    assert bk._recording.capturing is False


@pytest.mark.parametrize("forbidden", ["get", "set", "empty", "synchronize"])
def test_the_emulated_device_knows_what_a_capture_forbids(bk: EmulatedBackend, forbidden: str) -> None:
    """Without this the tests above would prove nothing."""
    x, stream = bk.zeros(3, "float32"), bk._cupy.cuda.Stream()
    forbid = {
        "get": lambda: bk.to_numpy(x),
        "set": lambda: x.set(np.ones(3, np.float32)),
        "empty": lambda: bk.empty(3, "float32"),
        "synchronize": bk.synchronize,
    }
    with stream:
        stream.begin_capture()
        with pytest.raises(CaptureError):
            forbid[forbidden]()
        stream.end_capture()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_training_in_graphs_gives_what_numpy_gives(bk: EmulatedBackend, optimizer: str) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 6)), rng.integers(0, 3, 50)
    weights, losses = [], []
    for device in ("numpy", bk):
        layers = [nf.Dense(8, "relu"), nf.BatchNorm(), nf.Dropout(0.2), nf.Dense(5, "gelu"), nf.Dense(3)]
        model = nf.Sequential(layers)
        history = model.fit(
            X, y, loss="cross_entropy", optimizer=optimizer, epochs=3, batch_size=16, device=device, seed=1, verbose=0
        )
        weights.append(model.get_flat_weights())
        losses.append(history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    assert bk.counts.graphs >= 3 * 4  # 4 steps an epoch, the last one smaller


def test_a_wrong_product_in_a_capture_is_an_error_of_the_library(bk: EmulatedBackend) -> None:
    given = arrays(bk)
    bk.linear_act(given["x"], given["W"], given["b"], "identity", out=given["out"])
    (plan,) = (plan for plan in bk._plans.values() if plan is not None and plan.problem.epilogue == BIAS)
    bk._cublaslt.fake.fake_refuse(BIAS)
    with pytest.raises(CublasLtError, match="not supported"):
        plan.run(*(given[name].data.ptr for name in ("x", "W", "out")), given["b"].data.ptr, 0, 0)
