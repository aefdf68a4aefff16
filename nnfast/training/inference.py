"""Forward passes in chunks, so that memory stays bounded: predict, evaluate, and validation in a fit."""

from __future__ import annotations

import numpy as np

from ..backends.base import Array
from ..kernels import step_state as S
from ..losses import Loss
from ..network import Network
from ..plan import without_link
from ..plan_layout import PlanLayout

__all__ = ["forward"]

# Bytes of activations that a chunk may take: as much as a large last-level cache, little enough for memory
_CHUNK_BYTES = 1 << 25
_MAX_ROWS = 16384


def chunk_rows(model: Network, rows: int, batch_size: int | None) -> int:
    """Rows of a chunk: the user's number, or what keeps the activations within bounds."""
    if batch_size is not None:
        return min(batch_size, max(rows, 1))
    one = PlanLayout(model.built, 16, model.parameters.dtype, training=False).nbytes // 16
    most = max(1, min(_MAX_ROWS, _CHUNK_BYTES // max(one, 1)))
    # A power of two, so that calls with nearby numbers of rows share a plan
    return min(most, 1 << max(0, rows - 1).bit_length())


def forward(
    model: Network,
    x: Array,
    *,
    loss: Loss | None = None,
    target: Array | None = None,
    weight: Array | None = None,
    batch_size: int | None = None,
    outputs: bool = True,
) -> tuple[np.ndarray | None, float]:
    """Outputs and mean loss of all rows, on the device that the weights are on.

    With a `loss`, outputs are those that the loss starts from (logits).

    Returns
    -------
    outputs : ndarray or None
        (n, *out_shape), on the host.
    loss : float
        NaN where there is none.
    """
    rows = x.shape[0]
    built = without_link(model.built, loss)
    dtype = model.parameters.dtype
    result = np.empty((rows, *(built[-1].out_shape if built else x.shape[1:])), dtype) if outputs else None
    if rows == 0:
        return result, float("nan")
    batch = chunk_rows(model, rows, batch_size)
    spec = None if target is None else (target.shape[1:], np.dtype(str(target.dtype)))
    with model.plans.borrow(built, model.parameters, batch, loss, spec, weight is not None) as plan:
        bk = plan.backend
        if loss is not None:
            bk.fill(plan.state, 0.0)
            bk.fill(plan.state[S.STEP : S.STEP + 1], 1.0)  # what BAD_STEP is set to
        for start in range(0, rows, batch):
            part = slice(start, min(start + batch, rows))
            size = part.stop - start
            plan.feed(x[part], None if target is None else target[part], None if weight is None else weight[part])
            plan.run(size)
            if result is not None:
                result[part] = bk.to_numpy(plan.output(size))
        if loss is None:
            return result, float("nan")
        state = plan.read_state()
    if state[S.BAD_STEP] or not state[S.WEIGHT_SUM]:
        return result, float("nan")
    return result, float(state[S.LOSS_SUM] / state[S.WEIGHT_SUM])
