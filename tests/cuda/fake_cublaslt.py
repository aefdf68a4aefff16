"""cuBLASLt on the emulated device: the real wrapper over a library with the same functions (``fake_cublaslt.cpp``)."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nnfast.kernels.cuda.cublaslt import GELU_BIAS, RELU_BIAS, Plan
from nnfast.kernels.cuda.cublaslt_library import CublasLtError, Library
from tests.cuda.host_shim import compiler, private_folder

_SOURCE = Path(__file__).with_name("fake_cublaslt.cpp")

#: Bytes that an algorithm may work in: enough for two of the library's
WORKSPACE = 2 << 20


@cache
def library_path() -> str:
    """The compiled library.

    Raises
    ------
    RuntimeError
        If the compiler says anything at all.
    """
    text = _SOURCE.read_bytes()
    path = private_folder() / f"cublaslt-{hashlib.sha256(text).hexdigest()[:20]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            made = Path(work) / "made.so"
            command = [
                compiler() or "g++",
                "-std=c++17",
                "-O1",
                "-fPIC",
                "-shared",
                "-Wall",
                str(_SOURCE),
                "-o",
                str(made),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or done.stderr:
                raise RuntimeError(f"g++ on {_SOURCE.name}: {done.stderr[:4000]}")
            made.replace(path)
    return str(path)


def run(
    plan: Plan, a: np.ndarray, b: np.ndarray, c: np.ndarray, bias: np.ndarray | None = None, aux: Any = None
) -> None:
    """Compute on host memory."""
    workspace = np.empty(WORKSPACE, np.uint8)
    held, beside = (0 if x is None else x.ctypes.data for x in (bias, aux))
    plan.run(*(x.ctypes.data for x in (a, b, c)), held, workspace.ctypes.data, 0, beside)


def after(epilogue: int, x: np.ndarray) -> np.ndarray:
    """What the activation of an epilogue makes of `x`."""
    if epilogue == RELU_BIAS:
        return np.maximum(x, 0)
    if epilogue == GELU_BIAS:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x


class FakeLibrary(Library):
    """A handle whose products count as launches, and go into a graph where one is captured."""

    def __init__(self, cupy: Any) -> None:
        super().__init__(library_path())
        self.cupy = cupy
        self.fake = ctypes.CDLL(library_path())
        self.fake.fake_snapshot.restype = ctypes.c_void_p
        self.fake.fake_snapshot.argtypes = [ctypes.c_void_p]
        self.fake.fake_fail.argtypes = [ctypes.c_uint64]

    def call(self, name: str, *arguments: Any) -> None:
        if name != "cublasLtMatmul":
            super().call(name, *arguments)
            return
        handle, operation, *rest = arguments
        kept = self.fake.fake_snapshot(operation) if self.cupy.streams.captured is not None else operation

        def launch() -> None:
            self.cupy.counts.launches += 1
            self.cupy.counts.kernels.append("cublasLtMatmul")
            status = self._library.cublasLtMatmul(handle, kept, *rest)
            if status:
                raise CublasLtError(name, status)

        self.cupy.streams.do(launch)
