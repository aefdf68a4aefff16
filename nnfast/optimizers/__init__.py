"""The optimizers and the schedules of their learning rate."""

from __future__ import annotations

from typing import Any

from . import schedules
from .adam import Adam, Adamax, AdamW, NAdam
from .adaptive import Adagrad, RMSprop
from .base import Optimizer
from .lion import Lion
from .sgd import SGD

__all__ = [
    "SGD",
    "TABLE",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "Optimizer",
    "RMSprop",
    "get",
    "schedules",
]

TABLE: dict[str, type[Optimizer]] = {
    kind.__name__.lower(): kind for kind in (SGD, Adagrad, RMSprop, Adam, AdamW, Adamax, NAdam, Lion)
}


def get(spec: Any, **arguments: Any) -> Optimizer:
    """An optimizer from its name, its class, a ``config()`` or an instance.

    Parameters
    ----------
    spec : str, type, dict or Optimizer
        What to look up; a dict is what :meth:`Optimizer.config` gave.
    **arguments
        For the constructor, such as ``lr=``; not allowed with an instance.

    Raises
    ------
    ValueError
        If the name is unknown, or a config has none.
    TypeError
        If `spec` is of another type.
    """
    if isinstance(spec, Optimizer):
        if arguments:
            raise TypeError(f"{sorted(arguments)} cannot be given beside an optimizer that is made already")
        return spec
    if isinstance(spec, dict):
        config = {**spec, **arguments}
        if "name" not in config:
            raise ValueError(f"an optimizer's config needs a 'name', got {spec!r}")
        return get(config.pop("name"), **config)
    if isinstance(spec, type) and issubclass(spec, Optimizer):
        return spec(**arguments)
    if not isinstance(spec, str):
        raise TypeError(f"optimizer must be a name or an Optimizer, not {type(spec).__name__}")
    name = spec.strip().lower()
    if name not in TABLE:
        raise ValueError(f"unknown optimizer {spec!r}; known are {', '.join(TABLE)}")
    return TABLE[name](**arguments)
