"""The decision boundary of a classifier of points in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .style import COLOURS, MARKERS, PathArgument, class_labels, finish, new_figure

_MAX_POINTS = 5000


def decision_boundary(
    model: Any,
    X: Any,
    y: Any,
    path: PathArgument = None,
    *,
    labels: Sequence[Any] | None = None,
    resolution: int = 300,
) -> Any:
    """Draw which class a model gives each point of the plane, with the data on top.

    The strength of the colour is the probability of the class; the lines are where the most probable class
    changes.

    Parameters
    ----------
    model : object or callable
        Something with ``predict_proba``, ``predict`` or ``feedforward``, or a function of (m, 2) points. It
        gives (m, C) probabilities, (m,) or (m, 1) probabilities of class 1, or (m,) integer labels.
    X : array_like, (n, 2)
        The data.
    y : array_like, (n,) or one-hot (n, C)
        Their classes.
    path : str or Path, optional
        Where to save the picture.
    labels : sequence of str, optional
        Names of the classes.
    resolution : int
        Points along each side of the grid.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the data are not points of the plane, or the model's output does not fit.
    """
    X = np.asarray(X)
    if X.ndim != 2 or X.shape[1] != 2 or len(X) == 0:
        raise ValueError(f"a decision boundary needs X of shape (n, 2) with some rows, got {X.shape}")
    if X.dtype.kind not in "biuf" or not np.isfinite(X).all():
        raise ValueError("X must hold finite real numbers")
    true = class_labels(y)
    if len(true) != len(X):
        raise ValueError(f"X has {len(X)} rows and y has {len(true)}")
    if resolution < 2:
        raise ValueError(f"resolution must be at least 2, got {resolution}")

    low, high = X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64)
    margin = np.where(high > low, 0.08 * (high - low), 1.0)
    low, high = low - margin, high + margin
    across, up = (np.linspace(low[i], high[i], resolution) for i in (0, 1))
    grid = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
    # The points come in the type of the data: some models convert nothing
    points = grid.astype(X.dtype) if X.dtype.kind == "f" else grid
    output = np.asarray(_function(model)(points))
    if hasattr(model, "predict_classes") and not (output.min() >= 0.0 and output.max() <= 1.0):
        output = np.asarray(model.predict_classes(points))  # scores, of which the model knows the threshold
    probability = _probabilities(output, len(grid), int(true.max()) + 1)
    classes = probability.shape[1]
    if labels is not None and len(labels) != classes:
        raise ValueError(f"there are {classes} classes and {len(labels)} labels")

    figure = new_figure(6.4, 5.4)
    ax = figure.add_subplot()
    colours = _class_colours(classes)
    pale = 0.45 * colours + 0.55
    picture = np.clip(probability @ pale, 0.0, 1.0).reshape(resolution, resolution, 3)
    half = 0.5 * (high - low) / (resolution - 1)
    extent = (low[0] - half[0], high[0] + half[0], low[1] - half[1], high[1] + half[1])
    ax.imshow(picture, origin="lower", extent=extent, aspect="auto", interpolation="bilinear")
    _draw_lines(ax, across, up, probability.reshape(resolution, resolution, classes))

    shown = np.arange(len(X))
    if len(X) > _MAX_POINTS:
        shown = np.random.default_rng(0).choice(len(X), _MAX_POINTS, replace=False)
    for c in range(classes):
        rows = shown[true[shown] == c]
        name = f"class {c}" if labels is None else str(labels[c])
        size = 26.0 if len(shown) < 600 else 10.0
        style = {"marker": MARKERS[c % len(MARKERS)], "s": size, "edgecolors": "white", "linewidths": 0.5}
        ax.scatter(X[rows, 0], X[rows, 1], color=colours[c], label=name, **style)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    ax.set_xlabel("first feature")
    ax.set_ylabel("second feature")
    if classes <= 10:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return finish(figure, path)


def _function(model: Any) -> Any:
    for name in ("predict_proba", "predict", "feedforward"):
        if hasattr(model, name):
            return getattr(model, name)
    if callable(model):
        return model
    raise TypeError(f"model must have predict_proba, predict or feedforward, or be a function: {type(model).__name__}")


def _probabilities(output: Any, n: int, at_least: int) -> np.ndarray:
    """What the model gave, as (n, C) with rows that sum to one."""
    output = np.asarray(output)
    if output.ndim == 2 and output.shape[1] == 1:
        output = output[:, 0]
    if output.ndim not in (1, 2) or len(output) != n:
        raise ValueError(f"the model gave shape {output.shape} for {n} points; expected ({n},) or ({n}, C)")
    if output.ndim == 1 and output.dtype.kind in "biu":
        return np.eye(max(int(output.max()) + 1, at_least, 2))[output.astype(np.int64)]
    output = output.astype(np.float64)
    if not np.isfinite(output).all():
        raise ValueError("the model gave values that are not finite")
    if output.ndim == 1:
        output = np.stack((1.0 - output, output), axis=1)
    if output.shape[1] < at_least:
        raise ValueError(f"y has a class {at_least - 1}, but the model gives {output.shape[1]} classes")
    if output.min() < 0.0 or not np.allclose(output.sum(axis=1), 1.0, atol=1e-3):
        # Scores that are no probabilities still have a largest one
        return np.eye(output.shape[1])[output.argmax(axis=1)]
    return output


def _class_colours(classes: int) -> np.ndarray:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    if classes <= len(COLOURS):
        return np.array([to_rgb(colour) for colour in COLOURS[:classes]])
    return colormaps["turbo"](np.linspace(0.05, 0.95, classes))[:, :3]


def _draw_lines(ax: Any, across: np.ndarray, up: np.ndarray, probability: np.ndarray) -> None:
    for c in range(probability.shape[2]):
        others = np.delete(probability, c, axis=2).max(axis=2)
        lead = probability[:, :, c] - others
        if lead.min() < 0.0 < lead.max():
            ax.contour(across, up, lead, levels=[0.0], colors="black", linewidths=1.2)
            if probability.shape[2] == 2:
                return
