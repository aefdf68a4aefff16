"""A fully connected layer, tile by tile: product, bias and activation while the tile is in the cache."""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from typing import Any

import numpy as np

from . import activations, threads, tuning
from .driver import Call
from .gemm import blas_address, block_function, gemm_calls, reduce_call
from .intrinsics import chain_kernel
from .specialise import kernel

# The first seven slots are the activation tile's record
BLAS, EPILOGUE, X, W, DEPTH, DX, DW_PARTS = range(7, 14)


def linear_forward(I, F, task):
    first = task * I[3]
    rows = min(I[3], I[1] - first)
    x = I[9] + first * I[11] * T_SIZE
    out = I[0] + first * I[2] * T_SIZE
    BLOCK(I[7], 0, 0, rows, I[2], I[11], x, I[11], I[10], I[2], T(0.0), out, I[2])
    if I[8] != 0:
        chain_kernel(I[8], I, F, task)


def linear_backward(I, F, task):
    chain_kernel(I[8], I, F, task)
    first = task * I[3]
    rows = min(I[3], I[1] - first)
    m, k = I[2], I[11]
    dz = I[0] + first * m * T_SIZE
    if I[12] != 0:
        dx = I[12] + first * k * T_SIZE
        BLOCK(I[7], 0, 1, rows, k, m, dz, m, I[10], m, T(0.0), dx, k)
    if I[13] != 0:
        x = I[9] + first * k * T_SIZE
        BLOCK(I[7], 1, 0, k, m, rows, x, k, dz, m, T(0.0), I[13] + task * k * m * T_SIZE, m)


def forward_calls(
    x: np.ndarray,
    W: np.ndarray,
    b: np.ndarray | None,
    name: str,
    alpha: float,
    out: np.ndarray,
    saved: np.ndarray | None,
) -> list[Call]:
    """The call of ``out = f(x @ W + b)``; all arrays C-contiguous, of one dtype, float32 or float64."""
    (n, k), m, dtype = x.shape, W.shape[1], out.dtype
    number = threads.count() if 2 * n * m * k >= tuning.PARALLEL_FLOPS else 1
    tile = tuning.row_tile(n, m * dtype.itemsize, number)
    ints = np.zeros(12, np.int64)
    ints[:7] = (
        out.ctypes.data, n, m, tile, out.ctypes.data,
        0 if b is None else b.ctypes.data,
        0 if saved is None else saved.ctypes.data,
    )  # fmt: skip
    plain = name == "identity" and b is None and saved is None
    ints[BLAS:] = (
        blas_address(dtype),
        0 if plain else activations.forward_kernel(name, dtype),
        x.ctypes.data, W.ctypes.data, k,
    )  # fmt: skip
    tasks = -(-n // tile)
    address = kernel(linear_forward, dtype, BLOCK=block_function(dtype))
    return [
        Call(
            address,
            ints,
            np.array([alpha]),
            tasks,
            tasks > 1 and number > 1,
            k * m * tile > tuning.TINY_PRODUCT,
            (x, W, b, out, saved),
        )
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
    """The calls of the gradients; `dy` becomes dz. Partial sums are added in the tasks' order."""
    (n, k), m, dtype = x.shape, W.shape[1], dy.dtype
    number = threads.count() if 2 * n * m * k >= tuning.PARALLEL_FLOPS else 1
    tile = tuning.row_tile(n, m * dtype.itemsize, number)
    tasks = -(-n // tile)
    # A small W: each task adds up its own dW while its tile of dz is in the cache
    split_batch = tasks == 1 or k * m <= tuning.SPLIT_BATCH_ELEMENTS
    after: list[Call] = []
    db_parts, dW_parts = db, dW
    if tasks > 1:
        if db is not None:
            db_parts = np.empty((tasks, m), dtype)
            after.append(reduce_call(db_parts, db))
        if split_batch:
            dW_parts = np.empty((tasks, k, m), dtype)
            after.append(reduce_call(dW_parts, dW))
    if not split_batch:
        after += gemm_calls(x, dy, dW, True, False, 0.0)
    ints = np.zeros(14, np.int64)
    ints[:7] = (
        dy.ctypes.data, n, m, tile, dy.ctypes.data,
        dy.ctypes.data if saved is None else saved.ctypes.data,
        0 if db_parts is None else db_parts.ctypes.data,
    )  # fmt: skip
    ints[BLAS:] = (
        blas_address(dtype), activations.backward_kernel(name, dtype), x.ctypes.data, W.ctypes.data, k,
        0 if dx is None else dx.ctypes.data,
        dW_parts.ctypes.data if split_batch else 0,
    )  # fmt: skip
    keep: tuple[Any, ...] = (dy, x, W, saved, dx, dW_parts, db_parts)
    address = kernel(linear_backward, dtype, BLOCK=block_function(dtype))
    first = Call(
        address, ints, np.array([alpha]), tasks, tasks > 1 and number > 1, k * m * tile > tuning.TINY_PRODUCT, keep
    )
    return [first, *after]
