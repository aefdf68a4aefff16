"""How targets become what a loss takes, and how a model's outputs become predictions again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .inputs import NumberColumn, check_shape

__all__ = ["ClassTarget", "NumberTarget"]


@dataclass(frozen=True)
class ClassTarget:
    """Class labels, whole numbers or text, as ``0 .. C-1``.

    Attributes
    ----------
    classes : tuple of int or of str
        The labels in sorted order.
    names : tuple of str
        What to call them.
    """

    classes: tuple[int, ...] | tuple[str, ...]
    names: tuple[str, ...]
    kind: Literal["classes"] = "classes"

    @classmethod
    def fit(cls, y: np.ndarray, names: Sequence[str] | None = None) -> ClassTarget:
        classes: Any = tuple(sorted(set(y.tolist()))) if y.ndim == 1 else ()
        if y.ndim != 1 or not all(isinstance(c, int | str) for c in classes):
            raise DataError(
                f"class labels must be one column of whole numbers or text, not {y.dtype} of shape {y.shape}"
            )
        if len(classes) < 2:
            raise DataError(f"there is only one class, {classes[0]!r}" if classes else "there are no labels")
        if names is not None and all(isinstance(c, int) and 0 <= c < len(names) for c in classes):
            return cls(classes, tuple(names[c] for c in classes))
        return cls(classes, tuple(str(c) for c in classes))

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Labels (n,) as int64 (n,)."""
        if y.ndim != 1:
            raise DataError(f"class labels must be one column, not of shape {y.shape}")
        as_text = isinstance(self.classes[0], str)
        place = {label: i for i, label in enumerate(self.classes)}
        index = np.empty(len(y), np.int64)
        for i, label in enumerate(y.tolist()):
            found = place.get(str(label) if as_text else label)
            if found is None:
                known = ", ".join(map(str, self.classes[:20]))
                raise DataError(f"label {label!r} is none of the classes that the model knows: {known}")
            index[i] = found
        return index

    def decode(self, index: np.ndarray) -> np.ndarray:
        """Class numbers (n,) as labels (n,), int64 or text."""
        return np.array(self.classes)[np.asarray(index, np.int64)]


@dataclass(frozen=True)
class NumberTarget:
    """Numbers to be predicted, standardised; ``link="log"`` keeps them and takes outputs as logarithms."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    link: Literal["identity", "log"] = "identity"
    kind: Literal["numbers"] = "numbers"

    @classmethod
    def fit(cls, y: np.ndarray, link: Literal["identity", "log"] = "identity") -> NumberTarget:
        columns = cls._columns(y)
        if link == "log":
            if (columns < 0).any():
                raise DataError("these targets must not be negative (a Poisson rate is predicted)")
            return cls((0.0,) * columns.shape[1], (1.0,) * columns.shape[1], link)
        fits = [NumberColumn.fit("target", column) for column in columns.T]
        return cls(tuple(f.mean for f in fits), tuple(f.std for f in fits))

    @staticmethod
    def _columns(y: np.ndarray) -> np.ndarray:
        if y.dtype.kind not in "biuf" or y.ndim > 2:
            raise DataError(f"numbers are needed as targets, not {y.dtype} of shape {y.shape}")
        return (y[:, None] if y.ndim == 1 else y).astype(np.float64)

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Targets (n,) or (n, k) as float64 (n, k)."""
        columns = self._columns(y)
        check_shape(columns, (len(self.mean),))
        return (columns - self.mean) / self.std

    def decode(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs (n, k) in the units of the targets: float64, (n,) where k is 1."""
        numbers = np.asarray(outputs, np.float64).reshape(-1, len(self.mean)) * self.std + self.mean
        numbers = np.exp(numbers) if self.link == "log" else numbers
        return numbers[:, 0] if numbers.shape[1] == 1 else numbers
