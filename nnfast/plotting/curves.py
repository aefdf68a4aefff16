"""Loss and metric curves of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .style import COLOURS, GREY, PathArgument, finish, grid_of_axes, tidy

_TITLES = {
    "lr": "learning rate",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "rmse": "root mean squared error",
    "r2": "R²",
    "f1": "F1",
    "roc_auc": "ROC AUC",
}
_NOT_DRAWN = ("time", "seconds", "samples_per_second", "epoch")


def history(history: Mapping[str, Any], path: PathArgument = None) -> Any:
    """Draw the curves of a training: one panel for the loss, one for each metric, one for the learning rate.

    Parameters
    ----------
    history : mapping of str to sequence of float
        What ``fit`` returned: values by epoch. ``"val_..."`` joins the panel of the name behind it. Epochs
        are numbered from its attribute ``epochs``, or from 1.
    path : str or Path, optional
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    curves = {name: np.asarray(values, np.float64).reshape(-1) for name, values in history.items()}
    curves = {name: v for name, v in curves.items() if np.isfinite(v).any() and not name.endswith(_NOT_DRAWN)}
    panels = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
    if not panels:
        raise ValueError(f"the history holds no curve with a finite value; it has {', '.join(history) or 'no names'}")
    panels.sort(key=lambda name: (name != "loss", name == "lr"))
    given = getattr(history, "epochs", None)
    figure, axes = grid_of_axes(len(panels), 5.0, 3.6)
    for ax, panel in zip(axes, panels, strict=True):
        both = [
            (label, curves[name])
            for label, name in (("training", panel), ("validation", f"val_{panel}"))
            if name in curves
        ]
        for (label, values), colour, style in zip(both, COLOURS, ("-", "--"), strict=False):
            epochs = (
                np.asarray(given) if given is not None and len(given) == len(values) else np.arange(len(values)) + 1
            )
            # Few epochs are read as points, and a single one is nothing but a point
            marker = ("o" if style == "-" else "s") if len(values) <= 30 else None
            colour = GREY if panel == "lr" else COLOURS[label == "validation"]
            ax.plot(epochs, values, style, color=colour, marker=marker, markersize=4, linewidth=1.6, label=label)
        title = _TITLES.get(panel, panel.replace("_", " "))
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.set_ylabel(title)
        ax.xaxis.get_major_locator().set_params(integer=True)
        _scale(ax, panel, np.concatenate([values for _, values in both]))
        tidy(ax)
        if len(both) > 1:
            ax.legend(frameon=False)
    return finish(figure, path)


def _scale(ax: Any, panel: str, values: np.ndarray) -> None:
    """A logarithmic axis for losses and rates that fall over decades."""
    values = values[np.isfinite(values)]
    if values.min() <= 0 or values.max() <= 50 * values.min():
        return
    # A cosine ends next to zero: its last point alone would take up most of a logarithmic axis
    if "loss" in panel or (panel == "lr" and values.max() < 1e5 * values.min()):
        ax.set_yscale("log")
