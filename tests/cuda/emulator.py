"""A CUDA backend on an emulated device, for tests on machines without a GPU.

>>> bk = emulated_backend()
>>> bk.counts.syncs
0
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from scipy.special import erf

from nnfast.backends import formulas
from nnfast.backends.cupy_backend import CupyBackend
from nnfast.kernels.cuda.algorithms import Algorithms
from nnfast.kernels.cuda.cublaslt_library import Library
from nnfast.kernels.cuda.cudnn_graphs import Library as ConvolutionLibrary
from nnfast.kernels.remembered import Remembered
from tests.cuda.fake_cublaslt import FakeLibrary
from tests.cuda.fake_cudnn import FakeCudnn, FakePlan
from tests.cuda.fake_cupy import Counts, FakeArray, FakeCupy
from tests.cuda.host_shim import host_shim, unavailable

__all__ = ["Counts", "EmulatedBackend", "FakeArray", "emulated_backend", "unavailable"]

_device_erf = formulas.erf


@cache
def _memory() -> tempfile.TemporaryDirectory[str]:
    """Where algorithms are remembered, for this process."""
    return tempfile.TemporaryDirectory(prefix="nnfast-cublaslt-")


def _erf(xp: Any, x: Any) -> Any:
    """The composed GELU's error function: ``cupyx.scipy.special`` would ask for a GPU."""
    return x.cupy._new(erf(x.host)) if isinstance(x, FakeArray) else _device_erf(xp, x)


class EmulatedBackend(CupyBackend):
    """The real backend and the real kernels, over a stand-in for CuPy."""

    _cupy: FakeCupy

    multiprocessors = 2
    #: Of cuDNN; ``None``: it is not installed
    plans: list[FakePlan] | None = None
    #: Where the choices between these and the kernels are remembered
    choices: Path | None = None

    def _import_cupy(self, index: int) -> Any:
        formulas.erf = _erf
        return FakeCupy(host_shim(), self.multiprocessors)

    def _open_cublaslt(self) -> FakeLibrary:
        return FakeLibrary(self._cupy)

    def _remembered(self, library: Library) -> Algorithms:
        return Algorithms("emulated", library.version, Path(_memory().name))

    def _open_cudnn(self) -> ConvolutionLibrary | None:
        return None if self.plans is None else ConvolutionLibrary(FakeCudnn(self._cupy, self.plans))

    def _remembered_convolutions(self, library: ConvolutionLibrary) -> Remembered:
        return Remembered(self.choices, lambda value: isinstance(value, str))

    @property
    def counts(self) -> Counts:
        """Launches, allocations, waits and copies since ``counts.reset()``."""
        return self._cupy.counts


def emulated_backend(device_index: int = 0, fused: bool = True, multiprocessors: int = 2) -> EmulatedBackend:
    """A CUDA backend on an emulated device; skips the test where there is no g++.

    Parameters
    ----------
    device_index : int
        Number of the device, 0 or 1.
    fused : bool
        As for :class:`~nnfast.backends.cupy_backend.CupyBackend`.
    multiprocessors : int
        Size of the device, which the launch shapes depend on.
    """
    if reason := unavailable():
        pytest.skip(reason)
    kind = type("EmulatedBackend", (EmulatedBackend,), {"multiprocessors": multiprocessors})
    backend: EmulatedBackend = kind(device_index, fused)
    return backend
