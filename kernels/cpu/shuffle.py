"""Random orders of rows: Fisher and Yates's shuffle on numbers that NumPy's generator drew.

It takes the numbers the way :meth:`numpy.random.Generator.permuted` does, so the orders are the same: the target of
element i is the lowest bits of a 32-bit word, as many as i needs, and words that give more than i are passed over.
"""

# ruff: noqa: E741 - the kernels' own names
from __future__ import annotations

import numpy as np

from .driver import Call, Program
from .intrinsics import pointer_i64
from .specialise import kernel


def shuffle_rows(I, F, task):
    """I: table, rows, columns, words, their number, row, element and word to go on from, where it stopped, too."""
    columns, words, number = I[2], pointer_i64(I[3]), I[4]
    row, element, used = I[5], I[6], I[7]
    while row < I[1]:
        numbers = pointer_i64(I[0] + row * columns * 8)
        bits = 1
        while bits < element:
            bits = 2 * bits + 1
        while element > 0:
            if used == number:
                I[5], I[6], I[7] = row, element, used
                return
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
        row += 1
        element = columns - 1
    I[5], I[6], I[7] = row, element, used


def permute(bits: np.random.BitGenerator, table: np.ndarray) -> None:
    """Put the numbers of each row of `table` in a random order.

    Parameters
    ----------
    bits : BitGenerator
        A new one of 64-bit words, such as Philox: whoever draws from it later gets other numbers than after NumPy's
        shuffle.
    table : ndarray of int64, (rows, columns)
        C-contiguous; changed in place.
    """
    rows, columns = table.shape
    record = np.array([table.ctypes.data, rows, columns, 0, 0, 0, columns - 1, 0], np.int64)
    program = Program([Call(kernel(shuffle_rows), record, np.zeros(1), keep=(table,))])
    record = program.calls[0].ints
    while record[5] < rows:
        # About 1.44 words for each number, two words at a time
        left = (rows - int(record[5])) * columns
        words = bits.random_raw(left * 3 // 4 + 16)
        record[3], record[4], record[7] = words.ctypes.data, 2 * words.size, 0
        program.run()
