"""Layers of several inputs: what brings branches together again."""

from __future__ import annotations

from typing import Any

from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape


class Add(Layer):
    """``y = x_1 + x_2 + ...`` of inputs of one shape.

    Parameters
    ----------
    name : str, optional
        Name of the layer in the model.
    """

    replayable = True
    many = True
    needs_input = needs_output = False
    in_place = True
    shares_gradient = True

    def __init__(self, *, name: str | None = None) -> None:
        self.name = name

    def build(self, in_shape: Any, ctx: BuildContext) -> Shape:
        if len(in_shape) < 2:
            raise ValueError(f"Add takes two inputs or more, got {len(in_shape)}")
        if len(set(in_shape)) > 1:
            raise ValueError(f"Add takes inputs of one shape, got {', '.join(map(str, in_shape))}")
        return tuple(in_shape[0])

    def forward(self, bk: Backend, x: Any, y: Array) -> None:
        bk.add(x[0], x[1], out=y)
        for other in x[2:]:
            bk.add(y, other, out=y)

    def backward(self, bk: Backend, dy: Array, dx: Any) -> None:
        for each in dx:
            if each is not None:
                bk.copy(dy, out=each)


class Concat(Layer):
    """The inputs side by side, along the last axis; all other axes are alike.

    Parameters
    ----------
    name : str, optional
        Name of the layer in the model.
    """

    replayable = True
    many = True
    needs_input = needs_output = False

    def __init__(self, *, name: str | None = None) -> None:
        self.name = name

    def build(self, in_shape: Any, ctx: BuildContext) -> Shape:
        if not in_shape or any(not shape for shape in in_shape):
            raise ValueError(f"Concat takes inputs with a feature axis, got {', '.join(map(str, in_shape))}")
        if len({shape[:-1] for shape in in_shape}) > 1:
            raise ValueError(
                f"Concat takes inputs that are alike but for the last axis, got {', '.join(map(str, in_shape))}"
            )
        return (*in_shape[0][:-1], sum(shape[-1] for shape in in_shape))

    def _parts(self, whole: Array, widths: list[int]) -> list[Array]:
        """The columns of each input, as matrices."""
        matrix = whole.reshape(-1, whole.shape[-1])
        ends = [sum(widths[: k + 1]) for k in range(len(widths))]
        return [matrix[:, end - width : end] for width, end in zip(widths, ends, strict=True)]

    def forward(self, bk: Backend, x: Any, y: Array) -> None:
        for one, part in zip(x, self._parts(y, [one.shape[-1] for one in x]), strict=True):
            bk.copy_columns(one.reshape(-1, one.shape[-1]), out=part)

    def backward(self, bk: Backend, dy: Array, dx: Any) -> None:
        parts = self._parts(dy, [one.shape[-1] for one in self.x])
        for one, part in zip(dx, parts, strict=True):
            if one is not None:
                bk.copy_columns(part, out=one.reshape(-1, one.shape[-1]))
