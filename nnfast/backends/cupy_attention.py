"""To be written."""

from __future__ import annotations


class CudaAttention:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""
