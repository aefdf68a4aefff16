"""The measurements of ``nnfast bench``, handed to pytest-benchmark round by round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nnfast.bench import choice, header, report
from nnfast.bench.contenders import ENTRIES
from nnfast.bench.measure import Settings, measure
from nnfast.bench.timings import Result
from nnfast.bench.workloads import PRESETS, WORKLOADS, Workload
from nnfast.errors import DeviceUnavailable

_elapsed = 0.0


def measured_time() -> float:
    """A clock for pytest-benchmark that goes on by what was measured: contenders of one run are timed in turn."""
    return _elapsed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every workload with every contender that is here and can express it."""
    predict = metafunc.function.__name__ == "test_prediction"
    pairs = [
        (w, contender)
        for devices, presets in ((None, ("all", "off-table", "layers")), (("cuda",), ("gpu", "gpu-tf32", "gpu-bf16")))
        for contender in _contenders(devices)
        for w in dict.fromkeys(w for name in presets for w in PRESETS[name])
        if bool(w.predict) == predict and ENTRIES[contender].unable(w) is None
    ]
    pairs.sort(key=lambda pair: list(WORKLOADS).index(pair[0].name))
    pairs = list(dict.fromkeys(pairs))
    metafunc.parametrize(("workload", "contender"), pairs, ids=[f"{w.name}-{name}" for w, name in pairs])


def _contenders(devices: tuple[str, ...] | None) -> list[str]:
    """Those that are here; on GPUs none where there is none."""
    try:
        return choice.contenders(devices, None, lambda text: None)
    except DeviceUnavailable:
        return []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Time by that clock."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=measured_time))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add our header to pytest-benchmark's own."""
    names = choice.contenders(None, None, lambda text: None)
    machine_info.update(header.machine_info(names, Settings().threads))


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Callable[[Workload], Result]:
    """A workload's result; measured once, with all of its contenders that were selected."""
    done: dict[str, Result] = {}
    rounds = request.config.getoption("benchmark_min_rounds")
    if request.config.getoption("benchmark_disable"):
        rounds = 1

    def result_of(workload: Workload) -> Result:
        if workload.name not in done:
            params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
            names = [p["contender"] for p in params if p.get("workload") is workload]
            done[workload.name] = measure(workload, names, Settings(rounds=rounds))
        return done[workload.name]

    return result_of


@pytest.fixture
def record(benchmark: Any, results: Callable[[Workload], Result]) -> Callable[[Workload, str], None]:
    """Gives the rounds of a contender to pytest-benchmark; fails where the contender did."""

    def hand_over(workload: Workload, contender: str) -> None:
        result = results(workload)
        timing = result.timings[contender]
        for failed in (result.floor, timing):
            assert failed.error is None, failed.details or failed.error
        rounds = iter(timing.steps)

        def advance() -> None:
            global _elapsed
            _elapsed += next(rounds)

        benchmark.group = workload.name
        benchmark.extra_info.update(report.extra_info(result, timing))
        benchmark.pedantic(advance, rounds=len(timing.steps))

    return hand_over
