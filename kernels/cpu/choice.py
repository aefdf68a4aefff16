"""Whether nnfast's own product or BLAS's is the faster one here: measured once on each machine, and remembered.

On processors that have units for matrices, or vectors that are not known here, a BLAS that was written for them may
well be ahead. It can be chosen only where SciPy is installed, whose BLAS has an address.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache as once
from typing import Any

import numpy as np

from ..remembered import Remembered
from . import tuning
from .cache import folder

__all__ = ["CHOICES", "asked_for", "measurements", "uses_blas"]

CHOICES = ("measured", "generated", "blas")
# Classes of products, by the least that the smallest of their three dimensions is
_CLASSES = {"wide": 256, "narrow": 32}

Measure = Callable[[int, int, int, np.dtype[Any]], tuple[float, float]]

_lock = threading.Lock()
_decided: dict[tuple[str, str], bool] = {}


def asked_for() -> str:
    """What ``NNFAST_GEMM`` says, one of :data:`CHOICES`; "measured" where it says nothing.

    Raises
    ------
    ValueError
        If it says anything else.
    """
    asked = os.environ.get("NNFAST_GEMM") or "measured"
    if asked not in CHOICES:
        raise ValueError(f"NNFAST_GEMM is {asked!r}; expected 'measured', 'generated' or 'blas'")
    return asked


def _good(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, float) and v > 0 for v in value)


@once
def _remembered() -> Remembered:
    path = folder()
    return Remembered(path and path / "products.json", _good)


@once
def _blas_version() -> str | None:
    """SciPy's version, where it and threadpoolctl are installed; neither is imported."""
    if importlib.util.find_spec("scipy") is None or importlib.util.find_spec("threadpoolctl") is None:
        return None
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("scipy")
    except PackageNotFoundError:
        return None


def _class_of(smallest: int) -> str | None:
    return next((name for name, least in _CLASSES.items() if smallest >= least), None)


def _key(dtype: np.dtype[Any], name: str) -> str:
    return f"scipy {_blas_version()} {dtype.name} {name}"


def measurements() -> dict[str, list[float]]:
    """Seconds that were measured, of the own product and of BLAS, by dtype and class of product."""
    if _blas_version() is None:
        return {}
    table = _remembered()
    found = {
        f"{dtype} {name}": table.get(_key(np.dtype(dtype), name))
        for dtype in ("float32", "float64")
        for name in _CLASSES
    }
    return {name: times for name, times in found.items() if times is not None}


def uses_blas(m: int, n: int, k: int, dtype: Any, measure: Measure) -> bool:
    """Whether BLAS does this product of (m, k) and (k, n) matrices; what is not yet known is measured.

    Parameters
    ----------
    m, n, k : int
        Its size.
    dtype : dtype
        float32 or float64.
    measure : callable
        ``measure(m, n, k, dtype)`` are the seconds of the own product and of BLAS's, on one thread.
    """
    if (asked := asked_for()) != "measured":
        return asked == "blas"
    name = _class_of(min(m, n, k))
    # Few rows are a matter of memory, and what is small one of calls
    if name is None or _blas_version() is None:
        return False
    dtype = np.dtype(dtype)
    if (decided := _decided.get((dtype.char, name))) is not None:
        return decided
    table, key = _remembered(), _key(dtype, name)
    with _lock:
        if (times := table.get(key)) is None:
            times = _measured(2 * _CLASSES[name], dtype, measure)
            table.put(key, times)
        _decided[dtype.char, name] = _is_faster(times)
    return _decided[dtype.char, name]


def _is_faster(times: Sequence[float]) -> bool:
    own, blas = times
    return blas < tuning.BLAS_SHARE * own


def _measured(side: int, dtype: np.dtype[Any], measure: Measure) -> list[float]:
    """Times of a tile's rows with weights of this side; of several measurements the one that speaks least for BLAS.

    Other programs may have disturbed the first. What holds for good must have shown each time.
    """
    found: list[tuple[float, float]] = []
    while len(found) < tuning.CHOICE_TIMES and all(map(_is_faster, found)):
        if found:
            time.sleep(tuning.CHOICE_PAUSE)
        try:
            found.append(measure(tuning.TILE_ROWS, side, side, dtype))
        except ImportError:  # SciPy is there, and broken
            found.append((1.0, math.inf))
    own, blas = max(found, key=lambda each: each[1] / each[0])
    return [own, blas]
