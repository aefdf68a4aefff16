"""Batches from the host on the emulated device, whose copy stream does everything as late as it may."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.training import loop
from tests.cuda.emulator import EmulatedBackend, emulated_backend


@pytest.fixture
def bk() -> EmulatedBackend:
    return emulated_backend()


def problem(rows: int = 53) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 5)).astype(np.float32), rng.integers(0, 3, rows), rng.random(rows)


def trained(device: Any, x: Any, y: Any, **arguments: Any) -> nf.Sequential:
    model = nf.Sequential([nf.Dense(8, "tanh"), nf.Dense(3)])
    defaults = {"loss": "cross_entropy", "epochs": 3, "batch_size": 10, "seed": 0, "verbose": 0}
    model.fit(x, y, device=device, **{**defaults, **arguments})
    return model


@pytest.mark.parametrize("weighted", [False, True])
def test_data_that_does_not_fit_trains_as_on_the_host(
    bk: EmulatedBackend, monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    monkeypatch.setattr(loop, "fits_on", lambda *args: False)
    X, y, weight = problem()
    extra = {"sample_weight": weight} if weighted else {}
    want, got = (trained(device, X, y, **extra) for device in ("numpy", bk))
    for name, value in want.get_weights().items():
        np.testing.assert_allclose(got.get_weights()[name], value, rtol=1e-4, atol=1e-5)


def test_batches_wait_for_nothing_but_their_turn(bk: EmulatedBackend) -> None:
    X, y, _ = problem(200)
    outs = [bk.zeros((10, 5), np.float32), bk.zeros(10, np.int64)]
    feeder = bk.feeder(outs)
    bk.counts.reset()
    bk._cupy.streams.waits.clear()
    for start in range(0, 200, 10):
        x, target = X[start : start + 10].copy(), y[start : start + 10].copy()
        feeder.feed([x, target])
        x[:], target[:] = np.nan, -1  # they may be changed at once
        np.testing.assert_array_equal(outs[0].host, X[start : start + 10])
        np.testing.assert_array_equal(outs[1].host, y[start : start + 10])
    assert bk.counts.syncs == bk.counts.allocations == 0
    assert bk.counts.uploads == 40
    # The copy stream waits until the device has read what lies there, the other one until the copy is done
    here, copying = 0, feeder._stream.ptr
    assert [stream for stream, _ in bk._cupy.streams.waits] == [copying, here] * 20
    used = [event for stream, event in bk._cupy.streams.waits if stream == copying]
    assert used == [turn.used for _ in range(10) for turn in reversed(feeder._turns)] or used == [
        turn.used for _ in range(10) for turn in feeder._turns
    ]


def test_page_locked_memory_is_not_overwritten_before_it_was_copied(bk: EmulatedBackend) -> None:
    """Two batches that nobody waited for, then a third one."""
    out = bk.zeros(3, np.float64)
    feeder = bk.feeder([out])
    seen = []
    for value in range(4):
        turn = feeder._turns[0]
        feeder.feed([np.full(3, float(value))])
        seen.append(float(out.host[0]))
        assert turn.copied.stream is feeder._stream
    assert seen == [0.0, 1.0, 2.0, 3.0]


def test_arrays_on_the_device_go_straight_there(bk: EmulatedBackend) -> None:
    out = bk.zeros(4, np.float32)
    feeder = bk.feeder([out])
    bk.counts.reset()
    feeder.feed([bk.asarray(np.arange(4, dtype=np.float32))])
    np.testing.assert_array_equal(out.host, np.arange(4))
    assert feeder._stream not in [stream for stream, _ in bk._cupy.streams.waits]


def test_another_dtype_is_converted_on_the_way(bk: EmulatedBackend) -> None:
    out = bk.zeros((2, 2), np.float32)
    bk.feeder([out]).feed([np.array([[1.5, 2.5], [3.5, 4.5]])])
    np.testing.assert_array_equal(out.host, [[1.5, 2.5], [3.5, 4.5]])
    with pytest.raises(TypeError):
        bk.feeder([bk.zeros(2, np.int64)]).feed([np.array([1.5, 2.5])])


def test_a_trainer_feeds_batch_by_batch(bk: EmulatedBackend) -> None:
    X, y, _ = problem()
    losses = []
    for device in ("numpy", bk):
        model = nf.Sequential([nf.Dense(8, "tanh"), nf.Dense(3)])
        trainer = nf.Trainer(model, "cross_entropy", device=device, batch_size=20, seed=0)
        losses.append([trainer.step(X[a : a + 20], y[a : a + 20]) for a in range(0, 53, 20)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
