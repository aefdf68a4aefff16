"""Fixtures of the gates that stand in for a GPU."""

from __future__ import annotations

import pytest

from tests.cuda.emulator import EmulatedBackend, emulated_backend
from tests.cuda.host_shim import HostShim, host_shim, unavailable


@pytest.fixture
def emulated_cuda() -> EmulatedBackend:
    """A fresh CUDA backend on an emulated device."""
    return emulated_backend()


@pytest.fixture(scope="session")
def shim() -> HostShim:
    """The kernels, compiled for the CPU."""
    if reason := unavailable():
        pytest.skip(reason)
    return host_shim()
