"""From whatever the user has to checked arrays: inputs, sample weights, validation parts, batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import random
from ..bundles import Bundle, parts
from ..errors import NNFastError
from ..layers.graph import Built
from ..losses import classes_of_steps
from ..plan_layout import input_dtypes, readers_of_inputs

__all__ = ["as_array", "as_kind", "check_finite", "check_inputs", "is_batches", "prefetch", "sample_weights", "split"]

_CHUNK_BYTES = 1 << 24


def as_array(x: Any, what: str) -> np.ndarray:
    """`x` as a numeric NumPy array in native byte order, without a copy where it already is one.

    Parameters
    ----------
    x : array_like
        A NumPy array (memory-mapped ones stay so), a CuPy array, a PyTorch tensor, a pandas or polars
        column or frame, anything with ``__array__`` or ``__dlpack__``, or nested sequences of numbers.
    what : str
        How error messages call it.

    Raises
    ------
    TypeError
        If the elements are not real numbers.
    ValueError
        If nested sequences are ragged, or there is no row axis.
    """
    if type(x) is np.ndarray and x.dtype.kind == "f" and x.ndim and x.dtype.isnative:
        return x  # at once: a single row is predicted in microseconds
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(f"{what} is a masked array with masked elements; fill them first")
    if isinstance(x, np.ndarray):
        array = x
    elif hasattr(x, "__cuda_array_interface__") and hasattr(x, "get"):
        array = x.get()  # CuPy refuses implicit conversion
    elif hasattr(x, "detach") and hasattr(x, "cpu"):
        array = np.asarray(x.detach().cpu())  # PyTorch: neither a graph nor a GPU goes into NumPy
    elif hasattr(x, "__array__") or isinstance(x, (list, tuple, int, float, np.generic)):
        try:
            array = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{what} is not a rectangular array: {error}") from None
        if array.dtype == object and hasattr(x, "columns") and all(t.kind in "fiub" for t in x.dtypes):
            # pandas, columns of several types of number: booleans beside floats, or its own nullable types
            array = x.to_numpy(np.float64, na_value=np.nan)
    elif hasattr(x, "__dlpack__"):
        array = np.from_dlpack(x)
    else:
        raise TypeError(f"{what} must be an array or something that converts to one, not {type(x).__name__}")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{what} must hold real numbers, not dtype {array.dtype}; encode text and categories first")
    if array.ndim == 0:
        raise ValueError(f"{what} must have a row axis, it is a single number")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def on_gpu(x: Any) -> bool:
    """Whether `x` is an array in GPU memory."""
    return hasattr(x, "__cuda_array_interface__")


def check_finite(x: np.ndarray, what: str, dtype: Any = None) -> None:
    """Raise ``ValueError`` naming the first row of `x` that holds NaN or infinity, or would as `dtype`."""
    dtype = x.dtype if dtype is None else np.dtype(dtype)
    # Whole numbers can be beyond float16 only
    if x.size == 0 or (x.dtype.kind != "f" and dtype != np.float16):
        return
    rows = max(1, _CHUNK_BYTES // max(1, x.nbytes // x.shape[0]))
    for start in range(0, x.shape[0], rows):
        with np.errstate(over="ignore"):
            finite = np.isfinite(x[start : start + rows].astype(dtype, copy=False))
        if not finite.all():
            row, *place = np.argwhere(~finite)[0]
            value = x[(start + row, *place)]
            where = f"row {start + row}" + (f", column {', '.join(map(str, place))}" if place else "")
            raise ValueError(f"{what} contains {value} at {where}; training needs numbers that are finite as {dtype}")


def as_inputs(x: Any, number: int, what: str, resident: Callable[[Any], Any] | None = None) -> Any:
    """The inputs of a model as an array, or a bundle where it has several; :func:`as_array` says what they may be.

    Arrays in GPU memory go through `resident`, where it is given.

    Raises
    ------
    TypeError, ValueError
        If there are more or fewer than `number`, or an array does not do.
    """

    def one(x: Any, what: str) -> Any:
        if resident is not None and on_gpu(x) and not isinstance(x, np.ndarray):
            return resident(x)
        return as_array(x, what)

    if isinstance(x, Bundle):
        return x
    if number == 1:
        return one(x, what)
    if not isinstance(x, (list, tuple)) or len(x) != number:
        given = f"{len(x)}" if isinstance(x, (list, tuple)) else f"one {type(x).__name__}"
        raise TypeError(f"the model has {number} inputs: {what} must be a list of as many arrays, got {given}")
    return _bundle([one(each, f"{what}[{k}]") for k, each in enumerate(x)], what)


def as_targets(y: Any, number: int, what: str) -> Any:
    """The targets of a model as an array, or a bundle where it has several outputs; errors as :func:`as_inputs`."""
    if number == 1 or isinstance(y, Bundle):
        return y if isinstance(y, Bundle) else as_array(y, what)
    if not isinstance(y, (list, tuple)) or len(y) != number:
        given = f"{len(y)}" if isinstance(y, (list, tuple)) else f"one {type(y).__name__}"
        raise TypeError(f"the model has {number} outputs: {what} must be a list of as many arrays, got {given}")
    return _bundle([as_array(each, f"{what}[{k}]") for k, each in enumerate(y)], what)


def _bundle(arrays: list[Any], what: str) -> Bundle:
    if len({len(each) for each in arrays}) > 1:
        raise ValueError(f"{what} must be arrays of as many rows, got {', '.join(str(len(each)) for each in arrays)}")
    return Bundle(arrays)


def as_kind(x: Any, nodes: Sequence[Built], what: str, dtype: Any) -> Any:
    """`x` as what a model's first layers take: numbers that are finite as `dtype`, or indices in range, as int64.

    Raises
    ------
    ValueError
        If a number is not finite, or what should be an index is not whole or out of range; the message names the place.
    """
    for one, kind in zip(parts(x), input_dtypes(nodes, dtype), strict=True):
        if kind != np.int64 and not on_gpu(one):
            check_finite(one, what, dtype)
    return with_indices(x, nodes, what)


def with_indices(x: Any, nodes: Sequence[Built], what: str) -> Any:
    """`x` with what layers take as indices checked, as int64."""
    kinds = input_dtypes(nodes, np.float32)
    if np.int64 not in kinds:
        return x
    readers = readers_of_inputs(nodes)
    found = [
        _indices(one, [layer for k, layer in readers if k == -1 - number], what) if kind == np.int64 else one
        for number, (one, kind) in enumerate(zip(parts(x), kinds, strict=True))
    ]
    return Bundle(found) if isinstance(x, Bundle) else found[0]


def _indices(x: Any, layers: Sequence[Any], what: str) -> Any:
    host = as_array(x, what) if on_gpu(x) else x
    if host.dtype.kind == "f" and host.size:
        whole = np.isfinite(host) & (np.floor(host) == host)
        if not whole.all():
            row, *place = np.argwhere(~whole)[0]
            raise ValueError(f"{what} must hold indices: row {row} has {host[(row, *place)]}, which is not whole")
    if host.dtype.kind != "i" or host.dtype.itemsize != 8:
        host = host.astype(np.int64)
    for layer in layers:
        check = getattr(layer, "check_indices", None)
        if check is not None:
            try:
                check(host)
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None
    return host if not on_gpu(x) or x.dtype != np.int64 else x


def check_inputs(x: Any, in_shapes: Sequence[tuple[int, ...]] | None, what: str = "X") -> None:
    """Check the shapes of inputs against those of a row, where the model has them."""
    arrays = parts(x)
    for k, one in enumerate(arrays):
        name = what if len(arrays) == 1 else f"{what}[{k}]"
        _check_input(one, None if in_shapes is None else in_shapes[k], name)


def _check_input(x: np.ndarray, in_shape: tuple[int, ...] | None, what: str) -> None:
    if x.ndim < 2:
        raise ValueError(
            f"{what} must have a row axis and at least one feature axis, its shape is {x.shape}; "
            f"use {what}.reshape(-1, 1) for one feature or {what}.reshape(1, -1) for one row"
        )
    if in_shape is not None and x.shape[1:] != tuple(in_shape):
        expected = ", ".join(map(str, in_shape))
        raise ValueError(f"{what} of shape {x.shape} does not fit the model, which takes (n, {expected})")


def sample_weights(
    sample_weight: Any, class_weight: dict[Any, float] | str | None, target: np.ndarray, rows: int, dtype: Any
) -> np.ndarray | None:
    """Weights per row, (rows,), from sample weights and class weights; ``None`` where neither is given.

    Parameters
    ----------
    sample_weight : array_like or None
        (rows,), finite, not negative, not all zero.
    class_weight : dict, "balanced" or None
        Factor per class, 1 for classes it does not name; ``"balanced"`` is ``rows / (classes * count)``.
    target : ndarray
        What the loss made of the targets.
    rows : int
        Number of rows.
    dtype : dtype
        Of the result.

    Raises
    ------
    ValueError, TypeError
        If anything does not fit.
    """
    weight = None
    if sample_weight is not None:
        weight = np.array(as_array(sample_weight, "sample_weight"), np.float64)
        if weight.shape != (rows,):
            raise ValueError(f"sample_weight must have shape ({rows},), got {weight.shape}")
        check_finite(weight, "sample_weight", dtype)
        if (weight < 0).any():
            raise ValueError(f"sample_weight must not be negative, row {int(np.argmin(weight))} has {weight.min():g}")
        if not weight.any():
            raise ValueError("sample_weight is zero for every row")
    if class_weight is not None:
        if isinstance(target, Bundle):
            raise ValueError("class_weight weighs rows by their class, but the model has several outputs")
        if classes_of_steps(target):
            raise ValueError("class_weight weighs rows by their class, but each row has a class for every step")
        labels = _classes_of(target)
        factors = _class_factors(class_weight, labels)
        weight = factors if weight is None else weight * factors
    return None if weight is None else weight.astype(dtype)


def _classes_of(target: np.ndarray) -> np.ndarray:
    if target.ndim == 1:
        return target
    if target.shape[1] > 1:
        return target.argmax(axis=1)
    return (target[:, 0] > 0).astype(np.int64)


def _class_factors(class_weight: dict[Any, float] | str, labels: np.ndarray) -> np.ndarray:
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight must be a dict or 'balanced', got {class_weight!r}")
        classes, counts = np.unique(labels, return_counts=True)
        class_weight = {int(c): len(labels) / (len(classes) * n) for c, n in zip(classes, counts, strict=True)}
    if not isinstance(class_weight, dict):
        raise TypeError(f"class_weight must be a dict or 'balanced', not {type(class_weight).__name__}")
    factors = np.ones(labels.shape[0])
    for label, factor in class_weight.items():
        factor = float(factor)
        if not 0.0 <= factor < float("inf"):
            raise ValueError(f"class_weight[{label!r}] must be finite and not negative, got {factor}")
        factors[labels == label] = factor
    return factors


def split(n: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random row numbers for training and validation, each in ascending order.

    Raises
    ------
    ValueError
        If `fraction` is not in ``(0, 1)`` or leaves one part empty.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"validation_split must be in [0, 1), got {fraction}")
    held = round(n * fraction)
    if held == 0 or held == n:
        raise ValueError(f"validation_split={fraction} of {n} rows leaves one part empty")
    order = random.generator(seed, random.SPLIT).permutation(n)
    return np.sort(order[held:]), np.sort(order[:held])


def is_batches(x: Any) -> bool:
    """Whether `x`, given without targets, is an iterable of batches rather than an array."""
    if isinstance(x, (list, tuple)) and x and isinstance(x[0], tuple):
        return len(x[0]) > 1 and not np.isscalar(x[0][0])  # of batches, not of rows
    if isinstance(x, (np.ndarray, list, tuple)) or hasattr(x, "__array__") or hasattr(x, "__dlpack__"):
        return False
    return isinstance(x, Iterable) and not isinstance(x, (str, bytes, dict))


def unpack_batch(batch: Any) -> tuple[Any, Any, Any]:
    """``(x, y)`` or ``(x, y, sample_weight)`` from one item of an iterable of batches."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise TypeError(f"each batch must be (x, y) or (x, y, sample_weight), got {type(batch).__name__}{size}")
    x, y, *weight = batch
    return x, y, weight[0] if weight else None


class _Failed:
    """What the prefetching thread hands over instead of an item when it met an exception."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(items: Iterable[Any], depth: int = 2) -> Iterator[Any]:
    """Iterate over `items` in a thread that stays up to `depth` items ahead.

    An exception in the thread is raised here; closing the iterator ends the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(end)
        except BaseException as error:  # handed over, whatever it is
            put(_Failed(error))

    thread = threading.Thread(target=work, name="nnfast-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if item is end:
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stop.set()
        thread.join(timeout=5.0)


class EmptyDataError(NNFastError, ValueError):
    """There is not a single row to train on."""
