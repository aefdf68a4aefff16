"""Losses: what is minimised, the targets each one takes, and how outputs become predictions.

A loss is the weighted mean over rows, ``sum_i w_i l_i / sum_i w_i``, so that a row of weight 2 counts
like the row given twice; losses that are per element take the plain mean over a row's elements.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import numpy as np

from .backends.base import Array, Backend
from .kernels import step_state as S
from .layers.base import Shape

__all__ = [
    "TABLE",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Hinge",
    "Huber",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Poisson",
    "get",
]


class Loss:
    """Base class of the losses, and of the user's own.

    A loss of one's own defines :meth:`value` and :meth:`gradient`; weights and the mean are added here.

    Attributes
    ----------
    replayable : bool
        Whether the loss does all its work through the backend.
    classification : bool
        Whether targets are classes, so that ``class_weight`` and accuracy make sense.
    link : str or None
        The activation that turns the model's output into a probability (or, for ``"exp"``, a rate).
        A model that ends in this activation is trained from what comes before it.
    """

    replayable = False
    classification = False
    link: ClassVar[str | None] = None

    def value(self, y_pred: Array, y_true: Array) -> Array:
        """The loss of each row, (n,), or of each element, (n, m)."""
        raise NotImplementedError(f"{type(self).__name__} does not define value")

    def gradient(self, y_pred: Array, y_true: Array) -> Array:
        """The derivative of :meth:`value`, summed over nothing, with respect to `y_pred`; its shape."""
        raise NotImplementedError(f"{type(self).__name__} does not define gradient")

    def compute(
        self, bk: Backend, pred: Array, target: Array, weight: Array | None, state: Array, dpred: Array | None
    ) -> None:
        """Write LOSS and BATCH_WEIGHT of `state`, and the gradient into `dpred` where it is given.

        Shapes: `pred` and `dpred` (n, m), `target` as :meth:`targets` made it, `weight` (n,) or ``None``.
        """
        low = pred.dtype.itemsize == 2  # of 16 bits; the gradient is then scaled, see precision.py
        if low:
            pred = pred.astype(np.float32)
        value = self.value(pred, target)
        n = pred.shape[0]
        if value.shape not in ((n,), pred.shape):
            raise ValueError(
                f"{type(self).__name__}.value must have shape ({n},) or {pred.shape}, it has {value.shape}"
            )
        per_row = value.size // n
        total = float(n) if weight is None else weight.sum(dtype=np.float64)
        factor = 1.0 / n if weight is None else weight / bk.xp.where(total == 0, 1.0, total)
        if weight is not None and value.ndim == 2:
            state[S.LOSS] = (value * factor[:, None]).sum(dtype=np.float64) / per_row
        else:
            state[S.LOSS] = (value * factor).sum(dtype=np.float64) / per_row
        state[S.BATCH_WEIGHT] = total
        if dpred is not None:
            gradient = self.gradient(pred, target)
            if gradient.shape != pred.shape:
                raise ValueError(
                    f"{type(self).__name__}.gradient must have shape {pred.shape}, it has {gradient.shape}"
                )
            gradient = gradient * (factor if weight is None else factor[:, None]) / per_row
            if low:
                scale = state[S.LOSS_SCALE]
                gradient = gradient * bk.xp.where(scale == 0, 1.0, scale)
            dpred[...] = gradient

    def record(
        self, bk: Backend, pred: Array, target: Array, weight: Array | None, state: Array, dpred: Array | None
    ) -> None:
        """:meth:`compute`, or the same as Python code that a recorder must keep."""
        if self.replayable:
            self.compute(bk, pred, target, weight, state, dpred)
        else:
            bk.python(self.compute, pred, target, weight, state, dpred)

    @property
    def parts(self) -> list[tuple[Loss, float]]:
        """The loss of each of the model's outputs, and its weight in the sum."""
        return [(self, 1.0)]

    def positions(self, out_shape: Shape) -> int:
        """Places in a row's output that each have a loss of their own, as each step of a sequence; else 1."""
        return 1

    def targets(self, y: np.ndarray, out_shape: Shape, dtype: Any) -> np.ndarray:
        """Check `y` and bring it into the form that :meth:`compute` takes.

        Parameters
        ----------
        y : ndarray
            (n, *out_shape), or (n,) where a row's output is a single number.
        out_shape : tuple of int
            Shape of one output row.
        dtype : dtype
            Of the computation.

        Returns
        -------
        ndarray
            (n, prod(out_shape)), float.

        Raises
        ------
        ValueError
            If the shapes do not fit, or a value is not finite.
        TypeError
            If `y` is not numeric.
        """
        return _float_targets(y, out_shape, dtype, type(self).__name__)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config().items())})"


def _float_targets(y: np.ndarray, out_shape: Shape, dtype: Any, who: str) -> np.ndarray:
    size = int(np.prod(out_shape))
    if y.shape[1:] != tuple(out_shape) and not (size == 1 and y.size == y.shape[0]):
        raise ValueError(f"{who}: targets of shape {y.shape} do not fit the model's output (n, {_commas(out_shape)})")
    y = np.asarray(y).reshape(y.shape[0], size)
    if y.dtype.kind not in "fiub":
        raise TypeError(f"{who}: targets must be numbers, not {y.dtype}")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(y, dtype)
    if not np.isfinite(converted).all():
        raise ValueError(f"{who}: targets contain NaN or infinity as {dtype}, first in row {_first_bad_row(converted)}")
    return converted


def _first_bad_row(y: np.ndarray) -> int:
    return int(np.flatnonzero(~np.isfinite(y).reshape(y.shape[0], -1).all(axis=1))[0])


def _commas(shape: Shape) -> str:
    return ", ".join(map(str, shape))


class _Elementwise(Loss):
    """A loss with a formula in ``backends/formulas.py`` and a kernel on every backend."""

    replayable = True
    formula: ClassVar[str]
    param = 0.0

    def compute(
        self, bk: Backend, pred: Array, target: Array, weight: Array | None, state: Array, dpred: Array | None
    ) -> None:
        bk.elementwise_loss(self.formula, pred, target, weight, state, param=self.param, dpred=dpred)


class MeanSquaredError(_Elementwise):
    """``(y_pred - y_true)**2``."""

    formula = "mean_squared_error"


class MeanAbsoluteError(_Elementwise):
    """``|y_pred - y_true|``."""

    formula = "mean_absolute_error"


class Huber(_Elementwise):
    """``d**2 / 2`` where ``d = |y_pred - y_true| <= delta``, else ``delta * (d - delta / 2)`` (Huber, 1964).

    Parameters
    ----------
    delta : float
        Where the parabola becomes a line.
    """

    formula = "huber"

    def __init__(self, delta: float = 1.0) -> None:
        if not 0.0 < delta < float("inf"):
            raise ValueError(f"Huber: delta must be positive and finite, got {delta}")
        self.delta = self.param = float(delta)

    def config(self) -> dict[str, Any]:
        return {"delta": self.delta}


class BinaryCrossEntropy(_Elementwise):
    """``-y log s(z) - (1 - y) log(1 - s(z))`` with the sigmoid `s`, from the logit `z`.

    Targets are in ``[0, 1]``, one column per yes/no question.
    """

    formula = "binary_cross_entropy"
    classification = True
    link = "sigmoid"

    def targets(self, y: np.ndarray, out_shape: Shape, dtype: Any) -> np.ndarray:
        y = super().targets(y, out_shape, dtype)
        bad = (y < 0) | (y > 1)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"BinaryCrossEntropy: targets must be in [0, 1], row {row} has {y[row, column]:g}; "
                "for several classes use cross_entropy with one output per class"
            )
        return y


class Poisson(_Elementwise):
    """``exp(z) - y * z``: the negative log likelihood of counts `y`, but for a constant, from the log rate `z`."""

    formula = "poisson"
    link = "exp"

    def targets(self, y: np.ndarray, out_shape: Shape, dtype: Any) -> np.ndarray:
        y = super().targets(y, out_shape, dtype)
        if (y < 0).any():
            raise ValueError(f"Poisson: targets must not be negative, the smallest is {y.min():g}")
        return y


class Hinge(_Elementwise):
    """``max(0, 1 - y * y_pred)`` for targets -1 and 1; 0 counts as -1."""

    formula = "hinge"
    classification = True

    def targets(self, y: np.ndarray, out_shape: Shape, dtype: Any) -> np.ndarray:
        y = super().targets(y, out_shape, dtype)
        if not np.isin(y, (-1, 0, 1)).all():
            raise ValueError(f"Hinge: targets must be -1 and 1, or 0 and 1; found {np.unique(y)[:5]}")
        return y


class CrossEntropy(Loss):
    """``-sum_k t_k log softmax(z)_k`` from the logits `z`.

    Parameters
    ----------
    label_smoothing : float
        Share `s` of each target that is spread over all c classes, in ``[0, 1)``:
        ``t = (1 - s) * target + s / c`` (Szegedy et al., 2016).

    Notes
    -----
    Targets are integer classes (n,), one-hot rows, or soft targets (n, c) that are not negative.
    """

    replayable = True
    classification = True
    link = "softmax"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"CrossEntropy: label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = float(label_smoothing)

    def config(self) -> dict[str, Any]:
        return {"label_smoothing": self.label_smoothing}

    def compute(
        self, bk: Backend, pred: Array, target: Array, weight: Array | None, state: Array, dpred: Array | None
    ) -> None:
        bk.softmax_xent(pred, target, weight, state, smoothing=self.label_smoothing, dlogits=dpred)

    def positions(self, out_shape: Shape) -> int:
        return prod(out_shape[:-1])

    def targets(self, y: np.ndarray, out_shape: Shape, dtype: Any) -> np.ndarray:
        """As :meth:`Loss.targets`; integer classes come back as int64 (n,), or (n, positions)."""
        if not out_shape:
            raise ValueError("CrossEntropy: the model's output must be (n, classes), it is (n,)")
        classes = out_shape[-1]
        if classes < 2:
            raise ValueError(
                "CrossEntropy needs one output per class, the model has a single output; "
                "use binary_cross_entropy, or 2 outputs"
            )
        places = out_shape[:-1]
        if y.shape[1:] == tuple(out_shape) and (not places or y.dtype.kind == "f"):
            soft = _float_targets(y, out_shape, dtype, "CrossEntropy")
            if (soft < 0).any():
                raise ValueError(f"CrossEntropy: soft targets must not be negative, the smallest is {soft.min():g}")
            return soft.reshape(len(soft), prod(places), classes) if places else soft
        if y.shape[1:] == (*places, 1):
            y = y[..., 0]
        if y.shape[1:] != places:
            wanted = f"(n, {_commas(places)})" if places else "(n,)"
            raise ValueError(
                f"CrossEntropy: targets of shape {y.shape} are neither {wanted} nor (n, {_commas(out_shape)})"
            )
        labels = class_labels(y.reshape(-1), classes)
        return labels.reshape(len(y), -1) if places else labels


def classes_of_steps(target: np.ndarray) -> bool:
    """Whether these targets of :class:`CrossEntropy` are of each step of a sequence: labels (n, t), or (n, t, c)."""
    return target.ndim == 3 or (target.ndim == 2 and target.dtype == np.int64)


def class_labels(y: np.ndarray, classes: int) -> np.ndarray:
    """Integer labels as int64, every one checked to be whole and in ``0..classes - 1``."""
    y = np.asarray(y)
    if y.dtype.kind not in "iubf":
        raise TypeError(f"class labels must be integers, not {y.dtype}; encode names as 0..{classes - 1} first")
    if y.dtype.kind == "f":
        whole = np.isfinite(y) & (np.floor(y) == y)
        if not whole.all():
            raise ValueError(f"class labels must be whole numbers, row {int(np.argmin(whole))} has {y[~whole][0]}")
    if y.size and (y.min() < 0 or y.max() >= classes):
        row = int(np.flatnonzero((y < 0) | (y >= classes))[0])
        raise ValueError(f"class labels must be in 0..{classes - 1}, row {row} has {y[row]}")
    return np.ascontiguousarray(y, np.int64)


TABLE: dict[str, type[Loss]] = {
    "mean_squared_error": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "huber": Huber,
    "binary_cross_entropy": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
    "poisson": Poisson,
    "hinge": Hinge,
}
_ALIASES = {
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "bce": "binary_cross_entropy",
    "categorical_crossentropy": "cross_entropy",
    "sparse_categorical_crossentropy": "cross_entropy",
    "binary_crossentropy": "binary_cross_entropy",
}


def get(spec: str | Loss | type[Loss]) -> Loss:
    """A loss from its name, its class or an instance.

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If `spec` is of another type.
    """
    if isinstance(spec, Loss):
        return spec
    if isinstance(spec, type) and issubclass(spec, Loss):
        return spec()
    if not isinstance(spec, str):
        raise TypeError(f"loss must be a name or a Loss, not {type(spec).__name__}")
    name = _ALIASES.get(spec.strip().lower(), spec.strip().lower())
    if name not in TABLE:
        raise ValueError(f"unknown loss {spec!r}; known are {', '.join(TABLE)}")
    return TABLE[name]()


def name_of(loss: Loss) -> str:
    """The table's name of a loss, or its class name."""
    return next((name for name, kind in TABLE.items() if kind is type(loss)), type(loss).__name__)
