"""How exactly a model is computed: the type of its weights, and what may be rounded.

`"float32"` and `"float64"` are exact to that type. The others have weights, gradients of weights and an optimizer's
arrays in float32, and say what an NVIDIA GPU may round beside them; other devices compute them as float32.

`"tf32"` lets the tensor cores (Ampere and newer) round the factors of a matrix product to 10 bits of mantissa, and add
up in float32. `"bf16"` and `"fp16"` keep activations, their gradients and a copy of the weights in 16 bits, and compute
in float32 (Micikevicius et al., "Mixed precision training", 2018). With the small exponents of float16, gradients would
vanish; so the loss's gradient is scaled up, as far as nothing overflows: a step that does is left out, and the scale
halved; after 2,000 good steps it doubles.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["DTYPES", "FIRST_LOSS_SCALE", "PRECISIONS", "checked_dtype", "resolve"]

#: Types that weights can have
DTYPES = ("float32", "float64")

# Type of the weights by precision
_PRECISIONS = {"float32": "float32", "tf32": "float32", "bf16": "float32", "fp16": "float32", "float64": "float64"}
#: What `precision` may be
PRECISIONS = tuple(_PRECISIONS)
#: Where the scale of the loss's gradient begins with "fp16"
FIRST_LOSS_SCALE = 65536.0


def checked_dtype(dtype: Any) -> np.dtype[Any]:
    """`dtype`, if weights can have it.

    Raises
    ------
    ValueError
        If they cannot.
    """
    try:
        resolved = np.dtype(dtype)
    except TypeError:
        resolved = None
    if resolved is None or resolved.name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return resolved


def resolve(precision: str | None, dtype: Any = None) -> tuple[str, np.dtype[Any]]:
    """Name of the precision and type of the weights, from what a user gave of the two.

    Parameters
    ----------
    precision : str or None
        One of :data:`PRECISIONS`; by default that of `dtype`.
    dtype : dtype, optional
        By default that of `precision`, and float32 where neither is given.

    Raises
    ------
    ValueError
        If one is unknown, or they contradict each other.
    """
    if precision is None:
        kind = checked_dtype("float32" if dtype is None else dtype)
        return kind.name, kind
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
    kind = np.dtype(_PRECISIONS[precision])
    if dtype is not None and checked_dtype(dtype) != kind:
        raise ValueError(f"precision {precision!r} has weights of {kind}, not of {dtype!r}; give one of the two")
    return precision, kind
