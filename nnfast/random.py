"""Counter-based random numbers: the same on every backend, for every number of threads.

Dropout masks come from Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy
as 1, 2, 3", SC 2011), which every backend implements; this module holds the NumPy form that they are
tested against. Initial weights and shuffles are drawn on the host from NumPy's own Philox generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "Orders",
    "checked_seed",
    "fresh_seed",
    "generator",
    "keep_threshold",
    "permutation",
    "permutations",
    "philox_4x32",
    "shuffle",
]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

# Streams of the host generator; a stream is the high word of the key
INIT, SHUFFLE, SPLIT, SAMPLE, UNKNOWN = 1, 2, 3, 4, 5

# Row numbers that are drawn at a time: a generator of its own for each epoch costs more than a short order
_BLOCK = 16384


def philox_4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, ...]:
    """Philox 4x32-10: four 32-bit random words per counter value.

    Parameters
    ----------
    counter : tuple of four array_like of int
        The 128-bit counter as four 32-bit words, lowest first; arrays broadcast.
    key : tuple of two int
        The 64-bit key as two 32-bit words, lowest first.

    Returns
    -------
    tuple of four ndarray of uint64
        Words in ``[0, 2**32)``.
    """
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _32) ^ c1 ^ np.uint64(k0),
            p1 & _MASK,
            (p0 >> _32) ^ c3 ^ np.uint64(k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def keep_threshold(rate: float) -> int:
    """The number of 32-bit words that keep an element when `rate` of them are dropped.

    An element is kept where its random word is less than this.
    """
    return min(round((1.0 - rate) * 2**32), 2**32 - 1)


def fresh_seed() -> int:
    """A seed from the operating system's entropy, in ``[0, 2**63)``."""
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, stream: int, index: int = 0) -> np.random.Generator:
    """A host generator for one purpose: independent of how often any other was used.

    Parameters
    ----------
    seed : int
        The user's seed, in ``[0, 2**64)``.
    stream : int
        What it is for: :data:`INIT`, :data:`SHUFFLE` or :data:`SPLIT`.
    index : int
        Number within the stream, such as the epoch or the parameter.
    """
    bits = np.random.Philox(key=seed + (stream << 64), counter=index << 128)
    return np.random.Generator(bits)


def shuffle(seed: int, numbers: Sequence[int], table: np.ndarray) -> None:
    """Fill each row of `table` with a random order of ``0..columns-1``.

    Parameters
    ----------
    seed : int
        The user's seed.
    numbers : sequence of int
        ``generator(seed, SHUFFLE, numbers[i])`` orders the rows of ``table[i]``, one after the other.
    table : ndarray of int64, (len(numbers), rows, columns)
        Written.
    """
    table[...] = np.arange(table.shape[2])
    for number, rows in zip(numbers, table, strict=True):
        generator(seed, SHUFFLE, number).permuted(rows, axis=1, out=rows)


class Orders:
    """The orders of `n` rows in the epochs of a training, each a random permutation of ``0..n-1``.

    An epoch's order depends on `seed`, `n` and the epoch's number alone. Long orders are drawn one by one, short
    ones in blocks: one generator shuffles all orders of the epochs ``b * B`` to ``b * B + B - 1``. The last block
    is kept.

    Parameters
    ----------
    seed : int
        The user's seed, in ``[0, 2**64)``.
    n : int
        Rows in an epoch.

    Attributes
    ----------
    shuffle : callable
        :func:`shuffle`, or :meth:`~nnfast.backends.base.Backend.shuffle` of a backend.
    """

    def __init__(self, seed: int, n: int) -> None:
        self.seed, self.n = seed, n
        self.shuffle = shuffle
        self._per_block = max(1, _BLOCK // max(n, 1))
        self._kept: tuple[int, np.ndarray] | None = None

    def of(self, first: int, count: int) -> np.ndarray:
        """The orders of `count` epochs from epoch `first` on, counted from 0: (count, n), int64, a new array."""
        if first < 0 or count < 0:
            raise ValueError(f"first and count must not be negative, got {first} and {count}")
        if count == 0:
            return np.empty((0, self.n), np.int64)
        low, high = first // self._per_block, (first + count - 1) // self._per_block
        known = [self._kept[1]] if self._kept is not None and self._kept[0] == low else []
        drawn = np.empty((high - low + 1 - len(known), self._per_block, self.n), np.int64)
        if len(drawn):
            self.shuffle(self.seed, range(low + len(known), high + 1), drawn)
        if self._per_block == 1:
            return drawn[:, 0]
        if len(drawn):
            self._kept = high, drawn[-1]
        start = first - low * self._per_block
        parts = []
        for block in (*known, *drawn):
            parts.append(block[start : start + count])
            start, count = 0, count - len(parts[-1])
        return np.concatenate(parts)


def permutations(seed: int, first: int, count: int, n: int) -> np.ndarray:
    """The orders of `n` rows in `count` epochs from epoch `first` on: (count, n), int64."""
    return Orders(seed, n).of(first, count)


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` rows in epoch `epoch`: a permutation of ``0..n-1``, int64."""
    return permutations(seed, epoch, 1, n)[0]


def checked_seed(seed: int | None) -> int:
    """The user's seed, checked, or a fresh one."""
    if seed is None:
        return fresh_seed()
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an integer or None, not {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return int(seed)
