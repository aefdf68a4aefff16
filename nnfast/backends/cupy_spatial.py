"""To be written."""

from __future__ import annotations


class CudaSpatial:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""
