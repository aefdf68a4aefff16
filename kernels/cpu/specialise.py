"""Kernels: one template in plain Python, one compiled copy per dtype (and activation, optimizer, ...).

A kernel is a C function ``void(int64 *I, double *F, int64 task)``. ``I`` holds addresses, sizes and flags,
``F`` parameters, ``task`` the tile to work on; nothing else goes in or out, so that a list of calls is a
list of numbers that the driver can replay without Python. Templates use the names that
:func:`scalar_names` lists as globals. Copies are made rather than closures because Numba caches a copy
under its own qualified name, while a closure over other functions can never be cached.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from numba import cfunc, njit, types

from . import intrinsics
from .cache import compiled

# NaN and infinity must come through, so never nnan or ninf
FAST = {"contract", "reassoc", "nsz", "arcp", "afn"}
# Where the order of operations is the algorithm (range reduction, compensation)
EXACT = {"contract", "nsz"}

_lock = threading.RLock()
_functions: dict[tuple[Any, Any, str], Any] = {}
_kernels: dict[tuple[Any, Any, str], Any] = {}
SUFFIX = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}


def copy_of(template: Callable[..., Any], name: str, names: dict[str, Any]) -> FunctionType:
    """The function `template` under another name, with some of its globals replaced."""
    code = template.__code__.replace(co_name=name, co_qualname=name)
    copy = FunctionType(code, {**template.__globals__, **names}, name, template.__defaults__)
    copy.__qualname__ = name
    copy.__module__ = template.__module__
    return copy


def scalar_names(dtype: np.dtype[Any]) -> dict[str, Any]:
    """``T`` (the type), ``ptr`` (address to pointer), ``T_SIZE`` (bytes) and ``D`` for templates on `dtype`.

    ``D`` is float64: in Numba ``float(x)`` of a float32 stays one.
    """
    single = dtype == np.float32
    return {
        "T": types.float32 if single else types.float64,
        "ptr": intrinsics.pointer_f32 if single else intrinsics.pointer_f64,
        "T_SIZE": dtype.itemsize,
        "D": types.float64,
    }


def function(
    template: Callable[..., Any],
    dtype: np.dtype[Any],
    variant: str = "",
    *,
    exact: bool = False,
    inline: bool = True,
    **names: Any,
) -> Any:
    """A function for use inside kernels, compiled into the kernel that calls it; arguments as :func:`kernel`'s.

    A large one that a kernel calls several times is not put `inline`.
    """
    key = (template, dtype, variant)
    if (found := _functions.get(key)) is not None:
        return found
    with _lock:
        if key not in _functions:
            name = "_".join(filter(None, (template.__name__, variant, SUFFIX[dtype])))
            copy = copy_of(template, name, {**scalar_names(dtype), **names})
            fastmath = EXACT if exact else FAST
            _functions[key] = njit(fastmath=fastmath, error_model="numpy", forceinline=inline)(copy)
        return _functions[key]


def name_of(address: int) -> str:
    """The name of the kernel at an address, such as ``adam_f32``."""
    return next((k.__name__ for k in _kernels.values() if int(k.address) == address), "?")


def kernel(
    template: Callable[..., Any], dtype: Any = None, variant: str = "", *, exact: bool = False, **names: Any
) -> int:
    """The address of a compiled kernel; compiled, or read from disk, when first asked for.

    Parameters
    ----------
    template : function
        ``template(I, F, task)``.
    dtype : dtype, optional
        float32 or float64, for templates that use ``T`` and ``ptr``.
    variant : str
        Distinguishes copies that differ in `names`.
    exact : bool
        Keep the order of floating-point operations.
    **names
        Globals of the template that this copy replaces.
    """
    key = (template, dtype, variant)
    if (found := _kernels.get(key)) is not None:
        return int(found.address)
    with _lock:
        if key not in _kernels:
            suffix, scalars = ("", {}) if dtype is None else (SUFFIX[dtype], scalar_names(dtype))
            name = "_".join(filter(None, (template.__name__, variant, suffix)))
            copy = copy_of(template, name, {**scalars, **names})
            fastmath = EXACT if exact else FAST

            def decorate(cache: bool) -> Any:
                return cfunc(intrinsics.KERNEL, cache=cache, fastmath=fastmath, error_model="numpy")(copy)

            _kernels[key] = compiled(decorate, name)
        return int(_kernels[key].address)
