"""One table row per activation: what its derivative is computed from, and where it has kinks.

The formulas themselves belong to the backends (``backends/formulas.py`` for NumPy and CuPy,
``kernels/`` for the fused ones). This module is what layers, plans and tests need to know of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

__all__ = ["TABLE", "Activation", "cell_activation", "get", "names"]


@dataclass(frozen=True, slots=True)
class Activation:
    """A pointwise function ``y = f(z)``, or softmax over the last axis.

    Attributes
    ----------
    name : str
        The field's standard name, a key of :data:`TABLE`.
    saves : {"output", "input"}
        What the derivative is computed from: ``y`` (nothing extra is stored) or ``z``.
    alpha : float
        The one parameter: negative slope of ``leaky_relu``, saturation of ``elu``; else 0.
    kinks : tuple of float
        The ``z`` at which the derivative jumps; gradient checks keep away from them.
    initializer : str
        Default weight initializer of a layer that ends in this activation.
    """

    name: str
    saves: str = "output"
    alpha: float = 0.0
    kinks: tuple[float, ...] = ()
    initializer: str = "glorot_uniform"

    def __str__(self) -> str:
        default = TABLE[self.name].alpha
        return self.name if self.alpha == default else f"{self.name}({self.alpha!r})"


_HE = "he_uniform"

TABLE: dict[str, Activation] = {
    row.name: row
    for row in (
        Activation("identity"),
        Activation("relu", kinks=(0.0,), initializer=_HE),
        Activation("leaky_relu", alpha=0.01, kinks=(0.0,), initializer=_HE),
        Activation("elu", alpha=1.0, kinks=(0.0,), initializer=_HE),
        Activation("selu", kinks=(0.0,), initializer="lecun_normal"),
        Activation("sigmoid"),
        Activation("tanh"),
        Activation("softplus", initializer=_HE),
        Activation("softsign"),
        Activation("gelu", saves="input", initializer=_HE),
        Activation("gelu_tanh", saves="input", initializer=_HE),
        Activation("silu", saves="input", initializer=_HE),
        Activation("mish", saves="input", initializer=_HE),
        Activation("hard_sigmoid", kinks=(-3.0, 3.0)),
        Activation("hard_swish", saves="input", kinks=(-3.0, 3.0), initializer=_HE),
        Activation("softmax"),
    )
}

_ALIASES = {"linear": "identity", "none": "identity", "logistic": "sigmoid", "swish": "silu"}
_WITH_ALPHA = frozenset({"leaky_relu", "elu"})
_CALL = re.compile(r"^([a-z_]+)\(([^()]*)\)$")


def names() -> list[str]:
    """Return the names of all activations, in the table's order."""
    return list(TABLE)


def get(spec: str | Activation | None) -> Activation:
    """Look up an activation.

    Parameters
    ----------
    spec : str, Activation or None
        A name, a name with its parameter such as ``"leaky_relu(0.2)"``, a row of the table, or
        ``None`` for the identity. ``linear``, ``logistic`` and ``swish`` are understood.

    Returns
    -------
    Activation

    Raises
    ------
    ValueError
        If the name is unknown, or a parameter is given to an activation that has none.
    TypeError
        If `spec` is of another type.
    """
    if spec is None:
        return TABLE["identity"]
    if isinstance(spec, Activation):
        return spec
    if not isinstance(spec, str):
        raise TypeError(f"activation must be a name, an Activation or None, not {type(spec).__name__}")
    name, alpha = spec.strip().lower(), None
    if match := _CALL.match(name):
        name = match.group(1)
        try:
            alpha = float(match.group(2))
        except ValueError:
            raise ValueError(f"activation {spec!r}: {match.group(2)!r} is not a number") from None
    name = _ALIASES.get(name, name)
    if name not in TABLE:
        raise ValueError(f"unknown activation {spec!r}; known are {', '.join(TABLE)}")
    if alpha is None:
        return TABLE[name]
    if name not in _WITH_ALPHA:
        raise ValueError(f"activation {name!r} takes no parameter, got {spec!r}")
    if not 0.0 < alpha < float("inf"):
        # The derivative is computed from the output, which needs sign(y) == sign(z).
        raise ValueError(f"the parameter of {name!r} must be positive and finite, got {alpha!r}")
    return replace(TABLE[name], alpha=alpha)


def cell_activation(act: str | Activation, who: str = "rnn") -> Activation:
    """The activation of a recurrent cell without gates; `who` says whose it is.

    Raises
    ------
    ValueError
        If it is neither tanh nor relu.
    """
    act = get(act)
    if act.name not in ("tanh", "relu"):
        raise ValueError(f"{who}: the activation must be tanh or relu, got {str(act)!r}")
    return act
