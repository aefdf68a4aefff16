"""Initial weights: drawn on the host in float64, so that one seed gives the same model on every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite, prod, sqrt
from typing import Any, ClassVar, cast

import numpy as np

__all__ = [
    "Constant",
    "Custom",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "Initializer",
    "LecunNormal",
    "LecunUniform",
    "Normal",
    "Ones",
    "Orthogonal",
    "Uniform",
    "Zeros",
    "fans",
    "get",
    "names",
]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs that one unit of a parameter connects to.

    Parameters
    ----------
    shape : tuple of int
        ``(fan_in, fan_out)`` for a dense kernel, ``(*receptive_field, channels_in, channels_out)``
        for a channels-last convolution kernel.

    Returns
    -------
    tuple of int
        ``(fan_in, fan_out)``. Both are the size of a 1-d shape, and 1 for a scalar.
    """
    if len(shape) < 2:
        return prod(shape), prod(shape)
    field_size = prod(shape[:-2])
    return shape[-2] * field_size, shape[-1] * field_size


def _check_finite(name: str, **values: float) -> None:
    for key, value in values.items():
        if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
            raise TypeError(f"initializer {name!r}: {key} must be a number, not {type(value).__name__}")
        if not isfinite(value):
            raise ValueError(f"initializer {name!r}: {key} must be finite, got {value!r}")


class Initializer(ABC):
    """Draws the initial values of one parameter; a subclass defines :meth:`draw`.

    Examples
    --------
    >>> HeNormal()((784, 256), np.random.default_rng(0)).shape
    (784, 256)
    """

    name: ClassVar[str] = ""

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Draw an array.

        Parameters
        ----------
        shape : tuple of int
            Shape of the parameter; see :func:`fans` for the order of its axes.
        rng : numpy.random.Generator
            Where the random numbers come from.

        Returns
        -------
        ndarray of float64
            New, C-contiguous, of the given shape.

        Raises
        ------
        TypeError
            If `rng` is not a generator, or the values are not real numbers.
        ValueError
            If the drawn values have another shape or are not finite.
        """
        shape = tuple(int(n) for n in shape)
        if any(n < 0 for n in shape):
            raise ValueError(f"a shape has no negative sizes, got {shape}")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng must be a numpy.random.Generator, not {type(rng).__name__}")
        values = np.asarray(self.draw(shape, rng))
        if values.dtype.kind not in "biuf":
            raise TypeError(f"initializer {self.name!r} must return real numbers, not dtype {values.dtype}")
        if values.shape != shape:
            raise ValueError(f"initializer {self.name!r} returned shape {values.shape} for a parameter of {shape}")
        # A copy: a callable may hand out the same array each time
        values = np.array(values, dtype=np.float64, order="C")
        if not np.isfinite(values).all():
            raise ValueError(f"initializer {self.name!r} returned values that are not finite")
        return values

    @abstractmethod
    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        """The values themselves, array_like of `shape`."""

    @property
    def config(self) -> dict[str, Any]:
        """Name and parameters, JSON-able; :func:`get` makes the same initializer of it."""
        return {"name": self.name}


@dataclass(frozen=True)
class _Parametrised(Initializer):
    """Takes its configuration from its dataclass fields."""

    @property
    def config(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Constant(_Parametrised):
    """All elements equal to `value`."""

    name: ClassVar[str] = "constant"
    value: float = 0.0

    def __post_init__(self) -> None:
        _check_finite(self.name, value=self.value)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return np.full(shape, self.value, np.float64)


@dataclass(frozen=True)
class Zeros(_Parametrised):
    """All elements 0."""

    name: ClassVar[str] = "zeros"

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return np.zeros(shape)


@dataclass(frozen=True)
class Ones(_Parametrised):
    """All elements 1."""

    name: ClassVar[str] = "ones"

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return np.ones(shape)


@dataclass(frozen=True)
class Normal(_Parametrised):
    """Normal distribution with the given mean and standard deviation."""

    name: ClassVar[str] = "normal"
    std: float = 0.05
    mean: float = 0.0

    def __post_init__(self) -> None:
        _check_finite(self.name, std=self.std, mean=self.mean)
        if self.std < 0:
            raise ValueError(f"initializer 'normal': std must not be negative, got {self.std!r}")

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return self.mean + self.std * rng.standard_normal(shape)


@dataclass(frozen=True)
class Uniform(_Parametrised):
    """Uniform distribution on ``[low, high)``."""

    name: ClassVar[str] = "uniform"
    low: float = -0.05
    high: float = 0.05

    def __post_init__(self) -> None:
        _check_finite(self.name, low=self.low, high=self.high)
        if self.low > self.high:
            raise ValueError(f"initializer 'uniform': low {self.low!r} is above high {self.high!r}")

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return self.low + (self.high - self.low) * rng.random(shape)


@dataclass(frozen=True)
class _Scaled(_Parametrised):
    """Zero mean and variance ``gain**2 * factor / fan``; the normal form is not truncated."""

    factor: ClassVar[float] = 1.0
    fan: ClassVar[str] = "in"
    uniform: ClassVar[bool] = False
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_finite(self.name, gain=self.gain)
        if self.gain < 0:
            raise ValueError(f"initializer {self.name!r}: gain must not be negative, got {self.gain!r}")

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        fan_in, fan_out = fans(shape)
        fan = fan_in if self.fan == "in" else 0.5 * (fan_in + fan_out)
        std = self.gain * sqrt(self.factor / max(fan, 1.0))
        if self.uniform:
            limit = sqrt(3.0) * std
            return limit * (2.0 * rng.random(shape) - 1.0)
        return std * rng.standard_normal(shape)


@dataclass(frozen=True)
class GlorotUniform(_Scaled):
    """Uniform with variance ``2 / (fan_in + fan_out)``: Glorot and Bengio (2010), for tanh and sigmoid."""

    name: ClassVar[str] = "glorot_uniform"
    fan: ClassVar[str] = "mean"
    uniform: ClassVar[bool] = True


@dataclass(frozen=True)
class GlorotNormal(_Scaled):
    """Normal with variance ``2 / (fan_in + fan_out)``: Glorot and Bengio (2010), for tanh and sigmoid."""

    name: ClassVar[str] = "glorot_normal"
    fan: ClassVar[str] = "mean"


@dataclass(frozen=True)
class HeUniform(_Scaled):
    """Uniform with variance ``2 / fan_in``: He et al. (2015), for relu and its relatives."""

    name: ClassVar[str] = "he_uniform"
    factor: ClassVar[float] = 2.0
    uniform: ClassVar[bool] = True


@dataclass(frozen=True)
class HeNormal(_Scaled):
    """Normal with variance ``2 / fan_in``: He et al. (2015), for relu and its relatives."""

    name: ClassVar[str] = "he_normal"
    factor: ClassVar[float] = 2.0


@dataclass(frozen=True)
class LecunUniform(_Scaled):
    """Uniform with variance ``1 / fan_in``: LeCun et al., "Efficient BackProp" (1998)."""

    name: ClassVar[str] = "lecun_uniform"
    uniform: ClassVar[bool] = True


@dataclass(frozen=True)
class LecunNormal(_Scaled):
    """Normal with variance ``1 / fan_in``: LeCun et al. (1998), for selu."""

    name: ClassVar[str] = "lecun_normal"


@dataclass(frozen=True)
class Orthogonal(_Parametrised):
    """A uniformly random matrix with orthonormal rows or columns, times `gain`: Saxe et al. (2014).

    All axes but the last are taken together as the rows.
    """

    name: ClassVar[str] = "orthogonal"
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_finite(self.name, gain=self.gain)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if len(shape) < 2:
            raise ValueError(f"initializer 'orthogonal' needs a shape of two or more axes, got {shape}")
        rows, columns = prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        # QR is unique up to these signs; without them q is not uniform (Mezzadri 2007)
        q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


@dataclass(frozen=True)
class Custom(Initializer):
    """A function ``(shape, rng) -> array`` of the user's own.

    A model file holds its name only; after loading, `function` is ``None`` and a call says so.
    """

    name: ClassVar[str] = "custom"
    function: Callable[[tuple[int, ...], np.random.Generator], Any] | None = None
    label: str = ""

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        if self.function is None:
            raise ValueError(
                f"the initializer {self.label!r} is a function, which a model file does not hold; pass it again"
            )
        return self.function(shape, rng)

    @property
    def config(self) -> dict[str, Any]:
        return {"name": self.name, "label": self.label}


_TABLE: dict[str, type[Initializer]] = {
    row.name: row
    for row in (
        Zeros,
        Ones,
        Constant,
        Normal,
        Uniform,
        GlorotUniform,
        GlorotNormal,
        HeUniform,
        HeNormal,
        LecunUniform,
        LecunNormal,
        Orthogonal,
        Custom,
    )
}
_ALIASES = {
    "xavier_uniform": "glorot_uniform",
    "xavier_normal": "glorot_normal",
    "kaiming_uniform": "he_uniform",
    "kaiming_normal": "he_normal",
}


def names() -> list[str]:
    """Return the names that :func:`get` knows, without the aliases ``xavier_*`` and ``kaiming_*``."""
    return [name for name in _TABLE if name != "custom"]


def get(spec: Any) -> Initializer:
    """Make an initializer of a description.

    Parameters
    ----------
    spec : str, Initializer, mapping or callable
        A name, an initializer, a `config` such as ``{"name": "normal", "std": 0.01}``, or a function
        ``(shape, rng) -> array``.

    Returns
    -------
    Initializer

    Raises
    ------
    ValueError
        If the name is unknown or a parameter does not fit it.
    TypeError
        If `spec` is of another type.
    """
    if isinstance(spec, Initializer):
        return spec
    if isinstance(spec, str):
        return _make(spec, {})
    if isinstance(spec, Mapping):
        parameters = dict(spec)
        name = parameters.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"an initializer's config needs a 'name', got {dict(spec)!r}")
        return _make(name, parameters)
    if isinstance(spec, type) and issubclass(spec, Initializer):
        return spec()
    if callable(spec):
        return Custom(spec, getattr(spec, "__qualname__", type(spec).__qualname__))
    raise TypeError(
        f"initializer must be a name, an Initializer, a config or a function (shape, rng), not {type(spec).__name__}"
    )


def _make(spec: str, parameters: dict[str, Any]) -> Initializer:
    name = spec.strip().lower()
    cls = _TABLE.get(_ALIASES.get(name, name))
    if cls is None or (cls is Custom and not set(parameters) == {"label"}):
        raise ValueError(f"unknown initializer {spec!r}; known are {', '.join([*names(), *_ALIASES])}")
    known = [f.name for f in fields(cast(Any, cls)) if f.name != "function"]
    if unknown := sorted(set(parameters) - set(known)):
        allowed = ", ".join(known) or "none"
        raise ValueError(f"initializer {name!r} has no parameter {', '.join(unknown)}; it takes {allowed}")
    return cls(**parameters)
