"""The angles that positions in a sequence are told by."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["position_angles"]


def position_angles(xp: Any, steps: int, features: int, base: float, first: int = 0) -> Any:
    """``t / base**(2 i / features)`` for the steps from `first` on and each pair `i` of features.

    What sinusoidal (Vaswani et al. 2017) and rotary (Su et al. 2021) positions take sine and cosine of.

    Parameters
    ----------
    xp : module
        NumPy or CuPy.
    steps, features : int
        Number of positions; features that are told by pairs, the last one alone where there is an odd number.
    base : float
        Ratio of the longest wave to the shortest one, about.
    first : int
        The first position.

    Returns
    -------
    array of float64
        (steps, pairs).
    """
    wave = xp.arange((features + 1) // 2, dtype=np.float64) * (2.0 / features)
    return xp.arange(first, first + steps, dtype=np.float64)[:, None] / base**wave
