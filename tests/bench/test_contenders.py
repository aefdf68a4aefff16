"""Every contender computes what nnfast does, on all workloads scaled down; each library in a process of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import nnfast as nf
from nnfast.bench.contenders import DEVICES, ENTRIES, PEERS
from nnfast.bench.measure import LOSS_TOLERANCE, ROUNDED_TOLERANCE
from nnfast.bench.process import Remote
from nnfast.bench.workloads import WORKLOADS, find

from .helpers import Probe, small

# Compiling takes seconds for each network, so that one with everything must do
COMPILED = ("mnist-dropout", "mnist-last-smaller", "mnist-predict-65536")


def _start(name: str) -> Remote:
    entry = ENTRIES[name]
    if (reason := entry.missing()) is not None:
        pytest.skip(reason)
    if entry.gpu:
        reason = nf.available_devices().get("cuda", None if "cuda:0" in nf.available_devices() else "no device")
        if reason is not None:
            pytest.skip(reason)
    remote = Remote(name, Probe, name, threads=1)
    remote.receive()
    return remote


@pytest.fixture(scope="module")
def reference():
    remote = _start("nnfast-numpy")
    yield remote
    remote.close()


@pytest.fixture(scope="module", params=[*ENTRIES])
def contender(request):
    if request.param == "torch-compile":
        pytest.importorskip("torch")
    remote = _start(request.param)
    yield remote
    remote.close()


@pytest.fixture
def able(contender):
    """A workload, scaled down, if the contender can express it."""

    def choose(name: str, **changes: object):
        work = small(name, **changes)
        if (reason := ENTRIES[contender.name].unable(work)) is not None:
            pytest.skip(reason)
        if contender.name == "torch-compile" and name not in COMPILED:
            pytest.skip("compiling takes long; other networks are enough")
        return work

    return choose


@pytest.mark.parametrize("name", [name for name, w in WORKLOADS.items() if not w.predict])
def test_losses(contender, reference, able, name):
    work = able(name).without_chance()
    expected = np.array(reference.call("losses", work, 10))
    found = np.array(contender.call("losses", work, 10))
    bound = 1e-10 if work.dtype == "float64" else 1e-5 if ENTRIES[contender.name].gpu else 2e-6
    bound = ROUNDED_TOLERANCE.get(work.precision, bound)
    np.testing.assert_allclose(found, expected, rtol=bound)
    assert abs(expected[-1] / expected[0] - 1) > 1e-3, "a contender that does not train must not pass"


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_what_is_compiled(reference, monkeypatch, name):
    """Without the compiler, which takes long."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    work = small(name)
    assert ENTRIES["torch-compile"].unable(work) is None
    found = Probe("torch-compile").losses(work, 4)
    np.testing.assert_allclose(found, reference.call("losses", work, 4), rtol=2e-6)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_peers_in_bfloat16_round_and_train(reference, name):
    """As they do it on a GPU, which only these workloads are for."""
    work = small("mnist-bf16").without_chance()
    exact = np.array(reference.call("losses", replace(work, precision=""), 10))
    remote = _start(name)
    try:
        found = np.array(remote.call("losses", work, 10))
    finally:
        remote.close()
    assert np.abs(found / exact - 1).max() > 1e-5
    np.testing.assert_allclose(found, exact, rtol=ROUNDED_TOLERANCE["bf16"] / 4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mnist", {"lr": 1.1e-3}),
        ("mnist-momentum", {"momentum": 0.0}),
        ("mnist-momentum", {"lr": 5e-3}),
        ("mnist-momentum", {"momentum": 0.8}),
        ("mnist", {"activation": "silu"}),
    ],
)
def test_the_check_tells_networks_apart(reference, name, changes):
    """Ten steps at full size differ by more than is allowed where something is wrong."""
    work = find(name)
    right, wrong = (np.array(reference.call("losses", w, 10)) for w in (work, replace(work, **changes)))
    assert np.abs(wrong / right - 1).max() > LOSS_TOLERANCE


@pytest.mark.parametrize("name", ["xor", "tiny", "mnist-last-smaller"])
def test_mean_loss_of_an_epoch(contender, reference, able, name):
    """With weights that hardly move, it is that of all rows, in whatever order, a smaller last batch included."""
    work = able(name, lr=1e-12)
    losses = np.array(reference.call("losses", work, work.steps))
    rows = np.minimum(work.batch, work.rows - work.batch * np.arange(work.steps))
    found = contender.call("epochs", work, 3)
    np.testing.assert_allclose(found, [np.average(losses, weights=rows)] * 3, rtol=1e-5)


@pytest.mark.parametrize("name", ["xor", "tiny"])
def test_epochs_of_one_batch_are_steps(contender, reference, able, name):
    work = able(name, lr=1e-2)
    assert work.steps == 1
    found = contender.call("epochs", work, 10)
    np.testing.assert_allclose(found, reference.call("losses", work, 10), rtol=1e-4)


def test_epochs_have_orders_of_their_own(contender, able):
    """The same rows in other batches: Adam's steps differ, so that the losses do."""
    work = able("mnist-last-smaller")
    in_order = np.array(contender.call("losses", work, work.steps * 2)).reshape(2, -1)
    rows = np.minimum(work.batch, work.rows - work.batch * np.arange(work.steps))
    found = contender.call("epochs", work, 2)
    means = np.average(in_order, axis=1, weights=rows)
    assert np.all(found != means)
    np.testing.assert_allclose(found, means, rtol=0.2)


def test_dropout_drops(contender, able):
    work = able("mnist-dropout", lr=1e-12)
    losses = contender.call("epochs", work, 3)
    assert len(set(losses)) == 3, "each epoch has masks of its own"
    plain = contender.call("losses", work.without_chance(), 1)[0]
    assert any(abs(loss / plain - 1) > 1e-4 for loss in losses)  # one of them may come close by chance


@pytest.mark.parametrize("name", ["mnist-predict-1", "mnist-predict-65536"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_predictions(contender, reference, able, name, activation):
    work = able(name, activation=activation)
    kind, expected = reference.call("predictions", work)
    assert kind == "logits"
    assert expected.shape == (work.predict, work.sizes[-1])
    kind, found = contender.call("predictions", work)
    if kind == "probabilities":
        expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_entries():
    assert set(DEVICES) == {"numpy", "numba", "cuda"}
    on_cpu = {"numpy", "scikit-learn", "torch", "torch-channels-last", "torch-compile", "jax", "onnxruntime"}
    on_gpu = {"torch-cuda", "torch-cuda-compile", "torch-cuda-max-autotune", "torch-cuda-graph", "jax-cuda"}
    assert {name for name, entry in PEERS.items() if not entry.gpu} == on_cpu
    assert {name for name, entry in PEERS.items() if entry.gpu} == on_gpu
    assert [name for name, entry in DEVICES.items() if entry.gpu] == ["cuda"]
    assert all(entry.name == name for name, entry in ENTRIES.items())


@pytest.mark.parametrize(
    ("name", "workload", "reason"),
    [
        ("scikit-learn", "gelu", "scikit-learn has no gelu"),
        ("scikit-learn", "mnist-dropout", "scikit-learn has no dropout"),
        ("onnxruntime", "mnist", "onnxruntime does not train"),
        ("onnxruntime", "mnist-predict-1", None),
        ("nnfast-numba", "mnist-dropout", None),
        ("nnfast-numba", "mnist-tf32", "nnfast-numba does not compute in tf32"),
        ("nnfast-numba", "mnist-bf16", "nnfast-numba does not compute in bf16"),
        ("nnfast-cuda", "mnist-tf32", None),
        ("torch-cuda-graph", "mnist-bf16", None),
        ("jax-cuda", "narrow-1048576-tf32", None),
        ("numpy", "lstm", "numpy is not used for lstm: it is for dense"),
        ("torch-compile", "gru", "torch-compile is not used for gru: it is for dense, images, sequences"),
        ("torch-channels-last", "mnist", "torch-channels-last is not used for mnist: it is for images"),
        ("torch-channels-last", "depthwise", None),
        ("jax", "gru", None),
    ],
)
def test_what_cannot_be_expressed(name, workload, reason):
    assert ENTRIES[name].unable(WORKLOADS[workload]) == reason


def test_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert PEERS["jax"].missing() == "jax, optax is not installed: pip install jax optax"
    assert PEERS["numpy"].missing() is None
