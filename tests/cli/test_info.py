"""``nnfast info``."""

from __future__ import annotations

import platform

import numpy as np

import nnfast as nf

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
    assert all(blas["threads"] >= 1 for blas in facts["blas"])
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
