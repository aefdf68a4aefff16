"""Every layer in a file and back: the same description, the same weights, the same predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from tests.layer_samples import SAMPLES, model_of, model_of_all, randomised, sample_ids


def there_and_back(model: Any, path: Path) -> Any:
    """The model as a file gives it, checked against the one that was written."""
    model.save(path)
    again = nf.load(path)
    assert type(again) is type(model)
    assert repr(again) == repr(model)
    assert again.in_shape == model.in_shape
    assert [built.name for built in again.built] == [built.name for built in model.built]
    before, after = model.get_weights(), again.get_weights()
    assert list(after) == list(before)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    rng = np.random.default_rng(0)
    if model.takes_indices:
        x = rng.integers(0, 5, (3, *model.in_shape))
    else:
        x = rng.standard_normal((3, *model.in_shape)).astype(np.float32)
    np.testing.assert_array_equal(again.predict(x, device="numpy"), model.predict(x, device="numpy"))
    return again


@pytest.mark.parametrize(("layer", "shape"), SAMPLES, ids=sample_ids)
def test_each_layer(tmp_path: Path, layer: Any, shape: Any) -> None:
    there_and_back(randomised(model_of(layer, shape)), tmp_path / "m.safetensors")


def test_all_of_them_in_one_graph(tmp_path: Path) -> None:
    there_and_back(randomised(model_of_all()), tmp_path / "m.safetensors")


def test_blocks_in_blocks_and_shared_layers(tmp_path: Path) -> None:
    shared = nf.Dense(4, "tanh", name="shared")
    inner = nf.Residual(
        [
            nf.LayerNorm(),
            nf.Parallel([nf.Bidirectional(nf.GRU(2, return_sequences=True)), nf.Chain([nf.Dense(4)])], "add"),
        ],
        [nf.Conv1D(4, 3, padding="same"), nf.RMSNorm()],
        checkpoint=True,
    )
    x = nf.Input((5, 4))
    y = nf.Chain([inner, nf.TransformerBlock(2, 3)], name="both")(shared(x))
    model = nf.Model(x, nf.CrossAttention(2)(shared(y), x))
    again = there_and_back(randomised(model.build(seed=0)), tmp_path / "m.safetensors")
    assert [built.owner for built in again.built] == [built.owner for built in model.built]
    assert any(built.segment for built in again.built)


def test_a_layer_without_a_name_at_two_places(tmp_path: Path) -> None:
    shared, x = nf.Dense(4, "tanh"), nf.Input(4)
    model = nf.Model(x, nf.Dense(2)(shared(shared(x))))
    again = there_and_back(randomised(model.build(seed=0)), tmp_path / "m.safetensors")
    assert [built.owner for built in again.built] == [0, 0, 2]


def test_training_goes_on(tmp_path: Path) -> None:
    """The optimizer's state is that of all layers, and running statistics too."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((16, 5, 5, 2)), rng.integers(0, 2, 16)
    layers = [
        nf.Conv2D(4, 3, "relu"), nf.BatchNorm(), nf.MaxPool2D(2, 1), nf.Reshape((4, 4)), nf.LSTM(3),
        nf.Dense(2),
    ]  # fmt: skip
    options = {"loss": "cross_entropy", "epochs": 2, "device": "numpy", "verbose": 0, "batch_size": 8}
    model = nf.Sequential(layers)
    model.fit(X, y, optimizer="adam", seed=0, **options)
    model.save(tmp_path / "m.safetensors")
    again = nf.load(tmp_path / "m.safetensors")
    losses = [each.fit(X, y, **options)["loss"] for each in (model, again)]
    assert losses[0] == losses[1]
    for name, value in model.get_weights().items():
        np.testing.assert_array_equal(again.get_weights()[name], value, err_msg=name)
