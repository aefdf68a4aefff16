"""What the figures depend on: the machine, the versions, the environment, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nnfast

from .. import machine
from .contenders import ENTRIES

__all__ = ["commit_info", "machine_info", "warnings_of"]

_ALWAYS = ("numpy", "numba", "scipy")


def machine_info(names: Iterable[str], threads: int) -> dict[str, Any]:
    """The header of a report.

    Parameters
    ----------
    names : iterable of str
        Contenders, whose versions are stated.
    threads : int
        Of each contender.

    Returns
    -------
    dict
        With the names that pytest-benchmark uses, where it has one.
    """
    names = list(names)
    distributions = dict.fromkeys([*_ALWAYS, *(d for name in names for d in ENTRIES[name].distributions)])
    versions = {name: machine.installed(name) for name in distributions if name != "nnfast"}
    facts = machine.cpu()
    return {
        "node": platform.node(),
        "machine": platform.machine(),
        "system": platform.system(),
        "release": platform.release(),
        "processor": platform.processor(),
        "python_implementation": platform.python_implementation(),
        "python_version": platform.python_version(),
        "cpu": {"brand_raw": facts["model"], "count": facts["cores"], "usable": facts["usable_cores"]}
        | {"flags": facts["features"]},
        "gpu": machine.gpu() if any(ENTRIES[name].gpu for name in names) else None,
        "threads": threads,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {"nnfast": nnfast.__version__, **{name: found for name, found in versions.items() if found}},
        "environment": machine.settings(),
    }


def warnings_of(info: dict[str, Any]) -> list[str]:
    """What makes the figures of this run less than they could be."""
    found = []
    if (core := info["environment"].get("OPENBLAS_CORETYPE")) is not None:
        found.append(f"OPENBLAS_CORETYPE={core} is set: OpenBLAS does not choose its kernels for this CPU by itself")
    load = info["load_average"]
    if load and load[0] > 0.5:
        found.append(f"the load average is {load[0]:.1f}: other programs take part of the machine")
    return found


def commit_info() -> dict[str, Any]:
    """The commit of a checkout, as pytest-benchmark states it; empty elsewhere."""
    folder = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True
        )  # fmt: skip
        return done.stdout.strip()

    try:
        ident, written = git("log", "-1", "--format=%H %cI").split()
        return {"id": ident, "time": written, "dirty": bool(git("status", "--porcelain")), "project": "nnfast"}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
