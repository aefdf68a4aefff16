"""Every layer with arguments that are not the defaults, and the shape of a row that it takes."""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import numpy as np

import nnfast as nf
from nnfast.layers import Layer

STEPS, IMAGE = (6, 4), (7, 6, 4)

# A list of shapes for a layer of several inputs
SAMPLES: list[tuple[Layer, Any]] = [
    (nf.Dense(3), (4,)),
    (nf.Dense(3, "leaky_relu(0.2)", bias=False, in_features=4, name="first"), (4,)),
    (nf.Dense(3, "relu", initializer="he_normal", bias_initializer="ones"), (4,)),
    (nf.Dense(3, initializer=nf.initializers.Normal(0.1), bias_initializer={"name": "constant", "value": 0.5}), (2, 4)),
    (nf.Activation("elu(0.5)"), (4,)),
    (nf.Dropout(0.25, name="drop"), (4,)),
    (nf.SpatialDropout(0.25, name="drop"), IMAGE),
    (nf.Flatten(name="flat"), IMAGE),
    (nf.LayerNorm(1e-3), (4,)),
    (nf.RMSNorm(1e-3, name="rms"), STEPS),
    (nf.BatchNorm(0.2, 1e-4, name="bn"), (4,)),
    (nf.BatchNorm(0.2, 1e-4), IMAGE),
    (nf.GroupNorm(2, 1e-3, name="gn"), IMAGE),
    (nf.GroupNorm(2), (4,)),
    # Images
    (nf.Conv2D(6, (3, 2), "gelu", stride=(2, 1), padding="same", dilation=(1, 2), groups=2), IMAGE),
    (nf.Conv2D(3, 3, padding=((0, 1), (2, 0)), bias=False, initializer="he_normal", name="conv"), IMAGE),
    (nf.Conv1D(3, 3, "relu", padding="causal", dilation=2, bias_initializer="ones"), STEPS),
    (nf.Conv1D(4, 2, stride=2, padding=(1, 0), groups=4), STEPS),
    (nf.DepthwiseConv2D(3, "silu", depth_multiplier=2, stride=2, padding=1, dilation=2, bias=False), IMAGE),
    (nf.Conv2DTranspose(6, (3, 2), "tanh", stride=2, padding="same", groups=2), IMAGE),
    (nf.Conv2DTranspose(2, 1, stride=3), IMAGE),
    (nf.Conv2DTranspose(3, 3, stride=2, padding=((1, 0), 1), output_padding=(1, 0), dilation=2, bias=False), IMAGE),
    (nf.MaxPool2D((3, 2), 2, "same"), IMAGE),
    (nf.MaxPool1D(3, 1, (2, 1), name="pool"), STEPS),
    (nf.AvgPool2D(3, (2, 1), ((1, 0), 2), count_padding=True), IMAGE),
    (nf.AvgPool2D(3, 2, "same"), IMAGE),
    (nf.AvgPool1D(2, 3, 1), STEPS),
    (nf.GlobalAvgPool1D(name="g"), STEPS),
    (nf.GlobalAvgPool2D(name="g"), IMAGE),
    (nf.GlobalMaxPool1D(name="g"), STEPS),
    (nf.GlobalMaxPool2D(name="g"), IMAGE),
    (nf.Reshape((-1, 8), name="r"), STEPS),
    (nf.ZeroPadding1D((1, 2)), STEPS),
    (nf.ZeroPadding2D((1, (0, 2))), IMAGE),
    (nf.UpSampling1D(3, name="up"), STEPS),
    (nf.UpSampling2D((1, 2)), IMAGE),
    (nf.UpSampling1D(2, "linear"), STEPS),
    (nf.UpSampling2D((3, 2), "bilinear", name="up"), IMAGE),
    # Sequences
    (nf.SimpleRNN(3, "relu", return_sequences=True, reverse=True, initializer="he_normal"), STEPS),
    (nf.GRU(3, reset_after=False, bias_initializer="ones", name="gru"), STEPS),
    (nf.GRU(3, bias=False, stateful=True, recurrent_initializer="glorot_normal"), STEPS),
    (nf.LSTM(3, return_sequences=True, unit_forget_bias=False), STEPS),
    (nf.Bidirectional(nf.LSTM(3, reverse=True), name="both"), STEPS),
    (nf.Bidirectional(nf.GRU(3, return_sequences=True), "ave"), STEPS),
    (nf.Embedding(5, 3, mask_zero=True, initializer="normal"), (6,)),
    (nf.Masking(-1.0, name="m"), STEPS),
    (nf.PositionalEmbedding("learned", 8, initializer="normal"), STEPS),
    (nf.PositionalEmbedding("sinusoidal", name="p"), STEPS),
    (nf.MultiHeadAttention(2, 4, causal=True, rotary=50.0, out_features=3, bias_initializer="ones"), STEPS),
    (nf.MultiHeadAttention(4, bias=False, initializer="he_normal"), STEPS),
    (nf.CrossAttention(2, 4, bias=False, out_features=3, name="cross"), [STEPS, (3, 2)]),
    (nf.Add(name="sum"), [STEPS, STEPS, STEPS]),
    (nf.Concat(name="side"), [STEPS, (6, 2)]),
    # Blocks
    (nf.Chain([nf.Dense(3), nf.LayerNorm()], checkpoint=True, name="c"), STEPS),
    (nf.Residual([nf.Conv2D(2, 3, padding="same"), nf.BatchNorm()], nf.Conv2D(2, 1), name="res"), IMAGE),
    (nf.Parallel([nf.Dense(3), [nf.LSTM(2, return_sequences=True), nf.Dense(3, "tanh")]], "add"), STEPS),
    (nf.TransformerBlock(2, 5, activation="relu", causal=True, rotary=True, norm="rms", dropout=0.1), STEPS),
    (nf.TransformerBlock(2, bias=False, checkpoint=True), STEPS),
]  # fmt: skip

sample_ids = [repr(layer) for layer, _ in SAMPLES]


def result_of(layer: Layer, shape: Any, x: Any) -> Any:
    """What a layer gives on linear maps of `x`, one row of numbers, to the shapes that it takes."""
    shapes = shape if isinstance(shape, list) else [shape]
    return layer(*(nf.Reshape(own)(nf.Dense(prod(own))(x)) for own in shapes))


def model_of(layer: Layer, shape: Any) -> nf.Model:
    """A built model of one layer; one of several inputs gets a linear map of the input as each."""
    if isinstance(shape, list):
        x = nf.Input(3)
        return nf.Model(x, result_of(layer, shape, x)).build(seed=0)
    return nf.Sequential([layer]).build(shape, seed=0)


def randomised(model: Any) -> Any:
    """Weights that are not those of the start, such as biases of zero; a table that is no weight stays."""
    rng = np.random.default_rng(1)
    tables = {f"{b.name}.P" for b in model.built if getattr(b.layer, "kind", "") == "sinusoidal"}
    drawn = {k: v + 0.3 * rng.random(v.shape) * (k not in tables) for k, v in model.get_weights().items()}
    model.set_weights(drawn)
    return model


def is_stateful(layer: Layer) -> bool:
    """Whether a layer carries a state from batch to batch."""
    return bool(getattr(getattr(layer, "layer", layer), "stateful", False))


def model_of_all() -> nf.Model:
    """All samples side by side in one model, but for those with a state; on six indices."""
    words = nf.Input(6)
    x = nf.Flatten()(nf.Embedding(5, 3)(words))
    ends = []
    for layer, shape in SAMPLES:
        if not is_stateful(layer):
            y = layer(words) if isinstance(layer, nf.Embedding) else result_of(_again(layer), shape, x)
            ends.append(nf.Dense(2)(nf.Flatten()(y)))
    return nf.Model(words, nf.Add()(ends)).build(seed=0)


def _again(layer: Layer) -> Layer:
    """The same description without the name, of which a model takes each but once."""
    again = copy.deepcopy(layer)
    again.name = None
    return again
