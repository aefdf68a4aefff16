"""Properties that hold for any data: nothing is changed that was lent, and equal things give equal results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnfast as nf
from tests.cases import Chain

SETTINGS = settings(deadline=None, max_examples=8, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)
rows = st.integers(1, 40)


@pytest.fixture(scope="module", params=["numpy", "numba"])
def device(request):
    reason = nf.available_devices()[request.param]
    if reason is not None:
        pytest.skip(reason)
    return request.param


def model_of(units=3, *, dropout=True):
    return nf.Sequential([nf.Dense(6, "tanh"), nf.Dropout(0.2 if dropout else 0.0), nf.LayerNorm(), nf.Dense(units)])


def data_of(seed, n, features=4):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, features)).astype(np.float32), rng.integers(0, 3, n)


def fit(model, x, y, device, **options):
    arguments = {
        "loss": "cross_entropy",
        "optimizer": nf.Adam(0.01),
        "epochs": 2,
        "batch_size": 8,
        "seed": 4,
        "verbose": 0,
    }
    model.fit(x, y, device=device, **{**arguments, **options})
    return model


# ---- inputs ------------------------------------------------------------------------------------------------
@SETTINGS
@given(
    seed=seeds,
    n=st.integers(4, 40),
    dtype=st.sampled_from(["float32", "float64", "int16", "float16"]),
    shuffle=st.booleans(),
)
def test_inputs_are_never_changed(device, seed, n, dtype, shuffle):
    x, y = data_of(seed, n)
    x = (10 * x).astype(dtype)
    weight = np.random.default_rng(seed).random(n) + 0.1
    lent = (x, y, weight)
    kept = [array.copy() for array in lent]
    options = {"shuffle": shuffle, "sample_weight": weight, "metrics": ["accuracy"], "validation_split": 0.25}
    model = fit(model_of(), x, y, device, class_weight={0: 2.0}, validation_data=None, **options)
    fit(model_of(), x, y, device, validation_data=lent)
    model.predict(x)
    model.predict(x, batch_size=3)
    model.predict_proba(x)
    model.evaluate(x, y, metrics=["accuracy"], sample_weight=weight)
    trainer = nf.Trainer(model, "cross_entropy", device=device)
    trainer.step(x, y, weight)
    for array, before in zip(lent, kept, strict=True):
        assert array.dtype == before.dtype
        np.testing.assert_array_equal(array, before)


def test_predictions_are_the_callers_own(device):
    """The next call, and the next step, do not write into a result that was handed out."""
    x, y = data_of(0, 20)
    model = fit(model_of(), x, y, device)
    first = model.predict(x)
    kept = first.copy()
    model.predict(2.0 * x)
    fit(model, x, y, device)
    np.testing.assert_array_equal(first, kept)
    assert first.flags.writeable


LAYOUTS = {
    "strided": lambda x: np.repeat(x, 2, axis=0)[::2],
    "strided columns": lambda x: np.repeat(x, 3, axis=1)[:, ::3],
    "reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "column-major": np.asfortranarray,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "unaligned": lambda x: np.frombuffer(b"-" + x.tobytes(), x.dtype, x.size, 1).reshape(x.shape),
    "list": lambda x: x.tolist(),
    "float64": lambda x: x.astype(np.float64),
}


def read_only(x):
    if isinstance(x, np.ndarray):
        x.setflags(write=False)
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
@SETTINGS
@given(seed=seeds, n=st.integers(4, 30))
def test_layout_and_byte_order_do_not_matter(device, layout, seed, n):
    x, y = data_of(seed, n)
    other_x, other_y = (
        read_only(LAYOUTS[layout](array)) if array.ndim == 2 or layout != "strided columns" else array
        for array in (x, y)
    )
    weight = read_only(np.linspace(0.5, 1.5, n))
    one = fit(model_of(), x, y, device, sample_weight=weight, metrics=["accuracy"])
    other = fit(model_of(), other_x, other_y, device, sample_weight=weight, metrics=["accuracy"])
    np.testing.assert_array_equal(other.get_flat_weights(), one.get_flat_weights())
    np.testing.assert_array_equal(one.predict(other_x), one.predict(x))
    assert one.evaluate(other_x, other_y) == one.evaluate(x, y)
    losses = [
        nf.Trainer(model, "cross_entropy", device=device).step(*pair)
        for model, pair in ((one, (x, y)), (other, (other_x, other_y)))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float16", ">i4", ">f2"])
@SETTINGS
@given(seed=seeds, n=st.integers(4, 30))
def test_numbers_that_float32_holds_exactly(device, dtype, seed, n):
    narrow = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 100, (n, 4)).astype(dtype)
    wide, y = narrow.astype(np.float32), data_of(seed, n)[1]
    one, other = (fit(model_of(), x, y, device) for x in (wide, narrow))
    np.testing.assert_array_equal(other.get_flat_weights(), one.get_flat_weights())
    np.testing.assert_array_equal(other.predict(narrow), one.predict(wide))


# ---- training ----------------------------------------------------------------------------------------------
@SETTINGS
@given(
    seed=seeds,
    n=rows,
    dtype=st.sampled_from(["float32", "float64"]),
    optimizer=st.sampled_from([nf.SGD(0.1, momentum=0.9), nf.Adam(0.01, ema=0.9), nf.NAdam(0.01), nf.RMSprop(0.01)]),
)
def test_save_then_load_is_bit_identical(device, tmp_path_factory, seed, n, dtype, optimizer):
    x, y = data_of(seed, n)
    model = nf.Sequential([nf.BatchNorm(), *model_of().layers])
    model = fit(model, x, y, device, dtype=dtype, optimizer=optimizer, loss=nf.CrossEntropy(0.1))
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    model.save(path)
    again = nf.load(path, device=device)
    for name, value in model.get_weights().items():
        np.testing.assert_array_equal(again.get_weights()[name], value)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert again.evaluate(x, y) == model.evaluate(x, y)
    # Training goes on as if there had been no file
    for one in (model, again):
        one.fit(x, y, optimizer=optimizer, epochs=2, batch_size=8, dtype=dtype, device=device, verbose=0)
    np.testing.assert_array_equal(again.get_flat_weights(), model.get_flat_weights())


@SETTINGS
@given(seed=seeds, n=rows, name=st.sampled_from(sorted(nf.optimizers.TABLE)), decay=st.sampled_from([0.0, 0.1]))
def test_a_zero_learning_rate_changes_nothing(device, seed, n, name, decay):
    x, y = data_of(seed, n)
    model = model_of().build(4, seed=seed)
    before = model.get_weights()
    optimizer = nf.optimizers.get(name, lr=0.0, weight_decay=decay, clip_norm=1.0, ema=0.5)
    fit(model, x, y, device, optimizer=optimizer)
    for key, value in model.get_weights().items():
        np.testing.assert_array_equal(value, before[key])
    with model.averaged():
        np.testing.assert_allclose(
            model.get_flat_weights(), np.concatenate([v.ravel() for v in before.values()]), rtol=1e-6
        )


@SETTINGS
@given(seed=seeds, n=st.integers(2, 20), parts=st.integers(1, 6), weighted=st.booleans())
def test_micro_batches_give_the_same_summed_gradient(device, seed, n, parts, weighted):
    """The mean's gradient is that of the parts, each by its share of the weight."""
    x, y = data_of(seed, n)
    x = x.astype(np.float64)
    weight = np.random.default_rng(seed).random(n) + 0.1 if weighted else None
    share = np.ones(n) if weight is None else weight
    layers = model_of(dropout=False).layers
    backend = nf.get_backend(device)

    def gradient(part):
        chain = Chain(
            layers, x[part], y[part], "cross_entropy", backend, weight=None if weight is None else weight[part]
        )
        return chain.step() * share[part].sum(), chain.gradient() * share[part].sum()

    loss, whole = gradient(slice(None))
    pieces = [gradient(part) for part in np.array_split(np.arange(n), min(parts, n))]
    np.testing.assert_allclose(sum(piece[0] for piece in pieces), loss, rtol=1e-12)
    np.testing.assert_allclose(sum(piece[1] for piece in pieces), whole, rtol=1e-9, atol=1e-11)


@SETTINGS
@given(seed=seeds, n=st.integers(1, 20), loss=st.sampled_from(["cross_entropy", "mse", "huber", "hinge", "poisson"]))
def test_a_row_given_twice_is_a_row_of_weight_two(device, seed, n, loss):
    x, labels = data_of(seed, n)
    x = x.astype(np.float64)
    y = labels if loss == "cross_entropy" else np.eye(3)[labels]
    row = seed % n
    weight = np.ones(n)
    weight[row] = 2.0
    layers, backend = model_of(dropout=False).layers, nf.get_backend(device)
    weighted = Chain(layers, x, y, loss, backend, weight=weight)
    twice = Chain(layers, np.append(x, x[row : row + 1], axis=0), np.append(y, y[row : row + 1], axis=0), loss, backend)
    np.testing.assert_allclose(weighted.step(), twice.step(), rtol=1e-12)
    np.testing.assert_allclose(weighted.gradient(), twice.gradient(), rtol=1e-9, atol=1e-11)
    # A row of weight 0 is as good as absent
    weight[row] = 0.0
    if n > 1:
        without = Chain(layers, np.delete(x, row, axis=0), np.delete(y, row, axis=0), loss, backend)
        ignored = Chain(layers, x, y, loss, backend, weight=weight)
        np.testing.assert_allclose(ignored.step(), without.step(), rtol=1e-12)
        np.testing.assert_allclose(ignored.gradient(), without.gradient(), rtol=1e-9, atol=1e-11)


# ---- the function that a model is --------------------------------------------------------------------------
@SETTINGS
@given(seed=seeds, n=rows, shift=st.floats(-1e4, 1e4))
def test_softmax_and_its_loss_do_not_see_a_shift(device, seed, n, shift):
    rng = np.random.default_rng(seed)
    z, backend = 5.0 * rng.standard_normal((n, 7)), nf.get_backend(device)
    y = rng.integers(0, 7, n)
    results = []
    for logits in (z, z + shift, z + rng.uniform(-1, 1, (n, 1)) * shift):
        out, dz, state = np.empty_like(z), np.empty_like(z), np.zeros(32)
        backend.act("softmax", logits, out=out)
        backend.softmax_xent(logits, y, None, state, dlogits=dz)
        np.testing.assert_allclose(out.sum(axis=1), 1.0, rtol=1e-12)
        results.append((out, dz, state.copy()))
    for other in results[1:]:
        for value, expected in zip(other, results[0], strict=True):
            # z + shift is rounded to multiples of 1e4 * eps
            np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-13)


@SETTINGS
@given(seed=seeds, n=rows)
def test_permuting_hidden_units_leaves_the_outputs(device, seed, n):
    x, _ = data_of(seed, n)
    model = nf.Sequential([nf.Dense(9, "gelu"), nf.BatchNorm(), nf.Dense(5, "relu"), nf.Dense(2)]).build(
        4, seed=seed, dtype="float64"
    )
    model.place(device)
    expected = model.predict(x)
    weights, rng = model.get_weights(), np.random.default_rng(seed)
    first, second = rng.permutation(9), rng.permutation(5)
    weights["dense.W"], weights["dense.b"] = weights["dense.W"][:, first], weights["dense.b"][first]
    for name in ("gamma", "beta", "running_mean", "running_var"):
        weights[f"batchnorm.{name}"] = weights[f"batchnorm.{name}"][first]
    weights["dense_1.W"], weights["dense_1.b"] = weights["dense_1.W"][first][:, second], weights["dense_1.b"][second]
    weights["dense_2.W"] = weights["dense_2.W"][second]
    model.set_weights(weights)
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-11, atol=1e-13)


@SETTINGS
@given(seed=seeds, n=st.integers(0, 50), batch_size=st.integers(1, 60))
def test_predicting_in_chunks_is_predicting_at_once(device, seed, n, batch_size):
    x, y = data_of(seed, n)
    model = nf.Sequential([nf.BatchNorm(), *model_of().layers]).build(4, seed=seed)
    model.place(device)
    at_once = model.predict(x)
    assert at_once.shape == (n, 3)
    np.testing.assert_allclose(model.predict(x, batch_size=batch_size), at_once, rtol=1e-5, atol=1e-6)
    if n:
        whole, parts = (
            model.evaluate(x, y, loss="cross_entropy", batch_size=size)["loss"] for size in (None, batch_size)
        )
        assert parts == pytest.approx(whole, rel=1e-5)


@SETTINGS
@given(seed=seeds, n=rows)
def test_rows_do_not_see_each_other_in_inference(device, seed, n):
    """Whatever else is in the batch, an output depends on its own row only."""
    x, _ = data_of(seed, n)
    model = nf.Sequential([nf.BatchNorm(), *model_of().layers]).build(4, seed=seed)
    model.place(device)
    order = np.random.default_rng(seed).permutation(n)
    np.testing.assert_allclose(model.predict(x[order]), model.predict(x)[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(x[-1:]), model.predict(x)[-1:], rtol=1e-5, atol=1e-6)
