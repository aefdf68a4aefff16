"""The matrix products of a training step: their sizes, and operands of those sizes laid out as training has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Linear", "MatrixProduct", "Operands", "Pairs", "Product"]

Product = tuple[int, int, int]  # (m, k, n)


@dataclass(frozen=True)
class Linear:
    """``x @ W`` with the gradients of `W` and, where `dx` is set, of `x`: `x` (rows, inputs), `W` (inputs, outputs).

    With `parts` above 1 the rows come in so many parts, one after the other, as the steps of a sequence do; the
    gradient of `W` is of all of them at once.
    """

    rows: int
    inputs: int
    outputs: int
    dx: bool = True
    parts: int = 1

    @property
    def forward(self) -> list[Product]:
        """Of the forward pass."""
        return [(self.rows // self.parts, self.inputs, self.outputs)] * self.parts

    @property
    def backward(self) -> list[Product]:
        """Of the backward pass."""
        dx = (self.rows // self.parts, self.outputs, self.inputs)
        return [(self.inputs, self.rows, self.outputs)] + [dx] * (self.parts if self.dx else 0)


@dataclass(frozen=True)
class Pairs:
    """``a[i] @ b[i]`` of two activations, with both gradients: `a` (count, m, k), `b` (count, k, n)."""

    count: int
    m: int
    k: int
    n: int

    @property
    def forward(self) -> list[Product]:
        """Of the forward pass."""
        return [(self.m, self.k, self.n)] * self.count

    @property
    def backward(self) -> list[Product]:
        """Of the backward pass."""
        return [(self.m, self.n, self.k)] * self.count + [(self.k, self.m, self.n)] * self.count


MatrixProduct = Linear | Pairs
Call = tuple[np.ndarray, np.ndarray, np.ndarray]


class Operands:
    """Arrays for the products of a step, made once for the largest one.

    Parameters
    ----------
    largest : sequence of Linear or Pairs
        In the order of the forward pass.
    dtype : str
        Of the arrays.
    """

    def __init__(self, largest: Sequence[MatrixProduct], dtype: str) -> None:
        rng = np.random.default_rng(0)

        def filled(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32).astype(dtype)

        self.arrays: list[tuple[np.ndarray, ...]] = []
        before: np.ndarray | None = None  # where the product before wrote to
        # One array for all gradients of what no product wrote, such as windows of an image
        scratch = np.empty(max((p.rows * p.inputs for p in largest if isinstance(p, Linear)), default=0), dtype)
        for p in largest:
            if isinstance(p, Pairs):
                a, b, out = filled(p.count, p.m, p.k), filled(p.count, p.k, p.n), np.ones((p.count, p.m, p.n), dtype)
                self.arrays.append((a, b, out, np.empty_like(a), np.empty_like(b)))
                before = None
                continue
            x, W, out = filled(p.rows, p.inputs), filled(p.inputs, p.outputs), np.ones((p.rows, p.outputs), dtype)
            shared = before is not None and before.shape == x.shape
            dx = before if shared else scratch[: x.size].reshape(x.shape)
            self.arrays.append((x, W, out, dx, np.empty_like(W)))  # type: ignore[arg-type]
            before = out

    def calls(self, products: Sequence[MatrixProduct], training: bool) -> list[Call]:
        """``(a, b, out)`` of each call of matmul; products of a kind that differ in nothing are one call."""
        forward: list[Call] = []
        backward: list[list[Call]] = []
        for p, arrays in zip(products, self.arrays, strict=True):
            if isinstance(p, Pairs):
                a, b, out, da, db = (array[: p.count] for array in arrays)
                forward.append((a, b, out))
                backward.append([(out, b.swapaxes(1, 2), da), (a.swapaxes(1, 2), out, db)])
                continue
            x, W, out, dx, dW = arrays
            x, out, dx = x[: p.rows], out[: p.rows], dx[: p.rows]
            forward.append((_in_parts(x, p.parts), W, _in_parts(out, p.parts)))
            gradients: list[Call] = [(x.T, out, dW)]
            if p.dx:
                gradients.append((_in_parts(out, p.parts), W.T, _in_parts(dx, p.parts)))
            backward.append(gradients)
        return forward + [call for gradients in reversed(backward) for call in gradients] * training


def _in_parts(x: Any, parts: int) -> Any:
    """Rows as that many equal parts."""
    return x if parts == 1 else x.reshape(parts, -1, x.shape[-1])
