"""What a step of a recurrent cell does to a tile of rows, forward and backward, after its products and before them.

A gate's sums of a step are one piece of ``rows * units`` numbers, so that loops are long whatever the number of units;
the next gate's lie `apart` numbers further. LLVM tests at run time whether the arrays of a loop overlap, and gives up
where these are many, so the loops are short in another way: each has few arrays, and goes over so little at a time that
the next one finds it in the first-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import scalar
from .specialise import function

CHUNK = 1024


def sigmoid_of(x, size):
    for i in range(size):
        x[i] = SIGMOID(x[i])


def tanh_of(x, size):
    for i in range(size):
        x[i] = TANH(x[i])


# ---- Elman's network -----------------------------------------------------------------------------------
def rnn_forward(sums, size, relu, state):
    """``state = f(sums)``."""
    z, h = ptr(sums), ptr(state)
    if relu != 0:
        for i in range(size):
            h[i] = T(0.0) if z[i] < T(0.0) else z[i]
    else:
        for i in range(size):
            h[i] = TANH(z[i])


def rnn_backward(sums, size, relu, state, dstate):
    """`sums` become the gradient with respect to them."""
    z, h, d = ptr(sums), ptr(state), ptr(dstate)
    if relu != 0:
        for i in range(size):
            z[i] = d[i] if h[i] > T(0.0) else T(0.0)
    else:
        for i in range(size):
            z[i] = d[i] * (T(1.0) - h[i] * h[i])


# ---- long short-term memory: in, forget, cell, out --------------------------------------------------------
def lstm_forward(sums, apart, size, cell, new_cell, state):
    """`sums` become the gates."""
    for first in range(0, size, CHUNK):
        n = min(CHUNK, size - first)
        at = first * T_SIZE
        z, c, c_new, h = ptr(sums + at), ptr(cell + at), ptr(new_cell + at), ptr(state + at)
        SIGMOID_OF(ptr(sums + at), n)
        SIGMOID_OF(ptr(sums + at + apart * T_SIZE), n)
        TANH_OF(ptr(sums + at + 2 * apart * T_SIZE), n)
        SIGMOID_OF(ptr(sums + at + 3 * apart * T_SIZE), n)
        for i in range(n):
            c_new[i] = z[apart + i] * c[i] + z[i] * z[2 * apart + i]
        for i in range(n):
            h[i] = z[3 * apart + i] * TANH(c_new[i])


def lstm_backward(gates, apart, size, cell_before, cell, dstate, dcell):
    """`gates` become the gradient of the sums, `dcell` that of the cell before."""
    for first in range(0, size, CHUNK):
        n = min(CHUNK, size - first)
        at = first * T_SIZE
        z, c_before, c, dh, dc = (
            ptr(gates + at),
            ptr(cell_before + at),
            ptr(cell + at),
            ptr(dstate + at),
            ptr(dcell + at),
        )
        for i in range(n):
            o, t, d = z[3 * apart + i], TANH(c[i]), dh[i]
            z[3 * apart + i] = d * t * o * (T(1.0) - o)
            dc[i] += d * o * (T(1.0) - t * t)
        for i in range(n):
            a, g, d = z[i], z[2 * apart + i], dc[i]
            z[i] = d * g * a * (T(1.0) - a)
            z[2 * apart + i] = d * a * (T(1.0) - g * g)
        for i in range(n):
            f, d = z[apart + i], dc[i]
            z[apart + i] = d * c_before[i] * f * (T(1.0) - f)
            dc[i] = d * f


# ---- gated recurrent unit: new, reset, update, and what reset is multiplied with ---------------------------
def gru_gates(sums, apart, size):
    SIGMOID_OF(ptr(sums + apart * T_SIZE), size)
    SIGMOID_OF(ptr(sums + 2 * apart * T_SIZE), size)


def gru_reset(sums, apart, size, before):
    """The state that the new gate sees: reset times that before."""
    z, out, h = ptr(sums), ptr(sums + 3 * apart * T_SIZE), ptr(before)
    for i in range(size):
        out[i] = z[apart + i] * h[i]


def gru_state(sums, apart, size, after, before, state):
    """The new gate, where `after` is not 0 with reset times its sums from the state, and the new state."""
    for first in range(0, size, CHUNK):
        n = min(CHUNK, size - first)
        at = first * T_SIZE
        z, h, h_new = ptr(sums + at), ptr(before + at), ptr(state + at)
        if after != 0:
            for i in range(n):
                z[i] += z[apart + i] * z[3 * apart + i]
        TANH_OF(z, n)
        for i in range(n):
            h_new[i] = z[i] + z[2 * apart + i] * (h[i] - z[i])


def gru_backward(gates, apart, size, after, before, dstate, dbefore):
    """New and update become the gradients of their sums; so does reset, and what it met, where `after` is not 0.

    `dbefore` becomes the part of the gradient that goes past the gates.
    """
    for first in range(0, size, CHUNK):
        n = min(CHUNK, size - first)
        at = first * T_SIZE
        z, h, dh, past = ptr(gates + at), ptr(before + at), ptr(dstate + at), ptr(dbefore + at)
        for i in range(n):
            past[i] = dh[i] * z[2 * apart + i]
        for i in range(n):
            new, u, d = z[i], z[2 * apart + i], dh[i]
            z[2 * apart + i] = d * (h[i] - new) * u * (T(1.0) - u)
            z[i] = d * (T(1.0) - u) * (T(1.0) - new * new)
        if after != 0:
            for i in range(n):
                d, r = z[i], z[apart + i]
                z[apart + i] = d * z[3 * apart + i] * r * (T(1.0) - r)
                z[3 * apart + i] = d * r


def gru_reset_backward(gates, apart, size, before, dreset, dbefore):
    """Reset becomes the gradient of its sums, from `dreset`, that of reset times the state before."""
    for first in range(0, size, CHUNK):
        n = min(CHUNK, size - first)
        at = first * T_SIZE
        r, h, d, past = ptr(gates + at + apart * T_SIZE), ptr(before + at), ptr(dreset + at), ptr(dbefore + at)
        for i in range(n):
            past[i] += d[i] * r[i]
        for i in range(n):
            r[i] = d[i] * h[i] * r[i] * (T(1.0) - r[i])


def cell_functions(dtype: np.dtype[Any]) -> dict[str, Any]:
    """The functions of this file for `dtype`, under their names in capitals."""
    names = {name: scalar.names(dtype)[name] for name in ("SIGMOID", "TANH")}
    for template in (sigmoid_of, tanh_of):
        names[template.__name__.upper()] = function(template, dtype, inline=False, **names)
    templates = (
        rnn_forward, rnn_backward, lstm_forward, lstm_backward,
        gru_gates, gru_reset, gru_state, gru_backward, gru_reset_backward,
    )  # fmt: skip
    return names | {t.__name__.upper(): function(t, dtype, inline=False, **names) for t in templates}
