"""ONNX Runtime: the network as a graph of Gemm and activation nodes. It only predicts."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ..workloads import Weights
from .base import Contender

_NODES = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "gelu": "Gelu"}


class OnnxRuntime(Contender):
    """A session on the CPU with all graph optimisations."""

    def build(self, weights: Weights, X: np.ndarray, y: np.ndarray) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        model = _graph(self.workload.activation, weights)
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def epochs(self, count: int) -> list[float]:
        raise NotImplementedError("ONNX Runtime does not train")

    def losses(self, steps: int) -> list[float]:
        raise NotImplementedError("ONNX Runtime does not train")

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": inputs})[0]


def _graph(activation: str, weights: Weights) -> bytes:
    nodes, constants, x = [], [], "x"
    last = len(weights) - 1
    for i, (W, b) in enumerate(weights):
        constants += [numpy_helper.from_array(W, f"W{i}"), numpy_helper.from_array(b, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [x, f"W{i}", f"b{i}"], [f"z{i}"]))
        x = f"z{i}"
        if i < last and activation == "silu":
            nodes.append(helper.make_node("Sigmoid", [x], [f"s{i}"]))
            nodes.append(helper.make_node("Mul", [x, f"s{i}"], [f"a{i}"]))
        elif i < last:
            nodes.append(helper.make_node(_NODES[activation], [x], [f"a{i}"]))
        x = f"a{i}" if i < last else x
    kind = helper.np_dtype_to_tensor_dtype(weights[0][0].dtype)
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", kind, ["n", weights[0][0].shape[0]])],
        [helper.make_tensor_value_info(x, kind, ["n", weights[-1][0].shape[1]])],
        constants,
    )
    assert kind in (TensorProto.FLOAT, TensorProto.DOUBLE)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return model.SerializeToString()
