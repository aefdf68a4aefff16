"""Recurrent layers on Numba kernels."""

from __future__ import annotations

from typing import Any

from ..activations import Activation
from ..kernels.cpu.pointwise import multiply_call
from ..kernels.cpu.recurrent import Cell, backward_calls, forward_calls
from .base import Array
from .numba_checks import native, shapes, writable
from .recurrent import cell_activation


class NumbaRecurrent:
    """The recurrent part of :class:`~nnfast.backends.numba_backend.NumbaBackend`."""

    fused: bool
    _emit: Any
    _numpy: Any

    def _forward(self, cell: Cell, x: Array, W: Array, U: Array, b: Array | None, c: Array | None, **more: Any) -> bool:
        """Check the arrays and emit the calls, unless the kernels do not support what was given."""
        arrays = {"h0": None, "c0": None, "mask": None, "cells": None, "gates": None, "last_cell": None, **more}
        reverse, y = arrays.pop("reverse"), arrays.pop("y")
        if not (self.fused and native(x, W, U, b, c, y, *arrays.values())):
            return False
        self._check_sequences(cell, cell.name, x, W, U, b=b, c=c, y=y, **arrays)
        writable(cell.name, y=y, cells=arrays["cells"], gates=arrays["gates"], last_cell=arrays["last_cell"])
        self._emit(*forward_calls(cell, x, W, U, b, c, reverse=reverse, y=y, **arrays))
        return True

    def _backward(self, cell: Cell, dy: Array, x: Array, W: Array, U: Array, **more: Any) -> bool:
        method = cell.name + "_grad"
        names = ("h0", "c0", "mask", "cells", "gates", "dx", "dW", "dU", "db", "dc", "dh0", "dc0", "y")
        arrays = {**dict.fromkeys(names), **more}
        reverse = arrays.pop("reverse")
        if not (self.fused and native(dy, x, W, U, *arrays.values())):
            return False
        self._check_sequences(cell, method, x, W, U, dy=dy, **arrays)
        writable(method, **{name: arrays[name] for name in ("gates", "dx", "dW", "dU", "db", "dc", "dh0", "dc0")})
        self._emit(*backward_calls(cell, dy, x, W, U, reverse=reverse, **arrays))
        return True

    def _check_sequences(self, cell: Cell, method: str, x: Array, W: Array, U: Array, **arrays: Array | None) -> None:
        """Raise ``ValueError`` where an array has not the shape that follows from those of `x` and `U`."""
        if x.ndim != 3:
            raise ValueError(f"{method}: x has shape {x.shape}, expected (rows, steps, features)")
        (n, steps, features), h = x.shape, U.shape[0]
        wide = cell.gates * h
        state, all_steps = (n, h), (n, steps, h)
        wanted = {
            **dict.fromkeys(("b", "c", "db", "dc"), (wide,)),
            **dict.fromkeys(("h0", "c0", "last_cell", "dh0", "dc0"), state),
            **dict.fromkeys(("y", "cells"), all_steps),
            "dy": state if (dy := arrays.get("dy")) is not None and dy.ndim == 2 else all_steps,
            "mask": (n, steps),
            "gates": (n, steps, 4 * h),
            "dx": x.shape,
            "dW": (features, wide),
            "dU": (h, wide),
        }
        shapes(method, U=(U, (h, wide)), W=(W, (features, wide)))
        shapes(method, **{name: (array, wanted[name]) for name, array in arrays.items()})

    # ---- the contract ---------------------------------------------------------------------------------
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
        cell = Cell("rnn", act.name == "relu")
        if not self._forward(cell, x, W, U, b, None, h0=h0, mask=mask, reverse=reverse, y=y):
            self._numpy("rnn", x, W, U, b, act, h0=h0, mask=mask, reverse=reverse, y=y)

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
        more: dict[str, Any] = {"y": y, "h0": h0, "mask": mask, "reverse": reverse}
        more |= {"dx": dx, "dW": dW, "dU": dU, "db": db, "dh0": dh0}
        if not self._backward(Cell("rnn", act.name == "relu"), dy, x, W, U, **more):
            self._numpy("rnn_grad", dy, x, W, U, act, **more)

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
        more: dict[str, Any] = {"h0": h0, "mask": mask, "reverse": reverse, "y": y, "gates": gates}
        if not self._forward(Cell("gru", bool(reset_after)), x, W, U, b, c, **more):
            self._numpy("gru", x, W, U, b, c, reset_after=reset_after, **more)

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
        more: dict[str, Any] = {"y": y, "gates": gates, "h0": h0, "mask": mask, "reverse": reverse}
        more |= {"dx": dx, "dW": dW, "dU": dU, "db": db, "dc": dc, "dh0": dh0}
        if not self._backward(Cell("gru", bool(reset_after)), dy, x, W, U, **more):
            self._numpy("gru_grad", dy, x, W, U, reset_after=reset_after, **more)

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
        more: dict[str, Any] = {"h0": h0, "c0": c0, "mask": mask, "reverse": reverse, "y": y}
        more |= {"cells": cells, "gates": gates, "last_cell": last_cell}
        if not self._forward(Cell("lstm"), x, W, U, b, None, **more):
            self._numpy("lstm", x, W, U, b, **more)

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
        more: dict[str, Any] = {"y": y, "cells": cells, "gates": gates, "h0": h0, "c0": c0, "mask": mask}
        more |= {"reverse": reverse, "dx": dx, "dW": dW, "dU": dU, "db": db, "dh0": dh0, "dc0": dc0}
        if not self._backward(Cell("lstm"), dy, x, W, U, **more):
            self._numpy("lstm_grad", dy, x, W, U, **more)

    def multiply(self, x: Array, y: Array | float, *, out: Array) -> None:
        factor, other = (y, None) if isinstance(y, float) else (1.0, y)
        if not native(x, other, out):
            self._numpy("multiply", x, y, out=out)
            return
        shapes("multiply", y=(other, x.shape), out=(out, x.shape))
        writable("multiply", out=out)
        self._emit(multiply_call(x, other, factor, out))
