"""Recurrent layers: gradients, parity, PyTorch and Keras as outside oracles, masks, states that go on, errors."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnfast as nf
from nnfast.layers.base import BuildContext
from nnfast.layers.graph import build_chain
from nnfast.parameters import Parameters
from nnfast.testing import check_layer
from tests.cases import Chain, Padding, run_layer
from tests.oracle import DTYPES, close, dtypes, tensor, torch

CPU = ["numpy", "numba"]
KINDS = {
    "rnn tanh": lambda units, **options: nf.SimpleRNN(units, **options),
    "rnn relu": lambda units, **options: nf.SimpleRNN(units, "relu", **options),
    "gru after": lambda units, **options: nf.GRU(units, **options),
    "gru before": lambda units, **options: nf.GRU(units, reset_after=False, **options),
    "lstm": lambda units, **options: nf.LSTM(units, **options),
}
# Relu has a kink, and the others say all that a gradient check can say
SMOOTH = [kind for kind in KINDS if kind != "rnn relu"]


@pytest.fixture(autouse=True)
def _one_thread_of_torch():
    """Its threads would wait for these small products longer than these take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- gradients, parity, replay -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_and_parity(kind, sequences, reverse):
    check_layer(KINDS[kind](2, return_sequences=sequences, reverse=reverse), (3, 2), batch=2, backends=CPU)


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize(("steps", "features", "units", "batch"), [(1, 1, 1, 1), (2, 1, 3, 1), (5, 3, 1, 3)])
def test_odd_sizes(kind, steps, features, units, batch):
    check_layer(KINDS[kind](units, bias=units == 1), (steps, features), batch=batch, backends=CPU)


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("sequences", [False, True])
def test_bidirectional(merge, sequences):
    inner = nf.GRU(2, return_sequences=sequences, reverse=sequences)
    check_layer(nf.Bidirectional(inner, merge), (3, 2), batch=2, backends=CPU)


def test_on_the_emulated_device():
    emulator = pytest.importorskip("tests.cuda.emulator", reason="the emulated CUDA device is not there")
    device = emulator.emulated_backend()
    rng = np.random.default_rng(4)
    x, dy = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 6))
    layer = nf.Bidirectional(nf.LSTM(3))
    expected = run_layer(layer, nf.get_backend("numpy"), x, dy)
    for name, value in run_layer(layer, device, x, dy).items():
        close(value, expected[name], 1e-10, name)


# ---- what comes out ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_state_is_that_of_the_step_done_last(backend, rng, kind):
    x = rng.standard_normal((3, 4, 2))
    for reverse, last in ((False, -1), (True, 0)):
        all_steps = run_layer(KINDS[kind](5, return_sequences=True, reverse=reverse), backend, x, np.zeros((3, 4, 5)))[
            "y"
        ]
        alone = run_layer(KINDS[kind](5, reverse=reverse), backend, x, np.zeros((3, 5)))["y"]
        np.testing.assert_array_equal(alone, all_steps[:, last])


@pytest.mark.parametrize("kind", KINDS)
def test_reversed_is_forward_on_reversed_steps(backend, rng, kind):
    x, dy = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 4, 5))
    there = run_layer(KINDS[kind](5, return_sequences=True), backend, x, dy)
    back = run_layer(
        KINDS[kind](5, return_sequences=True, reverse=True), backend, x[:, ::-1].copy(), dy[:, ::-1].copy()
    )
    for name, value in there.items():
        close(back[name][:, ::-1] if name in ("y", "dx") else back[name], value, 1e-10, name)


def test_the_forget_gate_starts_open():
    layer = build_chain([nf.LSTM(3)], (2, 2))[0]
    b = next(spec for spec in layer.specs if spec.name == "b").init((12,), np.random.default_rng(0))
    np.testing.assert_array_equal(b, np.repeat([0.0, 1.0, 0.0, 0.0], 3))
    layer = build_chain([nf.LSTM(3, unit_forget_bias=False, bias_initializer="ones")], (2, 2))[0]
    b = next(spec for spec in layer.specs if spec.name == "b").init((12,), np.random.default_rng(0))
    np.testing.assert_array_equal(b, np.ones(12))


# ---- masks -------------------------------------------------------------------------------------------------
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], np.float64)


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("sequences", [False, True])
def test_gradients_with_padding(backend, rng, kind, sequences):
    layers = [Padding(MASK), KINDS[kind](2, return_sequences=sequences), nf.Dense(1)]
    x = rng.standard_normal((5, 4, 2))
    y = rng.standard_normal((5, 4, 1) if sequences else (5, 1))
    chain = Chain(layers, x, y, "mean_squared_error", backend)
    chain.step()
    nf.testing.check_gradient(chain.loss_at, chain.gradient(), chain.params.vector(), name=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_is_as_if_it_were_not_there(backend, rng, kind, bidirectional):
    x = rng.standard_normal((5, 4, 2))
    layer = KINDS[kind](3)
    layer = nf.Bidirectional(layer) if bidirectional else layer
    model = nf.Sequential([Padding(MASK), layer]).build((4, 2), dtype="float64")
    found = model.predict(x, device=backend, batch_size=5)
    for row, mask in enumerate(MASK.astype(bool)):
        if not mask.any():
            assert (found[row] == 0).all()
            continue
        short = nf.Sequential([layer]).build((int(mask.sum()), 2), dtype="float64")
        weights = {k: v for k, v in model.get_weights().items() if not k.startswith("padding")}
        short.set_weights(weights)
        close(found[row], short.predict(x[row : row + 1, mask], device=backend)[0], 1e-12)


def test_masks_go_on_only_with_all_steps():
    for layer, goes_on in (
        (nf.GRU(2), False),
        (nf.GRU(2, return_sequences=True), True),
        (nf.Bidirectional(nf.GRU(2)), False),
        (nf.Bidirectional(nf.GRU(2, return_sequences=True)), True),
    ):
        assert (build_chain([Padding(MASK), layer], (4, 2))[1].out_mask is not None) == goes_on


# ---- states that go on -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [False, True])
def test_a_stateful_layer_goes_on(backend, rng, kind, sequences):
    """Two halves of a sequence in two steps give what the whole one gives, in inference and in training."""
    x = rng.standard_normal((3, 6, 2))
    halves = x[:, :3].copy(), x[:, 3:].copy()
    whole = run_layer(KINDS[kind](4, return_sequences=True), backend, x, np.zeros((3, 6, 4)))["y"]
    expected = (whole[:, :3], whole[:, 3:]) if sequences else (whole[:, 2], whole[:, 5])
    layer = KINDS[kind](4, return_sequences=sequences, stateful=True)
    model = nf.Sequential([layer]).build((3, 2), dtype="float64")
    model.parameters.initialise(0)
    for _ in range(2):
        for half, value in zip(halves, expected, strict=True):
            close(model.predict(half, device=backend, batch_size=3), value, 1e-12)
        model.reset_states()
    bound = carried_arrays(layer, backend, training=True)
    for half, value in zip(halves, expected, strict=True):
        bound.forward(backend, backend.asarray(half), bound.y)
        close(backend.to_numpy(bound.y), value, 1e-12)


def carried_arrays(layer, backend, *, training):
    """A stateful layer of 4 units with weights of seed 0, bound to arrays of its own for 3 rows."""
    built = build_chain([layer], (3, 2))
    params = Parameters(built, backend, np.float64)
    params.initialise(0)
    arrays = params.of_layer(0, backend.zeros(params.size, np.float64))
    for spec in built[0].specs:
        if spec.kind in ("saved", "scratch", "carried"):
            kept = training or spec.kind != "saved"
            arrays[spec.name] = backend.zeros((3, *spec.shape), np.float64) if kept else None
    bound = built[0].layer.bind(arrays, training=training, stream=0)
    bound.y = backend.zeros((3, *built[0].out_shape), np.float64)
    return bound


@pytest.mark.parametrize("kind", SMOOTH)
def test_the_gradient_of_a_stateful_layer_stops_where_its_batch_begins(backend, rng, kind):
    """The second step's gradient is that of its own steps, from the state that the first one left."""
    x, dy = rng.standard_normal((3, 6, 2)), rng.standard_normal((3, 4))
    layer = KINDS[kind](4, stateful=True)
    bound = carried_arrays(layer, backend, training=True)

    def loss(W):
        again = carried_arrays(layer, backend, training=False)
        total = 0.0
        for half in range(2):
            if half == 1:
                backend.copy(W.reshape(again.W.shape), out=again.W)
            again.x = backend.asarray(x[:, 3 * half : 3 * half + 3].copy())
            again.forward(backend, again.x, again.y)
            total = float((backend.to_numpy(again.y) * dy).sum())
        return total

    for half in range(2):
        bound.x = backend.asarray(x[:, 3 * half : 3 * half + 3].copy())
        bound.forward(backend, bound.x, bound.y)
        bound.backward(backend, backend.asarray(dy.copy()), backend.zeros((3, 3, 2), np.float64))
    W = np.array(backend.to_numpy(bound.W))
    nf.testing.check_gradient(loss, np.array(backend.to_numpy(bound.dW)), W, name=f"{kind}: dW")


# ---- PyTorch -----------------------------------------------------------------------------------------------
MODULES = {
    "rnn tanh": (torch.nn.RNN, {}),
    "rnn relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "gru after": (torch.nn.GRU, {}),
    "lstm": (torch.nn.LSTM, {}),
}
torch_kinds = pytest.mark.parametrize("kind", MODULES)


def torch_module(kind, features, units, dtype, weights, **options):
    """PyTorch's layer with our `weights`: for each of its layers and directions W, U and the biases by name."""
    make, own = MODULES[kind]
    module = make(features, units, batch_first=True, dtype=getattr(torch, dtype), **own, **options)
    for suffix, named in weights.items():
        for name, value in (("weight_ih", named["W"].T), ("weight_hh", named["U"].T)):
            getattr(module, name + suffix).data = torch.tensor(value.copy())
        if options.get("bias", True):
            getattr(module, "bias_ih" + suffix).data = torch.tensor(named["b"])
            getattr(module, "bias_hh" + suffix).data = torch.tensor(named.get("c", 0 * named["b"]))
    return module


def compare_gradients(found, module, suffix, rtol, prefix=""):
    """Gradients of our weights against those of PyTorch's."""
    close(found[f"d{prefix}W"], getattr(module, "weight_ih" + suffix).grad.T, rtol, "dW")
    close(found[f"d{prefix}U"], getattr(module, "weight_hh" + suffix).grad.T, rtol, "dU")
    for name, theirs in (("b", "bias_ih"), ("c", "bias_hh")):
        if f"d{prefix}{name}" in found:
            close(found[f"d{prefix}{name}"], getattr(module, theirs + suffix).grad, rtol, "d" + name)


def of_layer(found, name, prefix=""):
    """The weights of one layer among the results of run_layer."""
    start = f"{name}.{prefix}"
    return {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}


def noise(shape, rng):
    return 0.4 * rng.standard_normal(shape)


NOISY = {"initializer": noise, "recurrent_initializer": noise, "bias_initializer": noise}


@dtypes
@torch_kinds
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "t", "k", "h"), [(1, 1, 1, 1), (3, 7, 2, 5), (17, 3, 5, 2), (2, 11, 3, 16)])
def test_against_torch(backend, rng, kind, bias, n, t, k, h, dtype):
    forward, gradient = DTYPES[dtype]
    x, dy = rng.standard_normal((n, t, k)), rng.standard_normal((n, t, h))
    layer = KINDS[kind](h, return_sequences=True, bias=bias, name="it", **NOISY)
    found = run_layer(layer, backend, x, dy, dtype)
    module = torch_module(kind, k, h, dtype, {"_l0": of_layer(found, "it")}, bias=bias)
    tx = tensor(x, dtype)
    ty = module(tx)[0]
    ty.backward(tensor(dy, dtype, grad=False))
    close(found["y"], ty, forward, "y")
    close(found["dx"], tx.grad, gradient, "dx")
    compare_gradients(found, module, "_l0", gradient)


@dtypes
@torch_kinds
@pytest.mark.parametrize("sequences", [False, True])
def test_bidirectional_against_torch(backend, rng, kind, sequences, dtype):
    forward, gradient = DTYPES[dtype]
    x, dy = rng.standard_normal((5, 4, 3)), rng.standard_normal((5, 4, 14) if sequences else (5, 14))
    inner = KINDS[kind](7, return_sequences=sequences, **NOISY)
    found = run_layer(nf.Bidirectional(inner, name="it"), backend, x, dy, dtype)
    ways = {"_l0": "forward_", "_l0_reverse": "backward_"}
    weights = {suffix: of_layer(found, "it", prefix) for suffix, prefix in ways.items()}
    module = torch_module(kind, 3, 7, dtype, weights, bidirectional=True)
    tx = tensor(x, dtype)
    ty = module(tx)[0]
    ty = ty if sequences else torch.cat([ty[:, -1, :7], ty[:, 0, 7:]], dim=1)
    ty.backward(tensor(dy, dtype, grad=False))
    close(found["y"], ty, forward, "y")
    close(found["dx"], tx.grad, gradient, "dx")
    for suffix, prefix in ways.items():
        compare_gradients(found, module, suffix, gradient, prefix)


@torch_kinds
def test_stacked_against_torch(backend, rng, kind):
    """Two layers on each other, both directions each, under a loss."""
    x, y = rng.standard_normal((6, 5, 3)), rng.standard_normal((6, 5, 8))
    layers = [nf.Bidirectional(KINDS[kind](4, return_sequences=True, **NOISY), name=name) for name in ("a", "b")]
    chain = Chain(layers, x, y, "mean_squared_error", backend)
    loss = chain.step()
    values = chain.params.get()
    grads = {e.key: e.view(chain.params.backend.to_numpy(chain.plan.grad)) for e in chain.params.entries}
    places = {
        f"_l{i}{suffix}": (name, prefix)
        for i, name in enumerate("ab")
        for suffix, prefix in (("", "forward_"), ("_reverse", "backward_"))
    }
    weights = {suffix: of_layer(values, *place) for suffix, place in places.items()}
    module = torch_module(kind, 3, 4, "float64", weights, bidirectional=True, num_layers=2)
    expected = torch.nn.functional.mse_loss(module(tensor(x, "float64"))[0], tensor(y, "float64", grad=False))
    expected.backward()
    close(loss, expected, 1e-12)
    for suffix, place in places.items():
        found = {"d" + name: value for name, value in of_layer(grads, *place).items()}
        compare_gradients(found, module, suffix, 1e-10)


@settings(deadline=None, max_examples=25, derandomize=True, database=None)
@given(
    kind=st.sampled_from(sorted(MODULES)),
    n=st.integers(1, 9),
    t=st.integers(1, 9),
    k=st.integers(1, 9),
    h=st.integers(1, 20),
    reverse=st.booleans(),
    sequences=st.booleans(),
)
def test_any_sizes_against_torch(kind, n, t, k, h, reverse, sequences):
    rng = np.random.default_rng(n + 10 * t + 100 * k + 1000 * h)
    x, dy = rng.standard_normal((n, t, k)), rng.standard_normal((n, t, h) if sequences else (n, h))
    layer = KINDS[kind](h, return_sequences=sequences, reverse=reverse, name="it", **NOISY)
    found = run_layer(layer, nf.get_backend("numba"), x, dy)
    module = torch_module(kind, k, h, "float64", {"_l0": of_layer(found, "it")})
    tx = tensor(x[:, ::-1].copy() if reverse else x, "float64")
    ty = module(tx)[0]
    ty = ty.flip(1) if reverse else ty
    ty = ty if sequences else ty[:, 0 if reverse else -1]
    ty.backward(tensor(dy, "float64", grad=False))
    close(found["y"], ty, 1e-12, "y")
    close(found["dx"], tx.grad.flip(1) if reverse else tx.grad, 1e-10, "dx")
    compare_gradients(found, module, "_l0", 1e-10)


# ---- Keras -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras")


def keras_weights(kind, named):
    """Ours as Keras orders them: its GRU has update before reset."""
    if not kind.startswith("gru"):
        return [named["W"], named["U"], named["b"]]

    def swapped(a):
        r, z, n = np.split(a, 3, axis=-1)
        return np.concatenate((z, r, n), axis=-1)

    bias = np.stack((named["b"], named["c"])) if "c" in named else named["b"]
    return [swapped(named["W"]), swapped(named["U"]), swapped(bias)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("kind", ["rnn tanh", "gru before", "gru after", "lstm"])
def test_outputs_are_those_of_keras(keras, backend, rng, kind, sequences, masked):
    x = rng.standard_normal((5, 4, 3)).astype(np.float32)
    layers = [KINDS[kind](6, return_sequences=sequences, name="it", **NOISY)]
    model = nf.Sequential([Padding(MASK), *layers] if masked else layers).build((4, 3), dtype="float32")
    found = model.predict(x, device=backend, batch_size=5)
    own = keras.layers
    options = {"return_sequences": sequences}
    theirs = {
        "rnn tanh": lambda: own.SimpleRNN(6, **options),
        "gru before": lambda: own.GRU(6, reset_after=False, **options),
        "gru after": lambda: own.GRU(6, **options),
        "lstm": lambda: own.LSTM(6, **options),
    }[kind]()
    theirs.build(x.shape)
    theirs.set_weights(keras_weights(kind, of_layer(model.get_weights(), "it")))
    # Where all of a row is padding, and for steps before the first one that is not, Keras gives zeros as well
    expected = theirs(x, mask=MASK.astype(bool) if masked else None)
    close(found, np.asarray(expected.detach().cpu()), 1e-5)


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
def test_bidirectional_outputs_are_those_of_keras(keras, backend, rng, merge, sequences):
    x = rng.standard_normal((5, 4, 3)).astype(np.float32)
    inner = nf.LSTM(6, return_sequences=sequences, **NOISY)
    model = nf.Sequential([nf.Bidirectional(inner, merge, name="it")]).build((4, 3), dtype="float32")
    theirs = keras.layers.Bidirectional(keras.layers.LSTM(6, return_sequences=sequences), merge_mode=merge)
    theirs.build(x.shape)
    weights = model.get_weights()
    theirs.set_weights(
        [w for prefix in ("forward_", "backward_") for w in keras_weights("lstm", of_layer(weights, "it", prefix))]
    )
    expected = np.asarray(theirs(x).detach().cpu())
    close(model.predict(x, device=backend), expected, 1e-5)


# ---- training, files, descriptions -------------------------------------------------------------------------
def test_learns_to_remember_the_first_step():
    """Natively, with the same losses as NumPy."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 8, 2)).astype(np.float32)
    y = (x[:, 0, 0] > 0).astype(np.int64)
    losses = {}
    for device in CPU:
        model = nf.Sequential([nf.LSTM(12), nf.Dense(2)])
        history = model.fit(
            x, y, loss="cross_entropy", optimizer=nf.Adam(0.03), epochs=12, batch_size=50, seed=1, verbose=0,
            device=device, precision="float64",
        )  # fmt: skip
        losses[device] = history["loss"]
    np.testing.assert_allclose(losses["numba"], losses["numpy"], rtol=1e-6)
    assert losses["numba"][-1] < 0.2


LAYERS = {
    "rnn": nf.SimpleRNN(3, "relu", return_sequences=True, reverse=True, bias=False),
    "gru": nf.GRU(3, reset_after=False, initializer="he_normal"),
    "lstm": nf.LSTM(3, stateful=True, recurrent_initializer=nf.initializers.Orthogonal(0.5), unit_forget_bias=False),
    "bidirectional": nf.Bidirectional(nf.LSTM(2, return_sequences=True), "mul"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_files_and_descriptions(tmp_path, rng, name):
    layer = LAYERS[name]
    assert json.loads(json.dumps(layer.config())) == layer.config()
    model = nf.Sequential([layer]).build((4, 2), dtype="float64")
    model.save(tmp_path / "m.safetensors")
    again = nf.load(tmp_path / "m.safetensors")
    assert again.layers[0].config() == layer.config()
    assert type(again.layers[0]) is type(layer)
    x = rng.standard_normal((3, 4, 2))
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


# ---- errors ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nf.LSTM(0), ValueError, "LSTM: units must be at least 1, got 0"),
        (lambda: nf.GRU(2.5), TypeError, "GRU: units must be an integer, not float"),
        (lambda: nf.SimpleRNN(2, "gelu"), ValueError, "SimpleRNN: the activation must be tanh or relu, got 'gelu'"),
        (lambda: nf.Bidirectional(nf.Dense(2)), TypeError, "Bidirectional takes a SimpleRNN, GRU or LSTM, not Dense"),
        (lambda: nf.Bidirectional(nf.GRU(2), "max"), ValueError, "merge must be one of concat, sum, mul, ave"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("make", [nf.SimpleRNN, nf.GRU, nf.LSTM])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3,), r"{} takes sequences, rows of shape \(steps, features\), got rows of shape \(3,\)"),
        ((2, 3, 4), r"{} takes sequences, .* got rows of shape \(2, 3, 4\)"),
        ((0, 3), r"{} takes sequences of at least one step and one feature, got \(0, 3\)"),
        ((3, 0), r"{} takes sequences of at least one step and one feature, got \(3, 0\)"),
    ],
)
def test_wrong_inputs(make, shape, message):
    with pytest.raises(ValueError, match=message.format(make.__name__)):
        make(3).build(shape, BuildContext())
    with pytest.raises(ValueError, match=message.format(make.__name__)):
        nf.Bidirectional(make(3)).build(shape, BuildContext())
