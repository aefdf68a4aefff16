"""The epoch of a CNN, on a few random images in place of Fashion-MNIST."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from nnfast.bench import fashion_mnist_cnn_epoch as epoch
from nnfast.bench.workloads import Workload, make_data

from .helpers import QUICK, small


class Wrong(epoch.Session):
    """NumPy's losses are not the others'."""

    def __init__(self, name: str, *args: object) -> None:
        super().__init__(name, *args)  # type: ignore[arg-type]
        self.factor = 1.01 if name == "nnfast-numpy" else 1.0

    def first_losses(self) -> list[float]:
        return [self.factor * loss for loss in super().first_losses()]


def _data() -> tuple[Workload, tuple[np.ndarray, np.ndarray]]:
    work = small("cnn")
    return replace(work, rows=1), make_data(work)


def test_epochs_are_timed_in_turn():
    work, data = _data()
    results = epoch.measure(["nnfast-numba", "nnfast-numpy"], work, QUICK, data)
    assert set(results) == {"nnfast-numba", "nnfast-numpy"}
    for result in results.values():
        assert len(result["seconds"]) == QUICK.rounds
        assert 0 < result["best"] <= result["median"]
        assert result["disagreement"] < 1e-5
        # One to warm up, and in each round one, one and three
        assert len(result["losses"]) >= 1 + QUICK.rounds * 5
        assert result["losses"][-1] < result["losses"][0]


def test_a_contender_that_computes_something_else_is_not_timed(monkeypatch):
    work, data = _data()
    monkeypatch.setattr(epoch, "Session", Wrong)
    with pytest.raises(ArithmeticError, match=r"numpy: its first losses differ from .*-numba by 0\.01"):
        epoch.measure(["nnfast-numba", "nnfast-numpy"], work, QUICK, data)


@pytest.mark.parametrize(
    ("names", "message"),
    [("nnfast-numba,tensorflow", "tensorflow is not known"), ("numpy", "numpy is not used for cnn")],
)
def test_contenders_are_checked_first(monkeypatch, names, message):
    monkeypatch.setattr("sys.argv", ["epoch", "--contenders", names])
    monkeypatch.setattr(epoch, "measure", partial(pytest.fail, "it went on"))
    with pytest.raises(SystemExit, match=message):
        epoch.main()
