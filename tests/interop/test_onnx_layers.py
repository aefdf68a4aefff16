"""Every layer as ONNX: ONNX Runtime must compute what the model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast import layers
from tests.layer_samples import SAMPLES, is_stateful, model_of, model_of_all, randomised, sample_ids

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def computed(path: Path, x: np.ndarray) -> np.ndarray:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(found)


def inputs(model: Any, rows: int, vocabulary: int = 5) -> np.ndarray:
    rng = np.random.default_rng(rows)
    if model.takes_indices:
        return rng.integers(0, vocabulary, (rows, *model.in_shape))
    return rng.standard_normal((rows, *model.in_shape)).astype(np.float32)


def check(model: Any, path: Path, opset: int = 17, **options: Any) -> Any:
    """Export, compute both; returns the ONNX model."""
    model.export_onnx(path, opset=opset)
    for rows in (1, 4):  # any number of rows
        x = inputs(model, rows, **options)
        np.testing.assert_allclose(computed(path, x), model.predict(x, device="numpy"), **CLOSE)
    return onnx.load(str(path))


def operators(made: Any) -> list[str]:
    return [node.op_type for node in made.graph.node]


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [pytest.param(*s, id=i) for s, i in zip(SAMPLES, sample_ids, strict=True) if not is_stateful(s[0])],
)
def test_each_layer(tmp_path: Path, layer: Any, shape: Any, opset: int) -> None:
    check(randomised(model_of(layer, shape)), tmp_path / "m.onnx", opset)


def test_no_layer_is_forgotten() -> None:
    from nnfast.exporting.onnx_layers import EMITTERS

    blocks = {kind for kind in layers.TABLE.values() if issubclass(kind, layers.Block)}
    assert set(layers.TABLE.values()) - blocks == set(EMITTERS)


def test_neighbours_share_transposes(tmp_path: Path) -> None:
    model = nf.Sequential(
        [
            nf.Conv2D(3, 3, "relu", padding="same"), nf.BatchNorm(), nf.Activation("tanh"), nf.MaxPool2D(),
            nf.Residual([nf.Conv2D(3, 1), nf.SpatialDropout(0.2), nf.GroupNorm(3)]), nf.GlobalAvgPool2D(), nf.Dense(2),
        ]
    )  # fmt: skip
    made = check(randomised(model.build((6, 5, 2), seed=0)), tmp_path / "m.onnx")
    assert operators(made).count("Transpose") == 1
    assert "BatchNormalization" in operators(made)


def test_a_flattened_image_has_its_channels_last(tmp_path: Path) -> None:
    model = nf.Sequential([nf.Conv2D(3, 2, "softmax"), nf.Flatten(), nf.Dense(2)])
    made = check(randomised(model.build((4, 5, 2), seed=0)), tmp_path / "m.onnx")
    assert operators(made).count("Transpose") == 2


CELLS = {
    "tanh": lambda **more: nf.SimpleRNN(3, **more),
    "relu": lambda **more: nf.SimpleRNN(3, "relu", bias=False, **more),
    "gru": lambda **more: nf.GRU(3, **more),
    "gru before": lambda **more: nf.GRU(3, reset_after=False, **more),
    "gru without bias": lambda **more: nf.GRU(3, bias=False, **more),
    "lstm": lambda **more: nf.LSTM(3, **more),
}


@pytest.mark.parametrize("more", [{}, {"return_sequences": True, "reverse": True}], ids=["last", "reverse"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("cell", CELLS)
def test_cells(tmp_path: Path, cell: str, masked: bool, more: dict[str, bool]) -> None:
    first = nf.Embedding(5, 4, mask_zero=masked)
    model = nf.Sequential([first, CELLS[cell](**more)]).build(6, seed=0)
    made = check(randomised(model), tmp_path / "m.onnx")
    assert ("Scan" in operators(made)) == masked


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_both_directions(tmp_path: Path, merge: str, masked: bool) -> None:
    model = nf.Sequential(
        [
            nf.Embedding(5, 4, mask_zero=masked), nf.Bidirectional(nf.GRU(3, return_sequences=True), merge),
            nf.Bidirectional(nf.LSTM(2), merge),
        ]
    ).build(6, seed=0)  # fmt: skip
    check(randomised(model), tmp_path / "m.onnx")


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(
    "more", [{}, {"causal": True}, {"causal": True, "rotary": 100.0}, {"rotary": True, "bias": False}], ids=str
)
def test_self_attention(tmp_path: Path, more: dict[str, Any], masked: bool) -> None:
    model = nf.Sequential(
        [nf.Embedding(5, 4, mask_zero=masked), nf.MultiHeadAttention(2, out_features=3, **more)]
    ).build(6, seed=0)  # fmt: skip
    check(randomised(model), tmp_path / "m.onnx")
    # Nothing to look at, and nothing but oneself
    x = np.array([[0] * 6, [1, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(computed(tmp_path / "m.onnx", x), model.predict(x, device="numpy"), **CLOSE)


def test_masked_attention_of_another_sequence(tmp_path: Path) -> None:
    words = nf.Input(6)
    z = nf.Embedding(5, 4, mask_zero=True)(words)
    model = nf.Model(words, nf.CrossAttention(2)(nf.Embedding(5, 4)(words), nf.Dense(3)(z))).build(seed=0)
    check(randomised(model), tmp_path / "m.onnx")
    x = np.array([[0] * 6, [1, 0, 3, 0, 0, 2]])
    y = model.predict(x, device="numpy")
    np.testing.assert_allclose(computed(tmp_path / "m.onnx", x), y, **CLOSE)
    np.testing.assert_allclose(y[0], np.broadcast_to(model.get_weights()["crossattention.b_out"], (6, 4)), rtol=1e-6)


def test_masked_features(tmp_path: Path) -> None:
    model = nf.Sequential([nf.Masking(-1.0), nf.Dense(3, "tanh"), nf.LSTM(3)]).build((5, 2), seed=0)
    model.export_onnx(tmp_path / "m.onnx")
    x = inputs(model, 4)
    x[1, 2:], x[2, 0], x[3] = -1.0, -1.0, -1.0
    np.testing.assert_allclose(computed(tmp_path / "m.onnx", x), model.predict(x, device="numpy"), **CLOSE)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("pool", [nf.GlobalMaxPool1D, nf.GlobalAvgPool1D])
def test_pooling_of_the_steps_that_are_there(tmp_path: Path, pool: Any, opset: int) -> None:
    words = nf.Sequential([nf.Embedding(5, 4, mask_zero=True), nf.Dense(3), pool(), nf.Dense(2)]).build(6, seed=0)
    check(randomised(words), tmp_path / "m.onnx", opset)
    numbers = nf.Sequential([nf.Masking(-1.0), nf.Dense(3, "tanh"), pool()]).build((6, 2), seed=0)
    check(numbers, tmp_path / "n.onnx", opset)
    for model, name, x in (
        (words, "m.onnx", np.array([[0] * 6, [0, 3, 0, 0, 0, 0]])),
        (numbers, "n.onnx", np.where(np.arange(24).reshape(2, 6, 2) < 15, np.float32(-1), np.float32(3))),
    ):
        np.testing.assert_allclose(computed(tmp_path / name, x), model.predict(x, device="numpy"), **CLOSE)


def test_a_graph_with_a_shared_layer(tmp_path: Path) -> None:
    x = nf.Input((5, 4))
    shared = nf.Dense(4, "tanh")
    one, other = shared(x), shared(nf.LayerNorm()(x))
    y = nf.CrossAttention(2, out_features=3)(one, nf.Concat()(x, other))
    model = nf.Model(x, nf.Dense(2)(nf.Flatten()(nf.Concat()(y, nf.Add()(one, other, x)))))
    made = check(randomised(model.build(seed=0)), tmp_path / "m.onnx")
    assert operators(made).count("MatMul") == 7  # two of the shared one, five of the attention


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_language_model(tmp_path: Path, norm: str) -> None:
    model = nf.Sequential(
        [
            nf.Embedding(5, 4), nf.PositionalEmbedding(length=9), nf.PositionalEmbedding("sinusoidal"),
            nf.TransformerBlock(2, 6, causal=True, rotary=True, norm=norm, dropout=0.1), nf.GlobalMaxPool1D(),
            nf.Dense(5),
        ]
    ).build(7, seed=0)  # fmt: skip
    made = check(randomised(model), tmp_path / "m.onnx")
    assert made.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64


def test_all_of_them(tmp_path: Path) -> None:
    model = model_of_all()
    check(randomised(model), tmp_path / "m.onnx", 18)


@pytest.mark.parametrize("layer", [nf.LSTM(3, stateful=True), nf.Bidirectional(nf.GRU(3, stateful=True))], ids=repr)
def test_states_that_last_have_no_counterpart(tmp_path: Path, layer: Any) -> None:
    model = nf.Sequential([nf.Dense(4), layer]).build((5, 2))
    with pytest.raises(ValueError, match=r"layer 1 \(\w+\): (LSTM|GRU) with stateful=True has no counterpart in ONNX"):
        model.export_onnx(tmp_path / "m.onnx")


def test_preprocessing_makes_no_indices(tmp_path: Path) -> None:
    model = nf.Sequential([nf.Embedding(5, 2)]).build(3)
    with pytest.raises(ValueError, match="preprocessing gives numbers, but the model takes indices"):
        model.export_onnx(tmp_path / "m.onnx", preprocessing=object())


def test_probabilities_of_an_image_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 4, 4, 1)).astype(np.float32), rng.integers(0, 3, 20)
    model = nf.Sequential([nf.Conv2D(2, 3, "relu"), nf.GlobalMaxPool2D(), nf.Dense(3)])
    model.fit(X, y, loss="cross_entropy", epochs=1, device="numpy", verbose=0, seed=0)
    model.export_onnx(tmp_path / "m.onnx", probabilities=True)
    np.testing.assert_allclose(computed(tmp_path / "m.onnx", X), model.predict_proba(X), **CLOSE)


# ---- in --------------------------------------------------------------------------------------------------
CHAINS: dict[str, tuple[list[Any], tuple[int, ...]]] = {
    "flattened": (
        [nf.Conv2D(4, (3, 2), "gelu", stride=(2, 1), padding="same", groups=2), nf.BatchNorm(), nf.Activation("relu"),
         nf.MaxPool2D(2, 1), nf.Conv2DTranspose(3, 3, stride=2, padding=1, output_padding=1, bias=False),
         nf.AvgPool2D(2, padding=1, count_padding=True), nf.Flatten(), nf.Dense(3)],
        (7, 6, 2),
    ),
    "pooled": ([nf.Conv1D(4, 3, dilation=2, padding="causal"), nf.GlobalMaxPool1D(), nf.Dense(2)], (8, 3)),
    "images": ([nf.MaxPool1D(2), nf.Conv1D(3, 2, "softmax")], (8, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chains_come_back(tmp_path: Path, name: str) -> None:
    chain, shape = CHAINS[name]
    model = randomised(nf.Sequential(chain).build(shape, seed=0))
    model.export_onnx(tmp_path / "m.onnx")
    again = nf.interop.onnx.load(tmp_path / "m.onnx")
    assert (again.in_shape, again.out_shape) == (model.in_shape, model.out_shape)
    x = inputs(model, 4)
    np.testing.assert_allclose(again.predict(x, device="numpy"), model.predict(x, device="numpy"), **CLOSE)


def channels_first(path: Path, *nodes: Any, constants: dict[str, Any]) -> Path:
    """A file as others write it: images with their channels first go in and are flattened so."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    made = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", kind, ["n", 2, 5, 4])],
        [helper.make_tensor_value_info("y", kind, ["n", "k"])],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def node(op: str, given: str, out: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(op, given.split(), [out], name=f"the_{op}", **attributes)


RNG = np.random.default_rng(3)
KERNEL, ROWS = RNG.standard_normal((3, 2, 2, 3)).astype("f"), RNG.standard_normal((24, 4)).astype("f")


def test_a_net_with_channels_first(tmp_path: Path) -> None:
    path = channels_first(
        tmp_path / "m.onnx", node("Conv", "x W", "a"), node("Tanh", "a", "b"), node("Flatten", "b", "c"),
        node("Relu", "c", "d"), node("Gemm", "d V", "y"), constants={"W": KERNEL, "V": ROWS},
    )  # fmt: skip
    model = nf.interop.onnx.load(path)
    assert model.in_shape == (5, 4, 2)
    assert [type(layer) for layer in model.layers] == [nf.Conv2D, nf.Flatten, nf.Activation, nf.Dense]
    x = inputs(model, 4)
    theirs = computed(path, np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    np.testing.assert_allclose(model.predict(x, device="numpy"), theirs, **CLOSE)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Conv", "x W", "y", auto_pad="SAME_UPPER")], r"'the_Conv' \(Conv\): only padding that is written out"),
        ([node("MaxPool", "x", "y", kernel_shape=[2, 2], ceil_mode=1)], r"the_MaxPool.*rounded down"),
        ([node("Conv", "x W", "a"), node("Transpose", "a", "y", perm=[0, 1, 3, 2])], r"the_Transpose.*brought to the"),
        ([node("Conv", "x W", "a"), node("MatMul", "a M", "y")], r"the_MatMul.*no such layer of images"),
        ([node("GlobalMaxPool", "x", "a"), node("Conv", "a W", "y")], r"the_Conv.*after global pooling"),
        ([node("Conv", "x W", "a"), node("Flatten", "a", "b"), node("Softmax", "b", "y")], r"the_Softmax.*only a"),
    ],
)  # fmt: skip
def test_image_nets_that_are_not_read(tmp_path: Path, nodes: list[Any], message: str) -> None:
    kernel = KERNEL[..., :1, :1] if nodes[0].op_type == "GlobalMaxPool" else KERNEL
    constants = {"W": kernel, "M": np.ones((2, 2), "f")}
    with pytest.raises(ValueError, match=message):
        nf.interop.onnx.load(channels_first(tmp_path / "m.onnx", *nodes, constants=constants))
