"""The recurrent part of the contract: every method, forward and backward, on data of one seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .operations import Operations

__all__ = ["add_recurrent"]

#: method, arguments after the weights, options, gates, biases
_CELLS: tuple[tuple[str, tuple[Any, ...], dict[str, Any], int, int], ...] = (
    ("rnn", ("tanh",), {}, 1, 1),
    ("rnn", ("relu",), {}, 1, 1),
    ("gru", (), {"reset_after": True}, 3, 2),
    ("gru", (), {"reset_after": False}, 3, 2),
    ("lstm", (), {}, 4, 1),
)
# Masked, with a start of one's own, reversed, and whether there is a gradient for each step
_WAYS = ((False, False, False, True), (True, True, True, True), (False, True, False, False))


def add_recurrent(ops: Operations) -> None:
    """Add the calls to `ops`."""
    rows, columns = ops.shape
    n, steps, features, units = min(rows, 37), 4, min(columns, 9), min(columns, 13)
    for method, more, options, gates, biases in _CELLS:
        for masked, started, reverse, all_steps in _WAYS:
            label = f"{method} {more} {options} {masked} {started} {reverse}"
            _cell(
                ops, label, method, more, options, (n, steps, features, units, gates, biases),
                (masked, started, reverse, all_steps),
            )  # fmt: skip
    x = ops._data(rows, columns)
    ops._call("multiply", x, ops._data(rows, columns), out=ops._out("multiply", rows, columns))
    ops._call("multiply", x, 0.5, out=ops._out("multiply, number", rows, columns))


def _cell(
    ops: Operations,
    label: str,
    method: str,
    more: tuple[Any, ...],
    options: dict[str, Any],
    sizes: tuple[int, ...],
    way: tuple[bool, ...],
) -> None:
    (n, steps, features, units, gates, biases), (masked, started, reverse, all_steps) = sizes, way
    wide = gates * units

    def out(name: str, *shape: int, full: bool = False) -> Any:
        return ops._out(f"{label} {name}", *shape, full=full)

    def room(*shape: int) -> Any:
        """An array whose contents are a backend's own affair."""
        return ops._device(np.zeros(shape, ops.dtype))

    # Weights so small that gates do not saturate
    W, U = ops._data(features, wide, low=-0.5), ops._data(units, wide, low=-0.5)
    x = ops._data(n, steps, features)
    given = [ops._data(wide) for _ in range(biases)]
    starts = {"h0": ops._data(n, units)} if started else {}
    if started and method == "lstm":
        starts["c0"] = ops._data(n, units)
    shared: dict[str, Any] = {**starts, "reverse": reverse, **options}
    if masked:
        shared["mask"] = ops._device((ops.rng.random((n, steps)) < 0.7).astype(ops.dtype))
    y = out("y", n, steps, units)
    kept: dict[str, Any] = {} if method == "rnn" else {"gates": room(n, steps, 4 * units)}
    last: dict[str, Any] = {}
    if method == "lstm":
        kept["cells"] = room(n, steps, units)
        last["last_cell"] = out("last cell", n, units)
    ops._call(method, x, W, U, *given, *more, y=y, **kept, **last, **shared)
    if method == "rnn":
        # Not what was just computed: a last digit can lie on the other side of a kink, and goes on from step to step
        y = ops._saved(more[0], n * steps, units).reshape(n, steps, units)
    dy = ops._data(n, steps, units) if all_steps else ops._data(n, units)
    grads = {
        "dx": out("dx", n, steps, features),
        "dW": out("dW", features, wide, full=True),
        "dU": out("dU", units, wide, full=True),
        **{name: out(name, wide, full=True) for name in ("db", "dc")[:biases]},
        **{"d" + name: out("d" + name, n, units) for name in starts},
    }
    ops._call(method + "_grad", dy, x, W, U, *more, y=y, **kept, **grads, **shared)
