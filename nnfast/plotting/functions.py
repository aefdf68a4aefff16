"""Activation functions with their derivatives."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from .. import activations
from ..activations import Activation
from ..backends import formulas
from .style import COLOURS, PathArgument, finish, grid_of_axes, tidy


def activation(
    names: str | Activation | Iterable[str | Activation] | None = None,
    path: PathArgument = None,
    *,
    limits: tuple[float, float] = (-5.0, 5.0),
) -> Any:
    """Draw activation functions and their derivatives, one panel each.

    Parameters
    ----------
    names : str, Activation or iterable of them, optional
        Which ones, such as ``"gelu"`` or ``"leaky_relu(0.2)"``; by default all but softmax, which is no
        function of one number.
    path : str or Path, optional
        Where to save the picture.
    limits : tuple of float
        Ends of the horizontal axis.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If a name is unknown, or `limits` are not two increasing numbers.
    """
    if names is None:
        names = [name for name in activations.names() if name != "softmax"]
    elif isinstance(names, (str, Activation)):
        names = [names]
    rows = [activations.get(name) for name in names]
    if not rows:
        raise ValueError("names is empty: there is no activation to draw")
    if any(row.name == "softmax" for row in rows):
        raise ValueError("softmax is a function of a whole row, not of one number: it cannot be drawn as a curve")
    low, high = (float(limit) for limit in limits)
    if not low < high or not np.isfinite([low, high]).all():
        raise ValueError(f"limits must be two increasing finite numbers, got {limits!r}")
    figure, axes = grid_of_axes(len(rows), 3.6, 3.0, columns=4)
    for ax, row in zip(axes, rows, strict=True):
        z, value, slope = sample(row, low, high)
        ax.axhline(0.0, color="#999999", linewidth=0.8)
        ax.axvline(0.0, color="#999999", linewidth=0.8)
        ax.plot(z, value, color=COLOURS[0], linewidth=2.0, label="f(z)")
        ax.plot(z, slope, "--", color=COLOURS[1], linewidth=1.6, label="f ′(z)")
        ax.set_title(str(row))
        ax.set_xlabel("z")
        ax.set_xlim(low, high)
        tidy(ax)
        ax.legend(frameon=False, loc="upper left")
    return finish(figure, path)


def sample(row: Activation, low: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, values and slopes, with NaN where the slope jumps, so that no line joins its two sides."""
    value, slope = formulas.ACTIVATIONS[row.name]
    ends = [low, *(kink for kink in row.kinks if low < kink < high), high]
    parts: list[np.ndarray] = []
    for start, end in pairwise(ends):
        inside = np.linspace(start, end, 401)
        # Just beside the kink, where the side is beyond doubt: the slope may come from the output
        nudge = 1e-9 * (high - low)
        parts += [np.clip(inside, start + nudge, end - nudge), np.array([np.nan])]
    z = np.concatenate(parts[:-1])
    y = value(np, z, row.alpha)
    d = slope(np, y if row.saves == "output" else z, row.alpha)
    broken = np.isnan(z)
    return z, np.where(broken, np.nan, y), np.where(broken, np.nan, d)
