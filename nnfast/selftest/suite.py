"""The checks of a device, each a function that raises where something is wrong."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import activations, devices, losses, optimizers, testing
from ..backends.base import Backend, Replay
from ..datasets import load
from ..errors import OutOfMemoryError
from ..layers import Activation, BatchNorm, Dense, Dropout, Flatten, Layer, LayerNorm
from ..model import Sequential
from ..training.trainer import Trainer
from .operations import Operations

__all__ = ["Check", "Outcome", "checks", "run"]

# Rows, columns, and elements between an aligned address and the start of each array
SIZES = ((300, 37, 0), (33, 7, 1), (6, 1, 0), (257, 64, 3))
# Of results that went through several operations, against NumPy in float64: relative, and per unit of their scale
_CLOSE = {"float32": (1e-4, 1e-5), "float64": (1e-10, 1e-12), "bf16": (1.6e-2, 1e-2), "fp16": (2e-3, 2e-3)}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes
    ----------
    name : str
        What is checked.
    do : callable
        Raises where it is wrong.
    """

    name: str
    do: Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """How a check ended.

    Attributes
    ----------
    name : str
        Of the check.
    seconds : float
        It took.
    error : str or None
        The message, where it failed.
    details : str
        The traceback then.
    """

    name: str
    seconds: float
    error: str | None = None
    details: str = ""


def _close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], dtype: str) -> None:
    rtol, atol = _CLOSE[dtype]
    for name, value in expected.items():
        value = np.asarray(value, np.float64)
        scale = max(1.0, float(np.abs(value[np.isfinite(value)]).max(initial=0.0)))
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64), value, rtol=rtol, atol=atol * scale, err_msg=name, verbose=False
        )


# ---- operations ----------------------------------------------------------------------------------------
def _operations(backend: Backend, dtype: str, size: tuple[int, int, int]) -> None:
    """Each method against NumPy in float64; twice, since what is added to a buffer shows in the second run."""
    reference = Operations(devices.get_backend("numpy"), dtype, *size)
    found = Operations(backend, dtype, *size)
    for _ in range(2):
        reference.run()
        found.run()
    _close(found.results(), reference.results(), dtype)


def _composition(backend: Backend, dtype: str) -> None:
    """Each fused kernel against the same from primitives, on this device."""
    composed = Operations(devices.get_backend(backend.device, fused=False), dtype)
    fused = Operations(backend, dtype)
    composed.run()
    fused.run()
    _close(fused.results(), composed.results(), dtype)


# ---- training --------------------------------------------------------------------------------------------
def _spiral() -> tuple[np.ndarray, np.ndarray]:
    data = load("spiral")
    return np.asarray(data.X_train), np.asarray(data.y_train)


def _model() -> Sequential:
    layers: list[Layer] = [Dense(32, "relu"), BatchNorm(), Dropout(0.1), Dense(16, "gelu"), LayerNorm(), Dense(2)]
    return Sequential(layers)


def _fit(backend: str | Backend, dtype: str, optimizer: Any, epochs: int = 3) -> dict[str, np.ndarray]:
    X, y = _spiral()
    model = _model()
    # The last batch of an epoch is smaller
    history = model.fit(
        X[:600], y[:600], loss="cross_entropy", optimizer=optimizer, epochs=epochs,
        batch_size=64, device=backend, precision=dtype, seed=0, verbose=0,
    )  # fmt: skip
    return {"loss": np.array(history["loss"]), "predictions": model.predict(X[:600])}


def _same_training(backend: Backend, dtype: str, name: str) -> None:
    found, expected = _fit(backend, dtype, name), _fit("numpy", "float64", name)
    # Differences of rounding grow from step to step
    rtol = {"float32": 2e-2, "float64": 1e-6}[dtype]
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=rtol, atol=rtol, err_msg=key, verbose=False)


def _learns(backend: Backend) -> None:
    """A network that learns the two spirals."""
    X, y = _spiral()
    model = Sequential([Dense(32, "tanh"), Dense(32, "tanh"), Dense(2)])
    model.fit(
        X, y, loss="cross_entropy", optimizer=optimizers.Adam(0.02), epochs=200, batch_size=50,
        device=backend, seed=0, verbose=0,
    )  # fmt: skip
    right = float((model.predict_classes(X) == y).mean())
    if right < 0.95:
        raise AssertionError(f"after 200 epochs {right:.1%} of the spirals' points are classified right, expected 95 %")


def _replays(backend: Backend, dtype: str) -> None:
    """Recorded steps against the same steps one by one."""
    eager = copy.copy(backend)
    # Its own attribute comes before the class's method
    vars(eager)["capture"] = lambda step, temporary=(), before=None: Replay(lambda: step(eager))
    recorded, one_by_one = _fit(backend, dtype, "adam"), _fit(eager, dtype, "adam")
    _close(recorded, one_by_one, dtype)


def _rounded(backend: Backend) -> None:
    """A product and a training in tf32, within what ten bits of mantissa allow; a CPU computes them in float32."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((150, 70)).astype("f4"), rng.standard_normal((70, 90)).astype("f4")
    out = backend.empty((150, 90), np.float32)
    exact = a.astype("f8") @ b.astype("f8")
    for factor, context in ((4 * 2.0**-23, nullcontext()), (4 * 2.0**-11, backend.rounding())):
        with context:
            backend.gemm(backend.asarray(a), backend.asarray(b), out=out)
        # Each factor is off by half a unit of its last place at most; errors add up as random ones do
        bound = factor * np.sqrt(70) * np.abs(a).max() * np.abs(b).max()
        np.testing.assert_allclose(np.asarray(backend.to_numpy(out), np.float64), exact, rtol=0, atol=bound)
    found, expected = _fit(backend, "tf32", "adam"), _fit("numpy", "float64", "adam")
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0.1, atol=0.1, err_msg=key, verbose=False)


def _half_operations(backend: Backend, precision: str, size: tuple[int, int, int]) -> None:
    """Each method on activations of 16 bits, against NumPy in float64 from the same numbers."""
    dtype = backend.reduced(precision)
    reference = Operations(devices.get_backend("numpy"), dtype, *size, full="float32", exact=True)
    found = Operations(backend, dtype, *size, full="float32")
    for operations in (reference, found):
        operations.run()
    _close(found.results(), reference.results(), precision)


def _half_training(backend: Backend, precision: str) -> None:
    """Training and predictions with activations of 16 bits, near those in float64."""
    found, expected = _fit(backend, precision, "adam"), _fit("numpy", "float64", "adam")
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0.15, atol=0.15, err_msg=key, verbose=False)


def _fed(backend: Backend) -> None:
    """Batches from the host, one after the other, against data that lives on the device."""
    X, y = (array[:600] for array in _spiral())
    found = []
    for batches in (False, True):
        model = Sequential([Dense(16, "tanh"), Dense(2)]).build(2, seed=0)
        inputs: Any = [(X[a : a + 64], y[a : a + 64]) for a in range(0, 600, 64)] if batches else X
        targets = None if batches else y
        model.fit(
            inputs, targets, loss="cross_entropy", optimizer=optimizers.SGD(0.1), epochs=3, batch_size=64,
            shuffle=False, device=backend, verbose=0,
        )  # fmt: skip
        found.append({"predictions": model.predict(X)})
    _close(found[1], found[0], "float32")


def _on_device(backend: Backend) -> None:
    """Inputs that are on the device, and outputs that stay there, by DLPack."""
    X, _ = _spiral()
    model = Sequential([Dense(16, "tanh"), Dense(2)]).build(2, seed=0)
    expected = model.predict(X, device=backend)
    outputs = model.predict(backend.asarray(X.astype(np.float32)), on_device=True)
    if type(outputs) is not type(backend.empty((1,), np.float32)):
        raise AssertionError(f"outputs are {type(outputs).__name__}, not an array of {backend.device}")
    shared = backend.xp.from_dlpack(outputs)
    backend.fill(outputs, 7.0)
    if not bool((backend.to_numpy(shared) == 7.0).all()):
        raise AssertionError("DLPack gave a copy, not the same memory")
    np.testing.assert_array_equal(model.predict(X), expected)


def _out_of_memory(backend: Backend) -> None:
    """A batch that the device can never hold is refused, and the next smaller one is trained."""
    X, y = _spiral()
    model = Sequential([Dense(1 << 16, "relu"), Dense(2)]).build(2, seed=0)
    _, total = backend.memory()
    rows = total // (1 << 18) + 1
    before = model.get_flat_weights()
    try:
        Trainer(model, "cross_entropy", device=backend, batch_size=rows).step(X[:4], y[:4])
    except OutOfMemoryError as error:
        if error.needed <= error.free:
            raise AssertionError(f"the error names {error.needed} bytes as needed, {error.free} as free") from None
    else:
        raise AssertionError(f"batches of {rows} rows were not refused")
    np.testing.assert_array_equal(model.get_flat_weights(), before)
    Trainer(model, "cross_entropy", device=backend, batch_size=4).step(X[:4], y[:4])


def _bad_step(backend: Backend) -> None:
    """A loss that is not finite leaves the weights as they were."""
    from ..errors import NonFiniteError

    X, y = np.ones((8, 3)), np.full((8, 1), 1e300)
    model = Sequential([Dense(1)]).build(3, seed=0)
    before = model.get_flat_weights()
    try:
        model.fit(X, y, loss="mean_squared_error", device=backend, dtype="float64", epochs=2, verbose=0)
    except NonFiniteError:
        np.testing.assert_array_equal(model.get_flat_weights(), before.astype(np.float64))
        return
    raise AssertionError("a loss that is not finite was not noticed")


# ---- the list ----------------------------------------------------------------------------------------------
def _layers() -> Iterator[tuple[Layer, tuple[int, ...]]]:
    for name in activations.names():
        yield Dense(6, name), (5,)
        yield Activation(name), (5,)
    yield from ((Dropout(0.3), (8,)), (LayerNorm(), (6,)), (BatchNorm(), (6,)), (Flatten(), (2, 3)))


def _loss_cases() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for name in losses.TABLE:
        pred = rng.standard_normal((6, 4))
        if name == "cross_entropy":
            yield name, pred, rng.integers(0, 4, 6)
        elif name in ("binary_cross_entropy", "hinge"):
            yield name, pred, rng.integers(0, 2, (6, 4)).astype(np.float64)
        elif name == "poisson":
            yield name, pred, rng.integers(0, 5, (6, 4)).astype(np.float64)
        else:
            yield name, pred, pred + rng.choice([-2.0, -0.4, 0.4, 2.0], (6, 4))


def checks(device: str | Backend) -> list[Check]:
    """All checks of a device.

    Parameters
    ----------
    device : str or Backend
        As for ``fit``.

    Raises
    ------
    DeviceUnavailable
        If the device cannot be used.
    """
    backend = devices.get_backend(device)
    found: list[Check] = []

    def add(name: str, function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        found.append(Check(name, lambda: function(*args, **kwargs)))

    for dtype in ("float32", "float64"):
        for size in SIZES:
            rows, columns, offset = size
            off = f", {offset} elements off alignment" if offset else ""
            add(f"operations, {dtype}, {rows} x {columns}{off}", _operations, backend, dtype, size)
        if backend.name != "numpy":
            add(f"fused kernels against their compositions, {dtype}", _composition, backend, dtype)
    for layer, shape in _layers():
        add(f"layer {layer!r}", testing.check_layer, layer, shape, backends=[backend])
    for name, pred, target in _loss_cases():
        add(f"loss {name}", testing.check_loss, name, pred, target, backends=[backend])
    for name in optimizers.TABLE:
        add(f"optimizer {name}", testing.check_optimizer, name, backends=[backend])
    for dtype in ("float32", "float64"):
        add(f"recorded steps against the same one by one, {dtype}", _replays, backend, dtype)
        for name in optimizers.TABLE:
            add(f"training with {name}, {dtype}, against NumPy", _same_training, backend, dtype, name)
    for missing, other in backend.fallbacks().items():
        for dtype in ("float32", "float64"):
            add(f"without {missing}: operations, {dtype}", _operations, other, dtype, SIZES[0])
            add(f"without {missing}: training, {dtype}, against NumPy", _same_training, other, dtype, "adam")
    add("products and training in tf32", _rounded, backend)
    for precision in ("bf16", "fp16"):
        if backend.reduced(precision) is not None:
            for size in SIZES:
                rows, columns, offset = size
                off = f", {offset} elements off alignment" if offset else ""
                add(f"operations, {precision}, {rows} x {columns}{off}", _half_operations, backend, precision, size)
        add(f"training in {precision}", _half_training, backend, precision)
    add("batches from the host, one after the other", _fed, backend)
    add("inputs and outputs that stay on the device", _on_device, backend)
    add("more than the device can hold", _out_of_memory, backend)
    add("a loss that is not finite", _bad_step, backend)
    add("two spirals are learned", _learns, backend)
    return found


def run(device: str | Backend, report: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Run all checks, and `report` each outcome as it comes.

    Raises
    ------
    DeviceUnavailable
        If the device cannot be used.
    """
    outcomes: list[Outcome] = []
    for check in checks(device):
        began = time.perf_counter()
        try:
            with np.errstate(all="ignore"):  # a result that is not finite is seen where it is compared
                check.do()
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            outcome = Outcome(check.name, time.perf_counter() - began, message, traceback.format_exc())
        else:
            outcome = Outcome(check.name, time.perf_counter() - began)
        outcomes.append(outcome)
        report(outcome)
    return outcomes
