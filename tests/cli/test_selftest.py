"""``nnfast selftest``: one line for each check, and an exit status that means something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnfast import devices, selftest
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.cli import main
from nnfast.selftest import suite as module

WRONG = {
    "act": lambda self, act, z, *, out: np.copyto(out, z),
    "adam_step": lambda self, param, grad, m, v, state, *, decoupled: None,
    "sum_rows": lambda self, x, *, out: np.copyto(out, x.sum(axis=0) * (1 + 1e-3)),
}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the checks that take no time."""
    original = module.checks

    def some(device):
        slow = ("training", "two spirals", "layer", "operations, float64", "recorded")
        return [check for check in original(device) if not check.name.startswith(slow)]

    monkeypatch.setattr(module, "checks", some)


@pytest.mark.parametrize("device", ["numpy", "numba"])
def test_every_check_passes(device: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, few: None) -> None:
    if devices.available_devices()[device]:
        pytest.skip(device)
    path = tmp_path / "found.json"
    assert main(["selftest", "--device", device, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(path.read_text())
    assert found["device"] == device
    assert len(lines) == len(found["checks"]) + 1 > 15
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert all(check["error"] is None for check in found["checks"])


@pytest.mark.parametrize("method", WRONG)
def test_what_is_wrong_is_found(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    kind = type("Wrong", (NumpyBackend,), {method: WRONG[method]})
    monkeypatch.setattr(devices, "get_backend", lambda *args, get=devices.get_backend, **kwargs: (
        kind() if args == ("broken",) else get(*args, **kwargs)
    ))  # fmt: skip
    assert main(["selftest", "--device", "broken"]) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert "Traceback" not in out
    assert "checks of numpy failed" in err
    if method == "act":
        assert main(["selftest", "--device", "broken", "--debug"]) == 1
        assert "Traceback" in capsys.readouterr().out


def test_the_list_names_every_optimizer_loss_and_layer() -> None:
    names = [check.name for check in selftest.checks("numpy")]
    assert len(set(names)) == len(names)
    for wanted in ("optimizer nadam", "loss huber", "layer BatchNorm()", "training with lion, float64, against NumPy"):
        assert wanted in names


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_a_device_that_is_not_there(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--device", device]) == 2
    assert device in capsys.readouterr().err


def test_a_file_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--device", "numpy", "--json", "/nowhere/found.json"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "/nowhere" in err


def test_on_an_emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a GPU has: fallbacks, rounding, a copy stream, memory of its own."""
    from tests.cuda.emulator import emulated_backend

    backend = emulated_backend()
    monkeypatch.setitem(devices._backends, ("cuda:0", True), backend)
    wanted = ("without", "products", "batches", "inputs and outputs", "more than", "a loss that is not finite")
    original = module.checks
    monkeypatch.setattr(module, "checks", lambda device: [c for c in original(device) if c.name.startswith(wanted)])
    outcomes = selftest.run(backend)
    assert [outcome.error for outcome in outcomes] == [None] * 13
    # A fallback that computes something else is noticed
    library = type(backend)._open_cublaslt
    kind = type("Wrong", (type(backend),), {"gemm": WRONG_GEMM})
    wrong = kind(0)
    assert library is type(wrong)._open_cublaslt
    wanted = ("without cuBLASLt: training",)
    assert any(outcome.error for outcome in selftest.run(wrong))


def WRONG_GEMM(self, a, b, *, out, trans_a=False, trans_b=False, beta=0.0):
    super(type(self), self).gemm(a, b, out=out, trans_a=trans_a, trans_b=trans_b, beta=beta)
    if self._cublaslt is None:
        out *= 1.01
