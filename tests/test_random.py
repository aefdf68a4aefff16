"""The random numbers that every backend has in common."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnfast import random


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # The known answers that the authors of Philox publish with Random123
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert tuple(int(word) for word in random.philox_4x32(counter, key)) == words


def test_philox_broadcasts():
    many = random.philox_4x32((np.arange(5), 3, 2, 1), (7, 8))
    for index in range(5):
        one = random.philox_4x32((index, 3, 2, 1), (7, 8))
        assert [int(word[index]) for word in many] == [int(word) for word in one]


@pytest.mark.parametrize(
    ("rate", "threshold"), [(0.0, 2**32 - 1), (0.5, 2**31), (0.25, 3 * 2**30), (1.0 - 2.0**-32, 1), (1e-12, 2**32 - 1)]
)
def test_keep_threshold(rate, threshold):
    assert random.keep_threshold(rate) == threshold


def test_permutation():
    one = random.permutation(3, 0, 50)
    assert one.dtype == np.int64
    assert sorted(one) == list(range(50))
    np.testing.assert_array_equal(random.permutation(3, 0, 50), one)
    for other in (random.permutation(3, 1, 50), random.permutation(4, 0, 50)):
        assert (other != one).any()


@given(n=st.integers(1, 9000), first=st.integers(0, 10**6), count=st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_orders_of_several_epochs_are_those_of_each(n, first, count):
    table = random.permutations(11, first, count, n)
    assert table.shape == (count, n)
    assert table.dtype == np.int64
    np.testing.assert_array_equal(np.sort(table, axis=1), np.tile(np.arange(n), (count, 1)))
    for row in range(0, count, 13):
        np.testing.assert_array_equal(table[row], random.permutation(11, first + row, n))


@pytest.mark.parametrize("n", [1, 4, random._BLOCK, random._BLOCK + 1])
def test_orders_do_not_depend_on_what_was_asked_before(n):
    expected = random.permutations(5, 0, 30, n)
    orders = random.Orders(5, n)
    for first, count in ((0, 1), (1, 7), (20, 10), (3, 0), (8, 12), (0, 30)):
        got = orders.of(first, count)
        np.testing.assert_array_equal(got, expected[first : first + count])
        got[...] = -1  # the caller's own


def test_orders_across_blocks():
    n, first = 1000, 5  # eight epochs a block
    expected = np.stack([random.permutation(2, epoch, n) for epoch in range(first, first + 20)])
    np.testing.assert_array_equal(random.permutations(2, first, 20, n), expected)
    assert len(np.unique(expected, axis=0)) == 20


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_order_is_equally_likely(n):
    stats = pytest.importorskip("scipy.stats")
    epochs = 500 * factorial(n)
    table = random.permutations(1, 0, epochs, n)
    seen, counts = np.unique(table, axis=0, return_counts=True)
    assert len(seen) == factorial(n)
    assert stats.chisquare(counts).pvalue > 1e-3
    # What follows an order does not depend on it, within a block and from block to block
    code = np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)
    pairs = np.bincount(code[:-1] * factorial(n) + code[1:], minlength=factorial(n) ** 2)
    if n <= 4:
        assert stats.chisquare(pairs).pvalue > 1e-3


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, -1)])
def test_wrong_epochs(first, count):
    with pytest.raises(ValueError, match="must not be negative"):
        random.permutations(0, first, count, 3)


def test_generators_are_independent():
    draws = {
        key: tuple(random.generator(*key).integers(0, 2**63, 4))
        for key in [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0), (2**64 - 1, 1, 0), (0, 3, 0)]
    }
    assert len(set(draws.values())) == len(draws)


@pytest.mark.parametrize("seed", [0, 7, np.int64(7), np.uint64(2**64 - 1), 2**64 - 1])
def test_seed(seed):
    assert random.checked_seed(seed) == int(seed)
    assert type(random.checked_seed(seed)) is int


def test_fresh_seeds_differ():
    seeds = {random.checked_seed(None) for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("seed", "error", "match"),
    [
        (-1, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        (2**64, ValueError, r"seed must be in"),
        (1.0, TypeError, r"seed must be an integer or None, not float"),
        (True, TypeError, r"seed must be an integer or None, not bool"),
        ("1", TypeError, r"not str"),
    ],
)
def test_bad_seed(seed, error, match):
    with pytest.raises(error, match=match):
        random.checked_seed(seed)
