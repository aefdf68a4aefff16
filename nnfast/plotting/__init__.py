"""Pictures of trainings and models, drawn with matplotlib (``pip install "nnfast[plot]"``).

Each function returns a :class:`matplotlib.figure.Figure` and, with ``path=``, saves it in the format that
the file's ending names. The figures belong to nobody's ``pyplot``: no window opens and no backend is
switched. A notebook shows a figure that is the last value of a cell.
"""

from __future__ import annotations

from .boundary import decision_boundary
from .curves import history
from .diagram import network
from .functions import activation
from .matrix import confusion_matrix
from .surface import loss_surface
from .weight_path import WeightPath

__all__ = [
    "WeightPath",
    "activation",
    "confusion_matrix",
    "decision_boundary",
    "history",
    "loss_surface",
    "network",
]
