"""Activations as PyTorch's modules, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import activations

if TYPE_CHECKING:
    from torch import nn

__all__ = ["activation_module", "activation_of"]

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


def activation_module(activation: activations.Activation, channels: int = -1) -> nn.Module:
    """The module that applies an activation; `channels` is the axis that a softmax goes over."""
    from torch import nn

    if activation.name == "identity":
        return nn.Identity()
    kind, arguments = _MODULES[activation.name]
    own = {"dim": channels} if activation.name == "softmax" else arguments(activation.alpha)
    module: nn.Module = getattr(nn, kind)(**own)
    return module


def activation_of(part: Any, images: bool) -> activations.Activation | None:
    """The activation that a module applies, ``None`` for other modules; to `images` with their channels first."""
    kind = type(part).__name__
    for name, (theirs, arguments) in _MODULES.items():
        if theirs != kind:
            continue
        alpha = {"LeakyReLU": "negative_slope", "ELU": "alpha"}.get(kind)
        value = float(getattr(part, alpha)) if alpha else 0.0
        wanted = arguments(value)
        if kind == "Softmax" and (images or part.dim == 1):
            wanted = {"dim": 1}  # the channels'; of a matrix, the last one
        if all(getattr(part, key) == v for key, v in wanted.items()) and _plain(part):
            return activations.get(f"{name}({value!r})" if alpha else name)
    return None


def _plain(part: Any) -> bool:
    """Whether the arguments that have no counterpart have their default."""
    return (getattr(part, "beta", 1) == 1) and (type(part).__name__ != "Softplus" or part.threshold == 20)
