"""Training with activations of 16 bits on the emulated device: what is rounded, what is not, and the loss scale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ml_dtypes")

import nnfast as nf
from nnfast.kernels import step_state as S
from nnfast.precision import FIRST_LOSS_SCALE
from tests.cuda.emulator import EmulatedBackend, emulated_backend

PRECISIONS = ("bf16", "fp16")
# Of one rounding
UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11}


@pytest.fixture
def bk() -> Iterator[EmulatedBackend]:
    backend = emulated_backend()
    yield backend
    backend._cublaslt.fake.fake_refuse(0)


def problem(rows: int = 37) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 5)).astype(np.float32), rng.integers(0, 3, rows)


def network() -> nf.Sequential:
    return nf.Sequential([nf.Dense(8, "relu"), nf.LayerNorm(), nf.Dense(6, "gelu"), nf.BatchNorm(), nf.Dense(3)])


def trained(device: Any, model: nf.Sequential | None = None, **arguments: Any) -> nf.Sequential:
    model = model or network()
    defaults = {"loss": "cross_entropy", "epochs": 4, "batch_size": 16, "seed": 0, "verbose": 0}
    return model.fit(*problem(), device=device, **{**defaults, **arguments}) and model


@pytest.fixture
def low_scale(monkeypatch: pytest.MonkeyPatch) -> float:
    """A scale of the loss's gradient from which no step is left out."""
    monkeypatch.setattr("nnfast.training.engine.FIRST_LOSS_SCALE", 512.0)
    return 512.0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_near_those_of_float32(bk: EmulatedBackend, low_scale: float, precision: str) -> None:
    exact, rounded = trained(bk), trained(bk, precision=precision)
    assert (rounded.precision, rounded.dtype) == (precision, np.float32)
    X, _ = problem()
    a, b = exact.predict(X), rounded.predict(X)
    assert b.dtype == np.float32
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(b, a, atol=40 * UNIT[precision])
    for name, value in exact.get_weights().items():
        found = rounded.get_weights()[name]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, value, atol=0.02, err_msg=name)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lion", "rmsprop"])
def test_the_copy_is_the_weights_rounded(bk: EmulatedBackend, precision: str, optimizer: str) -> None:
    model = trained(bk, precision=precision, optimizer=optimizer)
    params = model.parameters
    assert params.low is not None
    assert params.low.dtype == bk.reduced(precision) == params.activations

    def check() -> None:
        flat = bk.to_numpy(params.flat)
        np.testing.assert_array_equal(bk.to_numpy(params.low), flat.astype(params.low.dtype))

    check()
    # The weights themselves go on from numbers that 16 bits could not hold
    assert (bk.to_numpy(params.flat) != bk.to_numpy(params.low).astype(np.float32)).mean() > 0.3
    model.set_flat_weights(model.get_flat_weights() * 1.5)
    check()
    model.set_weights({k: v * 0.5 for k, v in model.get_weights().items()})
    check()
    params.initialise(7)
    check()


def test_predictions_follow_what_is_set(bk: EmulatedBackend) -> None:
    model = trained(bk, precision="bf16")
    X, _ = problem()
    before = model.predict(X)
    weights = model.get_weights()
    model.set_weights({k: np.zeros_like(v) if k == "dense_2.W" else v for k, v in weights.items()})
    np.testing.assert_allclose(model.predict(X), np.tile(weights["dense_2.b"], (len(X), 1)), atol=1e-2)
    model.set_weights(weights)
    np.testing.assert_array_equal(model.predict(X), before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_has_16_bits(bk: EmulatedBackend, precision: str) -> None:
    model = network().build(5)
    trainer = nf.Trainer(model, "cross_entropy", device=bk, precision=precision)
    trainer.step(*problem(16))
    engine = trainer._engine
    assert engine is not None
    program = engine.plan._program(16)
    low, full = np.dtype(bk.reduced(precision)), np.dtype(np.float32)
    assert program.x.dtype == program.output.dtype == low
    assert {g.dtype for g in program.gradients} == {low}
    dense, norm, gelu, batch, _ = program.layers
    assert {dense.W.dtype, dense.b.dtype, dense.y.dtype, gelu.z.dtype} == {low}
    assert {dense.dW.dtype, dense.db.dtype} == {full}
    for layer, names in ((norm, ("gamma", "beta", "mean", "rstd")), (batch, ("gamma", "mean", "var", "running_mean"))):
        assert {getattr(layer, name).dtype for name in names} == {full}
    assert engine.plan.grad.dtype == full
    assert all(slot.dtype == full for slot in model.parameters.slots.values())


def test_nothing_waits_or_allocates_in_a_step(bk: EmulatedBackend) -> None:
    """A step is a graph as it is in float32."""
    model = trained(bk, precision="fp16")
    trainer = nf.Trainer(model, "cross_entropy", device=bk, precision="fp16", batch_size=16)
    X, y = problem(16)
    trainer.step(X, y)
    engine = trainer._engine
    assert engine is not None
    bk.counts.reset()
    engine.run(16, 3)
    assert bk.counts.graphs > 0
    assert bk.counts.allocations == bk.counts.syncs == 0
    for kernel in ("unscale", "optimizer_step"):
        assert sum(name.startswith(kernel) for name in bk.counts.kernels) == 3


@pytest.mark.parametrize("loss", ["mean_squared_error", "huber", "cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_and_their_targets_are_full(bk: EmulatedBackend, precision: str, loss: str) -> None:
    X, y = problem()
    targets = {"cross_entropy": y, "binary_cross_entropy": (y == 1)}.get(loss, X[:, :1] * 2).astype(
        int if loss == "cross_entropy" else np.float32
    )
    weight = np.linspace(0.5, 2, len(X))
    losses = {}
    for name in ("float32", precision):
        model = nf.Sequential([nf.Dense(8, "tanh"), nf.Dense(3 if loss == "cross_entropy" else 1)]).build(5, seed=1)
        history = model.fit(
            X, targets, loss=loss, epochs=3, batch_size=16, sample_weight=weight, device=bk, precision=name, seed=0,
            verbose=0, validation_data=(X, targets), metrics=["mae"] if loss in ("huber", "mean_squared_error") else (),
        )  # fmt: skip
        losses[name] = history
    for key, values in losses["float32"].items():
        np.testing.assert_allclose(losses[precision][key], values, rtol=20 * UNIT[precision], err_msg=key)


class Squared(nf.Loss):
    def value(self, y_pred: Any, y_true: Any) -> Any:
        return (y_pred - y_true) ** 2

    def gradient(self, y_pred: Any, y_true: Any) -> Any:
        return 2 * (y_pred - y_true)


class Plain(nf.Optimizer):
    def step(self, bk: Any, param: Any, grad: Any, slots: Any, state: Any) -> None:
        if not float(state[S.BAD_STEP]):
            param -= (state[S.LR] * grad).astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_loss_and_an_optimizer_of_ones_own(bk: EmulatedBackend, precision: str) -> None:
    X, _ = problem()
    found = {}
    for loss, optimizer in (("mean_squared_error", nf.SGD(0.05, momentum=0.0)), (Squared(), Plain(0.05))):
        model = nf.Sequential([nf.Dense(8, "tanh"), nf.Dense(1)]).build(5, seed=1)
        model.fit(
            X, X[:, :1], loss=loss, optimizer=optimizer, epochs=3, batch_size=16, device=bk, precision=precision,
            seed=0, verbose=0,
        )  # fmt: skip
        found[type(loss).__name__] = model.predict(X)
        params = model.parameters
        np.testing.assert_array_equal(bk.to_numpy(params.low), bk.to_numpy(params.flat).astype(bk.reduced(precision)))
    np.testing.assert_allclose(*found.values(), atol=8 * UNIT[precision])


# ---- the loss scale --------------------------------------------------------------------------------------
def test_gradients_that_float16_cannot_hold_arrive(bk: EmulatedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a mean over many rows is small: without the scale it would be zero."""
    X = np.ones((64, 1), np.float32)
    target = np.full((64, 1), 8e-7, np.float32)  # 2 * 8e-7 / 64 is less than half of the smallest number of float16
    changes = []
    for scale in (1.0, FIRST_LOSS_SCALE):
        monkeypatch.setattr("nnfast.training.engine.FIRST_LOSS_SCALE", scale)
        model = nf.Sequential([nf.Dense(1, bias=False, initializer="zeros")]).build(1)
        nf.Trainer(model, "mean_squared_error", nf.SGD(1.0, momentum=0.0), device=bk, precision="fp16").step(X, target)
        changes.append(model.get_flat_weights()[0])
    assert changes[0] == 0
    assert changes[1] == pytest.approx(1.6e-6, rel=1e-3)


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(bk: EmulatedBackend) -> None:
    X, _ = problem(16)
    model = nf.Sequential([nf.Dense(3)]).build(5, seed=0)
    trainer = nf.Trainer(model, "mean_squared_error", nf.SGD(1e-6, momentum=0.0), device=bk, precision="fp16")
    target = np.full((16, 3), 200.0, np.float32)  # 65536 * 2 * 200 / 48 is more than float16 holds
    before = model.get_flat_weights()
    trainer.step(X, target)
    engine = trainer._engine
    assert engine is not None
    np.testing.assert_array_equal(model.get_flat_weights(), before)
    state = engine.read()
    assert (state[S.LOSS_SCALE], state[S.SKIP_STEP], state[S.BAD_STEP]) == (FIRST_LOSS_SCALE / 2, 1, 0)
    steps = 1
    while engine.read()[S.SKIP_STEP]:
        trainer.step(X, target)
        steps += 1
        assert steps < 10
    assert engine.read()[S.LOSS_SCALE] == FIRST_LOSS_SCALE / 2 ** (steps - 1)
    assert (model.get_flat_weights() != before).all()


def test_the_scale_doubles_after_many_good_steps(bk: EmulatedBackend) -> None:
    X, y = problem(4)
    model = nf.Sequential([nf.Dense(3)]).build(5, seed=0)
    trainer = nf.Trainer(model, "cross_entropy", nf.SGD(1e-6), device=bk, precision="fp16")
    trainer.step(X, y)
    engine = trainer._engine
    assert engine is not None
    engine.set(S.GOOD_STEPS, 1998.0)
    trainer.step(X, y)
    assert engine.read()[[S.LOSS_SCALE, S.GOOD_STEPS]].tolist() == [FIRST_LOSS_SCALE, 1999]
    trainer.step(X, y)
    assert engine.read()[[S.LOSS_SCALE, S.GOOD_STEPS]].tolist() == [2 * FIRST_LOSS_SCALE, 0]


def test_the_next_training_goes_on_with_the_scale(bk: EmulatedBackend, low_scale: float, tmp_path: Path) -> None:
    model = trained(bk, precision="fp16")
    assert model.training_state.carried[S.LOSS_SCALE] == low_scale
    model.training_state.carried[S.LOSS_SCALE] = 256.0
    trained(bk, model, precision="fp16")
    steps = model.training_state.step
    assert model.training_state.carried[S.LOSS_SCALE] == 256.0
    assert model.training_state.carried[S.GOOD_STEPS] == steps
    model.save(tmp_path / "m.safetensors")
    again = nf.load(tmp_path / "m.safetensors")
    assert again.precision == "fp16"
    assert again.training_state.carried[S.LOSS_SCALE] == 256.0
    # In another precision there is none, and after that it begins anew
    trained(bk, again)
    assert again.training_state.carried[S.LOSS_SCALE] == 0
    trained(bk, again, precision="fp16")
    assert again.training_state.carried[S.LOSS_SCALE] == low_scale


@pytest.mark.parametrize("clip", [{"clip_norm": 0.5}, {"clip_value": 0.01}])
def test_clipping_sees_the_gradient_itself(bk: EmulatedBackend, low_scale: float, clip: dict[str, float]) -> None:
    found = []
    for precision in ("float32", "fp16"):
        model = trained(bk, precision=precision, optimizer=nf.SGD(0.1, **clip), epochs=1)
        found.append(model.get_flat_weights())
    np.testing.assert_allclose(found[1], found[0], atol=3e-3)


def test_a_loss_that_is_not_finite_is_told(bk: EmulatedBackend) -> None:
    X, _ = problem(16)
    model = nf.Sequential([nf.Dense(3)]).build(5, seed=0)
    model.set_flat_weights(100 * model.get_flat_weights())
    before = model.get_flat_weights()
    trainer = nf.Trainer(model, "mean_squared_error", nf.SGD(0.1), device=bk, precision="fp16")
    with pytest.raises(nf.NonFiniteError):
        trainer.step(X * 1e4, np.zeros((16, 3)))  # activations beyond 65504
    np.testing.assert_array_equal(model.get_flat_weights(), before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bfloat16_needs_a_newer_gpu(bk: EmulatedBackend, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    old = {"name": b"Old", "major": 7, "minor": 5}
    monkeypatch.setattr(bk._cupy.cuda.runtime, "getDeviceProperties", lambda index: old)
    if precision == "fp16":
        trained(bk, precision=precision)
        return
    model = network()
    with pytest.raises(nf.DeviceUnavailable, match=r"'bf16' needs .* 8\.0 or newer, cuda:0 has 7\.5; use 'fp16'"):
        trained(bk, model, precision=precision)
    assert not model.is_built


# ---- around it ------------------------------------------------------------------------------------------
def test_inputs_beyond_float16_are_told(bk: EmulatedBackend) -> None:
    X, y = problem()
    X[3, 2] = 1e5
    with pytest.raises(ValueError, match=r"X contains 100000.0 at row 3, column 2.*float16"):
        nf.Sequential([nf.Dense(3)]).fit(X, y, loss="cross_entropy", device=bk, precision="fp16", verbose=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batches_from_the_host(bk: EmulatedBackend, precision: str) -> None:
    X, y = problem(32)
    found = []
    for data in ((X, y), ([(X[:16], y[:16]), (X[16:], y[16:])], None)):
        model = network().build(5, seed=3)
        model.fit(
            *data, loss="cross_entropy", epochs=2, batch_size=16, shuffle=False, device=bk, precision=precision,
            verbose=0,
        )  # fmt: skip
        found.append(model.predict(X))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_on_the_device_are_float32(bk: EmulatedBackend, precision: str) -> None:
    model = trained(bk, precision=precision)
    X, _ = problem()
    outputs = model.predict(bk.asarray(X), on_device=True)
    assert outputs.dtype == np.float32
    np.testing.assert_array_equal(bk.to_numpy(outputs), model.predict(X))


def test_memory_is_what_the_summary_says(bk: EmulatedBackend) -> None:
    """Activations take half, and the copy two bytes a weight."""
    model = nf.Sequential([nf.Dense(64, "relu"), nf.Dense(64, "relu"), nf.Dense(4)]).build(32)
    full = model.summary(256, bk)
    model.parameters.move(bk, np.float32, "bf16")
    half = model.summary(256, bk)
    assert half.weight_bytes - full.weight_bytes == 2 * model.parameters.size
    assert half.plan_bytes < 0.55 * full.plan_bytes


@pytest.mark.parametrize("device", ["numpy", "numba"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cpu_computes_in_float32(device: str, precision: str) -> None:
    if nf.available_devices()[device] is not None:
        pytest.skip(f"no {device}")
    model = trained(device, precision=precision)
    assert model.parameters.low is None
    X, _ = problem()
    np.testing.assert_array_equal(trained(device).predict(X), model.predict(X))


def test_from_the_gpu_to_a_cpu_and_back(bk: EmulatedBackend) -> None:
    model = trained(bk, precision="bf16")
    X, _ = problem()
    there = model.predict(X)
    here = model.predict(X, device="numpy")
    assert model.precision == "bf16"
    np.testing.assert_allclose(here, there, atol=40 * UNIT["bf16"])
    np.testing.assert_array_equal(model.predict(X, device=bk), there)


def test_moving_average(bk: EmulatedBackend) -> None:
    model = trained(bk, precision="bf16", optimizer=nf.Adam(1e-2, ema=0.5))
    X, _ = problem()
    now = model.predict(X)
    with model.averaged():
        params = model.parameters
        np.testing.assert_array_equal(bk.to_numpy(params.low), bk.to_numpy(params.flat).astype(params.low.dtype))
        assert not np.array_equal(model.predict(X), now)
    np.testing.assert_array_equal(model.predict(X), now)
