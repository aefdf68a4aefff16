"""A trained model together with what a prediction needs: its preprocessing and the meaning of its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import Dataset
from ..datasets.base import Inputs
from ..errors import CheckpointError, DataError
from ..preprocessing import ClassTarget, Preprocessor
from .text_bundle import is_text

__all__ = ["Bundle", "device_line", "load_model"]

KEY = "cli"  # where in the model file's extra JSON it is kept


@dataclass
class Bundle:
    """A model and its data side.

    Attributes
    ----------
    model : Sequential
    preprocessor : Preprocessor
    data : str
        Name of the data set or path of the file that it was trained on.
    target : str or None
        Name of the target column.
    dropped : tuple of str
        Columns that were left out.
    """

    model: Any
    preprocessor: Preprocessor
    data: str
    target: str | None
    dropped: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        return "classification" if isinstance(self.preprocessor.target, ClassTarget) else "regression"

    def save(self, path: str | Path) -> None:
        """Write the model file."""
        own = {
            "preprocessing": self.preprocessor.to_json(),
            "data": self.data,
            "target": self.target,
            "dropped": list(self.dropped),
        }
        self.model.save(path, extra={KEY: own})

    @classmethod
    def load(cls, path: str | Path, device: str) -> Bundle:
        """Read a model file that ``nnfast train`` wrote, for use on `device`.

        Raises
        ------
        CheckpointError
            If the file is damaged, or was not written by ``nnfast train``.
        """
        return cls.of(load_model(path, device), path)

    @classmethod
    def of(cls, model: Any, path: str | Path) -> Bundle:
        """What a model that was loaded from `path` says of itself; errors as for :meth:`load`."""
        own = model.extra.get(KEY)
        if is_text(model):
            raise CheckpointError(f"{path} is a model of text, for 'nnfast sample' and 'nnfast evaluate'")
        if not isinstance(own, dict):
            raise CheckpointError(f"{path} has no preprocessing: it was saved by a program, not by 'nnfast train'")
        return cls(
            model,
            Preprocessor.from_json(own.get("preprocessing")),
            str(own.get("data")),
            own.get("target"),
            tuple(own.get("dropped") or ()),
        )

    def read(self, source: str, *, target: str | None = None, need_target: bool) -> tuple[Inputs, np.ndarray | None]:
        """Inputs and, where they are there, targets of a data set: its test part if it has one."""
        from .. import datasets

        data = self._load(datasets, source, target, need_target)
        return data.evaluation_part()

    def _load(self, datasets: Any, source: str, target: str | None, need_target: bool) -> Dataset:
        if source in datasets.NAMES or Path(source).is_dir():
            return datasets.load(source, need_target=need_target)
        target = self.target if target is None else target
        if not need_target:
            data = datasets.load(source, need_target=False)
            # columns of a table are found by name; in an array the target is only known by its place
            if target is None or not self._has_target_column(data.X_train):
                return data
        return datasets.load(source, target, self.task, need_target=need_target)

    def _has_target_column(self, X: Any) -> bool:
        shape = self.preprocessor.inputs.shape
        return isinstance(X, np.ndarray) and len(shape) == 1 and X.shape[1:] == (shape[0] + 1,)

    def transform(self, X: Inputs) -> np.ndarray:
        """Encode inputs; the target and the columns left out in training may be among them."""
        ignore = {*self.dropped, *([self.target] if self.target else [])}
        return self.preprocessor.transform(X, self.dtype, ignore=ignore)

    @property
    def dtype(self) -> Any:
        """The dtype of encoded inputs: float64 for a float64 model, else float32."""
        return np.float64 if np.dtype(self.model.dtype) == np.float64 else np.float32

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predictions for encoded inputs, in the labels or the units of the training data."""
        target = self.preprocessor.target
        if isinstance(target, ClassTarget):
            return target.decode(np.ravel(self.model.predict_classes(x)))
        return target.decode(self.model.predict(x))

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Probability of each class for encoded inputs, (n, C)."""
        if not isinstance(self.preprocessor.target, ClassTarget):
            raise DataError("this model predicts numbers; probabilities are for classification")
        if self.model.loss.link is None:
            raise DataError("this model was trained with the hinge loss, which gives no probabilities")
        p = self.model.predict_proba(x)
        return np.concatenate([1.0 - p, p], axis=1) if p.shape[1] == 1 else p

    def metrics(self, y: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Accuracy, or errors in the units of the targets, of predictions as :meth:`predict` gives them."""
        from .. import metrics

        target = self.preprocessor.target
        if isinstance(target, ClassTarget):
            return {"accuracy": metrics.accuracy(target.encode(y), target.encode(predicted))}
        return {
            "mae": metrics.mean_absolute_error(y, predicted),
            "rmse": metrics.root_mean_squared_error(y, predicted),
            "r2": metrics.r2(y, predicted),
        }

    def per_class(self, y: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]] | None:
        """Precision, recall, F1 and number of rows of each class; ``None`` for regression."""
        from ..metrics import confusion_matrix

        target = self.preprocessor.target
        if not isinstance(target, ClassTarget):
            return None
        matrix = confusion_matrix(target.encode(y), target.encode(predicted), classes=len(target.classes))
        hits, of_true, of_predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
        return [
            {
                "class": name,
                "precision": float(hits[i] / max(of_predicted[i], 1)),
                "recall": float(hits[i] / max(of_true[i], 1)),
                "f1": float(2 * hits[i] / max(of_true[i] + of_predicted[i], 1)),
                "rows": int(of_true[i]),
            }
            for i, name in enumerate(target.names)
        ]


def load_model(path: str | Path, device: str) -> Any:
    """The model in a file, for use on `device`."""
    from ..model import load

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    return load(path, device=device)


def device_line(asked: str | None) -> tuple[str, str]:
    """The concrete device and, in words, why it is this one.

    Raises
    ------
    ValueError
        If the name is unknown.
    DeviceUnavailable
        If it was asked for and cannot be used.
    """
    import os

    from ..devices import available_devices, get_backend

    device = get_backend(asked).device
    chosen, source = (asked or "auto").strip().lower(), "asked for"
    if chosen == "auto" and os.environ.get("NNFAST_DEVICE", "").strip():
        chosen, source = os.environ["NNFAST_DEVICE"].strip().lower(), "set by NNFAST_DEVICE"
    if chosen not in ("auto", "cpu"):
        return device, source
    if device.startswith("cuda"):
        return device, "auto: a GPU is usable"
    reasons = available_devices()
    parts = [f"no cuda: {reasons['cuda']}"] if chosen == "auto" and reasons.get("cuda") else []
    parts += [f"no numba: {reasons['numba']}"] if device == "numpy" and reasons.get("numba") else []
    return device, f"{chosen}: {'; '.join(parts)}" if parts else chosen
