"""fit again goes on from where it stood: weights, moments, step and epoch numbers, schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast import optimizers
from nnfast.backends.base import Backend
from nnfast.kernels import step_state as S

from .helpers import assert_same, differs, everything, fit, network, problem

OPTIMIZERS = {
    "sgd with momentum": lambda: nf.SGD(0.05, momentum=0.9),
    "adam": lambda: nf.Adam(0.01),
    "nadam": lambda: nf.NAdam(0.01),
    "adamw": lambda: nf.AdamW(0.01, clip_norm=1.0),
    "rmsprop": lambda: nf.RMSprop(0.01, ema=0.9),
    "lion": lambda: nf.Lion(0.001, clip_value=0.01),
    "exponential": lambda: nf.Adam({"name": "exponential", "gamma": 0.8, "lr": 0.01}),
    "a function": lambda: nf.Adam(lambda step: 0.1 / (1 + step)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_fits_equal_one_longer_fit(optimizer: str, backend: Backend) -> None:
    X, y = problem()
    make = OPTIMIZERS[optimizer]
    one, other = network(dropout=0.3, norm=True), network(dropout=0.3, norm=True)
    whole = fit(one, X, y, epochs=5, optimizer=make(), device=backend)
    first = fit(other, X, y, epochs=2, optimizer=make(), device=backend)
    second = fit(other, X, y, epochs=3, optimizer=make(), device=backend)
    assert_same(one, other)
    assert first.epochs + second.epochs == whole.epochs == [1, 2, 3, 4, 5]
    for name in whole:
        assert first[name] + second[name] == whole[name]
    assert one.training_state.step == 30


def test_without_loss_and_optimizer_the_last_ones_go_on(backend: Backend) -> None:
    X, y = problem()
    one, other = network(), network()
    fit(one, X, y, epochs=4, optimizer=nf.RMSprop(0.01), device=backend)
    fit(other, X, y, epochs=2, optimizer=nf.RMSprop(0.01), device=backend)
    other.fit(X, y, epochs=2, batch_size=8, verbose=0, device=backend)
    assert_same(one, other)


def test_plateau_goes_on(backend: Backend) -> None:
    X, y = problem()

    def make() -> nf.Optimizer:
        # Every loss is worse than the one before by this threshold, so the rate drops every second epoch
        return nf.SGD({"name": "reduce_on_plateau", "patience": 1, "factor": 0.5, "threshold": 1.0, "lr": 0.1})

    one, other = network(), network()
    whole = fit(one, X, y, epochs=7, optimizer=make(), device=backend)
    parts = [fit(other, X, y, epochs=n, optimizer=make(), device=backend) for n in (2, 1, 4)]
    assert whole["lr"][0] == 0.1
    assert whole["lr"][-1] < 0.03
    assert [rate for part in parts for rate in part["lr"]] == whole["lr"]
    assert_same(one, other)


@pytest.mark.parametrize(
    "rates",
    [
        ("reduce_on_plateau", 0.01),
        (0.01, "reduce_on_plateau"),
        ("reduce_on_plateau", {"name": "reduce_on_plateau", "mode": "max"}),
    ],
)
def test_another_schedule_starts_anew(rates: tuple[Any, Any], backend: Backend) -> None:
    X, y = problem()
    model = network()
    for rate in rates:
        history = fit(model, X, y, optimizer=nf.Adam(rate), device=backend)
        assert history["lr"] == [optimizers.schedules.get(rate, base_lr=nf.Adam.default_lr)(0)]
    assert model.training_state.step == 12


def test_cosine_covers_what_is_left(backend: Backend) -> None:
    X, y = problem(16)
    model = network()
    first = fit(model, X, y, epochs=4, optimizer=nf.SGD("cosine"), device=backend)
    assert first["lr"][-1] == pytest.approx(0.01 * np.cos(np.pi / 2 * 7 / 8) ** 2)
    again = fit(model, X, y, epochs=4, optimizer=nf.SGD("cosine"), device=backend)
    assert again["lr"][0] == pytest.approx(0.01 * np.cos(np.pi / 2 * 9 / 16) ** 2)


def test_another_optimizer_starts_with_fresh_moments(backend: Backend) -> None:
    X, y = problem()
    one = network()
    fit(one, X, y, epochs=2, optimizer="adam", device=backend)
    other = network().build(4, seed=3)
    other.set_weights(one.get_weights())
    other.training_state.epoch = 2  # the shuffles go on
    for model in (one, other):
        fit(model, X, y, optimizer=nf.RMSprop(0.01), device=backend)
    assert_same(one, other)
    assert one.training_state.step == 6
    assert set(one.parameters.slots) == set(nf.RMSprop().slots)


def test_new_hyperparameters_keep_the_moments(backend: Backend) -> None:
    X, y = problem()
    model = network()
    fit(model, X, y, optimizer=nf.Adam(0.01), device=backend)
    before = {k: v for k, v in everything(model).items() if ":" in k}
    fit(model, X, y, optimizer=nf.Adam(0.0, beta1=0.999999, beta2=0.999999), device=backend)
    for name, value in before.items():
        np.testing.assert_allclose(everything(model)[name], value, rtol=1e-3, atol=1e-5)
    assert model.training_state.step == 12


def test_moving_on_to_another_device_and_dtype() -> None:
    if nf.available_devices()["numba"] is not None:
        pytest.skip("no numba")
    X, y = problem()
    one, other = network(), network()
    for device in ("numpy", "numba"):
        fit(one, X, y, epochs=2, device=device, dtype="float64")
    fit(other, X, y, epochs=4, device="numpy", dtype="float64")
    assert one.device == "numba"
    assert one.training_state.step == other.training_state.step == 24
    for name, value in everything(other).items():
        np.testing.assert_allclose(everything(one)[name], value, rtol=1e-9, atol=1e-12)
    fit(one, X, y, device="numpy")
    assert (one.device, one.dtype) == ("numpy", np.float32)
    assert all(array.dtype == np.float32 for array in everything(one).values())


def test_a_copy_trains_like_the_original_and_apart_from_it(backend: Backend) -> None:
    X, y = problem()
    model = network(norm=True)
    fit(model, X, y, optimizer=nf.NAdam(0.01, ema=0.9), device=backend)
    twin = model.copy()
    assert_same(model, twin)
    before = everything(twin)
    fit(model, X, y, optimizer=nf.NAdam(0.01, ema=0.9), device=backend)
    assert not differs(before, everything(twin))
    fit(twin, X, y, optimizer=nf.NAdam(0.01, ema=0.9), device=backend)
    assert_same(model, twin)


def test_an_optimizer_of_the_users_own(backend: Backend) -> None:
    class Heavy(nf.Optimizer):
        slots = ("v",)

        def step(self, bk: Any, param: Any, grad: Any, slots: Any, state: Any) -> None:
            if state[S.BAD_STEP]:
                return
            slots["v"][...] = 0.9 * slots["v"] + grad * state[S.GRAD_SCALE]
            param -= state[S.LR] * slots["v"]

    X, y = problem()
    one, other = network(), network()
    for epochs in (1, 2):
        fit(one, X, y, epochs=epochs, optimizer=Heavy(0.05), device=backend, dtype="float64")
    fit(other, X, y, epochs=3, optimizer=nf.SGD(0.05, momentum=0.9), device=backend, dtype="float64")
    for name, value in other.get_weights().items():
        np.testing.assert_allclose(one.get_weights()[name], value, rtol=1e-12, atol=1e-14)
