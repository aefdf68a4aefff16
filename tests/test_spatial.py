"""Layers of images and sequences: gradients, parity, replay and allocations; shapes; descriptions; errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnfast as nf
from nnfast import layers
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.layers.graph import build_chain
from nnfast.testing import check_layer
from nnfast.window import Window

# ---- gradients, parity, replay -----------------------------------------------------------------------------
CASES = [
    (nf.Conv2D(3, 3), (4, 5, 2)),
    (nf.Conv2D(3, (2, 3), "tanh", stride=(2, 1), padding="same"), (5, 4, 2)),
    (nf.Conv2D(2, 3, "gelu", padding=((2, 0), (1, 3)), bias=False), (3, 3, 1)),
    (nf.Conv2D(4, 2, "softmax", dilation=2, padding=1, groups=2), (4, 4, 4)),
    (nf.Conv2D(2, 1, "silu", stride=3), (4, 4, 3)),
    (nf.Conv1D(3, 3, "tanh"), (6, 2)),
    (nf.Conv1D(3, 2, "gelu", padding="causal", dilation=2), (5, 2)),
    (nf.Conv1D(4, 3, padding=(2, 1), stride=2, groups=2), (5, 2)),
    (nf.DepthwiseConv2D(3, "tanh", padding="same"), (4, 3, 3)),
    (nf.DepthwiseConv2D((1, 2), "gelu", depth_multiplier=2, stride=2), (3, 4, 2)),
    (nf.Conv2DTranspose(2, 3), (2, 3, 2)),
    (nf.Conv2DTranspose(2, 3, "tanh", stride=2, padding="same"), (2, 2, 3)),
    (nf.Conv2DTranspose(2, 2, "gelu", stride=3, bias=False), (2, 2, 2)),
    (nf.Conv2DTranspose(4, (3, 2), "softmax", stride=2, padding=1, output_padding=(1, 0), groups=2), (2, 3, 4)),
    (nf.MaxPool2D(), (4, 4, 3)),
    (nf.MaxPool2D(3, 2, "same"), (5, 4, 2)),
    (nf.MaxPool2D((2, 1), (1, 3), ((1, 0), (0, 0))), (4, 5, 2)),
    (nf.MaxPool1D(3, 1), (6, 3)),
    (nf.AvgPool2D(), (5, 4, 3)),
    (nf.AvgPool2D(3, 2, 1), (5, 4, 2)),
    (nf.AvgPool2D(3, 1, "same", count_padding=True), (4, 3, 2)),
    (nf.AvgPool1D(2, 3), (7, 2)),
    (nf.GlobalMaxPool2D(), (3, 4, 3)),
    (nf.GlobalMaxPool1D(), (5, 2)),
    (nf.GlobalAvgPool2D(), (3, 4, 3)),
    (nf.GlobalAvgPool1D(), (5, 2)),
    (nf.Reshape((2, -1)), (3, 4)),
    (nf.ZeroPadding2D(((1, 0), (2, 3))), (3, 2, 2)),
    (nf.ZeroPadding1D(2), (3, 2)),
    (nf.UpSampling2D((2, 3)), (2, 3, 2)),
    (nf.UpSampling1D(3), (4, 2)),
    (nf.UpSampling2D((2, 3), "bilinear"), (2, 3, 2)),
    (nf.UpSampling2D((1, 4), "bilinear"), (3, 1, 2)),
    (nf.UpSampling1D(3, "linear"), (4, 2)),
    (nf.GroupNorm(2), (3, 2, 6)),
    (nf.GroupNorm(1, 0.1), (5,)),
    (nf.GroupNorm(4), (6, 4)),
    (nf.SpatialDropout(0.5), (2, 3, 4)),
    (nf.SpatialDropout(0.3), (5, 3)),
    (nf.BatchNorm(), (3, 2, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), CASES, ids=str)
def test_layer(backend, layer, shape):
    check_layer(layer, shape, batch=3, backends=[backend])


def test_a_network_learns(backend):
    """Where a bright square is, from images: no single pixel tells."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    x = 0.1 * rng.standard_normal((200, 9, 9, 1)).astype("f4")
    for image, label in zip(x, labels, strict=True):
        i, j = rng.integers(0, 2, 2)
        image[i + 5 * (label // 2) :, j + 5 * (label % 2) :][:2, :2] += 1.0
    model = nf.Sequential(
        [
            nf.Conv2D(6, 3, "relu", padding="same"), nf.GroupNorm(2), nf.MaxPool2D(), nf.SpatialDropout(0.1),
            nf.Conv2D(8, 3, "relu", padding=1), nf.AvgPool2D(), nf.Flatten(), nf.Dense(4),
        ]
    )  # fmt: skip
    history = model.fit(
        x, labels, loss="cross_entropy", optimizer=nf.Adam(0.01), epochs=8, batch_size=20, device=backend, seed=1,
        verbose=0, metrics=["accuracy"],
    )  # fmt: skip
    assert history["loss"][-1] < 0.1 < history["loss"][0]
    assert model.predict(x[:0], device=backend).shape == (0, 4)


def test_dropped_channels(backend):
    x = 1.0 + np.random.default_rng(0).random((50, 4, 5, 6)).astype("f4")
    model = nf.Sequential([nf.SpatialDropout(0.4)])
    bound = build_chain(model.layers, x.shape[1:])[0].layer
    bound.state, out = backend.zeros(64, "f8"), np.empty_like(x)
    bound.state[:3] = 7.0
    bound.forward(backend, x, out)
    kept = (out != 0).reshape(50, 20, 6)
    assert (kept == kept[:, :1]).all()
    assert 0.5 < kept[:, 0].mean() < 0.7
    np.testing.assert_allclose(out[out != 0], x[out != 0] / 0.6, rtol=1e-6)


# ---- shapes ------------------------------------------------------------------------------------------------
SHAPES = [
    (nf.Conv2D(8, 3), (28, 30, 3), (26, 28, 8)),
    (nf.Conv2D(8, 5, stride=2, padding="same"), (7, 8, 3), (4, 4, 8)),
    (nf.Conv2D(8, (3, 1), dilation=3, padding=(2, 0)), (9, 4, 2), (7, 4, 8)),
    (nf.Conv1D(4, 3, padding="causal", stride=2), (9, 2), (5, 4)),
    (nf.DepthwiseConv2D(3, depth_multiplier=3), (5, 5, 2), (3, 3, 6)),
    (nf.Conv2DTranspose(4, 3, stride=2), (5, 4, 2), (11, 9, 4)),
    (nf.Conv2DTranspose(4, 2, stride=4), (5, 4, 2), (20, 16, 4)),  # as Keras has it
    (nf.Conv2DTranspose(4, 2, stride=4, output_padding=0), (5, 4, 2), (18, 14, 4)),
    (nf.Conv2DTranspose(4, 5, stride=3, padding="same"), (5, 4, 2), (15, 12, 4)),
    (nf.Conv2DTranspose(4, 4, stride=2, padding=1), (5, 4, 2), (10, 8, 4)),
    (nf.Conv2DTranspose(4, 3, stride=2, padding=1, output_padding=1), (5, 4, 2), (10, 8, 4)),
    (nf.MaxPool2D(), (7, 4, 2), (3, 2, 2)),
    (nf.MaxPool2D(2, padding="same"), (7, 4, 2), (4, 2, 2)),
    (nf.MaxPool1D(3, 1, (2, 0)), (7, 2), (7, 2)),
    (nf.AvgPool2D(3, 2, 1), (7, 8, 2), (4, 4, 2)),
    (nf.GlobalAvgPool2D(), (7, 8, 2), (2,)),
    (nf.GlobalMaxPool1D(), (7, 2), (2,)),
    (nf.Reshape((4, -1, 2)), (7, 8), (4, 7, 2)),
    (nf.Reshape((56,)), (7, 8), (56,)),
    (nf.ZeroPadding2D((1, (2, 3))), (4, 4, 1), (6, 9, 1)),
    (nf.ZeroPadding1D((0, 4)), (4, 1), (8, 1)),
    (nf.UpSampling2D(3), (2, 4, 5), (6, 12, 5)),
    (nf.UpSampling1D(2), (4, 5), (8, 5)),
]


@pytest.mark.parametrize(("layer", "shape", "expected"), SHAPES, ids=str)
def test_shapes(layer, shape, expected):
    assert build_chain([layer], shape)[0].out_shape == expected


def test_initial_weights_have_the_fans_of_a_group():
    def std(layer, shape):
        [spec] = [spec for spec in build_chain([layer], shape)[0].specs if spec.name == "W"]
        return float(spec.init(spec.shape, np.random.default_rng(0)).std())

    glorot = "glorot_normal"
    for layer, shape, fans in (
        (nf.Conv2D(64, 3, initializer=glorot), (9, 9, 32), 9 * (32 + 64)),
        (nf.Conv2D(64, 3, initializer=glorot, groups=4), (9, 9, 32), 9 * (8 + 16)),
        (nf.DepthwiseConv2D(5, initializer=glorot, depth_multiplier=3), (9, 9, 64), 25 * (1 + 3)),
        (nf.Conv1D(64, 7, initializer=glorot), (9, 32), 7 * (32 + 64)),
        (nf.Conv2DTranspose(16, 3, initializer=glorot), (9, 9, 64), 9 * (16 + 64)),
    ):
        assert std(layer, shape) == pytest.approx((2.0 / fans) ** 0.5, rel=0.05), layer
    for layer, shape, fan in (
        (nf.Conv2D(64, 3, "relu", initializer="he_normal"), (9, 9, 32), 9 * 32),
        (nf.Conv2D(64, 3, "relu", initializer="he_normal", groups=4), (9, 9, 32), 9 * 8),
        (nf.Conv2DTranspose(8, 3, "relu", initializer="he_normal"), (9, 9, 128), 9 * 128),
    ):
        assert std(layer, shape) == pytest.approx((2.0 / fan) ** 0.5, rel=0.05), layer


# ---- descriptions ------------------------------------------------------------------------------------------
DESCRIBED = [
    nf.Conv2D(4, (3, 1), "leaky_relu(0.2)", stride=2, padding=((1, 0), (2, 2)), dilation=(1, 2), groups=2, name="c"),
    nf.Conv2D(4, 3, initializer="he_normal", bias=False, padding="same"),
    nf.Conv1D(4, 3, padding="causal"),
    nf.DepthwiseConv2D(3, depth_multiplier=2, initializer=nf.initializers.Normal(0.1)),
    nf.Conv2DTranspose(4, 3, stride=(2, 3), output_padding=(0, 1), padding=1),
    nf.MaxPool2D((2, 3), 2, 1),
    nf.AvgPool2D(3, padding="same", count_padding=True),
    nf.MaxPool1D(2, 1, (1, 0)),
    nf.AvgPool1D(3),
    nf.GlobalAvgPool2D(name="head"),
    nf.GlobalAvgPool1D(),
    nf.GlobalMaxPool2D(),
    nf.GlobalMaxPool1D(),
    nf.Reshape((2, -1)),
    nf.ZeroPadding2D(((1, 2), (0, 1))),
    nf.ZeroPadding1D((0, 2)),
    nf.UpSampling2D((2, 1)),
    nf.UpSampling1D(3),
    nf.UpSampling2D((2, 1), "bilinear"),
    nf.UpSampling1D(2, "linear"),
    nf.GroupNorm(2, 1e-3),
    nf.SpatialDropout(0.2),
]


@pytest.mark.parametrize("layer", DESCRIBED, ids=repr)
def test_config_round_trip(layer):
    again = layers.TABLE[type(layer).__name__](**json.loads(json.dumps(layer.config())))
    assert again.config() == layer.config()
    assert repr(again) == repr(layer)
    shape = (6, 4) if "1D" in type(layer).__name__ else (6, 4, 4)
    first, second = (build_chain([one], shape)[0] for one in (layer, again))
    assert (first.out_shape, first.specs) == (second.out_shape, second.specs)


def test_repr_shows_what_was_given():
    assert repr(nf.Conv2D(4, (3, 3), stride=(1, 1))) == "Conv2D(filters=4, kernel_size=3)"
    assert repr(nf.Conv1D(4, 3, padding=(2, 2))) == "Conv1D(filters=4, kernel_size=3, padding=2)"
    assert repr(nf.MaxPool2D()) == "MaxPool2D()"


def test_a_model_is_saved(tmp_path):
    model = nf.Sequential(
        [
            nf.Conv2D(4, 3, "relu", padding="same"), nf.DepthwiseConv2D(3, padding=((1, 1), 0)), nf.GroupNorm(2),
            nf.MaxPool2D(), nf.Conv2DTranspose(2, 2, stride=2), nf.Reshape((-1, 2)), nf.Conv1D(3, 2),
            nf.GlobalAvgPool1D(),
        ]
    ).build((6, 8, 1), seed=3)  # fmt: skip
    x = np.random.default_rng(0).random((5, 6, 8, 1)).astype("f4")
    model.save(tmp_path / "model.safetensors")
    again = nf.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict(x, device="numpy"), model.predict(x, device="numpy"))


# ---- errors ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: nf.Conv2D(0, 3), ValueError, r"Conv2D: filters must be at least 1, got 0"),
        (lambda: nf.Conv1D(2.0, 3), TypeError, r"Conv1D: filters must be an integer, not float"),
        (lambda: nf.Conv2D(2, (3, 0)), ValueError, r"Conv2D: kernel_size must be at least 1, got 0"),
        (lambda: nf.Conv2D(2, (3, 3, 3)), ValueError, r"Conv2D: kernel_size must be one integer or 2, got \(3, 3, 3\)"),
        (lambda: nf.Conv1D(2, (3, 3)), ValueError, r"Conv1D: kernel_size must be one integer or 1"),
        (lambda: nf.Conv2D(2, 3, stride=0), ValueError, r"Conv2D: stride must be at least 1, got 0"),
        (
            lambda: nf.Conv2D(2, 3, padding="full"),
            ValueError,
            r"padding must be 'valid', 'same' or numbers, got 'full'",
        ),
        (lambda: nf.Conv2D(2, 3, padding="causal"), ValueError, r"'valid', 'same' or numbers, got 'causal'"),
        (lambda: nf.Conv2D(2, 3, padding=-1), ValueError, r"Conv2D: padding must be at least 0, got -1"),
        (lambda: nf.Conv2D(2, 3, padding=((1, 2, 3), 1)), ValueError, r"Conv2D: padding takes one integer or a pair"),
        (lambda: nf.Conv2D(2, 3, padding=(1, 2, 3)), ValueError, r"one or a pair for each of 2 axes, got \(1, 2, 3\)"),
        (lambda: nf.Conv2D(2, 3, dilation=1.5), TypeError, r"Conv2D: dilation must be an integer, not float"),
        (lambda: nf.Conv2D(2, 3, groups=0), ValueError, r"Conv2D: groups must be at least 1, got 0"),
        (lambda: nf.DepthwiseConv2D(3, depth_multiplier=0), ValueError, r"depth_multiplier must be at least 1, got 0"),
        (lambda: nf.Conv2DTranspose(2, 3, stride=2, output_padding=2), ValueError, r"less than the stride, 2, got 2"),
        (
            lambda: nf.Conv2DTranspose(2, 3, stride=2, output_padding=1, padding="same"),
            ValueError,
            r"'same' fixes the size, got 1",
        ),
        (lambda: nf.MaxPool2D(0), ValueError, r"MaxPool2D: size must be at least 1, got 0"),
        (lambda: nf.Reshape((2, -1, -1)), ValueError, r"Reshape: sizes must be at least 1, and one of them may be -1"),
        (lambda: nf.Reshape((2, 0)), ValueError, r"Reshape: sizes"),
        (lambda: nf.Reshape((2, -3)), ValueError, r"Reshape: sizes must be at least -1, got -3"),
        (
            lambda: nf.ZeroPadding2D("same"),
            TypeError,
            r"ZeroPadding2D: padding must be .* not 'same'",
        ),
        (lambda: nf.UpSampling2D(0), ValueError, r"UpSampling2D: size must be at least 1, got 0"),
        (
            lambda: nf.UpSampling2D(2, "linear"),
            ValueError,
            r"UpSampling2D: interpolation must be 'nearest' or 'bilinear', got 'linear'",
        ),
        (
            lambda: nf.UpSampling1D(2, "bilinear"),
            ValueError,
            r"UpSampling1D: interpolation must be 'nearest' or 'linear', got 'bilinear'",
        ),
        (lambda: nf.UpSampling2D(2, 3), ValueError, r"interpolation must be 'nearest' or 'bilinear', got 3"),
        (lambda: nf.GroupNorm(0), ValueError, r"GroupNorm: groups must be at least 1, got 0"),
        (lambda: nf.GroupNorm(2, 0.0), ValueError, r"GroupNorm: eps must be positive, got 0.0"),
        (lambda: nf.SpatialDropout(1.0), ValueError, r"SpatialDropout: rate must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "match"),
    [
        (nf.Conv2D(2, 5), (3, 3, 1), r"layer 0 \(conv2d\): Conv2D: a window of 5x5 does not fit an image of 3x3"),
        (nf.Conv2D(2, 3, dilation=4, padding=2), (3, 9, 1), r"a window of 9x9 .* of 3x9 with 2 \+ 2 added"),
        (nf.Conv1D(2, 5), (3, 1), r"Conv1D: a window of 5 does not fit a sequence of 3 steps"),
        (nf.Conv2D(2, 3), (784,), r"Conv2D: expected rows of shape \(height, width, channels\), got \(784,\)"),
        (nf.Conv1D(2, 3), (5, 5, 1), r"Conv1D: expected rows of shape \(steps, channels\), got \(5, 5, 1\)"),
        (nf.Conv2D(2, 3, groups=2), (5, 5, 3), r"Conv2D: 2 groups do not divide 3 input channels"),
        (nf.Conv2D(3, 3, groups=2), (5, 5, 4), r"Conv2D: 2 groups do not divide 3 filters"),
        (nf.Conv2DTranspose(3, 3, groups=2), (5, 5, 4), r"Conv2DTranspose: 2 groups do not divide 3 filters"),
        (nf.Conv2DTranspose(3, 2, padding=4), (2, 2, 4), r"nothing is left of an image of 2x2: .* would be -5x-5"),
        (nf.MaxPool2D(), (1, 4, 2), r"MaxPool2D: a window of 2x2 does not fit an image of 1x4"),
        (
            nf.MaxPool2D(2, padding=2),
            (4, 4, 2),
            r"MaxPool2D: padding must be less than the size .*, 2, got 2",
        ),
        (nf.GlobalAvgPool2D(), (4, 2), r"GlobalAvgPool2D: expected rows of shape \(height, width, channels\)"),
        (nf.Reshape((3, 3)), (2, 4), r"Reshape: rows of shape \(2, 4\) have 8 elements, which do not make \(3, 3\)"),
        (nf.Reshape((3, -1)), (2, 4), r"which do not make \(3, -1\)"),
        (nf.GroupNorm(4), (3, 6), r"GroupNorm: 4 groups do not divide 6 channels"),
        (nf.GroupNorm(1), (), r"GroupNorm needs at least one feature axis"),
    ],
    ids=str,
)
def test_build_errors_say_what_was_given(layer, shape, match):
    with pytest.raises(ValueError, match=match):
        build_chain([layer], shape)


# ---- random windows ----------------------------------------------------------------------------------------
NUMPY = NumpyBackend()
axes = st.tuples(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(0, 6), st.integers(0, 6), st.integers(1, 3)
)


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(rows=axes, columns=axes, groups=st.integers(1, 3), inputs=st.integers(1, 3), outputs=st.integers(1, 3))
def test_gradients_of_any_convolution_are_its_adjoints(rows, columns, groups, inputs, outputs):
    """``<conv(x, W), dy> = <x, input gradient> = <W, weight gradient>``, and the definition at one place."""
    (h, kh, sh, above, below, dh), (w, kw, sw, left, right, dw) = rows, columns
    window = Window((kh, kw), (sh, sw), ((above, below), (left, right)), (dh, dw))
    oh, ow = window.out_size(h, w)
    if min(oh, ow) < 1:
        return
    rng = np.random.default_rng(h * w)
    x = rng.standard_normal((2, h, w, groups * inputs))
    W = rng.standard_normal((kh, kw, inputs, groups * outputs))
    dy = rng.standard_normal((2, oh, ow, groups * outputs))
    y, dx, dW = np.full_like(dy, np.nan), np.full_like(x, np.nan), np.full_like(W, np.nan)
    NUMPY.conv(x, W, window, groups=groups, out=y)
    NUMPY.conv_input_grad(dy, W, window, groups=groups, dx=dx)
    NUMPY.conv_weight_grad(dy, x, window, groups=groups, dW=dW)
    np.testing.assert_allclose([(x * dx).sum(), (W * dW).sum()], (y * dy).sum(), rtol=1e-10, atol=1e-10)
    i, j, o = (int(rng.integers(0, n)) for n in (oh, ow, groups * outputs))
    expected = 0.0
    for r in range(kh):
        for s in range(kw):
            a, b = i * sh + r * dh - above, j * sw + s * dw - left
            if 0 <= a < h and 0 <= b < w:
                channels = x[1, a, b, o // outputs * inputs :][:inputs]
                expected += channels @ W[r, s, :, o]
    np.testing.assert_allclose(y[1, i, j, o], expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(rows=axes, columns=axes, count_padding=st.booleans())
def test_any_pooling_is_its_definition(rows, columns, count_padding):
    (h, kh, sh, above, below, dh), (w, kw, sw, left, right, dw) = rows, columns
    window = Window((kh, kw), (sh, sw), ((above, below), (left, right)), (dh, dw))
    oh, ow = window.out_size(h, w)
    if min(oh, ow) < 1:
        return
    rng = np.random.default_rng(h * w)
    x, dy = rng.integers(-3, 3, (2, h, w, 2)).astype("f8"), rng.standard_normal((2, oh, ow, 2))
    most, mean, dmost, dmean = np.empty_like(dy), np.empty_like(dy), np.empty_like(x), np.empty_like(x)
    NUMPY.max_pool(x, window, out=most)
    NUMPY.max_pool_grad(dy, x, most, window, dx=dmost)
    NUMPY.avg_pool(x, window, count_padding=count_padding, out=mean)
    NUMPY.avg_pool_grad(dy, window, count_padding=count_padding, dx=dmean)
    want_most, want_mean = np.full_like(dy, -np.inf), np.zeros_like(dy)
    want_dmost, want_dmean = np.zeros_like(x), np.zeros_like(x)
    for n, i, j, c in np.ndindex(dy.shape):
        places = [
            (a, b)
            for a in range(i * sh - above, i * sh - above + kh * dh, dh)
            for b in range(j * sw - left, j * sw - left + kw * dw, dw)
            if 0 <= a < h and 0 <= b < w
        ]
        if places:
            values = [x[n, a, b, c] for a, b in places]
            share = 1.0 / (kh * kw if count_padding else len(places))
            want_most[n, i, j, c], want_mean[n, i, j, c] = max(values), sum(values) * share
            a, b = places[int(np.argmax(values))]
            want_dmost[n, a, b, c] += dy[n, i, j, c]
            for a, b in places:
                want_dmean[n, a, b, c] += dy[n, i, j, c] * share
    np.testing.assert_array_equal(most, want_most)
    np.testing.assert_allclose(dmost, want_dmost, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dmean, want_dmean, rtol=1e-12, atol=1e-12)
