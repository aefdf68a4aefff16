"""A confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import metrics
from .style import PathArgument, class_labels, finish, new_figure

_MAX_WITH_NUMBERS = 20


def confusion_matrix(
    y_true: Any,
    y_pred: Any,
    labels: Sequence[Any] | None = None,
    path: PathArgument = None,
    *,
    sample_weight: Any = None,
) -> Any:
    """Draw how many rows of each true class were predicted as which class.

    The colour is the share of the true class, so that rare classes are as visible as frequent ones.

    Parameters
    ----------
    y_true : array_like, (n,) or one-hot (n, C)
        True classes.
    y_pred : array_like, (n,) or (n, C)
        Predicted classes as integers, or probabilities.
    labels : sequence of str, optional
        Names of the classes, from 0.
    path : str or Path, optional
        Where to save the picture.
    sample_weight : array_like, (n,), optional
        Weights to add up in place of counts.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If shapes or labels do not fit, or there are fewer names than classes.
    """
    pred = np.asarray(y_pred)
    if pred.ndim == 1 and pred.dtype.kind == "f" and (pred % 1 == 0).all() and (pred > 1).any():
        pred = class_labels(pred, "y_pred")  # labels that went through a float array
    classes = None if labels is None or pred.dtype.kind not in "biu" else len(labels)
    matrix = metrics.confusion_matrix(y_true, pred, sample_weight, classes=classes)
    count = len(matrix)
    if labels is not None and len(labels) != count:
        raise ValueError(f"there are {count} classes and {len(labels)} labels")
    names = [str(label) for label in (range(count) if labels is None else labels)]
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)

    with_numbers = count <= _MAX_WITH_NUMBERS
    size = min(max(3.2, 0.62 * count + 1.8), 14.0 if with_numbers else 9.0)
    figure = new_figure(size + 1.0, size)
    ax = figure.add_subplot()
    image = ax.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    bar = figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class")
    step = 1 if with_numbers else -(-count // 25)
    ticks = range(0, count, step)
    turned = max(len(name) for name in names) > 3
    ax.set_xticks(ticks, [names[i] for i in ticks], rotation=45 if turned else 0, ha="right" if turned else "center")
    ax.set_yticks(ticks, [names[i] for i in ticks])
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    total = matrix.sum()
    ax.set_title(f"accuracy {np.trace(matrix) / total:.1%}" if total > 0 else "no weight")
    if with_numbers:
        for (i, j), value in np.ndenumerate(matrix):
            colour = "white" if share[i, j] > 0.55 else ("#aaaaaa" if value == 0 else "black")
            text = f"{value:.0f}" if sample_weight is None else f"{value:.3g}"
            ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    return finish(figure, path)
