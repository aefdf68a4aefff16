"""How the columns of the inputs become numbers: tables column by column, arrays place by place, pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..datasets.base import Inputs, Table
from ..datasets.tables import as_numbers
from ..errors import DataError

__all__ = ["ArrayInputs", "CategoryColumn", "ImageInputs", "NumberColumn", "TableInputs", "check_shape"]

MAX_CATEGORIES = 100  # more distinct texts than this are mostly names, and would only be learned by heart
_ROWS = 1 << 16  # rows per chunk, so that temporary float64 copies stay small


def _statistics(x: np.ndarray) -> tuple[float, float, float]:
    """Median, mean and standard deviation of a column without NaN; a deviation of 1 if it is constant."""
    if x.size == 0:
        return 0.0, 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(x.mean()), float(x.std())
    if not np.isfinite(mean) or not np.isfinite(std):
        raise DataError("it has values that are infinite or too large")
    # the deviation of equal numbers is not exactly 0, since their mean is rounded
    return float(np.median(x)), mean, std if std > 1e-12 * abs(mean) else 1.0


@dataclass(frozen=True)
class NumberColumn:
    """A standardised column; `fill` stands in for a missing value."""

    name: str
    fill: float
    mean: float
    std: float
    kind: Literal["number"] = "number"

    width = 1

    @classmethod
    def fit(cls, name: str, numbers: np.ndarray) -> NumberColumn:
        try:
            return cls(name, *_statistics(numbers[~np.isnan(numbers)]))
        except DataError as error:
            raise DataError(f"column {name!r}: {error}") from None

    def write(self, values: np.ndarray, out: np.ndarray) -> None:
        numbers = as_numbers(values)
        if numbers is None:
            wrong = next(v for v in values if v is not None and as_numbers(np.array([v], object)) is None)
            raise DataError(f"column {self.name!r} held numbers in training, but now {str(wrong)!r}")
        if np.isinf(numbers).any():
            raise DataError(f"column {self.name!r} has infinite values")
        out[:, 0] = (np.where(np.isnan(numbers), self.fill, numbers) - self.mean) / self.std


@dataclass(frozen=True)
class CategoryColumn:
    """A one-hot encoded column: the categories, then "missing", then "anything else"."""

    name: str
    categories: tuple[str, ...]
    kind: Literal["category"] = "category"

    @property
    def width(self) -> int:
        return len(self.categories) + 2

    @staticmethod
    def _texts(values: np.ndarray) -> list[str | None]:
        if values.dtype == object:
            return [None if v is None else str(v) for v in values]
        # categories that are numbers: 3.0 of a parquet file is the "3" of a text file
        return [None if np.isnan(v) else str(int(v)) if v == int(v) else str(v) for v in values.tolist()]

    @classmethod
    def fit(cls, name: str, values: np.ndarray) -> CategoryColumn:
        counts = Counter(text for text in cls._texts(values) if text is not None)
        kept = sorted(counts, key=lambda text: (-counts[text], text))[:MAX_CATEGORIES]
        return cls(name, tuple(sorted(kept)))

    def write(self, values: np.ndarray, out: np.ndarray) -> None:
        place: dict[str | None, int] = {text: i for i, text in enumerate(self.categories)}
        place[None] = len(place)
        index = [place.get(text, len(place)) for text in self._texts(values)]
        out[np.arange(len(index)), index] = 1.0


@dataclass(frozen=True)
class TableInputs:
    """Columns by name, each encoded on its own."""

    columns: tuple[NumberColumn | CategoryColumn, ...]
    kind: Literal["table"] = "table"

    @classmethod
    def fit(cls, X: Table, categorical: Collection[str] = ()) -> TableInputs:
        forced = {X.resolve(name) for name in categorical}
        columns: list[NumberColumn | CategoryColumn] = []
        for name, values in X.columns.items():
            numbers = None if name in forced else as_numbers(values)
            columns.append(CategoryColumn.fit(name, values) if numbers is None else NumberColumn.fit(name, numbers))
        return cls(tuple(columns))

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(column.width for column in self.columns),)

    def transform(self, X: Inputs, dtype: Any, ignore: Collection[str] = ()) -> np.ndarray:
        if not isinstance(X, Table):
            raise DataError(
                f"the model was trained on a table with the columns {self._names()}, not on arrays of shape {X.shape}"
            )
        wanted = {column.name for column in self.columns}
        if absent := [column.name for column in self.columns if column.name not in X.columns]:
            raise DataError(f"{_columns(absent)} missing; the model was trained on: {self._names()}")
        if extra := [name for name in X.names if name not in wanted and name not in ignore]:
            raise DataError(f"{_columns(extra)} unknown; the model was trained on: {self._names()}")
        out = np.zeros((len(X), *self.shape), dtype)
        start = 0
        for column in self.columns:
            column.write(X.columns[column.name], out[:, start : start + column.width])
            start += column.width
        return out

    def _names(self) -> str:
        return ", ".join(column.name for column in self.columns)

    def describe(self) -> str:
        categories = sum(isinstance(column, CategoryColumn) for column in self.columns)
        numbers = len(self.columns) - categories
        parts = [f"{numbers} of numbers"] * bool(numbers) + [f"{categories} of categories"] * bool(categories)
        return f"{len(self.columns)} columns ({', '.join(parts)}) as {self.shape[0]} inputs"


def _columns(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    return f"column {shown} is" if len(names) == 1 else f"columns {shown} are"


@dataclass(frozen=True)
class ArrayInputs:
    """An array of numbers, standardised in each place of a row."""

    shape: tuple[int, ...]
    fill: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: Literal["array"] = "array"

    @classmethod
    def fit(cls, X: np.ndarray) -> ArrayInputs:
        flat = X.reshape(len(X), -1)
        columns = [NumberColumn.fit(str(i), flat[:, i].astype(np.float64)) for i in range(flat.shape[1])]
        fill, mean, std = (tuple(getattr(c, what) for c in columns) for what in ("fill", "mean", "std"))
        return cls(X.shape[1:], fill, mean, std)

    def transform(self, X: Inputs, dtype: Any, ignore: Collection[str] = ()) -> np.ndarray:
        if isinstance(X, Table):  # a text file of points for a model that was trained on arrays
            X = _table_as_array(X.without(set(ignore) & set(X.names)))
        check_shape(X, self.shape)
        fill, mean, std = (np.array(v).reshape(self.shape) for v in (self.fill, self.mean, self.std))
        out = np.empty(X.shape, dtype)
        for start in range(0, len(X), _ROWS):
            part = X[start : start + _ROWS].astype(np.float64)
            if np.isinf(part).any():
                raise DataError("the inputs have infinite values")
            out[start : start + _ROWS] = (np.where(np.isnan(part), fill, part) - mean) / std
        return out

    def describe(self) -> str:
        return f"rows of shape {self.shape}, standardised"


def _table_as_array(table: Table) -> np.ndarray:
    numbers = {name: as_numbers(values) for name, values in table.columns.items()}
    for name, values in numbers.items():
        if values is None:
            raise DataError(f"column {name!r} has text, but the model was trained on numbers only")
    return np.stack([values for values in numbers.values() if values is not None], axis=1)


def check_shape(X: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse rows of another shape than in training."""
    if X.shape[1:] != shape:
        raise DataError(f"the model was trained on rows of shape {shape}; these have shape {X.shape[1:]}")


@dataclass(frozen=True)
class ImageInputs:
    """Pixels, divided by the value of white."""

    shape: tuple[int, ...]
    pixel_max: float
    kind: Literal["image"] = "image"

    def transform(self, X: Inputs, dtype: Any, ignore: Collection[str] = ()) -> np.ndarray:
        if isinstance(X, Table):
            raise DataError(f"the model was trained on images of shape {self.shape}, not on a table")
        check_shape(X, self.shape)
        out = np.empty(X.shape, dtype)
        for start in range(0, len(X), _ROWS):  # one pass, without a float64 copy of all images
            np.divide(X[start : start + _ROWS], self.pixel_max, out=out[start : start + _ROWS], casting="unsafe")
        return out

    def describe(self) -> str:
        return f"images of shape {self.shape}, scaled to [0, 1]"
