"""Weights and models of other libraries, in and out.

``keras``, ``onnx``, ``sklearn`` and ``torch`` are loaded when they are first asked for, and import the library that
they are named after only where they cannot do without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["keras", "onnx", "sklearn", "torch"]

if TYPE_CHECKING:
    from . import keras, onnx, sklearn, torch


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
