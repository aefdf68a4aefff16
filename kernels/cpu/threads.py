"""One pool of threads: Numba's. BLAS runs on one thread inside it, and forks and other threads are safe.

Facts this rests on: a child forked after Numba's OpenMP pool started dies in its first parallel region;
the ``workqueue`` layer aborts the process when two threads enter a region; two pools (Numba's and
OpenBLAS's) on the same cores make a 50 us step take 50 ms.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache as once
from itertools import product
from pathlib import Path
from typing import Any

import numba
from numba.np.ufunc import parallel as pool

_numba_config: Any = numba.config  # its attributes are set at run time
_pool: Any = pool  # as are this module's when the pool starts
_forked = False
_region_lock = threading.Lock()


def count() -> int:
    """Threads that a kernel may use now; does not start the pool."""
    if _forked:
        return 1
    if not pool._is_initialized:
        return int(_numba_config.NUMBA_NUM_THREADS)
    return int(_pool._get_num_threads())  # numba.get_num_threads() without its two locks


def most() -> int:
    """Threads that kernels may ever use: unlike :func:`count`, the same at any time."""
    return int(_numba_config.NUMBA_NUM_THREADS)


@once
def find_tbb() -> None:
    """Load the PyPI package ``tbb``'s library, where it is, so that Numba finds it."""
    for name in ("libtbb.so.12", "libtbb.12.dylib", "tbb12.dll"):
        for folder in ("lib", "Library/bin"):
            if (path := Path(sys.prefix, folder, name)).exists():
                try:
                    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                except OSError:
                    continue  # Numba falls back to another layer
                return


@once
def excludes_others() -> bool:
    """Whether the pool, which has started, takes one caller at a time: hold :func:`region_lock` then."""
    return bool(numba.threading_layer() == "workqueue")


def region_lock() -> threading.Lock:
    """To hold around a parallel region."""
    return _region_lock


def _openblas_functions(path: str) -> tuple[Any, Any] | None:
    """OpenBLAS's own functions that get and set its number of threads, under whatever name a build gives them."""
    library = ctypes.CDLL(path)
    for prefix, suffix in product(("", "scipy_"), ("", "64_", "_64", "_64_")):
        names = (f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set"))
        found = [getattr(library, name, None) for name in names]
        if all(found):
            return found[0], found[1]
    return None


class _SingleThreadedBlas:
    """SciPy's BLAS held to one thread while kernels run; restored by the last one out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[int] = []
        self._found: list[tuple[Any, Any]] | None = None

    def _controls(self) -> list[tuple[Any, Any]]:
        """Functions that get and set the number of threads of each library that kernels may call."""
        if self._found is None:
            from threadpoolctl import ThreadpoolController

            blas = ThreadpoolController().select(user_api="blas").lib_controllers
            # SciPy's wheel brings its own copy; elsewhere (conda) one copy serves NumPy and SciPy alike
            own = [library for library in blas if "scipy.libs" in library.filepath or "/scipy/" in library.filepath]
            self._found = []
            for library in own or blas:
                functions = None
                if library.internal_api == "openblas" and library.threading_layer == "pthreads":
                    # threadpoolctl's own setter does nothing in all but the first Python thread that calls it
                    functions = _openblas_functions(library.filepath)
                self._found.append(functions or (library.get_num_threads, library.set_num_threads))
        return self._found

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                controls = self._controls()
                self._before = [get() for get, _ in controls]
                for (_, put), number in zip(controls, self._before, strict=True):
                    if number != 1:
                        put(1)

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._restore()

    def _restore(self) -> None:
        for (_, put), number in zip(self._controls(), self._before, strict=True):
            if number != 1:
                put(number)

    def after_fork(self) -> None:
        """The parent's other threads, and what they held, do not exist in the child."""
        self._lock = threading.Lock()
        if self._users:
            self._users = 0
            self._restore()


single_threaded_blas = _SingleThreadedBlas()


def _after_fork() -> None:
    global _forked, _region_lock
    _region_lock = threading.Lock()
    _forked = _forked or pool._is_initialized
    single_threaded_blas.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
