"""Global pooling of the steps that are there: gradients, PyTorch as an outside oracle, models of texts and numbers."""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf
from nnfast.layers.graph import build_chain
from tests.cases import Chain, Padding, run_layer
from tests.oracle import DTYPES, close, dtypes, tensor, torch

POOLS = {"max": nf.GlobalMaxPool1D, "mean": nf.GlobalAvgPool1D}
pools = pytest.mark.parametrize("kind", POOLS)

MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], np.float64)


def of_torch(kind, x, mask):
    there = torch.tensor(mask != 0)[..., None]
    if kind == "mean":
        return torch.where(there, x, 0.0).sum(1) / there.sum(1).clamp(min=1)
    return torch.where(there.any(1), torch.where(there, x, -np.inf).amax(1), 0.0)


@pools
@dtypes
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (5, 13, 37), (2, 67, 8)], ids=str)
def test_layer_is_that_of_torch(any_backend, rng, kind, dtype, shape):
    """What is padding is no number; of several sequences the first one is nothing else."""
    n, t, c = shape
    mask = (rng.random((n, t)) < 0.5).astype(float)
    mask[0], mask[-1, -1] = 0, 1
    x, dy = rng.standard_normal(shape), rng.standard_normal((n, c))
    x[mask == 0] = np.nan
    results = run_layer(POOLS[kind](), any_backend, x, dy, dtype, mask)
    tx = tensor(x, dtype)
    ty = of_torch(kind, tx, mask)
    ty.backward(tensor(dy, dtype, grad=False))
    forward, gradient = DTYPES[dtype]
    close(results["y"], ty, forward, "y")
    close(results["dx"], tx.grad, gradient, "dx")
    assert n == 1 or not results["y"][0].any()


@pools
def test_without_a_mask_all_steps_are_there(any_backend, rng, kind):
    x, dy = rng.standard_normal((3, 7, 5)), rng.standard_normal((3, 5))
    plain = run_layer(POOLS[kind](), any_backend, x, dy)
    masked = run_layer(POOLS[kind](), any_backend, x, dy, mask=np.ones((3, 7)))
    for name, value in plain.items():
        close(masked[name], value, 1e-12, name)


def test_of_equal_steps_the_first_one_that_is_there_gets_the_gradient(any_backend):
    x = np.array([[3.0, 3.0, 1.0, 3.0], [np.nan, 5.0, np.nan, np.nan], [-np.inf] * 4])[..., None]
    mask = np.array([[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]], float)
    results = run_layer(nf.GlobalMaxPool1D(), any_backend, x, np.array([[2.0], [3.0], [4.0]]), mask=mask)
    np.testing.assert_array_equal(results["y"][:, 0], [3.0, np.nan, -np.inf])
    np.testing.assert_array_equal(results["dx"][..., 0], [[0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 4, 0]])


@pools
def test_gradients(backend, rng, kind):
    layers = [Padding(MASK), nf.Dense(3, "tanh"), POOLS[kind](), nf.Dense(1)]
    x, y = rng.standard_normal((5, 4, 2)), rng.standard_normal((5, 1))
    chain = Chain(layers, x, y, "mean_squared_error", backend)
    chain.step()
    nf.testing.check_gradient(chain.loss_at, chain.gradient(), chain.params.vector(), name=kind)


@pools
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_within_a_block(backend, rng, kind, checkpoint):
    """Where activations are computed again, the mask still is there."""
    inner = nf.Chain([nf.Dense(3, "tanh"), POOLS[kind](), nf.Dense(2, "tanh")], checkpoint=checkpoint)
    x, y = rng.standard_normal((5, 4, 2)), rng.standard_normal((5, 1))
    chain = Chain([Padding(MASK), inner, nf.Dense(1)], x, y, "mean_squared_error", backend)
    chain.step()
    nf.testing.check_gradient(chain.loss_at, chain.gradient(), chain.params.vector(), name=kind)


@pools
def test_the_mask_ends_there(kind):
    built = build_chain([nf.Embedding(5, 3, mask_zero=True), nf.Dense(4), POOLS[kind](), nf.Dense(2)], (6,))
    assert [node.out_mask for node in built] == [0, 0, None, None]
    assert built[2].masks == (0,)


# ---- models ------------------------------------------------------------------------------------------------
def both_pools():
    return nf.Parallel([pool() for pool in POOLS.values()])


def words(rng):
    """Whether word 3 is in a sentence; behind them are zeros, and the first one is empty."""
    x = rng.integers(1, 9, (60, 7))
    x[np.arange(7) >= rng.integers(2, 8, 60)[:, None]] = 0
    x[0] = 0
    return x, (x == 3).any(1).astype(np.int64)


def numbers(rng):
    """Whether the first feature's mean over the steps is positive; steps of -1 are padding, wherever they are."""
    x = rng.standard_normal((60, 7, 3)).astype(np.float32)
    there = rng.random((60, 7)) < 0.6
    y = (np.where(there, x[..., 0], 0.0).sum(1) > 0).astype(np.int64)
    x[~there] = -1.0
    return x, y


MODELS = {
    "embedding": (lambda: [nf.Embedding(9, 6, mask_zero=True), both_pools(), nf.Dense(2)], words),
    "masking": (lambda: [nf.Masking(-1.0), nf.Dense(6, "tanh"), both_pools(), nf.Dense(2)], numbers),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model(tmp_path, rng, name):
    """It trains natively as on NumPy, and what padding there is changes nothing, also when it is loaded again."""
    make, data = MODELS[name]
    x, y = data(rng)
    found = {}
    for device in ("numpy", "numba"):
        model = nf.Sequential(make())
        history = model.fit(
            x, y, loss="cross_entropy", optimizer=nf.Adam(0.03), epochs=20, batch_size=16, seed=1, verbose=0,
            device=device, precision="float64",
        )  # fmt: skip
        evaluated = model.evaluate(x, y, metrics=["accuracy"], device=device)
        found[device] = history["loss"], [evaluated["loss"]], model.predict(x, device=device)
        assert evaluated["accuracy"] > 0.85
    for ours, expected in zip(found["numba"], found["numpy"], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-8)
    model.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(nf.load(tmp_path / "m.safetensors").predict(x, device="numba"), found["numba"][2])
    longer = nf.Sequential(make()).build((9, *x.shape[2:]), dtype="float64")
    longer.set_weights(model.get_weights())
    more = np.pad(x, ((0, 0), (0, 2), *[(0, 0)] * (x.ndim - 2)), constant_values=0 if name == "embedding" else -1)
    np.testing.assert_allclose(longer.predict(more, device="numba"), found["numba"][2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_has_no_python_in_it(rng, name):
    make, data = MODELS[name]
    x, y = data(rng)
    chain = Chain(make(), x, y, "cross_entropy", nf.devices.get_backend("numba"))
    assert chain.plan.replay(len(x)).native
