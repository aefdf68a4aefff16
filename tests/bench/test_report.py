"""The table, the JSON that pytest-benchmark reads, the pictures, the sweep."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from nnfast.bench import header, report
from nnfast.bench.sweep import BATCH_SIZES, sweep_of
from nnfast.bench.workloads import find

from .helpers import QUICK, made_result


@pytest.fixture
def result():
    return made_result(
        nnfast_numba=[2e-3, 3e-3, 2.5e-3], numpy=[5e-3, 6e-3, 4e-3], torch=[4e-3, 4.5e-3, 3e-3], floor=[1e-3] * 3
    )


def _json(result):
    info = header.machine_info(["nnfast-numba", "scikit-learn"], 2)
    return report.as_json([result], info, header.commit_info(), QUICK)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234567, "1.23 s"), (0.5, "500 ms"), (45.678e-6, "45.7 us"), (999.6e-9, "1000 ns"), (3e-9, "3.00 ns")],
)
def test_duration(seconds, text):
    assert report.duration(seconds) == text


def test_table(result):
    rows = report.table(result)
    assert all(len(row) == len(report.HEADER) for row in rows)
    assert [row[0] for row in rows] == ["nnfast-numba", "torch", "numpy", "GEMM floor"]
    first = dict(zip(report.HEADER, rows[0], strict=True))
    assert first["time"] == "2.50 ms"
    assert first["samples/s"] == "102,400"
    assert first["x best peer"] == "1.50"
    assert first["x floor"] == "2.50"
    assert first["peak MB"] == "100"
    assert first["min to max"] == "2.00 ms to 3.00 ms"


def test_a_contender_that_failed_is_not_in_the_table(result):
    result.timings["torch"].error = "torch: it failed"
    assert "torch" not in [row[0] for row in report.table(result)]
    found = _json(result)
    assert found["errors"] == ["torch: it failed"]
    assert "test_step[mnist-torch]" not in [bench["name"] for bench in found["benchmarks"]]


def test_json(result):
    found = _json(result)
    ours, numpy, torch, floor = found["benchmarks"]
    assert ours["group"] == "mnist"
    assert ours["stats"]["data"] == [2e-3, 3e-3, 2.5e-3]
    assert ours["extra_info"]["speedup_over_best_peer"] == pytest.approx(1.5)
    assert ours["extra_info"]["speedup_over"] == pytest.approx({"numpy": 2.0, "torch": 1.5})
    assert ours["extra_info"]["workload"]["sizes"] == (784, 512, 256, 10)
    assert torch["extra_info"]["best_peer"] == "torch"
    assert floor["extra_info"]["times_floor"] == 1.0
    assert found["machine_info"]["versions"]["scikit-learn"] == header.machine_info(["scikit-learn"], 1)[
        "versions"
    ].get("scikit-learn")
    assert found["machine_info"]["threads"] == 2
    assert numpy["stats"]["rounds"] == 3


@pytest.mark.parametrize("rounds", [1, 2, 5, 9])
def test_stats(rounds):
    data = list(np.random.default_rng(rounds).random(rounds) + 0.1)
    found = report.stats(data)
    assert found["min"] == min(data)
    assert found["max"] == max(data)
    assert found["median"] == statistics.median(data)
    assert found["mean"] * found["ops"] == pytest.approx(1)
    assert found["q1"] <= found["median"] <= found["q3"]
    assert found["iqr"] == found["q3"] - found["q1"]
    Stats = pytest.importorskip("pytest_benchmark.stats").Stats
    theirs = Stats()
    for value in data:
        theirs.update(value)
    for name in ("min", "max", "mean", "median", "stddev", "total", "ops", "rounds"):
        assert found[name] == pytest.approx(getattr(theirs, name)), name
    assert set(theirs.as_dict()) <= set(found)


def test_pytest_benchmark_reads_it(result, tmp_path):
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "run.json"
    path.write_text(json.dumps(_json(result)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(path), "--columns=min,median,rounds", "--sort=name"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "benchmark 'mnist': 4 tests" in done.stdout
    for name in ("nnfast-numba", "numpy", "torch", "GEMM floor"):
        assert f"test_step[mnist-{name}]" in done.stdout
    assert "Failed to load" not in done.stdout + done.stderr


def test_header():
    info = header.machine_info(["nnfast-numba", "numpy"], 2)
    assert info["cpu"]["flags"]
    assert info["cpu"]["brand_raw"]
    assert {"nnfast", "numpy"} <= set(info["versions"])
    json.dumps(info)


def test_warnings(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    info = header.machine_info([], 1) | {"load_average": [3.2, 1.0, 1.0]}
    first, second = header.warnings_of(info)
    assert "OPENBLAS_CORETYPE=Haswell" in first
    assert "3.2" in second
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert header.warnings_of(header.machine_info([], 1) | {"load_average": [0.1, 3.0, 3.0]}) == []


def test_commit_is_empty_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert header.commit_info() == {}


# ---- the sweep -----------------------------------------------------------------------------------------
def test_sweep():
    assert BATCH_SIZES == (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
    found = sweep_of(find("small"))
    assert [w.batch for w in found] == list(BATCH_SIZES)
    assert all(w.sizes == find("small").sizes and w.rows % w.batch == 0 for w in found)
    assert [w.rows for w in found[:2]] == [16, 64]
    assert len({w.name for w in found}) == len(found)
    found = sweep_of(find("mnist-predict-1"), (1, 8))
    assert [(w.name, w.predict) for w in found] == [("mnist-predict-1", 1), ("mnist-predict-8", 8)]


def test_throughput_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from nnfast.bench import plots

    results = []
    for work in sweep_of(find("small"), (1, 16, 256)):
        result = made_result("small", nnfast_numba=[1e-4, 1e-4], numpy=[2e-4, 3e-4])
        result.workload = work
        results.append(result)
    results[1].timings["numpy"].error = "failed"
    figure = plots.throughput(results, tmp_path / "sweep.png")
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert set(lines) == {"nnfast-numba", "numpy", "GEMM floor"}
    assert list(lines["nnfast-numba"].get_xdata()) == [1, 16, 256]
    np.testing.assert_allclose(lines["nnfast-numba"].get_ydata(), [1e4, 1.6e5, 2.56e6])
    assert list(lines["numpy"].get_xdata()) == [1, 256]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    for result in results:
        for timing in result.timings.values():
            timing.error = "failed"
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.throughput(results)


def test_bars_picture(result, tmp_path):
    pytest.importorskip("matplotlib")
    from nnfast.bench import plots

    figure = plots.bars([result, made_result("xor", nnfast_numpy=[1e-5])], tmp_path / "bars.png")
    first, second = figure.axes
    widths = [bar.get_width() for bar in first.patches]
    assert len(widths) == 3
    assert all(a <= b for a, b in pairwise(widths))
    assert widths[-1] == pytest.approx(1.5)
    assert first.get_xlabel() == "speed, relative to torch"
    assert second.get_xlabel() == "speed, relative to nnfast-numpy"
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.bars([])
