"""``nnfast info``."""

from __future__ import annotations

import platform
import sys

import numpy as np
import pytest

import nnfast as nf
from nnfast import blas

from .conftest import strict_json


def test_facts(cli, monkeypatch):
    monkeypatch.setenv("NNFAST_CACHE", "/some/where")
    status, out, err = cli.raw("info", "--json")
    assert status == 0, err
    facts = strict_json(out.splitlines()[-1])
    assert facts["version"] == nf.__version__
    assert facts["python"]["version"] == platform.python_version()
    assert facts["packages"]["numpy"] == np.__version__
    assert {name: device["reason"] for name, device in facts["devices"].items()} == nf.available_devices()
    assert facts["devices"]["numpy"]["usable"] is True
    assert facts["default_device"] == nf.devices.resolve()
    assert all(found["threads"] is None or found["threads"] >= 1 for found in facts["blas"])
    assert facts["cpu"]["features"]
    assert facts["folders"]["cache"] == "/some/where"
    assert facts["environment"]["NNFAST_CACHE"] == "/some/where"
    for name, reason in nf.available_devices().items():
        assert f"device {name}" in out
        assert (reason or "usable").splitlines()[0][:40] in out
        if reason is None:
            assert 0 <= facts["devices"][name]["free"] <= facts["devices"][name]["total"]


def test_threading_layer(cli):
    status, out, _ = cli.raw("info", "--json")
    assert status == 0
    numba = strict_json(out.splitlines()[-1])["numba"]
    if "error" not in numba:
        assert numba["threading_layer"] in ("omp", "tbb", "workqueue")
        assert numba["threads"] >= 1


def test_a_wrong_default_is_told_not_raised(cli, monkeypatch):
    monkeypatch.setenv("NNFAST_DEVICE", "abacus")
    status, out, _ = cli.raw("info")
    assert status == 0
    assert "'abacus' is not known" in out


# ---- kernels -------------------------------------------------------------------------------------------
def info(cli):
    """What is shown, and the facts."""
    status, out, err = cli.raw("info", "--json")
    assert status == 0, err
    return out, strict_json(out.splitlines()[-1])


@pytest.mark.parametrize(
    ("fused", "bits", "tiles"),
    [
        (64, 512, {"float32": [12, 32], "float64": [12, 16]}),
        (32, 256, {"float32": [6, 16], "float64": [6, 8]}),
        (16, 128, {"float32": [8, 12], "float64": [8, 6]}),
        (0, 128, {"float32": [6, 8], "float64": [6, 4]}),
    ],
)
def test_vectors_and_tiles(cli, monkeypatch, fused, bits, tiles):
    pytest.importorskip("numba")
    from nnfast.kernels.cpu import micro

    monkeypatch.delenv("NNFAST_GEMM", raising=False)
    monkeypatch.setattr(micro, "fused_vector_bytes", lambda: fused)
    out, facts = info(cli)
    kernels = facts["kernels"]
    assert kernels["products"] == "measured"
    assert kernels["vector_bits"] == bits
    assert kernels["machine_bits"] == (8 * fused or None)
    assert kernels["tiles"] == tiles
    rows, columns = tiles["float32"]
    assert f"vectors of {bits} bits, products generated, in tiles of {rows} x {columns} (float32)" in out


def test_what_was_measured_of_blas_is_told(cli, monkeypatch):
    pytest.importorskip("numba")
    from nnfast.kernels.cpu import choice

    monkeypatch.delenv("NNFAST_GEMM", raising=False)
    monkeypatch.setattr(choice, "measurements", lambda: {"float32 wide": [2e-3, 1e-3]})
    out, facts = info(cli)
    assert facts["kernels"]["blas_times_generated"] == {"float32 wide": 0.5}
    assert "SciPy's BLAS takes 0.50 (float32 wide) times as long" in out


def test_products_by_blas(cli, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setenv("NNFAST_GEMM", "blas")
    out, facts = info(cli)
    assert facts["kernels"]["products"] == "blas"
    assert facts["kernels"]["tiles"] is None
    assert "products by SciPy's BLAS (NNFAST_GEMM=blas)" in out


def test_a_wrong_choice_of_products_is_told_not_raised(cli, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setenv("NNFAST_GEMM", "mkl")
    out, facts = info(cli)
    assert "NNFAST_GEMM is 'mkl'" in facts["kernels"]["error"]
    assert "NNFAST_GEMM is 'mkl'" in out


# ---- BLAS ----------------------------------------------------------------------------------------------
def library(core, package="numpy", name="openblas"):
    path = f"/lib/python3/site-packages/{package}.libs/libopenblas.so" if package else "/opt/conda/lib/libopenblas.so"
    return {"library": name, "version": "0.3", "core": core, "threads": 2, "threading": "pthreads", "path": path}


@pytest.mark.parametrize(
    ("core", "machine", "bits"),
    [
        ("Haswell", 512, 256),
        ("Zen", 512, 256),
        ("Sandybridge", 512, 256),
        ("Nehalem", 256, 128),
        ("Katmai", 512, 128),
        ("SkylakeX", 512, None),
        ("Cooperlake", 512, None),
        ("Sapphirerapids", 512, None),
        ("Haswell", 256, None),
        ("Zen", 256, None),
        ("SkylakeX", 256, None),
        ("neoversen1", 128, None),
        ("A core of the future", 512, None),
        (None, 512, None),
        ("Haswell", None, None),
    ],
)
def test_the_warning_of_narrow_vectors(monkeypatch, core, machine, bits):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    found = blas.warning([library(core)], machine)
    if bits is None:
        assert found is None
    else:
        assert f"{core} kernels, with vectors of {bits} bits, on a CPU with {machine}" in found
        assert "\n" not in found


def test_the_warning_names_the_cause(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert blas.warning([library("Haswell")], 512).endswith("OPENBLAS_CORETYPE=Haswell is set")


def test_the_warning_is_about_numpys_library():
    assert blas.warning([library("Haswell", "scipy"), library("SkylakeX")], 512) is None
    assert blas.warning([library("SkylakeX", "scipy"), library("Haswell")], 512) is not None
    assert blas.warning([library("Haswell", "")], 512) is not None
    assert blas.warning([library("Haswell", "scipy")], 512) is None
    assert blas.warning([library("haswell", name="blis")], 512) is None
    assert blas.warning([], 512) is None


@pytest.mark.parametrize(("core", "warned"), [("Nehalem", True), ("SkylakeX", False)])
def test_the_warning_is_shown_where_it_is_true(cli, monkeypatch, core, warned):
    pytest.importorskip("numba")
    from nnfast.kernels.cpu import micro

    monkeypatch.setattr(micro, "fused_vector_bytes", lambda: 64)
    monkeypatch.setattr(blas, "loaded", lambda: [library(core)])
    out, facts = info(cli)
    assert (facts["blas_warning"] is not None) == warned
    rows = [line for line in out.splitlines() if line.startswith("warning ")]
    assert len(rows) == warned
    assert all("Nehalem" in row for row in rows)


def test_without_threadpoolctl(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    out, facts = info(cli)
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    assert [(found["library"], found["version"]) for found in facts["blas"]] == [(built["name"], built["version"])]
    assert facts["blas"][0]["core"] is None
    assert facts["blas_warning"] is None
    assert f"{built['name']} {built['version']}, as NumPy was built" in out
