"""To be written."""

from __future__ import annotations

from typing import Any


class ArrayAttention:
    """Mixin of :class:`~nnfast.backends.array_backend.ArrayBackend`."""

    attention: Any = None
    attention_grad: Any = None
    rotary: Any = None
    rms_norm: Any = None
    rms_norm_grad: Any = None
