"""Sequences of numbers of words, and the steps of a sequence that are padding."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from .. import initializers
from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape, positive_int, rows

__all__ = ["Embedding", "Masking"]


class Embedding(Layer):
    """``y = W[x]``: a row of trained numbers for each index, such as the number of a word.

    Parameters
    ----------
    vocabulary : int
        Number of different indices; they are in ``[0, vocabulary)``.
    features : int
        Numbers in a row.
    mask_zero : bool
        Whether index 0 is padding: the steps that have it are masked for the layers that follow.
    initializer : str, Initializer or callable
        For `W`.
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Shapes: `x` (n, steps), or (n,), int64; `W` (vocabulary, features); `y` (n, steps, features), or (n, features). The
    gradient of `W` is that of all its rows, zero where an index did not occur.
    """

    replayable = True
    takes_indices = True
    needs_output = False

    W: Array
    dW: Array

    def __init__(
        self,
        vocabulary: int,
        features: int,
        *,
        mask_zero: bool = False,
        initializer: Any = "uniform",
        name: str | None = None,
    ) -> None:
        self.vocabulary = positive_int(vocabulary, "Embedding: vocabulary")
        self.features = positive_int(features, "Embedding: features")
        self.mask_zero = bool(mask_zero)
        self.initializer = initializers.get(initializer) if callable(initializer) else initializer
        self.name = name

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        ctx.param("W", (self.vocabulary, self.features), self.initializer)
        if self.mask_zero:
            if len(in_shape) != 1:
                raise ValueError(f"Embedding: mask_zero masks the steps of inputs (steps,), got {tuple(in_shape)}")
            ctx.mask(in_shape[0])
        return (*in_shape, self.features)

    def check_indices(self, x: Any) -> None:
        """Raise where `x`, an array on the host, has what is no index of a row of `W`.

        Parameters
        ----------
        x : array_like
            The inputs of any number of rows.

        Raises
        ------
        TypeError
            If it is not of whole numbers.
        ValueError
            If one of them is outside of the vocabulary; the message says which one, and where.
        """
        x = np.asarray(x)
        if x.dtype.kind not in "iu":
            raise TypeError(f"Embedding takes indices of an integer dtype, not {x.dtype}")
        if x.size == 0 or (int(x.min()) >= 0 and int(x.max()) < self.vocabulary):
            return
        at = tuple(int(i) for i in np.argwhere((x < 0) | (x >= self.vocabulary))[0])
        raise ValueError(
            f"Embedding: the index {int(x[at])} at {at} is outside of the vocabulary, [0, {self.vocabulary})"
        )

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        bk.take_rows(self.W, x.reshape(-1), out=rows(y))
        if self.mask_zero:
            bk.step_mask(x.reshape(-1, 1), value=0.0, out=self.out_mask.reshape(-1))

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        bk.fill(self.dW, 0.0)
        bk.add_at_rows(rows(dy), self.x.reshape(-1), out=self.dW)


class Masking(Layer):
    """Mask the steps whose features all equal `value`, and write zeros there.

    Parameters
    ----------
    value : float
        What padding consists of.
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Shapes: `x`, `y` (n, steps, features).
    """

    replayable = True
    needs_input = needs_output = False

    def __init__(self, value: float = 0.0, *, name: str | None = None) -> None:
        if not isfinite(value):
            raise ValueError(f"Masking: value must be finite, got {value}")
        self.value = float(value)
        self.name = name

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        if len(in_shape) != 2:
            raise ValueError(f"Masking takes inputs of shape (steps, features), got {tuple(in_shape)}")
        ctx.mask(in_shape[0])
        return in_shape

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        mask = self.out_mask.reshape(-1)
        bk.step_mask(rows(x), value=self.value, out=mask)
        bk.scale_rows(rows(x), mask, out=rows(y))

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        if dx is not None:
            bk.scale_rows(rows(dy), self.out_mask.reshape(-1), out=rows(dx))
