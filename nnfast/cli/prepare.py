"""From a loaded data set to encoded arrays: validation part held back, preprocessing from the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import datasets
from ..datasets import Dataset
from ..losses import Loss
from ..preprocessing import ClassTarget, Preprocessor
from ..random import SPLIT, generator

__all__ = ["Prepared", "prepare"]


@dataclass
class Prepared:
    """Encoded rows.

    Attributes
    ----------
    x, y : ndarray
        Training inputs and targets, encoded.
    validation : tuple of two ndarray, or None
        The same for the rows held back.
    part : str
        ``"test"``, ``"validation"`` or ``"training"``: the part that the final metrics are of.
    x_part, y_part : ndarray
        Encoded inputs and raw targets of that part.
    outputs : int
        Number of outputs that the model needs.
    """

    preprocessor: Preprocessor
    x: np.ndarray
    y: np.ndarray
    validation: tuple[np.ndarray, np.ndarray] | None
    part: str
    x_part: np.ndarray
    y_part: np.ndarray
    outputs: int

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows of each part."""
        return {
            "train": len(self.x),
            "validation": 0 if self.validation is None else len(self.validation[0]),
            "test": len(self.x_part) if self.part == "test" else 0,
        }


def _split(rows: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training and of the validation part."""
    held = round(share * rows)
    if share > 0 and not 0 < held < rows:
        raise ValueError(
            f"--val-split {share:g} of {rows} rows leaves {rows - held} to train on and {held} to validate"
        )
    order = generator(seed, SPLIT).permutation(rows) if held else np.arange(rows)
    return np.sort(order[held:]), np.sort(order[:held])


def prepare(
    data: Dataset, loss: Loss, loss_name: str, *, val_split: float, seed: int, dtype: Any, categorical: tuple[str, ...]
) -> Prepared:
    """Split `data`, learn the preprocessing from the training part, and encode.

    Raises
    ------
    ValueError
        If the loss does not fit the task, or the split leaves no rows.
    DataError
        If the columns cannot be encoded.
    """
    assert data.y_train is not None
    if loss.classification != (data.task == "classification"):
        raise ValueError(f"loss {loss_name!r} is not for {data.task}")
    train, held = _split(len(data.X_train), val_split, seed)
    X_train, y_train = datasets.take(data.X_train, train), data.y_train[train]
    preprocessor = Preprocessor.fit(
        X_train,
        y_train,
        data.task or "classification",
        labels=data.y_train,
        class_names=data.class_names,
        pixel_max=data.pixel_max,
        categorical=categorical,
        link="log" if loss.link == "exp" else "identity",
    )
    target = preprocessor.target
    x, y = preprocessor.transform(X_train, dtype), target.encode(y_train)
    part, x_part, y_part = "training", x, y_train
    validation = None
    if len(held):
        y_held = data.y_train[held]
        x_held = preprocessor.transform(datasets.take(data.X_train, held), dtype)
        validation = (x_held, target.encode(y_held))
        part, x_part, y_part = "validation", x_held, y_held
    if data.X_test is not None and data.y_test is not None:
        part, x_part, y_part = "test", preprocessor.transform(data.X_test, dtype), data.y_test
    outputs = _outputs(target, loss, loss_name)
    return Prepared(preprocessor, x, y, validation, part, x_part, y_part, outputs)


def _outputs(target: Any, loss: Loss, loss_name: str) -> int:
    if not isinstance(target, ClassTarget):
        return len(target.mean)
    classes = len(target.classes)
    if loss.link == "softmax":
        return classes
    if classes > 2:
        raise ValueError(f"loss {loss_name!r} is for two classes, the target has {classes}; use cross_entropy")
    return 1
