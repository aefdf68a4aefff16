"""Calibration and slope on a clock made by hand, and whole runs."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from nnfast.bench import measure as measure_module
from nnfast.bench.floor import FloorSession, flops, products, steps_of
from nnfast.bench.measure import Settings, calibrate, measure, slope
from nnfast.bench.session import Session
from nnfast.bench.timings import FLOOR
from nnfast.bench.workloads import PRESETS, find

from .helpers import QUICK, FaultySession, made_result, small


class Clock:
    """A contender whose epochs take so long, with a start of `fixed` and a first run of `first` seconds."""

    def __init__(self, epoch: float, fixed: float = 0.0, first: float = 0.0) -> None:
        self.epoch, self.fixed, self.first = epoch, fixed, first
        self.calls: list[int] = []

    def __call__(self, count: int) -> float:
        self.calls.append(count)
        return self.fixed + count * self.epoch + (self.first if len(self.calls) == 1 else 0.0)


@pytest.mark.parametrize("epoch", [1e-6, 3e-4, 0.02, 0.29, 4.0])
def test_calibrate(epoch):
    clock = Clock(epoch, first=30.0)
    few, many = calibrate(clock, 0.3)
    assert 1 <= few < many
    assert 0.3 <= (many - few) * epoch < max(0.31 + epoch, 2.1 * epoch)
    assert sum(clock.calls) * epoch < max(2.0, 5 * epoch), "calibration itself takes long"


def test_one_slow_run_does_not_end_the_search():
    clock = Clock(1e-5)
    hiccups = iter([0.0, 0.0, 5.0])
    few, many = calibrate(lambda count: clock(count) + next(hiccups, 0.0), 0.3)
    assert (many - few) * 1e-5 >= 0.3


def test_slope():
    clock = Clock(2e-3, fixed=7.0, first=3.0)
    assert slope(clock, (10, 110)) == pytest.approx(2e-3, rel=1e-9)
    assert clock.calls == [10, 10, 110]


def test_slope_tries_again():
    times = iter([1.0, 5.0, 4.0, 1.0, 2.0])
    assert slope(lambda count: next(times), (1, 3)) == 0.5


def test_slope_gives_up():
    with pytest.raises(ArithmeticError, match="9 epochs took 1 s, but 2 took 1 s"):
        slope(lambda count: 1.0, (2, 9))


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"threads": 0}, {"seconds": 0.0}, {"seconds": float("nan")}, {"pause": -1.0}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


# ---- the floor -----------------------------------------------------------------------------------------
def test_products():
    work = find("mnist")
    assert products(work, 256) == [
        (256, 784, 512), (256, 512, 256), (256, 256, 10),
        (256, 256, 10), (256, 10, 256), (512, 256, 256), (256, 256, 512), (784, 256, 512),
    ]  # fmt: skip
    step = 2 * 256 * (3 * (512 * 256 + 256 * 10) + 2 * 784 * 512)
    assert flops(work) == step
    assert products(find("mnist-predict-1"), 1) == [(1, 784, 512), (1, 512, 256), (1, 256, 10)]
    assert flops(find("wide-predict-65536")) == 2 * 65536 * (784 * 1024 + 1024 * 1024 + 10240)


def test_flops_of_a_last_smaller_batch():
    work = find("mnist-last-smaller")
    assert steps_of(work) == [256] * 15 + [160]
    assert flops(work) == pytest.approx(flops(find("mnist")) * 4000 / (16 * 256))


@pytest.mark.parametrize("name", [w.name for w in PRESETS["layers"]])
def test_the_floor_of_layers(name):
    work = small(name)
    session = FloorSession(work, 1)
    session.prepare()
    expected = Counter(shape for rows in steps_of(work) for shape in products(work, rows))
    found: Counter[tuple[int, int, int]] = Counter()
    for a, b, out in session.calls:
        assert out.shape == (*a.shape[:-1], b.shape[-1])
        found[(a.shape[-2], a.shape[-1], b.shape[-1])] += len(a) if a.ndim == 3 else 1
    assert found == expected
    assert session.run(2) > 0
    assert all(np.isfinite(out).all() for _, _, out in session.calls)


@pytest.mark.parametrize("name", ["small", "mnist-last-smaller", "mnist-float64", "mnist-predict-65536"])
def test_the_floor_does_these_products(name):
    work = small(name)
    session = FloorSession(work, 1)
    session.prepare()
    expected = [shape for rows in steps_of(work) for shape in products(work, rows)]
    assert [(x.shape[0], x.shape[1], w.shape[1]) for x, w, _ in session.calls] == expected
    assert all(x.shape[1] == w.shape[0] and out.shape == (x.shape[0], w.shape[1]) for x, w, out in session.calls)
    assert {array.dtype.name for call in session.calls for array in call} == {work.dtype}
    assert session.run(2) > 0
    assert all(np.isfinite(out).all() for _, _, out in session.calls)


def test_products_of_layers():
    conv = [(256 * 784, 9, 32), (256 * 196, 288, 64), (256, 3136, 10)]
    found = products(find("cnn"), 256)
    assert found[:3] == conv
    assert found[3:] == [
        (3136, 256, 10), (256, 10, 3136), (288, 256 * 196, 64), (256 * 196, 64, 288), (9, 256 * 784, 32)
    ]  # fmt: skip
    # The first step has no state, and the inputs need no gradient
    assert Counter(products(find("lstm"), 128)) == {
        (128 * 64, 64, 512): 1, (64, 128 * 64, 512): 1, (128, 128, 512): 63, (128, 512, 128): 63,
        (128, 128 * 63, 512): 1, (128, 128, 10): 2, (128, 10, 128): 1,
    }  # fmt: skip
    weights = 256 * 768 + 256 * 256 + 2 * 256 * 1024
    attention = 2 * 128 * 128 * 32 * 8 * 32
    assert flops(find("transformer")) == 2 * 3 * (32 * 128 * weights + attention + 32 * 256 * 10)
    assert products(find("depthwise"), 64)[0] == (64 * 1024, 64, 128)
    # A block's own input needs no gradient where it comes first, unless a norm is in front
    assert len(products(find("resnet-block"), 64)) == 3 + 6 - 1


# ---- whole runs ----------------------------------------------------------------------------------------
def test_a_run():
    said = []
    work = small("mnist-last-smaller")
    result = measure(work, ["nnfast-numpy", "numpy", "onnxruntime"], QUICK, said.append)
    assert result.errors == []
    assert result.unable == {"onnxruntime": "onnxruntime does not train"}
    assert set(result.timings) == {"nnfast-numpy", "numpy"}
    for timing in (*result.timings.values(), result.floor):
        assert len(timing.steps) == 2
        assert min(timing.steps) > 0
        assert timing.peak_mb > timing.increase_mb > 0
        assert 1 <= timing.counts[0] < timing.counts[1]
        assert timing.disagreement < 1e-5
    assert len(result.peaks) == 2
    assert min(result.peaks) > 1e8
    assert all(blas["threads"] == 1 for blas in result.blas)
    assert result.best_peer is result.timings["numpy"]
    turns = [text for text in said if text.startswith("round")]
    names = (FLOOR, "nnfast-numpy", "numpy")
    assert turns == [f"round {i} of 2: {name}" for i in (1, 2) for name in names], "in turn"
    assert multiprocessing.active_children() == []


def test_a_run_of_predictions():
    work = small("mnist-predict-65536")
    result = measure(work, ["nnfast-numpy", "numpy"], QUICK)
    assert result.errors == []
    assert all(len(timing.steps) == 2 for timing in result.timed)


def test_contenders_that_fail(monkeypatch):
    monkeypatch.setattr(measure_module, "Session", FaultySession)
    peers = ["nnfast-numpy", "numpy", "nnfast-numba"]
    result = measure(small("tiny"), peers, QUICK)
    assert [timing.name for timing in result.timed] == ["nnfast-numba"]
    assert "the process died with exit code 9" in result.timings["numpy"].error
    wrong = result.timings["nnfast-numpy"]
    assert wrong.error.startswith("nnfast-numpy: its losses of the first steps differ from the plain NumPy network's")
    assert wrong.disagreement == pytest.approx(0.01, rel=1e-3)
    assert len(result.errors) == 2
    assert multiprocessing.active_children() == []


def test_ctrl_c_ends_the_processes():
    def interrupt(text: str) -> None:
        if text.startswith("calibrating numpy"):
            assert len(multiprocessing.active_children()) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(small("tiny"), ["numpy"], QUICK, interrupt)
    assert multiprocessing.active_children() == []


def test_the_floor_fails(monkeypatch):
    monkeypatch.setattr(measure_module, "FloorSession", "not a class")
    result = measure(small("tiny"), ["numpy"], QUICK)
    assert result.floor.error.startswith("GEMM floor: TypeError")
    assert "could not be checked" in result.timings["numpy"].error


def test_losses_that_are_not_finite_are_an_error():
    session = Session("numpy", replace(small("tiny"), lr=1e-3), 1)
    session.prepare()
    session.timed.flat[0] = np.nan
    with pytest.raises(ArithmeticError, match="2 epochs gave the losses"):
        session.run(2)


# ---- figures -------------------------------------------------------------------------------------------
def test_ratios_are_of_the_same_round():
    """The machine slows down by 4 in the middle; medians of times would be taken at different speeds."""
    result = made_result(
        "xor", nnfast_numba=[1.0, 4.0, 1.0], numpy=[2.0, 8.0, 8.0], jax=[9.0, 9.0, 9.0], floor=[0.5, 2.0, 0.5]
    )
    ours, numpy = result.timings["nnfast-numba"], result.timings["numpy"]
    assert result.best_peer is numpy
    assert result.speedup(ours, numpy) == 2.0
    assert result.speedup(numpy, numpy) == 1.0
    assert result.times_floor(ours) == 2.0
    assert result.samples_per_second(ours) == 4.0
    assert result.peak_share(ours) == pytest.approx(flops(find("xor")) / 1e11)
