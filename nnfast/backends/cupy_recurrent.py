"""To be written."""

from __future__ import annotations


class CudaRecurrent:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""
