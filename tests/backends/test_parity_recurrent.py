"""Recurrent cells on Numba kernels against NumPy: all options, odd sizes, several tiles, tasks and blocks of steps."""

from __future__ import annotations

from itertools import product

import numba
import numpy as np
import pytest

from nnfast.backends.numba_backend import NumbaBackend
from nnfast.backends.numba_replay import NumbaReplay
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels.cpu import threads, tuning

NUMPY, NUMBA = NumpyBackend(), NumbaBackend()
TOLERANCE = {np.float32: 3e-5, np.float64: 1e-11}  # of the result's own scale
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)

CELLS = {
    "rnn tanh": ("rnn", ("tanh",), {}),
    "rnn relu": ("rnn", ("relu",), {}),
    "gru after": ("gru", (), {"reset_after": True}),
    "gru before": ("gru", (), {"reset_after": False}),
    "lstm": ("lstm", (), {}),
}
cells = pytest.mark.parametrize("cell", CELLS)
GATES = {"rnn": 1, "gru": 3, "lstm": 4}

# Rows, steps, features, units: single ones, primes, several tiles and blocks of steps, many steps of one row
SIZES = [
    (1, 1, 1, 1),
    (1, 7, 3, 5),
    (1, 300, 2, 16),
    (2, 3, 1, 16),
    (3, 5, 7, 1),
    (9, 11, 13, 37),
    (131, 5, 3, 33),
    (211, 3, 20, 34),
]
# Masked, started from given states, reversed, gradient of the last state alone, without biases, without dx
WAYS = [way for i, way in enumerate(product((False, True), repeat=6)) if i % 7 in (0, 3)]


class Case:
    """Arguments of a cell of one seed; :meth:`run` gives all that it and its gradient write."""

    def __init__(self, cell, sizes, dtype, way=(False,) * 6, seed=0):
        self.method, self.more, self.options = CELLS[cell]
        masked, started, reverse, self.last_only, bare, self.no_dx = way
        rng = np.random.default_rng(seed)
        n, steps, features, units = self.sizes = sizes
        wide = self.wide = GATES[self.method] * units

        def data(*shape):
            return rng.standard_normal(shape).astype(dtype)

        self.dtype = dtype
        self.x = data(n, steps, features)
        self.W, self.U = data(features, wide) / np.sqrt(features), data(units, wide) / np.sqrt(units)
        self.W, self.U = self.W.astype(dtype), self.U.astype(dtype)
        biases = 2 if self.method == "gru" else 1
        self.biases = [None if bare else data(wide) for _ in range(biases)]
        self.starts = {"h0": data(n, units)} if started else {}
        if started and self.method == "lstm":
            self.starts["c0"] = data(n, units)
        self.shared = {**self.starts, "reverse": reverse, **self.options}
        if masked:
            self.shared["mask"] = (rng.random((n, steps)) < 0.6).astype(dtype)
        self.dy = data(n, units) if self.last_only else data(n, steps, units)

    def new(self, *shape):
        return np.full(shape, np.nan, self.dtype)

    def kept(self):
        n, steps, _, units = self.sizes
        kept = {} if self.method == "rnn" else {"gates": self.new(n, steps, 4 * units)}
        return {**kept, "cells": self.new(n, steps, units)} if self.method == "lstm" else kept

    def forward(self, bk, kept):
        n, steps, _, units = self.sizes
        found = {"y": self.new(n, steps, units)}
        if self.method == "lstm":
            found["last_cell"] = self.new(n, units)
        getattr(bk, self.method)(self.x, self.W, self.U, *self.biases, *self.more, **found, **kept, **self.shared)
        return found

    def backward(self, bk, y, kept):
        n, _, features, units = self.sizes
        found = {
            "dx": None if self.no_dx else self.new(*self.x.shape),
            "dW": self.new(features, self.wide),
            "dU": self.new(units, self.wide),
            **{
                name: None if b is None else self.new(self.wide)
                for name, b in zip(("db", "dc"), self.biases, strict=False)
            },
            **{"d" + name: self.new(n, units) for name in self.starts},
        }
        method = getattr(bk, self.method + "_grad")
        method(self.dy, self.x, self.W, self.U, *self.more, y=y, **kept, **found, **self.shared)
        return found

    def run(self, bk):
        """Forward twice, the second time as outside training, and backward."""
        kept = self.kept()
        found = self.forward(bk, kept)
        again = self.forward(bk, dict.fromkeys(kept))
        grads = self.backward(bk, found["y"], kept)
        return {**found, **{f"{name}, inference": value for name, value in again.items()}, **grads}


def close(found, expected, dtype, what=""):
    for name, value in expected.items():
        if value is None:
            assert found[name] is None
            continue
        scale = max(1.0, float(np.abs(value).max()))
        error = np.abs(found[name] - value).max() / scale
        assert error < TOLERANCE[dtype], f"{what} {name}: {error}"


@dtypes
@cells
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_all_options(cell, sizes, dtype):
    few = 4 if dtype == np.float32 else 2
    for way in WAYS[:: few if np.prod(sizes) < 500 else 2 * few]:
        case = Case(cell, sizes, dtype, way)
        close(case.run(NUMBA), case.run(NUMPY), dtype, str(way))


@pytest.mark.parametrize("cell", ["lstm", "gru before"])
def test_wide_rows_of_gates_go_in_short_blocks(cell):
    """A step's gates of all rows of a tile are more than a block may have."""
    case = Case(cell, (97, 3, 4, 520), np.float32)
    assert tuning.sequence_block(3, 49, 520 * 4 * 4) < 3
    close(case.run(NUMBA), case.run(NUMPY), np.float32)


@pytest.mark.parametrize("cell", ["lstm", "gru before"])
def test_units_whose_rows_would_clash_in_the_cache(cell):
    case = Case(cell, (5, 2, 512, 512), np.float64, (False, True, False, False, False, False))
    close(case.run(NUMBA), case.run(NUMPY), np.float64)


@cells
def test_replays_natively(cell):
    """Recorded, all of it is kernels, and runs again on what is then in the arrays."""
    case = Case(cell, (13, 4, 3, 5), np.float32, (True, True, False, False, False, False))
    kept, results = case.kept(), {}

    def step(bk):
        results.update(case.forward(bk, kept))
        results.update(case.backward(bk, results["y"], kept))

    replay = NUMBA.capture(step)
    assert isinstance(replay, NumbaReplay)
    assert replay.native
    for _ in range(2):
        replay.run()
        expected = case.run(NUMPY)
        close(results, {name: expected[name] for name in results}, np.float32)
        case.x *= 0.5
        case.U += 0.1


@cells
def test_number_of_threads_may_change_before_the_gradient(cell):
    case = Case(cell, (64, 9, 16, 16), np.float64)
    kept = case.kept()
    y = case.forward(NUMBA, kept)["y"]
    before = threads.count()
    try:
        numba.set_num_threads(1)
        grads = case.backward(NUMBA, y, kept)
    finally:
        numba.set_num_threads(before)
    close(grads, {name: value for name, value in case.run(NUMPY).items() if name in grads}, np.float64)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 31, 97, 128, 1000, 4097])
@pytest.mark.parametrize("lanes", [1, 2, 16])
def test_tiles_cover_all_rows_once(rows, lanes):
    tiles = tuning.sequence_tiles(rows, lanes)
    assert tiles.tile <= max(tuning.SEQUENCE_ROWS, 4)
    assert (tiles.number - 1) * tiles.tile < rows <= tiles.number * tiles.tile
    assert tiles.tasks <= lanes


@dtypes
def test_last_cell_may_be_the_first_one(dtype):
    case = Case("lstm", (11, 3, 2, 7), dtype, (False, True, False, False, False, False))
    expected = case.forward(NUMPY, dict.fromkeys(case.kept()))
    for bk in (NUMPY, NUMBA):
        cell, y = case.starts["c0"].copy(), np.empty_like(expected["y"])
        more = {"h0": case.starts["h0"], "c0": cell, "last_cell": cell, "cells": None, "gates": None}
        bk.lstm(case.x, case.W, case.U, *case.biases, y=y, **more)
        close({"y": y, "last_cell": cell}, expected, dtype)


@dtypes
@pytest.mark.parametrize("shape", [(3, 5), (70, 130), (2, 3, 4)], ids=str)
def test_multiply(dtype, shape):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, *shape)).astype(dtype)
    for bk in (NUMPY, NUMBA):
        out = np.empty_like(x)
        bk.multiply(x, y, out=out)
        np.testing.assert_array_equal(out, x * y)
        for given in (x, y):
            mine = given.copy()
            bk.multiply(mine, y, out=mine)
            np.testing.assert_array_equal(mine, given * y)
        bk.multiply(x, mine, out=mine)
        np.testing.assert_array_equal(mine, x * (y * y))
        bk.multiply(x, 0.3, out=out)
        np.testing.assert_array_equal(out, x * dtype(0.3))
        bk.multiply(out, -2.0, out=out)
        np.testing.assert_array_equal(out, x * dtype(0.3) * -2)


# ---- errors -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cell", "name", "shape", "message"),
    [
        ("lstm", "W", (3, 19), r"lstm: W has shape \(3, 19\), expected \(3, 20\)"),
        ("lstm", "U", (5, 15), r"lstm: U has shape \(5, 15\), expected \(5, 20\)"),
        ("gru after", "W", (4, 15), r"gru: W has shape \(4, 15\), expected \(3, 15\)"),
        ("rnn tanh", "x", (2, 3), r"rnn: x has shape \(2, 3\), expected \(rows, steps, features\)"),
    ],
)
def test_wrong_shapes(cell, name, shape, message):
    case = Case(cell, (2, 4, 3, 5), np.float32)
    setattr(case, name, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=message):
        case.forward(NUMBA, dict.fromkeys(case.kept()))


@pytest.mark.parametrize("name", ["h0", "mask"])
def test_wrong_shapes_of_what_may_be_given(name):
    case = Case("gru after", (2, 4, 3, 5), np.float32)
    case.shared[name] = np.zeros((3, 5), np.float32)
    with pytest.raises(ValueError, match=rf"gru: {name} has shape \(3, 5\), expected"):
        case.forward(NUMBA, dict.fromkeys(case.kept()))


def test_wrong_shape_of_a_gradient():
    case = Case("lstm", (2, 4, 3, 5), np.float32)
    kept = case.kept()
    y = case.forward(NUMBA, kept)["y"]
    case.dy = case.dy[:, :3].copy()
    with pytest.raises(ValueError, match=r"lstm_grad: dy has shape \(2, 3, 5\), expected \(2, 4, 5\)"):
        case.backward(NUMBA, y, kept)


@pytest.mark.parametrize("bk", [NUMPY, NUMBA], ids=["numpy", "numba"])
def test_other_activations_are_refused(bk):
    case = Case("rnn tanh", (2, 4, 3, 5), np.float32)
    case.more = ("gelu",)
    with pytest.raises(ValueError, match="rnn: the activation must be tanh or relu, got 'gelu'"):
        case.forward(bk, {})


def test_read_only_results_are_refused():
    case = Case("lstm", (2, 4, 3, 5), np.float32)
    kept = case.kept()
    kept["gates"].flags.writeable = False
    with pytest.raises(ValueError, match="lstm: gates is read-only"):
        case.forward(NUMBA, kept)


@cells
def test_what_the_kernels_do_not_take_goes_to_numpy(cell):
    """Strided inputs, here; the results are the same."""
    case = Case(cell, (6, 4, 3, 5), np.float64)
    expected = case.run(NUMPY)
    case.x = np.asfortranarray(case.x)
    close(case.run(NUMBA), expected, np.float64)
