"""Schedules: against torch.optim.lr_scheduler step by step, tables, configs, states and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nnfast.optimizers import schedules
from nnfast.optimizers.schedules import Cosine, Exponential, OneCycle, ReduceOnPlateau, Schedule, Step, WarmUp

LR = 0.37


def torch_optimizer(lr=LR):
    torch = pytest.importorskip("torch")
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def torch_rates(make, n, every=1):
    """The rates that a scheduler of torch gives `n` optimizer steps, itself stepped after each `every`."""
    optimizer = torch_optimizer()
    scheduler = make(optimizer)
    rates = []
    for i in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (i + 1) % every == 0 and i + 1 < n:
            scheduler.step()
    return rates


def ours(schedule, n, **bound):
    return schedules.get(schedule, base_lr=LR, **bound).table(0, n)


def lr_scheduler():
    return pytest.importorskip("torch.optim.lr_scheduler")


@pytest.mark.parametrize(("step_size", "gamma"), [(1, 0.5), (3, 0.1), (4, 1.5)])
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_step(step_size, gamma, steps_per_epoch):
    expected = torch_rates(lambda o: lr_scheduler().StepLR(o, step_size, gamma), 60, steps_per_epoch)
    actual = ours(Step(step_size=step_size, gamma=gamma), 60, steps_per_epoch=steps_per_epoch)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 0.99])
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_exponential(gamma, steps_per_epoch):
    expected = torch_rates(lambda o: lr_scheduler().ExponentialLR(o, gamma), 60, steps_per_epoch)
    actual = ours(Exponential(gamma=gamma), 60, steps_per_epoch=steps_per_epoch)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("eta_min", [0.0, 1e-3])
@pytest.mark.parametrize("total", [1, 2, 50])
def test_cosine(eta_min, total):
    make = lambda o: lr_scheduler().CosineAnnealingLR(o, total, eta_min)  # noqa: E731
    expected = torch_rates(make, total + 1)
    actual = ours(Cosine(eta_min=eta_min), total + 1, total_steps=total)
    # torch multiplies step by step, so where the rate is nearly zero only its absolute error is small
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15 * LR)
    assert schedules.get(Cosine(eta_min=eta_min), base_lr=LR, total_steps=total)(total + 100) == eta_min


def test_cosine_length_in_epochs():
    by_epochs = ours(Cosine(epochs=2.5), 30, steps_per_epoch=4)
    np.testing.assert_array_equal(by_epochs, ours(Cosine(), 30, total_steps=10))


@pytest.mark.parametrize("start_factor", [1 / 3, 0.01])
def test_warm_up(start_factor):
    def make(o):
        s = lr_scheduler()
        rise = s.LinearLR(o, start_factor=start_factor, total_iters=8)
        return s.SequentialLR(o, [rise, s.CosineAnnealingLR(o, 32, 0.01)], milestones=[8])

    expected = torch_rates(make, 40)
    actual = ours(WarmUp(after=Cosine(eta_min=0.01), steps=8, start_factor=start_factor), 40, total_steps=40)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_warm_up_alone_and_in_epochs():
    expected = torch_rates(lambda o: lr_scheduler().LinearLR(o, start_factor=0.1, total_iters=10), 30)
    actual = ours(WarmUp(epochs=2, start_factor=0.1), 30, steps_per_epoch=5)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_warm_up_clock_of_the_next_schedule_starts_when_it_ends():
    actual = ours(WarmUp(after=Step(step_size=2, gamma=0.1), epochs=1, start_factor=0.0), 9, steps_per_epoch=2)
    np.testing.assert_allclose(actual / LR, [0, 0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1], rtol=1e-12)


def test_warm_up_rises_to_where_the_next_schedule_starts():
    actual = ours(WarmUp(after=OneCycle(), steps=4), 24, total_steps=24)
    assert actual[4] == pytest.approx(LR / 25)
    assert np.all(np.diff(actual[:8]) > 0)


@pytest.mark.parametrize("total", [4, 10, 101])
@pytest.mark.parametrize(("pct_start", "div", "final"), [(0.3, 25.0, 1e4), (0.5, 10.0, 50.0), (0.05, 3.0, 2.0)])
def test_one_cycle(total, pct_start, div, final):
    def make(o):
        return lr_scheduler().OneCycleLR(
            o,
            max_lr=LR,
            total_steps=total,
            pct_start=pct_start,
            div_factor=div,
            final_div_factor=final,
            cycle_momentum=False,
        )

    expected = torch_rates(make, total)
    spec = OneCycle(pct_start=pct_start, div_factor=div, final_div_factor=final)
    np.testing.assert_allclose(ours(spec, total, total_steps=total), expected, rtol=1e-12)
    assert ours(spec, total + 5, total_steps=total)[-1] == pytest.approx(LR / div / final)


def test_one_cycle_with_a_peak_at_the_first_step():
    # torch divides by zero here
    rates = ours(OneCycle(pct_start=0.25), 4, total_steps=4)
    assert rates[0] == pytest.approx(LR)
    assert np.all(np.diff(rates) < 0)


@pytest.mark.parametrize(
    "parameters",
    [
        {"patience": 2},
        {"patience": 0, "factor": 0.5, "threshold": 0.05},
        {"patience": 1, "cooldown": 3, "factor": 0.3},
        {"patience": 1, "threshold": 0.02, "threshold_mode": "abs", "mode": "max"},
        {"patience": 0, "min_lr": 0.01, "mode": "max"},
        {"patience": 0, "eps": 0.05, "factor": 0.5},
    ],
)
def test_reduce_on_plateau(parameters):
    optimizer = torch_optimizer()
    theirs = lr_scheduler().ReduceLROnPlateau(optimizer, **parameters)
    mine = schedules.get(ReduceOnPlateau(**parameters), base_lr=LR)
    rng = np.random.default_rng(5)
    metrics = 1.0 / np.arange(1, 61) ** 0.3 + 0.05 * rng.standard_normal(60)
    metrics[20] = np.nan
    seen = set()
    for epoch, metric in enumerate(metrics):
        optimizer.step()
        theirs.step(metric)
        mine.update(metric)
        assert mine(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        seen.add(mine(epoch))
    assert len(seen) > 1, "the case never reduced the rate"


def test_reduce_on_plateau_resumes_from_its_state():
    whole = schedules.get(ReduceOnPlateau(patience=1), base_lr=LR)
    metrics = [1.0, 1.0, 1.0, 0.5, 0.6, 0.7, 0.8]
    first = schedules.get(whole)
    for m in metrics[:2]:
        first.update(m)
    second = schedules.get(ReduceOnPlateau(patience=1), base_lr=LR)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for m in metrics[2:]:
        second.update(m)
    for m in metrics:
        whole.update(m)
    assert second.state_dict() == whole.state_dict()
    assert second(0) == whole(0) < LR / 50
    fresh = schedules.get("reduce_on_plateau", base_lr=LR)
    fresh.load_state_dict(json.loads(json.dumps(fresh.state_dict())))
    assert fresh(0) == LR


@pytest.mark.parametrize("warm", [False, True])
def test_what_reduce_on_plateau_watches(warm):
    def after(logs, **parameters):
        schedule = ReduceOnPlateau(patience=0, **parameters)
        schedule = schedules.get(WarmUp(after=schedule, steps=1) if warm else schedule, base_lr=LR)
        for epoch in logs:
            schedule.watch(epoch)
        return schedule(5)

    logs = [{"loss": 3.0 - k, "val_loss": 2.0 + k, "a_accuracy": 0.5 + k / 9} for k in range(2)]
    assert after(logs) == pytest.approx(LR / 10)
    assert after([{"loss": epoch["loss"]} for epoch in logs]) == LR
    assert after(logs, monitor="loss") == LR
    assert after(logs, monitor="a_accuracy", mode="max") == LR
    assert after(logs, monitor="a_accuracy") == pytest.approx(LR / 10)
    with pytest.raises(ValueError, match="'b_accuracy' is not there to be monitored; there are loss, val_loss, a_acc"):
        after(logs, monitor="b_accuracy")


def test_adaptive_and_update_pass_through_warm_up():
    warm = schedules.get(WarmUp(after=ReduceOnPlateau(patience=0), steps=2), base_lr=LR)
    assert warm.adaptive
    assert not schedules.get("cosine").adaptive
    assert warm(5) == LR
    warm.update(1.0)
    warm.update(1.0)
    assert warm(5) == pytest.approx(LR / 10)
    other = schedules.get(WarmUp(after=ReduceOnPlateau(patience=0), steps=2), base_lr=LR)
    other.load_state_dict(warm.state_dict())
    assert other(5) == warm(5)


ALL = [
    "constant",
    Step(step_size=2),
    Exponential(gamma=0.9),
    Cosine(eta_min=0.01),
    WarmUp(after=Cosine(), epochs=1),
    OneCycle(),
    ReduceOnPlateau(),
    lambda step: 0.1 / (1 + step),
    0.25,
]


@pytest.mark.parametrize("spec", ALL, ids=lambda s: getattr(s, "name", getattr(s, "__name__", str(s))))
def test_table_is_the_calls(spec):
    schedule = schedules.get(spec, base_lr=LR, total_steps=40, steps_per_epoch=5)
    table = schedule.table(3, 30)
    assert table.dtype == np.float64
    assert table.shape == (30,)
    assert all(type(schedule(s)) is float for s in (0, 7))
    np.testing.assert_array_equal(table, [schedule(s) for s in range(3, 33)])
    assert schedule.table(3, 0).shape == (0,)


@pytest.mark.parametrize("spec", [s for s in ALL if not callable(s) or isinstance(s, Schedule)], ids=str)
def test_config_round_trip(spec):
    bound = {"base_lr": LR, "total_steps": 40, "steps_per_epoch": 5}
    first = schedules.get(spec, **bound)
    second = schedules.get(json.loads(json.dumps(first.config)), **bound)
    assert second.config == first.config
    np.testing.assert_array_equal(first.table(0, 45), second.table(0, 45))


def test_describe():
    assert schedules.describe(None) is None
    assert schedules.describe(np.float32(0.5)) == 0.5
    assert schedules.describe("step") == {"name": "step", "lr": None, "step_size": 30, "gamma": 0.1}
    for spec in [*ALL, {"name": "cosine", "eta_min": 0.1}, WarmUp(after=OneCycle(), epochs=2)]:
        described = schedules.describe(spec)
        assert json.loads(json.dumps(described)) == described
        if not callable(spec) or isinstance(spec, Schedule):
            assert schedules.get(described) == schedules.get(spec)


def test_names_cover_every_schedule():
    for name in schedules.names():
        schedule = schedules.get(name, base_lr=LR, total_steps=10, steps_per_epoch=5)
        assert 0.0 < schedule(0) <= LR
    assert schedules.get("linear-warm-up").name == "warm_up"
    assert schedules.get(Cosine).name == "cosine"
    assert schedules.get(None, base_lr=LR)(7) == LR


def test_own_rate_has_precedence():
    assert schedules.get(0.25, base_lr=LR)(0) == 0.25
    assert schedules.get(Cosine(lr=0.5), base_lr=LR, total_steps=3)(0) == 0.5
    assert schedules.get(WarmUp(lr=0.5, steps=1), base_lr=LR)(1) == 0.5


def test_an_instance_serves_several_trainings():
    spec = WarmUp(after=ReduceOnPlateau(patience=0), steps=1)
    a, b = schedules.get(spec, base_lr=1.0), schedules.get(spec, base_lr=2.0)
    for _ in range(3):
        a.update(1.0)
    assert (a(1), b(1)) == (pytest.approx(0.01), 2.0)


def test_callable_is_not_copied_and_not_stored():
    class Holder:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def __call__(self, step):
            return 0.5

    schedule = schedules.get(WarmUp(after=schedules.get(Holder()), steps=1), base_lr=LR)
    assert schedule(3) == 0.5
    restored = schedules.get(json.loads(json.dumps(schedules.get(Holder()).config)))
    with pytest.raises(ValueError, match=r"Holder.*pass it again"):
        restored(0)


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("cosin", ValueError, r"unknown schedule 'cosin'; known are constant.*reduce_on_plateau"),
        ("custom", ValueError, "unknown schedule"),
        ([0.1], TypeError, "not list"),
        (True, TypeError, "not bool"),
        (-0.1, ValueError, "finite and not negative, got -0.1"),
        (float("nan"), ValueError, "finite and not negative"),
        ({"gamma": 0.1}, ValueError, "needs a 'name'"),
        ({"name": "step", "size": 3}, ValueError, "no parameter size; it takes lr, step_size, gamma"),
        ({"name": "reduce_on_plateau", "_best": 0.0}, ValueError, "no parameter _best"),
        ({"name": "step", "step_size": 0}, ValueError, "at least 1, got 0"),
        ({"name": "exponential", "gamma": 0}, ValueError, "positive and finite"),
        ({"name": "cosine", "eta_min": -1}, ValueError, "eta_min"),
        ({"name": "cosine", "epochs": 0}, ValueError, "epochs"),
        ({"name": "warm_up", "steps": 5, "epochs": 1}, ValueError, "not both"),
        ({"name": "warm_up", "steps": 0}, ValueError, "steps"),
        ({"name": "warm_up", "start_factor": 2}, ValueError, "between 0 and 1"),
        ({"name": "warm_up", "after": "nothing"}, ValueError, "unknown schedule 'nothing'"),
        ({"name": "one_cycle", "pct_start": 1.5}, ValueError, "pct_start"),
        ({"name": "one_cycle", "div_factor": 0.5}, ValueError, "div_factor"),
        ({"name": "reduce_on_plateau", "factor": 1.0}, ValueError, "factor"),
        ({"name": "reduce_on_plateau", "mode": "auto"}, ValueError, "'min' or 'max'"),
        ({"name": "reduce_on_plateau", "patience": -1}, ValueError, "patience"),
        ({"name": "reduce_on_plateau", "monitor": 3}, ValueError, "monitor must be the name of a number, got 3"),
    ],
)
def test_bad_spec(spec, error, match):
    with pytest.raises(error, match=match):
        schedules.get(spec)


def test_what_is_missing_is_named():
    with pytest.raises(RuntimeError, match="no learning rate"):
        schedules.get("constant")(0)
    with pytest.raises(RuntimeError, match=r"'step' counts epochs: call bind"):
        schedules.get("step", base_lr=LR)(0)
    with pytest.raises(RuntimeError, match=r"'cosine' needs the length"):
        schedules.get("cosine", base_lr=LR)(0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        schedules.get("cosine", base_lr=LR).bind(0, 10)
    with pytest.raises(ValueError, match="base_lr must be finite"):
        schedules.get("cosine", base_lr=float("inf"))
    with pytest.raises(ValueError, match="must not be negative"):
        schedules.get(0.1).table(-1, 3)
    with pytest.raises(ValueError, match=r"returned -1\.0 at step 4"):
        schedules.get(lambda step: 1.0 if step < 4 else -1.0).table(0, 10)
    with pytest.raises(ValueError, match=r"'cosine' has no state"):
        schedules.get("cosine").load_state_dict({"best": 1.0})
    with pytest.raises(ValueError, match=r"'reduce_on_plateau' has"):
        schedules.get("reduce_on_plateau").load_state_dict({"best": 1.0})


@pytest.mark.parametrize("name", ["warm_up", "warmup", "linear_warm_up", "linear_warmup"])
def test_the_names_of_warm_up(name: str) -> None:
    assert schedules.get(name, base_lr=0.1).config["name"] == "warm_up"
