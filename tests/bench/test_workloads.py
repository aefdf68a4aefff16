"""The table of workloads, their data and their weights."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from nnfast.bench.networks import flat
from nnfast.bench.workloads import (
    PRESETS,
    WORKLOADS,
    Workload,
    find,
    initial_weights,
    make_data,
    prediction_rows,
    rows_for,
)

SEVEN = {
    "xor": ((2, 4, 1), 4, "sigmoid", "binary_cross_entropy"),
    "tiny": ((10, 10, 10, 10, 1), 32, "relu", "mean_squared_error"),
    "small": ((64, 100, 10), 200, "relu", "cross_entropy"),
    "mnist": ((784, 512, 256, 10), 256, "relu", "cross_entropy"),
    "wide": ((784, 1024, 1024, 10), 8192, "relu", "cross_entropy"),
    "narrow": ((64, 64, 64, 64, 10), 65536, "relu", "cross_entropy"),
    "gelu": ((256, 256, 256, 256, 10), 16384, "gelu", "cross_entropy"),
}


def test_the_seven():
    chosen = [w for w in PRESETS["all"] if not w.predict]
    assert {w.name: (w.sizes, w.batch, w.activation, w.loss) for w in chosen} == SEVEN
    assert all((w.optimizer, w.dtype, w.lr, w.dropout) == ("adam", "float32", 1e-3, 0.0) for w in chosen)
    assert {w.name for w in (*PRESETS["small"], *PRESETS["large-batch"])} == set(SEVEN)


def test_inference():
    assert {(w.sizes, w.predict) for w in PRESETS["inference"]} == {
        (SEVEN[name][0], rows) for name in ("mnist", "wide") for rows in (1, 65536)
    }


def test_off_table():
    work = PRESETS["off-table"]
    assert {w.activation for w in work} == {"relu", "tanh", "sigmoid", "silu"}
    assert [w.name for w in work if w.dropout] == ["mnist-dropout"]
    assert [w.name for w in work if w.dtype == "float64"] == ["mnist-float64"]
    assert [(w.name, w.momentum) for w in work if w.optimizer == "sgd"] == [("mnist-momentum", 0.9)]
    assert [w.name for w in work if w.rows % w.batch] == ["mnist-last-smaller"]
    assert not {w.name for w in work} & {w.name for w in PRESETS["all"]}


def test_layers():
    layouts = {w.name: (w.layout, w.batch) for w in PRESETS["layers"]}
    assert layouts == {
        "cnn": (
            "28x28x1, conv 32 3x3 relu, 2x2 max pooling, conv 64 3x3 relu, 2x2 max pooling, flatten, dense 10", 256
        ),
        "lstm": ("64x64, lstm 128, dense 10", 128),
        "gru": ("64x64, gru 128, dense 10", 128),
        "transformer": (
            "128x256, transformer block with 8 heads and 1024 gelu, global average pooling, dense 10", 32
        ),
        "resnet-block": (
            "32x32x64, [conv 64 3x3, batch norm, relu, conv 64 3x3, batch norm] + x, relu, global average pooling, "
            "dense 10", 64,
        ),
        "depthwise": ("32x32x64, depthwise conv 3x3 relu, conv 128 1x1 relu, global average pooling, dense 10", 64),
    }  # fmt: skip
    assert all((w.optimizer, w.dtype, w.loss) == ("adam", "float32", "cross_entropy") for w in PRESETS["layers"])
    assert find("cnn").describe() == f"cnn, {layouts['cnn'][0]}, cross_entropy, adam, batches of 256, float32"


def test_a_network_has_its_own_sizes():
    with pytest.raises(ValueError, match=r"workload 'cnn': sizes must be the network's.*\(784, 10\), got \(784, 5\)"):
        replace(find("cnn"), sizes=(784, 5))


def test_names_and_memory():
    assert all(name == w.name for name, w in WORKLOADS.items())
    on_gpu = {*PRESETS["gpu"], *PRESETS["gpu-tf32"], *PRESETS["gpu-bf16"]} - {*PRESETS["all"]}
    for w in {*WORKLOADS.values()} - on_gpu:
        assert w.rows * w.sizes[0] * np.dtype(w.dtype).itemsize < 2**28, f"the data of {w.name} are large"


def test_those_for_a_gpu():
    sizes = {(w.sizes, w.batch) for w in PRESETS["gpu"]}
    assert sizes == {
        ((784, 512, 256, 10), 256),
        ((784, 512, 256, 10), 1024),
        ((784, 1024, 1024, 10), 65536),
        ((784, 4096, 4096, 10), 65536),
        ((64, 64, 64, 64, 10), 1048576),
    }
    for precision, itemsize in (("tf32", 4), ("bf16", 2)):
        for w, rounded in zip(PRESETS["gpu"], PRESETS[f"gpu-{precision}"], strict=True):
            assert rounded == replace(w, name=f"{w.name}-{precision}", precision=precision)
            assert rounded.describe().endswith(f", {precision}")
            assert w.describe().endswith(", float32")
            assert (w.itemsize, rounded.itemsize) == (4, itemsize)


def test_losses_are_compared_on_batches_that_numpy_can_do():
    for name in ("wider-65536", "narrow-1048576-tf32", "narrow"):
        work = find(name)
        checked = work.without_chance()
        assert (checked.batch, checked.rows, checked.sizes) == (4096, 8192, work.sizes)
    assert find("mnist-dropout").without_chance() == replace(find("mnist-dropout"), dropout=0.0)
    assert find("wide-predict-65536").without_chance().batch == 8192


def test_steps():
    w = find("mnist-last-smaller")
    assert w.steps == 16
    assert w.rows_per_step == 4000 / 16
    assert find("xor").steps == 1
    assert find("mnist-predict-65536").rows_per_step == 65536
    assert [rows_for(n) // n for n in (1, 256, 4095, 4096, 65536)] == [16, 16, 16, 2, 2]
    assert find("mnist").with_batch(64).rows == 1024


@pytest.mark.parametrize("name", WORKLOADS)
def test_data_and_weights(name):
    w = replace(find(name).scaled())
    X, y = make_data(w)
    assert X.shape == (w.rows, *w.in_shape)
    assert X.dtype == w.dtype
    assert y.shape == ((w.rows,) if w.loss == "cross_entropy" else (w.rows, w.sizes[-1]))
    if w.loss == "cross_entropy":
        assert set(y) == set(range(w.sizes[-1]))
    for a, b in zip(make_data(w), (X, y), strict=True):
        np.testing.assert_array_equal(a, b)
    weights = initial_weights(w)
    if w.network is not None:
        arrays = flat(weights)
        assert all(array.dtype == w.dtype and np.ptp(array) > 0 for array in arrays)
        return
    assert [(W.shape, b.shape) for W, b in weights] == [((m, n), (n,)) for m, n in w.layers]
    assert all(array.dtype == w.dtype and np.ptp(array) > 0 for layer in weights for array in layer if array.size > 1)
    if w.predict:
        assert prediction_rows(w).shape == (w.predict, w.sizes[0])


def test_xor_is_xor():
    X, y = make_data(find("xor"))
    np.testing.assert_array_equal(np.logical_xor(*X.T), y[:, 0] == 1)


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        find("xor").batch = 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (5,)}, "sizes must be two or more"),
        ({"sizes": (5, 0)}, "sizes must be two or more"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"predict": -1}, "predict must be at least 0"),
        ({"activation": "step"}, "activation must be one of relu, .*'step'"),
        ({"loss": "huber"}, "loss must be one of"),
        ({"optimizer": "lion"}, "optimizer must be one of adam, sgd, got 'lion'"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"loss": "binary_cross_entropy"}, "needs a single output"),
    ],
)
def test_errors(changes, message):
    fields = {"name": "mine", "sizes": (3, 4, 2), "batch": 2, "rows": 4} | changes
    with pytest.raises(ValueError, match=f"workload 'mine': .*{message}"):
        Workload(**fields)


def test_unknown():
    with pytest.raises(ValueError, match=r"workload 'cifar' is not known; known are xor, tiny.*mnist-last-smaller"):
        find("cifar")
