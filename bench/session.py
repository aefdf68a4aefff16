"""What runs in a contender's process: the network to check, the network to time, the clock."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .contenders import ENTRIES
from .process import peak_memory
from .workloads import Workload, initial_weights, make_data, prediction_rows

if TYPE_CHECKING:
    from .contenders.base import Contender

__all__ = ["Session"]

# A learning rate at which hundreds of thousands of steps change little: a small network that has learned its
# data by heart computes with denormal numbers, which is not what training is like
TIMED_RATE = 1e-6


class Session:
    """One contender on one workload.

    Parameters
    ----------
    name : str
        The contender.
    workload : Workload
        What it is to do.
    threads : int
        How many to use.
    """

    def __init__(self, name: str, workload: Workload, threads: int) -> None:
        self.name, self.at_start = name, peak_memory()
        self.contender = ENTRIES[name].load()
        if workload.predict:
            workload = replace(workload, rows=workload.batch)  # nobody trains
        self.workload, self.threads = workload, threads
        self.weights = initial_weights(workload)
        self.X, self.y = make_data(workload)

    def _build(self, workload: Workload) -> Contender:
        return self.contender(workload, self.weights, self.X[: workload.rows], self.y[: workload.rows], self.threads)

    def losses(self, steps: int) -> list[float]:
        """Losses of the first steps with nothing left to chance: no shuffle, no dropout."""
        return self._build(self.workload.without_chance()).losses(steps)

    def prepare(self) -> None:
        """Make the network that is timed."""
        self.timed = self._build(replace(self.workload, lr=TIMED_RATE))
        if self.workload.predict:
            self.inputs = self.timed.inputs(prediction_rows(self.workload))

    def predictions(self) -> tuple[str, np.ndarray]:
        """What the outputs are, and the outputs."""
        return self.timed.outputs, np.array(self.timed.predict(self.inputs))

    def run(self, count: int) -> float:
        """Seconds of so many epochs, or predictions."""
        if self.workload.predict:
            return self.timed.seconds(lambda: [self.timed.predict(self.inputs) for _ in range(count)])
        losses: list[float] = []
        seconds = self.timed.seconds(lambda: losses.extend(self.timed.epochs(count)))
        if len(losses) != count or not np.isfinite(losses).all():
            raise ArithmeticError(f"{count} epochs gave the losses {losses[:3]} to {losses[-3:]}")
        return seconds

    def memory(self) -> tuple[float, float]:
        """Peak memory of the process and what of it came after its start, in MB."""
        peak = peak_memory()
        return peak, peak - self.at_start
