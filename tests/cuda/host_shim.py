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
    "-U_FORTIFY_SOURCE",  # its longjmp does not know fibers
    "-Wall",
    "-Wno-unknown-pragmas",
)
_CHECKS = "-fsanitize=alignment,null,bounds,shift,signed-integer-overflow"

ORDERS = {"forward": 0, "backward": 1, "strided": 2}


def compiler() -> str | None:
    """The path of g++, or ``None``."""
    return shutil.which("g++")


def _folder() -> Path:
    """A folder that only this user can write to: what is in it gets loaded."""
    folder = Path(tempfile.gettempdir()) / f"nnfast-cuda-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        folder = Path(tempfile.mkdtemp(prefix="nnfast-cuda-shim-"))
    return folder


def _build(file: str, folder: Path) -> Path:
    rows = ", ".join(
        f'{{"{name}", shim::Entry<&{name}>::signature, shim::Entry<&{name}>::launch}}' for name in expressions(file)
    )
    text = f'#include "shim.h"\n{source(file)}\nSHIM_TABLE({rows})\n'
    gxx = compiler()
    assert gxx is not None
    version = subprocess.run([gxx, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\0".join((text, _HEADER.read_text(), *_FLAGS, _CHECKS, version)).encode()).hexdigest()[:20]
    library = folder / f"{file}-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            cpp, made = Path(work) / f"{file}.cpp", Path(work) / f"{file}.so"
            cpp.write_text(text)
            command = [gxx, *_FLAGS, f"-I{_HEADER.parent}", "-c", _CHECKS, str(cpp), "-o", f"{made}.o"]
            for step in (command, [gxx, "-shared", "-Wl,-Bsymbolic", f"{made}.o", "-o", str(made)]):
                done = subprocess.run(step, capture_output=True, text=True)
                if done.returncode or done.stderr:
                    raise RuntimeError(f"g++ on {file}.cu: {done.stderr[:4000]}")
            made.replace(library)
    return library


class ShimError(RuntimeError):
    """A kernel did something that a GPU would not forgive."""


class Kernel:
    """One instantiation; called like a kernel, with NumPy arrays, numbers and ``None``."""

    def __init__(self, library: Any, number: int) -> None:
        self._library = library
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
        if self._library.shim_launch(self._number, shape, pointers):
            raise ShimError(f"{self.name}: {self._library.shim_error().decode()}")

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
        """Run on NumPy arrays, whose dtypes must be those of the parameters."""
        values: list[int | float] = []
        for code, argument in zip(self.signature, arguments, strict=True):
            if len(code) == 1:
                values.append(argument)
            elif argument is None:
                values.append(0)
            else:
                if code[1] != "v" and np.dtype(code[1]) != argument.dtype:
                    raise TypeError(f"{self.name}: {argument.dtype} array for a parameter {code!r}")
                values.append(argument.ctypes.data)
        self.launch(grid, block, values)


class HostShim:
    """All kernels by their name expressions."""

    def __init__(self) -> None:
        folder = _folder()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            paths = list(pool.map(lambda file: _build(file, folder), FILES))
        self._libraries = [ctypes.CDLL(str(path)) for path in paths]
        self.kernels: dict[str, Kernel] = {}
        for library in self._libraries:
            library.shim_name.restype = library.shim_signature.restype = library.shim_error.restype = ctypes.c_char_p
            for i in range(library.shim_count()):
                kernel = Kernel(library, i)
                self.kernels[kernel.name] = kernel

    def order(self, name: str) -> None:
        """Run blocks and threads ``"forward"``, ``"backward"`` or ``"strided"`` from now on."""
        for library in self._libraries:
            library.shim_order(ORDERS[name])


@cache
def host_shim() -> HostShim:
    """The compiled kernels, once per process."""
    return HostShim()
