"""What a data set is: rows to train on, perhaps rows to test on, and what the columns mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import DataError

__all__ = ["Dataset", "Table", "take"]

Task = Literal["classification", "regression"]


class Table:
    """Named columns of equal length.

    A column is a float64 array with NaN where a value is missing, or an object array of ``str`` with
    ``None`` where one is missing. Text files give text columns only: whether a column holds numbers is
    decided once, from the training part, by :mod:`nnfast.preprocessing`.

    Parameters
    ----------
    columns : dict of str to ndarray
        The columns in their order, each of shape (n,).
    """

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        if not columns:
            raise DataError("the table has no columns")
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"the columns have different lengths: {sizes}")
        self.columns = columns
        self.rows = next(iter(sizes.values()))

    def __len__(self) -> int:
        return self.rows

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def take(self, index: np.ndarray) -> Table:
        """The rows at `index`."""
        return Table({name: values[index] for name, values in self.columns.items()})

    def without(self, names: set[str]) -> Table:
        """The table less the columns `names`."""
        left = {name: values for name, values in self.columns.items() if name not in names}
        if not left:
            raise DataError("no column is left to learn from")
        return Table(left)

    def resolve(self, name: str | int) -> str:
        """The name of a column given by name, or by position (negative from the end).

        Raises
        ------
        DataError
            If there is no such column; the message lists those that there are.
        """
        if str(name) in self.columns:
            return str(name)
        names = self.names
        try:
            return names[int(name)]
        except (ValueError, IndexError):
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise DataError(f"there is no column {str(name)!r}; the columns are: {shown}") from None


Inputs = np.ndarray | Table


@dataclass
class Dataset:
    """Inputs and targets, and what they mean.

    Attributes
    ----------
    name : str
        The name or path that it was loaded from.
    X_train, X_test : ndarray or Table
        Inputs, one row each. Images are (n, height, width) and keep their integer dtype.
    y_train, y_test : ndarray or None
        Targets as the file has them: numbers or text, shape (n,), or (n, k) for several numbers.
    task : {"classification", "regression"} or None
        What is to be learned; ``None`` where the targets are missing.
    class_names : tuple of str, optional
        Names of the classes 0, 1, ... where the labels are numbers.
    target : str, optional
        Name of the target column.
    pixel_max : float, optional
        The value of a white pixel; given for images only.
    """

    name: str
    X_train: Inputs
    y_train: np.ndarray | None
    X_test: Inputs | None = None
    y_test: np.ndarray | None = None
    task: Task | None = None
    class_names: tuple[str, ...] | None = None
    target: str | None = None
    pixel_max: float | None = None

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the input columns, where they have names."""
        return self.X_train.names if isinstance(self.X_train, Table) else None

    def evaluation_part(self) -> tuple[Inputs, np.ndarray | None]:
        """The test rows where there are any, and else all rows."""
        if self.X_test is not None:
            return self.X_test, self.y_test
        return self.X_train, self.y_train


def take(X: Inputs, index: np.ndarray) -> Any:
    """The rows of `X` at `index`, of the same kind."""
    return X.take(index) if isinstance(X, Table) else X[index]
