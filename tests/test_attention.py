"""Attention, embedding, positions and RMSNorm: gradients, PyTorch as an oracle, masks, errors."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnfast as nf
from nnfast import layers, losses
from nnfast.kernels import step_state as S
from nnfast.layers.base import BuildContext
from nnfast.layers.graph import build_chain
from nnfast.layers.positions import sinusoids
from nnfast.parameters import Parameters
from nnfast.plan import Plan
from nnfast.testing import check_gradient, check_layer
from tests.oracle import DTYPES, F, close, dtypes, tensor, torch

NUMPY, NUMBA = nf.devices.get_backend("numpy"), nf.devices.get_backend("numba")


@pytest.fixture(scope="module", autouse=True)
def _one_thread_of_torch():
    """Its threads wait for each other for longer than these small arrays take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(shape, rng):
    """Weights whose products neither die out nor grow."""
    return rng.standard_normal(shape) / np.sqrt(shape[0])


def bias(shape, rng):
    return 0.3 * rng.standard_normal(shape)


def bound(layer, inputs, backend, dtype, *, training=True, **masks):
    """A layer with arrays of its own, all NaN but the parameters, and its output; `inputs` is a list where many are.

    Returns the bound layer and the parameters on the host.
    """
    rows = len(inputs[0]) if layer.many else len(inputs)
    shapes = [x.shape[1:] for x in inputs] if layer.many else inputs.shape[1:]
    ctx = BuildContext()
    out_shape = layer.build(shapes, ctx)
    rng = np.random.default_rng(17)
    arrays: dict[str, Any] = {}
    host = {}

    def nans(*shape):
        return backend.asarray(np.full(shape, np.nan, dtype))

    for spec in ctx.specs:
        if spec.kind in ("param", "buffer"):
            host[spec.name] = np.asarray(spec.init(spec.shape, rng), dtype)
            arrays[spec.name] = backend.asarray(host[spec.name])
            if spec.kind == "param":
                arrays["d" + spec.name] = nans(*spec.shape)
        elif spec.kind == "saved" and not training:
            arrays[spec.name] = None
        else:
            arrays[spec.name] = nans(rows, *spec.shape) if spec.per_row else nans(*spec.shape)
    result = layer.bind({**arrays, **masks}, training=training, stream=0)

    def asked(x):
        return backend.asarray(x if layer.takes_indices else x.astype(dtype))

    result.x = [asked(x) for x in inputs] if layer.many else asked(inputs)
    result.y = nans(rows, *out_shape)
    result.forward(backend, result.x, result.y)
    return result, host


def run(layer, inputs, backend, dtype="float64", dy=None, **masks):
    """Output, gradients of inputs and parameters, and the parameters, on the host; `dy` is of the output."""
    layer, host = bound(layer, inputs, backend, dtype, **masks)
    results = {"y": np.array(backend.to_numpy(layer.y)), **host}
    if dy is None:
        dy = np.random.default_rng(5).standard_normal(layer.y.shape)
    results["dy"] = dy.astype(dtype)
    dx = None
    if not layer.takes_indices:
        dx = [np.full(x.shape, np.nan, dtype) for x in inputs] if layer.many else np.full(inputs.shape, np.nan, dtype)
    layer.backward(backend, backend.asarray(dy.astype(dtype)), dx)
    results["dx"] = dx
    for name in host:
        if hasattr(layer, "d" + name):
            results["d" + name] = np.array(backend.to_numpy(getattr(layer, "d" + name)))
    return results


# ---- gradients, parity, replay -----------------------------------------------------------------------------
LAYERS = [
    (nf.MultiHeadAttention(1), (1, 1)),
    (nf.MultiHeadAttention(2), (5, 4)),
    (nf.MultiHeadAttention(2, 3, out_features=5), (4, 7)),
    (nf.MultiHeadAttention(2, causal=True, bias=False), (5, 4)),
    (nf.MultiHeadAttention(2, causal=True, rotary=True), (4, 8)),
    (nf.MultiHeadAttention(3, 2, rotary=50.0, bias_initializer="uniform"), (3, 3)),
    (nf.PositionalEmbedding(), (3, 4)),
    (nf.PositionalEmbedding(length=5), (3, 4)),
    (nf.PositionalEmbedding("sinusoidal"), (3, 5)),
    (nf.RMSNorm(), (6,)),
    (nf.RMSNorm(0.1), (2, 5)),
    (nf.RMSNorm(), (2, 3, 4)),
    (nf.Masking(), (3, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_layer(backend, layer, shape):
    check_layer(layer, shape, batch=3, backends=[backend])


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_of_cross_attention(masked):
    rng = np.random.default_rng(1)
    asks, looked_at = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 3))
    mask = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], np.float64) if masked else None
    layer = nf.CrossAttention(2, initializer=small, bias_initializer=bias)
    masks = {"masks": [None, mask]}
    results = run(layer, [asks, looked_at], NUMPY, **masks)

    def loss(inputs, **weights):
        # The same draws give the same weights; one of them is replaced
        one, _ = bound(layer, inputs, NUMPY, "float64", **masks)
        for name, value in weights.items():
            setattr(one, name, value)
        one.forward(NUMPY, one.x, one.y)
        return float((one.y * results["dy"]).sum())

    check_gradient(lambda x: loss([x, looked_at]), results["dx"][0], asks, name="dx of what asks")
    check_gradient(lambda x: loss([asks, x]), results["dx"][1], looked_at, name="dx of what is looked at")
    for name in ("W_q", "b_q", "W_kv", "b_kv", "W_out", "b_out"):
        value, gradient = results[name], results["d" + name]
        check_gradient(lambda x, n=name: loss([asks, looked_at], **{n: x}), gradient, value, name=name)


# ---- PyTorch -----------------------------------------------------------------------------------------------
# heads, features of the input
WIDTHS = [(1, 1), (1, 5), (2, 4), (3, 9), (4, 28), (7, 7)]
STEPS = [1, 2, 7, 13]


def mask_like(rng, n, steps, dtype):
    """At least the first step, so that every step sees something with a causal mask, too."""
    mask = rng.random((n, steps)) < 0.6
    mask[:, 0] = True
    return mask.astype(dtype)


def torch_attention(q, k, v, heads, mask=None, causal=False):
    """PyTorch's own, on (n, steps, heads * d), where `mask` is an array."""

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    q, k, v = split(q), split(k), split(v)
    seen = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool)
    if mask is not None:
        seen &= torch.tensor(mask != 0)[:, None, None, :]
    if causal:
        seen &= torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return y.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("heads", "features"), WIDTHS)
def test_self_attention_is_that_of_torch(backend, heads, features, steps, masked, causal):
    """``nn.MultiheadAttention`` with our weights, in both types."""
    rng = np.random.default_rng(heads * steps)
    x = rng.standard_normal((2, steps, features))
    for dtype, (forward, gradient) in DTYPES.items():
        mask = mask_like(rng, 2, steps, dtype) if masked else None
        layer = nf.MultiHeadAttention(heads, causal=causal, initializer=small, bias_initializer=bias)
        results = run(layer, x, backend, dtype, mask=mask)
        module = torch.nn.MultiheadAttention(features, heads, batch_first=True, dtype=getattr(torch, dtype))
        with torch.no_grad():
            module.in_proj_weight.copy_(torch.tensor(results["W_qkv"].T))
            module.in_proj_bias.copy_(torch.tensor(results["b_qkv"]))
            module.out_proj.weight.copy_(torch.tensor(results["W_out"].T))
            module.out_proj.bias.copy_(torch.tensor(results["b_out"]))
        hidden = None if mask is None else torch.tensor(mask == 0)
        later = torch.ones(steps, steps, dtype=torch.bool).triu(1) if causal else None
        tx = tensor(x, dtype)
        ty, _ = module(tx, tx, tx, key_padding_mask=hidden, attn_mask=later, need_weights=False)
        ty.backward(torch.tensor(results["dy"]))
        close(results["y"], ty, forward, "y")
        close(results["dx"], tx.grad, gradient, "dx")
        close(results["dW_qkv"], module.in_proj_weight.grad.T, gradient, "dW_qkv")
        close(results["db_qkv"], module.in_proj_bias.grad, gradient, "db_qkv")
        close(results["dW_out"], module.out_proj.weight.grad.T, gradient, "dW_out")
        close(results["db_out"], module.out_proj.bias.grad, gradient, "db_out")


@dtypes
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 7), (5, 2), (3, 3), (11, 13)])
@pytest.mark.parametrize(("heads", "each", "out_features"), [(1, 3, None), (2, 5, 4), (3, None, 7)])
def test_cross_attention_is_that_of_torch(backend, dtype, heads, each, out_features, t, s, masked):
    rng = np.random.default_rng(t * s)
    asks, looked_at = rng.standard_normal((2, t, 6)), rng.standard_normal((2, s, 5))
    mask = mask_like(rng, 2, s, dtype) if masked else None
    layer = nf.CrossAttention(
        heads, each, out_features=out_features, initializer=small, bias_initializer=bias, bias=each != 5
    )
    results = run(layer, [asks, looked_at], backend, dtype, masks=[None, mask])
    forward, gradient = DTYPES[dtype]
    tx, tz = tensor(asks, dtype), tensor(looked_at, dtype)
    weights = {name: tensor(results[name], dtype) for name in results if name[:2] in ("W_", "b_")}
    q = tx @ weights["W_q"] + weights.get("b_q", 0.0)
    k, v = (tz @ weights["W_kv"] + weights.get("b_kv", 0.0)).chunk(2, dim=-1)
    ty = torch_attention(q, k, v, heads, mask) @ weights["W_out"] + weights.get("b_out", 0.0)
    ty.backward(torch.tensor(results["dy"]))
    close(results["y"], ty, forward, "y")
    for name, found, expected in (("x", results["dx"][0], tx.grad), ("z", results["dx"][1], tz.grad)):
        close(found, expected, gradient, "d" + name)
    for name, value in weights.items():
        close(results["d" + name], value.grad, gradient, "d" + name)
    assert layer.bias == ("b_q" in weights)


@dtypes
@pytest.mark.parametrize(("heads", "each"), [(1, 2), (2, 6), (3, 4)])
@pytest.mark.parametrize("base", [True, 100.0])
def test_rotary_positions_by_complex_numbers(backend, rng, dtype, heads, each, base):
    steps, features = 6, 5
    x = rng.standard_normal((2, steps, features))
    layer = nf.MultiHeadAttention(heads, each, rotary=base, causal=True, initializer=small, bias_initializer=bias)
    results = run(layer, x, backend, dtype)
    wave = (10_000.0 if base is True else base) ** (-2.0 * torch.arange(each // 2, dtype=torch.float64) / each)
    angles = torch.arange(steps, dtype=torch.float64)[:, None] * wave
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64 if dtype == "float32" else torch.complex128)

    def turned(u):
        u = u.reshape(2, steps, heads, 2, each // 2)
        whole = torch.complex(u[..., 0, :], u[..., 1, :]) * turn[:, None, :]
        return torch.stack([whole.real, whole.imag], dim=-2).reshape(2, steps, heads * each)

    tx, weights = tensor(x, dtype), {n: tensor(results[n], dtype) for n in ("W_qkv", "b_qkv", "W_out", "b_out")}
    q, k, v = (tx @ weights["W_qkv"] + weights["b_qkv"]).chunk(3, dim=-1)
    ty = torch_attention(turned(q), turned(k), v, heads, causal=True) @ weights["W_out"] + weights["b_out"]
    ty.backward(torch.tensor(results["dy"]))
    forward, gradient = DTYPES[dtype]
    close(results["y"], ty, forward, "y")
    close(results["dx"], tx.grad, gradient, "dx")
    for name, value in weights.items():
        close(results["d" + name], value.grad, gradient, "d" + name)


@dtypes
@pytest.mark.parametrize(("vocabulary", "features"), [(1, 1), (7, 3), (50, 17)])
@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 2)], ids=str)
def test_embedding_is_that_of_torch(backend, rng, dtype, vocabulary, features, shape):
    x = rng.integers(0, vocabulary, shape)
    results = run(nf.Embedding(vocabulary, features, initializer="normal"), x, backend, dtype)
    module = torch.nn.Embedding(vocabulary, features, dtype=getattr(torch, dtype))
    with torch.no_grad():
        module.weight.copy_(torch.tensor(results["W"]))
    ty = module(torch.tensor(x))
    ty.backward(torch.tensor(results["dy"]))
    np.testing.assert_array_equal(results["y"], ty.detach().numpy())
    close(results["dW"], module.weight.grad, DTYPES[dtype][1], "dW")


@dtypes
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rms_norm_is_that_of_torch(backend, rng, dtype, shape, eps):
    x = 0.5 + rng.standard_normal((4, *shape))
    results = run(nf.RMSNorm(eps), x, backend, dtype)
    module = torch.nn.RMSNorm(shape[-1], eps=eps, dtype=getattr(torch, dtype))
    tx = tensor(x, dtype)
    ty = module(tx)
    ty.backward(torch.tensor(results["dy"]))
    forward, gradient = DTYPES[dtype]
    close(results["y"], ty, forward, "y")
    close(results["dx"], tx.grad, gradient, "dx")
    close(results["dgamma"], module.weight.grad, gradient, "dgamma")


# ---- positions, masks --------------------------------------------------------------------------------------
def test_sinusoids():
    """The two formulas of the paper, number by number, for an even and an odd number of features."""
    for features in (1, 6, 7):
        table = sinusoids(9, features)
        for t, j in np.ndindex(table.shape):
            angle = t / 10_000 ** (2 * (j // 2) / features)
            assert table[t, j] == pytest.approx(np.cos(angle) if j % 2 else np.sin(angle), abs=1e-12)


def test_learned_positions(backend, rng):
    x = rng.standard_normal((3, 4, 2))
    results = run(nf.PositionalEmbedding(length=6), x, backend)
    np.testing.assert_allclose(results["y"], x + results["P"][:4], rtol=1e-12)
    np.testing.assert_allclose(results["dP"][:4], results["dy"].sum(0), rtol=1e-10, atol=1e-12)
    assert not results["dP"][4:].any()
    np.testing.assert_array_equal(results["dx"], results["dy"])


def test_sinusoidal_positions_are_not_trained(backend, rng):
    x = rng.standard_normal((3, 4, 5))
    results = run(nf.PositionalEmbedding("sinusoidal"), x, backend)
    np.testing.assert_allclose(results["y"], x + sinusoids(4, 5), rtol=1e-12)
    assert "dP" not in results


def test_mask_of_index_zero(backend):
    x = np.array([[3, 1, 0, 0], [0, 2, 0, 1]])
    layer, _ = bound(nf.Embedding(4, 2, mask_zero=True), x, backend, "float32")
    np.testing.assert_array_equal(layer.out_mask, [[1, 1, 0, 0], [0, 1, 0, 1]])


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_masking(backend, value):
    x = np.full((2, 3, 2), value)
    x[0, 1, 1], x[1, 2] = 5.0, np.nan
    layer = nf.Masking(value)
    one, _ = bound(layer, x, backend, "float64")
    kept = np.array([[0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(one.out_mask, kept)
    np.testing.assert_array_equal(one.y, np.where(kept[..., None], x, 0.0))
    results = run(layer, x, backend)
    np.testing.assert_array_equal(results["dx"], results["dy"] * kept[..., None])


def test_what_is_masked_changes_nothing(backend, rng):
    """Neither output nor gradients of the other steps, and it gets no gradient as a key."""
    x = rng.standard_normal((2, 6, 4))
    mask = np.array([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], np.float64)
    other = np.where(mask[..., None] != 0, x, 100.0 * rng.standard_normal(x.shape))
    layer = nf.MultiHeadAttention(2, initializer=small, bias_initializer=bias)
    seen = mask[0] != 0
    dy = rng.standard_normal(x.shape)
    dy[:, ~seen] = 0.0
    one, two = (run(layer, inputs, backend, dy=dy, mask=mask) for inputs in (x, other))
    np.testing.assert_allclose(one["y"][0, seen], two["y"][0, seen], rtol=1e-12)
    np.testing.assert_allclose(one["dx"][0, seen], two["dx"][0, seen], rtol=1e-10, atol=1e-12)
    assert not one["dx"][0, ~seen].any()
    # Of the second row nothing is seen: the output is the bias alone
    np.testing.assert_array_equal(one["y"][1], np.broadcast_to(one["b_out"], (6, 4)))
    assert not one["dx"][1].any()


def test_a_causal_step_does_not_see_later_ones(backend, rng):
    x = rng.standard_normal((1, 6, 4))
    other = x.copy()
    other[:, 4:] += 10.0
    layer = nf.MultiHeadAttention(2, causal=True, rotary=True, initializer=small)
    one, two = (run(layer, inputs, backend)["y"] for inputs in (x, other))
    np.testing.assert_array_equal(one[:, :4], two[:, :4])
    assert (one[:, 4:] != two[:, 4:]).all()


def test_outside_training(backend, rng):
    """What only the gradient needs is not there, and the output is the same."""
    x, z = rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 3, 4))
    for layer, inputs in ((nf.MultiHeadAttention(2), x), (nf.CrossAttention(2), [x, z])):
        here, _ = bound(layer, inputs, backend, "float64", training=False)
        there, _ = bound(layer, inputs, backend, "float64")
        assert here.lse is None
        assert here.dattended is None
        np.testing.assert_array_equal(here.y, there.y)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 90), st.integers(1, 300), st.integers(1, 3), st.integers(1, 9), st.booleans(),
    st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_fused_attention_of_any_size(n, t, s, heads, d, causal, masked, seed):
    """The fused kernels against NumPy; each output is a mean of values, weighted."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((n, steps, heads * d)) for steps in (t, s, s))
    v = np.abs(v)
    mask = (rng.random((n, s)) < 0.5).astype(np.float64) if masked else None
    outputs = []
    for bk in (NUMPY, NUMBA):
        out, lse = np.full_like(q, np.nan), np.full((n, heads, t), np.nan)
        bk.attention(q, k, v, heads=heads, causal=causal, scale=d**-0.5, mask=mask, out=out, lse=lse)
        outputs.append((out, lse))
    for want, got in zip(*outputs, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)
    assert (outputs[1][0] >= 0.0).all()
    assert (outputs[1][0].reshape(n, t, -1) <= v.max(axis=1)[:, None] + 1e-12).all()


# ---- models ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_a_network_of_words(backend, kind):
    """Embedding to output in one plan: the same steps on each backend, and it learns the first word's number."""
    rng = np.random.default_rng(3)
    x = rng.integers(1, 5, (40, 6))
    x[:, 4:] *= rng.random((40, 2)) < 0.5
    y = (x[:, 0] % 2).astype(np.int64)
    chain = [
        nf.Embedding(5, 8, mask_zero=True, initializer={"name": "normal", "std": 0.5}), nf.PositionalEmbedding(kind),
        nf.MultiHeadAttention(2, causal=True), nf.RMSNorm(), nf.MultiHeadAttention(2, rotary=True), nf.Flatten(),
        nf.Dense(2),
    ]  # fmt: skip
    built = build_chain(chain, (6,))
    assert [built[i].masks[0] for i in (2, 4)] == [0, 0]

    def losses_of(bk, dtype):
        params = Parameters(built, bk, dtype)
        params.initialise(0)
        optimizer = nf.Adam(0.01)
        plan = Plan(built, params, 40, loss=losses.get("cross_entropy"), optimizer=optimizer, targets=[((), np.int64)])
        plan.feed(x, y)
        state = np.zeros(S.SIZE)
        for slot, value in optimizer.fill_state().items():
            state[slot] = value
        state[S.LR] = 0.01
        found = []
        for _ in range(25):
            bk.copy(np.array([0.01]), out=plan.lr_table)
            state[S.CURSOR] = 0
            plan.write_state(state)
            plan.run(40)
            state = plan.read_state()
            found.append(state[S.LOSS])
        return np.array(found)

    found = losses_of(backend, "float32")
    np.testing.assert_allclose(found, losses_of(NUMPY, "float64"), rtol=1e-2, atol=1e-3)
    assert found[-1] < 0.3 < found[0]


# ---- descriptions, errors ----------------------------------------------------------------------------------
DESCRIBED = [
    *(layer for layer, _ in LAYERS),
    nf.CrossAttention(2, 5, out_features=3, bias=False, initializer="he_normal"),
    nf.Embedding(10, 3),
    nf.Embedding(10, 3, mask_zero=True, initializer={"name": "normal", "std": 0.1}),
    nf.PositionalEmbedding("learned", 7, initializer="zeros"),
    nf.Masking(-1.0, name="padding"),
]


@pytest.mark.parametrize("layer", DESCRIBED, ids=repr)
def test_config_round_trip(layer):
    config = json.loads(json.dumps(layer.config()))
    again = layers.TABLE[type(layer).__name__](**config)
    assert again.config() == layer.config()
    assert repr(again) == repr(layer)
    assert getattr(nf, type(layer).__name__) is type(layer)


def test_parts_are_drawn_each_on_their_own():
    """The bound of Glorot's distribution is that of queries alone, not of all three."""
    ctx = BuildContext()
    nf.MultiHeadAttention(2).build((3, 64), ctx)
    W = next(spec for spec in ctx.specs if spec.name == "W_qkv")
    values = W.init(W.shape, np.random.default_rng(0))
    assert np.abs(values).max() == pytest.approx(np.sqrt(6 / 128), rel=1e-2)
    assert not np.array_equal(values[:, :64], values[:, 64:128])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nf.MultiHeadAttention(0), ValueError, "MultiHeadAttention: heads must be at least 1, got 0"),
        (lambda: nf.MultiHeadAttention(2.5), TypeError, "MultiHeadAttention: heads must be an integer, not float"),
        (lambda: nf.MultiHeadAttention(2, 0), ValueError, "head_features must be at least 1"),
        (lambda: nf.CrossAttention(2, out_features=-1), ValueError, "CrossAttention: out_features must be at least 1"),
        (
            lambda: nf.MultiHeadAttention(2, rotary=0.5),
            ValueError,
            "base of rotary must be finite and above 1, got 0.5",
        ),
        (lambda: nf.MultiHeadAttention(2, rotary="yes"), TypeError, "rotary must be a bool or a number, not str"),
        (lambda: nf.Embedding(0, 3), ValueError, "Embedding: vocabulary must be at least 1, got 0"),
        (lambda: nf.Embedding(3, 0), ValueError, "Embedding: features must be at least 1, got 0"),
        (lambda: nf.PositionalEmbedding("rotary"), ValueError, "kind must be 'learned' or 'sinusoidal', got 'rotary'"),
        (lambda: nf.PositionalEmbedding(length=0), ValueError, "PositionalEmbedding: length must be at least 1, got 0"),
        (lambda: nf.RMSNorm(0.0), ValueError, "RMSNorm: eps must be positive, got 0.0"),
        (lambda: nf.Masking(float("nan")), ValueError, "Masking: value must be finite, got nan"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nf.MultiHeadAttention(3), (5, 4), "3 heads do not divide the input's 4 features"),
        (nf.MultiHeadAttention(2), (4,), "MultiHeadAttention takes inputs of shape (steps, features), got (4,)"),
        (nf.MultiHeadAttention(2, 3, rotary=True), (5, 4), "rotary turns pairs of features, but a head has 3"),
        (nf.CrossAttention(2), [(5, 4)], "CrossAttention takes two inputs"),
        (nf.CrossAttention(2), [(5, 4), (4,)], "CrossAttention takes inputs of shape (steps, features), got (4,)"),
        (nf.Embedding(3, 2, mask_zero=True), (), "mask_zero masks the steps of inputs (steps,), got ()"),
        (nf.PositionalEmbedding(length=4), (5, 4), "PositionalEmbedding has length=4, but its input has 5 steps"),
        (nf.PositionalEmbedding(), (5,), "PositionalEmbedding takes inputs of shape (steps, features), got (5,)"),
        (nf.Masking(), (5,), "Masking takes inputs of shape (steps, features), got (5,)"),
        (nf.RMSNorm(), (), "RMSNorm needs at least one feature axis"),
    ],
    ids=repr,
)
def test_inputs_that_a_layer_cannot_take(layer, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.build(shape, BuildContext())


def test_indices_outside_of_the_vocabulary():
    layer = nf.Embedding(10, 3)
    for good in (np.arange(10), np.zeros((0, 4), np.int64), np.array([[9, 0]], np.uint8)):
        layer.check_indices(good)
    for bad, text in (([[3, 10]], "index 10 at (0, 1)"), ([[0, 1], [-1, 99]], "index -1 at (1, 0)")):
        with pytest.raises(ValueError, match=re.escape(text) + r" is outside of the vocabulary, \[0, 10\)"):
            layer.check_indices(np.array(bad))
    with pytest.raises(TypeError, match="Embedding takes indices of an integer dtype, not float64"):
        layer.check_indices(np.array([1.0]))


def test_as_functions(backend, rng):
    """The primitives as ``nnfast.get_backend`` gives them."""
    bk = nf.get_backend(backend)
    q, k, v = (rng.standard_normal((2, steps, 6)) for steps in (3, 5, 5))
    options = {"heads": 2, "causal": False, "scale": 0.5}
    lse = np.empty((2, 2, 3))
    out = bk.attention(q, k, v, **options, lse=lse)
    close(out, torch_attention(*(torch.tensor(x) for x in (q / np.sqrt(1 / 3) * 0.5, k, v)), 2), 1e-12)
    dq, dk, dv = bk.attention_grad(np.ones_like(q), q, k, v, **options, out=out, lse=lse)
    np.testing.assert_allclose(dv.sum(), 2 * 3 * 6, rtol=1e-12)  # weights of each query add up to 1
    assert (dq.shape, dk.shape) == (q.shape, k.shape)
    assert bk.rotary(q, heads=1, base=100.0).shape == q.shape
    y, rstd = bk.rms_norm(q[0], np.ones(6), eps=1e-6)
    np.testing.assert_allclose(y, q[0] * rstd[:, None], rtol=1e-12)
    with pytest.raises(ValueError, match=r"attention: v has shape \(2, 3, 6\), expected \(n, s, f\)"):
        bk.attention(q, k, q, **options)
