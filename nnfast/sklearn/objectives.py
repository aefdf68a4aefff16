"""scikit-learn's losses as nnfast's: the factors between them, and what else scikit-learn's values have.

scikit-learn's loss is a mean over a batch's rows, plus ``alpha / 2 * |W|**2`` over the sum of the rows' weights, of all
weights but the biases. Of several outputs the squared error is the mean, but its gradient is that of the sum, and the
other losses are sums. nnfast's losses are means over all elements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, xlogy

from ..losses import BinaryCrossEntropy, CrossEntropy, Loss, MeanSquaredError, Poisson

__all__ = ["LINKS", "Objective", "objective"]

#: nnfast's names of what scikit-learn calls the output's activation
LINKS = {"softmax": "softmax", "logistic": "sigmoid", "exp": "exp", "identity": None}

_Arrays = Callable[[], np.ndarray]
# Logits from which on 1 - p, of a probability p in float64, is rounded by more than 1e-9 of itself
_ROUNDED = 13.0


@dataclass(frozen=True)
class Objective:
    """A loss of nnfast, and what its value and its gradient are multiplied by to be scikit-learn's.

    Attributes
    ----------
    loss : Loss
    value, gradient : float
        The factors.
    correction : callable, optional
        What is added to the value, from it, the outputs and targets of a batch (as functions) and its weights.
    """

    loss: Loss
    value: float = 1.0
    gradient: float = 1.0
    correction: Callable[[float, _Arrays, _Arrays, Any], float] | None = None

    def of(self, value: float, outputs: _Arrays, targets: _Arrays, weight: Any) -> float:
        """scikit-learn's loss where nnfast's is `value`."""
        value *= self.value
        return value if self.correction is None else value + self.correction(value, outputs, targets, weight)


def _largest(z: np.ndarray) -> float:
    """The largest loss of an element: scikit-learn takes no probability for less than the dtype's epsilon."""
    return float(-np.log(np.finfo(z.dtype).eps))


def _beyond_softmax(value: float, outputs: _Arrays, targets: _Arrays, weight: Any) -> float:
    """Minus what the losses of rows are above the largest that scikit-learn knows."""
    z = outputs()
    largest = _largest(z)
    # A batch's mean may tell that no row can be that far off
    if weight is None and value * len(z) < largest:
        return 0.0
    labels = targets()
    labels = labels if labels.ndim == 1 else labels.argmax(axis=1)
    of_label, top = z[np.arange(len(z)), labels], _row_maxima(z)
    # The sum of exponentials is that of the largest to `c` times as much
    far = np.flatnonzero(top - of_label > largest - np.log(z.shape[1]))
    if not len(far):
        return 0.0
    top = top[far]
    of_row = np.log(np.exp(z[far] - top[:, None]).sum(axis=1)) + top - of_label[far]
    beyond = np.zeros(len(z))
    beyond[far] = np.maximum(of_row - largest, 0.0)
    return -float(np.average(beyond, weights=weight))


def _row_maxima(z: np.ndarray) -> np.ndarray:
    """``z.max(axis=1)``, which NumPy does slowly where rows are short."""
    if z.shape[1] > 64:
        return np.asarray(z.max(axis=1))
    top = z[:, 0].copy()
    for j in range(1, z.shape[1]):
        np.maximum(top, z[:, j], out=top)
    return top


def _beyond_sigmoid(value: float, outputs: _Arrays, targets: _Arrays, weight: Any) -> float:
    """The same for yes/no questions, summed over the columns.

    A probability near 1 that should be 0 is wrong by as much as scikit-learn's, which takes it from 1, is rounded.
    """
    z = outputs()
    if weight is None and value * len(z) < _ROUNDED:
        return 0.0
    far = np.flatnonzero(np.abs(z) > _ROUNDED)
    if not len(far):
        return 0.0
    y, far_z = targets().reshape(z.shape).ravel()[far] != 0, z.ravel()[far]
    eps = np.finfo(z.dtype).eps
    p = np.clip(expit(far_z), eps, 1 - eps)
    beyond = np.zeros(z.size)
    beyond[far] = -np.log(np.where(y, p, 1 - p)) - np.logaddexp(0.0, np.where(y, -far_z, far_z))
    return float(np.average(beyond.reshape(z.shape), weights=weight, axis=0).sum())


def _of_targets(value: float, outputs: _Arrays, targets: _Arrays, weight: Any) -> float:
    """What the Poisson loss of a perfect prediction is short of 0."""
    y = targets()
    return float(np.average(xlogy(y, y) - y, weights=weight, axis=0).sum())


def objective(out_activation: str, outputs: int) -> Objective:
    """scikit-learn's loss for an activation of the output, and a number of outputs."""
    n = float(outputs)
    if out_activation == "softmax":
        return Objective(CrossEntropy(), correction=_beyond_softmax)
    if out_activation == "logistic":
        return Objective(BinaryCrossEntropy(), n, n, _beyond_sigmoid)
    if out_activation == "exp":
        return Objective(Poisson(), n, n, _of_targets)
    return Objective(MeanSquaredError(), 0.5, 0.5 * n)
