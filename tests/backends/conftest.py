"""What tests of the CUDA backend share: an emulated device, with its kernels and without."""

from __future__ import annotations

import pytest

from tests.cuda.emulator import EmulatedBackend, emulated_backend


@pytest.fixture(params=["fused", "composed"])
def bk(request: pytest.FixtureRequest) -> EmulatedBackend:
    """The emulated device by its kernels, and by CuPy's own operations."""
    return emulated_backend(fused=request.param == "fused")
