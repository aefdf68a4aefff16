"""Convolutions by cuDNN on the emulated device: the numbers, and when it is used."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast import activations
from nnfast.backends import cupy_cudnn
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels.cuda import cudnn_graphs
from nnfast.window import Window
from tests.cuda.emulator import EmulatedBackend, emulated_backend
from tests.cuda.fake_cudnn import VERSION, FakeCudnn, FakePlan
from tests.cuda.test_conv_kernels import CASES, near, shapes, widened

pytest.importorskip("ml_dtypes")  # gives NumPy its bfloat16


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_cudnn, "_FEWEST_PRODUCTS", 0)


def with_cudnn(*plans: FakePlan, choice: str = "measured", remembered: Path | None = None) -> EmulatedBackend:
    bk = emulated_backend()
    bk.plans, bk.choices, bk._conv_choice = list(plans), remembered, choice
    return bk


def cudnn(bk: EmulatedBackend) -> FakeCudnn:
    """The frontend that a backend uses."""
    library = bk._cudnn()
    assert library is not None
    return library.cudnn  # type: ignore[no-any-return]


class Layer:
    """A convolution of a backend with all its arrays."""

    def __init__(self, bk: Any, case: str = "packed", dtype: str = "float32", act: str = "relu", bias: bool = True):
        self.bk, self.act = bk, act
        self.window, image, weights, result, self.groups = shapes(case)
        rng = np.random.default_rng(3)
        kind, wide = np.dtype(dtype), np.dtype("float64" if dtype == "float64" else "float32")
        self.x, self.W = (bk.asarray(rng.standard_normal(shape).astype(kind)) for shape in (image, weights))
        self.b = bk.asarray(rng.standard_normal(result[-1]).astype(kind)) if bias else None
        self.y, self.dy = bk.zeros(result, kind), bk.asarray(rng.standard_normal(result).astype(kind))
        self.z = None if activations.get(act).saves == "output" else bk.zeros(result, kind)
        self.dx, self.dW = bk.zeros(image, kind), bk.zeros(weights, wide)

    def forward(self) -> None:
        self.bk.conv_act(self.x, self.W, self.b, self.act, self.window, groups=self.groups, out=self.y, saved=self.z)

    def backward(self) -> None:
        self.bk.conv_weight_grad(self.dy, self.x, self.window, groups=self.groups, dW=self.dW)
        self.bk.conv_input_grad(self.dy, self.W, self.window, groups=self.groups, dx=self.dx)

    def arrays(self) -> list[np.ndarray]:
        return [widened(self.bk.to_numpy(a)) for a in (self.y, self.z, self.dx, self.dW) if a is not None]


def fastest() -> FakePlan:
    """Takes less than any kernel, for the emulated device's clock."""
    return FakePlan("fastest", launches=-5)


# ---- numbers ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "pointwise"])
def test_numbers(case: str, dtype: str) -> None:
    bk = with_cudnn(FakePlan(), choice="cudnn")
    for act, bias in (("relu", True), ("identity", False), ("gelu", True), ("softmax", True)):
        by_cudnn, wanted = Layer(bk, case, dtype, act, bias), Layer(NumpyBackend(), case, "float64", act, bias)
        for name in ("x", "W", "b", "dy"):  # rounded to the dtype
            if getattr(by_cudnn, name) is not None:
                setattr(wanted, name, widened(bk.to_numpy(getattr(by_cudnn, name))))
        executed = cudnn(bk).executed
        executed.clear()
        for layer in (by_cudnn, wanted):
            layer.forward()
            layer.backward()
        assert executed
        terms = np.ones(1) * (32 if dtype in ("float32", "float64") else 1)
        for found, right in zip(by_cudnn.arrays(), wanted.arrays(), strict=True):
            near(found, right, terms + np.abs(right), dtype, True)


def test_which_arrays_go_through_it() -> None:
    for dtype, kinds in (("float32", 3), ("float16", 2)):  # a gradient of float32 from 16 bits is beyond it
        bk = with_cudnn(fastest())
        layer = Layer(bk, dtype=dtype)
        layer.forward()
        layer.backward()
        bk.counts.reset()
        layer.forward()
        layer.backward()
        assert bk.counts.kernels.count("cudnn") == kinds
        assert cudnn(bk).graphs == kinds


def test_bias_and_relu_are_part_of_it() -> None:
    launches = {}
    for act in ("relu", "identity", "tanh", "softmax"):
        layer = Layer(with_cudnn(fastest()), act=act)
        layer.forward()
        layer.bk.counts.reset()
        layer.forward()
        launches[act] = len(layer.bk.counts.kernels)
    assert launches == {"relu": 2, "identity": 2, "tanh": 3, "softmax": 3}


# ---- which plan ---------------------------------------------------------------------------------------
def test_the_fastest_that_is_right_is_used() -> None:
    plans = [
        FakePlan("slow", launches=3),
        FakePlan("wrong", launches=-9, right=False),
        FakePlan("fails", launches=-9, runs=False),
        FakePlan("quick", launches=-2),
    ]
    layer = Layer(with_cudnn(*plans), act="identity")
    layer.forward()
    assert set(cudnn(layer.bk).executed) == {"slow", "wrong", "quick"}
    assert cudnn(layer.bk).executed[-1] == "quick"


def test_plans_that_may_not_be_used_are_not_built() -> None:
    refused = ("NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "WINOGRAD")
    plans = [FakePlan(note, (note,)) for note in refused] + [FakePlan("large", workspace=1 << 40), FakePlan("good")]
    layer = Layer(with_cudnn(*plans), act="identity")
    layer.forward()
    assert cudnn(layer.bk).built == ["large", "good"]  # what it works in is known when it is built
    assert set(cudnn(layer.bk).executed) == {"good"}


def test_some_are_tried_and_no_more() -> None:
    plans = [FakePlan(f"eng{number}") for number in range(20)]
    layer = Layer(with_cudnn(*plans), act="identity")
    layer.forward()
    assert cudnn(layer.bk).built == [f"eng{number}" for number in range(cudnn_graphs.CANDIDATES)]


@pytest.mark.parametrize("rounding", [False, True])
def test_tensor_cores_round_float32_where_that_is_allowed(rounding: bool) -> None:
    layer = Layer(with_cudnn(FakePlan("tensor", ("TENSOR_CORE",)), choice="cudnn"), act="identity")
    if rounding:
        with layer.bk.rounding():
            layer.forward()
    else:
        layer.forward()
    assert bool(cudnn(layer.bk).executed) == rounding


def test_tensor_cores_are_what_16_bits_are_for() -> None:
    layer = Layer(with_cudnn(FakePlan("tensor", ("TENSOR_CORE",)), choice="cudnn"), dtype="bfloat16")
    layer.forward()
    assert cudnn(layer.bk).executed


def test_kernels_that_are_faster_are_used() -> None:
    layer = Layer(with_cudnn(FakePlan(launches=7)))
    layer.forward()
    layer.backward()
    layer.bk.counts.reset()
    layer.forward()
    layer.backward()
    assert "cudnn" not in layer.bk.counts.kernels


def test_relu_of_a_plan_that_hides_what_is_not_a_number_is_left_to_a_kernel() -> None:
    layer = Layer(with_cudnn(FakePlan(launches=-5, keeps_nan=False)))
    layer.forward()
    layer.bk.counts.reset()
    layer.bk.fill(layer.x, float("nan"))
    layer.forward()
    assert np.isnan(layer.bk.to_numpy(layer.y)).all()
    assert "cudnn" in layer.bk.counts.kernels


def test_memory_that_is_not_there() -> None:
    bk = with_cudnn(FakePlan("large", workspace=1 << 20, launches=-5), FakePlan("small", launches=-4))
    layer = Layer(bk, act="identity")
    bk._cupy.pool.limit = bk._cupy.pool.held + (1 << 19)
    layer.forward()
    assert cudnn(bk).executed[-1] == "small"


def test_small_ones_are_left_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    layer = Layer(with_cudnn(fastest()))
    layer.forward()
    assert "cudnn" not in layer.bk.counts.kernels


def test_sizes_that_its_windows_do_not_give() -> None:
    bk = with_cudnn(FakePlan(), choice="cudnn")
    x, W, out = bk.zeros((1, 6, 6, 4), "float32"), bk.zeros((3, 3, 4, 4), "float32"), bk.zeros((1, 3, 4, 4), "float32")
    bk.conv(x, W, Window((3, 3)), out=out)
    assert not cudnn(bk).executed


@pytest.mark.parametrize("name", ["x", "y", "b", "dy", "dx"])
def test_arrays_that_are_not_aligned_are_left_to_the_kernels(name: str) -> None:
    layer = Layer(with_cudnn(FakePlan(), choice="cudnn"))
    wanted = Layer(emulated_backend())
    array = getattr(layer, name)
    room = layer.bk.zeros(array.size + 1, array.dtype)
    moved = room[1:].reshape(array.shape)
    layer.bk.copy(array, out=moved)
    assert moved.data.ptr % 16
    setattr(layer, name, moved)
    for each in (layer, wanted):
        each.forward()
        each.backward()
    # The forward pass and two gradients, less those that see it
    assert cudnn(layer.bk).graphs == {"x": 1, "y": 2, "b": 2, "dy": 1, "dx": 2}[name]
    for found, right in zip(layer.arrays(), wanted.arrays(), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


# ---- graphs -------------------------------------------------------------------------------------------
def test_plans_that_cannot_be_captured_are_not_used() -> None:
    layer = Layer(with_cudnn(FakePlan("waits", launches=-9, captures=False), FakePlan("good", launches=-5)))
    layer.forward()
    assert cudnn(layer.bk).executed[-1] == "good"


def test_a_training_is_captured_and_the_same() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((12, 6, 6, 3)).astype("float32"), rng.integers(0, 3, 12)
    weights = {}
    for name, bk in (("cudnn", with_cudnn(FakePlan(), choice="cudnn")), ("kernels", emulated_backend())):
        model = nf.Sequential(
            [
                nf.Conv2D(8, 3, "relu", padding="same"),
                nf.MaxPool2D(2),
                nf.Conv2D(4, 2, "gelu"),
                nf.Flatten(),
                nf.Dense(3),
            ]
        )
        bk.counts.reset()
        model.fit(X, y, loss="cross_entropy", epochs=3, batch_size=4, seed=1, device=bk, verbose=0)
        assert bk.counts.graphs > 0
        assert ("cudnn" in bk.counts.kernels) == (name == "cudnn")
        weights[name] = model.get_weights()
    for key, wanted in weights["kernels"].items():
        np.testing.assert_allclose(weights["cudnn"][key], wanted, rtol=1e-4, atol=1e-5)


# ---- what is remembered -------------------------------------------------------------------------------
def test_choices_are_remembered(tmp_path: Path) -> None:
    file = tmp_path / "choices.json"
    first = Layer(with_cudnn(FakePlan("slow"), FakePlan("quick", launches=-5), remembered=file), act="identity")
    first.forward()
    again = Layer(with_cudnn(FakePlan("slow"), FakePlan("quick", launches=99), remembered=file), act="identity")
    again.forward()
    assert set(cudnn(again.bk).executed) == {"quick"}
    assert cudnn(again.bk).built == ["quick"]
    other = Layer(with_cudnn(FakePlan("other", launches=-5), remembered=file), act="identity")
    other.forward()  # the plan of that name is no longer there
    assert cudnn(other.bk).executed[-1] == "other"


def test_that_the_kernels_were_faster_is_remembered(tmp_path: Path) -> None:
    file = tmp_path / "choices.json"
    Layer(with_cudnn(FakePlan(launches=9), remembered=file)).forward()
    again = Layer(with_cudnn(fastest(), remembered=file))
    again.forward()
    assert cudnn(again.bk).graphs == 0


def test_no_plan_at_all(tmp_path: Path) -> None:
    file = tmp_path / "choices.json"
    for plans in ([], [FakePlan(builds=False)]):
        layer = Layer(with_cudnn(*plans, remembered=file))
        wanted = Layer(emulated_backend())
        for each in (layer, wanted):
            each.forward()
        np.testing.assert_array_equal(layer.arrays()[0], wanted.arrays()[0])


# ---- whether it is there ------------------------------------------------------------------------------
def test_what_the_environment_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNFAST_CONV", "own")
    bk = emulated_backend()
    bk.plans = [fastest()]
    Layer(bk).forward()
    assert "cudnn" not in bk.counts.kernels
    monkeypatch.setenv("NNFAST_CONV", "fast")
    with pytest.raises(ValueError, match="NNFAST_CONV is 'fast'; expected 'measured', 'own', 'cudnn'"):
        emulated_backend()


def test_self_tests_go_both_ways() -> None:
    bk = with_cudnn(FakePlan(launches=9))
    others = bk.fallbacks()
    assert set(others) == {"cuBLASLt", "epilogues", "cuDNN", "kernels for convolutions"}
    assert set(emulated_backend().fallbacks()) == {"cuBLASLt", "epilogues"}
    for missing, used in (("cuDNN", False), ("kernels for convolutions", True)):
        bk.counts.reset()
        Layer(others[missing]).forward()
        assert ("cudnn" in bk.counts.kernels) == used


def test_frontends_that_do_not_work(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    real = super(EmulatedBackend, emulated_backend())._open_cudnn
    monkeypatch.setattr("builtins.__import__", _without_cudnn(_IMPORT, ModuleNotFoundError("no", name="cudnn")))
    with caplog.at_level(logging.WARNING, "nnfast"):
        assert real() is None
        assert not caplog.messages
        for error, wanted in (
            (ModuleNotFoundError("no libcudnn", name="nvidia"), "the cuDNN frontend does not import: no libcudnn"),
            (OSError("libcudnn.so: not there\nfurther"), "the cuDNN frontend does not import: libcudnn.so: not there"),
        ):
            monkeypatch.setattr("builtins.__import__", _without_cudnn(_IMPORT, error))
            assert real() is None
            assert caplog.messages[-1] == f"convolutions do not go through cuDNN: {wanted}"


_IMPORT = __import__


def _without_cudnn(original: Any, error: Exception) -> Any:
    def imported(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cudnn":
            raise error
        return original(name, *args, **kwargs)

    return imported


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ({"backend_version": lambda: 8904}, "cuDNN 8904 is older than 90000"),
        ({}, "the cuDNN frontend finds no cuDNN: module 'cudnn' has no attribute 'backend_version'"),
    ],
)
def test_libraries_that_cannot_be_used(module: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("cudnn")
    vars(fake).update(module)
    monkeypatch.setitem(sys.modules, "cudnn", fake)
    with pytest.raises(OSError, match=message):
        cudnn_graphs.find()


def test_a_library_that_does_not_start() -> None:
    fake = FakeCudnn(None, [])

    def fails() -> int:
        raise RuntimeError("cudnnHandle Create failed\nno device")

    fake.create_handle = fails  # type: ignore[method-assign]
    with pytest.raises(cudnn_graphs.CudnnError, match=r"^cuDNN does not start: cudnnHandle Create failed$"):
        cudnn_graphs.Library(fake)
    assert fake.backend_version() == VERSION
