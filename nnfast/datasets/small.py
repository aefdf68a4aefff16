"""Small data sets: made from formulas, or those that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from ..errors import DataError
from .base import Dataset

__all__ = ["digits", "spiral", "xor"]


def xor() -> Dataset:
    """The four rows of exclusive or: two inputs 0 or 1, class 1 where they differ."""
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64)
    return Dataset("xor", X, np.array([0, 1, 1, 0]), task="classification", target="a xor b")


def spiral(
    rows: int = 1000, test_rows: int = 400, *, turns: float = 1.5, noise: float = 0.03, seed: int = 0
) -> Dataset:
    """Two spirals wound into each other, one per class, within about ``[-1, 1]**2``.

    A row of class c is at radius r, angle ``2 pi turns r + pi c``, with Gaussian noise on both
    coordinates; r is the square root of a uniform number, so that the arms are equally dense along their length.

    Parameters
    ----------
    rows, test_rows : int
        Number of training and of test rows; the classes alternate.
    turns : float
        Windings of each arm.
    noise : float
        Standard deviation of the noise.
    seed : int
        Seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    n = rows + test_rows
    y = np.arange(n) % 2
    radius = np.sqrt(rng.uniform(0.005, 1.0, n))
    angle = 2 * np.pi * turns * radius + np.pi * y
    X = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + rng.normal(0.0, noise, (n, 2))
    return Dataset("spiral", X[:rows], y[:rows], X[rows:], y[rows:], task="classification")


def digits(*, test_share: float = 0.2, seed: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (0 to 16), a fifth of them for testing.

    Raises
    ------
    DataError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"the data set 'digits' comes with scikit-learn: pip install scikit-learn ({error})") from None
    data = load_digits()
    X, y = data.images.astype(np.uint8), data.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = np.split(order, [round(test_share * len(y))])
    return Dataset("digits", X[train], y[train], X[test], y[test], task="classification", pixel_max=16.0)
