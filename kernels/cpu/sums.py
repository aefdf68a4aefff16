"""Sums of the parts that tasks computed, in the order of the parts: a result does not depend on who was first."""

# ruff: noqa: E741 - globals in capitals are put in where the copies are made
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import threads, tuning
from .driver import Call
from .specialise import kernel

__all__ = ["reduce_call", "reduced_together"]


def add_parts(I, F, task):
    """``out = beta * out + sum of the parts``, in their order; I: out, size, parts, count, chunk, parts' distance."""
    first = task * I[4]
    size = min(I[4], I[1] - first)
    beta = T(F[0])
    out = ptr(I[0] + first * T_SIZE)
    for i in range(size):
        out[i] = T(0.0) if beta == T(0.0) else beta * out[i]
    for p in range(I[3]):
        part = ptr(I[2] + (p * I[5] + first) * T_SIZE)
        for i in range(size):
            out[i] += part[i]


def add_all_parts(I, F, task):
    """Several sums of parts; I: number, chunk, then out, size, parts, count of each.

    A task does a chunk of the results, as if they lay one after the other.
    """
    first, end = task * I[1], (task + 1) * I[1]
    for s in range(I[0]):
        size = I[3 + 4 * s]
        a, b = max(first, 0), min(end, size)
        if a < b:
            out = ptr(I[2 + 4 * s])
            for i in range(a, b):
                out[i] = T(0.0)
            for p in range(I[5 + 4 * s]):
                part = ptr(I[4 + 4 * s] + p * size * T_SIZE)
                for i in range(a, b):
                    out[i] += part[i]
        first, end = first - size, end - size


def reduced_together(calls: Sequence[Call]) -> list[Call]:
    """Calls of :func:`reduce_call` of one dtype with no `beta` as one, others after it as they are.

    The results lie in the order of their addresses, so that a thread adds up the gradients that it will update.
    """
    dtypes = {kernel(add_parts, dtype): dtype for dtype in {call.keep[-1].dtype for call in calls if call.reduces}}
    rest = [call for call in calls if not call.reduces]
    merged: list[Call] = []
    for address, dtype in dtypes.items():
        same = sorted((c for c in calls if c.reduces and c.function == address), key=lambda call: int(call.ints[0]))
        if len(same) == 1:
            merged += same
            continue
        total = sum(int(call.ints[1]) for call in same)
        number = threads.count() if total >= tuning.PARALLEL_TRANSFERS else 1
        merged.append(_sums_call(same, -(-total // (number * 64)) * 64, dtype))
    return [*merged, *rest]


def _sums_call(calls: Sequence[Call], chunk: int, dtype: Any) -> Call:
    """What `calls` of :func:`reduce_call` do, as one."""
    records = [v for call in calls for v in call.ints[:4]]
    tasks = -(-sum(int(call.ints[1]) for call in calls) // chunk)
    ints = np.array([len(calls), chunk, *records])
    return Call(kernel(add_all_parts, dtype), ints, np.zeros(1), tasks, tasks > 1, keep=tuple(calls))


def reduce_call(parts: np.ndarray, out: np.ndarray, beta: float = 0.0) -> Call:
    """``out = beta * out + parts.sum(axis=0)``, always in the same order; `out` is a result of the step, read late.

    Each of the parts is in one piece; between them there may be gaps.
    """
    chunk = min(tuning.CHUNK_ELEMENTS, max(-(-out.size // (16 * threads.count())) * 16, 256))
    tasks, apart = -(-out.size // chunk), parts.strides[0] // parts.itemsize
    ints = np.array([out.ctypes.data, out.size, parts.ctypes.data, len(parts), chunk, apart], np.int64)
    parallel = tasks > 1 and parts.size >= tuning.PARALLEL_ELEMENTS and threads.count() > 1
    call = Call(kernel(add_parts, out.dtype), ints, np.array([beta]), tasks, parallel, keep=(parts, out), when="late")
    call.reduces, call.writes = beta == 0.0 and apart == out.size, (out,)
    return call
