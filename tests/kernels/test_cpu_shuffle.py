"""The native shuffle: NumPy's orders, whatever number of words is drawn at a time."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

import nnfast as nf
from nnfast import random
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.kernels.cpu import shuffle

SIZES = [(1, 0), (0, 5), (3, 1), (3, 2), (40, 3), (5, 64), (5, 65), (7, 129), (2, 3200), (1, 70000)]


class Sparing(np.random.Philox):
    """Gives few words at a time."""

    asked = 0

    def random_raw(self, size=None, output=True):
        self.asked += 1
        return super().random_raw(min(size, 1 + self.asked % 5), output)


@pytest.mark.parametrize("bits", [np.random.Philox, np.random.PCG64])
@pytest.mark.parametrize("size", SIZES)
def test_orders_are_those_of_numpy(size, bits):
    for seed in range(5):
        found = np.tile(np.arange(size[1], dtype=np.int64), (size[0], 1))
        expected = found.copy()
        shuffle.permute(bits(seed), found)
        random.permute(bits(seed), expected)
        np.testing.assert_array_equal(found, expected)


def test_an_order_goes_on_where_the_words_ended():
    for columns in (1, 2, 3, 30, 257):
        found = np.tile(np.arange(columns, dtype=np.int64), (4, 1))
        expected, bits = found.copy(), Sparing(key=3)
        shuffle.permute(bits, found)
        random.permute(np.random.Philox(key=3), expected)
        np.testing.assert_array_equal(found, expected)
        assert bits.asked > 3 or columns < 30


def test_the_backend_shuffles_any_table():
    whole = np.tile(np.arange(50, dtype=np.int64), (6, 1))
    for table in (whole.copy(), whole.astype(np.int32), np.asfortranarray(whole), whole.copy()[::2]):
        expected = table.copy()
        random.permute(np.random.Philox(key=8), expected)
        NumbaBackend().permute(np.random.Philox(key=8), table)
        np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("rows", [7, 100, 9000])
def test_both_backends_see_the_rows_in_one_order(rows):
    """With a step of one row at a time, another order would give other weights."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((rows, 3)), rng.standard_normal((rows, 1))
    weights = []
    for device in ("numpy", "numba"):
        model = nf.Sequential([nf.Dense(1)])
        model.fit(
            X, y, loss="mse", optimizer=nf.SGD(0.05), epochs=2, batch_size=max(1, rows // 50), device=device,
            dtype="float64", seed=4, verbose=0,
        )  # fmt: skip
        weights.append(model.get_flat_weights())
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-10)
