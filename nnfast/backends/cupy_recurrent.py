"""Recurrent layers on a GPU: one product of the inputs for all steps, then per step a product and one kernel.

All of it is launched in order and goes into the step's graph. What a product of the state gives stays in a small array
of its own, which the kernel that follows finds in the cache; sums of 16 bits stay float32 there. Which path is taken
depends on arrays that both directions get: `gates` of :meth:`CudaRecurrent.gru` has another form than the one that
CuPy's own operations leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from ..activations import Activation
from ..kernels.cuda import loader
from .base import Array
from .cupy_layers import packed
from .recurrent import cell_activation


def _rows(x: Array) -> Array:
    """(n, t, k) as (n * t, k)."""
    return x.reshape(-1, x.shape[-1])


class _Cell:
    """What all launches of one recurrent call have in common.

    Parameters
    ----------
    backend : CudaRecurrent
        Where to launch.
    y, h0, mask : array
        As in the contract.
    packs : array
        What else the kernels move in packs, of the type of `y`.
    """

    def __init__(
        self, backend: Any, y: Array, h0: Array | None, mask: Array | None, reverse: bool, packs: tuple[Any, ...]
    ) -> None:
        self.backend, self.y, self.h0 = backend, y, h0
        self.n, self.steps, self.h = y.shape
        self.type = loader.SCALARS[y.dtype.char]
        self.mask = (mask, 0 if mask is None else mask.dtype.itemsize)
        self.at_once = packed(self.h, y, h0, *packs)
        self.order = list(range(self.steps))[:: -1 if reverse else 1]

    def forward(self) -> Iterator[tuple[int, int]]:
        """Each step, and the one before it, or -1."""
        return zip(self.order, (-1, *self.order), strict=False)

    def backward(self) -> Iterator[tuple[int, int]]:
        """The same, the last one first."""
        return reversed(list(self.forward()))

    def launch(self, file: str, kernel: str, at: tuple[int, int], *arguments: Any, args: tuple[str, ...] = ()) -> None:
        """A kernel over the units of one step."""
        shape = self.backend._kernels.flat(self.n * self.h, self.at_once)
        sizes = (*at, self.steps, self.n, self.h, self.at_once)
        self.backend._launch(file, kernel, (self.type, *args), shape, *arguments, *sizes)

    def array(self, use: str, *shape: int, wide: bool = False) -> Array:
        """Working memory of this shape."""
        dtype = np.dtype(loader.WIDE[self.y.dtype.char]) if wide else self.y.dtype
        count = prod(shape)
        return self.backend._scratch(f"recurrent {use} {dtype.char}", count, dtype)[:count].reshape(shape)

    def product(self, state: Array, U: Array, at: tuple[int, int]) -> Array | None:
        """The state before a step times `U`; ``None`` for no state."""
        if at[1] < 0:
            if self.h0 is None:
                return None
            state = self.h0
        out = self.array("product", self.n, U.shape[1], wide=True)
        self.backend.gemm(state, U, out=out)
        return out

    def slope(self, dy: Array) -> tuple[Array, int, int]:
        """`dy`, its elements from row to row, and those before the last step's; of the last state alone, if 2-d."""
        if not dy.flags.c_contiguous or dy.dtype != self.y.dtype:
            held = self.array("dy", *dy.shape)
            self.backend.copy(dy, out=held)
            dy = held
        return dy, prod(dy.shape[1:]), self.h

    def of_step(self, slope: tuple[Array, int, int], at: tuple[int, int]) -> tuple[Array | None, int, int]:
        """The arguments of a kernel that say where the gradient of a step's state is."""
        dy, stride, h = slope
        if dy.ndim == 3:
            return dy, stride, at[0] * h
        return (dy if at[0] == self.order[-1] else None), stride, 0

    def is_last(self, at: tuple[int, int]) -> bool:
        return at[0] == self.order[-1]

    def back(self, d: Array, U: Array, at: tuple[int, int], dh0: Array | None) -> Array | None:
        """The gradient of the state before a step, by its product; ``None`` where nobody asks."""
        if at[1] < 0 and dh0 is None:
            return None
        out = self.array("product", self.n, U.shape[0], wide=True)
        self.backend.gemm(d, U, out=out, trans_b=True)
        return out

    def initial(self, product: Array | None, carried: Array | None, out: Array | None) -> None:
        """Write the gradient of an initial state."""
        if out is None:
            return
        fits = out.flags.c_contiguous and out.dtype == self.y.dtype
        held = out if fits else self.array("initial", self.n, self.h)
        shape = self.backend._kernels.flat(out.size)
        self.backend._launch("recurrent", "initial_grad", (self.type,), shape, product, carried, held, out.size)
        if not fits:
            self.backend.copy(held, out=out)


class CudaRecurrent:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _kernels: loader.Kernels
    _launch: Any
    _type: Any
    _scratch: Any
    _array_type: Any
    copy: Any
    copy_columns: Any
    gemm: Any
    linear_act: Any
    sum_rows: Any

    def _cell(
        self,
        x: Array,
        W: Array,
        U: Array,
        y: Array,
        *packs: Array | None,
        h0: Array | None,
        mask: Array | None,
        reverse: bool,
    ) -> _Cell | None:
        """``None`` for what the kernels do not support."""
        if self._type(x, W, U, y, h0, *packs) is None or 0 in x.shape or y.size == 0:
            return None
        gates = W.shape[1]
        if x.shape[:2] != y.shape[:2] or W.shape[0] != x.shape[2] or U.shape != (y.shape[2], gates):
            return None
        if h0 is not None and h0.shape != (y.shape[0], y.shape[2]):
            return None
        fits = mask is None or (mask.shape == y.shape[:2] and mask.flags.c_contiguous)
        return _Cell(self, y, h0, mask, reverse, packs) if fits else None

    def _input_grads(self, d: Array, x: Array, W: Array, dx: Array | None, dW: Array, db: Array | None) -> None:
        """Of ``x W + b``, whose gradient is `d` (n * t, columns of W)."""
        if db is not None:
            self.sum_rows(d, out=db)
        self.gemm(_rows(x), d, out=dW, trans_a=True)
        if dx is not None:
            self.gemm(d, W, out=dx.reshape(-1, dx.shape[-1]), trans_b=True)

    # ---- Elman's network --------------------------------------------------------------------------
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
    ) -> Any:
        functor = loader.ACTIVATIONS[cell_activation(act).name]
        cell = self._cell(x, W, U, y, h0=h0, mask=mask, reverse=reverse)
        if cell is None:
            return NotImplemented
        self.linear_act(_rows(x), W, b, None, out=_rows(y))
        state = cell.array("state", cell.n, cell.h)
        for at in cell.forward():
            product = cell.product(state, U, at)
            cell.launch("recurrent", "rnn_step", at, product, h0, *cell.mask, y, state, args=(functor,))
        return None

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
    ) -> Any:
        functor = loader.ACTIVATIONS[cell_activation(act).name]
        cell = self._cell(x, W, U, y, h0=h0, mask=mask, reverse=reverse)
        if cell is None:
            return NotImplemented
        gates, states = cell.array("gates", *y.shape), cell.array("states", *y.shape)
        row, slope, product = cell.array("row", cell.n, cell.h), cell.slope(dy), None
        carried = None if mask is None else cell.array("carried", cell.n, cell.h, wide=True)
        for at in cell.backward():
            cell.launch(
                "recurrent", "rnn_grad_step", at, *cell.of_step(slope, at), product, carried, int(cell.is_last(at)),
                y, h0, *cell.mask, gates, row, states, args=(functor,),
            )  # fmt: skip
            product = cell.back(row, U, at, dh0)
        cell.initial(product, carried, dh0)
        self.gemm(_rows(states), _rows(gates), out=dU, trans_a=True)
        self._input_grads(_rows(gates), x, W, dx, dW, db)
        return None

    # ---- gated recurrent unit -----------------------------------------------------------------------
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
    ) -> Any:
        """Of `gates`, the first three quarters are reset, update and new (n, t, 3 h). The rest is what the reset
        meets (n, t, h), or, where it comes before the product, its result (t, n, h)."""
        cell = self._cell(x, W, U, y, gates, h0=h0, mask=mask, reverse=reverse)
        if cell is None:
            return NotImplemented
        if c is not None and (c.dtype != y.dtype or not c.flags.c_contiguous):
            held = cell.array("c", c.size)
            self.copy(c, out=held)
            c = held
        if c is not None and c.data.ptr % 16:
            cell.at_once = 1
        main, rest = self._gru_gates(cell, gates)
        self.linear_act(_rows(x), W, b, None, out=_rows(main))
        state = cell.array("state", cell.n, cell.h)
        if reset_after:
            for at in cell.forward():
                product = cell.product(state, U, at)
                cell.launch("gru", "gru_step", at, main, rest, product, c, h0, *cell.mask, y, state)
            return None
        of_gates, of_new = self._gru_parts(cell, U)
        inner = cell.array("inner product", cell.n, cell.h, wide=True)
        for at in cell.forward():
            reset = cell.array("reset", cell.n, cell.h) if rest is None else rest[at[0]]
            product = cell.product(state, of_gates, at)
            cell.launch("gru", "gru_reset", at, main, product, c, y, h0, reset)
            if product is not None:
                self.gemm(reset, of_new, out=inner)
            met = None if product is None else inner
            cell.launch("gru", "gru_new", at, main, met, c, h0, *cell.mask, y, state)
        return None

    def _gru_gates(self, cell: _Cell, gates: Array | None) -> tuple[Array, Array | None]:
        n, steps, h = cell.y.shape
        if gates is None:
            return cell.array("gates", n, steps, 3 * h), None
        flat = gates.reshape(-1)
        return flat[: n * steps * 3 * h].reshape(n, steps, 3 * h), flat[n * steps * 3 * h :].reshape(steps, n, h)

    def _gru_parts(self, cell: _Cell, U: Array) -> tuple[Array, Array]:
        """`U` of reset and update, and of new, each in one piece."""
        of_gates, of_new = cell.array("U gates", cell.h, 2 * cell.h), cell.array("U new", cell.h, cell.h)
        self.copy_columns(U[:, : 2 * cell.h], out=of_gates)
        self.copy_columns(U[:, 2 * cell.h :], out=of_new)
        return of_gates, of_new

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
    ) -> Any:
        cell = self._cell(x, W, U, y, gates, h0=h0, mask=mask, reverse=reverse)
        if cell is None:
            return NotImplemented
        n, steps, h = y.shape
        main, rest = self._gru_gates(cell, gates)
        carried = cell.array("carried", n, h, wide=True)
        slope = cell.slope(dy)
        if reset_after:
            recurrent, states = cell.array("recurrent", steps, n, 3 * h), cell.array("states", steps, n, h)
            product = None
            for at in cell.backward():
                cell.launch(
                    "gru_grad", "gru_grad_step", at, *cell.of_step(slope, at), product, carried, int(cell.is_last(at)),
                    y, h0, *cell.mask, main, rest, recurrent, states,
                )  # fmt: skip
                product = cell.back(recurrent[at[0]], U, at, dh0)
            self.gemm(_rows(states), _rows(recurrent), out=dU, trans_a=True)
            if dc is not None:
                self.sum_rows(_rows(recurrent), out=dc)
        else:
            product = self._reset_before_grad(cell, slope, U, main, rest, carried, dU, dh0)
            if dc is not None:  # the bias of the inputs meets the same sums
                self.sum_rows(_rows(main), out=dc)
        cell.initial(product, carried, dh0)
        self._input_grads(_rows(main), x, W, dx, dW, db)
        return None

    def _reset_before_grad(
        self, cell: _Cell, slope: Any, U: Array, main: Array, reset: Any, carried: Array, dU: Array, dh0: Array | None
    ) -> Array | None:
        """The steps of the original unit, and `dU`; returns the product that reaches the initial state."""
        n, steps, h = cell.y.shape
        of_gates, of_new = self._gru_parts(cell, U)
        news, states = cell.array("news", steps, n, h), cell.array("states", n, steps, h)
        inner, row, product = cell.array("inner product", n, h, wide=True), cell.array("row", n, 2 * h), None
        for at in cell.backward():
            cell.launch(
                "gru_grad", "gru_grad_new", at, *cell.of_step(slope, at), product, carried, int(cell.is_last(at)),
                cell.y, cell.h0, *cell.mask, main, news,
            )  # fmt: skip
            self.gemm(news[at[0]], of_new, out=inner, trans_b=True)
            cell.launch("gru_grad", "gru_grad_reset", at, inner, carried, cell.y, cell.h0, main, row, states)
            product = cell.back(row, of_gates, at, dh0)
        # The columns of new are those of r h, not of h
        self.gemm(_rows(states), _rows(main), out=dU, trans_a=True)
        of_resets = cell.array("dU new", h, h, wide=True)
        self.gemm(_rows(reset), _rows(news), out=of_resets, trans_a=True)
        self.copy_columns(of_resets, out=dU[:, 2 * h :])
        return product

    # ---- long short-term memory ---------------------------------------------------------------------
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
    ) -> Any:
        cell = self._cell(x, W, U, y, c0, cells, gates, last_cell, h0=h0, mask=mask, reverse=reverse)
        if cell is None:
            return NotImplemented
        n, steps, h = y.shape
        if gates is None:
            gates = cell.array("gates", n, steps, 4 * h)
        self.linear_act(_rows(x), W, b, None, out=_rows(gates))
        state, held = cell.array("state", n, h), cell.array("cell", n, h, wide=True)
        for at in cell.forward():
            product = cell.product(state, U, at)
            last = last_cell if cell.is_last(at) else None
            cell.launch("recurrent", "lstm_step", at, gates, product, h0, c0, held, *cell.mask, y, cells, state, last)
        return None

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
    ) -> Any:
        cell = self._cell(x, W, U, y, c0, cells, gates, h0=h0, mask=mask, reverse=reverse)
        if cell is None:
            return NotImplemented
        n, _, h = y.shape
        states, row = cell.array("states", *y.shape), cell.array("row", n, 4 * h)
        slope, product = cell.slope(dy), None
        of_cell = cell.array("cell", n, h, wide=True)
        carried = None if mask is None else cell.array("carried", n, h, wide=True)
        for at in cell.backward():
            cell.launch(
                "recurrent", "lstm_grad_step", at, *cell.of_step(slope, at), product, carried, of_cell,
                int(cell.is_last(at)), y, h0, cells, c0, *cell.mask, gates, row, states,
            )  # fmt: skip
            product = cell.back(row, U, at, dh0)
        cell.initial(product, carried, dh0)
        cell.initial(of_cell, None, dc0)
        self.gemm(_rows(states), _rows(gates), out=dU, trans_a=True)
        self._input_grads(_rows(gates), x, W, dx, dW, db)
        return None
