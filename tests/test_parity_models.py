"""Whole models on every backend: one seed gives one training."""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf
from nnfast import random
from nnfast.backends.base import Replay
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels import step_state as S
from nnfast.layers.graph import build_chain
from nnfast.parameters import Parameters
from nnfast.plan import Plan

# (rtol, atol) of losses and weights after some epochs: the policy's gradient row, whose rounding the steps add up
TOLERANCES = {"float64": (1e-10, 1e-11), "float32": (1e-4, 1e-4)}
dtypes = pytest.mark.parametrize("dtype", TOLERANCES)

ROWS, BATCH = 70, 16  # the last batch has 6 rows


def classifier() -> nf.Sequential:
    return nf.Sequential(
        [
            nf.Flatten(),
            nf.Dense(12, "tanh"),
            nf.BatchNorm(),
            nf.Dropout(0.3),
            nf.Dense(10, "gelu"),
            nf.LayerNorm(),
            nf.Dense(8, "elu(0.5)", bias=False),
            nf.Activation("softplus"),
            nf.Dropout(0.1),
            nf.Dense(3),
        ]
    )


def sequence_model() -> nf.Sequential:
    return nf.Sequential([nf.Dense(5, "silu"), nf.Dropout(0.2), nf.LayerNorm(), nf.Flatten(), nf.Dense(2, "sigmoid")])


def regressor() -> nf.Sequential:
    return nf.Sequential([nf.Flatten(), nf.BatchNorm(), nf.Dense(7, "mish"), nf.Dense(4, "softsign"), nf.Dense(1)])


def x_and_labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((ROWS, 2, 3))
    return x, (x.sum(axis=(1, 2)) > 0.5).astype(int) + (x[:, 0, 0] > 0)


X, LABELS = x_and_labels()
MODELS = {
    "classifier": (classifier, LABELS, {"loss": nf.CrossEntropy(0.05), "metrics": ["accuracy"]}),
    "sequence": (sequence_model, np.stack([LABELS > 0, LABELS > 1], axis=1), {"loss": "binary_cross_entropy"}),
    "regressor": (regressor, X.sum(axis=(1, 2)), {"loss": "huber", "metrics": ["mae"]}),
}


def train(name, backend, dtype="float64", **options):
    """A model after three epochs, and its history."""
    make, y, arguments = MODELS[name]
    model = make()
    arguments = {
        **arguments,
        "optimizer": nf.Adam(0.01, clip_norm=1.0, ema=0.9),
        "epochs": 3,
        "batch_size": BATCH,
        "seed": 11,
        "sample_weight": np.linspace(0.5, 1.5, ROWS),
        "validation_split": 0.2,
        "dtype": dtype,
        **options,
    }
    return model, model.fit(X, y, device=backend, verbose=0, **arguments)


def assert_same_training(one, other, dtype):
    """Equal curves and weights, to the policy."""
    (model, history), (reference, expected) = one, other
    rtol, atol = TOLERANCES[dtype]
    assert set(history) == set(expected)
    for name, curve in expected.items():
        np.testing.assert_allclose(history[name], curve, rtol=rtol, atol=atol, err_msg=name)
    weights = model.get_weights()
    for name, value in reference.get_weights().items():
        np.testing.assert_allclose(weights[name], value, rtol=rtol, atol=atol, err_msg=name)
    for name, value in reference.parameters.get_slots().items():
        np.testing.assert_allclose(model.parameters.get_slots()[name], value, rtol=rtol, atol=atol, err_msg=name)


# ---- whole trainings ---------------------------------------------------------------------------------------
@dtypes
@pytest.mark.parametrize("name", MODELS)
def test_training(any_backend, name, dtype):
    assert_same_training(train(name, any_backend, dtype), train(name, "numpy", dtype), dtype)


@dtypes
@pytest.mark.parametrize("name", MODELS)
def test_composed_equals_fused(any_backend, monkeypatch, name, dtype):
    fused = train(name, any_backend, dtype)
    monkeypatch.setattr(any_backend, "fused", False)
    assert_same_training(train(name, any_backend, dtype), fused, dtype)


@pytest.mark.parametrize("name", MODELS)
def test_twice_is_bit_for_bit_the_same(any_backend, name):
    (one, history), (other, expected) = (train(name, any_backend, "float32") for _ in range(2))
    assert {key: history[key] for key in history} == {key: expected[key] for key in expected}
    np.testing.assert_array_equal(one.get_flat_weights(), other.get_flat_weights())


@pytest.mark.parametrize(
    "optimizer",
    [
        nf.SGD(0.1, momentum=0.9, nesterov=True),
        nf.RMSprop(0.01, centered=True),
        nf.NAdam(0.01),
        nf.Lion(0.003),
        nf.AdamW(0.01),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_optimizers_in_training(any_backend, optimizer):
    options = {"optimizer": optimizer}
    assert_same_training(train("regressor", any_backend, **options), train("regressor", "numpy", **options), "float64")


def test_schedules_and_callbacks(any_backend):
    """The learning rate of each step comes from a table on the device."""
    options = {
        "optimizer": nf.SGD(nf.optimizers.schedules.OneCycle(lr=0.1)),
        "callbacks": [nf.EarlyStopping("val_loss", patience=1)],
        "epochs": 4,
    }
    assert_same_training(train("regressor", any_backend, **options), train("regressor", "numpy", **options), "float64")


@dtypes
@pytest.mark.parametrize("batch_size", [None, 32])
def test_evaluate_and_predict(any_backend, dtype, batch_size):
    model, _ = train("classifier", "numpy", dtype)
    weight = np.linspace(0.0, 2.0, ROWS)
    arguments = {"metrics": ["accuracy"], "sample_weight": weight, "batch_size": batch_size}
    expected, outputs = model.evaluate(X, LABELS, **arguments), model.predict(X)
    rtol, atol = TOLERANCES[dtype]
    results = model.evaluate(X, LABELS, device=any_backend, **arguments)
    assert model.device == any_backend.device
    assert results == pytest.approx(expected, rel=rtol)
    np.testing.assert_allclose(model.predict(X, batch_size=batch_size), outputs, rtol=rtol, atol=atol)
    np.testing.assert_array_equal(model.predict_classes(X), outputs.argmax(axis=1))


def test_evaluations_are_independent(any_backend):
    """Plans of inference are kept; neither an earlier sum nor an earlier NaN stays in one."""
    model, _ = train("regressor", "numpy")
    y, weights = MODELS["regressor"][1], model.get_weights()
    expected = model.evaluate(X, y, device=any_backend)
    for spoiled in (0.0, 1e200):
        model.set_weights({name: np.full_like(value, spoiled) for name, value in weights.items()})
        with np.errstate(all="ignore"):
            assert model.evaluate(X, y) != expected
        model.set_weights(weights)
        assert model.evaluate(X, y) == expected


@pytest.mark.parametrize("streamed", [False, True])
def test_iterable_of_batches_and_streaming(any_backend, monkeypatch, streamed):
    """Where rows come from makes no difference: the device's memory, the host's, or the user's own batches."""
    resident = train("regressor", any_backend, shuffle=streamed, validation_split=0.0, sample_weight=None)
    if streamed:
        monkeypatch.setattr("nnfast.training.loop.fits_on", lambda *_: False)
        other = train("regressor", any_backend, validation_split=0.0, sample_weight=None)
    else:
        make, y, _ = MODELS["regressor"]

        class Batches:
            def __iter__(self):
                return ((X[i : i + BATCH], y[i : i + BATCH]) for i in range(0, ROWS, BATCH))

        model = make()
        history = model.fit(
            Batches(),
            loss="huber",
            metrics=["mae"],
            optimizer=nf.Adam(0.01, clip_norm=1.0, ema=0.9),
            epochs=3,
            seed=11,
            dtype="float64",
            device=any_backend,
            verbose=0,
        )
        other = model, history
    assert_same_training(other, resident, "float64")


def test_moving_between_backends(any_backend):
    """Two epochs here and two there are four epochs."""
    make, y, _ = MODELS["regressor"]
    arguments = {"loss": "mse", "optimizer": "adam", "dtype": "float64", "verbose": 0}
    moved, stayed = make(), make()
    for model, second in ((moved, any_backend), (stayed, "numpy")):
        model.fit(X, y, epochs=2, seed=3, device="numpy", **arguments)
        model.fit(X, y, epochs=2, device=second, **arguments)
    np.testing.assert_allclose(moved.get_flat_weights(), stayed.get_flat_weights(), rtol=1e-10, atol=1e-11)


class RunsWhileRecording(NumpyBackend):
    """Recording may run the step, as a warm-up before a CUDA graph does."""

    def capture(self, step, temporary=(), before=lambda: None):
        for _ in range(2):
            before()
            step(self)
        return Replay(lambda: step(self))


@pytest.mark.parametrize("name", MODELS)
def test_recording_leaves_no_trace(name):
    assert_same_training(train(name, RunsWhileRecording()), train(name, "numpy"), "float64")


# ---- one seed: the same initial weights, shuffles and masks, bit for bit -----------------------------------
@dtypes
def test_initial_weights(any_backend, dtype):
    make, y, arguments = MODELS["classifier"]
    models = [make(), make()]
    for model, device in zip(models, ("numpy", any_backend), strict=True):
        model.fit(X, y, **arguments, optimizer=nf.SGD(0.0), seed=11, dtype=dtype, device=device, verbose=0)
    np.testing.assert_array_equal(models[1].get_flat_weights(), models[0].get_flat_weights())
    built = make().build((2, 3), seed=11, dtype=dtype)
    np.testing.assert_array_equal(built.get_flat_weights(), models[0].get_flat_weights())
    assert np.abs(make().build((2, 3), seed=12, dtype=dtype).get_flat_weights() - built.get_flat_weights()).max() > 0.1


def test_every_parameter_has_numbers_of_its_own():
    model = nf.Sequential([nf.Dense(4), nf.Dense(4, bias_initializer="normal"), nf.Dense(4)]).build(4, seed=0)
    drawn = [value for name, value in model.get_weights().items() if name.endswith("W")]
    assert all(np.abs(a - b).max() > 0.1 for a in drawn for b in drawn if a is not b)


class StepLosses(nf.Callback):
    """The loss of each step, by epoch."""

    def __init__(self):
        self.epochs = []

    def on_epoch_begin(self, epoch):
        self.epochs.append([])

    def on_step_end(self, step, logs):
        self.epochs[-1].append(logs["loss"])


@pytest.mark.parametrize("watched", [True, False])
def test_shuffle(any_backend, watched):
    """With a frozen model, one row per step and its own loss for each row, the losses are the order."""
    values = np.arange(20.0)[:, None]
    model = nf.Sequential([nf.Dense(1, initializer="ones")])
    losses = StepLosses()
    arguments = {
        "loss": "mae",
        "optimizer": nf.SGD(0.0),
        "seed": 5,
        "device": any_backend,
        "batch_size": 1,
        "verbose": 0,
    }
    history = model.fit(values, np.zeros(20), epochs=3, callbacks=[losses] if watched else [], **arguments)
    assert history["loss"] == [9.5] * 3
    if watched:
        orders = [random.permutation(5, epoch, 20).tolist() for epoch in range(3)]
        assert losses.epochs == orders
        assert orders[0] != orders[1] != orders[2]
        model.fit(values, np.zeros(20), epochs=1, callbacks=[losses], **arguments)
        assert losses.epochs[3] == random.permutation(5, 3, 20).tolist()
        model.fit(values, np.zeros(20), epochs=1, callbacks=[losses], shuffle=False, **arguments)
        assert losses.epochs[4] == list(range(20))


def expected_mask(shape, rate, seed, step, stream):
    """Which elements dropout keeps, by the contract in ``backends/base.py``."""
    size = int(np.prod(shape))
    counter = (np.arange(-(-size // 4)), stream, step & 0xFFFFFFFF, step >> 32)
    words = np.stack(random.philox_4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)), axis=-1).reshape(-1)[:size]
    return (words < random.keep_threshold(rate)).reshape(shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (5,), (7, 9), (3, 5, 11), (4096,)], ids=str)
@pytest.mark.parametrize(
    ("rate", "seed", "step", "stream"), [(0.5, 0, 1, 0), (0.1, 2**40 + 17, 3, 2), (0.9, 2**52 - 1, 2**32 + 5, 7)]
)
def test_masks(any_backend, dtype, shape, rate, seed, step, stream):
    host = np.zeros(S.SIZE)
    host[[S.SEED_LO, S.SEED_HI, S.STEP]] = seed & 0xFFFFFFFF, seed >> 32, step
    state, x = any_backend.asarray(host), any_backend.asarray(np.ones(shape, dtype))
    out = any_backend.zeros(shape, dtype)
    any_backend.dropout(x, state, rate=rate, stream=stream, out=out)
    mask = any_backend.to_numpy(out) != 0
    np.testing.assert_array_equal(mask, expected_mask(shape, rate, seed, step, stream))
    np.testing.assert_array_equal(any_backend.to_numpy(out)[mask], np.ones(shape, dtype)[mask] * (1.0 / (1.0 - rate)))


def test_masks_in_a_plan(any_backend):
    """Each step and each layer has a mask of its own, and a smaller batch a prefix of it, on every backend the same."""
    seed, rates = 2**33 + 9, (0.5, 0.25)
    built = build_chain(
        [nf.Dense(6, initializer=lambda s, r: np.eye(6)), nf.Dropout(rates[0]), nf.Dropout(rates[1])], (6,)
    )
    params = Parameters(built, any_backend, "float32")
    params.initialise(0)
    plan = Plan(
        built, params, 10, loss=nf.MeanSquaredError(), optimizer=nf.SGD(0.0), targets=[((6,), np.float32)], lr_steps=8
    )
    state = np.zeros(S.SIZE)
    state[[S.SEED_LO, S.SEED_HI]] = seed & 0xFFFFFFFF, seed >> 32
    plan.write_state(state)
    for step, rows in enumerate((10, 10, 3, 10), start=1):
        plan.feed(np.ones((rows, 6), np.float32), np.zeros((rows, 6), np.float32))
        plan.run(rows)
        first, second = (
            expected_mask((rows, 6), rate, seed, step, stream) for stream, rate in zip((1, 2), rates, strict=True)
        )
        np.testing.assert_array_equal(any_backend.to_numpy(plan.output(rows)) != 0, first & second)


def test_dropout_in_training_is_seeded(any_backend):
    losses = {
        seed: nf.Sequential([nf.Dropout(0.5), nf.Dense(1, initializer="ones")]).fit(
            np.ones((8, 9)),
            np.zeros(8),
            loss="mae",
            optimizer=nf.SGD(0.0),
            epochs=3,
            seed=seed,
            device=any_backend,
            verbose=0,
        )["loss"]
        for seed in (1, 2)
    }
    assert len(set(losses[1])) == 3  # another mask at each step
    assert losses[1] != losses[2]
    masks = [expected_mask((8, 9), 0.5, 1, step, 0) for step in (1, 2, 3)]
    assert losses[1] == pytest.approx([2.0 * mask.sum() / 8 for mask in masks])


# ---- odd sizes ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33])
def test_last_batch(any_backend, rows):
    """Fewer rows than a batch, exactly one batch, one row more."""
    rng = np.random.default_rng(rows)
    x, y = rng.standard_normal((rows, 4)), rng.standard_normal((rows, 2))
    results = []
    for device in ("numpy", any_backend):
        model = nf.Sequential([nf.Dense(5, "sigmoid"), nf.LayerNorm(), nf.Dense(2)])
        history = model.fit(
            x,
            y,
            loss="mse",
            optimizer=nf.Adam(0.01),
            epochs=3,
            batch_size=16,
            seed=2,
            dtype="float64",
            device=device,
            metrics=["rmse"],
            verbose=0,
        )
        results.append((model, history))
    assert_same_training(results[1], results[0], "float64")


def test_batches_of_many_sizes(any_backend):
    """More sizes than a plan keeps programs for."""
    rng = np.random.default_rng(0)
    trainers = [
        nf.Trainer(
            nf.Sequential([nf.Dense(4, "tanh"), nf.Dense(1)]),
            "mse",
            nf.SGD(0.1),
            device=device,
            batch_size=12,
            dtype="float64",
            seed=1,
        )
        for device in ("numpy", any_backend)
    ]
    for rows in [*range(12, 0, -1), *range(1, 13), 12, 1]:
        x, y = rng.standard_normal((rows, 3)), rng.standard_normal(rows)
        expected, loss = (trainer.step(x, y) for trainer in trainers)
        assert loss == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("norm", [nf.BatchNorm, nf.LayerNorm, lambda: nf.GroupNorm(4)], ids=["batch", "layer", "group"])
def test_layers_between_chains_of_tiles_see_whole_arrays(norm):
    """What runs tile by tile may keep only a tile of an array, but not of one that the norm in between reads."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((1600, 12)), rng.integers(0, 3, 1600)
    found = []
    for device in ("numpy", "numba"):
        model = nf.Sequential([nf.Dense(16, "relu"), norm(), nf.Dense(16, "tanh"), nf.Dense(3)])
        options = {"loss": "cross_entropy", "optimizer": nf.SGD(0.1), "batch_size": 1600, "epochs": 2, "seed": 0}
        model.fit(X, y, dtype="float64", device=device, verbose=0, **options)
        found.append(model.get_flat_weights())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-10)
