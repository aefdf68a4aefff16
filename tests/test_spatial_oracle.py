"""PyTorch and Keras as outside oracles of the layers of images and sequences."""

from __future__ import annotations

import os
from itertools import product
from random import Random

import numpy as np
import pytest

import nnfast as nf
from nnfast.kernels import step_state as S
from nnfast.layers.windows import window_on
from tests.cases import run_layer
from tests.oracle import DTYPES, F, close, dtypes, tensor, torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads of PyTorch's own cost more than its work on arrays this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def first(x):
    """Channels last to PyTorch's order."""
    return x.movedim(-1, 1)


def last(x):
    return x.movedim(1, -1)


def kernel(W):
    """(*kernel, inputs, outputs) to PyTorch's (outputs, inputs, *kernel)."""
    return W.movedim((-1, -2), (0, 1))


def some(cases, number):
    """So many of the cases, always the same ones."""
    return Random(3).sample(list(cases), number)


def compare(layer, function, shape, backend, dtype="float64", batch=2):
    """Output and all gradients of a layer against a function of tensors ``(x, W, b)``, in PyTorch's order of axes."""
    forward, gradient = DTYPES[dtype]
    rng = np.random.default_rng(11)
    options = {"bias_initializer": "normal"} if hasattr(layer, "bias_initializer") else {}
    if options:
        layer.bias_initializer = nf.initializers.Normal(0.5)
    built_shape = nf.Sequential([layer]).build(shape).out_shape
    x, dy = rng.standard_normal((batch, *shape)), rng.standard_normal((batch, *built_shape))
    results = run_layer(layer, backend, x, dy, dtype)
    tx, tdy = tensor(x, dtype), tensor(dy, dtype, grad=False)
    weights = {key.rpartition(".")[2]: tensor(value, dtype) for key, value in results.items() if key[-1] in "Wb"}
    weights = {name: weight for name, weight in weights.items() if name in ("W", "b")}
    ty = function(tx, weights.get("W"), weights.get("b"))
    ty.backward(tdy)
    close(results["y"], ty, forward, "y")
    close(results["dx"], tx.grad, gradient, "dx")
    for name, weight in weights.items():
        close(results["d" + name], weight.grad, gradient, "d" + name)


# ---- convolution -------------------------------------------------------------------------------------------
def pads(padding):
    """PyTorch's order of a padding: that of the last axis first."""
    return [side for sides in padding[::-1] for side in sides]


def fits(case):
    return min(window_on(case[0], *case[1:5]).out_size(*case[0])) > 0


CONV2D = filter(
    fits,
    product(
        [(1, 1), (5, 7), (8, 3)],
        [1, 3, (2, 5)],
        [1, 2, (3, 4)],
        [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (1, 3)), ((3, 5), (6, 4))],
        [1, (2, 3)],
        [1, 2],
    ),
)


@pytest.mark.parametrize("case", some(CONV2D, 60), ids=str)
def test_conv2d(backend, case):
    size, kernel_size, stride, padding, dilation, groups = case

    def function(x, W, b):
        padded = F.pad(first(x), pads(padding))
        return last(F.conv2d(padded, kernel(W), b, stride=stride, dilation=dilation, groups=groups))

    layer = nf.Conv2D(6, kernel_size, stride=stride, padding=padding, dilation=dilation, groups=groups)
    compare(layer, function, (*size, 4), backend)


@dtypes
@pytest.mark.parametrize(("channels", "activation"), [((1, 1), "relu"), ((3, 17), "gelu"), ((16, 32), "softmax")])
def test_conv2d_of_activations(backend, channels, activation, dtype):
    f = {"relu": F.relu, "gelu": F.gelu, "softmax": lambda z: F.softmax(z, dim=1)}[activation]

    def function(x, W, b):
        return last(f(F.conv2d(first(x), kernel(W), b, padding=1)))

    layer = nf.Conv2D(channels[1], 3, activation, padding=1)
    compare(layer, function, (7, 6, channels[0]), backend, dtype)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "dilation", "groups"),
    some(product([1, 11], [1, 3], [1, 2], [0, 2], [1, 2], [1, 3]), 16),
)
def test_conv1d(backend, size, kernel_size, stride, padding, dilation, groups):
    layer = nf.Conv1D(6, kernel_size, stride=stride, padding=padding, dilation=dilation, groups=groups)

    def function(x, W, b):
        return last(F.conv1d(first(x), kernel(W), b, stride, padding, dilation, groups))

    if size + 2 * padding < dilation * (kernel_size - 1) + 1:
        with pytest.raises(ValueError, match="does not fit a sequence"):
            nf.Sequential([layer]).build((size, 3))
        return
    compare(layer, function, (size, 3), backend)


@pytest.mark.parametrize(("kernel_size", "dilation", "stride"), [(1, 1, 1), (3, 1, 1), (3, 4, 1), (2, 3, 2)])
def test_causal_conv1d(backend, kernel_size, dilation, stride):
    def function(x, W, b):
        padded = F.pad(first(x), (dilation * (kernel_size - 1), 0))
        return last(F.conv1d(padded, kernel(W), b, dilation=dilation, stride=stride))

    layer = nf.Conv1D(5, kernel_size, padding="causal", dilation=dilation, stride=stride)
    compare(layer, function, (7, 3), backend)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "multiplier"),
    some(product([(5, 7), (8, 3)], [1, 3, (2, 3)], [1, 2], [0, 1], [1, 3]), 10),
)
def test_depthwise_conv2d(backend, size, kernel_size, stride, padding, multiplier):
    def function(x, W, b):
        return last(F.conv2d(first(x), kernel(W), b, stride, padding, groups=5))

    layer = nf.DepthwiseConv2D(kernel_size, stride=stride, padding=padding, depth_multiplier=multiplier)
    compare(layer, function, (*size, 5), backend)


TRANSPOSED = filter(
    lambda case: case[3] < np.min(case[1]),
    product([1, 3, (2, 4)], [1, 2, (3, 2)], [0, 1], [0, 1], [1, 2], [1, 2]),
)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "output_padding", "dilation", "groups"),
    some(
        (c for c in product([1, 3, (2, 4)], [1, 2, (3, 2)], [0, 1], [0, 1], [1, 2], [1, 2]) if c[3] < np.min(c[1])), 24
    ),
)
def test_conv2d_transpose(backend, kernel_size, stride, padding, output_padding, dilation, groups):
    def function(x, W, b):
        return last(F.conv_transpose2d(first(x), kernel(W), b, stride, padding, output_padding, groups, dilation))

    layer = nf.Conv2DTranspose(
        6, kernel_size, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups
    )
    compare(layer, function, (3, 5, 4), backend)


# ---- pooling -----------------------------------------------------------------------------------------------
POOLS = some(product([(4, 4), (5, 7), (2, 11)], [2, (2, 1), (1, 3), 3], [None, 1, (2, 3)], [0, 1]), 14)


@pytest.mark.parametrize(("size", "window", "stride", "padding"), POOLS)
def test_max_pool2d(backend, size, window, stride, padding):
    padding = padding if np.min(window) > 1 else 0  # PyTorch takes half of the window at most
    layer = nf.MaxPool2D(window, stride, padding)
    compare(layer, lambda x, W, b: last(F.max_pool2d(first(x), window, stride, padding)), (*size, 3), backend)


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize(("size", "window", "stride", "padding"), POOLS)
def test_avg_pool2d(backend, size, window, stride, padding, count):
    padding = padding if np.min(window) > 1 else 0  # PyTorch takes half of the window at most

    def function(x, W, b):
        return last(F.avg_pool2d(first(x), window, stride, padding, count_include_pad=count))

    compare(nf.AvgPool2D(window, stride, padding, count_padding=count), function, (*size, 3), backend)


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, None, 0), (3, 2, 1), (3, 1, 0), (1, 3, 0)])
@pytest.mark.parametrize("channels", [1, 19])
def test_pool1d(backend, window, stride, padding, channels):
    pooled = lambda f: lambda x, W, b: last(f(first(x)))  # noqa: E731
    largest = pooled(lambda x: F.max_pool1d(x, window, stride, padding))
    compare(nf.MaxPool1D(window, stride, padding), largest, (11, channels), backend)
    mean = pooled(lambda x: F.avg_pool1d(x, window, stride, padding, count_include_pad=False))
    compare(nf.AvgPool1D(window, stride, padding), mean, (11, channels), backend)


@dtypes
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 13)], ids=str)
def test_global_pools(backend, size, dtype):
    compare(nf.GlobalMaxPool2D(), lambda x, W, b: x.amax((1, 2)), (*size, 5), backend, dtype)
    compare(nf.GlobalAvgPool2D(), lambda x, W, b: x.mean((1, 2)), (*size, 5), backend, dtype)
    compare(nf.GlobalMaxPool1D(), lambda x, W, b: x.amax(1), (size[1], 5), backend, dtype)
    compare(nf.GlobalAvgPool1D(), lambda x, W, b: x.mean(1), (size[1], 5), backend, dtype)


# ---- sizes, normalisation ----------------------------------------------------------------------------------
def test_sizes(backend):
    padded = lambda x, W, b: last(F.pad(first(x), (2, 3, 1, 0)))  # noqa: E731
    compare(nf.ZeroPadding2D(((1, 0), (2, 3))), padded, (3, 4, 5), backend)
    compare(nf.ZeroPadding1D((0, 2)), lambda x, W, b: F.pad(x, (0, 0, 0, 2)), (3, 4), backend)
    larger = lambda x, W, b: last(F.interpolate(first(x), scale_factor=(2.0, 3.0), mode="nearest"))  # noqa: E731
    compare(nf.UpSampling2D((2, 3)), larger, (3, 4, 5), backend)
    compare(nf.UpSampling1D(3), lambda x, W, b: x.repeat_interleave(3, 1), (3, 4), backend)


@dtypes
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (5, 1)], ids=str)
@pytest.mark.parametrize("factors", [1, 2, 3, (1, 4), (5, 2)], ids=str)
def test_interpolation(backend, factors, size, dtype):
    scales = tuple(map(float, factors)) if isinstance(factors, tuple) else float(factors)
    larger = lambda x, W, b: last(F.interpolate(first(x), scale_factor=scales, mode="bilinear"))  # noqa: E731
    compare(nf.UpSampling2D(factors, "bilinear"), larger, (*size, 5), backend, dtype)


@pytest.mark.parametrize(("factor", "steps"), [(1, 5), (2, 1), (3, 7), (4, 3)])
def test_interpolation_of_sequences(backend, factor, steps):
    longer = lambda x, W, b: last(F.interpolate(first(x), scale_factor=float(factor), mode="linear"))  # noqa: E731
    compare(nf.UpSampling1D(factor, "linear"), longer, (steps, 3), backend)


@dtypes
@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 5, 6), 1), ((4, 5, 6), 3), ((3, 3, 8), 8), ((7, 12), 4), ((1, 1, 40), 2)], ids=str
)
def test_group_norm(backend, rng, shape, groups, eps, dtype):
    forward, gradient = DTYPES[dtype]
    x, dy = 2.0 + rng.standard_normal((3, *shape)), rng.standard_normal((3, *shape))
    results = run_layer(nf.GroupNorm(groups, eps), backend, x, dy, dtype)
    module = torch.nn.GroupNorm(groups, shape[-1], eps, dtype=getattr(torch, dtype))
    tx = tensor(x, dtype)
    ty = last(module(first(tx)))
    ty.backward(tensor(dy, dtype, grad=False))
    close(results["y"], ty, forward, "y")
    for name, grad in (("dx", tx.grad), ("dgamma", module.weight.grad), ("dbeta", module.bias.grad)):
        close(results[name], grad, gradient, name)


# ---- Keras -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "jax")
    pytest.importorskip("jax")
    return pytest.importorskip("keras")


def like_keras(keras_layer, layer, shape, order=lambda W: W):
    """Outputs of the same weights; `order` brings ours to Keras's shape."""
    x = np.random.default_rng(5).standard_normal((2, *shape)).astype("f4")
    model = nf.Sequential([layer]).build(shape, seed=2)
    keras_layer.build((2, *shape))
    if weights := [np.asarray(w) for w in model.get_weights().values()]:
        keras_layer.set_weights([order(weights[0]), *weights[1:]])
    expected = keras_layer(x)
    expected = expected.detach().cpu().numpy() if hasattr(expected, "detach") else np.asarray(expected)
    np.testing.assert_allclose(model.predict(x, device="numpy"), expected, rtol=1e-4, atol=1e-5)


def test_layers_of_keras(keras):
    """A few: each takes seconds to compile there."""
    k, shape, options = keras.layers, (5, 6, 4), {"strides": 3, "padding": "same"}
    like_keras(k.Conv2D(3, (4, 3), **options), nf.Conv2D(3, (4, 3), stride=3, padding="same"), shape)
    like_keras(k.MaxPooling2D(4, **options), nf.MaxPool2D(4, 3, "same"), shape)
    like_keras(k.Conv1D(6, 3, padding="causal", dilation_rate=2), nf.Conv1D(6, 3, padding="causal", dilation=2), (8, 4))
    like_keras(
        k.DepthwiseConv2D(3, depth_multiplier=2, padding="same", strides=2),
        nf.DepthwiseConv2D(3, depth_multiplier=2, padding="same", stride=2),
        (6, 7, 3),
        lambda W: W.reshape(3, 3, 3, 2),
    )
    like_keras(k.UpSampling2D((2, 3), interpolation="bilinear"), nf.UpSampling2D((2, 3), "bilinear"), (4, 3, 2))
    for window, stride, padding in ((4, 3, "same"), (2, 3, "valid")):
        mine = nf.Conv2DTranspose(3, window, stride=stride, padding=padding)
        like_keras(k.Conv2DTranspose(3, window, strides=stride, padding=padding), mine, (4, 5, 2))


def test_the_mean_of_steps_that_are_there_is_that_of_keras(keras, any_backend, rng):
    """Each row has one: Keras divides by 0 otherwise."""
    x, mask = rng.standard_normal((7, 5, 3)), rng.random((7, 5)) < 0.5
    mask[:, 2] = True
    expected = np.asarray(keras.layers.GlobalAveragePooling1D()(x.astype("f4"), mask=mask))
    found = run_layer(nf.GlobalAvgPool1D(), any_backend, x, np.zeros((7, 3)), "float32", mask)["y"]
    close(found, expected, 1e-5)


@pytest.mark.parametrize(("size", "window", "stride"), [(4, 3, 2), (5, 4, 3), (7, 2, 2), (5, 4, 1)])
def test_same_average_does_not_count_what_is_added(backend, size, window, stride):
    """TensorFlow's rule, spelled out: Keras on PyTorch repeats the border, and counts it."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    sides = (total // 2, total - total // 2) * 2

    def function(x, W, b):
        sums, counts = (F.avg_pool2d(F.pad(first(z), sides), window, stride) for z in (x, torch.ones_like(x)))
        return last(sums / counts)

    compare(nf.AvgPool2D(window, stride, "same"), function, (size, size, 3), backend)


# ---- what a mask of whole channels is ----------------------------------------------------------------------
def test_spatial_dropout_is_dropout_of_channels(backend, rng):
    x, state = rng.standard_normal((5, 3, 4, 7)), backend.zeros(S.SIZE, "f8")
    state[S.STEP], state[S.SEED_LO] = 9, 17
    ones, factors, out = np.ones((5, 7)), np.empty((5, 7)), np.empty((5, 12, 7))
    backend.dropout(ones, state, rate=0.3, stream=4, out=factors)
    backend.spatial_dropout(x.reshape(5, 12, 7), state, rate=0.3, stream=4, out=out)
    np.testing.assert_allclose(out, x.reshape(5, 12, 7) * factors[:, None], rtol=1e-14)
