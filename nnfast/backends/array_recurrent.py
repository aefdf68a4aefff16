"""Recurrent layers in plain array code: one product of the inputs for all steps, then step by step."""

from __future__ import annotations

from typing import Any

from ..activations import Activation
from . import formulas
from .recurrent import cell_activation

Array = Any


def _order(steps: int, reverse: bool) -> range:
    """The steps in the order in which they are done."""
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _rows(x: Array) -> Array:
    """(n, t, k) as (n * t, k)."""
    return x.reshape(-1, x.shape[-1])


class ArrayRecurrent:
    """Mixin of :class:`~nnfast.backends.array_backend.ArrayBackend`."""

    xp: Any
    _wide: Any

    # ---- what the cells share -------------------------------------------------------------------------
    def _all_wide(self, *arrays: Array | None) -> list[Array]:
        return [None if x is None else self._wide(x) for x in arrays]

    def _input_products(self, x: Array, W: Array, b: Array | None) -> Array:
        """``x W + b`` of all steps, (n, t, columns of W)."""
        z = x @ W
        return z if b is None else z + b

    def _start(self, state: Array | None, n: int, U: Array) -> Array:
        """The state before the first step."""
        return self.xp.zeros((n, U.shape[0]), U.dtype) if state is None else state

    def _unless_padding(self, mask: Array | None, t: int, new: Array, old: Array) -> Array:
        """`new`, but `old` in the rows where step `t` is padding."""
        return new if mask is None else self.xp.where((mask[:, t] != 0)[:, None], new, old)

    def _step_gradient(self, dy: Array, t: int, last: int) -> Array | float:
        """What the outputs say about the state of step `t`; `dy` of two axes is about the last one alone."""
        if dy.ndim == 3:
            return dy[:, t]
        return dy if t == last else 0.0

    def _previous(self, y: Array, start: Array, reverse: bool) -> Array:
        """The state before each step, (n, t, h)."""
        before = self.xp.empty(y.shape, start.dtype)
        order = _order(y.shape[1], reverse)
        before[:, order[0]] = start
        if reverse:
            before[:, :-1] = y[:, 1:]
        else:
            before[:, 1:] = y[:, :-1]
        return before

    def _input_gradients(self, dz: Array, x: Array, W: Array, dx: Array | None, dW: Array, db: Array | None) -> None:
        """Of ``z = x W + b``."""
        dW[...] = _rows(x).T @ _rows(dz)
        if db is not None:
            db[...] = _rows(dz).sum(axis=0)
        if dx is not None:
            dx[...] = dz @ W.T

    # ---- Elman's network --------------------------------------------------------------------------------
    def rnn(
        self,
        x: Array,
        W: Array,
        U: Array,
        b: Array | None,
        act: str | Activation,
        *,
        h0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        y: Array,
    ) -> None:
        act = cell_activation(act)
        x, W, U, b, h0 = self._all_wide(x, W, U, b, h0)
        f = formulas.ACTIVATIONS[act.name][0]
        z = self._input_products(x, W, b)
        h = self._start(h0, len(x), U)
        for t in _order(x.shape[1], reverse):
            h = self._unless_padding(mask, t, f(self.xp, z[:, t] + h @ U, act.alpha), h)
            y[:, t] = h

    def rnn_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        U: Array,
        act: str | Activation,
        *,
        y: Array,
        h0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        dx: Array | None,
        dW: Array,
        dU: Array,
        db: Array | None,
        dh0: Array | None = None,
    ) -> None:
        act = cell_activation(act)
        dy, x, W, U, y, h0 = self._all_wide(dy, x, W, U, y, h0)
        slope = formulas.ACTIVATIONS[act.name][1]
        order = _order(x.shape[1], reverse)
        dz = self.xp.empty(y.shape, y.dtype)
        dh = self._start(None, len(x), U)
        for t in reversed(order):
            dh = dh + self._step_gradient(dy, t, order[-1])
            d = dh * slope(self.xp, y[:, t], act.alpha)
            dz[:, t] = self._unless_padding(mask, t, d, self.xp.zeros_like(d))
            dh = self._unless_padding(mask, t, d @ U.T, dh)
        before = self._previous(y, self._start(h0, len(x), U), reverse)
        dU[...] = _rows(before).T @ _rows(dz)
        if dh0 is not None:
            dh0[...] = dh
        self._input_gradients(dz, x, W, dx, dW, db)

    # ---- gated recurrent unit -----------------------------------------------------------------------------
    def gru(
        self,
        x: Array,
        W: Array,
        U: Array,
        b: Array | None,
        c: Array | None,
        *,
        reset_after: bool,
        h0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        y: Array,
        gates: Array | None,
    ) -> None:
        """`gates` takes r, z, n, and what r meets: ``h U_n + c_n`` with `reset_after`, else h."""
        xp = self.xp
        x, W, U, b, c, h0 = self._all_wide(x, W, U, b, c, h0)
        m = U.shape[0]
        of_input = self._input_products(x, W, b)
        h = self._start(h0, len(x), U)
        for t in _order(x.shape[1], reverse):
            zx = of_input[:, t]
            zh = self._input_products(h, U[:, : 2 * m], None if c is None else c[: 2 * m])
            r = formulas.sigmoid(xp, zx[:, :m] + zh[:, :m])
            z = formulas.sigmoid(xp, zx[:, m : 2 * m] + zh[:, m:])
            c_n = None if c is None else c[2 * m :]
            met = self._input_products(h, U[:, 2 * m :], c_n) if reset_after else h
            inner = r * met if reset_after else self._input_products(r * h, U[:, 2 * m :], c_n)
            n = xp.tanh(zx[:, 2 * m :] + inner)
            if gates is not None:
                for i, gate in enumerate((r, z, n, met)):
                    gates[:, t, i * m : (i + 1) * m] = gate
            h = self._unless_padding(mask, t, (1.0 - z) * n + z * h, h)
            y[:, t] = h

    def gru_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        U: Array,
        *,
        reset_after: bool,
        y: Array,
        gates: Array,
        h0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        dx: Array | None,
        dW: Array,
        dU: Array,
        db: Array | None,
        dc: Array | None,
        dh0: Array | None = None,
    ) -> None:
        xp = self.xp
        dy, x, W, U, y, gates, h0 = self._all_wide(dy, x, W, U, y, gates, h0)
        m = U.shape[0]
        U_rz, U_n = U[:, : 2 * m], U[:, 2 * m :]
        order = _order(x.shape[1], reverse)
        before = self._previous(y, self._start(h0, len(x), U), reverse)
        # By the side that a gate's sum comes from: they differ in n, where r is in between
        of_input = xp.empty((*y.shape[:2], 3 * m), y.dtype)
        of_state = xp.empty((*y.shape[:2], 3 * m), y.dtype)
        dh = self._start(None, len(x), U)
        for t in reversed(order):
            dh = dh + self._step_gradient(dy, t, order[-1])
            r, z, n, met = (gates[:, t, i * m : (i + 1) * m] for i in range(4))
            dz = dh * (before[:, t] - n) * z * (1.0 - z)
            dn = dh * (1.0 - z) * (1.0 - n * n)
            inner = dn if reset_after else dn @ U_n.T
            dr = inner * met * r * (1.0 - r)
            dn_state = dn * r if reset_after else dn
            drz = xp.concatenate((dr, dz), axis=1)
            through = dn_state @ U_n.T if reset_after else inner * r
            for d, out in ((dn, of_input), (dn_state, of_state)):
                d = xp.concatenate((drz, d), axis=1)
                out[:, t] = self._unless_padding(mask, t, d, xp.zeros_like(d))
            dh = self._unless_padding(mask, t, dh * z + drz @ U_rz.T + through, dh)
        if dh0 is not None:
            dh0[...] = dh
        dU[:, : 2 * m] = _rows(before).T @ _rows(of_state)[:, : 2 * m]
        times_U_n = before if reset_after else gates[:, :, :m] * before
        dU[:, 2 * m :] = _rows(times_U_n).T @ _rows(of_state)[:, 2 * m :]
        if dc is not None:
            dc[...] = _rows(of_state).sum(axis=0)
        self._input_gradients(of_input, x, W, dx, dW, db)

    # ---- long short-term memory -----------------------------------------------------------------------------
    def lstm(
        self,
        x: Array,
        W: Array,
        U: Array,
        b: Array | None,
        *,
        h0: Array | None = None,
        c0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        y: Array,
        cells: Array | None,
        gates: Array | None,
        last_cell: Array | None = None,
    ) -> None:
        """`gates` takes i, f, g, o."""
        xp = self.xp
        x, W, U, b, h0, c0 = self._all_wide(x, W, U, b, h0, c0)
        m = U.shape[0]
        of_input = self._input_products(x, W, b)
        h, c = self._start(h0, len(x), U), self._start(c0, len(x), U)
        for t in _order(x.shape[1], reverse):
            z = of_input[:, t] + h @ U
            i, f = formulas.sigmoid(xp, z[:, :m]), formulas.sigmoid(xp, z[:, m : 2 * m])
            g, o = xp.tanh(z[:, 2 * m : 3 * m]), formulas.sigmoid(xp, z[:, 3 * m :])
            c_new = f * c + i * g
            h = self._unless_padding(mask, t, o * xp.tanh(c_new), h)
            c = self._unless_padding(mask, t, c_new, c)
            y[:, t] = h
            if cells is not None:
                cells[:, t] = c
            if gates is not None:
                for at, gate in enumerate((i, f, g, o)):
                    gates[:, t, at * m : (at + 1) * m] = gate
        if last_cell is not None:
            last_cell[...] = c

    def lstm_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        U: Array,
        *,
        y: Array,
        cells: Array,
        gates: Array,
        h0: Array | None = None,
        c0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        dx: Array | None,
        dW: Array,
        dU: Array,
        db: Array | None,
        dh0: Array | None = None,
        dc0: Array | None = None,
    ) -> None:
        xp = self.xp
        dy, x, W, U, y, cells, gates, h0, c0 = self._all_wide(dy, x, W, U, y, cells, gates, h0, c0)
        m = U.shape[0]
        order = _order(x.shape[1], reverse)
        cell_before = self._previous(cells, self._start(c0, len(x), U), reverse)
        dz = xp.empty(gates.shape, gates.dtype)
        dh, dc = self._start(None, len(x), U), self._start(None, len(x), U)
        for t in reversed(order):
            dh = dh + self._step_gradient(dy, t, order[-1])
            i, f, g, o = (gates[:, t, at * m : (at + 1) * m] for at in range(4))
            tanh_c = xp.tanh(cells[:, t])
            d = dc + dh * o * (1.0 - tanh_c * tanh_c)
            di, df = d * g * i * (1.0 - i), d * cell_before[:, t] * f * (1.0 - f)
            dg, do = d * i * (1.0 - g * g), dh * tanh_c * o * (1.0 - o)
            all_four = xp.concatenate((di, df, dg, do), axis=1)
            dz[:, t] = self._unless_padding(mask, t, all_four, xp.zeros_like(all_four))
            dh = self._unless_padding(mask, t, all_four @ U.T, dh)
            dc = self._unless_padding(mask, t, d * f, dc)
        if dh0 is not None:
            dh0[...] = dh
        if dc0 is not None:
            dc0[...] = dc
        before = self._previous(y, self._start(h0, len(x), U), reverse)
        dU[...] = _rows(before).T @ _rows(dz)
        self._input_gradients(dz, x, W, dx, dW, db)

    # ---- two directions ---------------------------------------------------------------------------------
    def multiply(self, x: Array, y: Array | float, *, out: Array) -> None:
        x = self._wide(x)
        out[...] = x * (x.dtype.type(y) if isinstance(y, float) else self._wide(y))
