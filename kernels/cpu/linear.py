"""A fully connected layer on tiles of the batch's rows: product, bias and activation, and their gradients."""

from __future__ import annotations

import numpy as np

from .. import memory
from . import activations, threads, tuning
from .driver import Call
from .gemm import depth_product, gemm_calls, rows_product, starts_from_bias
from .sums import reduce_call


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
    (n, k), m = x.shape, W.shape[1]
    tiles = tuning.row_tiles(n, threads.count())
    if not starts_from_bias(n, m, k, out.dtype):
        return [*rows_product(x, W, out, tiles), activations.forward_call(name, alpha, out, b, saved, tiles)]
    if name in ("identity", "relu") and saved is None:
        return rows_product(x, W, out, tiles, bias=b, relu=name == "relu")
    return [
        *rows_product(x, W, out, tiles, bias=b),
        activations.forward_call(name, alpha, out, None, saved, tiles),
    ]


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
    """The calls of the gradients; `dy` becomes dz. Partial sums are added in the tiles' order."""
    (n, k), m, dtype = x.shape, W.shape[1], dy.dtype
    tiles = tuning.row_tiles(n, threads.count())
    calls: list[Call] = []
    after: list[Call] = []
    parts = None
    if db is not None:
        parts = db[None] if tiles.number == 1 else memory.empty((tiles.number, m), dtype)
        if tiles.number > 1:
            after.append(reduce_call(parts, db))
    if name != "identity" or db is not None:
        calls.append(activations.backward_call(name, alpha, dy, dy if saved is None else saved, parts, tiles))
    if dx is not None:
        calls += rows_product(dy, W, dx, tiles, trans_b=True)
    # A few rows are one thread's, but a large gradient of them is enough for all
    shared = threads.count() > 1 and k * m > tuning.SPLIT_BATCH_ELEMENTS and 2 * n * k * m >= tuning.PARALLEL_FLOPS
    if tiles.tasks == 1 and tiles.number == 1 and not shared:
        calls += depth_product(x, dy, dW[None], tiles)
    elif tuning.splits_batch(k * m, n, threads.count()):
        dW_parts = dW[None] if tiles.tasks == 1 else memory.empty((tiles.tasks, k, m), dtype)
        calls += depth_product(x, dy, dW_parts, tiles)
        if tiles.tasks > 1:
            after.append(reduce_call(dW_parts, dW))
    else:
        for call in gemm_calls(x, dy, dW, True, False, 0.0):
            call.when, call.reads, call.writes = "late", (x, dy), (dW,)
            after.append(call)
    return [*calls, *after]
