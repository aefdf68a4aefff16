"""Throughput against batch size, from single rows to 65,536."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .workloads import Workload

__all__ = ["BATCH_SIZES", "sweep_of"]

BATCH_SIZES = tuple(4**power for power in range(9))


def sweep_of(workload: Workload, batch_sizes: Sequence[int] = BATCH_SIZES) -> list[Workload]:
    """The workload at each batch size, as workloads of their own.

    Predictions are asked for that number of rows; training gets a data set that goes with the batch.
    """
    stem = workload.name.removesuffix(f"-predict-{workload.predict}")
    if workload.predict:
        return [replace(workload, name=f"{stem}-predict-{size}", predict=size) for size in batch_sizes]
    return [replace(workload.with_batch(size), name=f"{stem}-batch-{size}") for size in batch_sizes]
