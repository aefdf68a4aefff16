"""The weights of every layer of Keras's files: outputs must be those of Keras's model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.interop import keras as interop

pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ENDINGS = [".keras", ".weights.h5", ".h5"]


@pytest.fixture(scope="module")
def keras() -> Any:
    # It computes without compiling first
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    return pytest.importorskip("keras")


def predicted(keras: Any, model: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(x, training=False)))


def chain(keras: Any, shape: Any, *layers: Any) -> Any:
    """A model of Keras in which attention looks at its own input, with weights that are not those of the start."""
    x = start = keras.layers.Input(shape)
    for layer in layers:
        x = layer(x, x) if type(layer).__name__ == "MultiHeadAttention" else layer(x)
    made = keras.Model(start, x)
    rng = np.random.default_rng(1)
    made.set_weights([w + 0.3 * rng.random(w.shape).astype(w.dtype) for w in made.get_weights()])
    return made


def images(keras: Any) -> tuple[Any, nf.Sequential]:
    own = keras.layers
    theirs = chain(
        keras, (7, 6, 2),
        own.Conv2D(4, (3, 2), strides=2, padding="same", activation="relu"), own.BatchNormalization(),
        own.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), own.GroupNormalization(2),
        own.Conv2DTranspose(3, 3, strides=2, padding="same"), own.SpatialDropout2D(0.3),
        own.Conv2D(6, 2, groups=3, use_bias=False), own.MaxPooling2D(2),
        own.Flatten(), own.Dense(3),
    )  # fmt: skip
    ours = [
        nf.Conv2D(4, (3, 2), "relu", stride=2, padding="same"), nf.BatchNorm(eps=1e-3),
        nf.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), nf.GroupNorm(2, 1e-3),
        nf.Conv2DTranspose(3, 3, stride=2, padding="same"), nf.SpatialDropout(0.3),
        nf.Conv2D(6, 2, groups=3, bias=False), nf.MaxPool2D(), nf.Flatten(), nf.Dense(3),
    ]  # fmt: skip
    return theirs, nf.Sequential(ours).build((7, 6, 2))


def sequences(keras: Any) -> tuple[Any, nf.Sequential]:
    own, every = keras.layers, {"return_sequences": True}
    theirs = chain(
        keras, (6,),
        own.Embedding(5, 4), own.MultiHeadAttention(2, 3), own.Bidirectional(own.LSTM(3, **every)),
        own.GRU(4, name="mine", **every), own.GRU(4, reset_after=False, **every),
        own.Bidirectional(own.GRU(2, **every), merge_mode="sum", name="both"), own.SimpleRNN(3, **every),
        own.Conv1D(4, 2, padding="causal"), own.RMSNormalization(), own.LayerNormalization(),
        own.GlobalMaxPooling1D(), own.Dense(2),
    )  # fmt: skip
    ours = [
        nf.Embedding(5, 4), nf.MultiHeadAttention(2, 3), nf.Bidirectional(nf.LSTM(3, **every)),
        nf.GRU(4, **every), nf.GRU(4, reset_after=False, **every), nf.Bidirectional(nf.GRU(2, **every), "sum"),
        nf.SimpleRNN(3, **every), nf.Conv1D(4, 2, padding="causal"), nf.RMSNorm(), nf.LayerNorm(1e-3),
        nf.GlobalMaxPool1D(), nf.Dense(2),
    ]  # fmt: skip
    return theirs, nf.Sequential(ours).build(6)


def masked(keras: Any) -> tuple[Any, nf.Sequential]:
    own = keras.layers
    theirs = chain(
        keras, (6,),
        own.Embedding(5, 4, mask_zero=True), own.LSTM(3, return_sequences=True, use_bias=False), own.GRU(2),
    )  # fmt: skip
    ours = [nf.Embedding(5, 4, mask_zero=True), nf.LSTM(3, return_sequences=True, bias=False), nf.GRU(2)]
    return theirs, nf.Sequential(ours).build(6)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("make", [images, sequences, masked])
def test_outputs_are_those_of_keras(tmp_path: Path, keras: Any, make: Any, ending: str) -> None:
    theirs, model = make(keras)
    path = tmp_path / f"m{ending}"
    if ending == ".weights.h5":
        theirs.save_weights(path)
    else:
        theirs.save(path)
    interop.load_weights(model, path)
    rng = np.random.default_rng(0)
    if model.takes_indices:
        x: Any = rng.integers(0, 5, (3, *model.in_shape))
    else:
        x = rng.standard_normal((3, *model.in_shape)).astype(np.float32)
    expected = predicted(keras, theirs, x)
    np.testing.assert_allclose(model.predict(x, device="numpy"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", ENDINGS)
def test_attention_of_another_sequence_and_models_in_models(tmp_path: Path, keras: Any, ending: str) -> None:
    own = keras.layers
    start = own.Input((4, 6))
    inner = keras.Sequential([own.Dense(5), keras.Sequential([own.Dense(3)])], name="inner")
    theirs = keras.Model(start, own.MultiHeadAttention(2, 2, output_shape=4)(start, inner(start)))
    rng = np.random.default_rng(1)
    theirs.set_weights([w + 0.3 * rng.random(w.shape).astype(w.dtype) for w in theirs.get_weights()])
    path = tmp_path / f"m{ending}"
    if ending == ".weights.h5":
        theirs.save_weights(path)
    else:
        theirs.save(path)
    x = nf.Input((4, 6))
    z = nf.Chain([nf.Dense(5), nf.Dense(3)])(x)
    model = nf.Model(x, nf.CrossAttention(2, 2, out_features=4)(x, z)).build()
    interop.load_weights(model, path)
    rows = rng.standard_normal((3, 4, 6)).astype(np.float32)
    expected = predicted(keras, theirs, rows)
    np.testing.assert_allclose(model.predict(rows, device="numpy"), expected, rtol=1e-4, atol=1e-5)


def test_layers_of_other_kinds_do_not_fit(tmp_path: Path, keras: Any) -> None:
    """An embedding and a dense layer of the same shape are told apart where a file says what they are."""
    theirs = chain(keras, (6,), keras.layers.Embedding(5, 4))
    theirs.save_weights(tmp_path / "m.weights.h5")
    model = nf.Sequential([nf.Dense(4, bias=False)]).build(5)
    with pytest.raises(ValueError, match=r"'layers/embedding' of .* layer dense.*: of the kind embedding, not a Dense"):
        interop.load_weights(model, tmp_path / "m.weights.h5")
    gru = nf.Sequential([nf.Embedding(5, 4), nf.GRU(3, reset_after=False)]).build(6, seed=0)
    before = gru.get_weights()
    theirs = chain(keras, (6,), keras.layers.Embedding(5, 4), keras.layers.GRU(3))
    theirs.save(tmp_path / "m.h5")
    with pytest.raises(ValueError, match=r"does not fit layer gru.*unknown \['c'\]"):
        interop.load_weights(gru, tmp_path / "m.h5")
    for name, value in gru.get_weights().items():
        np.testing.assert_array_equal(value, before[name])
