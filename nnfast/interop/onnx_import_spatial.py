"""Nodes of an ONNX graph that work on images, or on sequences with windows, as layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..layers import (
    AvgPool1D,
    AvgPool2D,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    Layer,
    MaxPool1D,
    MaxPool2D,
)

__all__ = ["begins_with_images", "is_spatial", "order_of_flattened", "spatial_layer", "transposed"]

_CARING = {"Transpose", "Gemm", "MatMul", "Flatten", "Reshape", "LayerNormalization"}

Found = tuple[Layer, dict[str, np.ndarray]]


def begins_with_images(nodes: list[Any]) -> bool:
    """Whether the first operator to care wants the channels first."""
    return next((n.op_type in _READERS for n in nodes if n.op_type in _READERS or n.op_type in _CARING), False)


def transposed(order: list[int] | None, first: bool) -> bool | None:
    """Whether the channels are first after a Transpose; ``None`` where it does something else."""
    rank = len(order or ()) - 1
    if rank >= 2 and order == [0, rank, *range(1, rank)] and not first:
        return True
    if rank >= 2 and order == [0, *range(2, rank + 1), 1] and first:
        return False
    return None


def order_of_flattened(shape: tuple[int, ...]) -> np.ndarray:
    """Which feature of nnfast's row each one of an image flattened with its channels first is."""
    return np.moveaxis(np.arange(np.prod(shape)).reshape(shape), -1, 0).ravel()


def spatial_layer(op: str, attributes: dict[str, Any], constants: list[np.ndarray | None], axes: int) -> Found:
    """A layer and its weights.

    Parameters
    ----------
    op : str
        One of those that :func:`begins_with_images` looks for.
    attributes : dict
    constants : list of (ndarray or None)
        The operands after the first one.
    axes : int
        1 for sequences, 2 for images.

    Raises
    ------
    ValueError
        If nnfast has no such layer.
    """
    if axes not in (1, 2):
        raise ValueError(f"there are layers for one and two axes beside the channels, not {axes}")
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or attributes.get("ceil_mode", 0):
        raise ValueError("only padding that is written out has a counterpart, and sizes that are rounded down")
    return _READERS[op](attributes, constants, axes)


def is_spatial(op: str) -> bool:
    """Whether :func:`spatial_layer` knows an operator."""
    return op in _READERS


def _padding(attributes: dict[str, Any], axes: int) -> tuple[tuple[int, int], ...]:
    pads = attributes.get("pads", [0] * (2 * axes))
    return tuple((int(a), int(b)) for a, b in zip(pads[:axes], pads[axes:], strict=True))


def _convolution(attributes: dict[str, Any], constants: list[np.ndarray | None], axes: int) -> Found:
    W, b = (*constants, None)[:2]
    if W is None or (len(constants) > 1 and b is None):
        raise ValueError("its kernel or its bias is not a constant")
    options: dict[str, Any] = {
        "stride": tuple(attributes.get("strides", [1] * axes)),
        "dilation": tuple(attributes.get("dilations", [1] * axes)),
        "padding": _padding(attributes, axes),
        "groups": int(attributes.get("group", 1)),
        "bias": b is not None,
    }
    kind = Conv1D if axes == 1 else Conv2D
    own = {"W": np.ascontiguousarray(np.moveaxis(W, (0, 1), (-1, -2)))} | ({} if b is None else {"b": b})
    return kind(W.shape[0], W.shape[2:], **options), own


def _transposed_convolution(attributes: dict[str, Any], constants: list[np.ndarray | None], axes: int) -> Found:
    if axes != 2 or "output_shape" in attributes:
        raise ValueError("only that of images, with a padding that is written out, has a counterpart")
    more = tuple(attributes.get("output_padding", [0, 0]))
    layer, own = _convolution(attributes, constants, axes)
    assert isinstance(layer, Conv2D)
    W = own["W"]
    options = {key: getattr(layer, key) for key in ("kernel_size", "stride", "dilation", "padding", "groups", "bias")}
    return Conv2DTranspose(W.shape[-2] * layer.groups, output_padding=more, **options), own


def _pooling(*kinds: Callable[..., Layer]) -> Callable[[dict[str, Any], list[np.ndarray | None], int], Found]:
    def read(attributes: dict[str, Any], constants: list[np.ndarray | None], axes: int) -> Found:
        if set(attributes.get("dilations", [1])) != {1} or attributes.get("storage_order", 0):
            raise ValueError("only windows without gaps have a counterpart")
        more = {"count_padding": bool(attributes.get("count_include_pad", 0))} if kinds[0] is AvgPool1D else {}
        size, stride = tuple(attributes["kernel_shape"]), tuple(attributes.get("strides", [1] * axes))
        return kinds[axes - 1](size, stride, _padding(attributes, axes), **more), {}

    return read


def _of_all(*kinds: Callable[[], Layer]) -> Callable[[dict[str, Any], list[np.ndarray | None], int], Found]:
    return lambda attributes, constants, axes: (kinds[axes - 1](), {})


_READERS: dict[str, Callable[[dict[str, Any], list[np.ndarray | None], int], Found]] = {
    "AveragePool": _pooling(AvgPool1D, AvgPool2D),
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "GlobalAveragePool": _of_all(GlobalAvgPool1D, GlobalAvgPool2D),
    "GlobalMaxPool": _of_all(GlobalMaxPool1D, GlobalMaxPool2D),
    "MaxPool": _pooling(MaxPool1D, MaxPool2D),
}
