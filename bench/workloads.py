"""What is timed: the workloads by name, the presets, and their data and initial weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any, Self

import numpy as np

from .networks import (
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    LayerSpec,
    MaxPool,
    Network,
    Norm,
    Recurrent,
    Relu,
    Residual,
    TransformerBlock,
)
from .products import Linear, MatrixProduct

__all__ = ["PRESETS", "WORKLOADS", "Workload", "find", "initial_weights", "make_data", "prediction_rows", "rows_for"]

ACTIVATIONS = ("relu", "tanh", "sigmoid", "silu", "gelu")
LOSSES = ("cross_entropy", "binary_cross_entropy", "mean_squared_error")
OPTIMIZERS = ("adam", "sgd")
DTYPES = ("float32", "float64")
PRECISIONS = ("", "tf32", "bf16")

CHECKED = 4096  # most rows of a batch whose losses are compared
LARGE = 4096  # rows of a batch, from which on an epoch has few of them, so that the data stay small
SEED = 20240229

# Of each layer: (W, b), or what the layers of a Network have
Weights = list[Any]


def rows_for(batch: int) -> int:
    """Rows of a data set of 16 batches, or of 2 large ones."""
    return batch * (16 if batch < LARGE else 2)


@dataclass(frozen=True)
class Workload:
    """A network, mostly a multilayer perceptron, and how it is trained, or asked for predictions.

    Attributes
    ----------
    name : str
        By which it is chosen and reported.
    sizes : tuple of int
        Inputs, hidden units of each layer, outputs; with a `network` the inputs and the outputs alone.
    batch : int
        Rows of a step.
    rows : int
        Rows of the data set; where `batch` does not divide them, an epoch's last step is smaller.
    activation : str
        Of the hidden layers: relu, tanh, sigmoid, silu or gelu (the exact one). The last layer is linear.
    loss : str
        From logits: cross_entropy of integer labels, binary_cross_entropy of 0 and 1 (a single output), or
        mean_squared_error.
    optimizer : str
        adam (betas 0.9 and 0.999, epsilon 1e-8) or sgd (`momentum`).
    lr, momentum : float
        Learning rate, and the momentum of sgd.
    dropout : float
        Rate after each hidden layer.
    dtype : str
        float32 or float64, of the data, the weights and the computation.
    precision : str
        What a GPU may round: with tf32 the factors of products, with bf16 activations, their gradients and the weights
        in products. Empty: everything is of the dtype.
    predict : int
        0 times training; another number times predictions of so many rows.
    network : Network, optional
        Other layers than dense ones; `activation` and `dropout` have no meaning then.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    rows: int
    activation: str = "relu"
    loss: str = "cross_entropy"
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    dropout: float = 0.0
    dtype: str = "float32"
    predict: int = 0
    precision: str = ""
    network: Network | None = None

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or any(not isinstance(n, int) or n < 1 for n in self.sizes):
            raise ValueError(f"workload {self.name!r}: sizes must be two or more positive numbers, got {self.sizes}")
        for field, least in (("batch", 1), ("rows", 1), ("predict", 0)):
            if getattr(self, field) < least:
                raise ValueError(
                    f"workload {self.name!r}: {field} must be at least {least}, got {getattr(self, field)}"
                )
        for field, known in (
            ("activation", ACTIVATIONS), ("loss", LOSSES), ("optimizer", OPTIMIZERS), ("dtype", DTYPES),
            ("precision", PRECISIONS),
        ):  # fmt: skip
            if getattr(self, field) not in known:
                raise ValueError(
                    f"workload {self.name!r}: {field} must be one of {', '.join(known)}, got {getattr(self, field)!r}"
                )
        if self.precision and self.dtype != "float32":
            raise ValueError(f"workload {self.name!r}: {self.precision} rounds float32, not {self.dtype}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"workload {self.name!r}: dropout must be in [0, 1), got {self.dropout}")
        if self.loss == "binary_cross_entropy" and self.sizes[-1] != 1:
            raise ValueError(f"workload {self.name!r}: binary_cross_entropy needs a single output")
        if self.network is not None and self.sizes != _ends(self.network):
            raise ValueError(
                f"workload {self.name!r}: sizes must be the network's inputs and outputs, {_ends(self.network)}, "
                f"got {self.sizes}"
            )

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer of a multilayer perceptron."""
        return list(pairwise(self.sizes))

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of a row of the inputs."""
        return self.sizes[:1] if self.network is None else self.network.in_shape

    @property
    def layout(self) -> str:
        """The layers in one line."""
        return "-".join(map(str, self.sizes)) if self.network is None else self.network.describe()

    def products(self, rows: int) -> list[MatrixProduct]:
        """The matrix products of a step on so many rows, in the order of the forward pass."""
        if self.network is not None:
            return self.network.products(rows)
        return [Linear(rows, *layer, dx=i > 0) for i, layer in enumerate(self.layers)]

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return 2 if self.precision == "bf16" else np.dtype(self.dtype).itemsize

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.rows // self.batch)

    @property
    def rows_per_step(self) -> float:
        """Rows of a step, on average; of a prediction, where these are timed."""
        return self.predict or self.rows / self.steps

    def with_batch(self, batch: int) -> Self:
        """The same network with batches of another size, and a data set to go with them."""
        return replace(self, batch=batch, rows=rows_for(batch))

    def without_chance(self) -> Self:
        """The same without dropout, so that every contender must come to the same losses.

        Batches are no larger than it takes to see that: the network in NumPy computes them, too.
        """
        work = replace(self, dropout=0.0)
        if self.predict or self.batch <= CHECKED:
            return work
        return replace(work, batch=CHECKED, rows=min(self.rows, rows_for(CHECKED)))

    def scaled(self) -> Self:
        """A small version, for tests: no layer above 16 units, no batch above 32 rows; see `Network.scaled`."""
        batch = min(self.batch, 32)
        full, rest = divmod(self.rows, self.batch)
        rows = min(full, 3) * batch + (max(1, batch // 3) if rest else 0)
        sizes = tuple(min(n, 16) for n in self.sizes)
        network = self.network
        if network is not None:
            network = network.scaled()
            sizes = _ends(network)
        return replace(self, sizes=sizes, batch=batch, rows=rows, predict=min(self.predict, 64), network=network)

    def describe(self) -> str:
        """The workload in one line."""
        parts = [self.name, self.layout, *([self.activation] if self.network is None else [])]
        if self.predict:
            rows = f"{self.predict} rows" if self.predict > 1 else "1 row"
            return ", ".join([*parts, f"predictions of {rows}", self.dtype])
        optimizer = self.optimizer + (f" with momentum {self.momentum:g}" if self.optimizer == "sgd" else "")
        dropout = [f"dropout {self.dropout:g}"] if self.dropout else []
        batches = f"batches of {self.batch}" + (f" of {self.rows} rows" if self.rows % self.batch else "")
        return ", ".join([*parts, *dropout, self.loss, optimizer, batches, self.precision or self.dtype])


def _ends(network: Network) -> tuple[int, ...]:
    """Numbers of inputs and outputs."""
    return prod(network.in_shape), network.outputs


def _of_batches(name: str, sizes: tuple[int, ...], batch: int, activation: str = "relu", **more: object) -> Workload:
    more.setdefault("rows", rows_for(batch))
    return Workload(name, sizes, batch, activation=activation, **more)  # type: ignore[arg-type]


_MNIST = _of_batches("mnist", (784, 512, 256, 10), 256)
_SMALL = (
    _of_batches("xor", (2, 4, 1), 4, "sigmoid", loss="binary_cross_entropy", rows=4),
    _of_batches("tiny", (10, 10, 10, 10, 1), 32, loss="mean_squared_error", rows=32),
    _of_batches("small", (64, 100, 10), 200),
    _MNIST,
)
_LARGE = (
    _of_batches("wide", (784, 1024, 1024, 10), 8192),
    _of_batches("narrow", (64, 64, 64, 64, 10), 65536),
    _of_batches("gelu", (256, 256, 256, 256, 10), 16384, "gelu"),
)
_INFERENCE = tuple(
    replace(workload, name=f"{workload.name}-predict-{rows}", predict=rows)
    for workload in (_MNIST, _LARGE[0])
    for rows in (1, 65536)
)
_OFF_TABLE = (
    _of_batches("tanh-300", (100, 300, 300, 10), 1000, "tanh"),
    _of_batches("sigmoid-128", (64, 128, 128, 10), 128, "sigmoid"),
    _of_batches("silu-512", (256, 512, 512, 10), 512, "silu"),
    replace(_MNIST, name="mnist-dropout", dropout=0.2),
    replace(_MNIST, name="mnist-momentum", optimizer="sgd", lr=1e-2),
    replace(_MNIST, name="mnist-float64", dtype="float64"),
    replace(_MNIST, name="mnist-last-smaller", rows=4000),
)


def _of_layers(name: str, batch: int, in_shape: tuple[int, ...], *layers: LayerSpec, lr: float = 1e-3) -> Workload:
    # Four batches: their steps take long, and each row has many numbers
    network = Network(in_shape, (*layers, Dense(10)))
    return Workload(name, _ends(network), batch, 4 * batch, lr=lr, network=network)


# Losses of `depthwise` hardly change in ten steps at the usual rate, so that one learns little from comparing them
_LAYERS = (
    _of_layers(
        "cnn", 256, (28, 28, 1), Conv(32, 3, "relu"), MaxPool(), Conv(64, 3, "relu"), MaxPool(), Flatten()
    ),
    _of_layers("lstm", 128, (64, 64), Recurrent("lstm", 128)),
    _of_layers("gru", 128, (64, 64), Recurrent("gru", 128)),
    _of_layers("transformer", 32, (128, 256), TransformerBlock(8, 1024), GlobalAvgPool()),
    _of_layers(
        "resnet-block", 64, (32, 32, 64),
        Residual((Conv(64, bias=False), Norm(), Relu(), Conv(64, bias=False), Norm())), Relu(), GlobalAvgPool(),
    ),
    _of_layers("depthwise", 64, (32, 32, 64), Conv(0, 3, "relu"), Conv(128, 1, "relu"), GlobalAvgPool(), lr=1e-2),
)  # fmt: skip

_GPU = (
    _MNIST,
    replace(_MNIST.with_batch(1024), name="mnist-1024"),
    _of_batches("wide-65536", (784, 1024, 1024, 10), 65536),
    _of_batches("wider-65536", (784, 4096, 4096, 10), 65536),
    _of_batches("narrow-1048576", (64, 64, 64, 64, 10), 1 << 20),
)
_GPU_TF32, _GPU_BF16 = (
    tuple(replace(workload, name=f"{workload.name}-{precision}", precision=precision) for workload in _GPU)
    for precision in ("tf32", "bf16")
)

PRESETS: dict[str, tuple[Workload, ...]] = {
    "small": _SMALL,
    "large-batch": _LARGE,
    "inference": _INFERENCE,
    "all": (*_SMALL, *_LARGE, *_INFERENCE),
    "off-table": _OFF_TABLE,
    "layers": _LAYERS,
    "gpu": _GPU,
    "gpu-tf32": _GPU_TF32,
    "gpu-bf16": _GPU_BF16,
}
WORKLOADS: dict[str, Workload] = {workload.name: workload for preset in PRESETS.values() for workload in preset}


def find(name: str) -> Workload:
    """The workload of this name.

    Raises
    ------
    ValueError
        If there is none; the message lists what there is.
    """
    try:
        return WORKLOADS[name]
    except KeyError:
        raise ValueError(f"workload {name!r} is not known; known are {', '.join(WORKLOADS)}") from None


def _inputs(rng: np.random.Generator, rows: int, workload: Workload) -> np.ndarray:
    # As spread as MNIST's pixels. With a variance of 1, ten steps of `wide` at the usual rate give some rows
    # probabilities below 1e-7, where scikit-learn cuts off its loss
    return (np.float32(0.3) * rng.standard_normal((rows, *workload.in_shape), np.float32)).astype(workload.dtype)


def make_data(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (rows, \\*in_shape) and targets: int64 labels (rows,), or numbers of `dtype` (rows, sizes[-1])."""
    rng = np.random.default_rng(SEED)
    dtype = np.dtype(workload.dtype)
    if workload.loss == "binary_cross_entropy" and (workload.rows, workload.sizes[0]) == (4, 2):
        X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype)
        return X, (X[:, :1] != X[:, 1:]).astype(dtype)
    X = _inputs(rng, workload.rows, workload)
    outputs = workload.sizes[-1]
    if workload.loss == "cross_entropy":
        return X, rng.permutation(np.arange(workload.rows) % outputs)  # every class, however few the rows
    if workload.loss == "binary_cross_entropy":
        return X, rng.integers(0, 2, (workload.rows, 1)).astype(dtype)
    return X, rng.standard_normal((workload.rows, outputs)).astype(dtype)


def prediction_rows(workload: Workload) -> np.ndarray:
    """Inputs (predict, \\*in_shape) to predict from."""
    return _inputs(np.random.default_rng(SEED + 1), workload.predict, workload)


def initial_weights(workload: Workload) -> Weights:
    """Weights (inputs, outputs) and biases (outputs,) of each layer: the same for every contender.

    Of a network, its own layers' tuples.
    """
    rng = np.random.default_rng(SEED + 2)
    if workload.network is not None:
        return workload.network.initial_weights(rng, workload.dtype)
    gain = 2.0 if workload.activation == "relu" else 1.0
    return [
        (
            (rng.standard_normal((inputs, outputs)) * np.sqrt(gain / inputs)).astype(workload.dtype),
            (0.1 * rng.standard_normal(outputs)).astype(workload.dtype),
        )
        for inputs, outputs in workload.layers
    ]
