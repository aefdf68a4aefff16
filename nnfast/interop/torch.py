"""PyTorch: state dicts in and out, modules from and to a model.

Names and layouts are PyTorch's: ``0.weight`` of shape (outputs, inputs), ``0.bias``; activations and dropout are
modules of their own and count in the numbers. Images have their channels first in PyTorch, (n, channels, height,
width), and last in nnfast: modules take and give them in PyTorch's layout, and the weights behind a flattened image are
reordered. Reading weights does not import PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layers import (
    Activation,
    Add,
    BatchNorm,
    Concat,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool1D,
    GlobalMaxPool1D,
    LayerNorm,
)
from ..layers.attention import AttentionLayer
from ..layers.bidirectional import Bidirectional
from ..layers.convolution import ConvolutionLayer
from ..layers.graph import Built
from ..layers.recurrent import Recurrent
from ..model import Sequential
from ..network import Network
from .torch_layout import FIRST, LAST, Place, places
from .torch_weights import grouped, read
from .weights import ForeignLayer, arranged, by_name, load

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["from_module", "load_state_dict", "state_dict", "to_module"]

# Layers to which masked steps are not there
_LEAVE_OUT = (Recurrent, Bidirectional, AttentionLayer, GlobalAvgPool1D, GlobalMaxPool1D)


# ---- weights -----------------------------------------------------------------------------------------------
def load_state_dict(model: Network, state: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Write PyTorch's weights into a model of the same architecture, or, if anything does not fit, none of them.

    Layers are matched in their order, whatever their names: a module of one's own with ``fc1.weight``, ``fc1.bias``
    and so on will do, if it defines its layers in the order in which it uses them. A file has lost that order: there
    a layer gets the first weights, by name, that fit it.

    Two biases that PyTorch adds become one; a stack of recurrent layers in one module is several layers here, and
    ``nn.MultiheadAttention`` one. Where a layer follows a flattened image, its weights are reordered.

    Parameters
    ----------
    model : Model
        Built, or dense with a first layer that the first weight tells the inputs of.
    state : mapping or path_like
        ``module.state_dict()``, with tensors or arrays; or a ``.safetensors`` file.

    Raises
    ------
    ValueError
        If the layers, or their shapes, differ.
    FileNotFoundError
        If there is no such file.
    """
    source, in_file = "the state dict", isinstance(state, (str, os.PathLike))
    if isinstance(state, (str, os.PathLike)):
        from safetensors.numpy import load_file

        source = str(state)
        if not Path(state).is_file():
            raise FileNotFoundError(f"there is no file {source}")
        state = load_file(state)
    groups = grouped({name: _array(value) for name, value in state.items()})
    if not model.is_built:
        _build_by(model, groups)
    orders = {place.built.index: place.taken.order for place in places(model.built)}
    layers = [ForeignLayer(name, arrays, partial(_read, orders)) for name, arrays in groups.items()]
    if in_file:
        layers.sort(key=lambda layer: by_name(layer.name))
    load(model, arranged(model, layers) if in_file else layers, source)


def _read(orders: Mapping[int, Any], built: Built, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return read(built, arrays, orders[built.index])


def _build_by(model: Network, groups: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Build a model that begins with a dense layer, for the inputs that its weights have."""
    simple = (Activation, BatchNorm, Dropout, Flatten, LayerNorm)
    first = next((layer for layer in model.layers if not isinstance(layer, simple)), None)
    if not isinstance(first, Dense):
        return
    weights = (own["weight"] for own in groups.values() if "weight" in own)
    W = next((W for W in weights if W.ndim == 2 and W.shape[0] == first.units), None)
    if W is not None:
        model.build(W.shape[1], dtype="float64" if W.dtype == np.float64 else "float32")


def _array(value: Any) -> np.ndarray:
    """A tensor, on whatever device and of whatever float type, or an array, as NumPy's."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if not str(value.dtype).endswith(("float32", "float64", "int64")):
            value = value.float()
        return np.asarray(value.numpy())
    return np.asarray(value)


def state_dict(model: Network) -> dict[str, torch.Tensor]:
    """A model's weights with PyTorch's names and layouts: those of :func:`to_module`'s module.

    Returns
    -------
    dict of str to Tensor
        Copies on the CPU, in the order of the modules.

    Raises
    ------
    ValueError
        If a layer has no counterpart in PyTorch.
    """
    return dict(_module(model).state_dict())


# ---- architectures -------------------------------------------------------------------------------------------
def to_module(model: Network) -> nn.Module:
    """A module that computes what the model's ``predict`` does, with copies of its weights, in evaluation mode.

    Images, and sequences in front of a convolution, have their channels first there, as PyTorch has them: where the
    first layer that cares is a spatial one, the module takes (n, channels, height, width), or (n, channels, steps). It
    gives them likewise where the last value is such a one.

    Returns
    -------
    nn.Module
        A ``torch.nn.Sequential`` for a chain of layers, else a module that calls its parts in order. Layers that
        PyTorch has no module for, or one with several results, are small modules of nnfast.

    Raises
    ------
    ValueError
        If a layer has no counterpart in PyTorch: a GRU that resets before the product, a state that lasts, or a
        recurrent layer, attention or global pooling with masked steps.
    """
    _refuse_what_is_beyond(model)
    return _module(model)


def _refuse_what_is_beyond(model: Network) -> None:
    """Raise ``ValueError`` where a layer, and not only its weights, is another one than its module."""
    for node in model.built:
        if why := _beyond(node):
            raise ValueError(f"layer {node.index} ({node.name}): {type(node.layer).__name__} {why}")


def _beyond(node: Built) -> str:
    """What a layer does that its module does not."""
    masked = any(mask is not None for mask in node.masks)
    if isinstance(node.layer, _LEAVE_OUT) and masked:
        return "has masked steps, which have no counterpart in PyTorch"
    inner = node.layer.layer if isinstance(node.layer, Bidirectional) else node.layer
    return "with stateful=True has no counterpart in PyTorch" if getattr(inner, "stateful", False) else ""


def _module(model: Network) -> nn.Module:
    import torch
    from torch import nn

    from .torch_modules import MODULES, modules_of
    from .torch_parts import Graph

    weights: dict[str, dict[str, np.ndarray]] = {}
    for name, value in model.get_weights().items():
        owner, _, own = name.rpartition(".")
        weights.setdefault(owner, {})[own] = value
    made: list[list[nn.Module]] = []
    around = places(model.built)
    for place in around:
        node = place.built
        where = f"layer {node.index} ({node.name})"
        if type(node.layer) not in MODULES:
            raise ValueError(f"{where}: {type(node.layer).__name__} has no counterpart in PyTorch")
        if node.owner != node.index:
            _check_alike(model.built[node.owner], node, where)
            made.append(made[node.owner])
            continue
        try:
            made.append(modules_of(place, weights.get(node.name, {})))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if all(n.inputs == (n.index - 1,) and n.owner == n.index for n in model.built):
        chain = [m for p, own in zip(around, made, strict=True) for m in (*_conversions(p, 0), *own)]
        module: nn.Module = nn.Sequential(*chain)
    else:
        module = Graph(*_calls(around, made))
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.num_batches_tracked = torch.tensor(model.training_state.step)
    return module.eval()


def _check_alike(owner: Built, node: Built, where: str) -> None:
    """Whether one module does for both places of a layer."""
    whole = isinstance(node.layer, ConvolutionLayer)  # whose borders may depend on the size
    if len(owner.in_shape) != len(node.in_shape) or (whole and owner.in_shape != node.in_shape):
        raise ValueError(f"{where}: one module of PyTorch is not for inputs of {owner.in_shape} and {node.in_shape}")


def _conversions(place: Place, which: int) -> list[nn.Module]:
    """What brings an input to the layout that it is taken in."""
    from .torch_parts import ChannelsFirst, ChannelsLast, Reorder

    given, taken = place.given[which], place.taken
    if given.flat is not None and taken == LAST:
        return [Reorder(given.flat)]
    if given.first and not taken.first:
        return [ChannelsLast()]
    return [ChannelsFirst()] if taken.first and not given.first else []


def _calls(around: list[Place], made: list[list[nn.Module]]) -> tuple[list[Any], list[list[int]], list[int]]:
    """Parts, what each is called on, and the axes of concatenations, as :class:`~.torch_parts.Graph` takes them."""
    from torch import nn

    calls: list[Any] = []
    sources: list[list[int]] = []
    axes: list[int] = []
    results: list[int] = []  # the call that gives each node's result
    whole: dict[int, nn.Module] = {}

    def add(part: Any, given: list[int], axis: int = -1) -> int:
        calls.append(part)
        sources.append(given)
        axes.append(axis)
        return len(calls) - 1

    for place, modules in zip(around, made, strict=True):
        node = place.built
        given = [results[i] if i >= 0 else i for i in node.inputs]
        for which in range(len(given)):
            for conversion in _conversions(place, which):
                given[which] = add(conversion, [given[which]])
        if isinstance(node.layer, (Add, Concat)):
            part: Any = "add" if isinstance(node.layer, Add) else "concat"
        elif node.owner in whole:
            part = whole[node.owner]
        else:
            part = whole[node.index] = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
        results.append(add(part, given, 1 if place.taken == FIRST else -1))
    return calls, sources, axes


def from_module(module: nn.Sequential, in_shape: int | tuple[int, ...] | None = None) -> Sequential:
    """A model with the layers and weights of a ``torch.nn.Sequential``; an activation joins the layer before it.

    Parameters
    ----------
    module : nn.Sequential
        Of Linear, Conv1d, Conv2d, ConvTranspose2d, pooling, ZeroPad, Upsample, normalisation, Dropout, Embedding,
        activations, Flatten, Identity, of what :func:`to_module` adds to these for sequences, and of Sequentials of
        all that.
    in_shape : int or tuple of int, optional
        Shape of one input row of the model, with the channels last; by default the inputs of the first linear module,
        where nothing before it takes images or sequences.

    Returns
    -------
    Sequential
        Built, on the CPU.

    Raises
    ------
    ValueError
        If a module, or an argument of one, has no counterpart here, or the shape of inputs is not known; or if a
        module sees the steps that one before it masks, which a layer would leave out.
    """
    from .torch_import import first_features, layers_of

    layers = layers_of(module)
    if in_shape is None:
        in_shape = first_features(module)
    state = module.state_dict()
    double = any(str(value.dtype) == "torch.float64" for value in state.values())
    model = Sequential(layers).build(in_shape, dtype="float64" if double else "float32", seed=0)
    _refuse_what_is_beyond(model)
    load_state_dict(model, state)
    return model
