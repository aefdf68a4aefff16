"""An n-gram model of characters, to compare with: interpolated Kneser-Ney, modified by Chen and Goodman (1999)."""

from __future__ import annotations

from math import log2

import numpy as np

__all__ = ["KneserNey"]

_Gram = tuple[int, ...]
_Level = tuple[dict[_Gram, float], dict[_Gram, tuple[float, float]]]


class KneserNey:
    """Probabilities of a character after the ones before it.

    ``p(c | h) = max(n(h c) - d, 0) / n(h) + g(h) p(c | h')``, where `h'` is `h` without its first character, `d` one of
    three discounts by whether the count is 1, 2 or more, and `g` gives what they take away to the shorter history.
    Below the longest history, a count is the number of different characters that were seen before. Below
    the shortest one, all characters are equally probable. Nothing is tuned: the discounts follow from the counts.

    Parameters
    ----------
    codes : ndarray of int64
        The text to count, (length,).
    classes : int
        Number of different characters.
    order : int
        Characters of the longest n-gram: the last one and ``order - 1`` before it.
    """

    def __init__(self, codes: np.ndarray, classes: int, order: int = 5) -> None:
        self.classes, self.order = classes, order
        self._levels: list[_Level] = []
        grams, counts = np.unique(np.lib.stride_tricks.sliding_window_view(codes, order), axis=0, return_counts=True)
        for _ in range(order):
            self._levels.insert(0, self._level(grams, counts))
            grams, counts = np.unique(grams[:, 1:], axis=0, return_counts=True)

    @staticmethod
    def _level(grams: np.ndarray, counts: np.ndarray) -> _Level:
        """Discounted shares of n-grams, and of each history its total and what is left for shorter ones."""
        seen = np.bincount(np.minimum(counts, 5), minlength=5).astype(float)
        share = seen[1] / (seen[1] + 2 * seen[2]) if seen[1] else 0.0
        discounts = np.zeros(4)
        for n in (1, 2, 3):
            # too few n-grams of a count, in a short text, say nothing of it
            estimate = n - (n + 1) * share * seen[n + 1] / seen[n] if seen[n] else share
            discounts[n] = min(max(estimate, 0.0), float(n)) or 0.5
        taken = discounts[np.minimum(counts, 3)]
        heads, place = np.unique(grams[:, :-1], axis=0, return_inverse=True)
        place = place.reshape(-1)
        totals, left = np.bincount(place, counts), np.bincount(place, taken)
        after = {tuple(gram): float(n) for gram, n in zip(grams.tolist(), counts - taken, strict=True)}
        before = {
            tuple(head): (float(total), float(rest))
            for head, total, rest in zip(heads.tolist(), totals, left, strict=True)
        }
        return after, before

    def probability(self, history: tuple[int, ...], code: int) -> float:
        """Probability of a character after up to ``order - 1`` others."""
        p = 1.0 / self.classes
        for length in range(min(len(history), self.order - 1) + 1):
            after, before = self._levels[length]
            head = history[len(history) - length :]
            if head not in before:
                break  # no longer history was seen either
            total, left = before[head]
            p = (after.get((*head, code), 0.0) + left * p) / total
        return p

    def bits(self, codes: np.ndarray, before: np.ndarray) -> np.ndarray:
        """``-log2 p`` of each character of a text that follows on another one, (length,)."""
        lead = min(self.order - 1, len(before))
        sequence = [*before[len(before) - lead :].tolist(), *codes.tolist()]
        return np.array(
            [
                -log2(self.probability(tuple(sequence[max(0, i - self.order + 1) : i]), sequence[i]))
                for i in range(lead, len(sequence))
            ]
        )
