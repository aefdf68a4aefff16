"""Where compiled kernels are kept on disk: one folder per set of sources, versions and processor.

Numba's own cache follows only the file of the function itself, so an edited callee would leave a stale
result; here the folder's name is a hash of every kernel source. Loading a cache file runs the code in it,
so the folder must belong to the user and be closed to everybody else.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache as once
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import event

_numba_config: Any = numba.config  # its attributes are set at run time
_config_lock = threading.RLock()
_announced = False


def _digest() -> str:
    h = hashlib.sha256()
    here = Path(__file__).parent
    for source in (*sorted(here.glob("*.py")), *sorted(here.parent.glob("*.py"))):
        h.update(source.name.encode())
        h.update(source.read_bytes())
    features = llvm.get_host_cpu_features().flatten()
    for part in (numba.__version__, llvmlite.__version__, np.__version__, llvm.get_host_cpu_name(), features):
        h.update(str(part).encode() + b"\0")
    return h.hexdigest()[:24]


def _usable(folder: Path) -> str | None:
    """Why `folder` cannot be trusted or written, or ``None``; it is made where it is missing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat(follow_symlinks=False)
    except OSError as error:
        return str(error)
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a folder"
    if hasattr(os, "getuid"):
        if found.st_uid != os.getuid():
            return "it belongs to another user"
        if found.st_mode & 0o077:
            # It was not made here: what is in it may be anybody's
            return "it is open to other users"
    return None if os.access(folder, os.W_OK | os.X_OK) else "it is not writable"


@once
def folder() -> Path | None:
    """The folder of compiled kernels, or ``None`` where there can be none (one warning says why).

    Its parent is ``NNFAST_CACHE`` or the user's cache folder.
    """
    from platformdirs import user_cache_dir

    base = Path(os.environ.get("NNFAST_CACHE") or user_cache_dir("nnfast"))
    path = base.expanduser().absolute() / f"numba-{_digest()}"
    if (reason := _usable(path)) is None:
        return path
    warnings.warn(f"compiled kernels are not cached: {path}: {reason}", RuntimeWarning, stacklevel=2)
    return None


@contextmanager
def _numba_folder(path: Path | None) -> Iterator[None]:
    """Numba reads its folder while decorating; the user's own functions must not end up in ours."""
    with _config_lock:
        before = _numba_config.CACHE_DIR
        _numba_config.CACHE_DIR = str(path) if path else before
        try:
            yield
        finally:
            _numba_config.CACHE_DIR = before


def _forget(path: Path, name: str) -> bool:
    """Delete the files of the function called `name`; whether there were any."""
    files = [p for p in path.rglob("*.nb?") if f".{name}-" in p.name]
    for p in files:
        p.unlink(missing_ok=True)
    return bool(files)


def _announce(path: Path | None) -> None:
    """Say on stderr, once per process, what the seconds are spent on; not with ``NNFAST_QUIET=1``."""
    global _announced
    if _announced:
        return
    _announced = True
    if os.environ.get("NNFAST_QUIET", "0") not in ("", "0") or sys.stderr is None:
        return
    kept = f"; they are kept in {path} for the next time" if path else ""
    with suppress(OSError, ValueError):  # stderr is closed, and training does not need it
        print(f"nnfast: compiling kernels for this processor{kept}", file=sys.stderr, flush=True)


class _FirstPass(event.Listener):
    """Called when Numba starts to compile; what it loads runs through no compiler pass."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def on_start(self, event: Any) -> None:
        _announce(self.path)

    def on_end(self, event: Any) -> None:
        pass


def _announcing(path: Path | None) -> AbstractContextManager[Any]:
    """A context in which the first function that is compiled, not loaded, is announced."""
    return nullcontext() if _announced else event.install_listener("numba:run_pass", _FirstPass(path))


def compiled(decorate: Callable[[bool], Any], name: str) -> Any:
    """``decorate(cache)`` with our folder; once more, from the source, where a file in it is damaged.

    Parameters
    ----------
    decorate : callable
        Compiles and returns the function; its argument says whether to keep the result on disk.
    name : str
        The function's qualified name, by which its files are found.
    """
    path = folder()
    with _numba_folder(path), _announcing(path):
        if path is None:
            return decorate(False)
        try:
            return decorate(True)
        except Exception:
            # Numba raises whatever unpickling a truncated file raises. A real compile error has no files,
            # or raises again.
            if not _forget(path, name):
                raise
            return decorate(True)
