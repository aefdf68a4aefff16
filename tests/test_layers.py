"""Every layer: gradient, parity, replay and allocations through ``check_layer``; descriptions; errors that name it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nnfast as nf
from nnfast import layers
from nnfast.layers.base import BuildContext, Layer
from nnfast.layers.graph import build_chain
from nnfast.testing import check_gradient, check_layer
from tests.cases import ACTIVATIONS, Chain, dense_case, pointwise_input
from tests.layer_samples import SAMPLES, model_of, sample_ids

# ---- gradients, parity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense(any_backend, activation):
    layer, x = dense_case(activation, (4,), 3)
    check_layer(layer, (4,), x=x, backends=[any_backend])


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu", "softmax"])
@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)], ids=str)
def test_dense_works_on_the_last_axis(any_backend, activation, shape):
    layer, x = dense_case(activation, shape, 3, batch=3)
    check_layer(layer, shape, x=x, backends=[any_backend])


@pytest.mark.parametrize("activation", ["identity", "tanh", "silu"])
def test_dense_without_bias(any_backend, activation):
    layer, x = dense_case(activation, (4,), 3, bias=False)
    assert [spec.name for spec in build_chain([layer], (4,))[0].specs if spec.kind == "param"] == ["W"]
    check_layer(layer, (4,), x=x, backends=[any_backend])


@pytest.mark.parametrize(("features", "units", "batch"), [(1, 1, 1), (1, 5, 2), (37, 1, 3), (17, 33, 9)])
def test_dense_of_odd_sizes(any_backend, features, units, batch):
    check_layer(nf.Dense(units, "tanh"), (features,), batch=batch, backends=[any_backend])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(any_backend, activation):
    x = pointwise_input(activation, (5, 4))
    check_layer(nf.Activation(activation), (4,), x=x, backends=[any_backend])


@pytest.mark.parametrize("activation", ["leaky_relu(0.3)", "softmax", "mish"])
def test_activation_of_3d_inputs(any_backend, activation):
    x = pointwise_input(activation, (3, 2, 4))
    check_layer(nf.Activation(activation), (2, 4), x=x, backends=[any_backend])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(7,), (3, 5)], ids=str)
def test_dropout(any_backend, rate, shape):
    check_layer(nf.Dropout(rate), shape, backends=[any_backend])


@pytest.mark.parametrize(
    "layer", [nf.Flatten(), nf.LayerNorm(), nf.LayerNorm(0.1), nf.BatchNorm(), nf.BatchNorm(1.0, 0.1)], ids=repr
)
@pytest.mark.parametrize("shape", [(6,), (2, 5)], ids=str)
def test_other_layers(any_backend, layer, shape):
    check_layer(layer, shape, backends=[any_backend])


class Scale(Layer):
    """A layer as a user writes one: array code, not replayable."""

    def build(self, in_shape, ctx):
        ctx.param("w", in_shape[-1:], lambda shape, rng: 1.0 + rng.random(shape))
        return in_shape

    def forward(self, bk, x, y):
        y[...] = x * self.w

    def backward(self, bk, dy, dx):
        self.dw[...] = (dy * self.x).sum(axis=0)
        if dx is not None:
            dx[...] = dy * self.w


def test_layer_of_a_user(any_backend):
    check_layer(Scale(), (4,), backends=[any_backend])


def smooth_chain() -> list[Layer]:
    return [
        nf.Flatten(),
        nf.Dense(6, "tanh"),
        nf.LayerNorm(),
        nf.Dropout(0.25),
        nf.Dense(5, "silu"),
        nf.BatchNorm(),
        nf.Activation("softplus"),
        Scale(),
        nf.Flatten(),
        nf.Dense(3, "softmax"),
    ]


CHAINS = {
    "all kinds": (smooth_chain, "cross_entropy"),
    "first layer without parameters": (
        lambda: [nf.Activation("tanh"), nf.Dropout(0.5), nf.Flatten(), nf.Dense(3)],
        "cross_entropy",
    ),
    "norm first": (lambda: [nf.LayerNorm(), nf.Flatten(), nf.Dense(3, "gelu"), nf.Dense(3)], "cross_entropy"),
    "ends in dropout": (
        lambda: [nf.Flatten(), nf.Dense(4, "tanh"), nf.Dense(3), nf.Dropout(0.3)],
        "mean_squared_error",
    ),
    "ends in a view": (lambda: [nf.Dense(3, "tanh"), nf.Dense(3), nf.Flatten()], "mean_squared_error"),
    "3-d output": (lambda: [nf.Dense(3, "tanh"), nf.Dense(2)], "mean_squared_error"),
    "narrow after wide": (
        lambda: [nf.Flatten(), nf.Dense(9, "sigmoid"), nf.Dense(1, "tanh"), nf.Dense(8)],
        "mean_squared_error",
    ),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("weighted", [False, True])
def test_chain(any_backend, rng, name, weighted):
    """The whole gradient of a chain, with buffers that take turns, against differences and on each backend."""
    make, loss = CHAINS[name]
    x = rng.standard_normal((6, 2, 3))
    shape = build_chain(make(), (2, 3))[-1].out_shape
    y = rng.integers(0, 3, 6) if loss == "cross_entropy" else rng.standard_normal((6, *shape))
    weight = rng.random(6) if weighted else None
    reference = Chain(make(), x, y, loss, nf.get_backend("numpy"), weight=weight)
    expected_loss, expected = reference.step(), reference.gradient()
    check_gradient(reference.loss_at, expected, reference.params.vector(), name=name)
    for dtype, rtol in ((np.float64, 1e-10), (np.float32, 1e-4)):
        # Twice as much room as rows: prefix views
        other = Chain(make(), x, y, loss, any_backend, weight=weight, dtype=dtype, batch=12)
        for _ in range(2):
            np.testing.assert_allclose(other.step(), expected_loss, rtol=rtol)
            np.testing.assert_allclose(other.gradient(), expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def test_batch_norm_tracks_only_in_training(backend, rng):
    model = nf.Sequential([nf.BatchNorm(0.3), nf.Dense(1)]).build(2, dtype="float64")
    x, y = 3.0 + rng.standard_normal((8, 2)), np.zeros(8)
    trainer = nf.Trainer(model, "mse", nf.SGD(0.0), device=backend, dtype="float64")
    trainer.step(x, y)
    weights = model.get_weights()
    np.testing.assert_allclose(weights["batchnorm.running_mean"], 0.3 * x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(weights["batchnorm.running_var"], 0.7 + 0.3 * x.var(axis=0, ddof=1), rtol=1e-12)
    model.predict(x)
    model.evaluate(x, y)
    for name, value in model.get_weights().items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)


def test_batch_norm_of_one_row(backend):
    """The variance of one row is 0, and its unbiased form is taken as 0 instead of 0/0."""
    model = nf.Sequential([nf.BatchNorm(0.5), nf.Dense(1)]).build(2)
    nf.Trainer(model, "mse", device=backend).step([[1.0, 2.0]], [0.0])
    np.testing.assert_allclose(model.get_weights()["batchnorm.running_var"], 0.5)


def test_dropout_keeps_the_mean_and_is_the_identity_in_inference(backend):
    model = nf.Sequential([nf.Dropout(0.3), nf.Dense(1)]).build(4)
    x = np.ones((3, 4), np.float32)
    weights = model.get_weights()
    np.testing.assert_allclose(
        model.predict(x, device=backend), x @ weights["dense.W"] + weights["dense.b"], rtol=1e-5, atol=1e-6
    )
    ones, out = backend.asarray(np.ones(10000)), backend.empty(10000, np.float64)
    backend.dropout(ones, backend.zeros(32, np.float64), rate=0.3, stream=0, out=out)
    assert set(np.unique(out)) == {0.0, 1.0 / 0.7}
    assert abs(out.mean() - 1.0) < 5 * np.sqrt(0.3 / 0.7 / 10000)


# ---- descriptions ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("layer", "shape"), SAMPLES, ids=sample_ids)
def test_config_round_trip(layer, shape):
    config = json.loads(json.dumps(layer.config()))
    again = made_from({"class": type(layer).__name__, "config": config})
    assert again.config() == layer.config()
    assert repr(again) == repr(layer)
    before, after = (model_of(one, shape).get_weights() for one in (layer, again))
    assert list(after) == list(before)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def made_from(value):
    """A layer from its description, with those inside of it."""
    if isinstance(value, list):
        return [made_from(each) for each in value]
    if isinstance(value, dict) and value.keys() == {"class", "config"}:
        return layers.TABLE[value["class"]](**{key: made_from(each) for key, each in value["config"].items()})
    return value


def test_every_layer_is_described():
    assert {type(layer) for layer, _ in SAMPLES} == set(layers.TABLE.values())


def test_initializer_function_is_described_by_its_name(tmp_path):
    """A file holds no code: the function's name is kept, and building anew says what is missing."""

    def halves(shape, rng):
        return np.full(shape, 0.5)

    model = nf.Sequential([nf.Dense(2, initializer=halves)]).build(3)
    model.save(tmp_path / "model.safetensors")
    again = nf.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.get_weights()["dense.W"], np.full((3, 2), 0.5))
    with pytest.raises(ValueError, match=r"halves.*pass it again"):
        again.build(3)


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(nf.Dense(3, "relu")) == "Dense(units=3, activation='relu')"
    assert repr(nf.Flatten()) == "Flatten()"


def test_binding_leaves_the_description_alone():
    layer = nf.Dense(2)
    bound = layer.bind({"W": 1, "b": None}, training=True, stream=3)
    assert (bound.W, bound.training, bound.stream) == (1, True, 3)
    assert not hasattr(layer, "W")
    assert not layer.training


# ---- errors ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: nf.Dense(0), ValueError, r"Dense: units must be at least 1, got 0"),
        (lambda: nf.Dense(2.5), TypeError, r"Dense: units must be an integer, not float"),
        (lambda: nf.Dense(2, in_features=0), ValueError, r"Dense: in_features must be at least 1"),
        (lambda: nf.Dense(2, "rellu"), ValueError, r"unknown activation 'rellu'; known are .*relu"),
        (lambda: nf.Dense(2, 3), TypeError, r"activation must be a name, an Activation or None, not int"),
        (lambda: nf.Activation("relu(0.1)"), ValueError, r"'relu' takes no parameter"),
        (lambda: nf.Activation("elu(x)"), ValueError, r"'x' is not a number"),
        (lambda: nf.Activation("elu(-1)"), ValueError, r"must be positive and finite"),
        (lambda: nf.Dropout(1.0), ValueError, r"Dropout: rate must be in \[0, 1\), got 1.0"),
        (lambda: nf.Dropout(-0.1), ValueError, r"Dropout: rate"),
        (lambda: nf.Dropout(float("nan")), ValueError, r"Dropout: rate"),
        (lambda: nf.LayerNorm(0.0), ValueError, r"LayerNorm: eps must be positive, got 0.0"),
        (lambda: nf.BatchNorm(eps=-1.0), ValueError, r"BatchNorm: eps must be positive, got -1.0"),
        (lambda: nf.BatchNorm(momentum=0.0), ValueError, r"BatchNorm: momentum must be in \(0, 1\], got 0.0"),
        (lambda: nf.BatchNorm(momentum=1.5), ValueError, r"BatchNorm: momentum"),
        (lambda: nf.Sequential([]), ValueError, r"Sequential needs at least one layer"),
        (lambda: nf.Sequential([nf.Dense(1), "relu"]), TypeError, r"layer 1 must be a Layer, not str"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("chain", "shape", "match"),
    [
        ([nf.Dense(3), nf.Dense(2, in_features=4)], (5,), r"layer 1 \(dense_1\): .*in_features=4, .*has 3 features"),
        ([nf.Dense(3, name="head", in_features=4)], (5,), r"layer 0 \(head\)"),
        ([nf.Dense(3)], (), r"layer 0 \(dense\): Dense needs at least one feature axis"),
        ([nf.LayerNorm()], (), r"layer 0 \(layernorm\): LayerNorm needs"),
        ([nf.BatchNorm()], (), r"layer 0 \(batchnorm\): BatchNorm needs"),
        (
            [nf.Dense(3, initializer="ones"), nf.Dense(3, initializer="?")],
            (2,),
            r"layer 1 \(dense_1\): unknown initializer",
        ),
        ([nf.Dense(1, bias_initializer="orthogonal")], (2,), r"'orthogonal' needs a shape of two or more axes"),
        ([nf.Dense(3, name="a"), nf.Dense(3, name="a")], (2,), r"two layers are named 'a'"),
        ([nf.Dense(3, name="a.b")], (2,), r"without dots and slashes, not 'a.b'"),
    ],
)
def test_build_errors_name_the_layer(chain, shape, match):
    def build() -> None:
        for built in build_chain(chain, shape):
            for spec in built.specs:
                spec.init(spec.shape, np.random.default_rng(0))

    with pytest.raises(ValueError, match=match):
        build()


def test_declaring_twice():
    ctx = BuildContext()
    ctx.param("W", (2,), "zeros")
    with pytest.raises(ValueError, match="declares 'W' twice"):
        ctx.scratch("W", (2,))


def test_names_of_layers():
    chain = [nf.Dense(1), nf.Dense(1, name="dense_1"), nf.Dense(1), nf.Flatten()]
    assert [built.name for built in build_chain(chain, (1,))] == ["dense", "dense_1", "dense_2", "flatten"]
