"""The networks that ``nnfast train`` trains on rows of numbers and on images."""

from __future__ import annotations

from math import prod

from ..layers import Conv2D, Dense, Dropout, Flatten, Layer, MaxPool2D, Reshape
from ..model import Sequential
from .recipe import Recipe

__all__ = ["describe", "network"]

_SMALLEST = 4  # pixels of height and width below which an image is not halved


def network(kind: str, recipe: Recipe, in_shape: tuple[int, ...], outputs: int) -> Sequential:
    """The network of a recipe with a linear output, since the losses start from logits; not built.

    Parameters
    ----------
    kind : {"mlp", "cnn"}
        Hidden layers, or convolutions before one hidden layer.
    recipe : Recipe
    in_shape : tuple of int
        Shape of a row.
    outputs : int
        Numbers that come out.
    """
    layers: list[Layer] = [Flatten()] if len(in_shape) > 1 else []
    if kind == "cnn":
        layers = _convolutions(recipe, in_shape)
    for width in recipe.layers if kind == "mlp" else [recipe.units] if recipe.units else []:
        layers.append(Dense(width, recipe.activation))
        if recipe.dropout > 0:
            layers.append(Dropout(recipe.dropout))
    return Sequential([*layers, Dense(outputs)])


def _convolutions(recipe: Recipe, in_shape: tuple[int, ...]) -> list[Layer]:
    """Convolutions of 3 x 3, each one followed by a pooling that halves the image.

    The first one keeps the borders, the others do not where the image is large enough: so fewer numbers come to the
    hidden layer, which has most of the parameters.
    """
    if not recipe.layers:
        raise ValueError("--model cnn needs the channels of at least one convolution, such as --layers 32,64")
    layers: list[Layer] = [Reshape((*in_shape, 1))] if len(in_shape) == 2 else []
    side = min(in_shape[:2])
    for number, channels in enumerate(recipe.layers):
        inside = number > 0 and side - 2 >= 2 * _SMALLEST
        layers.append(Conv2D(channels, 3, recipe.activation, padding="valid" if inside else "same"))
        side -= 2 * inside
        if side >= _SMALLEST:
            layers.append(MaxPool2D(2))
            side //= 2
    layers.append(Flatten())
    return [*layers, Dropout(recipe.dropout)] if recipe.dropout > 0 else layers


def describe(kind: str, recipe: Recipe, in_shape: tuple[int, ...], outputs: int) -> str:
    """The network in a line."""
    nodes = network(kind, recipe, in_shape, outputs).nodes([in_shape])
    parameters = sum(prod(spec.shape) for node in nodes for spec in node.specs if spec.kind == "param")
    dropout = f", dropout {recipe.dropout:g}" if recipe.dropout else ""
    if kind == "cnn":
        channels, hidden = "-".join(map(str, recipe.layers)), f", {recipe.units} units" if recipe.units else ""
        shape = f"convolutions of {channels} channels{hidden}"
    else:
        shape = "-".join(map(str, [prod(in_shape), *recipe.layers, outputs]))
    return f"{shape}, {recipe.activation}{dropout}, {parameters:,} parameters"
