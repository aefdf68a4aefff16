"""To be written."""

from __future__ import annotations


class CudaConv:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""
