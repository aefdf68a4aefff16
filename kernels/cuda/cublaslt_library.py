"""cuBLASLt as a shared library: found, loaded, its functions typed, their errors raised."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_float, c_int32, c_size_t, c_uint64, c_void_p
from typing import Any

__all__ = ["Algorithm", "CublasLtError", "Heuristic", "Library", "find"]

_STATUS = {
    1: "not initialised",
    3: "allocation failed",
    7: "invalid value",
    8: "architecture mismatch",
    11: "mapping error",
    13: "execution failed",
    14: "internal error",
    15: "not supported",
    16: "license error",
}


class CublasLtError(RuntimeError):
    """A call of cuBLASLt failed.

    Attributes
    ----------
    status : int
        ``cublasStatus_t``.
    """

    def __init__(self, function: str, status: int) -> None:
        super().__init__(f"{function}: {_STATUS.get(status, f'status {status}')}")
        self.status = status


class Algorithm(ctypes.Structure):
    """``cublasLtMatmulAlgo_t``: opaque."""

    _fields_ = [("data", c_uint64 * 8)]


class Heuristic(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``."""

    _fields_ = [
        ("algorithm", Algorithm),
        ("workspace", c_size_t),
        ("status", c_int32),
        ("waves", c_float),
        ("reserved", c_int32 * 4),
    ]


_H = c_void_p
_SIGNATURES: dict[str, list[Any]] = {
    "cublasLtCreate": [POINTER(c_void_p)],
    "cublasLtDestroy": [_H],
    "cublasLtMatmulDescCreate": [POINTER(c_void_p), c_int32, c_int32],
    "cublasLtMatmulDescDestroy": [_H],
    "cublasLtMatmulDescSetAttribute": [_H, c_int32, c_void_p, c_size_t],
    "cublasLtMatrixLayoutCreate": [POINTER(c_void_p), c_int32, c_uint64, c_uint64, ctypes.c_int64],
    "cublasLtMatrixLayoutDestroy": [_H],
    "cublasLtMatmulPreferenceCreate": [POINTER(c_void_p)],
    "cublasLtMatmulPreferenceDestroy": [_H],
    "cublasLtMatmulPreferenceSetAttribute": [_H, c_int32, c_void_p, c_size_t],
    "cublasLtMatmulAlgoGetHeuristic": [_H, _H, _H, _H, _H, _H, _H, c_int32, POINTER(Heuristic), POINTER(c_int32)],
    "cublasLtMatmulAlgoCheck": [_H, _H, _H, _H, _H, _H, POINTER(Algorithm), POINTER(Heuristic)],
    "cublasLtMatmul": [
        *(_H, _H, c_void_p, c_void_p, _H, c_void_p, _H, c_void_p, c_void_p, _H, c_void_p, _H),
        *(POINTER(Algorithm), c_void_p, c_size_t, c_void_p),
    ],
}


def find() -> str:
    """The path of the library that belongs to the installed CUDA.

    Raises
    ------
    OSError
        If there is none; the message says so in one line.
    """
    from cuda import pathfinder

    try:
        return str(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except Exception as error:  # several types of pathfinder's own
        raise OSError(f"cuBLASLt cannot be loaded: {str(error).strip().splitlines()[0][:200]}") from None


class Library:
    """cuBLASLt, loaded, with a handle for the current device.

    Parameters
    ----------
    path : str
        The shared library.

    Attributes
    ----------
    version : int
        Of cuBLASLt, such as 130100.

    Raises
    ------
    OSError
        If it cannot be loaded, or lacks a function.
    CublasLtError
        If it does not start.
    """

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        for name, arguments in _SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                raise OSError(f"cuBLASLt at {path} has no {name}") from None
            function.argtypes, function.restype = arguments, c_int32
        self._library.cublasLtGetVersion.argtypes, self._library.cublasLtGetVersion.restype = [], c_size_t
        self.version = int(self._library.cublasLtGetVersion())
        self.handle = c_void_p()
        self.call("cublasLtCreate", byref(self.handle))

    def call(self, name: str, *arguments: Any) -> None:
        """Call the function `name`; raise :class:`CublasLtError` where it fails."""
        status = getattr(self._library, name)(*arguments)
        if status:
            raise CublasLtError(name, status)

    def created(self, name: str, *arguments: Any) -> c_void_p:
        """What ``cublasLt<name>Create`` makes."""
        made = c_void_p()
        self.call(f"cublasLt{name}Create", byref(made), *arguments)
        return made
