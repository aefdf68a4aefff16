"""What every contender can do."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..workloads import Weights, Workload

__all__ = ["Contender"]


class Contender(ABC):
    """A network of a workload in one library, with given initial weights and data in memory.

    Parameters
    ----------
    workload : Workload
        What to train.
    weights : list of (W, b)
        Initial weights (inputs, outputs) and biases (outputs,) of each layer; not to be written to.
    X : ndarray, (rows, inputs)
        Inputs, in the workload's dtype.
    y : ndarray
        Targets, as :func:`~nnfast.bench.workloads.make_data` gives them.
    threads : int
        How many to use; the environment variables say the same.
    """

    #: What :meth:`predict` gives: "logits" (or values), or "probabilities"
    outputs = "logits"

    def __init__(self, workload: Workload, weights: Weights, X: np.ndarray, y: np.ndarray, threads: int) -> None:
        self.workload, self.threads = workload, threads
        self.build(weights, X, y)

    @abstractmethod
    def build(self, weights: Weights, X: np.ndarray, y: np.ndarray) -> None:
        """Make the network."""

    @abstractmethod
    def epochs(self, count: int) -> list[float]:
        """Train for `count` epochs more, each in a new order of the rows; returns each one's mean loss."""

    @abstractmethod
    def losses(self, steps: int) -> list[float]:
        """Train for `steps` steps on the rows in their order; returns each step's loss before its update."""

    def batches_in_order(self, steps: int) -> Iterator[slice]:
        """The rows of each of the first `steps` steps where nothing is shuffled."""
        rows, batch = self.workload.rows, self.workload.batch
        for step in range(steps):
            start = step % self.workload.steps * batch
            yield slice(start, min(start + batch, rows))

    def seconds(self, work: Callable[[], object]) -> float:
        """How long `work` takes, which waits for its end: by the clock, on a GPU by events of the device."""
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def inputs(self, X: np.ndarray) -> Any:
        """`X` as the library's users hold it."""
        return X

    @abstractmethod
    def predict(self, inputs: Any) -> Any:
        """:attr:`outputs` for what :meth:`inputs` gave: an array of the library's own, when it is computed."""
