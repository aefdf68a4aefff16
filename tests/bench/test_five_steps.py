"""The five steps from a NumPy class to nnfast: each computes what the first does."""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf
from nnfast.bench import five_steps

WEIGHTS, (X, Y) = five_steps.initial_weights(), five_steps.data(1000)


@pytest.fixture(scope="module")
def expected() -> list[float]:
    losses = five_steps.step_1(WEIGHTS, X, Y, 4, "cpu")
    assert losses[-1] < 0.9 * losses[0]
    return losses


@pytest.mark.parametrize("name", five_steps.STEPS)
@pytest.mark.parametrize("device", ["numpy", "numba"])
def test_each_step_computes_the_same(expected: list[float], name: str, device: str, capsys) -> None:
    if nf.available_devices()[device] is not None:
        pytest.skip(f"no {device}")
    np.testing.assert_allclose(five_steps.STEPS[name](WEIGHTS, X, Y, 4, device), expected, rtol=1e-5)


def test_the_last_one_on_a_gpu(expected: list[float]) -> None:
    emulator = pytest.importorskip("tests.cuda.emulator")
    losses = five_steps.step_5(WEIGHTS, X, Y, 4, emulator.emulated_backend())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_times_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert five_steps.main(["--epochs", "1", "--device", "numpy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [*list(five_steps.STEPS)[:-1], "5. whole epochs (numpy)"]
    assert all(" us a step" in line and "x   loss" in line for line in lines)
