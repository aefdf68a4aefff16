"""To be written."""

from __future__ import annotations


class NumbaConv:
    """Mixin of :class:`~nnfast.backends.numba_backend.NumbaBackend`."""
