"""``nnfast info``: what this machine offers, for choosing a device and for reporting problems."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import click

from .common import emit_json, output_options, print_table, version

PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "tbb", "safetensors", "scikit-learn", "matplotlib", "pyarrow")
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


@click.command("info", short_help="Show devices, versions and libraries.")
@output_options
def command(as_json: bool) -> None:
    """Show devices (and why one cannot be used), versions, BLAS, threads, CPU and folders."""
    facts = collect()
    _show(facts)
    if as_json:
        emit_json({"command": "info", **facts})


def collect() -> dict[str, Any]:
    """The facts, as ``--json`` prints them."""
    from .. import machine
    from ..devices import available_devices

    devices = available_devices()
    try:
        chosen: str | None = _resolve()
        why_not = None
    except ValueError as error:  # NNFAST_DEVICE may name anything
        chosen, why_not = None, str(error)
    return {
        "version": version(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "devices": {name: _device(name, reason) for name, reason in devices.items()},
        "default_device": chosen,
        "default_device_error": why_not,
        "packages": {name: machine.installed(name) for name in (*PACKAGES, *CUPY)},
        "blas": machine.blas(),
        "numba": _numba(),
        "cpu": machine.cpu(),
        "folders": _folders(),
        "environment": machine.settings(),
    }


def _device(name: str, reason: str | None) -> dict[str, Any]:
    """Whether a device is usable or why not, and its memory in bytes."""
    from ..devices import get_backend

    facts: dict[str, Any] = {"usable": reason is None, "reason": reason, "free": None, "total": None}
    if reason is None:
        facts["free"], facts["total"] = get_backend(name).memory()
    return facts


def _resolve() -> str:
    from ..devices import resolve

    return resolve()


def _numba() -> dict[str, Any] | None:
    try:
        import numba
    except Exception as error:  # a broken installation may raise anything at import
        return {"error": f"{type(error).__name__}: {error}"}
    settings: Any = numba.config  # its names are made at import
    facts: dict[str, Any] = {"threads": settings.NUMBA_NUM_THREADS, "threading_layer": None}
    try:
        from ..kernels.cpu.threads import find_tbb

        find_tbb()

        @numba.njit(parallel=True)
        def touch(n: int) -> int:  # Numba settles on a layer at its first parallel region
            total = 0
            for i in numba.prange(n):
                total += i
            return total

        touch(2)
        facts["threading_layer"] = numba.threading_layer()
    except Exception as error:  # no threading layer, no compiler: to be reported, not to fail on
        facts["error"] = f"{type(error).__name__}: {error}"
    return facts


def _folders() -> dict[str, str | None]:
    import platformdirs

    from ..datasets import fashion_mnist

    found = fashion_mnist.find()
    return {
        "cache": os.environ.get("NNFAST_CACHE") or platformdirs.user_cache_dir("nnfast"),
        "datasets": str(fashion_mnist.cache_folder()),
        "fashion-mnist": None if found is None else str(found),
    }


def _show(facts: dict[str, Any]) -> None:
    rows = [["nnfast", f"{facts['version']}, Python {facts['python']['version']}, {facts['system']}"]]
    for name, device in facts["devices"].items():
        mark = " (default)" if name == facts["default_device"] else ""
        usable = device["reason"] or f"usable, {device['free'] / 2**30:.1f} of {device['total'] / 2**30:.1f} GiB free"
        rows.append([f"device {name}", usable + mark])
    if facts["default_device_error"]:
        rows.append(["default", facts["default_device_error"]])
    versions = [f"{name} {found}" for name, found in facts["packages"].items() if found]
    rows.append(["packages", ", ".join(versions)])
    for blas in facts["blas"]:
        core = f", core type {blas['core']}" if blas["core"] else ""
        rows.append(["BLAS", f"{blas['library']} {blas['version']}{core}, {blas['threads']} threads: {blas['path']}"])
    numba = facts["numba"]
    layer = numba.get("error") or f"threading layer {numba['threading_layer']}, {numba['threads']} threads"
    rows.append(["Numba", layer])
    cpu = facts["cpu"]
    rows.append(["CPU", f"{cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores"])
    rows.append(["CPU features", " ".join(cpu["features"])])
    rows += [[name, path or "not found"] for name, path in facts["folders"].items()]
    rows += [["environment", f"{name}={value}"] for name, value in facts["environment"].items()]
    print_table(rows)
