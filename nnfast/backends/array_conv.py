"""Convolution in plain array code: a sum over the places of the kernel.

Each place (r, s) of a kernel sees the image through a shifted, strided view. The products of these views with
``W[r, s]`` add up to the convolution, and the two gradients are the transposed products on the same views.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..window import Window
from .base import Array

__all__ = ["ArrayConv", "places"]

Slices = tuple[slice, ...]


def _along(offset: int, stride: int, size: int, windows: int) -> tuple[slice, slice]:
    """Windows whose place at `offset` lies inside an axis of this size, and where it lies; both may be empty."""
    first = max(0, -(offset // stride))  # the first i with i * stride + offset >= 0
    end = max(first, min(windows, (size - 1 - offset) // stride + 1))
    at = max(0, first * stride + offset)
    return slice(first, end), slice(at, at + (end - first - 1) * stride + 1 if end > first else at, stride)


def places(window: Window, image: Array, result: Array) -> Iterator[tuple[int, int, Slices, Slices]]:
    """For each place of a window, row by row: r, s, the part of the result that it meets, and that of the image.

    `image` (n, h, w, c), `result` (n, oh, ow, m): of the latter's pixel ``[n, i, j]`` the window's place (r, s) is the
    image's ``[n, i * stride + r * dilation - padding, ...]``. What would lie outside is left out of both parts.
    """
    everything = slice(None)
    for r in range(window.size[0]):
        rows = _along(r * window.dilation[0] - window.padding[0][0], window.stride[0], image.shape[1], result.shape[1])
        for s in range(window.size[1]):
            columns = _along(
                s * window.dilation[1] - window.padding[1][0], window.stride[1], image.shape[2], result.shape[2]
            )
            yield r, s, (everything, rows[0], columns[0]), (everything, rows[1], columns[1])


def _by_group(x: Array, groups: int) -> Array:
    """Pixels (..., c) as one matrix for each group of channels: (groups, pixels, c / groups)."""
    return x.reshape(-1, groups, x.shape[-1] // groups).transpose(1, 0, 2)


def _joined(x: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of :func:`_by_group`."""
    return x.transpose(1, 0, 2).reshape(shape)


class ArrayConv:
    """The convolution part of :class:`~nnfast.backends.array_backend.ArrayBackend`."""

    xp: Any
    _wide: Any

    def conv(self, x: Array, W: Array, window: Window, *, groups: int = 1, out: Array) -> None:
        x, W = self._wide(x), self._wide(W)
        total = self.xp.zeros(out.shape, x.dtype)
        for r, s, outside, inside in places(window, x, out):
            product = _by_group(x[inside], groups) @ _by_group(W[r, s], groups)
            total[outside] += _joined(product, total[outside].shape)
        out[...] = total

    def conv_input_grad(self, dy: Array, W: Array, window: Window, *, groups: int = 1, dx: Array) -> None:
        dy, W = self._wide(dy), self._wide(W)
        total = self.xp.zeros(dx.shape, dy.dtype)
        for r, s, outside, inside in places(window, dx, dy):
            product = _by_group(dy[outside], groups) @ _by_group(W[r, s], groups).transpose(0, 2, 1)
            total[inside] += _joined(product, total[inside].shape)
        dx[...] = total

    def conv_weight_grad(self, dy: Array, x: Array, window: Window, *, groups: int = 1, dW: Array) -> None:
        dy, x = self._wide(dy), self._wide(x)
        for r, s, outside, inside in places(window, x, dy):
            product = _by_group(x[inside], groups).transpose(0, 2, 1) @ _by_group(dy[outside], groups)
            dW[r, s] = _joined(product, dW[r, s].shape)
