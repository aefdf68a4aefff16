"""Facts about this machine and what is installed on it: for reports of problems, and beside every timing."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

__all__ = ["cpu", "gpu", "installed", "settings", "usable_cores"]

_PREFIXES = ("NNFAST_", "NUMBA_", "OPENBLAS_", "OMP_", "MKL_", "CUDA_VISIBLE", "CUPY_")


def settings() -> dict[str, str]:
    """The environment variables that matter, by name."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)}


def installed(package: str) -> str | None:
    """The version of an installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu() -> dict[str, Any]:
    """Model, cores and, as NumPy knows them, features."""
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    simd = config.get("SIMD Extensions", {}) if isinstance(config, dict) else {}
    return {
        "model": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "features": [*simd.get("baseline", []), *simd.get("found", [])],
    }


def gpu() -> dict[str, str] | None:
    """What NVIDIA's own tool says of the first GPU: name, driver, memory, clock and power limits; else ``None``."""
    fields = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(fields, values, strict=False)) if len(values) == len(fields) else None


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
