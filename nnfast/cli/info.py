"""``nnfast info``: what this machine offers, for choosing a device and for reporting problems."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import click

from .common import echo, emit_json, output_options, print_table, version

PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "tbb", "safetensors", "scikit-learn", "matplotlib", "pyarrow")
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy", "nvidia-cudnn-frontend", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")


@click.command("info", short_help="Show devices, versions and libraries, or what a model is.")
@click.argument("model", required=False)
@output_options
def command(model: str | None, as_json: bool) -> None:
    """Show devices (and why one cannot be used), versions, kernels, BLAS, threads, CPU and folders.

    With MODEL, a file that 'nnfast train' or a program wrote, show its layers and what it was trained on instead.
    """
    if model is not None:
        described = _described(model)
        if as_json:
            emit_json({"command": "info", "version": version(), **described})
        return
    facts = collect()
    _show(facts)
    if as_json:
        emit_json({"command": "info", **facts})


def _described(path: str) -> dict[str, Any]:
    """Show what is in a model file; returns it as ``--json`` prints it."""
    from .bundle import KEY, load_model
    from .text_bundle import TextBundle, is_text

    model = load_model(path, "numpy")
    state, own = model.training_state, model.extra.get(KEY)
    data = own.get("data") if isinstance(own, dict) else None
    rows = [["model", path], ["trained", f"{state.epoch} epochs, {state.step} steps"]]
    facts: dict[str, Any] = {"model": path, "vocabulary": None}
    if is_text(model):
        bundle = TextBundle.of(model, path)
        data, facts["vocabulary"] = bundle.data, bundle.vocabulary.characters
        rows.append(["vocabulary", f"{len(bundle.vocabulary.characters)} characters: {bundle.vocabulary.characters!r}"])
    rows += [["data", str(data)]] if data else []
    rows += [["loss", type(model.loss).__name__]] if model.loss is not None else []
    print_table(rows)
    summary = model.summary()
    echo(str(summary))
    return {
        **facts,
        "data": data,
        "epochs": state.epoch,
        "steps": state.step,
        "in_shape": list(model.in_shape),
        "out_shape": list(model.out_shape),
        "dtype": str(model.dtype),
        "precision": model.precision,
        "parameters": summary.parameters,
        "layers": [{"name": row.name, "layer": row.layer, "parameters": row.parameters} for row in summary.rows],
    }


def collect() -> dict[str, Any]:
    """The facts, as ``--json`` prints them."""
    from .. import blas, machine
    from ..devices import available_devices

    devices = available_devices()
    try:
        chosen: str | None = _resolve()
        why_not = None
    except ValueError as error:  # NNFAST_DEVICE may name anything
        chosen, why_not = None, str(error)
    kernels, libraries = _kernels(), blas.loaded()
    return {
        "version": version(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "devices": {name: _device(name, reason) for name, reason in devices.items()},
        "default_device": chosen,
        "default_device_error": why_not,
        "packages": {name: machine.installed(name) for name in (*PACKAGES, *CUPY)},
        "kernels": kernels,
        "blas": libraries,
        "blas_warning": blas.warning(libraries, kernels["machine_bits"]),
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


def _kernels() -> dict[str, Any]:
    """How the ``numba`` device does products, its vectors in bits, tiles, and what was measured of BLAS."""
    import numpy as np

    facts: dict[str, Any] = {"products": None, "machine_bits": None, "vector_bits": None, "tiles": None, "error": None}
    facts["blas_times_generated"] = {}
    try:
        from ..kernels.cpu import choice, micro

        width = micro.vector_bytes()
        facts["machine_bits"] = 8 * micro.fused_vector_bytes() or None
        facts["products"] = choice.asked_for()
        facts["blas_times_generated"] = {name: blas / own for name, (own, blas) in choice.measurements().items()}
    except Exception as error:  # no Numba, or NNFAST_GEMM names anything
        facts["error"] = f"{type(error).__name__}: {error}"
        return facts
    # BLAS does products only: the other kernels are compiled for the machine's vectors either way
    facts["vector_bits"] = 8 * width
    if facts["products"] != "blas":
        shapes = {name: micro.shape_for(np.dtype(name), width) for name in ("float32", "float64")}
        facts["tiles"] = {name: [shape.rows, shape.columns] for name, shape in shapes.items()}
    return facts


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
    rows.append(["kernels", _kernels_line(facts["kernels"])])
    for found in facts["blas"]:
        core = f", core type {found['core']}" if found["core"] else ""
        # threadpoolctl knows how many threads it has, and where it is
        where = f", {found['threads']} threads: {found['path']}" if found["path"] else ", as NumPy was built"
        rows.append(["BLAS", f"{found['library']} {found['version']}{core}{where}"])
    if facts["blas_warning"]:
        rows.append(["warning", facts["blas_warning"]])
    numba = facts["numba"]
    layer = numba.get("error") or f"threading layer {numba['threading_layer']}, {numba['threads']} threads"
    rows.append(["Numba", layer])
    cpu = facts["cpu"]
    rows.append(["CPU", f"{cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores"])
    rows.append(["CPU features", " ".join(cpu["features"])])
    rows += [[name, path or "not found"] for name, path in facts["folders"].items()]
    rows += [["environment", f"{name}={value}"] for name, value in facts["environment"].items()]
    print_table(rows)


def _kernels_line(kernels: dict[str, Any]) -> str:
    if kernels["error"]:
        return str(kernels["error"])
    vectors = f"vectors of {kernels['vector_bits']} bits"
    if kernels["products"] == "blas":
        return f"{vectors}, products by SciPy's BLAS (NNFAST_GEMM=blas)"
    tiles = " and ".join(f"{rows} x {columns} ({name})" for name, (rows, columns) in kernels["tiles"].items())
    line = f"{vectors}, products generated, in tiles of {tiles}"
    if kernels["products"] == "measured" and (ratios := kernels["blas_times_generated"]):
        line += "; SciPy's BLAS takes " + ", ".join(f"{ratio:.2f} ({name})" for name, ratio in ratios.items())
        line += " times as long, and is used where that is below 0.9"
    return line
