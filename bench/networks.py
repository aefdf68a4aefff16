"""Networks of layers other than dense ones, in words that every library can be told: sizes, weights, products.

Images are (height, width, channels), sequences (steps, features). Weights are laid out as nnfast has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Self

import numpy as np

from .products import Linear, MatrixProduct, Pairs

__all__ = [
    "Conv",
    "Dense",
    "Flatten",
    "GlobalAvgPool",
    "LayerSpec",
    "MaxPool",
    "Network",
    "Norm",
    "Recurrent",
    "Relu",
    "Residual",
    "TransformerBlock",
    "flat",
]

Shape = tuple[int, ...]
GATES = {"lstm": 4, "gru": 3}


def _weight(rng: np.random.Generator, *shape: int, gain: float = 1.0) -> np.ndarray:
    """Normal numbers, with the variance that keeps that of the products; the last axis are the outputs."""
    return rng.standard_normal(shape) * np.sqrt(gain / prod(shape[:-1]))


def _bias(rng: np.random.Generator, size: int, mean: float = 0.0) -> np.ndarray:
    return mean + 0.1 * rng.standard_normal(size)


@dataclass(frozen=True)
class LayerSpec:
    """A layer without weights that leaves the shape as it is; subclasses say what differs."""

    #: Whether there are weights
    learns: ClassVar[bool] = False

    def out_shape(self, shape: Shape) -> Shape:
        """Shape of a row of the output."""
        return shape

    def weights(self, shape: Shape, rng: np.random.Generator) -> tuple[Any, ...]:
        """Initial weights for rows of that shape, in nnfast's order; biases and scales are not 0 and 1."""
        return ()

    def products(self, shape: Shape, rows: int, dx: bool) -> list[MatrixProduct]:
        """The matrix products of a step; `dx` says whether the gradient of the layer's input is asked for."""
        return []

    def scaled(self) -> Self:
        """A small version, for tests."""
        return self

    def describe(self) -> str:
        """In a few words."""
        return type(self).__name__.lower()


class Relu(LayerSpec):
    """ReLU by itself."""


class Flatten(LayerSpec):
    """All axes become one."""

    def out_shape(self, shape: Shape) -> Shape:
        return (prod(shape),)


class MaxPool(LayerSpec):
    """The largest of each 2 x 2 pixels."""

    def out_shape(self, shape: Shape) -> Shape:
        height, width, channels = shape
        return (height // 2, width // 2, channels)

    def describe(self) -> str:
        return "2x2 max pooling"


class GlobalAvgPool(LayerSpec):
    """The mean over pixels, or over steps."""

    def out_shape(self, shape: Shape) -> Shape:
        return shape[-1:]

    def describe(self) -> str:
        return "global average pooling"


class Norm(LayerSpec):
    """Batch normalisation of each channel, with running statistics; epsilon is 1e-5."""

    learns: ClassVar[bool] = True

    def weights(self, shape: Shape, rng: np.random.Generator) -> tuple[Any, ...]:
        return (_bias(rng, shape[-1], 1.0), _bias(rng, shape[-1]))

    def describe(self) -> str:
        return "batch norm"


@dataclass(frozen=True)
class Dense(LayerSpec):
    """A linear layer."""

    learns: ClassVar[bool] = True
    units: int

    def out_shape(self, shape: Shape) -> Shape:
        return (self.units,)

    def weights(self, shape: Shape, rng: np.random.Generator) -> tuple[Any, ...]:
        return (_weight(rng, *shape, self.units), _bias(rng, self.units))

    def products(self, shape: Shape, rows: int, dx: bool) -> list[MatrixProduct]:
        (inputs,) = shape
        return [Linear(rows, inputs, self.units, dx)]

    def describe(self) -> str:
        return f"dense {self.units}"


@dataclass(frozen=True)
class Conv(LayerSpec):
    """A convolution that keeps the size of the image ("same"); `filters` 0 is a depthwise one."""

    learns: ClassVar[bool] = True
    filters: int
    size: int = 3
    activation: str = "identity"
    bias: bool = True

    def out_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.filters or shape[-1])

    def weights(self, shape: Shape, rng: np.random.Generator) -> tuple[Any, ...]:
        inputs, outputs = (shape[-1], self.filters) if self.filters else (1, shape[-1])
        gain = 2.0 if self.activation == "relu" else 1.0
        W = _weight(rng, self.size, self.size, inputs, outputs, gain=gain)
        return (W, _bias(rng, outputs)) if self.bias else (W,)

    def products(self, shape: Shape, rows: int, dx: bool) -> list[MatrixProduct]:
        if not self.filters:
            return []  # no product of matrices: each channel has a window of its own
        height, width, channels = shape
        return [Linear(rows * height * width, self.size**2 * channels, self.filters, dx)]

    def scaled(self) -> Self:
        return replace(self, filters=min(self.filters, 8))

    def describe(self) -> str:
        kind = f"conv {self.filters}" if self.filters else "depthwise conv"
        return f"{kind} {self.size}x{self.size}" + (f" {self.activation}" if self.activation != "identity" else "")


@dataclass(frozen=True)
class Recurrent(LayerSpec):
    """``lstm`` or ``gru`` (reset after the product, as all have it); the output is the last state."""

    learns: ClassVar[bool] = True
    kind: str
    units: int

    def out_shape(self, shape: Shape) -> Shape:
        return (self.units,)

    def weights(self, shape: Shape, rng: np.random.Generator) -> tuple[Any, ...]:
        columns = GATES[self.kind] * self.units
        found = (_weight(rng, shape[-1], columns), _weight(rng, self.units, columns), _bias(rng, columns))
        return (*found, _bias(rng, columns)) if self.kind == "gru" else found

    def products(self, shape: Shape, rows: int, dx: bool) -> list[MatrixProduct]:
        steps, features = shape
        columns = GATES[self.kind] * self.units
        # The first step's state is zero, and nobody asks for its gradient
        later = [Linear(rows * (steps - 1), self.units, columns, parts=steps - 1)] if steps > 1 else []
        return [Linear(rows * steps, features, columns, dx), *later]

    def scaled(self) -> Self:
        return replace(self, units=min(self.units, 8))

    def describe(self) -> str:
        return f"{self.kind} {self.units}"


@dataclass(frozen=True)
class TransformerBlock(LayerSpec):
    """``h = x + attention(norm(x)); y = h + feed_forward(norm(h))`` with layer norms (epsilon 1e-5) and exact gelu."""

    learns: ClassVar[bool] = True
    heads: int
    hidden: int

    def weights(self, shape: Shape, rng: np.random.Generator) -> tuple[Any, ...]:
        width = shape[-1]
        return (
            *(_bias(rng, width, 1.0), _bias(rng, width)),
            *(_weight(rng, width, 3 * width), _bias(rng, 3 * width)),
            *(_weight(rng, width, width), _bias(rng, width)),
            *(_bias(rng, width, 1.0), _bias(rng, width)),
            *(_weight(rng, width, self.hidden), _bias(rng, self.hidden)),
            *(_weight(rng, self.hidden, width), _bias(rng, width)),
        )

    def products(self, shape: Shape, rows: int, dx: bool) -> list[MatrixProduct]:
        steps, width = shape
        n, pairs, each = rows * steps, rows * self.heads, width // self.heads
        # Even where nobody asks for the block's dx, the norm in front has a scale to learn
        return [
            Linear(n, width, 3 * width),
            Pairs(pairs, steps, each, steps),
            Pairs(pairs, steps, steps, each),
            Linear(n, width, width),
            Linear(n, width, self.hidden),
            Linear(n, self.hidden, width),
        ]

    def scaled(self) -> Self:
        return replace(self, heads=min(self.heads, 2), hidden=min(self.hidden, 16))

    def describe(self) -> str:
        return f"transformer block with {self.heads} heads and {self.hidden} gelu"


@dataclass(frozen=True)
class Residual(LayerSpec):
    """``y = inner(x) + x``."""

    learns: ClassVar[bool] = True
    inner: tuple[LayerSpec, ...]

    def weights(self, shape: Shape, rng: np.random.Generator) -> tuple[Any, ...]:
        return tuple(layer.weights(at, rng) for layer, at in along(self.inner, shape))

    def products(self, shape: Shape, rows: int, dx: bool) -> list[MatrixProduct]:
        return _products(self.inner, shape, rows, dx)

    def scaled(self) -> Self:
        return replace(self, inner=tuple(layer.scaled() for layer in self.inner))

    def describe(self) -> str:
        return f"[{', '.join(layer.describe() for layer in self.inner)}] + x"


def along(layers: tuple[LayerSpec, ...], shape: Shape) -> Iterator[tuple[LayerSpec, Shape]]:
    """Each layer with the shape of its input's rows."""
    for layer in layers:
        yield layer, shape
        shape = layer.out_shape(shape)


def _products(layers: tuple[LayerSpec, ...], shape: Shape, rows: int, dx: bool) -> list[MatrixProduct]:
    found: list[MatrixProduct] = []
    for layer, at in along(layers, shape):
        found += layer.products(at, rows, dx)
        # From the first weights on, gradients go back as far as there
        dx = dx or layer.learns
    return found


@dataclass(frozen=True)
class Network:
    """Layers one after the other.

    Attributes
    ----------
    in_shape : tuple of int
        Shape of a row of the inputs.
    layers : tuple of LayerSpec
        The last one gives logits.
    """

    in_shape: Shape
    layers: tuple[LayerSpec, ...]

    @property
    def outputs(self) -> int:
        """Logits of a row."""
        shape = self.in_shape
        for layer in self.layers:
            shape = layer.out_shape(shape)
        (units,) = shape
        return units

    @property
    def kind(self) -> str:
        """``images``, ``recurrent`` or ``sequences``: what libraries treat in their own ways."""
        if len(self.in_shape) == 3:
            return "images"
        return "recurrent" if any(isinstance(layer, Recurrent) for layer in self.layers) else "sequences"

    def initial_weights(self, rng: np.random.Generator, dtype: str) -> list[Any]:
        """A tuple of arrays for each layer; those of layers within one are tuples again."""

        def cast(found: Any) -> Any:
            return tuple(map(cast, found)) if isinstance(found, tuple) else found.astype(dtype)

        return [cast(layer.weights(shape, rng)) for layer, shape in along(self.layers, self.in_shape)]

    def products(self, rows: int) -> list[MatrixProduct]:
        """The matrix products of a step, in the order of the forward pass."""
        return _products(self.layers, self.in_shape, rows, dx=False)

    def scaled(self) -> Self:
        """A small version, for tests: no more than 8 pixels, steps or channels, and 2 x 2 poolings still divide."""
        return replace(
            self,
            in_shape=tuple(min(n, 8) for n in self.in_shape),
            layers=tuple(layer.scaled() for layer in self.layers),
        )

    def describe(self) -> str:
        """In one line."""
        return ", ".join(["x".join(map(str, self.in_shape)), *(layer.describe() for layer in self.layers)])


def flat(weights: Any) -> list[np.ndarray]:
    """All arrays of :meth:`Network.initial_weights`, in nnfast's order."""
    return [weights] if isinstance(weights, np.ndarray) else [array for each in weights for array in flat(each)]
