"""The calls of one step of an optimizer, on all weights or on each thread's copy of them."""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import optimizers, threads, tuning
from .driver import Call, Updating
from .specialise import function, kernel


def place(I, task):
    """Bytes to a task's first element, in the arrays and in the gradient, how many it does, and I[4].

    Where the gradient has PARTS, a task does all of a copy of the arrays, `chunk` elements after the one before.
    """
    first = task * I[3]
    if PARTS > 1:
        return first * T_SIZE, 0, I[2], I[4]
    return first * T_SIZE, first * T_SIZE, min(I[3], I[2] - first), I[4]


def gradient(grad, i, apart, scale):
    """Element i of the gradient, or of the sum of its PARTS, in their order, times `scale`."""
    total = grad[i]
    # A loop here would be one that compilers do not make vectors of
    if PARTS > 1:
        total += grad[i + apart]
    if PARTS > 2:
        total += grad[i + 2 * apart]
    if PARTS > 3:
        total += grad[i + 3 * apart]
    return scale * total


_PLAIN = {
    f.__name__: f
    for f in (
        optimizers.sgd, optimizers.adagrad, optimizers.adamax, optimizers.nadam, optimizers.lion, optimizers.ema,
    )
}  # fmt: skip


def step_calls(name: str, state: np.ndarray, arrays: tuple[np.ndarray | None, ...]) -> list[Call]:
    """The calls of one optimizer step on flat arrays of one dtype; absent arrays are ``None``.

    Parameters
    ----------
    name : str
        ``sgd``, ``momentum``, ``nesterov``, ``adagrad``, ``rmsprop``, ``adam``, ``adamw``, ``adamax``, ``nadam``,
        ``lion`` or ``ema``.
    state : ndarray
        The step state.
    arrays : tuple
        Parameters, gradient, and the optimizer's own arrays in the order of the contract.
    """
    first = arrays[0]
    assert first is not None
    dtype, size = first.dtype, first.size
    template: Any = _PLAIN.get(name)
    names: dict[str, Any] = {}
    if name in ("momentum", "nesterov"):
        template, names = optimizers.sgd_momentum, {"NESTEROV": name == "nesterov"}
    elif name in ("adam", "adamw"):
        template, names = optimizers.adam, {"DECOUPLED": name == "adamw"}
    elif name == "rmsprop":
        names = {"CENTERED": arrays[3] is not None, "MOMENTUM": arrays[4] is not None}
        template = optimizers.rmsprop
    variant = "_".join(key.lower() for key, on in names.items() if on)

    def address(parts: int = 1) -> int:
        functions = {
            each.__name__.upper(): function(each, dtype, f"of_{parts}", exact=True, PARTS=parts)
            for each in (place, gradient)
        }
        which = "_".join(filter(None, (variant, f"of_{parts}" if parts > 1 else "")))
        return kernel(template, dtype, which, exact=True, **names, **functions)

    def record_of(where: np.ndarray, number: int, chunk: int, apart: int, at: Sequence[int]) -> np.ndarray:
        return np.array([state.ctypes.data, where.ctypes.data, number, chunk, apart, *at], np.int64)

    record = np.array([state.ctypes.data, 0, 0, name == "nadam"], np.int64)

    def pieces(cuts: Sequence[tuple[int, int, int]]) -> list[Call]:
        """A call for each ``(first, size, chunk)`` of the elements."""
        counts = [-(-number // chunk) for _, number, chunk in cuts]
        flags = np.zeros(max(sum(counts), tuning.OWN_COPIES))  # for copies, too
        record[1:3] = flags.ctypes.data, len(flags)
        calls, flag = [], 0
        for (start, number, chunk), tasks in zip(cuts, counts, strict=True):
            at = [0 if a is None else a.ctypes.data + start * a.itemsize for a in arrays]
            ints = record_of(flags[flag:], number, chunk, 0, at)
            calls.append(Call(address(), ints, np.zeros(1), tasks, tasks > 1, keep=(state, flags, arrays)))
            flag += tasks
        return calls

    def copies(own: Sequence[np.ndarray | None], parts: np.ndarray) -> Call:
        """A call with a task for each row of the arrays in `own`, whose gradient is the sum of the rows of `parts`."""
        one = own[0]
        assert one is not None
        at = [0 if x is None else x.ctypes.data for x in (one, parts, *own[1:])]
        ints = record_of(call.keep[1], size, one.strides[0] // one.itemsize, parts.strides[0] // parts.itemsize, at)
        return Call(address(len(parts)), ints, np.zeros(1), len(one), True, keep=(state, call, tuple(own), parts))

    [call] = pieces([(0, size, tuning.chunks(size, threads.count())[0])])
    if name == "ema":
        return [call]
    call.update, call.reads, call.writes = Updating(pieces, copies), arrays[1:2], (first, *arrays[2:])
    return [call, Call(kernel(optimizers.finish), record, np.zeros(1), keep=(state, call))]
