"""From the columns of a data file to the numbers that a model takes, and back.

A :class:`Preprocessor` learns everything from the training rows alone and turns into JSON, so that a
model file carries it and a prediction repeats it exactly.

- Numbers are standardised: ``(x - mean) / std``. A missing number is the training median; a column that
  is constant or empty in training becomes zeros (its differences, where later rows have any).
- Text and truth values become one column for each category seen in training (the 100 most frequent), one
  for "missing" and one for anything else.
- Pixels are divided by the value of white.
- Class labels become ``0 .. C-1``, in sorted order; numbers to be predicted are standardised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ..datasets.base import Inputs, Table, Task
from ..errors import CheckpointError, DataError
from .inputs import ArrayInputs, CategoryColumn, ImageInputs, NumberColumn, TableInputs
from .targets import ClassTarget, NumberTarget

__all__ = ["ClassTarget", "NumberTarget", "Preprocessor"]

VERSION = 1


@dataclass(frozen=True)
class Preprocessor:
    """How inputs and targets are encoded.

    Attributes
    ----------
    inputs : TableInputs, ArrayInputs or ImageInputs
    target : ClassTarget or NumberTarget

    Examples
    --------
    >>> table = Table({"size": np.array([1.0, 3.0]), "colour": np.array(["red", None], object)})
    >>> p = Preprocessor.fit(table, np.array(["no", "yes"], object), "classification")
    >>> p.transform(table).tolist()  # size; colour red, missing, anything else
    [[-1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]
    >>> p.target.encode(np.array(["yes", "no"], object)).tolist()
    [1, 0]
    """

    inputs: TableInputs | ArrayInputs | ImageInputs
    target: ClassTarget | NumberTarget

    @classmethod
    def fit(
        cls,
        X: Inputs,
        y: np.ndarray,
        task: Task,
        *,
        labels: np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        pixel_max: float | None = None,
        categorical: Iterable[str] = (),
        link: Literal["identity", "log"] = "identity",
    ) -> Preprocessor:
        """Learn the encoding from training rows.

        Parameters
        ----------
        X : ndarray or Table
            Training inputs.
        y : ndarray
            Training targets.
        task : {"classification", "regression"}
            What the targets are.
        labels : ndarray, optional
            Labels of all rows, for classes that happen to be missing from the training part.
        class_names : sequence of str, optional
            Names of the classes 0, 1, ... .
        pixel_max : float, optional
            The value of white; makes `X` images.
        categorical : iterable of str
            Columns of numbers that are categories.
        link : {"identity", "log"}
            ``"log"`` where the model predicts the logarithm of the target, as with the Poisson loss.

        Raises
        ------
        DataError
            If the columns or targets cannot be used.
        """
        if len(X) == 0:
            raise DataError("there are no rows to learn from")
        inputs: TableInputs | ArrayInputs | ImageInputs
        if isinstance(X, Table):
            inputs = TableInputs.fit(X, tuple(categorical))
        elif tuple(categorical):
            raise ValueError("categorical columns are for tables with named columns")
        elif X.dtype.kind not in "biuf":
            raise DataError(f"the inputs must be numbers, not {X.dtype}")
        else:
            inputs = ArrayInputs.fit(X) if pixel_max is None else ImageInputs(X.shape[1:], float(pixel_max))
        if task == "classification":
            return cls(inputs, ClassTarget.fit(y if labels is None else labels, class_names))
        return cls(inputs, NumberTarget.fit(y, link))

    def transform(self, X: Inputs, dtype: Any = np.float32, *, ignore: Collection[str] = ()) -> np.ndarray:
        """Encode inputs.

        Parameters
        ----------
        X : ndarray or Table
            Rows with the same columns or shape as in training; the order of columns does not matter.
        dtype : dtype
            Of the result.
        ignore : collection of str
            Columns that may be there besides, such as the target.

        Returns
        -------
        ndarray, shape (n, ...)

        Raises
        ------
        DataError
            If a column is missing, unknown or of another kind, or rows have another shape.
        """
        return self.inputs.transform(X, dtype, ignore)

    def to_json(self) -> dict[str, Any]:
        """The encoding as a dict that JSON can hold exactly."""
        return {"version": VERSION, "inputs": asdict(self.inputs), "target": asdict(self.target)}

    @classmethod
    def from_json(cls, data: Any) -> Preprocessor:
        """Restore what :meth:`to_json` gave, also after a trip through JSON.

        Raises
        ------
        CheckpointError
            If the version is unknown or something is missing.
        """
        if not isinstance(data, dict) or data.get("version") != VERSION:
            found = data.get("version") if isinstance(data, dict) else type(data).__name__
            raise CheckpointError(f"preprocessing of version {found!r} is not known; this program knows {VERSION}")
        try:
            inputs = dict(data["inputs"])
            if inputs["kind"] == "table":
                inputs["columns"] = tuple(_build(_COLUMNS, column) for column in inputs["columns"])
            return cls(_build(_INPUTS, inputs), _build(_TARGETS, data["target"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the preprocessing in the model file is damaged: {error!r}") from None


_COLUMNS = {"number": NumberColumn, "category": CategoryColumn}
_INPUTS = {"table": TableInputs, "array": ArrayInputs, "image": ImageInputs}
_TARGETS = {"classes": ClassTarget, "numbers": NumberTarget}


def _build(kinds: dict[str, Any], fields: dict[str, Any]) -> Any:
    """An object from its fields; JSON's lists become tuples again."""
    return kinds[fields["kind"]](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
