"""Chains that keep only the tile that they are at of what nobody else needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import nnfast as nf
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.kernels import step_state as S
from nnfast.kernels.cpu import chain, tuning


@pytest.fixture(params=[1, 2, 3])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Many tiles for each of so many threads, in small batches."""
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: request.param)
    monkeypatch.setattr(tuning, "TILE_ROWS", 8)
    monkeypatch.setattr(tuning, "THREAD_ROWS_MIN", 4)
    return request.param


def layers(act: str, norm: bool) -> list[nf.Layer]:
    between = [nf.LayerNorm(), nf.Flatten()] if norm else []
    return [nf.Dense(9, act), nf.Dropout(0.2), *between, nf.Dense(9, act), nf.Dense(4)]


def trained(model: nf.Sequential, dtype: str, **more: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 7)).astype(dtype), rng.integers(0, 4, 200)
    history = model.fit(
        X, y, loss="cross_entropy", optimizer=nf.Adam(0.01), epochs=2, batch_size=90, device="numba", dtype=dtype,
        seed=3, verbose=0, **more,
    )  # fmt: skip
    curves = [np.array(history[name]) for name in sorted(history)]
    return [*model.get_weights().values(), *curves, model.predict(X), model.predict(X, batch_size=50)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("more", [{}, {"metrics": ["accuracy"], "validation_split": 0.2}])
def test_a_training_is_the_same_bit_by_bit(
    small_tiles: int, monkeypatch: pytest.MonkeyPatch, act: str, dtype: str, more: dict[str, Any], norm: bool
) -> None:
    used: list[int] = []
    original = chain.Chain._local

    def local(self, *args):
        found = original(self, *args)
        used.append(len(found))
        return found

    monkeypatch.setattr(chain.Chain, "_local", local)
    found = trained(nf.Sequential(layers(act, norm)), dtype, **more)
    assert max(used) >= (3 if norm else 8)  # inputs, activations, gradients
    monkeypatch.setattr(chain.Chain, "_local", lambda self, *args: [])
    for one, other in zip(found, trained(nf.Sequential(layers(act, norm)), dtype, **more), strict=True):
        np.testing.assert_array_equal(one, other)


class Doubled(nf.Layer):
    """A layer in Python: what it reads must be there."""

    def forward(self, bk, x, y):
        bk.python(lambda bk: bk.xp.multiply(x, 2.0, out=y))

    def backward(self, bk, dy, dx):
        if dx is not None:
            bk.python(lambda bk: bk.xp.multiply(dy, 2.0, out=dx))


def test_python_in_a_step_finds_everything(small_tiles: int) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((100, 7)), rng.integers(0, 4, 100)
    weights = []
    for device in ("numpy", "numba"):
        model = nf.Sequential([nf.Dense(9, "relu"), Doubled(), nf.Dense(4)])
        model.fit(
            X, y, loss="cross_entropy", epochs=2, batch_size=64, device=device, dtype="float64", seed=3, verbose=0
        )
        weights.append(model.get_flat_weights())
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-9, atol=1e-12)


def step_of(arrays: dict[str, np.ndarray], order: np.ndarray, state: np.ndarray) -> Any:
    def step(bk: NumbaBackend) -> None:
        bk.take_batch(arrays["data"], order, state, out=arrays["x"])
        bk.linear_act(arrays["x"], arrays["W"], arrays["b"], "tanh", out=arrays["y"])
        bk.linear_act(arrays["y"], arrays["V"], None, "identity", out=arrays["z"])

    return step


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"data": (80, 5), "x": (70, 5), "W": (5, 6), "b": (6,), "y": (70, 6), "V": (6, 3), "z": (70, 3)}
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


def test_what_is_temporary_is_not_written_and_the_rest_is(small_tiles: int) -> None:
    given, order, state = arrays(), np.random.default_rng(1).permutation(80), np.zeros(S.SIZE)
    given["x"][:], given["y"][:], given["z"][:] = np.nan, np.nan, np.nan
    replay = NumbaBackend().capture(step_of(given, order, state), [given["x"], given["y"]])
    replay.run(2)
    x = given["data"][order[:70]]
    np.testing.assert_allclose(given["z"], np.tanh(x @ given["W"] + given["b"]) @ given["V"], rtol=1e-4, atol=1e-5)
    assert np.isnan(given["x"]).all()
    assert np.isnan(given["y"]).all()


@pytest.mark.parametrize("kept", ["x", "y", "z"])
def test_what_another_call_reads_is_written(small_tiles: int, kept: str) -> None:
    given, order, state = arrays(), np.random.default_rng(1).permutation(80), np.zeros(S.SIZE)
    total = np.zeros(1)

    def step(bk: NumbaBackend) -> None:
        step_of(given, order, state)(bk)
        bk.sq_norm(given[kept], out=total)

    NumbaBackend().capture(step, [given["x"], given["y"], given["z"]]).run()
    x = given["data"][order[:70]]
    y = np.tanh(x @ given["W"] + given["b"])
    expected = {"x": x, "y": y, "z": y @ given["V"]}[kept]
    np.testing.assert_allclose(total[0], (expected.astype(np.float64) ** 2).sum(), rtol=1e-5)


def test_what_is_read_before_it_is_written_stays(small_tiles: int) -> None:
    """A batch that was fed, and a sum that goes on from step to step."""
    x, W, y = (np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(((70, 5), (5, 4), (70, 4))))
    start, z = y.copy(), np.zeros((70, 4))

    def step(bk: NumbaBackend) -> None:
        bk.linear_act(x, W, None, "identity", out=z)
        bk.add(y, z, out=y)

    NumbaBackend().capture(step, [x, y, z]).run(3)
    np.testing.assert_allclose(y, start + 3 * (x @ W), rtol=1e-9)


def test_memory_under_two_shapes_stays(small_tiles: int) -> None:
    """Rows of another length in the same memory are other rows."""
    x, W, V = (np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(((80, 6), (6, 6), (3, 4))))
    memory, out = np.zeros((80, 6)), np.zeros((160, 4))

    def step(bk: NumbaBackend) -> None:
        bk.linear_act(x, W, None, "tanh", out=memory)
        bk.linear_act(memory.reshape(160, 3), V, None, "identity", out=out)

    NumbaBackend().capture(step, [memory, memory.reshape(160, 3)]).run()
    np.testing.assert_allclose(out, np.tanh(x @ W).reshape(160, 3) @ V, rtol=1e-9)
