"""What runs in the processes that these tests start, and results made by hand."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np

from nnfast.bench.contenders import ENTRIES
from nnfast.bench.measure import Settings
from nnfast.bench.session import Session
from nnfast.bench.timings import FLOOR, Result, Timing
from nnfast.bench.workloads import Workload, find, initial_weights, make_data, prediction_rows

QUICK = Settings(rounds=2, seconds=1e-4, pause=0.0, threads=1)


class Probe:
    """A contender's library, once, for several workloads."""

    def __init__(self, name: str) -> None:
        self.contender = ENTRIES[name].load()

    def _build(self, workload: Workload, threads: int = 1):
        X, y = make_data(workload)
        return self.contender(workload, initial_weights(workload), X, y, threads)

    def losses(self, workload: Workload, steps: int) -> list[float]:
        return self._build(workload).losses(steps)

    def epochs(self, workload: Workload, count: int) -> list[float]:
        return self._build(workload).epochs(count)

    def predictions(self, workload: Workload) -> tuple[str, np.ndarray]:
        found = self._build(workload)
        return found.outputs, np.array(found.predict(found.inputs(prediction_rows(workload))))


class Faulty:
    """Does what it is told to do wrong."""

    def __init__(self, how: str = "") -> None:
        if how == "start":
            raise ValueError("no such library\nreally none")

    def fail(self) -> None:
        raise KeyError("a step")

    def die(self) -> None:
        print("cannot go on", file=sys.stderr, flush=True)
        os._exit(7)

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def allocate(self, megabytes: int) -> tuple[float, float]:
        from nnfast.bench.process import peak_memory

        before = peak_memory()
        np.ones(megabytes << 17)
        return before, peak_memory()


class FaultySession(Session):
    """The NumPy contender dies in its first epoch, and nnfast on NumPy computes something else."""

    def losses(self, steps: int) -> list[float]:
        if self.name == "nnfast-numpy":
            return [1.01 * loss for loss in super().losses(steps)]
        return super().losses(steps)

    def run(self, count: int) -> float:
        if self.name == "numpy":
            os._exit(9)
        return super().run(count)


def made_result(name: str = "mnist", **times: list[float]) -> Result:
    """A result with these times of contenders, whose names have _ for -."""
    timings = {
        contender.replace("_", "-"): Timing(contender.replace("_", "-"), steps, (1, 9), peak_mb=100.0, increase_mb=60.0)
        for contender, steps in times.items()
        if contender != "floor"
    }
    floor = times.get("floor") or [1e-3] * len(next(iter(times.values())))
    return Result(find(name), timings, Timing(FLOOR, floor, (1, 9)), [1e11] * len(floor))


def small(name: str, **changes: object) -> Workload:
    """A workload of the table, scaled down."""
    return replace(find(name).scaled(), **changes)  # type: ignore[arg-type]
