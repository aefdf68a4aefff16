"""Backward products with the slope of the layer below: where they are used, and where they may not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.cupy_graph import GraphReplay
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels.cuda.cublaslt import DGELU_BGRAD, DRELU_BGRAD, GELU_AUX_BIAS, RELU_AUX_BIAS
from tests.cuda.emulator import EmulatedBackend, emulated_backend


@pytest.fixture
def bk() -> Iterator[EmulatedBackend]:
    backend = emulated_backend()
    yield backend
    backend._cublaslt.fake.fake_refuse(0)


class Net:
    """Forward and backward of three layers, as a plan calls them.

    `full` is the dtype of gradients of weights, by default `dtype`. With `half` numbers are first rounded to that.
    """

    def __init__(
        self,
        bk: Any,
        acts: tuple[str, str],
        widths: tuple[int, ...] = (5, 16, 24, 3),
        dtype: Any = "float64",
        full: Any = None,
        half: Any = None,
    ):
        rng = np.random.default_rng(0)
        self.bk, self.acts, rows = bk, acts, 11

        def array(*shape: int, dtype: Any = dtype) -> Any:
            return bk.asarray(rng.standard_normal(shape).astype(half or dtype).astype(dtype))

        self.x = array(rows, widths[0])
        pairs = list(pairwise(widths))
        self.W, self.b = [array(*p) for p in pairs], [array(p[1]) for p in pairs]
        full = full or dtype
        self.dW, self.db = [array(*p, dtype=full) for p in pairs], [array(p[1], dtype=full) for p in pairs]
        self.y, self.dy = [array(rows, n) for n in widths[1:]], [array(rows, n) for n in widths[1:]]
        self.start = bk.to_numpy(self.dy[-1]).copy()
        self.z = [array(rows, n) if "gelu" in act else None for n, act in zip(widths[1:], acts, strict=False)]
        self.between: Any = lambda each: None

    def step(self, each: Any) -> None:
        acts = (*self.acts, "identity")
        inputs = [self.x, *self.y]
        for i, act in enumerate(acts):
            saved = self.z[i] if i < 2 else None
            each.linear_act(inputs[i], self.W[i], self.b[i], act, out=self.y[i], saved=saved)
        each.copy(self.kept, out=self.dy[-1])
        for i in (2, 1, 0):
            saved = None if i == 2 else self.z[i] if self.z[i] is not None else self.y[i]
            dx = self.dy[i - 1] if i else None
            each.linear_act_grad(
                self.dy[i], inputs[i], self.W[i], saved, acts[i], dx=dx, dW=self.dW[i], db=self.db[i]
            )  # fmt: skip
            self.between(each)

    def run(self, times: int = 1) -> dict[str, np.ndarray]:
        self.kept = self.bk.asarray(self.start)
        self.replay = self.bk.capture(self.step)
        for array in (*self.dW, *self.db, *self.dy[:2]):
            self.bk.fill(array, 99.0)
        self.replay.run(times)
        arrays = {f"dW{i}": a for i, a in enumerate(self.dW)} | {f"db{i}": a for i, a in enumerate(self.db)}
        return {name: self.bk.to_numpy(a) for name, a in (arrays | {"dy0": self.dy[0], "dy1": self.dy[1]}).items()}


def epilogues(bk: EmulatedBackend) -> Counter[int]:
    """Of the products that have a plan."""
    return Counter(problem.epilogue for problem, plan in bk._plans.items() if plan is not None)


def assert_right(bk: EmulatedBackend, net: Net, **more: Any) -> None:
    expected = Net(NumpyBackend(), net.acts, **more).run()
    for times in (1, 40):
        found = net.run(times)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    "acts", [("relu", "relu"), ("gelu_tanh", "gelu_tanh"), ("relu", "gelu_tanh"), ("tanh", "relu")]
)
def test_one_product_does_three_things(bk: EmulatedBackend, acts: tuple[str, str]) -> None:
    net = Net(bk, acts)
    assert_right(bk, net)
    assert isinstance(net.replay, GraphReplay)
    used = epilogues(bk)
    assert (used[DRELU_BGRAD] > 0) == (used[RELU_AUX_BIAS] > 0) == ("relu" in acts)
    assert (used[DGELU_BGRAD] > 0) == (used[GELU_AUX_BIAS] > 0) == ("gelu_tanh" in acts)
    bk.counts.reset()
    net.replay.run()
    kernels = Counter(name.partition("<")[0] for name in bk.counts.kernels)
    # forward 3, each layer's weights 3, both gradients of inputs; the last layer's bias gradient, and tanh, by kernels
    assert kernels["cublasLtMatmul"] == 8
    assert kernels["act_grad_bias"] == 1 + acts.count("tanh")
    assert (bk.counts.allocations, bk.counts.syncs, bk.counts.uploads) == (0, 0, 0)


@pytest.mark.parametrize(("half", "tolerance"), [("float16", 5e-3), ("bfloat16", 4e-2)])
@pytest.mark.parametrize("acts", [("relu", "gelu_tanh"), ("gelu_tanh", "relu")])
def test_of_16_bits(bk: EmulatedBackend, half: Any, tolerance: float, acts: tuple[str, str]) -> None:
    """Bias gradients come out of the product in 16 bits, and go to arrays of float32."""
    half = np.dtype(getattr(pytest.importorskip("ml_dtypes"), half) if half == "bfloat16" else half)
    expected = Net(NumpyBackend(), acts, half=half).run()
    net = Net(bk, acts, dtype=half, full=np.float32)
    for times in (1, 40):
        found = net.run(times)
        for name, value in expected.items():
            assert found[name].dtype == (half if name.startswith("dy") else np.float32)
            scale = tolerance * np.abs(value).max()
            np.testing.assert_allclose(found[name].astype(float), value, rtol=0, atol=scale, err_msg=name)
    assert isinstance(net.replay, GraphReplay)
    assert epilogues(bk)[DRELU_BGRAD] > 0
    assert epilogues(bk)[DGELU_BGRAD] > 0
    bk.counts.reset()
    net.replay.run()
    kernels = Counter(name.partition("<")[0] for name in bk.counts.kernels)
    assert kernels == {"cublasLtMatmul": 8, "act_grad_bias": 1, "cast": 2}
    assert (bk.counts.allocations, bk.counts.syncs, bk.counts.uploads) == (0, 0, 0)


@pytest.mark.parametrize("epilogue", [RELU_AUX_BIAS, DRELU_BGRAD, GELU_AUX_BIAS, DGELU_BGRAD])
def test_what_the_library_does_not_have_is_done_by_kernels(bk: EmulatedBackend, epilogue: int) -> None:
    bk._cublaslt.fake.fake_refuse(epilogue)
    net = Net(bk, ("relu", "gelu_tanh"))
    assert_right(bk, net)
    assert isinstance(net.replay, GraphReplay)
    assert epilogues(bk)[epilogue] == 0


def test_it_is_used_where_it_is_faster(bk: EmulatedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(bk), "_faster", lambda self, one, other: False)
    net = Net(bk, ("relu", "gelu_tanh"))
    assert_right(bk, net)
    bk.counts.reset()
    net.replay.run()
    assert sum(name.startswith("act_grad_bias") for name in bk.counts.kernels) == 3


@pytest.mark.parametrize("widths", [(5, 16, 9, 3), (1, 1, 1, 1), (3, 129, 7, 2)])
def test_widths_that_the_library_cannot_take(bk: EmulatedBackend, widths: tuple[int, ...]) -> None:
    for acts in (("gelu_tanh", "gelu_tanh"), ("relu", "relu")):
        assert_right(bk, Net(bk, acts, widths), widths=widths)


def test_whatever_comes_between_finds_the_gradient(bk: EmulatedBackend) -> None:
    """A layer of one's own, or any other call, needs what the product gives: it does not wait any longer."""
    other = bk.zeros(3, "float64")
    for between in (
        lambda each: each.fill(other, 1.0),
        lambda each: each.python(lambda backend: None),
        lambda each: each.act("tanh", other, out=other),
    ):
        net = Net(bk, ("relu", "relu"))
        net.between = between
        found = net.run()
        expected = Net(NumpyBackend(), net.acts).run()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-10, err_msg=name)
        assert epilogues(bk)[DRELU_BGRAD] == 0


def test_calls_that_are_not_recorded_do_not_wait(bk: EmulatedBackend) -> None:
    net = Net(bk, ("relu", "relu"))
    net.kept = bk.asarray(net.start)
    net.step(bk)
    assert bk._recording.pending is None
    expected = Net(NumpyBackend(), net.acts).run()
    np.testing.assert_allclose(bk.to_numpy(net.dW[0]), expected["dW0"], rtol=1e-9)


def test_an_error_in_a_step_leaves_nothing_waiting(bk: EmulatedBackend) -> None:
    net = Net(bk, ("relu", "relu"))

    def broken(each: Any) -> None:
        raise KeyError

    net.between = broken
    with pytest.raises(KeyError):
        net.run()
    assert bk._recording.pending is None
    assert bk._recording.auxiliary is None


@pytest.mark.parametrize("precision", ["float32", "tf32", "float64"])
def test_a_training_across_layers(bk: EmulatedBackend, precision: str) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 6)), rng.integers(0, 3, 50)
    weights = []
    for device in ("numpy", bk):
        layers = [nf.Dense(16, "relu"), nf.Dense(8, "relu"), nf.Dense(16, "gelu_tanh"), nf.Dense(3)]
        model = nf.Sequential(layers)
        model.fit(
            X, y, loss="cross_entropy", epochs=5, batch_size=16, device=device, seed=1, verbose=0, precision=precision
        )
        weights.append(model.get_flat_weights())
    tolerance = {"float32": 1e-4, "tf32": 2e-2, "float64": 1e-9}[precision]
    np.testing.assert_allclose(weights[1], weights[0], rtol=tolerance, atol=tolerance)
    used = epilogues(bk)
    assert used[DRELU_BGRAD] >= 2  # the last batch is smaller
    assert used[DGELU_BGRAD] >= 2


def test_no_mask_is_written_for_nobody(bk: EmulatedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(bk), "_faster", lambda self, one, other: False)
    net = Net(bk, ("relu", "relu"))
    net.run()
    assert net.replay._auxiliary.masks == {}
    monkeypatch.undo()
    net = Net(bk, ("relu", "relu"))
    bk._across.clear()
    net.run()
    assert len(net.replay._auxiliary.masks) == 2


def test_what_a_fallback_finds_faster_is_its_own_matter(bk: EmulatedBackend) -> None:
    for other in bk.fallbacks().values():
        Net(other, ("relu", "relu")).run()
    assert bk._across == {}
    assert_right(bk, Net(bk, ("relu", "relu")))
    assert epilogues(bk)[DRELU_BGRAD] > 0
