"""A fully connected layer, tile by tile: product, bias and activation while the tile is in the cache."""

from __future__ import annotations

import numpy as np

from . import activations, threads, tuning
from .driver import Call, sequence
from .gemm import depth_product, gemm_calls, reduce_call, rows_product


def forward_calls(
    x: np.ndarray,
    W: np.ndarray,
    b: np.ndarray | None,
    name: str,
    alpha: float,
    out: np.ndarray,
    saved: np.ndarray | None,
) -> list[Call]:
    """The calls of ``out = f(x @ W + b)``; all arrays C-contiguous, of one dtype, float32 or float64."""
    (n, k), m, dtype = x.shape, W.shape[1], out.dtype
    number = threads.count() if 2 * n * m * k >= tuning.PARALLEL_FLOPS else 1
    tile = tuning.row_tile(n, m * dtype.itemsize, number)
    *before, multiply = rows_product(x, W, out, tile)
    if name == "identity" and b is None and saved is None:
        fused = multiply
    else:
        ints = np.array(
            [
                out.ctypes.data, n, m, tile, out.ctypes.data,
                0 if b is None else b.ctypes.data,
                0 if saved is None else saved.ctypes.data,
            ],
        )  # fmt: skip
        address = activations.forward_kernel(name, dtype)
        epilogue = Call(address, ints, np.array([alpha]), multiply.tasks, keep=(b, out, saved))
        fused = sequence([multiply, epilogue])
    fused.parallel = fused.tasks > 1 and number > 1
    return [*before, fused]


def backward_calls(
    dy: np.ndarray,
    x: np.ndarray,
    W: np.ndarray,
    saved: np.ndarray | None,
    name: str,
    alpha: float,
    dx: np.ndarray | None,
    dW: np.ndarray,
    db: np.ndarray | None,
) -> list[Call]:
    """The calls of the gradients; `dy` becomes dz. Partial sums are added in the tasks' order."""
    (n, k), m, dtype = x.shape, W.shape[1], dy.dtype
    number = threads.count() if 2 * n * m * k >= tuning.PARALLEL_FLOPS else 1
    tile = tuning.row_tile(n, m * dtype.itemsize, number)
    tasks = -(-n // tile)
    # A small W: each task adds up its own dW while its tile of dz is in the cache
    split_batch = tasks == 1 or k * m <= tuning.SPLIT_BATCH_ELEMENTS
    before: list[Call] = []
    after: list[Call] = []
    db_parts, dW_parts = db, dW[None]
    if tasks > 1:
        if db is not None:
            db_parts = np.empty((tasks, m), dtype)
            after.append(reduce_call(db_parts, db))
        if split_batch:
            dW_parts = np.empty((tasks, k, m), dtype)
            after.append(reduce_call(dW_parts, dW))
    if not split_batch:
        after += gemm_calls(x, dy, dW, True, False, 0.0)
    ints = np.array(
        [
            dy.ctypes.data, n, m, tile, dy.ctypes.data,
            dy.ctypes.data if saved is None else saved.ctypes.data,
            0 if db_parts is None else db_parts.ctypes.data,
        ],
    )  # fmt: skip
    address = activations.backward_kernel(name, dtype)
    steps = [Call(address, ints, np.array([alpha]), tasks, keep=(dy, saved, db_parts))]
    if dx is not None:
        *before, multiply = rows_product(dy, W, dx, tile, trans_b=True)
        steps.append(multiply)
    if split_batch:
        steps += depth_product(x, dy, dW_parts, tile, trans_a=True)
    fused = sequence(steps)
    fused.parallel = tasks > 1 and number > 1
    return [*before, fused, *after]
