"""From a device string to a backend. The only module that imports a concrete backend, and only when asked.

Precedence: an explicit argument other than ``"auto"``, then the environment variable ``NNFAST_DEVICE``,
then ``"auto"``.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

from .backends.base import Backend
from .errors import DeviceUnavailable

__all__ = ["available_devices", "get_backend", "resolve", "use_allocator"]

_log = logging.getLogger("nnfast")
_lock = threading.RLock()
_backends: dict[tuple[str, bool], Backend] = {}
_KNOWN = "'auto', 'cpu', 'numpy', 'numba', 'cuda' and 'cuda:N'"


@cache
def _numba_reason() -> str | None:
    """Why Numba cannot be used, or ``None``."""
    try:
        import numba  # noqa: F401 - before what it brings along, so that the reason names it

        from .backends import numba_backend  # noqa: F401
    except Exception as error:  # a broken installation may raise anything at import
        return f"Numba cannot be imported: {type(error).__name__}: {error}"
    return None


@cache
def _cuda_reason(index: int) -> str | None:
    try:
        from .backends import cupy_backend

        return cupy_backend.probe(index)
    except Exception as error:  # such as an empty folder `cupy` that an uninstaller left
        return f"CuPy is broken: {type(error).__name__}: {error}"


@cache
def _cpu() -> str:
    reason = _numba_reason()
    if reason is None:
        return "numba"
    warnings.warn(f"device 'cpu' runs on plain NumPy, which is slower: {reason}", RuntimeWarning, stacklevel=4)
    return "numpy"


@cache
def _auto() -> str:
    reason = _cuda_reason(0)
    device = "cuda" if reason is None else _cpu()
    _log.info("device 'auto' is %r%s", device, "" if reason is None else f" (no cuda: {reason})")
    return device


def _after_fork() -> None:
    """What was found of CUDA holds no longer: a forked child cannot use what its parent started."""
    global _lock
    _lock = threading.RLock()
    _cuda_reason.cache_clear()
    _auto.cache_clear()
    for key in [key for key in _backends if key[0].startswith("cuda")]:
        del _backends[key]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def resolve(device: str | None = None) -> str:
    """The concrete device that a device string stands for.

    Parameters
    ----------
    device : str, optional
        ``"numpy"``, ``"numba"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``. ``None`` and
        ``"auto"`` ask ``NNFAST_DEVICE`` first.

    Returns
    -------
    str
        ``"numpy"``, ``"numba"`` or ``"cuda:N"``.

    Raises
    ------
    ValueError
        If the string names no device.
    TypeError
        If it is no string.
    """
    if device is not None and not isinstance(device, str):
        raise TypeError(f"device must be a string such as 'cuda', not {type(device).__name__}")
    asked = (device or "auto").strip().lower()
    source = "device"
    if asked == "auto" and os.environ.get("NNFAST_DEVICE", "").strip():
        asked, source = os.environ["NNFAST_DEVICE"].strip().lower(), "NNFAST_DEVICE"
    with _lock:
        if asked == "auto":
            asked = _auto()
        if asked == "cpu":
            asked = _cpu()
    if asked in ("numpy", "numba"):
        return asked
    if match := re.fullmatch(r"cuda(?::(\d+))?", asked):
        return f"cuda:{int(match.group(1) or 0)}"
    raise ValueError(f"{source} {asked!r} is not known; known are {_KNOWN}")


def get_backend(device: str | Backend | None = None, *, fused: bool = True) -> Backend:
    """The backend of a device; one object per device, made on first use.

    Parameters
    ----------
    device : str, Backend or None
        As for :func:`resolve`; a backend is returned as it is.
    fused : bool
        ``False`` gives a backend that computes fused operations from primitives.

    Returns
    -------
    Backend

    Raises
    ------
    DeviceUnavailable
        If the device was named and cannot be used; the message says why.
    ValueError, TypeError
        As :func:`resolve`.
    """
    if isinstance(device, Backend):
        plain: Backend = getattr(device, "plain", device)  # of a view by functional.py
        return plain
    if isinstance(device, str) and (known := _backends.get((device, fused))) is not None:
        return known
    name = resolve(device)
    with _lock:
        if (name, fused) not in _backends:
            _backends[name, fused] = _make(name, fused)
        return _backends[name, fused]


def _make(name: str, fused: bool) -> Backend:
    if name == "numpy":
        from .backends.numpy_backend import NumpyBackend

        return NumpyBackend(fused=fused)
    if name == "numba":
        reason = _numba_reason()
        if reason is not None:
            raise DeviceUnavailable(f"device 'numba' cannot be used: {reason}")
        from .backends.numba_backend import NumbaBackend

        return NumbaBackend(fused=fused)
    index = int(name.partition(":")[2])
    reason = _cuda_reason(index)
    if reason is not None:
        raise DeviceUnavailable(f"device {name!r} cannot be used: {reason}")
    from .backends.cupy_backend import CupyBackend

    return CupyBackend(index, fused=fused)


def available_devices() -> dict[str, str | None]:
    """Every device string, with ``None`` where it can be used and else the reason why not.

    Returns
    -------
    dict
        Keys ``"numpy"``, ``"numba"``, and ``"cuda"`` or, with several GPUs, ``"cuda:0"`` and so on.
    """
    devices: dict[str, str | None] = {"numpy": None, "numba": _numba_reason()}
    reason = _cuda_reason(0)
    if reason is not None:
        devices["cuda"] = reason
        return devices
    index = 0
    while (reason := _cuda_reason(index)) is None:
        devices[f"cuda:{index}"] = None
        index += 1
    return devices


def use_allocator(allocator: str | Callable[[int], Any] = "cupy") -> None:
    """Take the memory of CUDA devices from another pool, such as PyTorch's.

    See :func:`nnfast.backends.cupy_memory.use_allocator`.
    """
    from .backends import cupy_memory

    cupy_memory.use_allocator(allocator)
