"""Random orders of rows: Fisher and Yates's shuffle on the words of NumPy's Philox generator.

It takes the words the way :meth:`numpy.random.Generator.permuted` does, so the orders are the same: the target of
element i is the lowest bits of a 32-bit word, as many as i needs, and words that give more than i are passed over. The
words of a generator are a function of their number, so each task makes its own, a few kilobytes at a time.
"""

# ruff: noqa: E741 - the kernels' own names
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import memory
from . import threads
from .driver import Call, Program
from .intrinsics import multiply_wide, pointer_i64
from .specialise import kernel
from .team import function


def _signed(word: int) -> int:
    """The int64 of the same bits."""
    return word - (1 << 64) if word >> 63 else word


# Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox 4x64-10
_M0, _M1 = _signed(0xD2E7470EE14C6C93), _signed(0xCA5A826395121157)
_W0, _W1 = _signed(0x9E3779B97F4A7C15), _signed(0xBB67AE8584CAA73B)
_ROUNDS = 10
# Words that are made at a time: 8 kB, which stay in the nearest cache
_WORDS = 1024
# Elements from which on it is worth starting threads
_SHARED = 16_384


@function
def philox_4x64(words, number, first, index, key0, key1):
    """`number` words, four for each of the counters ``first, first + 1, ...`` of ``(counter, 0, index, 0)``."""
    for i in range(0, number, 4):
        c0, c1, c2, c3 = first + (i >> 2), 0, index, 0
        k0, k1 = key0, key1
        for _ in range(_ROUNDS):
            high0, low0 = multiply_wide(_M0, c0)
            high1, low1 = multiply_wide(_M1, c2)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
            k0, k1 = k0 + _W0, k1 + _W1
        words[i], words[i + 1], words[i + 2], words[i + 3] = c0, c1, c2, c3


def shuffle_rows(I, F, task):
    """I: table, rows, columns, the generators' numbers, the two words of their key, room for words of each task."""
    columns = I[2]
    index, words = pointer_i64(I[3])[task], pointer_i64(I[6] + task * 8 * _WORDS)
    counter, used, number = 1, 0, 0
    for row in range(I[1]):
        numbers = pointer_i64(I[0] + (task * I[1] + row) * columns * 8)
        for j in range(columns):
            numbers[j] = j
        element = columns - 1
        bits = 1
        while bits < element:
            bits = 2 * bits + 1
        while element > 0:
            if used == number:
                philox_4x64(words, _WORDS, counter, index, I[4], I[5])
                counter, used, number = counter + _WORDS // 4, 0, 2 * _WORDS
            bits = bits >> 1 if element <= bits >> 1 else bits
            # The generator gives 64 bits, of which NumPy takes the lower half first
            target = (words[used >> 1] >> (32 * (used & 1))) & bits
            used += 1
            # A branch that depends on chance costs more than to swap an element with itself and do it again
            taken = 1 if target <= element else 0
            target = target if taken != 0 else element
            first, second = numbers[element], numbers[target]
            numbers[element], numbers[target] = second, first
            element -= taken


def shuffle(key: int, numbers: Sequence[int], table: np.ndarray) -> None:
    """Fill each row of `table` with a random order of its columns' numbers.

    Parameters
    ----------
    key : int
        Of the generators, 128 bits.
    numbers : sequence of int
        ``Philox(key=key, counter=numbers[i] << 128)`` orders the rows of ``table[i]``, one after the other.
    table : ndarray of int64, (len(numbers), rows, columns)
        C-contiguous; written.
    """
    tasks, rows, columns = table.shape
    index = np.array(numbers, np.int64)
    room: Any = memory.empty(tasks * _WORDS, np.int64)
    low, high = key & 0xFFFFFFFFFFFFFFFF, key >> 64
    record = np.array(
        [table.ctypes.data, rows, columns, index.ctypes.data, _signed(low), _signed(high), room.ctypes.data], np.int64
    )
    shared = tasks > 1 and table.size >= _SHARED and threads.count() > 1
    Program([Call(kernel(shuffle_rows), record, np.zeros(1), tasks, shared, keep=(table, index, room))]).run()
