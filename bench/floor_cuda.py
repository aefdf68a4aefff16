"""The floor under a step on a GPU: its products as a graph, the rate of a large one, and the rate of a copy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..devices import get_backend
from .floor import FloorSession, steps_of
from .process import peak_memory
from .workloads import Workload

__all__ = ["CudaFloorSession", "device_seconds"]

PEAK_SIZE = 8192  # of the square product that the peak is measured with
COPY_BYTES = 1 << 30
_TRIES = 5


def device_seconds(backend: Any, work: Callable[[], object]) -> float:
    """Time of what `work` asks the device for on the current stream, by the device's events."""
    cuda = backend.xp.cuda
    start, end = cuda.Event(), cuda.Event()
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(cuda.get_elapsed_time(start, end)) * 1e-3


class CudaFloorSession(FloorSession):
    """The products of an epoch by cuBLASLt, each with the best of its algorithms, without launches in between."""

    peak_size, copy_bytes = PEAK_SIZE, COPY_BYTES

    def __init__(self, workload: Workload, threads: int) -> None:
        super().__init__(workload, threads)
        self.backend: Any = get_backend("cuda")

    def _rounding(self) -> Any:
        return self.backend.rounding() if self.workload.precision == "tf32" else nullcontext()

    def _dtype(self) -> Any:
        """Of activations and of the weights in products; their gradients are of the workload's."""
        return self.backend.reduced(self.workload.precision) or self.workload.dtype

    def prepare(self) -> None:
        """Make the operands and record the products of each size of step."""
        work, bk, dtype = self.workload, self.backend, self._dtype()
        largest = max(steps_of(work))
        ones = [bk.zeros((largest, width), dtype) for width in work.sizes]
        d = [bk.zeros((largest, width), dtype) for width in work.sizes]
        W = [bk.zeros(shape, dtype) for shape in work.layers]
        dW = [bk.zeros(shape, work.dtype) for shape in work.layers]
        rng = np.random.default_rng(0)
        for array in (*ones, *d, *W):  # zeros would take less power, and run at a higher clock
            block = rng.standard_normal(min(array.size, 1 << 20)).astype(dtype)
            flat = array.reshape(-1)
            for start in range(0, flat.size, block.size):
                part = flat[start : start + block.size]
                bk.copy(block[: part.size], out=part)

        def products(n: int) -> Any:
            def step(bk: Any) -> None:
                with self._rounding():
                    for i in range(len(W)):
                        bk.gemm(ones[i][:n], W[i], out=d[i + 1][:n])
                    for i in reversed(range(0 if work.predict else len(W))):
                        bk.gemm(ones[i][:n], d[i + 1][:n], out=dW[i], trans_a=True)
                        if i:
                            bk.gemm(d[i + 1][:n], W[i], out=d[i][:n], trans_b=True)

            return bk.capture(step)

        recorded = {n: products(n) for n in set(steps_of(work))}
        self.replays = [recorded[n] for n in steps_of(work)]

    def run(self, count: int) -> float:
        """Seconds of the products of so many epochs, or predictions."""
        return device_seconds(self.backend, lambda: [replay.run() for _ in range(count) for replay in self.replays])

    def peak(self) -> float:
        """Operations a second of a large square product: the best of a few."""
        bk, size, dtype = self.backend, self.peak_size, self._dtype()
        x, w, out = (bk.zeros((size, size), dtype) for _ in range(3))
        for array in (x, w):
            bk.copy(np.random.default_rng(0).standard_normal((size, size)).astype(dtype), out=array)

        def product() -> None:
            with self._rounding():
                bk.gemm(x, w, out=out)

        product()  # chooses the algorithm
        return 2 * size**3 / min(device_seconds(self.backend, product) for _ in range(_TRIES))

    def bandwidth(self) -> float:
        """Bytes a second that a copy reads and writes, together: the best of a few."""
        bk = self.backend
        source, out = bk.zeros(self.copy_bytes, np.uint8), bk.zeros(self.copy_bytes, np.uint8)
        return (
            2
            * self.copy_bytes
            / min(device_seconds(self.backend, lambda: bk.copy(source, out=out)) for _ in range(_TRIES))
        )

    def memory(self) -> tuple[float, float]:
        """As a contender's, on the host."""
        peak = peak_memory()
        return peak, peak - self.at_start
