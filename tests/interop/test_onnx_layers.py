"""Every layer as ONNX: ONNX Runtime must compute what the model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast import layers
from tests.layer_samples import SAMPLES, is_stateful, model_of, model_of_all, sample_ids

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def computed(path: Path, x: np.ndarray) -> np.ndarray:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(found)


def randomised(model: Any, seed: int = 1) -> Any:
    """Weights that are not those of the start, such as biases of zero."""
    rng = np.random.default_rng(seed)
    model.set_weights({k: v + 0.3 * rng.random(v.shape) for k, v in model.get_weights().items()})
    return model


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


def test_probabilities_of_an_image_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 4, 4, 1)).astype(np.float32), rng.integers(0, 3, 20)
    model = nf.Sequential([nf.Conv2D(2, 3, "relu"), nf.GlobalMaxPool2D(), nf.Dense(3)])
    model.fit(X, y, loss="cross_entropy", epochs=1, device="numpy", verbose=0, seed=0)
    model.export_onnx(tmp_path / "m.onnx", probabilities=True)
    np.testing.assert_allclose(computed(tmp_path / "m.onnx", X), model.predict_proba(X), **CLOSE)
