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


@pytest.mark.parametrize("seed", [0, 7, 2**63, 2**64 - 1])
@pytest.mark.parametrize("size", SIZES)
def test_orders_are_those_of_numpy(size, seed):
    numbers = [0, 3, 2**40]
    found, expected = np.full((2, 3, *size), -1, np.int64)
    NumbaBackend().shuffle(seed, numbers, found)
    random.shuffle(seed, numbers, expected)
    np.testing.assert_array_equal(found, expected)
    if size[1]:
        np.testing.assert_array_equal(np.sort(expected, axis=2), np.broadcast_to(np.arange(size[1]), expected.shape))


def test_words_are_those_of_numpy_s_generator():
    """Beyond the words that are made at a time, and with keys that have all bits set."""
    for key in (5, (2**64 - 1) | (2**63 + 11) << 64):
        words = np.empty(8192, np.int64)
        shuffle.philox_4x64(
            WordPointer(words), 8192, 1, 9, shuffle._signed(key & (2**64 - 1)), shuffle._signed(key >> 64)
        )
        expected = np.random.Philox(key=key, counter=9 << 128).random_raw(8192)
        np.testing.assert_array_equal(words.view(np.uint64), expected)


def WordPointer(words):
    return words


def test_the_backend_shuffles_any_table():
    whole = np.zeros((2, 6, 50), np.int64)
    for table in (whole.copy(), whole.astype(np.int32), np.asfortranarray(whole), whole.copy()[:, ::2], whole[:0]):
        expected = table.copy()
        random.shuffle(8, range(len(table)), expected)
        NumbaBackend().shuffle(8, range(len(table)), table)
        np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("n", [1, 5, 100, 9000, 20_000])
def test_orders_do_not_depend_on_how_many_are_asked_for(n):
    whole = random.Orders(3, n).of(0, 40 if n < 9000 else 5)
    orders = random.Orders(3, n)
    orders.shuffle = NumbaBackend().shuffle
    first = 0
    for count in (1, 0, 2, 1, 30, 1):
        count = min(count, len(whole) - first)
        found = orders.of(first, count)
        np.testing.assert_array_equal(found, whole[first : first + count])
        found[:] = -1  # it is the caller's
        first += count
    np.testing.assert_array_equal(orders.of(1, 3), whole[1:4])
    for row in range(len(whole)):
        np.testing.assert_array_equal(random.permutation(3, row, n), whole[row])


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
