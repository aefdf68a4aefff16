"""The weights of Keras's files: outputs must be those of Keras's model."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.interop import keras as interop

h5py = pytest.importorskip("h5py")


def network(**changes: Any) -> nf.Sequential:
    return nf.Sequential(
        [
            nf.Dense(8, "relu"), nf.BatchNorm(eps=1e-3), nf.Dense(5, bias=False), nf.LayerNorm(1e-3), nf.Dropout(0.3),
            nf.Activation("tanh"), nf.Dense(8, "gelu"), nf.Dense(8), nf.Dense(changes.get("units", 3)),
        ]
    )  # fmt: skip


def arrays(dtype: str = "float32") -> list[tuple[str, list[np.ndarray]]]:
    """Layers by their kinds, and their weights in Keras's order."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.random(shape).astype(dtype)

    return [
        ("dense", [drawn(4, 8), drawn(8)]),
        ("batch_normalization", [drawn(8), drawn(8), drawn(8), drawn(8)]),
        ("dense", [drawn(8, 5)]),
        ("layer_normalization", [drawn(5), drawn(5)]),
        ("dense", [drawn(5, 8), drawn(8)]),
        ("dense", [drawn(8, 8), drawn(8)]),
        ("dense", [drawn(8, 3), drawn(3)]),
    ]


def write(path: Path, layers: list[tuple[str, list[np.ndarray]]]) -> Path:
    """A ``.weights.h5`` file, laid out as Keras 3 does, or a ``.keras`` file with it."""
    weights = path.parent / "inner.h5" if path.suffix == ".keras" else path
    counts: dict[str, int] = {}
    with h5py.File(weights, "w") as file:
        for kind, values in layers:
            number = counts.get(kind, 0)
            counts[kind] = number + 1
            group = file.create_group(f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars")
            for i, value in enumerate(values):
                group[str(i)] = value
        file.create_group("layers/activation/vars")
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        file["optimizer/vars/0"] = np.zeros(3)
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.write(weights, "model.weights.h5")
        weights.unlink()
    return path


def write_older(path: Path, layers: list[tuple[str, list[np.ndarray]]]) -> Path:
    """An ``.h5`` file of Keras 2, where layers have names and an order."""
    names = {
        "dense": ["kernel:0", "bias:0"], "layer_normalization": ["gamma:0", "beta:0"],
        "batch_normalization": ["gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"],
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        own = [f"z{9 - i}_mine" for i in range(len(layers))] + ["dropout"]
        root.attrs["layer_names"] = [name.encode() for name in own]
        root.create_group("dropout").attrs["weight_names"] = []
        for name, (kind, values) in zip(own, layers, strict=False):
            group = root.create_group(name)
            inner = [f"{name}/{each}" for each in names[kind][: len(values)]]
            group.attrs["weight_names"] = [each.encode() for each in inner]
            for each, value in zip(inner, values, strict=True):
                group[each] = value
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(("name", "writer"), [("m.weights.h5", write), ("m.keras", write), ("m.h5", write_older)])
def test_each_format(tmp_path: Path, name: str, writer: Any, built: bool, dtype: str) -> None:
    layers = arrays(dtype)
    model = network()
    if built:
        model.build(4, dtype=dtype)
    nf.interop.keras.load_weights(model, writer(tmp_path / name, layers))
    assert model.dtype == np.dtype(dtype)
    weights = model.get_weights()
    for (_, values), owner in zip(layers, ("dense", "batchnorm", "dense_1", "layernorm", "dense_2"), strict=False):
        own = [value for key, value in weights.items() if key.rpartition(".")[0] == owner]
        for ours, theirs in zip(own, values, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(weights["dense_4.W"], layers[-1][1][0])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("ending", [".keras", ".weights.h5", ".h5"])
def test_outputs_are_those_of_keras(tmp_path: Path, ending: str) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")  # it computes without compiling first
    pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    own = keras.layers
    theirs = keras.Sequential(
        [
            own.Input((4,)), own.Dense(8, "relu"), own.BatchNormalization(), own.Dense(5, use_bias=False),
            own.LayerNormalization(), own.Dropout(0.3), own.Activation("tanh"), own.Dense(8, "gelu", name="mine"),
            own.Dense(8), own.Dense(3),
        ]
    )  # fmt: skip
    rng = np.random.default_rng(1)
    theirs.set_weights([w + rng.random(w.shape).astype(w.dtype) for w in theirs.get_weights()])
    path = tmp_path / f"m{ending}"
    if ending == ".weights.h5":
        theirs.save_weights(path)
    else:
        theirs.save(path)
    model = network()
    interop.load_weights(model, path)
    x = rng.standard_normal((11, 4)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(theirs(x, training=False))
    np.testing.assert_allclose(model.predict(x, device="numpy"), expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "m.weights.h5", arrays())
    model = network(units=4).build(4, seed=0)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"'layers/dense_4' of .*m\.weights\.h5 does not fit layer dense_4.*\(8, 3\)"):
        interop.load_weights(model, path)
    with pytest.raises(ValueError, match=r"the model has 1 layers with weights \(dense\), .* has 7"):
        interop.load_weights(nf.Sequential([nf.Dense(8)]), path)
    for name, value in model.get_weights().items():
        np.testing.assert_array_equal(value, before[name])


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        interop.load_weights(network(), tmp_path / "none.keras")
    for name in ("a.keras", "a.weights.h5"):
        (tmp_path / name).write_bytes(b"anything")
        with pytest.raises(ValueError, match=rf"{name} is no file of Keras's weights"):
            interop.load_weights(network(), tmp_path / name)
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"b\.keras is no file of Keras's weights"):
        interop.load_weights(network(), tmp_path / "b.keras")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(ValueError, match=r"empty\.h5 has no weights"):
        interop.load_weights(network(), tmp_path / "empty.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"nnfast\[keras\]"):
        interop.load_weights(network(), tmp_path / "a.keras")
