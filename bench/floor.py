"""The floor under a step: its matrix products alone, by NumPy's BLAS with all threads, and that BLAS's peak."""

from __future__ import annotations

import time
from pathlib import PurePath

import numpy as np

from .. import blas
from .contenders import ENTRIES
from .process import peak_memory
from .products import Operands, Product
from .workloads import Workload, initial_weights, make_data, prediction_rows

__all__ = ["FloorSession", "flops", "products", "traffic"]

PEAK_SIZE = 2048  # of the square product that the peak is measured with
PEAK_PRODUCTS = 3


def products(workload: Workload, rows: int) -> list[Product]:
    """(m, k, n) of each product of a step on so many rows: forward, dW, and dx but for the first layer.

    Where predictions are timed, those of the forward pass alone.
    """
    layers = workload.products(rows)
    found = [shape for layer in layers for shape in layer.forward]
    if workload.predict:
        return found
    return found + [shape for layer in reversed(layers) for shape in layer.backward]


def steps_of(workload: Workload) -> list[int]:
    """Rows of each step of an epoch, or of a prediction."""
    if workload.predict:
        return [workload.predict]
    full, rest = divmod(workload.rows, workload.batch)
    return [workload.batch] * full + [rest] * bool(rest)


def traffic(workload: Workload, rows: int) -> float:
    """Bytes that a step on so many rows must read and write at least, where no product is merged with another.

    The batch is gathered; each layer reads its input and writes its output; its weight's gradient reads both the input
    and the output's gradient; the input's gradient is made from the latter; the loss reads and writes logits. Biases,
    activations, and everything of the weights' size are left out.
    """
    numbers = 2 * workload.sizes[0]
    for layer, (inputs, outputs) in enumerate(workload.layers):
        numbers += inputs + outputs
        if not workload.predict:
            numbers += inputs + outputs + (inputs + outputs if layer else 0)
    if not workload.predict:
        numbers += 2 * workload.sizes[-1]
    return float(numbers * rows * workload.itemsize)


def flops(workload: Workload) -> float:
    """Floating-point operations of a step's products, on average over an epoch."""
    steps = steps_of(workload)
    return sum(2 * m * k * n for rows in steps for m, k, n in products(workload, rows)) / len(steps)


class FloorSession:
    """The products of an epoch, and the reference for the other contenders' results, in a process of its own."""

    def __init__(self, workload: Workload, threads: int) -> None:
        self.at_start = peak_memory()
        self.workload, self.threads = workload, threads

    def reference(self, steps: int) -> np.ndarray:
        """The plain NumPy network's predictions, or its losses in the first steps without dropout.

        Layers that it does not have are computed by nnfast on NumPy, the reference of its other backends.
        """
        work = self.workload
        X, y = make_data(work)
        checked = work.without_chance()
        kind = ENTRIES["numpy" if work.network is None else "nnfast-numpy"].load()
        network = kind(checked, initial_weights(work), X[: checked.rows], y[: checked.rows], self.threads)
        if work.predict:
            return np.array(network.predict(prediction_rows(work)))
        return np.array(network.losses(steps))

    def prepare(self) -> None:
        """Make the operands, laid out as training has them: x, W and dy each as they are, or transposed."""
        work = self.workload
        sizes = steps_of(work)
        operands = Operands(work.products(max(sizes)), work.dtype)
        self.calls = [call for n in sizes for call in operands.calls(work.products(n), not work.predict)]
        rng = np.random.default_rng(0)
        side = rng.standard_normal((PEAK_SIZE, PEAK_SIZE), np.float32).astype(work.dtype)
        self.square = (side, side.T.copy(), np.empty_like(side))

    def run(self, count: int) -> float:
        """Seconds of the products of so many epochs, or predictions."""
        began = time.perf_counter()
        for _ in range(count):
            for x, w, out in self.calls:
                np.matmul(x, w, out=out)
        return time.perf_counter() - began

    def peak(self) -> float:
        """Operations a second of a large square product: the best of a few, one after the other."""
        x, w, out = self.square
        best = float("inf")
        for _ in range(PEAK_PRODUCTS):
            began = time.perf_counter()
            np.matmul(x, w, out=out)
            best = min(best, time.perf_counter() - began)
        return 2 * PEAK_SIZE**3 / best

    def bandwidth(self) -> float:
        """Bytes a second of a copy; 0 where that is not asked for."""
        return 0.0

    def memory(self) -> tuple[float, float]:
        """As a contender's."""
        peak = peak_memory()
        return peak, peak - self.at_start

    def blas(self) -> list[dict[str, object]]:
        """The BLAS libraries as loaded, with their core type and threads; of where they lie, only the file's name."""
        return [{**found, "path": PurePath(found["path"] or "").name} for found in blas.loaded()]
