"""Several arrays with the same rows, as one: the inputs of a model that has several, or the targets of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Bundle", "parts", "row_shapes"]


class Bundle:
    """Arrays with as many rows each; indexing takes the same rows of all.

    Attributes
    ----------
    arrays : tuple of array
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        self.arrays = tuple(arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: Any) -> Bundle:
        return Bundle([x[index] for x in self.arrays])

    @property
    def shape(self) -> tuple[int]:
        """The number of rows alone."""
        return (len(self),)


def parts(x: Any) -> list[Any]:
    """The arrays of a bundle; any other array as the only one; none for ``None``."""
    if x is None:
        return []
    return list(x.arrays) if isinstance(x, Bundle) else [x]


def row_shapes(x: Any) -> list[tuple[int, ...]]:
    """The shape of a row of each array."""
    return [tuple(one.shape[1:]) for one in parts(x)]
