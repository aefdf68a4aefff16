"""Predictions of one row and of many, by every contender."""

from __future__ import annotations

from collections.abc import Callable

from nnfast.bench.workloads import Workload


def test_prediction(record: Callable[[Workload, str], None], workload: Workload, contender: str) -> None:
    record(workload, contender)
