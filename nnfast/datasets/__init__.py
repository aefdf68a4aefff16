"""Data sets by name or from files: inputs, targets, and what is to be learned.

>>> data = load("spiral")
>>> data.X_train.shape, data.task
((1000, 2), 'classification')
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..errors import DataError
from .base import Dataset, Table, Task, take
from .tables import as_numbers
from .text import Text, Vocabulary, load_text, read_text, windows

__all__ = [
    "NAMES",
    "Dataset",
    "Table",
    "Text",
    "Vocabulary",
    "as_numbers",
    "load",
    "load_text",
    "read_text",
    "take",
    "windows",
]

NAMES = ("xor", "spiral", "digits", "fashion-mnist")
FILE_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".npy", ".npz")
MAX_INTEGER_CLASSES = 20  # an integer target with more values than this is a number to be predicted

_X_KEYS = ("x_train", "x", "data", "images", "features")
_Y_KEYS = ("y_train", "y", "labels", "label", "targets", "target")


def load(
    source: str | os.PathLike[str],
    target: str | int | None = None,
    task: Task | None = None,
    *,
    drop: Sequence[str] = (),
    need_target: bool = True,
    report: Callable[[str], None] = lambda message: None,
) -> Dataset:
    """Load a data set.

    Parameters
    ----------
    source : str or path
        ``"xor"``, ``"spiral"``, ``"digits"``, ``"fashion-mnist"``; a folder of IDX files; or a ``.csv``,
        ``.tsv``, ``.parquet``, ``.npy`` or ``.npz`` file. A file of the same name as a data set is given
        with its folder, as in ``./xor``.
    target : str or int, optional
        The column to be predicted, by name or position; in a ``.npz`` file the array of the targets. In
        a ``.npz`` file with the arrays X and y (or ``x_train``, ``y_train``, ``x_test``, ``y_test``), and in a
        structured one, it may be left out.
    task : {"classification", "regression"}, optional
        Default: classification if the target is text, or whole numbers of at most 20 different
        values of which each occurs twice on average; otherwise regression.
    drop : sequence of str
        Columns to leave out.
    need_target : bool
        ``False`` reads files without targets too, for predictions.
    report : callable
        Called with a line of text before something is downloaded.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If the data cannot be found or read, or have no such column.
    ValueError
        If an option does not apply to these data.
    """
    if task is not None and task not in get_args(Task):
        raise ValueError(f"task must be 'classification' or 'regression', not {task!r}")
    name = os.fspath(source)
    path = Path(name)
    if name in NAMES or path.is_dir():
        if target is not None or drop:
            raise ValueError(f"{name!r} has its own target; a target or columns to drop are for tables")
        if task == "regression":
            raise ValueError(f"{name!r} is for classification")
        data = _named(name, report) if name in NAMES else _folder(path)
    elif not path.exists():
        raise DataError(f"{name!r} is neither a file, nor a folder, nor one of {', '.join(NAMES)}")
    elif name.lower().endswith(".npz"):
        data = _from_arrays(path, target, drop)
    else:
        data = _from_file(path, target, drop)
    if data.y_train is None:
        if need_target:
            raise DataError(_no_target(name, data))
        return data
    data.y_train = _clean_target(data.y_train, name)
    data.y_test = None if data.y_test is None else _clean_target(data.y_test, name)
    data.task = task or data.task or infer_task(data.y_train)
    return data


def infer_task(y: np.ndarray) -> Task:
    """The task that a target column suggests; the rule is in :func:`load`."""
    if y.ndim > 1:
        return "regression"
    if y.dtype.kind not in "iuf":
        return "classification"
    if y.dtype.kind == "f" and not np.array_equal(y, np.round(y)):
        return "regression"
    classes = len(np.unique(y))
    return "classification" if classes <= MAX_INTEGER_CLASSES and 2 * classes <= len(y) else "regression"


def _named(name: str, report: Callable[[str], None]) -> Dataset:
    if name == "fashion-mnist":
        from . import fashion_mnist

        return fashion_mnist.load(report)
    from . import small

    return {"xor": small.xor, "spiral": small.spiral, "digits": small.digits}[name]()


def _folder(path: Path) -> Dataset:
    from . import idx

    return idx.load_folder(path)


def _from_file(path: Path, target: str | int | None, drop: Sequence[str]) -> Dataset:
    from . import tables

    lower = path.name.lower()
    content: Table | np.ndarray
    if lower.removesuffix(".gz").endswith((".csv", ".tsv")):
        content = tables.read_csv(path)
    elif lower.endswith(".parquet"):
        content, drop = tables.read_parquet(path, drop), ()
    elif lower.endswith(".npy"):
        content = tables.read_npy(path)
    else:
        raise DataError(f"{path}: the ending is not one of {', '.join(FILE_ENDINGS)}")
    if isinstance(content, np.ndarray):
        if drop:
            raise ValueError(f"{path} has no named columns that could be dropped")
        return _split_array(str(path), content, target)
    unwanted = {content.resolve(column) for column in drop}
    if target is None:
        return Dataset(str(path), content.without(unwanted) if unwanted else content, None)
    label = content.resolve(target)
    if label in unwanted:
        raise ValueError(f"column {label!r} cannot be the target and be dropped")
    return Dataset(str(path), content.without(unwanted | {label}), content.columns[label], target=label)


def _split_array(name: str, array: np.ndarray, target: str | int | None) -> Dataset:
    """Inputs and target from the columns of one array."""
    if array.ndim < 2:
        raise DataError(f"{name} has shape {array.shape}; rows of inputs need at least two axes")
    pixel_max = 255.0 if array.dtype == np.uint8 and array.ndim > 2 else None
    if target is None:
        return Dataset(name, array, None, pixel_max=pixel_max)
    try:
        index = range(array.shape[1])[int(target)]
    except (ValueError, IndexError):
        index = -1
    if index < 0 or array.ndim > 2:
        raise DataError(f"{name} has shape {array.shape}: the target must be the number of a column, not {target!r}")
    return Dataset(name, np.delete(array, index, axis=1), array[:, index], target=str(index))


def _from_arrays(path: Path, target: str | int | None, drop: Sequence[str]) -> Dataset:
    from . import tables

    if drop:
        raise ValueError(f"{path} has no named columns that could be dropped")
    arrays = tables.read_npz(path)

    def pick(keys: Sequence[str]) -> Any:
        lower = {name.lower(): name for name in arrays}
        return next((lower[key] for key in keys if key in lower), None)

    x_key = pick(_X_KEYS)
    if x_key is None:
        raise DataError(f"{path} has no array called X or x_train; it has: {', '.join(arrays)}")
    y_key = str(target) if str(target) in arrays else pick(_Y_KEYS) if target is None else None
    if y_key is None:
        return _split_array(str(path), arrays[x_key], target)
    X, y = arrays[x_key], arrays[y_key]
    test = [pick((k,)) for k in ("x_test", "y_test")]
    X_test, y_test = (arrays[test[0]], arrays[test[1]]) if None not in test else (None, None)
    for what, inputs, targets in (("training", X, y), ("test", X_test, y_test)):
        if inputs is None or targets is None:
            continue
        if inputs.ndim < 2 or inputs.shape[1:] != X.shape[1:]:
            raise DataError(f"{path}: {what} inputs of shape {inputs.shape}; rows like {X.shape} are needed")
        if targets.ndim == 0 or len(inputs) != len(targets):
            raise DataError(f"{path}: {what} inputs of shape {inputs.shape}, but targets of shape {targets.shape}")
    pixel_max = 255.0 if X.dtype == np.uint8 and X.ndim > 2 else None
    return Dataset(str(path), X, y, X_test, y_test, target=y_key, pixel_max=pixel_max)


def _clean_target(y: np.ndarray, name: str) -> np.ndarray:
    """The target as numbers where it has numbers only, and otherwise as text; nothing may be missing."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind == "b":
        return y.astype(np.int64)
    if y.dtype.kind == "U":
        y = y.astype(object)
    missing = np.array([v is None for v in y]) if y.dtype == object else ~np.isfinite(y)
    if missing.any():
        row = int(np.argwhere(missing)[0][0])
        raise DataError(f"{name}: {missing.sum()} target values are missing or infinite, the first in row {row + 1}")
    numbers = as_numbers(y)
    if numbers is None or not np.isfinite(numbers).all():
        return y
    whole = y.ndim == 1 and bool((numbers == np.round(numbers)).all()) and bool((np.abs(numbers) < 2**53).all())
    return numbers.astype(np.int64) if whole else numbers


def _no_target(name: str, data: Dataset) -> str:
    if isinstance(data.X_train, Table):
        names = data.X_train.names
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return f"{name}: say which column is to be predicted (--target); the columns are: {shown}"
    return f"{name} has no targets: inputs of shape {data.X_train.shape}; give the number of a column (--target)"
