"""Compile the CUDA kernels with g++ and run them on the CPU: see ``shim.h`` for how.

The libraries are kept in a private folder of the temporary directory, named by what went into them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nnfast.kernels.cuda import FILES, expressions, source

_HEADER = Path(__file__).with_name("shim.h")
_FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",  # rows are moved as units of another type
    "-fno-gnu-unique",  # else all libraries would share the shim's variables
    "-U_FORTIFY_SOURCE",  # its longjmp does not know fibers
    "-Wall",
    "-Wno-unknown-pragmas",
    "-fsanitize=alignment,null,bounds,shift,signed-integer-overflow",
)

ORDERS = {"forward": 0, "backward": 1, "strided": 2}


def compiler() -> str | None:
    """The path of g++, or ``None``."""
    return shutil.which("g++")


def unavailable() -> str | None:
    """Why the kernels cannot be run on this machine's CPU, or ``None``."""
    return None if compiler() else "running CUDA kernels on the CPU needs g++"


def private_folder() -> Path:
    """A folder that only this user can write to: what is in it gets loaded."""
    folder = Path(tempfile.gettempdir()) / f"nnfast-cuda-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        folder = Path(tempfile.mkdtemp(prefix="nnfast-cuda-shim-"))
    return folder


def build(name: str, text: str, kernels: list[str], folder: Path) -> Path:
    """Compile CUDA source `text` into a library that offers these kernels; returns its path.

    Raises
    ------
    RuntimeError
        If the compiler says anything at all.
    """
    rows = ", ".join(f'{{"{k}", shim::Entry<&{k}>::signature, shim::Entry<&{k}>::launch}}' for k in kernels)
    text = f'#include "shim.h"\n{text}\nSHIM_TABLE({rows})\n'
    parts = (text, _HEADER.read_text(), *_FLAGS, _version())
    library = folder / f"{name}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as work:
        cpp, compiled, linked = (Path(work) / f"{name}.{ending}" for ending in ("cpp", "o", "so"))
        cpp.write_text(text)
        compiler_path = compiler() or "g++"
        for command in (
            [compiler_path, *_FLAGS, f"-I{_HEADER.parent}", "-c", str(cpp), "-o", str(compiled)],
            # Without -fsanitize here: what the checks call is in shim.h
            [compiler_path, "-shared", "-Wl,-Bsymbolic", str(compiled), "-o", str(linked)],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or done.stderr:
                raise RuntimeError(f"g++ on {name}.cu: {done.stderr[:4000]}")
        linked.replace(library)
    return library


@cache
def _version() -> str:
    return subprocess.run([compiler() or "g++", "--version"], capture_output=True, text=True, check=True).stdout


def points_to(code: str, dtype: np.dtype[Any]) -> bool:
    """Whether a parameter's code is that of a pointer to this dtype."""
    # NumPy has two characters for int64, and no name for that of bfloat16
    return code[1] in ("v", dtype.char) or (code[1] == "q" and dtype == np.int64)


class ShimError(RuntimeError):
    """A kernel did something that a GPU would not forgive."""


class Kernel:
    """One instantiation; called like a kernel, with NumPy arrays, numbers and ``None``."""

    def __init__(self, library: Any, number: int) -> None:
        self.library = library
        self._number = number
        self.name: str = library.shim_name(number).decode()
        #: One code per parameter: ``k`` or ``p`` and the element's letter for a pointer, else the letter.
        self.signature: list[str] = library.shim_signature(number).decode().split()

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], values: list[int | float]) -> None:
        """Run with raw values: addresses for pointers."""
        if len(values) != len(self.signature):
            raise TypeError(f"{self.name} takes {len(self.signature)} arguments, got {len(values)}")
        kinds = {"d": ctypes.c_double, "f": ctypes.c_float, "I": ctypes.c_uint32, "q": ctypes.c_int64}
        boxes = [
            (kinds[code] if len(code) == 1 else ctypes.c_void_p)(value)
            for code, value in zip(self.signature, values, strict=True)
        ]
        pointers = (ctypes.c_void_p * len(boxes))(*(ctypes.addressof(box) for box in boxes))
        shape = (ctypes.c_uint * 6)(*(*grid, 1, 1, 1)[:3], *(*block, 1, 1, 1)[:3])
        if self.library.shim_launch(self._number, shape, pointers):
            raise ShimError(f"{self.name}: {self.library.shim_error().decode()}")

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
        """Run on NumPy arrays, whose dtypes must be those of the parameters."""
        values: list[int | float] = []
        for code, argument in zip(self.signature, arguments, strict=True):
            if len(code) == 1:
                values.append(argument)
            elif argument is None:
                values.append(0)
            else:
                if not points_to(code, argument.dtype):
                    raise TypeError(f"{self.name}: {argument.dtype} array for a parameter {code!r}")
                values.append(argument.ctypes.data)
        self.launch(grid, block, values)


class HostShim:
    """All kernels by their name expressions."""

    def __init__(self) -> None:
        folder = private_folder()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            paths = list(pool.map(lambda file: build(file, source(file), expressions(file), folder), FILES))
        self._libraries = [self.load(path) for path in paths]
        self.kernels: dict[str, Kernel] = {}
        for library in self._libraries:
            for i in range(library.shim_count()):
                kernel = Kernel(library, i)
                self.kernels[kernel.name] = kernel

    @staticmethod
    def load(path: Path) -> Any:
        """A library made by :func:`build`."""
        library = ctypes.CDLL(str(path))
        library.shim_name.restype = library.shim_signature.restype = library.shim_error.restype = ctypes.c_char_p
        return library

    def order(self, name: str) -> None:
        """Run blocks and threads ``"forward"``, ``"backward"`` or ``"strided"`` from now on."""
        for library in self._libraries:
            library.shim_order(ORDERS[name])


@cache
def host_shim() -> HostShim:
    """The compiled kernels, once per process."""
    return HostShim()
