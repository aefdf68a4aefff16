"""Forward passes in chunks, so that memory stays bounded: predict, evaluate, and validation in a fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.base import Array
from ..bundles import parts
from ..kernels import step_state as S
from ..layers.graph import outputs_of
from ..losses import Loss
from ..network import Network
from ..plan import Plan, without_link

__all__ = ["forward"]

# Bytes of activations that a chunk may take: as much as a large last-level cache, little enough for memory
_CHUNK_BYTES = 1 << 25
_MAX_ROWS = 16384
# Steps between two chances for Ctrl-C
_STEPS = 16


def chunk_rows(model: Network, rows: int, batch_size: int | None) -> int:
    """Rows of a chunk: the user's number, or what keeps the activations within bounds."""
    if batch_size is not None:
        return min(batch_size, max(rows, 1))
    if rows < 2:
        return 1
    row_bytes = model.plans.row_bytes(model.built, model.parameters.activations)
    most = max(1, min(_MAX_ROWS, _CHUNK_BYTES // row_bytes))
    # A power of two, so that calls with nearby numbers of rows share a plan
    return min(most, 1 << (rows - 1).bit_length())


def _gathered(plan: Plan, arrays: list[np.ndarray], batch: int, results: list[np.ndarray]) -> bool:
    """Run all rows where the steps can take them from the user's own arrays and leave the outputs in `results`.

    Nothing is copied but what a step works on, and Python is not asked between steps. Returns whether that could be.
    """
    rows = len(arrays[0])
    if plan.backend.xp is not np or not plan.takes(arrays):
        return False
    kept = [result.reshape(rows, -1) for result in results]
    plan.backend.fill(plan.state[S.ROW : S.ROW + 1], 0.0)
    plan.use_data(tuple(arrays), np.arange(rows), kept)
    try:
        full, rest = divmod(rows, batch)
        while full:
            steps = min(full, _STEPS)
            plan.run(batch, steps)
            full -= steps
        if rest:
            plan.run(rest)
    finally:
        plan.use_data((), None)
    return True


def _in_chunks(plan: Plan, x: Any, target: Any, weight: Array | None, batch: int, results: list[Array]) -> None:
    """Run all rows, chunk by chunk, and keep the outputs in `results`, on the host or the device."""
    arrays = [*parts(x), *parts(target), *parts(weight)]
    if _gathered(plan, arrays, batch, results):
        return
    for start in range(0, len(x), batch):
        part = slice(start, min(start + batch, len(x)))
        plan.infer(x[part], None if target is None else target[part], None if weight is None else weight[part])
        for output, result in zip(plan.outputs_of(part.stop - part.start), results, strict=bool(results)):
            if isinstance(result, np.ndarray):
                result[part] = plan.backend.to_numpy(output)
            else:
                plan.backend.copy(output, out=result[part])


def _one_or_all(results: list[Array]) -> Any:
    if not results:
        return None
    return results[0] if len(results) == 1 else results


def forward(
    model: Network,
    x: Any,
    *,
    loss: Loss | None = None,
    target: Any = None,
    weight: Array | None = None,
    batch_size: int | None = None,
    outputs: bool = True,
    on_device: bool = False,
) -> tuple[Any, float]:
    """Outputs and mean loss of all rows, on the device that the weights are on.

    With a `loss`, outputs are those that the loss starts from (logits).

    Returns
    -------
    outputs : array, list of array or None
        (n, *out_shape), on the host, or `on_device`; a list where the model has several.
    loss : float
        NaN where there is none.
    """
    rows, parameters = x.shape[0], model.parameters
    built = without_link(model.built, loss)
    batch = chunk_rows(model, rows, batch_size)
    results: list[Array] = []
    empty = parameters.backend.empty if on_device else np.empty
    if outputs and (on_device or not 0 < rows <= batch):
        results = [empty((rows, *node.out_shape), parameters.dtype) for node in outputs_of(built)]
    if rows == 0:
        return _one_or_all(results), float("nan")
    spec = [(one.shape[1:], np.dtype(str(one.dtype))) for one in parts(target)]
    key, plan = model.plans.take(built, parameters, batch, loss, spec, weight is not None)
    try:
        bk = plan.backend
        if loss is not None:
            bk.fill(plan.state, 0.0)
            bk.fill(plan.state[S.STEP : S.STEP + 1], 1.0)  # what BAD_STEP is set to
        if rows > batch:
            _in_chunks(plan, x, target, weight, batch, results)
        else:
            plan.infer(x, target, weight)
            if on_device and outputs:
                for output, result in zip(plan.outputs_of(rows), results, strict=True):
                    bk.copy(output, out=result)
            elif outputs:
                results = [np.array(bk.to_numpy(output), parameters.dtype) for output in plan.outputs_of(rows)]
        if loss is None:
            return _one_or_all(results), float("nan")
        state = plan.read_state()
    finally:
        model.plans.give_back(key, plan)
    if state[S.BAD_STEP] or not state[S.WEIGHT_SUM]:
        return _one_or_all(results), float("nan")
    return _one_or_all(results), float(state[S.LOSS_SUM] / state[S.WEIGHT_SUM])
