"""A training step in its steady state allocates no array on Numba."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import nnfast as nf
from nnfast.kernels import step_state as S
from nnfast.losses import get as get_loss
from nnfast.training.engine import Engine
from nnfast.training.sources import ResidentSource

ROWS, BATCH = 1100, 256


def _engine(
    dtype: str, loss: str, optimizer: nf.Optimizer, measured: tuple[int, ...] = (0,)
) -> tuple[Engine, ResidentSource]:
    backend = nf.get_backend("numba")
    rng = np.random.default_rng(0)
    model = nf.Sequential(
        [
            nf.Dense(64, "gelu"),
            nf.BatchNorm(),
            nf.Dropout(0.3),
            nf.Dense(48, "relu"),
            nf.LayerNorm(),
            nf.Activation("silu"),
            nf.Dense(16),
        ]
    ).build(32, seed=0, dtype=dtype)
    labels = rng.integers(0, 16, ROWS) if loss == "cross_entropy" else rng.standard_normal((ROWS, 16))
    target = get_loss(loss).targets(labels, (16,), dtype)
    weight = rng.random(ROWS).astype(dtype)
    source = ResidentSource(rng.standard_normal((ROWS, 32)).astype(dtype), target, weight, BATCH, True, 0)
    engine = Engine(
        model,
        get_loss(loss),
        optimizer,
        backend,
        dtype,
        BATCH,
        targets=source.targets,
        weighted=True,
    )
    source.attach(engine, measured)
    return engine, source


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["cross_entropy", "huber"])
@pytest.mark.parametrize(
    "optimizer", [nf.Adam(clip_norm=1.0, ema=0.99), nf.SGD(0.01, momentum=0.9, clip_value=0.1)], ids=["adam", "sgd"]
)
def test_steady_state(dtype: str, loss: str, optimizer: nf.Optimizer) -> None:
    if nf.available_devices()["numba"] is not None:
        pytest.skip("Numba is not here")
    engine, source = _engine(dtype, loss, optimizer)
    source.run_epoch(engine, 0, lambda rows: False, each_step=False)  # compiles and records
    engine.begin_epochs()
    tracemalloc.start()
    try:
        engine.run(BATCH)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        engine.run(BATCH, 3)
        engine.run(ROWS % BATCH)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < _smallest(dtype)


def _smallest(dtype: str) -> int:
    """Bytes of the smallest activation: the last batch's output."""
    return (ROWS % BATCH) * 16 * np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whole_epochs(dtype: str) -> None:
    if nf.available_devices()["numba"] is not None:
        pytest.skip("Numba is not here")
    engine, source = _engine(dtype, "cross_entropy", nf.Adam(), measured=())
    assert source.at_once > 4
    for first in (0, 1):
        engine.begin_epochs()
        source.run_epochs(engine, first, 1)  # compiles and records
    engine.begin_epochs()
    tracemalloc.start()
    try:
        engine.run_epochs(ROWS, 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < _smallest(dtype)
    assert engine.read()[S.EPOCH_INDEX] == 4
