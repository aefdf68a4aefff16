"""One flat step per optimizer, all its arrays read and written once.

The conventions that all share stand in ``nnfast/backends/base.py``. A task reports elements that it kept
because their new value was not finite in its own flag; a last call of one task then sets BAD_STEP, so that
no task of the same step sees it early.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from typing import Any

import numpy as np

from .. import step_state as S
from . import threads, tuning
from .driver import Call
from .intrinsics import pointer_f64
from .specialise import kernel

# Records of the steps: state, flags (float64, one per task), size, chunk, then the arrays


def sgd(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    first = task * I[3]
    at = first * T_SIZE
    p, grad = ptr(I[4] + at), ptr(I[5] + at)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    bad = T(0.0)
    for i in range(min(I[3], I[2] - first)):
        new = p[i] - lr * (scale * grad[i] + decay * p[i])
        ok = abs(new) < T(inf)
        p[i] = new if ok else p[i]
        bad += T(0.0) if ok else T(1.0)
    pointer_f64(I[1])[task] = bad


def sgd_momentum(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    first = task * I[3]
    at = first * T_SIZE
    p, grad, velocity = ptr(I[4] + at), ptr(I[5] + at), ptr(I[6] + at)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    momentum = T(state[S.P0])
    bad = T(0.0)
    for i in range(min(I[3], I[2] - first)):
        g = scale * grad[i] + decay * p[i]
        v = momentum * velocity[i] + g
        new = p[i] - lr * (g + momentum * v if NESTEROV else v)
        ok = (abs(new) < T(inf)) & (abs(v) < T(inf))
        p[i] = new if ok else p[i]
        velocity[i] = v if ok else velocity[i]
        bad += T(0.0) if ok else T(1.0)
    pointer_f64(I[1])[task] = bad


def adagrad(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    first = task * I[3]
    at = first * T_SIZE
    p, grad, total = ptr(I[4] + at), ptr(I[5] + at), ptr(I[6] + at)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    eps = T(state[S.P0])
    bad = T(0.0)
    for i in range(min(I[3], I[2] - first)):
        g = scale * grad[i] + decay * p[i]
        t = total[i] + g * g
        new = p[i] - lr * g / (T(sqrt(t)) + eps)
        ok = (abs(new) < T(inf)) & (abs(t) < T(inf))
        p[i] = new if ok else p[i]
        total[i] = t if ok else total[i]
        bad += T(0.0) if ok else T(1.0)
    pointer_f64(I[1])[task] = bad


def rmsprop(I, F, task):
    """CENTERED and MOMENTUM say which of the last two arrays exist."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    first = task * I[3]
    at = first * T_SIZE
    p, grad, sq = ptr(I[4] + at), ptr(I[5] + at), ptr(I[6] + at)
    mean, velocity = ptr(I[7] + at), ptr(I[8] + at)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    rho, rest, eps, momentum = T(state[S.P0]), T(1.0 - state[S.P0]), T(state[S.P1]), T(state[S.P2])
    bad = T(0.0)
    for i in range(min(I[3], I[2] - first)):
        g = scale * grad[i] + decay * p[i]
        q = rho * sq[i] + rest * g * g
        ok = abs(q) < T(inf)
        variance = q
        if CENTERED:
            average = rho * mean[i] + rest * g
            variance = q - average * average
            variance = T(0.0) if variance < T(0.0) else variance
            ok = ok & (abs(average) < T(inf))
        u = g / (T(sqrt(variance)) + eps)
        if MOMENTUM:
            u = momentum * velocity[i] + u
            ok = ok & (abs(u) < T(inf))
        new = p[i] - lr * u
        ok = ok & (abs(new) < T(inf))
        p[i] = new if ok else p[i]
        sq[i] = q if ok else sq[i]
        if CENTERED:
            mean[i] = average if ok else mean[i]
        if MOMENTUM:
            velocity[i] = u if ok else velocity[i]
        bad += T(0.0) if ok else T(1.0)
    pointer_f64(I[1])[task] = bad


def adam(I, F, task):
    """DECOUPLED is AdamW."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    first = task * I[3]
    at = first * T_SIZE
    p, grad, m, v = ptr(I[4] + at), ptr(I[5] + at), ptr(I[6] + at), ptr(I[7] + at)
    step = state[S.STEP]
    scale = T(state[S.GRAD_SCALE])
    decay = T(0.0 if DECOUPLED else state[S.WEIGHT_DECAY])
    shrink = T(1.0 - state[S.LR] * state[S.WEIGHT_DECAY] if DECOUPLED else 1.0)
    beta1, rest1 = T(state[S.P0]), T(1.0 - state[S.P0])
    beta2, rest2 = T(state[S.P1]), T(1.0 - state[S.P1])
    eps = T(state[S.P2])
    rate = T(state[S.LR] / (1.0 - state[S.P0] ** step))
    root = T(1.0 / sqrt(1.0 - state[S.P1] ** step))
    bad = T(0.0)
    for i in range(min(I[3], I[2] - first)):
        g = scale * grad[i] + decay * p[i]
        new_m = beta1 * m[i] + rest1 * g
        new_v = beta2 * v[i] + rest2 * g * g
        new = p[i] * shrink - rate * new_m / (T(sqrt(new_v)) * root + eps)
        ok = (abs(new) < T(inf)) & (abs(new_m) < T(inf)) & (abs(new_v) < T(inf))
        p[i] = new if ok else p[i]
        m[i] = new_m if ok else m[i]
        v[i] = new_v if ok else v[i]
        bad += T(0.0) if ok else T(1.0)
    pointer_f64(I[1])[task] = bad


def adamax(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    first = task * I[3]
    at = first * T_SIZE
    p, grad, m, u = ptr(I[4] + at), ptr(I[5] + at), ptr(I[6] + at), ptr(I[7] + at)
    scale, decay = T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    beta1, rest1 = T(state[S.P0]), T(1.0 - state[S.P0])
    beta2, eps = T(state[S.P1]), T(state[S.P2])
    rate = T(state[S.LR] / (1.0 - state[S.P0] ** state[S.STEP]))
    bad = T(0.0)
    for i in range(min(I[3], I[2] - first)):
        g = scale * grad[i] + decay * p[i]
        new_m = beta1 * m[i] + rest1 * g
        largest = abs(g) + eps
        # The comparison is false for a NaN gradient, which must be seen
        new_u = beta2 * u[i] if beta2 * u[i] > largest else largest
        new = p[i] - rate * new_m / new_u
        ok = (abs(new) < T(inf)) & (abs(new_m) < T(inf)) & (abs(new_u) < T(inf))
        p[i] = new if ok else p[i]
        m[i] = new_m if ok else m[i]
        u[i] = new_u if ok else u[i]
        bad += T(0.0) if ok else T(1.0)
    pointer_f64(I[1])[task] = bad


def nadam(I, F, task):
    """Dozat, "Incorporating Nesterov momentum into Adam" (2016), with its schedule of mu."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    first = task * I[3]
    at = first * T_SIZE
    p, grad, m, v = ptr(I[4] + at), ptr(I[5] + at), ptr(I[6] + at), ptr(I[7] + at)
    scale, decay = T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    beta1, rest1 = T(state[S.P0]), T(1.0 - state[S.P0])
    beta2, rest2 = T(state[S.P1]), T(1.0 - state[S.P1])
    lr, eps, step = T(state[S.LR]), T(state[S.P2]), state[S.STEP]
    mu = state[S.P0] * (1.0 - 0.5 * 0.96 ** (step * state[S.P3]))
    mu_next = state[S.P0] * (1.0 - 0.5 * 0.96 ** ((step + 1.0) * state[S.P3]))
    product = state[S.P4] * mu
    of_gradient, of_m = T((1.0 - mu) / (1.0 - product)), T(mu_next / (1.0 - product * mu_next))
    root = T(1.0 / sqrt(1.0 - state[S.P1] ** step))
    bad = T(0.0)
    for i in range(min(I[3], I[2] - first)):
        g = scale * grad[i] + decay * p[i]
        new_m = beta1 * m[i] + rest1 * g
        new_v = beta2 * v[i] + rest2 * g * g
        new = p[i] - lr * (of_gradient * g + of_m * new_m) / (T(sqrt(new_v)) * root + eps)
        ok = (abs(new) < T(inf)) & (abs(new_m) < T(inf)) & (abs(new_v) < T(inf))
        p[i] = new if ok else p[i]
        m[i] = new_m if ok else m[i]
        v[i] = new_v if ok else v[i]
        bad += T(0.0) if ok else T(1.0)
    pointer_f64(I[1])[task] = bad


def lion(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    first = task * I[3]
    at = first * T_SIZE
    p, grad, m = ptr(I[4] + at), ptr(I[5] + at), ptr(I[6] + at)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    beta1, rest1 = T(state[S.P0]), T(1.0 - state[S.P0])
    beta2, rest2 = T(state[S.P1]), T(1.0 - state[S.P1])
    bad = T(0.0)
    for i in range(min(I[3], I[2] - first)):
        g = scale * grad[i]
        c = beta1 * m[i] + rest1 * g
        # c itself for 0 and NaN
        direction = T(1.0) if c > T(0.0) else c
        direction = T(-1.0) if c < T(0.0) else direction
        new = p[i] - lr * (direction + decay * p[i])
        new_m = beta2 * m[i] + rest2 * g
        ok = (abs(new) < T(inf)) & (abs(new_m) < T(inf))
        p[i] = new if ok else p[i]
        m[i] = new_m if ok else m[i]
        bad += T(0.0) if ok else T(1.0)
    pointer_f64(I[1])[task] = bad


def ema(I, F, task):
    """I: state, unused, size, chunk, parameters, average."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    first = task * I[3]
    at = first * T_SIZE
    p, average = ptr(I[4] + at), ptr(I[5] + at)
    decay, rest = T(state[S.EMA_DECAY]), T(1.0 - state[S.EMA_DECAY])
    for i in range(min(I[3], I[2] - first)):
        average[i] = decay * average[i] + rest * p[i]


def finish(I, F, task):
    """Set BAD_STEP where a task kept an element; I: state, flags, tasks, whether P4 is NAdam's product."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    if I[3] != 0:
        state[S.P4] *= state[S.P0] * (1.0 - 0.5 * 0.96 ** (state[S.STEP] * state[S.P3]))
    flags = pointer_f64(I[1])
    for i in range(I[2]):
        if flags[i] != 0.0:
            state[S.BAD_STEP] = state[S.STEP]


_PLAIN = {f.__name__: f for f in (sgd, adagrad, adamax, nadam, lion, ema)}


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
        template, names = sgd_momentum, {"NESTEROV": name == "nesterov"}
    elif name in ("adam", "adamw"):
        template, names = adam, {"DECOUPLED": name == "adamw"}
    elif name == "rmsprop":
        names = {"CENTERED": arrays[3] is not None, "MOMENTUM": arrays[4] is not None}
        template = rmsprop
    variant = "_".join(key.lower() for key, on in names.items() if on)
    address = kernel(template, dtype, variant, **names)
    record = np.array([state.ctypes.data, 0, 0, name == "nadam"], np.int64)

    def pieces(cuts: Sequence[tuple[int, int, int]]) -> list[Call]:
        """A call for each ``(first, size, chunk)`` of the elements."""
        counts = [-(-number // chunk) for _, number, chunk in cuts]
        flags = np.zeros(max(sum(counts), tuning.OWN_COPIES))  # for a step by copies.py, too
        record[1:3] = flags.ctypes.data, len(flags)
        calls, flag = [], 0
        for (start, number, chunk), tasks in zip(cuts, counts, strict=True):
            at = [0 if a is None else a.ctypes.data + start * a.itemsize for a in arrays]
            ints = np.array([state.ctypes.data, flags[flag:].ctypes.data, number, chunk, *at], np.int64)
            calls.append(Call(address, ints, np.zeros(1), tasks, tasks > 1, keep=(state, flags, arrays)))
            flag += tasks
        return calls

    [call] = pieces([(0, size, tuning.chunks(size, threads.count())[0])])
    if name == "ema":
        return [call]
    call.update, call.reads, call.writes = pieces, arrays[1:2], (first, *arrays[2:])
    return [call, Call(kernel(finish), record, np.zeros(1), keep=(state, call))]
