"""Fixtures that all tests share: every backend that is there, and reproducible data."""

from __future__ import annotations

import os

# Test processes share the cores; threads of BLAS would wait for each other on them
os.environ.update({"OPENBLAS_NUM_THREADS": "1"} if "PYTEST_XDIST_WORKER" in os.environ else {})

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend

# Whether a kernel is compiled or loaded depends on what ran before; test_cpu_cache.py tests the line that tells
os.environ["NNFAST_QUIET"] = "1"
# What is measured differs from run to run, and which kernels are compiled with it; test_cpu_choice.py tests the choice
os.environ.setdefault("NNFAST_GEMM", "generated")

# The pitch is one code on every backend, so most tests run on all of these. The emulated CUDA device runs the
# real kernels through the C++ compiler; it is slower, so it has a marker of its own in the parity tests.
_CPU = ("numpy", "numba")


def _no_gpu() -> str | None:
    """Why there is no CUDA device, or ``None``."""
    return nf.available_devices().get("cuda:0", "no device cuda:0")


def pytest_report_header() -> str:
    """What the tests run on."""
    return f"CUDA: {_no_gpu() or 'cuda:0'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a CUDA device where there is none: thousands of tests, each with an emulated twin."""
    if _no_gpu() is not None:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def _make(name: str) -> Backend:
    if name == "emulated":
        emulator = pytest.importorskip("tests.cuda.emulator", reason="the emulated CUDA device is not there")
        return emulator.emulated_backend()
    reason = nf.available_devices().get(name, f"no device {name}")
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return nf.devices.get_backend(name)


@pytest.fixture(params=_CPU)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend of the CPU."""
    return _make(request.param)


@pytest.fixture(params=(*_CPU, "emulated", pytest.param("cuda:0", marks=pytest.mark.gpu)))
def any_backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend of the CPU, the emulated CUDA device, and a real one."""
    return _make(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240229)


@pytest.fixture(autouse=True)
def _no_device_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    if "NNFAST_DEVICE" in os.environ:
        monkeypatch.delenv("NNFAST_DEVICE")
