"""What all pictures share: making a figure without pyplot, saving it whole, the colours."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing

# Okabe and Ito, "Color universal design" (2008): told apart with every kind of colour blindness
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#666666"

PathArgument = str | PathLike[str] | None


def new_figure(width: float, height: float) -> Any:
    """A figure of this size in inches, which pyplot knows nothing of.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'pictures need matplotlib: pip install "nnfast[plot]" ({error})') from error
    return Figure(figsize=(width, height), layout="constrained")


def grid_of_axes(count: int, width: float, height: float, columns: int = 3) -> tuple[Any, list[Any]]:
    """A figure with `count` axes of this size each, row by row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = new_figure(width * columns, height * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def tidy(axes: Any) -> None:
    """A light grid behind the data, no frame above and on the right."""
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def finish(figure: Any, path: PathArgument) -> Any:
    """Save the figure where a path is given, so that the file appears whole or not at all; returns it.

    Raises
    ------
    ValueError
        If matplotlib does not know the file's ending.
    OSError
        If the folder is missing or cannot be written to.
    """
    if path is None:
        return figure
    target = Path(path).expanduser()
    known = figure.canvas.get_supported_filetypes()
    kind = target.suffix.lower().removeprefix(".")
    if kind not in known:
        raise ValueError(
            f"cannot save a picture as {str(path)!r}: its ending must be one of {', '.join(sorted(known))}"
        )
    with replacing(target) as temporary:
        figure.savefig(temporary, format=kind, dpi=150, facecolor="white")
    return figure


def class_labels(y: Any, what: str = "y") -> np.ndarray:
    """Integer labels (n,) from labels (n,), (n, 1) or one-hot rows (n, C)."""
    y = np.asarray(y)
    if y.dtype.kind not in "biuf":
        raise TypeError(f"{what} must hold the numbers of the classes, not dtype {y.dtype}")
    if y.ndim == 2 and y.shape[1] > 1:
        return y.argmax(axis=1)
    labels = y.reshape(-1)
    if y.ndim not in (1, 2) or not np.isfinite(labels).all() or (labels < 0).any() or (labels % 1 != 0).any():
        raise ValueError(f"{what} must hold the numbers of the classes, from 0, as (n,) or one-hot as (n, C)")
    return labels.astype(np.int64)
