"""Checks for layers, losses and optimizers, nnfast's own and the user's.

The gradient check is in float64, by central differences with h = 1e-6, to rtol 1e-5 and atol 1e-7. Parity
between backends is checked to :data:`TOLERANCES`.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import devices, optimizers, random
from .backends.base import Array, Backend
from .kernels import step_state as S
from .layers.base import BuildContext, Layer, Shape
from .layers.graph import build_chain
from .losses import Loss
from .losses import get as get_loss
from .optimizers import SGD, Optimizer
from .parameters import Parameters
from .plan import Plan

__all__ = ["TOLERANCES", "check_gradient", "check_layer", "check_loss", "check_optimizer"]

# dtype: (rtol, atol) of results, (rtol, atol) of gradients, against NumPy in float64. The first float32
# atol is per unit of the result's own scale: products of a few hundred terms cancel.
TOLERANCES = {
    "float64": ((1e-12, 1e-13), (1e-10, 1e-12)),
    "float32": ((1e-5, 1e-5), (1e-4, 1e-5)),
}


def check_gradient(
    f: Callable[[np.ndarray], float], grad: np.ndarray, x: np.ndarray, *, h: float = 1e-6, name: str = "gradient"
) -> None:
    """Compare a gradient with central differences.

    Parameters
    ----------
    f : callable
        Takes an array like `x`, returns a number; `x` should be away from kinks by much more than `h`.
    grad : ndarray
        The gradient of `f` at `x` that is to be checked.
    x : ndarray of float64
        Where.
    h : float
        Step of the differences.
    name : str
        How the message calls it.

    Raises
    ------
    AssertionError
        With the worst element, its value and the expected one.
    """
    x = np.array(x, np.float64)
    grad = np.asarray(grad)
    if grad.shape != x.shape:
        raise AssertionError(f"{name} has shape {grad.shape}, its variable {x.shape}")
    expected = np.empty_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + h
        above = f(x)
        x[index] = kept - h
        below = f(x)
        x[index] = kept
        expected[index] = (above - below) / (2 * h)
    _close(grad, expected, 1e-5, 1e-7, name)


def _close(actual: Any, expected: Any, rtol: float, atol: float, what: str) -> None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise AssertionError(f"{what} has shape {actual.shape}, expected {expected.shape}")
    excess = np.abs(actual - expected) - (atol + rtol * np.abs(expected))
    bad = ~(excess <= 0) & ~(np.isnan(actual) & np.isnan(expected))
    if bad.any():
        worst = np.unravel_index(np.argmax(np.where(bad, np.nan_to_num(excess, nan=np.inf), -np.inf)), bad.shape)
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.size} elements differ; the worst, at {tuple(map(int, worst))}, is "
            f"{actual[worst]!r}, expected {expected[worst]!r} (rtol {rtol}, atol {atol})"
        )


class _Probe(Layer):
    """``y = s`` with one parameter per element of the batch: makes a layer's input a parameter, to perturb."""

    replayable = True
    s: Array
    ds: Array

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        ctx.param("s", self.values.shape, lambda shape, rng: self.values)
        return self.values.shape[1:]

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        bk.copy(self.s, out=y)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        bk.copy(dy, out=self.ds)


class _Projection(Loss):
    """The mean of ``y_pred * y_true``: any gradient can be put in, through the targets."""

    def value(self, y_pred: Array, y_true: Array) -> Array:
        return y_pred * y_true

    def gradient(self, y_pred: Array, y_true: Array) -> Array:
        return y_true * 1.0


class _Bench:
    """A probe and a layer under a loss, on one backend; loss and gradients as functions of all parameters."""

    def __init__(
        self,
        layer: Layer,
        x: np.ndarray,
        target: np.ndarray | None,
        backend: Backend,
        dtype: str,
        optimizer: Optimizer,
        loss: Loss | None = None,
        weight: np.ndarray | None = None,
    ) -> None:
        self.built = build_chain([_Probe(x), layer], x.shape[1:])
        self.params = Parameters(self.built, backend, dtype)
        self.params.initialise(0)
        rows = len(x)
        if target is None:
            size = (rows, int(np.prod(self.built[-1].out_shape)))
            target = random.generator(1, random.INIT).standard_normal(size)
        if target.dtype.kind == "f":
            target = target.astype(dtype)
        self.plan = Plan(
            self.built,
            self.params,
            rows,
            loss=loss or _Projection(),
            optimizer=optimizer,
            targets=[(target.shape[1:], target.dtype)],
            weighted=weight is not None,
        )
        self.plan.feed(x.astype(dtype), target, None if weight is None else weight.astype(dtype))
        state = np.zeros(S.SIZE)
        for slot, value in optimizer.fill_state().items():
            state[slot] = value
        self._state = state
        self.rows = rows

    def step(self) -> np.ndarray:
        """One step from step number 0, so that dropout masks are the same each time; the state after it."""
        self.plan.write_state(self._state)
        self.plan.run(self.rows)
        return self.plan.read_state()

    def loss_at(self, vector: np.ndarray) -> float:
        self.params.set_vector(vector)
        return float(self.step()[S.LOSS])

    def results(self) -> dict[str, np.ndarray]:
        """Output, loss and all gradients."""
        loss = self.step()[S.LOSS]
        backend = self.params.backend
        named = {"output": np.array(backend.to_numpy(self.plan.output(self.rows))), "loss": np.array(loss)}
        grad = backend.to_numpy(self.plan.grad)
        for entry in self.params.entries:
            name = "dx" if entry.layer == 0 else "d" + entry.spec.name
            named[name] = np.array(entry.view(grad))
        return named

    def gradient(self) -> np.ndarray:
        """All gradients as one vector."""
        grad = self.params.backend.to_numpy(self.plan.grad)
        return np.concatenate([grad[e.offset : e.offset + e.size] for e in self.params.entries])


def _usable() -> list[Backend]:
    return [devices.get_backend(name) for name, reason in devices.available_devices().items() if reason is None]


def _no_update() -> Optimizer:
    return SGD(lr=0.0)


def check_layer(
    layer: Layer,
    shape: Shape,
    *,
    batch: int = 5,
    backends: Sequence[str | Backend] | None = None,
    x: np.ndarray | None = None,
) -> None:
    """Check a layer: its gradients, that all backends agree, that replaying is right and allocates nothing.

    Parameters
    ----------
    layer : Layer
        Not bound.
    shape : tuple of int
        Of one input row.
    batch : int
        Number of rows.
    backends : sequence of str or Backend, optional
        By default all that can be used here.
    x : ndarray, optional
        The input, (batch, *shape); by default standard normal.

    Raises
    ------
    AssertionError
        Naming what differs, where, and by how much.
    """
    if x is None:
        x = random.generator(0, random.INIT).standard_normal((batch, *shape))
    reference = devices.get_backend("numpy")
    bench = _Bench(layer, x, None, reference, "float64", _no_update())
    bench.step()  # what is added to a buffer in place of written shows in the second step
    expected = bench.results()
    check_gradient(bench.loss_at, bench.gradient(), bench.params.vector(), name=f"{layer}: gradient")
    for backend in _usable() if backends is None else map(devices.get_backend, backends):
        for dtype, (forward, gradient) in TOLERANCES.items():
            other = _Bench(layer, x, None, backend, dtype, _no_update())
            for attempt in ("first", "replayed"):
                for name, value in other.results().items():
                    rtol, atol = forward if name in ("output", "loss") else gradient
                    atol *= max(1.0, float(np.abs(expected[name]).max(initial=0.0)))
                    where = f"{layer} on {backend.device}, {dtype}, {attempt}"
                    _close(value, expected[name], rtol, atol, f"{where}: {name}")
            if backend.name == "numba" and layer.replayable:
                _check_no_allocation(other, f"{layer} on {backend.device}, {dtype}")


def _check_no_allocation(bench: _Bench, what: str) -> None:
    """A replayed step allocates no array: the peak stays below the smallest of its buffers."""
    tracemalloc.start()
    try:
        bench.plan.run(bench.rows)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        bench.plan.run(bench.rows)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    # Python objects of the loss that this module brings are allowed; the arrays of a step are not
    largest = max(bench.plan.view(bench.plan.layout.x).nbytes, bench.plan.output(bench.rows).nbytes)
    allowed = 4096 + 8 * largest
    if peak > allowed:
        raise AssertionError(f"{what}: a step allocated {peak} bytes, more than {allowed}")


class _Identity(Layer):
    replayable = True

    def is_view(self, training: bool) -> bool:
        return True


def check_loss(
    loss: str | Loss,
    y_pred: np.ndarray,
    y_true: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    backends: Sequence[str | Backend] | None = None,
) -> None:
    """Check a loss: its gradient, that all backends agree, and that weight 2 counts like a row given twice.

    Parameters
    ----------
    loss : str or Loss
    y_pred : ndarray
        (n, m), away from kinks.
    y_true : ndarray
        Targets as ``fit`` takes them.
    sample_weight : ndarray, optional
        (n,).
    backends : sequence of str or Backend, optional
        By default all that can be used here.

    Raises
    ------
    AssertionError
        Naming what differs, where, and by how much.
    """
    loss = get_loss(loss)
    y_pred = np.asarray(y_pred, np.float64)
    reference = devices.get_backend("numpy")
    target = loss.targets(np.asarray(y_true), y_pred.shape[1:], np.float64)

    def bench(backend: Backend, dtype: str, repeat: np.ndarray | None = None, weight: Any = sample_weight) -> _Bench:
        p, t, w = (a if repeat is None or a is None else np.repeat(a, repeat, axis=0) for a in (y_pred, target, weight))
        return _Bench(_Identity(), p, t, backend, dtype, _no_update(), loss, w)

    base = bench(reference, "float64")
    expected = base.results()
    check_gradient(base.loss_at, base.gradient(), base.params.vector(), name=f"{loss}: gradient")
    for backend in _usable() if backends is None else map(devices.get_backend, backends):
        for dtype, (forward, gradient) in TOLERANCES.items():
            results = bench(backend, dtype).results()
            _close(results["loss"], expected["loss"], *forward, f"{loss} on {backend.device}, {dtype}: loss")
            _close(results["dx"], expected["dx"], *gradient, f"{loss} on {backend.device}, {dtype}: gradient")
    counts = np.arange(len(y_pred)) % 3 + 1
    once = bench(reference, "float64", weight=counts.astype(np.float64)).results()["loss"]
    often = bench(reference, "float64", repeat=counts, weight=None).results()["loss"]
    _close(once, often, 1e-12, 1e-13, f"{loss}: rows of weight k against rows given k times")


def check_optimizer(
    optimizer: str | Optimizer,
    *,
    steps: int = 10,
    size: int = 37,
    backends: Sequence[str | Backend] | None = None,
) -> None:
    """Check an optimizer: that all backends agree over some steps, and that a bad step changes nothing.

    Parameters
    ----------
    optimizer : str or Optimizer
    steps : int
        Number of steps.
    size : int
        Number of parameters.
    backends : sequence of str or Backend, optional
        By default all that can be used here.

    Raises
    ------
    AssertionError
        Naming what differs, where, and by how much.
    """
    optimizer = optimizers.get(optimizer)
    rng = random.generator(2, random.INIT)
    start, grads = rng.standard_normal(size), rng.standard_normal((steps, size))
    schedule = optimizer.schedule()
    schedule.bind(1, steps)  # an epoch per step, for schedules that count epochs
    rates = schedule.table(0, steps)

    def run(backend: Backend, dtype: str, bad: bool) -> dict[str, np.ndarray]:
        param = backend.asarray(start.astype(dtype).copy())
        average = None if optimizer.ema is None else backend.asarray(start.astype(dtype).copy())
        slots = {name: backend.zeros(size, dtype) for name in optimizer.slots}
        state = backend.zeros(S.SIZE, np.float64)
        host = np.zeros(S.SIZE)
        for slot, value in optimizer.fill_state().items():
            host[slot] = value
        host[S.BAD_STEP] = float(bad)
        backend.copy(host, out=state)
        table = backend.asarray(rates)
        for grad in grads:
            backend.begin_step(state, table)
            optimizer.record(backend, param, backend.asarray(grad.astype(dtype).copy()), slots, average, state)
        arrays = {"param": param, **slots} | ({} if average is None else {"average": average})
        return {name: np.array(backend.to_numpy(array)) for name, array in arrays.items()}

    expected = run(devices.get_backend("numpy"), "float64", bad=False)
    for backend in _usable() if backends is None else map(devices.get_backend, backends):
        for dtype, (_, (rtol, atol)) in TOLERANCES.items():
            where = f"{optimizer} on {backend.device}, {dtype}"
            for name, value in run(backend, dtype, bad=False).items():
                _close(value, expected[name], rtol, atol, f"{where}: {name} after {steps} steps")
            for name, value in run(backend, dtype, bad=True).items():
                kept = np.zeros(size) if name in optimizer.slots else start.astype(dtype)
                _close(value, kept, 0.0, 0.0, f"{where}: {name} after a bad step")
