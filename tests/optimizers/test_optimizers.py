"""Every optimizer and option: parity through ``check_optimizer``, what they share, descriptions, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nnfast as nf
from nnfast import optimizers
from nnfast.kernels import step_state as S
from nnfast.testing import check_optimizer
from tests.cases import OPTIMIZERS, run_optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(any_backend, name):
    check_optimizer(OPTIMIZERS[name], backends=[any_backend])


@pytest.mark.parametrize("name", optimizers.TABLE)
@pytest.mark.parametrize("size", [1, 16, 10_000])
def test_sizes(backend, name, size):
    check_optimizer(name, size=size, steps=3, backends=[backend])


class SignDescent(nf.Optimizer):
    """An optimizer as a user writes one."""

    slots = ("last",)

    def step(self, bk, param, grad, slots, state):
        if state[S.BAD_STEP] != 0:
            return
        g = grad * float(state[S.GRAD_SCALE])
        param[...] = param - float(state[S.LR]) * bk.xp.sign(g + slots["last"])
        slots["last"][...] = g


def test_optimizer_of_a_user(any_backend):
    check_optimizer(SignDescent(0.1, clip_norm=1.0, ema=0.5), backends=[any_backend])


def test_every_optimizer_is_in_the_table():
    assert {type(optimizer) for optimizer in OPTIMIZERS.values()} == set(optimizers.TABLE.values())


# ---- what they share ---------------------------------------------------------------------------------------
@pytest.fixture
def problem(rng):
    return rng.standard_normal(11), rng.standard_normal((6, 11))


def test_moving_average(any_backend, problem):
    """``average = d * average + (1 - d) * weights``, from the initial weights on."""
    start, grads = problem
    results = run_optimizer(nf.SGD(0.1, ema=0.7), any_backend, start, grads)
    weights, average = start.copy(), start.copy()
    for grad in grads:
        weights = weights - 0.1 * grad
        average = 0.7 * average + 0.3 * weights
    np.testing.assert_allclose(results["average"], average, rtol=1e-12)


def test_clipping(any_backend, problem):
    start, grads = problem
    clipped = [np.clip(grad, -0.5, 0.5) for grad in grads]
    by_value = run_optimizer(nf.SGD(0.1, clip_value=0.5), any_backend, start, grads)
    np.testing.assert_allclose(by_value["param"], start - 0.1 * np.sum(clipped, axis=0), rtol=1e-12)
    # By value first, then by norm; a gradient that is short already stays as it is
    scaled = [grad * min(1.0, 1.2 / (np.linalg.norm(grad) + 1e-6)) for grad in [*clipped, 1e-3 * grads[0]]]
    both = run_optimizer(nf.SGD(0.1, clip_value=0.5, clip_norm=1.2), any_backend, start, [*grads, 1e-3 * grads[0]])
    np.testing.assert_allclose(both["param"], start - 0.1 * np.sum(scaled, axis=0), rtol=1e-12)


def test_decoupled_decay_does_not_pass_through_the_moments(any_backend, problem):
    start, grads = problem
    plain = run_optimizer(nf.Adam(0.1), any_backend, start, grads)
    decoupled = run_optimizer(nf.AdamW(0.1, weight_decay=0.3), any_backend, start, grads)
    coupled = run_optimizer(nf.Adam(0.1, weight_decay=0.3), any_backend, start, grads)
    np.testing.assert_array_equal(decoupled["m"], plain["m"])
    assert np.abs(coupled["m"] - plain["m"]).max() > 0.01
    assert np.abs(decoupled["param"] - plain["param"]).max() > 0.01


def test_schedule_is_followed(any_backend, problem):
    start, grads = problem
    results = run_optimizer(nf.SGD(lambda step: 0.1 * 0.5**step), any_backend, start, grads)
    expected = start - sum(0.1 * 0.5**step * grad for step, grad in enumerate(grads))
    np.testing.assert_allclose(results["param"], expected, rtol=1e-12)


@pytest.mark.parametrize("name", optimizers.TABLE)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_leaves_its_element(any_backend, problem, name, bad):
    start, grads = problem
    if name == "lion" and np.isinf(bad):
        pytest.skip("the sign of infinity is 1")
    grads = grads[:1].copy()
    grads[0, 3] = bad
    with np.errstate(invalid="ignore"):
        results = run_optimizer(optimizers.get(name), any_backend, start, grads)
    assert all(np.isfinite(array).all() for array in results.values())
    assert results["param"][3] == start[3]
    assert (results["param"] != start).sum() == start.size - 1


@pytest.mark.parametrize(
    "optimizer", [nf.SGD(0.1, momentum=0.9), nf.Adam(0.05), nf.NAdam(0.05), nf.RMSprop(0.05)], ids=repr
)
def test_fit_in_parts_is_fit_at_once(backend, rng, optimizer):
    """Moments, bias corrections and NAdam's running product go on in the next fit."""
    x, y = rng.standard_normal((24, 3)), rng.standard_normal(24)
    arguments = {
        "loss": "mse",
        "optimizer": optimizer,
        "batch_size": 5,
        "device": backend,
        "dtype": "float64",
        "verbose": 0,
    }
    once, parts = (
        nf.Sequential([nf.Dense(4, "tanh"), nf.Dense(1)]).build(3, seed=1, dtype="float64") for _ in range(2)
    )
    once.fit(x, y, epochs=5, **arguments)
    for epochs in (1, 3, 1):
        parts.fit(x, y, epochs=epochs, **arguments)
    np.testing.assert_array_equal(parts.get_flat_weights(), once.get_flat_weights())


@pytest.mark.parametrize(
    ("first", "second"),
    [("adam", nf.SGD(0.1, momentum=0.9)), ("adam", nf.AdamW(0.1)), (nf.SGD(0.1, momentum=0.9), "rmsprop")],
    ids=str,
)
def test_another_optimizer_starts_anew(backend, rng, first, second):
    """Neither moments, though of the same names, nor the number of steps for the bias correction are taken over."""
    x, y = rng.standard_normal((8, 3)), rng.standard_normal(8)
    arguments = {"loss": "mse", "device": backend, "shuffle": False, "verbose": 0}
    model, twin = (nf.Sequential([nf.Dense(1)]).build(3, seed=1) for _ in range(2))
    model.fit(x, y, optimizer=first, epochs=3, **arguments)
    twin.set_weights(model.get_weights())
    for one in (model, twin):
        one.fit(x, y, optimizer=second, epochs=2, **arguments)
    np.testing.assert_array_equal(model.get_flat_weights(), twin.get_flat_weights())


def test_averaged_weights(backend, rng):
    x, y = rng.standard_normal((16, 3)), rng.standard_normal(16)
    model = nf.Sequential([nf.Dense(1)])
    model.fit(x, y, loss="mse", optimizer=nf.SGD(0.1, ema=0.9), epochs=3, seed=0, device=backend, verbose=0)
    trained, before = model.get_flat_weights(), model.predict(x)
    with model.averaged():
        assert np.abs(model.get_flat_weights() - trained).max() > 1e-3
        assert np.abs(model.predict(x) - before).max() > 1e-3
    np.testing.assert_array_equal(model.get_flat_weights(), trained)
    np.testing.assert_array_equal(model.predict(x), before)
    with pytest.raises(ValueError, match=r"no moving average; train with an optimizer that has ema="):  # noqa: SIM117
        with nf.Sequential([nf.Dense(1, in_features=2)]).build().averaged():
            pass


# ---- descriptions ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_config_round_trip(name):
    optimizer = OPTIMIZERS[name]
    config = json.loads(json.dumps(optimizer.config()))
    again = optimizers.get(config)
    assert type(again) is type(optimizer)
    assert again.config() == optimizer.config()
    assert again.fill_state() == optimizer.fill_state()
    assert again.slots == optimizer.slots


@pytest.mark.parametrize("name", optimizers.TABLE)
def test_get(name):
    kind = optimizers.TABLE[name]
    assert type(optimizers.get(f" {name.upper()} ")) is kind
    assert optimizers.get(kind, lr=0.5).lr == 0.5
    assert optimizers.get({"name": kind.__name__, "lr": 0.25}).lr == 0.25
    made = kind()
    assert optimizers.get(made) is made


# ---- errors ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: nf.SGD(-0.1), ValueError, r"SGD: lr must be at least 0, got -0.1"),
        (lambda: nf.Adam(float("nan")), ValueError, r"Adam: lr must be at least 0, got nan"),
        (lambda: nf.Adam(float("inf")), ValueError, r"Adam: lr"),
        (lambda: nf.SGD(0.1, momentum=1.0), ValueError, r"SGD: momentum must be at least 0 and below 1, got 1.0"),
        (lambda: nf.SGD(0.1, nesterov=True), ValueError, r"SGD: nesterov=True needs a momentum above 0"),
        (lambda: nf.Adam(beta1="x"), TypeError, r"Adam: beta1 must be a number, not 'x'"),
        (lambda: nf.Adam(beta2=1.0), ValueError, r"Adam: beta2 must be at least 0 and below 1, got 1.0"),
        (lambda: nf.AdamW(eps=0.0), ValueError, r"AdamW: eps must be above 0, got 0.0"),
        (lambda: nf.Adagrad(eps=-1.0), ValueError, r"Adagrad: eps"),
        (lambda: nf.RMSprop(rho=-0.1), ValueError, r"RMSprop: rho"),
        (lambda: nf.NAdam(momentum_decay=-1.0), ValueError, r"NAdam: momentum_decay"),
        (lambda: nf.Lion(beta1=1.5), ValueError, r"Lion: beta1"),
        (lambda: nf.SGD(weight_decay=-1.0), ValueError, r"SGD: weight_decay"),
        (lambda: nf.SGD(clip_value=0.0), ValueError, r"SGD: clip_value must be above 0, got 0.0"),
        (lambda: nf.SGD(clip_norm=-1.0), ValueError, r"SGD: clip_norm"),
        (lambda: nf.SGD(ema=1.0), ValueError, r"SGD: ema must be at least 0 and below 1, got 1.0"),
        (lambda: nf.SGD(clip=1.0), TypeError, r"clip"),
        (lambda: optimizers.get("adamm"), ValueError, r"unknown optimizer 'adamm'; known are sgd, .*lion"),
        (lambda: optimizers.get(3), TypeError, r"optimizer must be a name or an Optimizer, not int"),
        (lambda: optimizers.get(nf.Adam(), lr=0.1), TypeError, r"\['lr'\] cannot be given beside"),
        (lambda: optimizers.get({"lr": 0.1}), ValueError, r"'name'"),
        (lambda: nf.SGD("fast").schedule(), ValueError, r"fast"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_what_a_user_forgot_is_named():
    with pytest.raises(NotImplementedError, match="Optimizer does not define step"):
        nf.Optimizer().step(None, None, None, {}, None)
