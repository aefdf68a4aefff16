"""Metrics on the host, accumulated in float64.

Each is ``fn(y_true, y_pred, sample_weight=None) -> float``. For classification, `y_true` holds integer
labels (n,) or (n, 1), or one-hot or soft targets (n, C); `y_pred` holds probabilities (n, C), of which
the largest counts (the first of equal ones), or the probability of class 1 as (n,) or (n, 1), which
counts as class 1 above 0.5. A 1-d `y_pred` of integers is taken as predicted labels. For regression both
are (n,), (n, 1) or (n, m).

A metric is NaN where it has no value: a prediction is NaN, all weights are zero, or the ranking has
no two classes. The definitions are those of scikit-learn.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

__all__ = [
    "Metric",
    "accuracy",
    "confusion_matrix",
    "f1",
    "get",
    "mean_absolute_error",
    "mean_squared_error",
    "names",
    "precision",
    "r2",
    "recall",
    "roc_auc",
    "root_mean_squared_error",
    "top_k_accuracy",
]

NAN = float("nan")


# ---- what comes in -------------------------------------------------------------------------------------
def _numeric(x: Any, what: str) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{what} must hold real numbers, not dtype {x.dtype}")
    if x.ndim not in (1, 2):
        raise ValueError(f"{what} must have shape (n,) or (n, m), got {x.shape}")
    return x


def _rows(y_true: np.ndarray, y_pred: np.ndarray) -> int:
    if len(y_true) != len(y_pred):
        raise ValueError(f"y_true has {len(y_true)} rows and y_pred {len(y_pred)}: {y_true.shape}, {y_pred.shape}")
    if len(y_true) == 0:
        raise ValueError("a metric of no rows has no value: y_true is empty")
    return len(y_true)


def _weights(sample_weight: Any, n: int) -> np.ndarray:
    if sample_weight is None:
        return np.ones(n)
    w = _numeric(sample_weight, "sample_weight").astype(np.float64)
    if w.shape not in ((n,), (n, 1)):
        raise ValueError(f"sample_weight must have shape ({n},), got {w.shape}")
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise ValueError("sample_weight must be finite and not negative")
    return w.reshape(n)


def _flat(x: np.ndarray) -> np.ndarray:
    return x[:, 0] if x.ndim == 2 and x.shape[1] == 1 else x


def _labels(y_true: np.ndarray, classes: int) -> np.ndarray:
    """`y_true` as int64 labels in ``[0, classes)``."""
    if y_true.ndim == 2:
        if y_true.shape[1] != classes:
            raise ValueError(f"y_true has {y_true.shape[1]} columns and y_pred {classes} classes: {y_true.shape}")
        if not np.isfinite(y_true).all():
            raise ValueError("y_true holds values that are not finite")
        return y_true.argmax(axis=1)
    labels = y_true.astype(np.int64) if np.isfinite(y_true).all() else None
    if labels is None or not np.array_equal(labels, y_true):
        raise ValueError("y_true must hold whole numbers: the labels of the classes")
    if labels.min() < 0 or labels.max() >= classes:
        bad = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"y_true holds the label {bad}; with {classes} classes they are 0 to {classes - 1}")
    return labels


def _scores(y_true: Any, y_pred: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and one score per class (n, C), C at least 2, float64."""
    true, pred = _flat(_numeric(y_true, "y_true")), _flat(_numeric(y_pred, "y_pred"))
    _rows(true, pred)
    pred = pred.astype(np.float64)
    if pred.ndim == 1:
        # Not 1 - p: that would round away the difference of small probabilities, and so make ties
        pred = np.stack((-pred, pred), axis=1)
    return _labels(true, pred.shape[1]), pred


def _classes(y_true: Any, y_pred: Any, classes: int | None = None) -> tuple[np.ndarray, np.ndarray | None, int]:
    """True and predicted labels and the number of classes; no predicted labels where a score is NaN."""
    true, pred = _flat(_numeric(y_true, "y_true")), _flat(_numeric(y_pred, "y_pred"))
    _rows(true, pred)
    if pred.ndim == 1 and pred.dtype.kind in "biu":
        predicted = pred.astype(np.int64)
        largest = int(max(predicted.max(), _flat(true).max() if true.ndim == 1 else true.shape[1] - 1))
        count = max(largest + 1, 2) if classes is None else classes
        if predicted.min() < 0 or predicted.max() >= count:
            raise ValueError(f"y_pred holds labels from {predicted.min()} to {predicted.max()}, of {count} classes")
        return _labels(true, count), predicted, count
    count = 2 if pred.ndim == 1 else pred.shape[1]
    labels = _labels(true, count)
    if np.isnan(pred).any():
        return labels, None, count
    return labels, ((pred > 0.5).astype(np.int64) if pred.ndim == 1 else pred.argmax(axis=1)), count


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total > 0 else NAN


# ---- classification ------------------------------------------------------------------------------------
def accuracy(y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
    """Share of the rows whose predicted class is the true one."""
    true, predicted, _ = _classes(y_true, y_pred)
    weights = _weights(sample_weight, len(true))
    return NAN if predicted is None else _mean(true == predicted, weights)


def top_k_accuracy(y_true: Any, y_pred: Any, sample_weight: Any = None, *, k: int = 5) -> float:
    """Share of the rows whose true class is among the `k` most probable ones.

    Of equally probable classes the first counts as the more probable, so that ``k = 1`` is
    :func:`accuracy`; with `k` at least the number of classes it is 1.
    """
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}")
    true, scores = _scores(y_true, y_pred)
    weights = _weights(sample_weight, len(true))
    if np.isnan(scores).any():
        return NAN
    own = np.take_along_axis(scores, true[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < true[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return _mean(rank < k, weights)


def confusion_matrix(y_true: Any, y_pred: Any, sample_weight: Any = None, *, classes: int | None = None) -> np.ndarray:
    """Weight of the rows of each true class (rows) and predicted class (columns).

    Parameters
    ----------
    y_true, y_pred, sample_weight : array_like
        As the module says.
    classes : int, optional
        The number of classes where `y_pred` holds labels; otherwise the largest label plus one.

    Returns
    -------
    ndarray of float64, shape (C, C)

    Raises
    ------
    ValueError
        If a prediction is NaN, or shapes or labels do not fit.
    """
    true, predicted, count = _classes(y_true, y_pred, classes)
    if predicted is None:
        raise ValueError("y_pred holds NaN: a confusion matrix needs a class for each row")
    return _count(true, predicted, count, _weights(sample_weight, len(true)))


def _count(true: np.ndarray, predicted: np.ndarray, count: int, weights: np.ndarray) -> np.ndarray:
    return np.bincount(true * count + predicted, weights, count * count).reshape(count, count)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise quotient; 0 where there is nothing to divide by."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _precision_recall_f1(which: str, y_true: Any, y_pred: Any, sample_weight: Any, average: str | None) -> float:
    if average not in (None, "binary", "macro", "micro", "weighted"):
        raise ValueError(f"average must be 'binary', 'macro', 'micro' or 'weighted', got {average!r}")
    true, predicted, count = _classes(y_true, y_pred)
    weights = _weights(sample_weight, len(true))
    if average == "binary" and count != 2:
        raise ValueError(f"average='binary' needs two classes, got {count}; use 'macro', 'micro' or 'weighted'")
    if predicted is None or weights.sum() == 0:
        return NAN
    matrix = _count(true, predicted, count, weights)
    hits, of_pred, of_true = np.diagonal(matrix).copy(), matrix.sum(axis=0), matrix.sum(axis=1)
    average = average or ("binary" if count == 2 else "macro")
    if average == "micro":
        hits, of_pred, of_true = (v.sum(keepdims=True) for v in (hits, of_pred, of_true))
    if which == "f1":
        # The harmonic mean of the two, which is 0 only where both are
        values = _ratio(2.0 * hits, of_pred + of_true)
    else:
        values = _ratio(hits, of_pred if which == "precision" else of_true)
    if average == "binary":
        return float(values[1])
    if average == "weighted":
        return _mean(values, of_true)
    if average == "macro":
        # A class that is neither in y_true nor predicted has no say in the mean
        present = np.zeros(count, bool)
        present[true] = present[predicted] = True
        values = values[present]
    return float(values.mean())


def precision(y_true: Any, y_pred: Any, sample_weight: Any = None, *, average: str | None = None) -> float:
    """Share of the rows predicted as a class that are of it; 0 where none is predicted.

    Parameters
    ----------
    y_true, y_pred, sample_weight : array_like
        As the module says.
    average : {"binary", "macro", "micro", "weighted"}, optional
        The value of class 1, the mean over the classes that occur, the value of all rows together, or
        the mean weighted by the true classes. The default is binary for two classes and macro for more.
    """
    return _precision_recall_f1("precision", y_true, y_pred, sample_weight, average)


def recall(y_true: Any, y_pred: Any, sample_weight: Any = None, *, average: str | None = None) -> float:
    """Share of the rows of a class that are predicted as it; parameters as for :func:`precision`."""
    return _precision_recall_f1("recall", y_true, y_pred, sample_weight, average)


def f1(y_true: Any, y_pred: Any, sample_weight: Any = None, *, average: str | None = None) -> float:
    """Harmonic mean of precision and recall; parameters as for :func:`precision`."""
    return _precision_recall_f1("f1", y_true, y_pred, sample_weight, average)


def roc_auc(y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
    """Area under the receiver operating characteristic.

    For two classes the probability that a row of class 1 scores higher than one of class 0, equal
    scores counting half. For more, the mean of it over each class against the rest, without the
    classes that no row or every row is of. Scores need not be probabilities.
    """
    true, scores = _scores(y_true, y_pred)
    weights = _weights(sample_weight, len(true))
    if np.isnan(scores).any():
        return NAN
    if scores.shape[1] == 2:
        return _binary_auc(true == 1, scores[:, 1], weights)
    areas = np.array([_binary_auc(true == c, scores[:, c], weights) for c in range(scores.shape[1])])
    defined = ~np.isnan(areas)
    return float(areas[defined].mean()) if defined.any() else NAN


def _binary_auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> float:
    _, level = np.unique(score, return_inverse=True)
    up = np.bincount(level, weights * positive)
    down = np.bincount(level, weights * ~positive)
    pairs = up.sum() * down.sum()
    if pairs == 0:
        return NAN
    below = np.cumsum(down) - 0.5 * down
    return float((up * below).sum() / pairs)


# ---- regression ----------------------------------------------------------------------------------------
def _pairs(y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both as float64 (n, m), and the weights (n,)."""
    true, pred = _numeric(y_true, "y_true"), _numeric(y_pred, "y_pred")
    n = _rows(true, pred)
    true, pred = true.reshape(n, -1).astype(np.float64), pred.reshape(n, -1).astype(np.float64)
    if true.shape != pred.shape:
        # (n, 1) against (n, 3) would broadcast to a number that means nothing
        raise ValueError(f"y_true and y_pred must have one shape, got {true.shape} and {pred.shape}")
    return true, pred, _weights(sample_weight, n)


def _column_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = weights.sum()
    return weights @ values / total if total > 0 else np.full(values.shape[1], NAN)


def mean_absolute_error(y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
    """Mean of ``|y_true - y_pred|`` over rows and outputs."""
    true, pred, weights = _pairs(y_true, y_pred, sample_weight)
    return float(_column_means(np.abs(true - pred), weights).mean())


def mean_squared_error(y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
    """Mean of ``(y_true - y_pred)**2`` over rows and outputs."""
    true, pred, weights = _pairs(y_true, y_pred, sample_weight)
    return float(_column_means((true - pred) ** 2, weights).mean())


def root_mean_squared_error(y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
    """Square root of the mean squared error; of several outputs, the mean of each one's root."""
    true, pred, weights = _pairs(y_true, y_pred, sample_weight)
    return float(np.sqrt(_column_means((true - pred) ** 2, weights)).mean())


def r2(y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
    """Coefficient of determination, ``1 - sum (y - p)**2 / sum (y - mean y)**2``; mean over outputs.

    An output that is constant in `y_true` has 1 where it is predicted exactly and 0 otherwise. NaN
    for fewer than two rows.
    """
    true, pred, weights = _pairs(y_true, y_pred, sample_weight)
    if len(true) < 2 or weights.sum() == 0 or np.isnan(true).any() or np.isnan(pred).any():
        return NAN
    residual = weights @ (true - pred) ** 2
    spread = weights @ (true - _column_means(true, weights)) ** 2
    varies = spread > 0
    explained = 1.0 - np.divide(residual, spread, out=np.zeros_like(residual), where=varies)
    return float(np.where(varies, explained, np.where(residual == 0, 1.0, 0.0)).mean())


# ---- by name -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Metric:
    """A metric with its name.

    Attributes
    ----------
    name : str
        How it stands in a history: ``"accuracy"``, ``"val_accuracy"``.
    function : callable
        ``(y_true, y_pred, sample_weight=None) -> float``, or without the last one.
    higher_is_better : bool or None
        ``None`` for a function of the user's own.
    """

    name: str
    function: Callable[..., Any]
    higher_is_better: bool | None = None

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
        """The metric; a function without a parameter `sample_weight` is called without it."""
        if sample_weight is None or not _takes_weights(self.function):
            return float(self.function(y_true, y_pred))
        return float(self.function(y_true, y_pred, sample_weight=sample_weight))


def _takes_weights(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "sample_weight" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


_TABLE: dict[str, tuple[Callable[..., float], bool]] = {
    "accuracy": (accuracy, True),
    "top_k_accuracy": (top_k_accuracy, True),
    "precision": (precision, True),
    "recall": (recall, True),
    "f1": (f1, True),
    "roc_auc": (roc_auc, True),
    "mae": (mean_absolute_error, False),
    "mse": (mean_squared_error, False),
    "rmse": (root_mean_squared_error, False),
    "r2": (r2, True),
}
_ALIASES = {
    "acc": "accuracy",
    "f1_score": "f1",
    "auc": "roc_auc",
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
    "root_mean_squared_error": "rmse",
    "r2_score": "r2",
}
_TOP = re.compile(r"^top_([1-9]\d{0,5})_accuracy$")
_AVERAGED = re.compile(r"^(precision|recall|f1)_(binary|macro|micro|weighted)$")


def names() -> list[str]:
    """Return the names that :func:`get` knows, without its aliases and parametrised forms."""
    return list(_TABLE)


def get(spec: Any) -> Metric:
    """Look up a metric.

    Parameters
    ----------
    spec : str, Metric or callable
        A name (long forms such as ``"mean_absolute_error"`` are understood; ``"top_3_accuracy"`` and
        ``"f1_macro"`` carry their parameter), a metric, or a function ``(y_true, y_pred)`` with or
        without a third parameter `sample_weight`.

    Returns
    -------
    Metric

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If `spec` is of another type.
    """
    if isinstance(spec, Metric):
        return spec
    if isinstance(spec, str):
        name = spec.strip().lower().replace("-", "_")
        name = _ALIASES.get(name, name)
        if name in _TABLE:
            return Metric(name, *_TABLE[name])
        if match := _TOP.match(name):
            return Metric(name, partial(top_k_accuracy, k=int(match.group(1))), True)
        if match := _AVERAGED.match(name):
            return Metric(name, partial(_TABLE[match.group(1)][0], average=match.group(2)), True)
        raise ValueError(
            f"unknown metric {spec!r}; known are {', '.join(_TABLE)}, top_3_accuracy, f1_macro and the like"
        )
    if callable(spec):
        for name, (function, higher) in _TABLE.items():
            if spec is function:
                return Metric(name, function, higher)
        inner = spec.func if isinstance(spec, partial) else spec
        return Metric(getattr(inner, "__name__", type(inner).__name__), spec)
    raise TypeError(f"a metric must be a name, a Metric or a function (y_true, y_pred), not {type(spec).__name__}")
