"""A forked child of a process that uses CUDA, and other reasons why there is none."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

import numpy as np
import pytest

import nnfast as nf
from nnfast import devices
from nnfast.backends import cupy_fork
from nnfast.backends.cupy_arrays import probe
from nnfast.errors import DeviceUnavailable
from tests.cuda.emulator import EmulatedBackend, emulated_backend

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_a_child(function: Callable[[], None]) -> None:
    """Run it in a forked child; fails with what it printed where it raised."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc()[-3000:].encode())
        finally:
            os._exit(status)
    os.close(writing)
    text = b""
    while part := os.read(reading, 4096):
        text += part
    os.close(reading)
    assert os.waitpid(child, 0)[1] == 0, text.decode()


@pytest.fixture
def bk(monkeypatch: pytest.MonkeyPatch) -> EmulatedBackend:
    backend = emulated_backend()
    monkeypatch.setitem(devices._backends, ("cuda:0", True), backend)
    return backend


def test_a_child_is_told(bk: EmulatedBackend) -> None:
    model = nf.Sequential([nf.Dense(2)]).build(3, seed=0)
    X = np.zeros((4, 3), np.float32)
    expected = model.predict(X, device=bk)

    def child() -> None:
        assert cupy_fork.lost()
        for use in (
            lambda: bk.zeros(3, np.float32),
            lambda: model.predict(X),
            lambda: model.get_weights(),
            lambda: nf.get_backend("cuda"),
        ):
            with pytest.raises(DeviceUnavailable, match=r"forked; start processes with .*spawn") as caught:
                use()
            assert "\n" not in str(caught.value)
        assert nf.available_devices()["cuda"] == cupy_fork.REASON
        assert devices.resolve("auto") in ("numpy", "numba")
        fresh = nf.Sequential([nf.Dense(2)]).build(3, seed=0)
        np.testing.assert_allclose(fresh.predict(X, device="numpy"), expected, atol=1e-6)
        in_a_child(lambda: (_ for _ in ()).throw(AssertionError) if not cupy_fork.lost() else None)

    in_a_child(child)
    assert not cupy_fork.lost()
    np.testing.assert_array_equal(model.predict(X), expected)


def test_a_child_of_a_process_without_cuda_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_fork, "_started", False)
    monkeypatch.setitem(sys.modules, "cupy", None)

    def child() -> None:
        assert not cupy_fork.lost()
        assert probe() == "CuPy is not installed; install the extra cuda13 or cuda12"

    in_a_child(child)


def test_labels_out_of_range_never_reach_the_device(bk: EmulatedBackend) -> None:
    model = nf.Sequential([nf.Dense(3)])
    X = np.zeros((6, 2), np.float32)
    for labels in ([0, 1, 2, 3, 0, 1], [0, 1, 2, -1, 0, 1]):
        bk.counts.reset()
        with pytest.raises(ValueError, match=r"3|-1"):
            model.fit(X, np.array(labels), loss="cross_entropy", device=bk, verbose=0)
        assert bk.counts.launches == 0
    assert not model.is_built
