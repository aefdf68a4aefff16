"""What ``model.fit`` does before the first epoch: arguments become a source of batches and an engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..backends.base import Backend
from ..bundles import parts, row_shapes
from ..joint_loss import shapes_of
from ..losses import Loss
from ..network import Network
from ..optimizers import Optimizer
from . import data, resuming
from .callbacks import Callback
from .engine import Engine
from .history import History
from .output_metrics import metrics_of_outputs
from .run import Run
from .sources import BatchSource, ResidentSource, Source, StreamedSource
from .validation import Validation

__all__ = ["fit"]

# Share of the free memory that the data set may take to live on the device
_RESIDENT_SHARE = 0.5

# Steps whose learning rates are made ready at a time, where the number of steps is known and where it is not
_MOST_RATES, _RATES = 4096, 256


def _rates_at_once(steps: int | None, epochs: int) -> int:
    """How many learning rates to make ready at a time: those of whole epochs, where they are short."""
    if steps is None:
        return _RATES
    return steps * min(epochs, _MOST_RATES // steps) if steps <= _MOST_RATES else _MOST_RATES


def fits_on(backend: Backend, x: Any, dtype: Any) -> bool:
    """Whether the inputs may live on the device as `dtype`."""
    arrays = parts(x)
    if backend.xp is np and all(one.dtype in (dtype, np.int64) and one.flags.c_contiguous for one in arrays):
        return True  # gathered from where they are
    free, _ = backend.memory()
    return sum(one.size for one in arrays) * np.dtype(dtype).itemsize <= _RESIDENT_SHARE * free


def fit(
    model: Network,
    x: Any,
    y: Any,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    backend: Backend,
    dtype: Any,
    precision: str,
    validation_data: Any,
    validation_split: float,
    shuffle: bool,
    sample_weight: Any,
    class_weight: Any,
    metrics: Any,
    callbacks: Sequence[Callback],
    seed: int | None,
    verbose: int,
    resume: Any = None,
) -> History:
    """Train `model`; the arguments are those of ``Sequential.fit``, resolved."""
    wanted = metrics_of_outputs(model, loss, metrics)
    held = backend.reduced(precision) or dtype  # what inputs become
    if class_weight is not None and not loss.classification:
        raise ValueError(f"class_weight needs a loss of classes; the targets of {type(loss).__name__} are none")
    with ExitStack() as stack:
        stack.enter_context(model.unbuilt_on_error())
        resumed = None
        if resume is not None:
            resumed = resuming.resume(
                model, resume, loss=loss, optimizer=optimizer, backend=backend, precision=precision, seed=seed
            )
        if y is None and data.is_batches(x):
            if validation_split:
                raise ValueError("validation_split needs arrays; give validation_data beside an iterable of batches")
            if sample_weight is not None:
                raise ValueError("sample_weight needs arrays; yield (x, y, sample_weight) from the iterable")
            if isinstance(class_weight, str):
                raise ValueError(f"class_weight={class_weight!r} needs arrays; beside an iterable, give a dict")
            numbers = (model.number_of_inputs, len(loss.parts))
            batches = BatchSource(x, loss, class_weight, dtype, held, numbers)
            model.prepare(batches.in_shapes, seed, dtype)
            batches.expect(model.built, model.in_shapes)
            source: Source = batches
        else:
            x, y = _checked_arrays(model, backend, x, y, held, len(loss.parts))
            model.prepare(row_shapes(x), seed, dtype)
            target = loss.targets(y, shapes_of(model.out_shapes), dtype)
            if sample_weight is not None:
                sample_weight = data.sample_weights(sample_weight, None, target, len(y), np.float64)
            if validation_split:
                if validation_data is not None:
                    raise ValueError("give validation_data or validation_split, not both")
                rows, rest = data.split(len(x), validation_split, model.training_state.seed)
                own = None if sample_weight is None else sample_weight[rest]
                index = backend.asarray if data.on_gpu(x) else np.asarray
                validation_data = (x[index(rest)], y[rest], own)
                x, target = x[index(rows)], target[rows]
                sample_weight = None if sample_weight is None else sample_weight[rows]
            # After the split: "balanced" counts the rows that are trained on
            weight = data.sample_weights(sample_weight, class_weight, target, len(target), dtype)
            kind = ResidentSource if data.on_gpu(x) or fits_on(backend, x, held) else StreamedSource
            source = kind(x, target, weight, min(batch_size, len(target)), shuffle, model.training_state.seed)
        measured = [one.output for one in wanted]
        if resumed is not None:
            resumed.fit_to((source.rows, source.batch), measured, callbacks, resume)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
                raise TypeError("validation_data must be (X, y) or (X, y, sample_weight)")
            x_val, y_val, weight_val = (*validation_data, None)[:3]
            validation = Validation(model, x_val, y_val, weight_val, loss, wanted, dtype, held)
        stack.enter_context(model.unchanged_on_error())
        engine = Engine(
            model,
            loss,
            optimizer,
            backend,
            dtype,
            source.batch,
            targets=source.targets,
            weighted=source.weighted,
            lr_steps=_rates_at_once(source.steps, epochs),
            precision=precision,
        )
        source.attach(engine, measured)
        if validation is not None and fits_on(backend, validation.x, held):
            validation.live_on(backend, held)
    try:
        return Run(model, engine, source, validation, wanted, callbacks, epochs, verbose, resumed).run()
    finally:
        del engine, source, validation  # and what they hold on the device
        backend.release()


def _checked_arrays(model: Network, backend: Backend, x: Any, y: Any, dtype: Any, outputs: int) -> tuple[Any, Any]:
    """Inputs, which stay on a GPU if they are there and the backend is, and targets on the host."""
    if y is None:
        raise TypeError("y is missing; only an iterable of (x, y) batches goes without it")
    x = data.as_inputs(x, model.number_of_inputs, "X", None if backend.xp is np else backend.asarray)
    y = data.as_targets(y, outputs, "y")
    data.check_inputs(x, model.in_shapes if model.is_built else None)
    if len(x) != len(y):
        raise ValueError(f"X has {len(x)} rows, y has {len(y)}")
    if len(x) == 0:
        raise data.EmptyDataError("X has no rows: there is nothing to train on")
    for one in parts(x):
        if not isinstance(one, np.ndarray) and one.dtype.kind == "f" and not bool(backend.xp.isfinite(one).all()):
            raise ValueError("X contains NaN or infinity; training needs finite numbers")
    nodes = model.built if model.is_built else model.nodes(row_shapes(x))
    return data.as_kind(x, nodes, "X", dtype), y
