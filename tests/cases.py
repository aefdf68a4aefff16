"""What several tests share: layers, losses and optimizers, each with inputs that suit it, and ways to run them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import nnfast as nf
from nnfast import activations
from nnfast.backends.base import Backend
from nnfast.kernels import step_state as S
from nnfast.layers.base import BuildContext, Layer, Shape
from nnfast.layers.graph import build_chain
from nnfast.losses import Loss
from nnfast.parameters import Parameters
from nnfast.plan import Plan, without_link

# Distance of every input from a kink, so that central differences do not straddle one
MARGIN = 1e-3

ACTIVATIONS = [*activations.names(), "leaky_relu(0.3)", "elu(0.7)"]


def wide_weights(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Weights that bring pre-activations of unit inputs to both sides of the kinks at -3 and 3."""
    return 1.5 * rng.standard_normal(shape)


def clear(z: np.ndarray, kinks: Sequence[float]) -> bool:
    """Whether every element of `z` keeps the distance from every kink."""
    return all(float(np.abs(z - kink).min()) > MARGIN for kink in kinks)


def first_clear(
    draw: Callable[[np.random.Generator], np.ndarray], is_clear: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """What `draw` gives for the first seed where it is clear of the kinks."""
    for seed in range(1000):
        values = draw(np.random.default_rng(seed))
        if is_clear(values):
            return values
    raise AssertionError("no input keeps away from the kinks")


def dense_case(
    activation: str, shape: Shape, units: int, *, bias: bool = True, batch: int = 5
) -> tuple[Layer, np.ndarray]:
    """A Dense layer with fixed weights and an input that keeps its pre-activations away from kinks."""
    rng = np.random.default_rng(77)
    W, b = wide_weights((shape[-1], units), rng), rng.standard_normal(units) * bias
    layer = nf.Dense(
        units, activation, bias=bias, initializer=lambda shape, rng: W, bias_initializer=lambda shape, rng: b
    )
    kinks = activations.get(activation).kinks
    x = first_clear(lambda rng: rng.standard_normal((batch, *shape)), lambda x: clear(x @ W + b, kinks))
    return layer, x


def pointwise_input(activation: str, shape: Shape) -> np.ndarray:
    """An input away from the kinks, wide enough to pass them all."""
    kinks = activations.get(activation).kinks
    return first_clear(lambda rng: 3.0 * rng.standard_normal(shape), lambda x: clear(x, kinks))


class LossCase(NamedTuple):
    """A loss with outputs and targets that suit it."""

    loss: str | Loss
    pred: np.ndarray
    true: np.ndarray


def loss_cases() -> dict[str, LossCase]:
    """One row per loss, option and kind of target; outputs are away from the kinks."""
    rng = np.random.default_rng(3)
    rows, columns, classes = 7, 3, 4
    real = rng.standard_normal((rows, columns))
    binary = (rng.random((rows, columns)) < 0.5).astype(np.float64)
    soft = rng.dirichlet(np.ones(classes), rows)
    labels = rng.integers(0, classes, rows)

    def outputs(columns: int, is_clear: Callable[[np.ndarray], bool] = lambda z: True) -> np.ndarray:
        return first_clear(lambda rng: 1.5 * rng.standard_normal((rows, columns)), is_clear)

    def off(target: np.ndarray, *kinks: float) -> Callable[[np.ndarray], bool]:
        return lambda z: clear(np.abs(z - target), kinks)

    signs = 2.0 * binary - 1.0
    far_from_one = outputs(columns, lambda z: clear(signs * z, (1.0,)))
    logits = outputs(classes)
    return {
        "mean_squared_error": LossCase("mean_squared_error", outputs(columns), real),
        "mean_absolute_error": LossCase("mean_absolute_error", outputs(columns, off(real, 0.0)), real),
        "huber": LossCase("huber", outputs(columns, off(real, 1.0)), real),
        "huber(0.4)": LossCase(nf.Huber(0.4), outputs(columns, off(real, 0.4)), real),
        "binary_cross_entropy": LossCase("binary_cross_entropy", outputs(columns), binary),
        "binary_cross_entropy, soft": LossCase("binary_cross_entropy", outputs(columns), rng.random((rows, columns))),
        "binary_cross_entropy, 1 output": LossCase("binary_cross_entropy", outputs(1), binary[:, 0].astype(int)),
        "poisson": LossCase("poisson", outputs(columns), rng.poisson(2.0, (rows, columns))),
        "hinge, 0 and 1": LossCase("hinge", far_from_one, binary),
        "hinge, -1 and 1": LossCase("hinge", far_from_one, signs.astype(int)),
        "cross_entropy": LossCase("cross_entropy", logits, labels),
        "cross_entropy, one-hot": LossCase("cross_entropy", logits, np.eye(classes)[labels]),
        "cross_entropy, soft": LossCase("cross_entropy", logits, soft),
        "cross_entropy, smoothed": LossCase(nf.CrossEntropy(0.1), logits, labels),
        "cross_entropy, soft and smoothed": LossCase(nf.CrossEntropy(0.1), logits, soft),
        "cross_entropy, counts": LossCase("cross_entropy", logits, rng.integers(0, 3, (rows, classes))),
    }


LOSSES = loss_cases()

OPTIMIZERS: dict[str, nf.Optimizer] = {
    repr(optimizer): optimizer
    for optimizer in (
        nf.SGD(0.1),
        nf.SGD(0.1, momentum=0.9),
        nf.SGD(0.1, momentum=0.9, nesterov=True),
        nf.SGD(0.1, momentum=0.9, weight_decay=0.05),
        nf.SGD(0.1, clip_value=0.3),
        nf.SGD(0.1, clip_norm=1.5),
        nf.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.05, clip_value=1.0, clip_norm=2.0, ema=0.9),
        nf.Adagrad(0.1),
        nf.Adagrad(0.1, eps=1e-3, weight_decay=0.05),
        nf.RMSprop(0.01),
        nf.RMSprop(0.01, rho=0.9, momentum=0.8),
        nf.RMSprop(0.01, centered=True),
        nf.RMSprop(0.01, rho=0.9, eps=1e-3, momentum=0.8, centered=True, weight_decay=0.05),
        nf.Adam(0.01),
        nf.Adam(0.01, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.05),
        nf.Adam(0.01, clip_norm=1.5),
        nf.Adam(0.01, ema=0.9),
        nf.AdamW(0.01),
        nf.AdamW(0.01, weight_decay=0.5, clip_value=0.3),
        nf.Adamax(0.01),
        nf.Adamax(0.01, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.05),
        nf.NAdam(0.01),
        nf.NAdam(0.01, momentum_decay=0.1, weight_decay=0.05),
        nf.Lion(0.01),
        nf.Lion(0.01, beta1=0.8, beta2=0.95, weight_decay=0.5),
        nf.Adam(nf.optimizers.schedules.Exponential(lr=0.01, gamma=0.5)),
    )
}


class Padding(Layer):
    """Passes its input on, and says which steps are padding: a row of `values` for each of the batch."""

    replayable = True
    table: Any

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values, np.float64)

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        ctx.mask(in_shape[0])
        ctx.buffer("table", self._values.shape, lambda shape, rng: self._values)
        return in_shape

    def forward(self, bk: Backend, x: Any, y: Any) -> None:
        bk.copy(x, out=y)
        bk.copy(self.table, out=self.out_mask)

    def backward(self, bk: Backend, dy: Any, dx: Any) -> None:
        if dx is not None:
            bk.copy(dy, out=dx)


def run_layer(
    layer: Layer,
    backend: Backend,
    x: np.ndarray,
    dy: np.ndarray,
    dtype: Any = np.float64,
    mask: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """A layer's output, and the gradients of everything for the gradient `dy` of its output, on the host."""
    built = build_chain([layer], x.shape[1:])
    params = Parameters(built, backend, dtype)
    params.initialise(0)
    grad = backend.zeros(params.size, dtype)
    arrays: dict[str, Any] = params.of_layer(0, grad)
    for spec in built[0].specs:
        if spec.kind in ("saved", "scratch"):
            arrays[spec.name] = backend.zeros((len(x), *spec.shape) if spec.per_row else spec.shape, dtype)
    bound = layer.bind(arrays, training=True, stream=0)
    bound.x = backend.asarray(x.astype(dtype))
    bound.y = backend.zeros((len(x), *built[0].out_shape), dtype)
    bound.state = backend.zeros(S.SIZE, np.float64)  # type: ignore[attr-defined]
    bound.mask = None if mask is None else backend.asarray(mask.astype(dtype))
    dx = backend.zeros(x.shape, dtype)
    bound.forward(backend, bound.x, bound.y)
    bound.backward(backend, backend.asarray(dy.astype(dtype)), dx)
    results = {"y": bound.y, "dx": dx, **params.get()}
    results |= {name: array for name, array in arrays.items() if name.startswith("d")}
    return {name: np.array(backend.to_numpy(array)) for name, array in results.items()}


def run_optimizer(
    optimizer: nf.Optimizer, backend: Backend, start: np.ndarray, grads: np.ndarray, dtype: Any = np.float64
) -> dict[str, np.ndarray]:
    """Parameters, moments and moving average after one step for each row of `grads`."""
    param = backend.asarray(start.astype(dtype))
    average = backend.asarray(start.astype(dtype)) if optimizer.ema is not None else None
    slots = {name: backend.zeros(start.size, dtype) for name in optimizer.slots}
    host = np.zeros(S.SIZE)
    for slot, value in optimizer.fill_state().items():
        host[slot] = value
    state = backend.zeros(S.SIZE, np.float64)
    backend.copy(host, out=state)
    schedule = optimizer.schedule()
    schedule.bind(1, len(grads))
    table = backend.asarray(schedule.table(0, len(grads)))
    for grad in grads:
        backend.begin_step(state, table)
        optimizer.record(backend, param, backend.asarray(grad.astype(dtype)), slots, average, state)
    results = {"param": param, **slots} | ({} if average is None else {"average": average})
    return {name: np.array(backend.to_numpy(array)) for name, array in results.items()}


class Chain:
    """A whole model under a loss, on one backend: its loss and gradient at any weights, each from step number 1."""

    def __init__(
        self,
        layers: Sequence[Layer],
        x: np.ndarray,
        y: np.ndarray,
        loss: str | Loss,
        backend: Backend,
        *,
        weight: np.ndarray | None = None,
        dtype: Any = np.float64,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        resolved = nf.losses.get(loss)
        built = build_chain(list(copy.deepcopy(layers)), x.shape[1:])
        self.params = Parameters(built, backend, dtype)
        self.params.initialise(seed)
        target = resolved.targets(y, built[-1].out_shape, dtype)
        self.plan = Plan(
            without_link(built, resolved),
            self.params,
            batch or len(x),
            loss=resolved,
            optimizer=nf.SGD(0.0),
            targets=[(target.shape[1:], target.dtype)],
            weighted=weight is not None,
        )
        self.rows = len(x)
        self.plan.feed(
            x if x.dtype.kind == "i" else x.astype(dtype), target, None if weight is None else weight.astype(dtype)
        )

    def step(self) -> float:
        """The loss; the learning rate is 0 and the step number the same each time."""
        self.plan.write_state(np.zeros(S.SIZE))
        self.plan.run(self.rows)
        return float(self.plan.read_state()[S.LOSS])

    def loss_at(self, vector: np.ndarray) -> float:
        self.params.set_vector(vector)
        return self.step()

    def gradient(self) -> np.ndarray:
        """The gradient of the last step, as one vector."""
        grad = self.params.backend.to_numpy(self.plan.grad)
        return np.concatenate([grad[e.offset : e.offset + e.size] for e in self.params.entries])
