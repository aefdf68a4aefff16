"""A diagram of a network: its layers as columns of units, joined by their connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from ..errors import NotBuiltError
from .style import COLOURS, GREY, PathArgument, finish, new_figure

_SPACE = 1.0  # between two units of a column
_WIDTH = 3.2  # between two columns


@dataclass
class Column:
    """Units that are drawn one above the other, and what is written under them."""

    title: str
    units: int | None
    notes: list[str] = field(default_factory=list)


def network(model: Any, path: PathArgument = None, *, max_units: int = 12) -> Any:
    """Draw the layers of a network, their sizes and their connections.

    Parameters
    ----------
    model : Sequential or NeuralNetwork
        What to draw. Each dense layer is a column; other layers are noted under the one that they follow.
    path : str or Path, optional
        Where to save the picture.
    max_units : int
        Of a wider layer only the first and the last few units are drawn, with dots between them.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the model has no layers, or `max_units` is below 2.
    TypeError
        If `model` has neither ``layers`` nor the sizes of a ``NeuralNetwork``.
    """
    if max_units < 2:
        raise ValueError(f"max_units must be at least 2, got {max_units}")
    columns = _columns(model)
    figure = new_figure(max(4.5, 1.9 * len(columns) + 0.6), 5.2)
    ax = figure.add_subplot()
    heights = [_heights(column.units, max_units) for column in columns]
    _draw_connections(ax, heights)
    for k, (ys, dots) in enumerate(heights):
        colour = GREY if k == 0 else COLOURS[1] if k == len(columns) - 1 else COLOURS[0]
        ax.scatter(
            np.full(len(ys), k * _WIDTH), ys, s=170.0, color=colour, edgecolors="white", linewidths=1.2, zorder=3
        )
        if dots:
            ax.scatter(np.full(3, k * _WIDTH), (-0.28, 0.0, 0.28), s=9.0, color=GREY, zorder=3)
    top = max(max(ys) for ys, _ in heights)
    for k, column in enumerate(columns):
        ax.text(k * _WIDTH, top + 0.75, column.title, ha="center", va="bottom", fontsize=11, fontweight="bold")
        size = "inputs" if column.units is None else f"{column.units:,}"
        ax.text(k * _WIDTH, -top - 0.75, "\n".join([size, *column.notes]), ha="center", va="top", fontsize=10)
    lines = max(len(column.notes) for column in columns) + 1
    ax.set_xlim(-0.5 * _WIDTH, (len(columns) - 0.5) * _WIDTH)
    ax.set_ylim(-top - 1.0 - 0.11 * (top + 2.0) * lines, top + 0.9 + 0.12 * (top + 2.0))
    ax.axis("off")
    count = _parameter_count(model)
    if count is not None:
        ax.set_title(f"{count:,} parameters", fontsize=10, color=GREY)
    return finish(figure, path)


def _columns(model: Any) -> list[Column]:
    if all(hasattr(model, name) for name in ("input_size", "hidden_size", "output_size")):
        sizes = (model.input_size, model.hidden_size, model.output_size)
        notes: tuple[list[str], ...] = ([], ["sigmoid"], ["sigmoid"])
        return [Column(t, n, s) for t, n, s in zip(("input", "hidden", "output"), sizes, notes, strict=True)]
    if not hasattr(model, "layers"):
        raise TypeError(f"model must have layers, or be a NeuralNetwork: {type(model).__name__}")
    layers = list(model.layers)
    if not layers:
        raise ValueError("the model has no layers to draw")
    columns = [Column("input", _input_units(model, layers))]
    for layer in layers:
        kind = type(layer).__name__
        if hasattr(layer, "units"):
            notes_here = [] if _activation(layer) == "identity" else [_activation(layer)]
            columns.append(Column(getattr(layer, "name", None) or kind.lower(), int(layer.units), notes_here))
        else:
            columns[-1].notes.append(_note(layer, kind))
    return columns


def _activation(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    return "identity" if activation is None else str(activation)


def _note(layer: Any, kind: str) -> str:
    if hasattr(layer, "activation"):
        return _activation(layer)
    words = "".join(f" {c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(kind))
    return f"{words} {layer.rate:g}" if hasattr(layer, "rate") else words


def _input_units(model: Any, layers: list[Any]) -> int | None:
    """Numbers in a row of input; ``None`` where the model is not built and its first layer does not say."""
    for owner in (model, layers[0]):
        try:
            shape = getattr(owner, "in_shape", None)
        except NotBuiltError:
            continue
        if shape is not None:
            return prod(shape)
    return None


def _weights(model: Any) -> dict[str, np.ndarray]:
    """The model's arrays by name; empty where it has none yet."""
    try:
        return dict(model.get_weights())
    except (AttributeError, NotBuiltError):
        return {}


def _parameter_count(model: Any) -> int | None:
    names = ("weights_1", "bias_1", "weights_2", "bias_2")
    if all(hasattr(model, name) for name in names):
        return sum(getattr(model, name).size for name in names)
    if not _weights(model) or not hasattr(model, "get_flat_weights"):
        return None
    return int(np.size(model.get_flat_weights()))


def _heights(units: int | None, max_units: int) -> tuple[np.ndarray, bool]:
    """Where the units of a column stand, and whether dots stand in the middle for those left out."""
    if units is not None and units <= max_units:
        return _SPACE * (np.arange(units) - 0.5 * (units - 1)), False
    side = max(min(max_units, 2 if units is None else max_units) // 2, 1)
    above = _SPACE * (np.arange(side) + 1.0)
    return np.concatenate((-above[::-1], above)), True


def _draw_connections(ax: Any, heights: list[tuple[np.ndarray, bool]]) -> None:
    from matplotlib.collections import LineCollection

    for k, ((left, _), (right, _)) in enumerate(pairwise(heights)):
        lines = [((k * _WIDTH, a), ((k + 1) * _WIDTH, b)) for a in left for b in right]
        # The more lines cross, the fainter each of them
        alpha = float(np.clip(6.0 / len(lines) ** 0.5, 0.25, 0.9))
        ax.add_collection(LineCollection(lines, colors=GREY, linewidths=0.6, alpha=alpha, zorder=1))
