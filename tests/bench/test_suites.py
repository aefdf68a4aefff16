"""``python -m pytest bench/``: the same measurements, as pytest-benchmark's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "bench" / "suites").is_dir(), reason="not in a checkout"),
]


def _pytest(*args: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("pytest_benchmark")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "bench/", "-q", *args],
        # A worker of pytest-xdist would tell pytest-benchmark to keep still
        cwd=ROOT, env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
        | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_every_workload_is_there():
    from nnfast.bench.workloads import PRESETS, WORKLOADS

    done = _pytest("--collect-only")
    assert done.returncode == 0, done.stdout
    on_gpu = {w.name for name in ("gpu", "gpu-tf32", "gpu-bf16") for w in PRESETS[name]}
    on_gpu -= {w.name for w in PRESETS["all"]}
    for name, workload in WORKLOADS.items():
        if name in on_gpu:
            continue
        kind = "test_prediction" if workload.predict else "test_step"
        assert f"{kind}[{name}-nnfast-numpy]" in done.stdout
    assert "test_step[gelu-scikit-learn]" not in done.stdout


def test_rounds_are_handed_to_pytest_benchmark(tmp_path):
    path = tmp_path / "run.json"
    done = _pytest("-k", "test_step and xor and numpy", "--benchmark-min-rounds=2", f"--benchmark-json={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {bench["name"]: bench for bench in json.loads(path.read_text())["benchmarks"]}
    assert set(found) == {"test_step[xor-nnfast-numpy]", "test_step[xor-numpy]"}
    for bench in found.values():
        assert bench["group"] == "xor"
        assert bench["stats"]["rounds"] == 2
        rows = bench["extra_info"]["samples_per_second"] * bench["stats"]["median"]
        assert rows == pytest.approx(4), "what pytest-benchmark kept is what was measured"
        assert set(bench["extra_info"]["speedup_over"]) == {"numpy", "nnfast-numpy"} - {
            bench["extra_info"]["contender"]
        }


def test_the_plain_tests_leave_them_alone():
    assert 'testpaths = ["tests"]' in (ROOT / "pyproject.toml").read_text()
