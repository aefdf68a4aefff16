"""Arrays of other libraries at an estimator's border: NumPy inside, and results where the input came from."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import get_config

from ..training import data

__all__ = ["host", "like"]


def _foreign(x: Any) -> bool:
    """Whether `x` is an array of another library, such as CuPy or PyTorch."""
    if isinstance(x, (np.ndarray, np.generic)) or x is None:
        return False
    return hasattr(x, "__array_namespace__") or hasattr(x, "__dlpack__") or data.on_gpu(x)


def host(x: Any) -> Any:
    """`x` as a NumPy array where it is one of another library; anything else as it is, for scikit-learn to check."""
    if not _foreign(x) or hasattr(x, "columns") or hasattr(x, "iloc"):
        return x
    return data.as_array(x, "the input")


def like(result: Any, x: Any) -> Any:
    """`result` in the library and on the device of `x`, where scikit-learn's ``array_api_dispatch`` is on.

    Text stays in NumPy, which alone has it.
    """
    numbers = isinstance(result, np.ndarray) and result.dtype.kind in "fiub"
    if not (numbers and _foreign(x) and get_config()["array_api_dispatch"]):
        return result
    from sklearn.utils._array_api import device, get_namespace

    namespace, is_array_api = get_namespace(x)
    return namespace.asarray(result, device=device(x)) if is_array_api else result
