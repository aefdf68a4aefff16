"""Blocks, graphs of calls, shared layers: gradients, memory, files, names, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nnfast as nf
from nnfast import testing
from nnfast.layers import Add, Concat
from nnfast.layers.base import Layer
from nnfast.layers.graph import Block, build_chain
from nnfast.plan_layout import PlanLayout


class Probe(Block):
    """Any graph as one block, for check_layer."""

    def __init__(self, rule):
        self._rule = rule

    def wire(self, graph, x):
        return self._rule(graph, x)


class Columns(Layer):
    """Sequences as images with a column for each step; nobody has told it that there are masks."""

    def build(self, in_shape, ctx):
        steps, features = in_shape
        return (1, steps, features)

    def is_view(self, training):
        return True


def _twice(graph, x):
    """One layer at two places, and x at three."""
    shared = nf.Dense(5, "tanh")
    a = graph.add(shared, x)
    b = graph.add(shared, a)
    return graph.add(Add(), graph.add(Concat(), a, b), graph.add(nf.Dense(10), x))


def _fan(graph, x):
    """A result that four layers read, one of them twice."""
    h = graph.add(nf.Dense(4, "sigmoid"), x)
    ends = [graph.add(nf.Dense(4, act), h) for act in ("identity", "gelu", "relu")]
    return graph.add(Add(), h, *ends, graph.add(Add(), h, h))


def _views(graph, x):
    """Views of one array, and a sum that is the array's only reader."""
    flat = graph.add(nf.Flatten(), x)
    h = graph.add(nf.Dense(5), flat)
    v = graph.add(nf.Flatten(), h)
    return graph.add(Add(), graph.add(nf.Dense(5), v), graph.add(nf.Activation("tanh"), h))


BLOCKS = {
    "residual": lambda: nf.Residual([nf.Dense(7, "relu"), nf.Dense(5)]),
    "residual of one layer": lambda: nf.Residual(nf.Dense(5, "gelu")),
    "residual with a shortcut": lambda: nf.Residual([nf.LayerNorm(), nf.Dense(3, "tanh")], nf.Dense(3, bias=False)),
    "nested": lambda: nf.Residual([nf.Dense(5), nf.Residual([nf.LayerNorm(), nf.Dense(5, "silu")])]),
    "concat": lambda: nf.Parallel([nf.Dense(3), [nf.Dense(4, "relu"), nf.Dense(2)]]),
    "sum": lambda: nf.Parallel([nf.Dense(3), nf.Dense(3, "tanh"), nf.Dense(3, "sigmoid")], "add"),
    "twice": lambda: Probe(_twice),
    "fan": lambda: Probe(_fan),
    "views": lambda: Probe(_views),
    "again": lambda: nf.Chain([nf.Dense(7, "gelu"), nf.LayerNorm(), nf.Dense(5, "tanh"), nf.Dense(5)], checkpoint=True),
    "again, residual": lambda: nf.Residual([nf.LayerNorm(), nf.Dense(7, "gelu"), nf.Dense(5)], checkpoint=True),
    "again, twice": lambda: nf.Chain(
        [nf.Residual([nf.Dense(5, "gelu"), nf.Dropout(0.4)], checkpoint=True) for _ in range(3)]
    ),
    "dropout": lambda: nf.Chain([nf.Dense(6), nf.Dropout(0.3), nf.Activation("relu"), nf.Dropout(0.2)]),
    "in place": lambda: nf.Chain(
        [nf.Dense(6), nf.LayerNorm(), nf.Activation("gelu"), nf.Activation("tanh"), nf.Dense(2)]
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_and_parity(name):
    testing.check_layer(BLOCKS[name](), (5,), batch=4)


def _spec(model):
    return {name: value.shape for name, value in model.get_weights().items()}


def test_names_of_a_blocks_layers():
    model = nf.Sequential(
        [nf.Residual([nf.Dense(4), nf.Dense(4)]), nf.Residual([nf.Dense(4, name="own")], name="last"), nf.Dense(1)]
    ).build(4)
    assert [name for name in _spec(model) if name.endswith(".W")] == [
        "residual/dense.W", "residual/dense_1.W", "last/own.W", "dense.W",
    ]  # fmt: skip


def test_a_layer_that_is_used_twice_has_one_set_of_weights():
    shared = nf.Dense(4, "tanh")
    model = nf.Sequential([shared, nf.Dense(4), shared]).build(4, seed=0)
    assert list(_spec(model)) == ["dense.W", "dense.b", "dense_1.W", "dense_1.b"]
    x = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    w = model.get_weights()
    want = np.tanh(x @ w["dense.W"] + w["dense.b"])
    want = np.tanh((want @ w["dense_1.W"] + w["dense_1.b"]) @ w["dense.W"] + w["dense.b"])
    np.testing.assert_allclose(model.predict(x), want, rtol=1e-5, atol=1e-6)


def test_a_layer_used_again_where_its_weights_do_not_fit():
    shared = nf.Dense(3)
    with pytest.raises(ValueError, match=r"layer 1 \(dense_1\): it is used again on inputs of shape \(3,\)"):
        nf.Sequential([shared, shared]).build(4)


def _graph():
    x = nf.Input(6)
    h = nf.Dense(8, "relu")(x)
    shared = nf.Dense(6, "tanh", name="shared")
    y = nf.Add()(shared(h), x)
    y = nf.Concat()([nf.Residual(nf.Dense(6))(y), h])
    return nf.Model(x, nf.Dense(3)(y))


def test_a_graph_of_calls_computes_what_it_says():
    model = _graph().build(seed=1)
    x = np.random.default_rng(0).standard_normal((5, 6)).astype("float32")
    w = model.get_weights()

    def dense(name, x):
        return x @ w[f"{name}.W"] + w[f"{name}.b"]

    h = np.maximum(dense("dense", x), 0)
    y = np.tanh(dense("shared", h)) + x
    y = np.concatenate([dense("residual/dense", y) + y, h], axis=1)
    np.testing.assert_allclose(model.predict(x), dense("dense_1", y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make", [_graph, lambda: nf.Sequential([BLOCKS["nested"](), nf.Dense(3)])], ids=["graph", "blocks"]
)
def test_a_model_file_brings_back_the_graph(tmp_path, make):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 6 if make is _graph else 5)), rng.integers(0, 3, 40)
    model = make()
    model.fit(X, y, loss="cross_entropy", epochs=2, batch_size=8, seed=0, verbose=0, device="cpu")
    model.save(tmp_path / "m.safetensors")
    again = nf.load(tmp_path / "m.safetensors")
    assert type(again) is type(model)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    more = [m.fit(X, y, epochs=2, batch_size=8, verbose=0, device="cpu")["loss"] for m in (model, again, model.copy())]
    assert more[0] == more[1]
    assert model.copy().get_flat_weights().tolist() == model.get_flat_weights().tolist()


def test_a_file_that_describes_an_impossible_graph(tmp_path):
    model = _graph().build(seed=0)
    graph = model.description()["graph"]
    for change in (
        {"outputs": [99]},
        {"outputs": []},
        {"calls": [[0, [5]]]},
        {"calls": [[7, [-1]]]},
        {"calls": [[0, []]]},
    ):
        with pytest.raises(ValueError, match=r"not possible|not those of calls"):
            nf.Model.described(model.layers, json.loads(json.dumps({"graph": graph | change})))


def test_errors_of_graphs():
    x = nf.Input(4)
    with pytest.raises(ValueError, match=r"Add takes inputs of one shape, got \(4,\), \(3,\)"):
        nf.Add()(x, nf.Dense(3)(x))
    with pytest.raises(ValueError, match=r"Concat takes inputs that are alike but for the last axis"):
        nf.Concat()(nf.Input((2, 3)), nf.Input((3, 3)))
    with pytest.raises(ValueError, match="Dense takes one input, got 2"):
        nf.Dense(3)(x, x)
    with pytest.raises(TypeError, match=r"Dense is called on tensors that begin at nf\.Input, not ndarray"):
        nf.Dense(3)(np.ones(4))
    with pytest.raises(ValueError, match="which is not among the model's inputs"):
        nf.Model(nf.Input(4), nf.Dense(3)(x))
    with pytest.raises(TypeError, match=r"inputs must be tensors that begin at nf\.Input, not int"):
        nf.Model(4, nf.Dense(3)(x))
    with pytest.raises(ValueError, match=r"made for inputs of shape \(4,\), not \(5,\)"):
        nf.Model(x, nf.Dense(3)(x)).build(5)
    with pytest.raises(ValueError, match="two layers are named 'a'"):
        nf.Sequential([nf.Dense(3, name="a"), nf.Dense(3, name="a")]).build(2)
    with pytest.raises(ValueError, match="without dots and slashes"):
        nf.Sequential([nf.Dense(3, name="a/b")]).build(2)
    with pytest.raises(ValueError, match="Parallel takes two branches or more, got 1"):
        nf.Parallel([nf.Dense(2)])
    with pytest.raises(ValueError, match="merge must be 'concat' or 'add', got 'max'"):
        nf.Parallel([nf.Dense(2), nf.Dense(2)], "max")
    with pytest.raises(TypeError, match="Residual: inner must be layers, not str"):
        nf.Residual(["relu"])
    with pytest.raises(ValueError, match="GlobalAvgPool2D does not leave out the steps that embedding masks"):
        nf.Sequential([nf.Embedding(6, 3, mask_zero=True), Columns(), nf.GlobalAvgPool2D()]).build(4)
    with pytest.raises(
        ValueError, match=r"layer 1 \(residual/add\): Add takes inputs of one shape, got \(3,\), \(4,\)"
    ):
        nf.Sequential([nf.Residual(nf.Dense(3))]).build(4)


# ---- memory --------------------------------------------------------------------------------------------
def _bytes(layers: list[Layer], shape, training=True):
    return PlanLayout(build_chain(layers, shape), 64, np.float32, training=training).nbytes


def test_computing_activations_again_takes_less_memory():
    def deep(checkpoint):
        inner = [
            nf.Residual([nf.LayerNorm(), nf.Dense(128, "gelu"), nf.Dense(32)], checkpoint=checkpoint) for _ in range(8)
        ]
        return [nf.Dense(32), *inner, nf.Dense(4)]

    kept, again = _bytes(deep(False), (16,)), _bytes(deep(True), (16,))
    assert again < 0.4 * kept


def test_buffers_are_used_again_as_soon_as_they_are_free():
    """A deeper model needs no more memory to infer, and to train only what its backward pass reads."""

    def norms(n):
        return [layer for _ in range(n) for layer in (nf.Dense(32), nf.LayerNorm(), nf.Activation("relu"))]

    assert _bytes(norms(8), (32,), training=False) - _bytes(norms(2), (32,), training=False) < 64 * 32 * 4 * 2
    row = 64 * 32 * 4
    per_block = (_bytes(norms(8), (32,)) - _bytes(norms(4), (32,))) / 4
    # Dense's y is the norm's x; the norm's y becomes relu's in place, which is the next Dense's x
    assert per_block <= 2 * row + 2 * 64 * 8 + 256


def test_the_sum_of_a_residual_takes_no_gradient_of_its_own():
    built = build_chain([nf.Dense(8), nf.Residual([nf.Dense(8, "relu"), nf.Dense(8)]), nf.Dense(2)], (8,))
    layout = PlanLayout(built, 4, np.float32, training=True)
    add = next(b.index for b in built if isinstance(b.layer, Add))
    assert layout.gradients[add].offset == layout.gradients[add - 1].offset


# ---- several inputs and outputs ----------------------------------------------------------------------------
def _two_in_two_out():
    a, b = nf.Input(5), nf.Input((4,))
    words = nf.Flatten()(nf.Embedding(7, 3)(b))
    h = nf.Concat()(nf.Dense(6, "tanh")(a), words)
    return nf.Model([a, b], [nf.Dense(3, "softmax")(h), nf.Dense(1)(nf.Dense(4, "relu")(h))])


def _two_data(rows=70):
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((rows, 5)), rng.integers(0, 7, (rows, 4))]
    return X, [rng.integers(0, 3, rows), rng.standard_normal(rows)]


LOSSES = ["cross_entropy", "mean_squared_error"]


@pytest.mark.parametrize("device", ["numpy", "numba"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_several_outputs(device, weighted):
    """A step of plain gradient descent against the same sum of losses by hand, and by differences."""
    (a, b), (y, v) = _two_data(12)
    weight = np.arange(12) % 3 + 0.5 if weighted else None
    loss = nf.JointLoss(LOSSES, [0.5, 2.0])
    model = _two_in_two_out().build(seed=1, dtype="float64")

    def value():
        p, q = model.predict([a, b], device="numpy")
        rows = np.ones(12) if weight is None else weight
        each = 0.5 * -np.log(p[np.arange(12), y]) + 2.0 * (q[:, 0] - v) ** 2
        return float((each * rows).sum() / rows.sum())

    start, before = model.get_flat_weights(), value()
    history = model.fit(
        [a, b], [y, v], loss=loss, optimizer=nf.SGD(1e-3), batch_size=12, device=device, dtype="float64", verbose=0,
        sample_weight=weight,
    )  # fmt: skip
    assert history["loss"][0] == pytest.approx(before, rel=1e-10)
    gradient = (start - model.get_flat_weights()) / 1e-3
    for i in np.random.default_rng(2).choice(len(start), 12, replace=False):
        around = []
        for step in (1e-6, -1e-6):
            moved = start.copy()
            moved[i] += step
            model.set_flat_weights(moved)
            around.append(value())
        assert gradient[i] == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_several_inputs_and_outputs_all_the_way(tmp_path):
    X, y = _two_data()
    found = []
    for device in ("numpy", "numba"):
        model = _two_in_two_out()
        history = model.fit(
            X, y, loss=LOSSES, epochs=3, batch_size=16, validation_split=0.2, seed=0, dtype="float64", device=device,
            verbose=0,
        )  # fmt: skip
        found.append((history["loss"], history["val_loss"]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
    assert history["loss"][-1] < history["loss"][0]
    p, q = model.predict(X)
    assert (p.shape, q.shape) == ((70, 3), (70, 1))
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    chunked = model.predict(X, batch_size=16)
    np.testing.assert_allclose(chunked[0], p, rtol=1e-12)
    np.testing.assert_allclose(chunked[1], q, rtol=1e-12)
    logs = model.evaluate(X, y)
    w = model.evaluate(X, y, loss=nf.JointLoss(LOSSES, [2.0, 2.0]))
    assert w["loss"] == pytest.approx(2 * logs["loss"])
    model.save(tmp_path / "m.safetensors")
    again = nf.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.predict(X)[1], q)
    assert again.evaluate(X, y) == logs
    more = [m.fit(X, y, verbose=0, device="numba", dtype="float64")["loss"] for m in (again, model)]
    assert more[0] == more[1]
    trainer = nf.Trainer(_two_in_two_out(), LOSSES, seed=0, device="cpu", dtype="float64")
    assert trainer.step([x[:16] for x in X], [t[:16] for t in y]) > 0
    batches = [([x[i : i + 10] for x in X], [t[i : i + 10] for t in y]) for i in range(0, 70, 10)]
    model.fit(batches, loss=LOSSES, verbose=0, device="cpu", dtype="float64")


def test_errors_of_several_inputs_and_outputs():
    X, y = _two_data()
    model = _two_in_two_out()
    with pytest.raises(TypeError, match="the model has 2 inputs: X must be a list of as many arrays, got one ndarray"):
        model.fit(X[0], y, loss=LOSSES)
    with pytest.raises(TypeError, match="the model has 2 outputs: y must be a list of as many arrays, got 1"):
        model.fit(X, y[:1], loss=LOSSES)
    with pytest.raises(ValueError, match="the model has 2 outputs, got 3 losses"):
        model.fit(X, y, loss=[*LOSSES, "huber"])
    with pytest.raises(ValueError, match=r"output 0: class labels must be in 0..2, row 0 has 9"):
        model.fit(X, [np.full(70, 9), y[1]], loss=LOSSES)
    with pytest.raises(ValueError, match="X must be arrays of as many rows, got 70, 69"):
        model.fit([X[0], X[1][:69]], y, loss=LOSSES)
    bad = X[1].copy()
    bad[3, 1] = 7
    with pytest.raises(ValueError, match=r"the index 7 at \(3, 1\) is outside of the vocabulary"):
        model.fit([X[0], bad], y, loss=LOSSES)
    with pytest.raises(ValueError, match="2 losses need as many weights, got 1"):
        nf.JointLoss(LOSSES, [1.0])
    with pytest.raises(ValueError, match="weights of losses must be finite and not negative"):
        nf.JointLoss(LOSSES, [1.0, -1.0])
    x = nf.Input(3)
    h = nf.Dense(2)(x)
    with pytest.raises(ValueError, match="output 1 must be what a layer of its own gives"):
        nf.Model(x, [h, h])
    assert not model.is_built


def test_an_output_that_other_layers_read():
    x = nf.Input(4)
    h = nf.Dense(3, "tanh")(x)
    model = nf.Model(x, [h, nf.Dense(2)(h)])
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 4)), [rng.standard_normal((30, 3)), rng.standard_normal((30, 2))]
    losses = [
        nf.Model(x, [h, nf.Dense(2)(h)]).fit(
            X, y, loss="mse", epochs=3, batch_size=8, seed=0, device=d, dtype="float64", verbose=0
        )["loss"]
        for d in ("numpy", "numba")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-10)
    first, second = model.build(seed=0).predict(X)
    w = model.get_weights()
    np.testing.assert_allclose(second, first @ w["dense_1.W"] + w["dense_1.b"], rtol=1e-5, atol=1e-6)
