"""Model files: what is saved comes back bit for bit, appears whole or not at all, and goes on training."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend

from .helpers import assert_same, fit, network, problem


# ---- there and back ------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "optimizer", [nf.NAdam(0.01, ema=0.9), nf.SGD(0.1, momentum=0.9, clip_norm=1.0), nf.Lion(1e-3)], ids=repr
)
def test_every_bit_comes_back_and_training_goes_on(
    optimizer: nf.Optimizer, dtype: str, backend: Backend, tmp_path: Path
) -> None:
    X, y = problem()
    common = {"optimizer": optimizer, "device": backend, "dtype": dtype}
    model, straight = network(norm=True, dropout=0.3), network(norm=True, dropout=0.3)
    fit(model, X, y, epochs=2, **common)
    model.extra = {"classes": ["a", "b", "ü"], "mean": [0.1, 1e-300]}
    model.save(tmp_path / "model.safetensors")
    loaded = nf.load(tmp_path / "model.safetensors", device=backend)
    assert_same(loaded, model)
    assert loaded.training_state == model.training_state
    assert loaded.extra == model.extra
    assert repr(loaded) == repr(model)
    assert repr(loaded.loss) == repr(model.loss)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.evaluate(X, y) == model.evaluate(X, y)
    # Training goes on as if there had been no file; seed, loss and optimizer are in it
    loaded.fit(X, y, epochs=2, batch_size=8, device=backend, dtype=dtype, verbose=0)
    fit(straight, X, y, epochs=4, **common)
    assert_same(loaded, straight)


def test_all_layers_and_losses(tmp_path: Path) -> None:
    layers: list[nf.Layer] = [
        nf.Dense(5, nf.activations.get("leaky_relu"), initializer="orthogonal", name="first"),
        nf.Dense(5, "selu", bias=False, initializer={"name": "normal", "std": 0.25}),
        nf.LayerNorm(eps=1e-3),
        nf.Activation("gelu"),
        nf.BatchNorm(momentum=0.2),
        nf.Dropout(0.125),
        nf.Flatten(),
        nf.Dense(4),
    ]
    for loss in (nf.Huber(delta=0.5), nf.CrossEntropy(label_smoothing=0.1), nf.Poisson(), nf.Hinge()):
        model = nf.Sequential(layers).build((2, 3), seed=0)
        model.loss = loss
        model.save(tmp_path / "model.safetensors")
        loaded = nf.load(tmp_path / "model.safetensors")
        assert_same(loaded, model)
        assert [repr(layer) for layer in loaded.layers] == [repr(layer) for layer in layers]
        assert [b.name for b in loaded.built] == [b.name for b in model.built]
        assert repr(loaded.loss) == repr(loss)


def test_the_file_is_the_same_for_the_same_model(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = network()
        fit(model, *problem(), device="numpy")
        model.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_tool_can_read_the_weights(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    model = network().build(4, seed=0)
    model.save(tmp_path / "model.safetensors")
    for name, value in load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(value, model.get_weights()[name])


class Scale(nf.Layer):
    """A layer of the user's own."""

    def __init__(self, factor: float = 1.0, *, name: str | None = None) -> None:
        self.factor, self.name = factor, name

    def forward(self, bk: Any, x: Any, y: Any) -> None:
        y[...] = self.factor * x

    def backward(self, bk: Any, dy: Any, dx: Any) -> None:
        if dx is not None:
            dx[...] = self.factor * dy


class Quartic(nf.Loss):
    """A loss of the user's own."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def value(self, y_pred: Any, y_true: Any) -> Any:
        return self.scale * (y_pred - y_true) ** 4

    def gradient(self, y_pred: Any, y_true: Any) -> Any:
        return 4 * self.scale * (y_pred - y_true) ** 3

    def config(self) -> dict[str, Any]:
        return {"scale": self.scale}


def test_layers_and_losses_of_the_users_own(backend: Backend, tmp_path: Path) -> None:
    X, _ = problem()
    path = tmp_path / "model.safetensors"
    model = nf.Sequential([nf.Dense(3, "tanh"), Scale(0.5), nf.Dense(1)])
    fit(model, X, X[:, 0], loss=Quartic(0.25), device=backend, dtype="float64")
    model.save(path)
    for custom, missing in [(None, "Scale"), ({"Scale": Scale}, "Quartic"), ({"Quartic": Quartic}, "Scale")]:
        with pytest.raises(nf.CheckpointError, match=f"'{missing}'.*custom="):
            nf.load(path, custom=custom)
    loaded = nf.load(path, custom={"Scale": Scale, "Quartic": Quartic})
    assert_same(loaded, model)
    assert loaded.loss is not None
    assert loaded.loss.config() == {"scale": 0.25}
    for each in (model, loaded):
        each.fit(X, X[:, 0], batch_size=8, device=backend, dtype="float64", verbose=0)
    assert_same(loaded, model)


def test_optimizer_and_schedule_of_the_users_own_must_be_given_again(tmp_path: Path) -> None:
    class Mine(nf.Optimizer):
        def step(self, bk: Any, param: Any, grad: Any, slots: Any, state: Any) -> None:
            param -= 0.01 * grad

    X, y = problem()
    path = tmp_path / "model.safetensors"
    for optimizer, message in [(Mine(), "unknown optimizer 'Mine'"), (nf.SGD(lambda step: 0.1), "pass it again")]:
        model = network()
        fit(model, X, y, optimizer=optimizer, device="numpy")
        model.save(path)
        with pytest.raises(ValueError, match=message):
            nf.load(path).fit(X, y, device="numpy", verbose=0)
        again = nf.load(path)
        fit(again, X, y, optimizer=optimizer, device="numpy")
        fit(model, X, y, optimizer=optimizer, device="numpy")
        assert_same(again, model)


# ---- whole or not at all -------------------------------------------------------------------------------
def _fail(*_: Any, **__: Any) -> None:
    raise OSError(errno.EIO, "the disk is broken")


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_write_that_fails(call: str, there_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    old, new = network().build(4, seed=0), network().build(4, seed=1)
    if there_before:
        old.save(path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        if call == "write":
            patched.setattr("safetensors.numpy.save_file", _fail)
        else:
            patched.setattr(os, call, _fail)
            patched.setattr(Path, "replace", lambda self, target: os.replace(self, target))
        with pytest.raises(OSError, match="the disk is broken"):
            new.save(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    new.save(path)
    assert_same(nf.load(path), new)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    old = network().build(4, seed=0)
    old.save(path)
    script = """
        import resource, sys
        import nnfast as nf
        model = nf.Sequential([nf.Dense(300, in_features=300)]).build()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # 90,300 parameters need more
        try:
            model.save(sys.argv[1])
        except OSError as error:
            print("OSError:", error)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.stdout.startswith("OSError: "), done.stderr
    assert_same(nf.load(path), old)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda folder: folder / "missing" / "m.safetensors", FileNotFoundError),
        (lambda folder: folder, IsADirectoryError),
    ],
)
def test_places_that_cannot_be_written(make: Callable[[Path], Path], error: type[OSError], tmp_path: Path) -> None:
    with pytest.raises(error, match="cannot write"):
        network().build(4).save(make(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_json_is_not_saved(tmp_path: Path) -> None:
    model = network().build(4)
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for extra in ({"model": model}, {"nan": float("nan")}, {"deep": deep}):
        with pytest.raises(TypeError, match="JSON"):
            model.save(tmp_path / "m.safetensors", extra)
    with pytest.raises(nf.NotBuiltError):
        network().save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
    model.save(tmp_path / "m.safetensors", {"given": 1})
    assert nf.load(tmp_path / "m.safetensors").extra == json.loads('{"given": 1}')


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "m.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no model file"):
            nf.load(path)
