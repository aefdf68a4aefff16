"""To be written."""

from __future__ import annotations

from typing import Any


class ArraySpatial:
    """Mixin of :class:`~nnfast.backends.array_backend.ArrayBackend`."""

    conv: Any = None
    conv_input_grad: Any = None
    conv_weight_grad: Any = None
    max_pool: Any = None
    max_pool_grad: Any = None
    avg_pool: Any = None
    avg_pool_grad: Any = None
    pad: Any = None
    crop: Any = None
    upsample: Any = None
    upsample_grad: Any = None
    group_norm: Any = None
    group_norm_grad: Any = None
    spatial_dropout: Any = None
