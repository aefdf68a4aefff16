"""What layers with a window share: how its size, steps and borders are given, and what they mean on an image."""

from __future__ import annotations

from typing import Any

from ..backends.base import Array
from ..window import Window
from .base import Shape, integer

__all__ = ["Padding", "as_image", "check_rank", "out_sizes", "padding_of", "per_axis", "spread", "window_on"]

Padding = str | int | tuple[tuple[int, int], ...]

# Axes of an image, and of a sequence: an image of height 1
_AXES = {1: ("steps",), 2: ("height", "width")}


def per_axis(value: Any, axes: int, what: str, least: int = 1) -> int | tuple[int, ...]:
    """A number for each axis, given as one for all of them or as a tuple; one that holds for all comes back as an int.

    Raises
    ------
    TypeError
        If there is something else than integers.
    ValueError
        If there are more or fewer of them than axes, or one is below `least`.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != axes:
            raise ValueError(f"{what} must be one integer or {axes}, got {value!r}")
        values = tuple(integer(number, what, least) for number in value)
        return values if len(set(values)) > 1 else values[0]
    return integer(value, what, least)


def spread(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """What :func:`per_axis` gave, as a number for each axis."""
    return value if isinstance(value, tuple) else (value,) * axes


def _pair(value: Any, what: str) -> tuple[int, int]:
    """Pixels before and after, from one number for both or two."""
    given = value if isinstance(value, (tuple, list)) else (value, value)
    if len(given) != 2:
        raise ValueError(f"{what} takes one integer or a pair for each side of an axis, got {value!r}")
    before, after = (integer(side, what, 0) for side in given)
    return before, after


def padding_of(value: Any, axes: int, who: str, words: tuple[str, ...] = ("valid", "same")) -> Padding:
    """`padding` as it was given, checked: one of `words`, one number, or for each axis a number or (before, after).

    For a sequence also (before, after) itself. One number that holds for all sides comes back as an int.
    """
    what = f"{who}: padding"
    if isinstance(value, str):
        if value not in words:
            raise ValueError(f"{what} must be {', '.join(map(repr, words))} or numbers, got {value!r}")
        return value
    if not isinstance(value, (tuple, list)):
        return _pair(value, what)[0]
    if axes == 1 and len(value) == 2:
        value = (value,)
    if len(value) != axes:
        raise ValueError(f"{what} must be one integer, or one or a pair for each of {axes} axes, got {value!r}")
    pairs = tuple(_pair(sides, what) for sides in value)
    return pairs if len({side for pair in pairs for side in pair}) > 1 else pairs[0][0]


def window_on(
    spatial: Shape,
    size: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: Padding = "valid",
    dilation: int | tuple[int, ...] = 1,
) -> Window:
    """The window on an image of these sizes, (height, width) or (steps,).

    "same" adds as many zeros that there are ``ceil(size / stride)`` windows, the odd one after, as Keras and TensorFlow
    do; "causal" so many before that no window sees a later step.
    """
    axes = len(spatial)
    sizes, strides, dilations = (spread(value, axes) for value in (size, stride, dilation))
    pairs: tuple[tuple[int, int], ...]
    if padding == "same":
        totals = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, k, s, d in zip(spatial, sizes, strides, dilations, strict=True)
        ]
        pairs = tuple((total // 2, total - total // 2) for total in totals)
    elif padding == "causal":
        pairs = tuple((d * (k - 1), 0) for k, d in zip(sizes, dilations, strict=True))
    elif isinstance(padding, tuple):
        pairs = padding
    else:
        side = padding if isinstance(padding, int) else 0
        pairs = ((side, side),) * axes
    if axes == 1:
        return Window((1, *sizes), (1, *strides), ((0, 0), *pairs), (1, *dilations))  # type: ignore[arg-type]
    return Window(sizes, strides, pairs, dilations)  # type: ignore[arg-type]


def check_rank(in_shape: Shape, axes: int, who: str) -> None:
    """Refuse rows that are no images, or no sequences.

    Raises
    ------
    ValueError
        Naming the axes that are expected.
    """
    if len(in_shape) != axes + 1 or min(in_shape) < 1:
        expected = ", ".join((*_AXES[axes], "channels"))
        raise ValueError(f"{who}: expected rows of shape ({expected}), got {in_shape}")


def out_sizes(who: str, window: Window, spatial: Shape) -> Shape:
    """Number of windows along each axis.

    Raises
    ------
    ValueError
        If none fits.
    """
    axes = len(spatial)
    height, width = (1, *spatial)[-2:]
    found = window.out_size(height, width)
    if min(found) < 1:
        extent, kind = "x".join(map(str, window.extent[-axes:])), "an image" if axes == 2 else "a sequence"
        padded = "".join(f" with {pair[0]} + {pair[1]} added" for pair in window.padding[-axes:] if any(pair))
        size = "x".join(map(str, spatial)) + (" steps" if axes == 1 else "")
        raise ValueError(f"{who}: a window of {extent} does not fit {kind} of {size}{padded}")
    return found[-axes:]


def as_image(x: Array) -> Array:
    """A batch of images as it is, one of sequences as images of height 1: a view."""
    return x if x.ndim == 4 else x.reshape(x.shape[0], 1, *x.shape[1:])
