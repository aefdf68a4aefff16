"""ONNX files in and out: ONNX Runtime must compute what the model does, and a graph that is read in again, too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.interop import onnx as interop

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT

ACTIVATIONS = [*nf.activations.names(), "leaky_relu(0.3)", "elu(0.4)"]
# ONNX Runtime's GELU and the like are approximations of their own
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def computed(path: Path, x: np.ndarray) -> np.ndarray:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(found)


def randomised(model: nf.Sequential, seed: int = 1) -> nf.Sequential:
    rng = np.random.default_rng(seed)
    return model.set_weights({k: v + 0.3 * rng.random(v.shape) for k, v in model.get_weights().items()}) or model


def of_all_layers(in_shape: tuple[int, ...], dtype: str = "float32") -> nf.Sequential:
    layers = [
        nf.Dense(9, "leaky_relu(0.2)"), nf.BatchNorm(0.3, 1e-3), nf.Dense(7, bias=False), nf.LayerNorm(1e-4),
        nf.Activation("elu(0.7)"), nf.Dropout(0.4), nf.Dense(5, "gelu"), nf.Flatten(), nf.Dense(3, "softmax"),
    ]  # fmt: skip
    return randomised(nf.Sequential(layers).build(in_shape, seed=3, dtype=dtype))


def inputs(model: nf.Sequential, rows: int = 11) -> np.ndarray:
    return 2 * np.random.default_rng(2).standard_normal((rows, *model.in_shape)).astype(np.float32)


# ---- out -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("in_shape", [(4,), (2, 4), (3, 2, 4)])
@pytest.mark.parametrize("opset", [17, 21])
def test_all_layers(tmp_path: Path, in_shape: tuple[int, ...], dtype: str, opset: int) -> None:
    model = of_all_layers(in_shape, dtype)
    model.export_onnx(tmp_path / "m.onnx", opset=opset)
    for rows in (1, 11):  # any number of rows
        x = inputs(model, rows)
        np.testing.assert_allclose(computed(tmp_path / "m.onnx", x), model.predict(x, device="numpy"), **CLOSE)


@pytest.mark.parametrize("opset", [17, 18, 20])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(tmp_path: Path, name: str, opset: int) -> None:
    model = nf.Sequential([nf.Dense(6, name), nf.Activation(name)]).build(4, seed=0)
    interop.export(model, tmp_path / "m.onnx", opset=opset)
    x = inputs(model)
    expected = model.predict(x, device="numpy")
    np.testing.assert_allclose(computed(tmp_path / "m.onnx", x), expected, **CLOSE)
    again = interop.load(tmp_path / "m.onnx")
    assert [layer.activation for layer in again.layers if layer.activation.name != "identity"] == [
        layer.activation for layer in model.layers if layer.activation.name != "identity"
    ]
    np.testing.assert_allclose(again.predict(x, device="numpy"), expected, rtol=1e-6, atol=1e-6)


def test_the_file(tmp_path: Path) -> None:
    of_all_layers((4,)).export_onnx(tmp_path / "m.onnx")
    made = onnx.load(str(tmp_path / "m.onnx"))
    assert made.ir_version == 8
    assert [(o.domain, o.version) for o in made.opset_import] == [("", 17)]
    assert made.producer_name == "nnfast"
    [x], [y] = made.graph.input, made.graph.output
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["n", 4]
    assert [d.dim_param or d.dim_value for d in y.type.tensor_type.shape.dim] == ["n", 3]
    assert (x.name, y.name) == ("x", "y")


@pytest.mark.parametrize(
    ("loss", "last"),
    [
        ("cross_entropy", None), ("cross_entropy", "softmax"), ("binary_cross_entropy", None),
        ("binary_cross_entropy", "sigmoid"), ("poisson", None), ("mean_squared_error", "tanh"),
    ],
)  # fmt: skip
def test_probabilities(tmp_path: Path, loss: str, last: str | None) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 4)).astype(np.float32)
    y = rng.integers(0, 3, 40) if loss == "cross_entropy" else rng.integers(0, 2, (40, 1))
    model = nf.Sequential([nf.Dense(5, "tanh"), nf.Dense(3 if loss == "cross_entropy" else 1, last)])
    model.fit(X, y, loss=loss, epochs=2, device="numpy", verbose=0, seed=0)
    for probabilities, expected in ((False, model.predict(X)), (True, model.predict_proba(X))):
        model.export_onnx(tmp_path / "m.onnx", probabilities=probabilities)
        np.testing.assert_allclose(computed(tmp_path / "m.onnx", X), expected, **CLOSE)


class Twice(nf.Layer):
    def forward(self, bk: Any, x: Any, y: Any) -> None:
        y[...] = 2 * x


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("before")
    own = nf.Sequential([nf.Dense(3), Twice()]).build(2)
    with pytest.raises(ValueError, match=r"layer 1 \(twice\): Twice has no counterpart in ONNX"):
        own.export_onnx(path)
    for opset in (16, 22):
        with pytest.raises(ValueError, match=rf"opset must be 17 to 21, got {opset}"):
            of_all_layers((4,)).export_onnx(path, opset=opset)
    with pytest.raises(nf.NotBuiltError):
        nf.Sequential([nf.Dense(3)]).export_onnx(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        of_all_layers((4,)).export_onnx(tmp_path / "none" / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"nnfast\[onnx\]"):
        of_all_layers((4,)).export_onnx(path)
    with pytest.raises(ImportError, match=r"nnfast\[onnx\]"):
        interop.load(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


# ---- in --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("in_shape", [(4,), (2, 4)])
def test_a_model_comes_back(tmp_path: Path, in_shape: tuple[int, ...]) -> None:
    model = of_all_layers(in_shape)
    model.export_onnx(tmp_path / "m.onnx")
    again = interop.load(tmp_path / "m.onnx")
    assert again.in_shape == in_shape
    if in_shape == (4,):
        expected = [layer for layer in model.layers if not isinstance(layer, nf.Dropout)]
        assert [type(layer) for layer in again.layers] == [type(layer) for layer in expected]
    x = inputs(model)
    np.testing.assert_allclose(again.predict(x, device="numpy"), model.predict(x, device="numpy"), **CLOSE)
    # and is trained on
    again.fit(x, np.arange(len(x)) % 3, loss="cross_entropy", epochs=1, device="numpy", verbose=0)


def graph(path: Path, nodes: list[Any], constants: dict[str, Any], dims: Any = ("n", 4), out: str = "y") -> Path:
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, list(dims))],
        [helper.make_tensor_value_info(out, FLOAT, ["n", "k"])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=8), str(path))
    return path


def node(op: str, inputs: str, out: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [out], name=f"the_{op}_to_{out}", **attributes)


RNG = np.random.default_rng(5)
W, B, V = (RNG.standard_normal(s).astype(np.float32) for s in ((4, 3), (3,), (3,)))
HALF, ONE, ROOT = np.float32(0.5), np.float32(1.0), np.float32(2**0.5)


@pytest.mark.parametrize(
    ("nodes", "constants", "layers"),
    [
        # As scikit-learn's converter writes a layer, and others its transpose
        ([node("MatMul", "x W", "z"), node("Add", "b z", "y")], {"W": W, "b": B}, [nf.Dense(3)]),
        ([node("Gemm", "x W b", "y", transB=1, alpha=0.5, beta=2.0)], {"W": W.T, "b": B}, [nf.Dense(3)]),
        ([node("MatMul", "x W", "y")], {"W": W}, [nf.Dense(3, bias=False)]),
        # What is added and multiplied afterwards
        (
            [node("Gemm", "x W b", "z"), node("Mul", "z v", "t"), node("Sub", "v t", "y")],
            {"W": W, "b": B, "v": V}, [nf.Dense(3)],
        ),
        ([node("Div", "x s", "t"), node("Sub", "t m", "y")], {"s": np.float32([1, 2, 3, 4]), "m": ONE},
         [nf.BatchNorm()]),
        # GELU as PyTorch writes it, SiLU with the factors the other way round, a clipped line
        (
            [node("Gemm", "x W b", "z"), node("Div", "z r", "a"), node("Erf", "a", "e"), node("Add", "e o", "p"),
             node("Mul", "z p", "q"), node("Mul", "q h", "y")],
            {"W": W, "b": B, "r": ROOT, "o": ONE, "h": HALF}, [nf.Dense(3, "gelu")],
        ),
        (
            [node("Gemm", "x W b", "z"), node("Sigmoid", "z", "s"), node("Mul", "s z", "y")],
            {"W": W, "b": B}, [nf.Dense(3, "silu")],
        ),
        (
            [node("Gemm", "x W b", "z"), node("Max", "z o", "y")], {"W": W, "b": B, "o": np.float32(0)},
            [nf.Dense(3, "relu")],
        ),
        ([node("Identity", "x", "t"), node("Dropout", "t", "u"), node("Tanh", "u", "y")], {}, [nf.Activation("tanh")]),
    ],
)  # fmt: skip
def test_graphs_of_others(tmp_path: Path, nodes: list[Any], constants: dict[str, Any], layers: list[nf.Layer]) -> None:
    path = graph(tmp_path / "g.onnx", nodes, constants)
    model = nf.interop.onnx.load(path)
    assert repr(model) == repr(nf.Sequential(layers))
    x = RNG.standard_normal((6, 4)).astype(np.float32)
    np.testing.assert_allclose(model.predict(x, device="numpy"), computed(path, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [[0, -1], [-1, 12]])
def test_a_reshape_of_rows(tmp_path: Path, shape: list[int]) -> None:
    path = graph(tmp_path / "g.onnx", [node("Reshape", "x s", "y")], {"s": np.array(shape)}, ("n", 3, 4))
    assert repr(interop.load(path)) == "Sequential([Flatten()])"


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        ([node("Conv", "x W", "y")], {"W": np.ones((1, 4, 1), "f")}, r"node 'the_Conv_to_y' \(Conv\): there are"),
        (
            [node("Gemm", "x W", "a"), node("Gemm", "x W", "b"), node("Add", "a b", "y")], {"W": W},
            r"not a chain of layers",
        ),
        ([node("MatMul", "W x", "y")], {"W": W}, r"the_MatMul.*only a product"),
        ([node("Gemm", "x W", "y", transA=1)], {"W": W}, r"the_Gemm.*only a product"),
        ([node("Gemm", "x W", "z"), node("Add", "z c", "y")], {"W": W, "c": np.ones((5, 3), "f")}, r"the_Add.*each"),
        ([node("Softmax", "x", "y", axis=0)], {}, r"the_Softmax"),
        ([node("Sin", "x", "y")], {}, r"the_Sin"),
    ],
)  # fmt: skip
def test_graphs_that_are_no_chain_of_layers(
    tmp_path: Path, nodes: list[Any], constants: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        interop.load(graph(tmp_path / "g.onnx", nodes, constants))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        interop.load(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=r"bad\.onnx is no ONNX file"):
        interop.load(tmp_path / "bad.onnx")
