"""One flat step per optimizer, all its arrays read and written once.

The conventions that all share stand in ``nnfast/backends/base.py``. A task reports elements that it kept
because their new value was not finite in its own flag; a last call of one task then sets BAD_STEP, so that
no task of the same step sees it early.
"""

# ruff: noqa: E741 - T, ptr and the capitals are put in by specialise.py
from __future__ import annotations

from math import inf, sqrt

from .. import step_state as S
from .intrinsics import multiply_add, pointer_f64

# Records of the steps: state, flags (float64, one per task), size, chunk, elements from one part of the gradient to the
# next, then the arrays. PLACE and GRADIENT come from optimizer_steps.py.
# All of them keep the order of operations, and say which of two products an addition is one instruction with: a
# weight's new value is the same to the last bit however the elements are shared.


def sgd(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    at, at_grad, count, apart = PLACE(I, task)
    p, grad = ptr(I[5] + at), ptr(I[6] + at_grad)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    bad = False
    for i in range(count):
        new = p[i] - lr * multiply_add(decay, p[i], GRADIENT(grad, i, apart, scale))
        ok = abs(new) < T(inf)
        p[i] = new if ok else p[i]
        bad = bad | (not ok)
    pointer_f64(I[1])[task] = 1.0 if bad else 0.0


def sgd_momentum(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    at, at_grad, count, apart = PLACE(I, task)
    p, grad, velocity = ptr(I[5] + at), ptr(I[6] + at_grad), ptr(I[7] + at)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    momentum = T(state[S.P0])
    bad = False
    for i in range(count):
        g = multiply_add(decay, p[i], GRADIENT(grad, i, apart, scale))
        v = momentum * velocity[i] + g
        new = p[i] - lr * (g + momentum * v if NESTEROV else v)
        ok = (abs(new) < T(inf)) & (abs(v) < T(inf))
        p[i] = new if ok else p[i]
        velocity[i] = v if ok else velocity[i]
        bad = bad | (not ok)
    pointer_f64(I[1])[task] = 1.0 if bad else 0.0


def adagrad(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    at, at_grad, count, apart = PLACE(I, task)
    p, grad, total = ptr(I[5] + at), ptr(I[6] + at_grad), ptr(I[7] + at)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    eps = T(state[S.P0])
    bad = False
    for i in range(count):
        g = multiply_add(decay, p[i], GRADIENT(grad, i, apart, scale))
        t = total[i] + g * g
        new = p[i] - lr * g / (T(sqrt(t)) + eps)
        ok = (abs(new) < T(inf)) & (abs(t) < T(inf))
        p[i] = new if ok else p[i]
        total[i] = t if ok else total[i]
        bad = bad | (not ok)
    pointer_f64(I[1])[task] = 1.0 if bad else 0.0


def rmsprop(I, F, task):
    """CENTERED and MOMENTUM say which of the last two arrays exist."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    at, at_grad, count, apart = PLACE(I, task)
    p, grad, sq = ptr(I[5] + at), ptr(I[6] + at_grad), ptr(I[7] + at)
    mean, velocity = ptr(I[8] + at), ptr(I[9] + at)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    rho, rest, eps, momentum = T(state[S.P0]), T(1.0 - state[S.P0]), T(state[S.P1]), T(state[S.P2])
    bad = False
    for i in range(count):
        g = multiply_add(decay, p[i], GRADIENT(grad, i, apart, scale))
        q = multiply_add(rho, sq[i], rest * g * g)
        ok = abs(q) < T(inf)
        variance = q
        if CENTERED:
            average = multiply_add(rho, mean[i], rest * g)
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
        bad = bad | (not ok)
    pointer_f64(I[1])[task] = 1.0 if bad else 0.0


def adam(I, F, task):
    """DECOUPLED is AdamW."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    at, at_grad, count, apart = PLACE(I, task)
    p, grad, m, v = ptr(I[5] + at), ptr(I[6] + at_grad), ptr(I[7] + at), ptr(I[8] + at)
    step = state[S.STEP]
    scale = T(state[S.GRAD_SCALE])
    decay = T(0.0 if DECOUPLED else state[S.WEIGHT_DECAY])
    shrink = T(1.0 - state[S.LR] * state[S.WEIGHT_DECAY] if DECOUPLED else 1.0)
    beta1, rest1 = T(state[S.P0]), T(1.0 - state[S.P0])
    beta2, rest2 = T(state[S.P1]), T(1.0 - state[S.P1])
    rate = T(state[S.LR] / (1.0 - state[S.P0] ** step))
    root = T(1.0 / sqrt(1.0 - state[S.P1] ** step))
    eps = T(state[S.P2] * (root if state[S.P3] != 0.0 else 1.0))
    bad = False
    for i in range(count):
        g = multiply_add(decay, p[i], GRADIENT(grad, i, apart, scale))
        new_m = multiply_add(beta1, m[i], rest1 * g)
        new_v = multiply_add(beta2, v[i], rest2 * g * g)
        new = p[i] * shrink - rate * new_m / (T(sqrt(new_v)) * root + eps)
        # Where new_m is not finite, so is new, and new_v is never negative
        ok = (abs(new) < T(inf)) & (new_v < T(inf))
        p[i] = new if ok else p[i]
        m[i] = new_m if ok else m[i]
        v[i] = new_v if ok else v[i]
        bad = bad | (not ok)
    pointer_f64(I[1])[task] = 1.0 if bad else 0.0


def adamax(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    at, at_grad, count, apart = PLACE(I, task)
    p, grad, m, u = ptr(I[5] + at), ptr(I[6] + at_grad), ptr(I[7] + at), ptr(I[8] + at)
    scale, decay = T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    beta1, rest1 = T(state[S.P0]), T(1.0 - state[S.P0])
    beta2, eps = T(state[S.P1]), T(state[S.P2])
    rate = T(state[S.LR] / (1.0 - state[S.P0] ** state[S.STEP]))
    bad = False
    for i in range(count):
        g = multiply_add(decay, p[i], GRADIENT(grad, i, apart, scale))
        new_m = multiply_add(beta1, m[i], rest1 * g)
        largest = abs(g) + eps
        # The comparison is false for a NaN gradient, which must be seen
        new_u = beta2 * u[i] if beta2 * u[i] > largest else largest
        new = p[i] - rate * new_m / new_u
        ok = (abs(new) < T(inf)) & (abs(new_m) < T(inf)) & (abs(new_u) < T(inf))
        p[i] = new if ok else p[i]
        m[i] = new_m if ok else m[i]
        u[i] = new_u if ok else u[i]
        bad = bad | (not ok)
    pointer_f64(I[1])[task] = 1.0 if bad else 0.0


def nadam(I, F, task):
    """Dozat, "Incorporating Nesterov momentum into Adam" (2016), with its schedule of mu."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    at, at_grad, count, apart = PLACE(I, task)
    p, grad, m, v = ptr(I[5] + at), ptr(I[6] + at_grad), ptr(I[7] + at), ptr(I[8] + at)
    scale, decay = T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    beta1, rest1 = T(state[S.P0]), T(1.0 - state[S.P0])
    beta2, rest2 = T(state[S.P1]), T(1.0 - state[S.P1])
    lr, eps, step = T(state[S.LR]), T(state[S.P2]), state[S.STEP]
    mu = state[S.P0] * (1.0 - 0.5 * 0.96 ** (step * state[S.P3]))
    mu_next = state[S.P0] * (1.0 - 0.5 * 0.96 ** ((step + 1.0) * state[S.P3]))
    product = state[S.P4] * mu
    of_gradient, of_m = T((1.0 - mu) / (1.0 - product)), T(mu_next / (1.0 - product * mu_next))
    root = T(1.0 / sqrt(1.0 - state[S.P1] ** step))
    bad = False
    for i in range(count):
        g = multiply_add(decay, p[i], GRADIENT(grad, i, apart, scale))
        new_m = multiply_add(beta1, m[i], rest1 * g)
        new_v = multiply_add(beta2, v[i], rest2 * g * g)
        new = p[i] - lr * multiply_add(of_gradient, g, of_m * new_m) / (T(sqrt(new_v)) * root + eps)
        ok = (abs(new) < T(inf)) & (abs(new_m) < T(inf)) & (abs(new_v) < T(inf))
        p[i] = new if ok else p[i]
        m[i] = new_m if ok else m[i]
        v[i] = new_v if ok else v[i]
        bad = bad | (not ok)
    pointer_f64(I[1])[task] = 1.0 if bad else 0.0


def lion(I, F, task):
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    at, at_grad, count, apart = PLACE(I, task)
    p, grad, m = ptr(I[5] + at), ptr(I[6] + at_grad), ptr(I[7] + at)
    lr, scale, decay = T(state[S.LR]), T(state[S.GRAD_SCALE]), T(state[S.WEIGHT_DECAY])
    beta1, rest1 = T(state[S.P0]), T(1.0 - state[S.P0])
    beta2, rest2 = T(state[S.P1]), T(1.0 - state[S.P1])
    bad = False
    for i in range(count):
        g = GRADIENT(grad, i, apart, scale)
        c = multiply_add(beta1, m[i], rest1 * g)
        # c itself for 0 and NaN
        direction = T(1.0) if c > T(0.0) else c
        direction = T(-1.0) if c < T(0.0) else direction
        new = p[i] - lr * (direction + decay * p[i])
        new_m = multiply_add(beta2, m[i], rest2 * g)
        ok = (abs(new) < T(inf)) & (abs(new_m) < T(inf))
        p[i] = new if ok else p[i]
        m[i] = new_m if ok else m[i]
        bad = bad | (not ok)
    pointer_f64(I[1])[task] = 1.0 if bad else 0.0


def ema(I, F, task):
    """I: state, unused, size, chunk, unused, parameters, average."""
    state = pointer_f64(I[0])
    if state[S.BAD_STEP] != 0.0:
        return
    at, _, count, _ = PLACE(I, task)
    p, average = ptr(I[5] + at), ptr(I[6] + at)
    decay, rest = T(state[S.EMA_DECAY]), T(1.0 - state[S.EMA_DECAY])
    for i in range(count):
        average[i] = multiply_add(decay, average[i], rest * p[i])


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
