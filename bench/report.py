"""Results as a table for the terminal and as JSON in pytest-benchmark's format."""

from __future__ import annotations

import datetime
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from .floor import flops
from .measure import Settings
from .timings import FLOOR, Result, Timing

__all__ = ["HEADER", "as_json", "benchmark_name", "extra_info", "table"]

HEADER = ("contender", "time", "samples/s", "x best peer", "x floor", "of GEMM peak", "peak MB", "min to max")
_FORMAT_VERSION = "5.0.0"  # of pytest-benchmark, whose JSON this is


def duration(seconds: float) -> str:
    """A time with three digits and its unit."""
    units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 0.0))
    unit, size = next(item for item in units if seconds >= item[1])
    value = seconds / (size or 1e-9)
    return f"{value:.{max(0, 2 - (value >= 10) - (value >= 100))}f} {unit}"


def traffic_line(result: Result) -> str | None:
    """How near each contender on a GPU comes to the rate of a copy; ``None`` on a CPU."""
    if result.floor.error is not None or not any(result.bandwidths):
        return None
    shares = [f"{t.name} {result.traffic_share(t):.0%}" for t in sorted(result.timed, key=lambda t: t.median)]
    rate = statistics.median(result.bandwidths) / 1e12
    return f"of the {rate:.2f} TB/s of a copy, by the least that a step must move: {', '.join(shares)}"


def table(result: Result) -> list[list[str]]:
    """A row for each contender that was timed, the fastest first, and the floor's below."""
    rows = []
    best, floored = result.best_peer, result.floor.error is None
    for timing in sorted(result.timed, key=lambda timing: timing.median):
        rows.append(
            [
                timing.name,
                duration(timing.median),
                f"{result.samples_per_second(timing):,.0f}",
                f"{result.speedup(timing, best):.2f}" if best else "",
                f"{result.times_floor(timing):.2f}" if floored else "",
                f"{result.peak_share(timing):.1%}" if floored else "",
                f"{timing.peak_mb:.0f}",
                f"{duration(min(timing.steps))} to {duration(max(timing.steps))}",
            ]
        )
    if floored:
        floor = result.floor
        rows.append([FLOOR, duration(floor.median), f"{result.samples_per_second(floor):,.0f}", "", "1.00"])
        rows[-1] += [f"{result.peak_share(floor):.1%}", f"{floor.peak_mb:.0f}"]
        rows[-1] += [f"{duration(min(floor.steps))} to {duration(max(floor.steps))}"]
    return rows


def benchmark_name(result: Result, timing: Timing) -> str:
    """The name of the test in ``suites`` that measures the same."""
    return f"test_{'prediction' if result.workload.predict else 'step'}[{result.workload.name}-{timing.name}]"


def extra_info(result: Result, timing: Timing) -> dict[str, Any]:
    """What the report says of a contender beyond its times."""
    best, floored = result.best_peer, result.floor.error is None
    others = {
        other.name: result.speedup(timing, other)
        for other in result.timed
        if other is not timing and timing is not result.floor
    }
    return {
        "workload": asdict(result.workload),
        "contender": timing.name,
        "epoch_counts": list(timing.counts),
        "samples_per_second": result.samples_per_second(timing),
        "best_peer": best.name if best else None,
        "speedup_over_best_peer": result.speedup(timing, best) if best else None,
        "speedup_over": others,
        "times_floor": result.times_floor(timing) if floored else None,
        "other_load": result.other_load,
        "gemm_flops_per_step": flops(result.workload),
        "gemm_peak_share": result.peak_share(timing) if floored else None,
        "traffic_share": result.traffic_share(timing) if floored else None,
        "copy_bytes_per_second": statistics.median(result.bandwidths) if floored and any(result.bandwidths) else None,
        "gemm_peak_flops": statistics.median(result.peaks) if floored else None,
        "peak_memory_mb": timing.peak_mb,
        "memory_increase_mb": timing.increase_mb,
        "disagreement": timing.disagreement,
    }


def as_json(
    results: Sequence[Result], info: dict[str, Any], commit: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    """All results as ``pytest-benchmark compare`` reads them."""
    blas = next((result.blas for result in results if result.blas), [])
    return {
        "machine_info": info | {"blas": blas},
        "commit_info": commit,
        "benchmarks": [
            _benchmark(result, timing, settings)
            for result in results
            for timing in chain(result.timed, [result.floor] * (result.floor.error is None))
        ],
        "errors": [error for result in results for error in result.errors],
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": _FORMAT_VERSION,
    }


def _benchmark(result: Result, timing: Timing, settings: Settings) -> dict[str, Any]:
    name = benchmark_name(result, timing)
    suite = "test_inference" if result.workload.predict else "test_training"
    return {
        "group": result.workload.name,
        "name": name,
        "fullname": f"suites/{suite}.py::{name}",
        "params": {"workload": result.workload.name, "contender": timing.name},
        "param": f"{result.workload.name}-{timing.name}",
        "extra_info": extra_info(result, timing),
        "options": {**asdict(settings), "timer": "perf_counter", "warmup": True},
        "stats": stats(timing.steps),
    }


def stats(seconds: Sequence[float]) -> dict[str, Any]:
    """The statistics that pytest-benchmark keeps of a benchmark's rounds."""
    data = sorted(seconds)
    middle, deviation = statistics.mean(data), statistics.stdev(data) if len(data) > 1 else 0.0
    q1, _, q3 = statistics.quantiles(data, n=4, method="inclusive") if len(data) > 1 else data * 3
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    beyond = (sum(abs(s - middle) > deviation for s in data), sum(not low <= s <= high for s in data))
    return {
        "min": data[0],
        "max": data[-1],
        "mean": middle,
        "stddev": deviation,
        "rounds": len(data),
        "median": statistics.median(data),
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": beyond[1],
        "stddev_outliers": beyond[0],
        "outliers": f"{beyond[0]};{beyond[1]}",
        "ld15iqr": data[bisect_left(data, low)],
        "hd15iqr": data[bisect_right(data, high) - 1],
        "ops": 1 / middle,
        "total": sum(data),
        "data": list(seconds),
        "iterations": 1,
    }
