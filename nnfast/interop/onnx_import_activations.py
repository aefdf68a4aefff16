"""Activations in an ONNX graph, by what their nodes compute together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import activations
from ..backends import formulas

__all__ = ["ELEMENTWISE", "POINTS", "recognised", "single"]

# How closely a composition must follow an activation to be it, on points from -8 to 8
_CLOSE = 2e-6
POINTS = np.linspace(-8.0, 8.0, 161)


def _formula(name: str) -> Callable[..., Any]:
    def value(z: np.ndarray, alpha: float = activations.get(name).alpha) -> Any:
        return formulas.ACTIVATIONS[name][0](np, z, alpha)

    return value


# Elementwise operators that activations are, or are composed of: on float64 arrays, with the node's attributes
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Pow": lambda a, b: a**b,
    "Neg": lambda a: -a,
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Abs": np.abs,
    "Erf": lambda a: formulas.erf(np, a),
    "Min": np.minimum,
    "Max": np.maximum,
    "Clip": lambda a, low=None, high=None: np.clip(a, low, high),
    "HardSigmoid": lambda a, alpha=0.2, beta=0.5: np.clip(alpha * a + beta, 0, 1),
    "Elu": lambda a, alpha=1.0: _formula("elu")(a, alpha),
    "LeakyRelu": lambda a, alpha=0.01: _formula("leaky_relu")(a, alpha),
    "Selu": lambda a, alpha=formulas.SELU_ALPHA, gamma=formulas.SELU_SCALE: (
        gamma * np.where(a > 0, a, alpha * np.expm1(a))
    ),
    "Gelu": lambda a, approximate=b"none": _formula("gelu_tanh" if approximate == b"tanh" else "gelu")(a),
    "Relu": _formula("relu"),
    "Tanh": _formula("tanh"),
    "Sigmoid": _formula("sigmoid"),
    "Softplus": _formula("softplus"),
    "Softsign": _formula("softsign"),
    "HardSwish": _formula("hard_swish"),
    "Mish": _formula("mish"),
    "Identity": lambda a: a,
    "Cast": lambda a, to=1: a,
}


def single(constant: np.ndarray | None) -> np.ndarray | None:
    """A constant of one number, in float64."""
    return None if constant is None or constant.size != 1 else constant.reshape(()).astype(np.float64)


def recognised(values: np.ndarray) -> activations.Activation | None:
    """The activation with these values at the points."""
    for activation in _candidates(values):
        expected = formulas.ACTIVATIONS[activation.name][0](np, POINTS, activation.alpha)
        if np.shape(values) == POINTS.shape and np.allclose(values, expected, rtol=_CLOSE, atol=_CLOSE):
            return activation
    return None


def _candidates(values: np.ndarray) -> list[activations.Activation]:
    found = [activations.get(name) for name in activations.names() if name != "softmax"]
    left = float(np.ravel(values)[0])
    for name, alpha in (("leaky_relu", left / POINTS[0]), ("elu", left / np.expm1(POINTS[0]))):
        if np.isfinite(alpha) and alpha > 0:
            # Written as a float32: the shortest number that reads back as it
            found.append(activations.get(f"{name}({float(str(np.float32(alpha)))!r})"))
    return found
