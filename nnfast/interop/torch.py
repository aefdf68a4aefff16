"""PyTorch: state dicts in and out, ``nn.Sequential`` from and to a model.

Names and layouts are PyTorch's: ``0.weight`` of shape (outputs, inputs), ``0.bias``; activations and dropout are
modules of their own and count in the numbers. Reading weights does not import PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import activations
from ..layers import Activation, BatchNorm, Dense, Dropout, Flatten, Layer, LayerNorm
from ..model import Sequential
from ..network import Network
from .weights import ForeignLayer, arranged, by_name, load

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["from_module", "load_state_dict", "state_dict", "to_module"]

# PyTorch's names for what nnfast calls ...; num_batches_tracked is a count that nothing here needs
_OF_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
_IGNORED = ("num_batches_tracked",)

# Activations as modules: the class's name, its arguments from the one parameter, and that parameter from a module
_MODULES: dict[str, tuple[str, Callable[[float], dict[str, Any]]]] = {
    "relu": ("ReLU", lambda alpha: {}),
    "leaky_relu": ("LeakyReLU", lambda alpha: {"negative_slope": alpha}),
    "elu": ("ELU", lambda alpha: {"alpha": alpha}),
    "selu": ("SELU", lambda alpha: {}),
    "sigmoid": ("Sigmoid", lambda alpha: {}),
    "tanh": ("Tanh", lambda alpha: {}),
    "softplus": ("Softplus", lambda alpha: {}),
    "softsign": ("Softsign", lambda alpha: {}),
    "gelu": ("GELU", lambda alpha: {"approximate": "none"}),
    "gelu_tanh": ("GELU", lambda alpha: {"approximate": "tanh"}),
    "silu": ("SiLU", lambda alpha: {}),
    "mish": ("Mish", lambda alpha: {}),
    "hard_sigmoid": ("Hardsigmoid", lambda alpha: {}),
    "hard_swish": ("Hardswish", lambda alpha: {}),
    "softmax": ("Softmax", lambda alpha: {"dim": -1}),
}


# ---- weights -----------------------------------------------------------------------------------------------
def load_state_dict(model: Network, state: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Write PyTorch's weights into a model of the same architecture, or, if anything does not fit, none of them.

    Layers are matched in their order, whatever their names: a module of one's own with ``fc1.weight``, ``fc1.bias``
    and so on will do, if it defines its layers in the order in which it uses them. A file has lost that order: there
    a layer gets the first weights, by name, that fit it.

    Parameters
    ----------
    model : Sequential
        Built, or with a first layer that the first weight tells the inputs of.
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
    layers = _layers_of({name: _array(value) for name, value in state.items()})
    if in_file:
        layers.sort(key=lambda layer: by_name(layer.name))
    if not model.is_built:
        units = next((layer.units for layer in model.layers if isinstance(layer, Dense)), None)
        weights = (layer.arrays["W"] for layer in layers if "W" in layer.arrays)
        first = next((W for W in weights if W.shape[1] == units), None)
        if first is not None:
            model.build(first.shape[0], dtype="float64" if first.dtype == np.float64 else "float32")
    load(model, arranged(model, layers) if in_file else layers, source)


def _array(value: Any) -> np.ndarray:
    """A tensor, on whatever device and of whatever float type, or an array, as NumPy's."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if not str(value.dtype).endswith(("float32", "float64", "int64")):
            value = value.float()
        return np.asarray(value.numpy())
    return np.asarray(value)


def _layers_of(state: Mapping[str, np.ndarray]) -> list[ForeignLayer]:
    """The groups of a state dict, in the order of their first appearance."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, array in state.items():
        prefix, _, name = key.rpartition(".")
        if name not in _IGNORED:
            groups.setdefault(prefix, {})[name] = array
    layers = []
    for prefix, arrays in groups.items():
        weight = arrays.get("weight")
        if weight is not None and weight.ndim == 2:  # of a linear module; others have vectors
            own = {"W": weight.T} | ({"b": arrays["bias"]} if "bias" in arrays else {})
            own |= {name: array for name, array in arrays.items() if name not in ("weight", "bias")}
        else:
            own = {_OF_NORM.get(name, name): array for name, array in arrays.items()}
        layers.append(ForeignLayer(prefix, own))
    return layers


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
    import torch

    found: dict[str, torch.Tensor] = {}
    weights = model.get_weights()
    for number, (name, layer, _) in enumerate(_described(model)):
        if isinstance(layer, Dense):
            found[f"{number}.weight"] = torch.from_numpy(np.ascontiguousarray(weights[f"{name}.W"].T))
            if layer.bias:
                found[f"{number}.bias"] = torch.from_numpy(weights[f"{name}.b"])
        elif isinstance(layer, (LayerNorm, BatchNorm)):
            for theirs, ours in _OF_NORM.items():
                if f"{name}.{ours}" in weights:
                    found[f"{number}.{theirs}"] = torch.from_numpy(weights[f"{name}.{ours}"])
            if isinstance(layer, BatchNorm):
                found[f"{number}.num_batches_tracked"] = torch.tensor(model.training_state.step)
    return found


# ---- architectures -------------------------------------------------------------------------------------------
def _described(model: Network) -> list[tuple[str, Layer, activations.Activation | None]]:
    """A model's layers as PyTorch counts them: the activation of a dense layer is a module of its own."""
    found: list[tuple[str, Layer, activations.Activation | None]] = []
    for built in model.built:
        layer = built.layer
        if isinstance(layer, Activation):
            found.append((built.name, layer, layer.activation))
        elif isinstance(layer, (Dense, LayerNorm, BatchNorm, Dropout, Flatten)):
            found.append((built.name, layer, None))
        else:
            raise ValueError(
                f"layer {built.index} ({built.name}): {type(layer).__name__} has no counterpart in PyTorch"
            )
        if isinstance(layer, Dense) and layer.activation.name != "identity":
            found.append((built.name, Activation(layer.activation), layer.activation))
    return found


def to_module(model: Network) -> nn.Sequential:
    """A ``torch.nn.Sequential`` that computes what the model's ``predict`` does, with copies of its weights.

    Raises
    ------
    ValueError
        If a layer has no counterpart in PyTorch.
    """
    import torch
    from torch import nn

    dtype = getattr(torch, model.dtype.name)
    modules: list[nn.Module] = []
    weights = model.get_weights()
    for name, layer, activation in _described(model):
        if activation is not None:
            modules.append(_activation_module(activation))
        elif isinstance(layer, Dense):
            inputs, outputs = weights[f"{name}.W"].shape
            modules.append(nn.Linear(inputs, outputs, bias=layer.bias, dtype=dtype))
        elif isinstance(layer, LayerNorm):
            modules.append(nn.LayerNorm(len(weights[f"{name}.gamma"]), eps=layer.eps, dtype=dtype))
        elif isinstance(layer, BatchNorm):
            features = len(weights[f"{name}.gamma"])
            modules.append(nn.BatchNorm1d(features, eps=layer.eps, momentum=layer.momentum, dtype=dtype))
        elif isinstance(layer, Dropout):
            modules.append(nn.Dropout(layer.rate))
        else:
            modules.append(nn.Flatten())
    module = nn.Sequential(*modules)
    module.load_state_dict(state_dict(model))
    return module.eval()


def _activation_module(activation: activations.Activation) -> nn.Module:
    from torch import nn

    if activation.name == "identity":
        return nn.Identity()
    kind, arguments = _MODULES[activation.name]
    module: nn.Module = getattr(nn, kind)(**arguments(activation.alpha))
    return module


def from_module(module: nn.Sequential, in_shape: int | tuple[int, ...] | None = None) -> Sequential:
    """A model with the layers and weights of a ``torch.nn.Sequential``; an activation joins the linear layer before it.

    Parameters
    ----------
    module : nn.Sequential
        Of Linear, activations, Dropout, BatchNorm1d, LayerNorm over the last axis, Flatten, Identity, and of
        Sequentials of these.
    in_shape : int or tuple of int, optional
        Shape of one input row; by default the inputs of the first linear module.

    Returns
    -------
    Sequential
        Built, on the CPU.

    Raises
    ------
    ValueError
        If a module, or an argument of one, has no counterpart here, or the shape of inputs is not known.
    """
    layers: list[Layer] = []
    for name, part in _flat(module):
        kind = type(part).__name__
        if kind == "Identity":
            continue
        if kind == "Linear":
            layers.append(Dense(part.out_features, bias=part.bias is not None))
        elif (activation := _activation_of(part)) is not None:
            last = layers[-1] if layers else None
            if isinstance(last, Dense) and last.activation.name == "identity":
                layers[-1] = Dense(last.units, activation, bias=last.bias)
            else:
                layers.append(Activation(activation))
        else:
            layers.append(_layer_of(name, part))
    if in_shape is None:
        first = next((part for _, part in _flat(module) if type(part).__name__ == "Linear"), None)
        if first is None:
            raise ValueError("the shape of the inputs is not known: give in_shape, as no module is linear")
        in_shape = first.in_features
    state = module.state_dict()
    double = any(str(value.dtype) == "torch.float64" for value in state.values())
    model = Sequential(layers).build(in_shape, dtype="float64" if double else "float32", initialise=False)
    load_state_dict(model, state)
    return model


def _flat(module: nn.Module, prefix: str = "") -> list[tuple[str, Any]]:
    """All modules in their order, with those of inner Sequentials in place of these."""
    if type(module).__name__ != "Sequential":
        return [(prefix, module)]
    return [
        found for name, part in module.named_children() for found in _flat(part, f"{prefix}.{name}" if prefix else name)
    ]


def _activation_of(part: Any) -> activations.Activation | None:
    """The activation that a module applies, ``None`` for other modules."""
    kind = type(part).__name__
    for name, (theirs, arguments) in _MODULES.items():
        if theirs != kind:
            continue
        alpha = {"LeakyReLU": "negative_slope", "ELU": "alpha"}.get(kind)
        value = float(getattr(part, alpha)) if alpha else 0.0
        wanted = arguments(value)
        if kind == "Softmax" and part.dim == 1:
            wanted = {"dim": 1}  # of a matrix, the last one
        if all(getattr(part, key) == v for key, v in wanted.items()) and _plain(part):
            return activations.get(f"{name}({value!r})" if alpha else name)
    return None


def _plain(part: Any) -> bool:
    """Whether the arguments that have no counterpart have their default."""
    return (getattr(part, "beta", 1) == 1) and (type(part).__name__ != "Softplus" or part.threshold == 20)


def _layer_of(name: str, part: Any) -> Layer:
    kind = type(part).__name__
    if kind == "Dropout":
        return Dropout(part.p)
    if kind == "Flatten" and (part.start_dim, part.end_dim) == (1, -1):
        return Flatten()
    if kind == "LayerNorm" and len(part.normalized_shape) == 1 and part.elementwise_affine and part.bias is not None:
        return LayerNorm(part.eps)
    if kind == "BatchNorm1d" and part.affine and part.track_running_stats and part.momentum:
        return BatchNorm(part.momentum, part.eps)
    raise ValueError(f"module {name}: {part} has no counterpart in nnfast")
