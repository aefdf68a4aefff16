"""The loss surface around trained weights, with the path of gradient descent on it.

Li, Xu, Taylor, Studer, Goldstein: "Visualizing the loss landscape of neural nets" (2018): a plane through
the final weights, spanned by the two principal directions of the path that training took, or, where no
path was recorded, by two random directions scaled filter by filter to the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import NonFiniteError
from .style import COLOURS, PathArgument, finish, new_figure

LossAt = Callable[[np.ndarray], float]


def loss_surface(
    model: Any,
    X: Any = None,
    y: Any = None,
    *,
    loss: Any = None,
    path_of_weights: Any = None,
    loss_at: LossAt | None = None,
    kind: str = "contour",
    resolution: int = 25,
    span: float = 1.0,
    max_rows: int = 2048,
    seed: int = 0,
    path: PathArgument = None,
) -> Any:
    """Draw the loss on a plane through the weights of a model, and the way that training took to them.

    Parameters
    ----------
    model : Sequential or None
        The trained model; its weights are as before afterwards. ``None`` needs `loss_at` and a path.
    X, y : array_like
        Data on which the loss is computed.
    loss : str or Loss, optional
        The loss, as for ``model.evaluate``.
    path_of_weights : WeightPath or array_like, (points, parameters), optional
        Weights during training, the last ones in the middle of the picture's interest.
    loss_at : callable, optional
        ``flat_weights -> loss``, in place of ``model.evaluate`` on `X` and `y`.
    kind : {"contour", "3d"}
        A map with lines of equal loss, or a relief.
    resolution : int
        Points along each side; the loss is computed ``resolution**2`` times.
    span : float
        Half the side of the plane in units of the weights' own length, where there is no path.
    max_rows : int
        Of more rows of data, as many are taken at random.
    seed : int
        Of the random directions and rows.
    path : str or Path, optional
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure
        The share in an axis label is how much of the path's squared extent lies along that direction.

    Raises
    ------
    ValueError
        If there is no data and no `loss_at`, a shape does not fit, or no point has a finite loss.
    """
    if kind not in ("contour", "3d"):
        raise ValueError(f"kind must be 'contour' or '3d', got {kind!r}")
    if resolution < 3 or not span > 0 or max_rows < 1:
        raise ValueError(f"resolution >= 3, span > 0, max_rows >= 1: got {resolution}, {span}, {max_rows}")
    walked = _walked(path_of_weights)
    if model is None and (walked is None or loss_at is None):
        raise ValueError("without a model, loss_at and path_of_weights are needed")
    rng = np.random.default_rng(seed)
    start = None if model is None else np.array(model.get_flat_weights())
    centre = np.asarray(start if walked is None else walked[-1], np.float64)
    if start is not None and start.shape != centre.shape:
        raise ValueError(f"the path has {centre.size} weights at each point, the model {start.size}")

    shapes = _shapes(model, centre.size)
    if walked is None:
        first, second = (filter_normalised(centre, shapes, rng) for _ in range(2))
        names = ["random direction 1", "random direction 2"]
        points = np.zeros((1, 2))
        edges = [(-span, span), (-span, span)]
    else:
        first, second, shares = principal_directions(walked, shapes, rng)
        names = [f"direction {i + 1} of the path ({share:.0%})" for i, share in enumerate(shares)]
        points = (walked - centre) @ np.stack((first, second), axis=1)
        edges = [_edges(points[:, i], float(np.ptp(points[:, 0]))) for i in (0, 1)]
    across, up = (np.linspace(*edge, resolution) for edge in edges)

    def on_plane(a: float, b: float) -> float:
        return evaluate(centre + a * first + b * second)

    evaluate = loss_at or _evaluator(model, X, y, loss, max_rows, rng)
    try:
        height = np.array([[_value(on_plane, a, b) for a in across] for b in up])
        if not np.isfinite(height).any():
            raise ValueError("the loss is finite nowhere on the plane")
        # Thinned from its end backwards, so that the trained weights stay the last point
        along = points[:: -max(len(points) // 60, 1)][::-1] if kind == "3d" else points[:0]
        level = np.array([_value(on_plane, a, b) for a, b in along])
    finally:
        if start is not None:
            model.set_flat_weights(start)

    figure = new_figure(7.0, 5.6)
    draw = _draw_contour if kind == "contour" else _draw_relief
    ax = draw(figure, across, up, height, points if kind == "contour" else along, level)
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    return finish(figure, path)


# ---- directions ------------------------------------------------------------------------------------------
def filter_normalised(weights: np.ndarray, shapes: list[tuple[int, ...]], rng: np.random.Generator) -> np.ndarray:
    """A random direction in which each unit's incoming weights have the length that they have in `weights`.

    Parameters of one axis (biases, normalisation) stay where they are, as in the paper's section 4.
    """
    direction = np.zeros(weights.size)
    start = 0
    for shape in shapes:
        size = int(np.prod(shape))
        if len(shape) > 1:
            drawn = rng.standard_normal((size // shape[-1], shape[-1]))
            kernel = weights[start : start + size].reshape(drawn.shape)
            drawn *= np.linalg.norm(kernel, axis=0) / np.maximum(np.linalg.norm(drawn, axis=0), 1e-30)
            direction[start : start + size] = drawn.ravel()
        start += size
    return direction


def principal_directions(
    walked: np.ndarray, shapes: list[tuple[int, ...]], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """The two orthonormal directions that hold most of the path, and the share of it that each holds.

    Where the path is a straight line, the second one is random.
    """
    steps = walked - walked[-1]
    # Few points in a space of many weights: the small Gram matrix has the same singular values
    values, vectors = np.linalg.eigh(steps @ steps.T)
    total = values.sum()
    if not total > 0:
        raise ValueError("the weights did not move along path_of_weights: there is no direction to draw")
    first = steps.T @ vectors[:, -1] / np.sqrt(values[-1])
    if values[-2] > 1e-10 * values[-1]:
        second = steps.T @ vectors[:, -2] / np.sqrt(values[-2])
        share = float(values[-2] / total)
    else:
        second, share = filter_normalised(walked[-1], shapes, rng), 0.0
        if not second.any():
            second = rng.standard_normal(first.size)
    second = second - (second @ first) * first
    second /= max(np.linalg.norm(second), 1e-30)
    # The sign of an eigenvector is arbitrary; training is drawn from left to right, from below upwards
    first, second = (-d if steps[0] @ d > 0 else d for d in (first, second))
    return first, second, (float(values[-1] / total), share)


def _edges(coordinates: np.ndarray, scale: float) -> tuple[float, float]:
    """Ends of an axis that leave room around the path."""
    low, high = float(coordinates.min()), float(coordinates.max())
    room = max(0.3 * (high - low), 0.15 * scale)
    return low - room, high + room


def _walked(path_of_weights: Any) -> np.ndarray | None:
    if path_of_weights is None:
        return None
    walked = np.asarray(getattr(path_of_weights, "weights", path_of_weights), np.float64)
    if walked.ndim != 2 or len(walked) < 2:
        raise ValueError(f"path_of_weights must have shape (points, parameters) with 2 points or more: {walked.shape}")
    if not np.isfinite(walked).all():
        raise ValueError("path_of_weights holds values that are not finite")
    return walked


def _shapes(model: Any, size: int) -> list[tuple[int, ...]]:
    """Shapes of the parameters in the order of the flat weights; one column where they are not known."""
    shapes: list[tuple[int, ...]] = []
    for array in dict(model.get_weights()).values() if hasattr(model, "get_weights") else ():
        if sum(int(np.prod(shape)) for shape in shapes) == size:
            break  # what follows are buffers, which are not among the flat weights
        shapes.append(np.shape(array))
    return shapes if sum(int(np.prod(shape)) for shape in shapes) == size else [(size, 1)]


# ---- the loss --------------------------------------------------------------------------------------------
def _evaluator(model: Any, X: Any, y: Any, loss: Any, max_rows: int, rng: np.random.Generator) -> LossAt:
    if X is None or y is None:
        raise ValueError("a loss surface needs X and y, or loss_at")
    X, y = np.asarray(X), np.asarray(y)
    if len(X) != len(y):
        raise ValueError(f"X has {len(X)} rows and y has {len(y)}")
    if len(X) > max_rows:
        rows = np.sort(rng.choice(len(X), max_rows, replace=False))
        X, y = X[rows], y[rows]
    options = {} if loss is None else {"loss": loss}

    def loss_at(weights: np.ndarray) -> float:
        model.set_flat_weights(weights)
        return float(model.evaluate(X, y, **options)["loss"])

    return loss_at


def _value(on_plane: Callable[[float, float], float], a: float, b: float) -> float:
    try:
        return float(on_plane(a, b))
    except NonFiniteError:
        return float("nan")


# ---- drawing ---------------------------------------------------------------------------------------------
def _norm(height: np.ndarray) -> tuple[Any, np.ndarray]:
    """Colours and lines of the map: by decades where the loss spans them."""
    from matplotlib.colors import LogNorm, Normalize

    finite = height[np.isfinite(height)]
    low, high = float(finite.min()), float(finite.max())
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-6
    if low > 0 and high > 10 * low:
        levels = np.geomspace(low, high, 25)
        levels[[0, -1]] = low, high  # the rounding of geomspace would leave a hole at the extremes
        return LogNorm(low, high), levels
    return Normalize(low, high), np.linspace(low, high, 25)


def _draw_contour(
    figure: Any, across: np.ndarray, up: np.ndarray, height: np.ndarray, points: np.ndarray, level: np.ndarray
) -> Any:
    from matplotlib.patheffects import Normal, Stroke
    from matplotlib.ticker import MaxNLocator

    ax = figure.add_subplot()
    norm, levels = _norm(height)
    masked = np.ma.masked_invalid(height)
    filled = ax.contourf(across, up, masked, levels=levels, norm=norm, cmap="viridis")
    ax.contour(across, up, masked, levels=levels[::2], norm=norm, colors="white", linewidths=0.5, alpha=0.5)
    logarithmic = type(norm).__name__ == "LogNorm"
    ticks = np.geomspace(levels[0], levels[-1], 6) if logarithmic else MaxNLocator(6)
    bar = figure.colorbar(filled, ax=ax, pad=0.02, ticks=ticks, format="%.3g")
    bar.minorticks_off()
    bar.set_label("loss")
    if len(points) > 1:
        outlined = [Stroke(linewidth=3.4, foreground="black"), Normal()]
        marker = "o" if len(points) <= 60 else None
        style = {"color": "white", "linewidth": 1.8, "marker": marker, "markersize": 3.0}
        ax.plot(points[:, 0], points[:, 1], path_effects=outlined, label="path of training", **style)
        ax.plot(*points[0], "o", color=COLOURS[1], markeredgecolor="white", markersize=9, label="start")
    ax.plot(*points[-1], "*", color=COLOURS[4], markeredgecolor="black", markersize=16, label="trained weights")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=3, frameon=False)
    return ax


def _draw_relief(
    figure: Any, across: np.ndarray, up: np.ndarray, height: np.ndarray, points: np.ndarray, level: np.ndarray
) -> Any:
    from matplotlib.ticker import MaxNLocator

    # Constrained layout does not know how far the labels of a relief reach
    figure.set_layout_engine("none")
    ax = figure.add_axes((0.02, 0.06, 0.84, 0.90), projection="3d", computed_zorder=False)
    norm, _ = _norm(height)
    a, b = np.meshgrid(across, up)
    ax.plot_surface(a, b, height, cmap="viridis", norm=norm, rcount=100, ccount=100, linewidth=0, alpha=0.9)
    lift = 0.01 * float(np.nanmax(height) - np.nanmin(height))
    if len(points) > 1:
        style = {"color": "black", "linewidth": 2.0, "marker": "o", "markersize": 2.5, "label": "path of training"}
        ax.plot(points[:, 0], points[:, 1], level + lift, **style)
        style = {"color": COLOURS[1], "markeredgecolor": "white", "markersize": 9, "label": "start"}
        ax.plot(*points[0], level[0] + lift, "o", **style)
    style = {"color": COLOURS[4], "markeredgecolor": "black", "markersize": 16, "label": "trained weights"}
    ax.plot(*points[-1], level[-1] + lift, "*", **style)
    ax.set_zlabel("loss", labelpad=8)
    ax.xaxis.labelpad = ax.yaxis.labelpad = 10
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_major_locator(MaxNLocator(5))
    ax.view_init(elev=35, azim=-60)
    ax.legend(loc="upper left", frameon=False)
    return ax
