"""Whole models on the emulated device: they train as on NumPy, each step one graph, and as kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends import cupy_graph
from nnfast.training import sources
from nnfast.training.engine import Engine
from tests.cuda.emulator import EmulatedBackend

Layers = Sequence[nf.layers.Layer]


def images(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((20, 5, 4, 3)), rng.integers(0, 3, 20)


def sequences(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((20, 4, 3)), rng.integers(0, 3, 20)


def words(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The last ones of a text are padding; of some there are no more than two."""
    x = rng.integers(1, 9, (20, 5))
    x[np.arange(5) >= rng.integers(2, 6, 20)[:, None]] = 0
    return x, rng.integers(0, 3, 20)


def texts(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Texts and what comes next at each of their places."""
    x = rng.integers(0, 9, (12, 6))
    return x[:, :-1], x[:, 1:]


def pieces(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Row `i` of a batch goes on from row `i` of the batch before."""
    return rng.integers(0, 9, (28, 4)), rng.integers(0, 3, 28)


def of_texts(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What comes next at each place, where the text still goes on."""
    x = words(rng)[0][:12]
    return x, np.roll(x, -1, axis=1)


def residual() -> Layers:
    inner = [nf.Conv2D(4, 3, padding="same", bias=False), nf.BatchNorm(), nf.Activation("relu")]
    shortcut = [nf.Conv2D(4, 1, stride=2)]
    narrower = [nf.Conv2D(4, 3, "gelu_tanh", stride=2, padding="same"), nf.GroupNorm(2)]
    return [nf.Conv2D(4, 1), nf.Residual(inner), nf.Residual(narrower, shortcut), nf.GlobalAvgPool2D(), nf.Dense(3)]


def up_and_down() -> Layers:
    return [
        *(nf.DepthwiseConv2D(3, "relu", depth_multiplier=2, padding="same"), nf.MaxPool2D(2)),
        *(nf.Conv2DTranspose(4, 3, "tanh", stride=2), nf.UpSampling2D(2, "bilinear"), nf.Flatten(), nf.Dense(3)),
    ]


def branches() -> Layers:
    return [nf.Parallel([nf.Dense(4, "tanh"), nf.LSTM(4, return_sequences=True)]), nf.GRU(5), nf.Dense(3)]


def both_ways() -> Layers:
    return [
        nf.Embedding(9, 4, mask_zero=True),
        nf.Bidirectional(nf.GRU(4, return_sequences=True)),
        nf.Bidirectional(nf.LSTM(5, return_sequences=True), "sum"),
        nf.Bidirectional(nf.GRU(4, return_sequences=True, reset_after=False), "mul"),
        nf.Bidirectional(nf.SimpleRNN(4), "ave"),
        nf.Dense(3),
    ]


def pooled() -> Layers:
    pools = nf.Parallel([nf.GlobalMaxPool1D(), nf.GlobalAvgPool1D()])
    return [nf.Embedding(9, 4, mask_zero=True), nf.Dense(5, "tanh"), pools, nf.Dense(3)]


def carrying() -> Layers:
    return [
        nf.Embedding(9, 4),
        nf.LSTM(5, return_sequences=True, stateful=True),
        nf.GRU(4, return_sequences=True, stateful=True),
        nf.SimpleRNN(4, stateful=True),
        nf.Dense(3),
    ]


def transformer(**options: Any) -> Callable[[], Layers]:
    return lambda: [
        nf.Embedding(9, 8, initializer=nf.initializers.Normal(1.0)),  # what is small its norm would blow up
        nf.PositionalEmbedding(),
        nf.TransformerBlock(2, 12, causal=True, **options),
        nf.LayerNorm(),
        nf.Dense(9),
    ]


MODELS: dict[str, tuple[Callable[[], Layers], Callable[..., Any]]] = {
    "residual": (residual, images),
    "up and down": (up_and_down, images),
    "branches": (branches, sequences),
    "both ways": (both_ways, words),
    "pooled": (pooled, words),
    "carrying": (carrying, pieces),
    "transformer": (transformer(dropout=0.2), texts),
    "rotary, checkpoint": (transformer(rotary=True, checkpoint=True, norm="rms", bias=False), texts),
    "masked places": (
        lambda: [nf.Embedding(9, 4, mask_zero=True), nf.MultiHeadAttention(2), nf.Dense(9)],
        of_texts,
    ),
}


def trained(name: str, device: Any, **options: Any) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Losses, weights and predictions; 8 rows a batch, and 4 in an epoch's last one."""
    make, data = MODELS[name]
    x, y = data(np.random.default_rng(0))
    options["shuffle"] = name != "carrying"
    model = nf.Sequential(make())
    given: dict[str, Any] = {"optimizer": nf.SGD(0.1), "epochs": 2, "batch_size": 8, "seed": 1, "verbose": 0, **options}
    history = model.fit(
        x if x.dtype.kind == "i" else x.astype("float32"), y, loss="cross_entropy", device=device, **given
    )
    return history["loss"], model.get_flat_weights(), np.asarray(model.predict(x, batch_size=8), float)


def counted(monkeypatch: pytest.MonkeyPatch, bk: EmulatedBackend) -> list[tuple[int, ...]]:
    """Of each run of steps: graphs, waits and allocations, and uploads."""
    seen, run = [], Engine.run

    def wrapped(self: Engine, rows: int, steps: int = 1) -> None:
        self.plan.replay(rows)  # a plan's first step of so many rows is recorded
        bk.counts.reset()
        run(self, rows, steps)
        seen.append((bk.counts.graphs, bk.counts.syncs + bk.counts.allocations, bk.counts.uploads))

    monkeypatch.setattr(Engine, "run", wrapped)
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_as_on_numpy(emulated_cuda: EmulatedBackend, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sources, "next_chunk", lambda steps, seconds: 4 * steps)
    monkeypatch.setattr(cupy_graph, "SEVERAL", 2)  # steps of a larger graph
    seen = counted(monkeypatch, emulated_cuda)
    found = trained(name, emulated_cuda)
    assert {counts[1:] for counts in seen} <= {(0, 0), (0, 1)}  # the learning rates of an epoch
    assert seen[-1][2] == 0
    assert all(counts[0] for counts in seen)
    for ours, wanted in zip(found, trained(name, "numpy"), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "both ways", "pooled", "carrying", "transformer"])
def test_a_graph_computes_what_its_kernels_do(
    emulated_cuda: EmulatedBackend, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = trained(name, emulated_cuda)
    monkeypatch.setattr(EmulatedBackend, "graph_of", lambda *args: None)
    for ours, wanted in zip(found, trained(name, emulated_cuda), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)  # a graph takes some sums otherwise


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("residual", "bf16"), ("carrying", "bf16"), ("transformer", "bf16")),
        *(("up and down", "fp16"), ("both ways", "fp16"), ("masked places", "fp16"), ("pooled", "bf16")),
    ],
)
def test_a_model_of_16_bits(
    emulated_cuda: EmulatedBackend, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    seen = counted(monkeypatch, emulated_cuda)
    found = trained(name, emulated_cuda, precision=precision)
    assert {counts[1:] for counts in seen} <= {(0, 0), (0, 1)}
    assert all(counts[0] for counts in seen)
    for ours, wanted in zip(found, trained(name, "numpy"), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0.05, atol=0.05)
