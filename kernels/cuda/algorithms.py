"""What was chosen of a library's algorithms, remembered on disk for each GPU and version of the library."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..remembered import Remembered
from .cublaslt import Algorithm

__all__ = ["Algorithms", "table"]

_BYTES = 64  # of an algorithm


def _folder() -> Path:
    from platformdirs import user_cache_dir

    return Path(os.environ.get("NNFAST_CACHE") or user_cache_dir("nnfast")).expanduser().absolute()


def _good(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{2 * _BYTES}}}", value) is not None


def table(library: str, gpu: str, version: int, good: Callable[[Any], bool], folder: Path | None = None) -> Remembered:
    """What was chosen of a library of that version, on this GPU.

    Parameters
    ----------
    library : str
        Its name.
    gpu : str
        The GPU's name and capability.
    version : int
        The library's.
    good : callable
        Whether a value is one that can be used.
    folder : Path, optional
        Where the file is; by default ``NNFAST_CACHE`` or the user's cache folder.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", gpu).strip("-").lower()
    return Remembered((folder or _folder()) / f"{library}-{version}-{name}.json", good)


class Algorithms:
    """A table from a problem's key to an algorithm, in a JSON file.

    The bytes are cuBLASLt's own, which checks them before it uses them.

    Parameters
    ----------
    gpu : str
        The GPU's name and capability.
    version : int
        cuBLASLt's.
    folder : Path, optional
        Where the file is; by default ``NNFAST_CACHE`` or the user's cache folder.
    """

    def __init__(self, gpu: str, version: int, folder: Path | None = None) -> None:
        self._table = table("cublaslt", gpu, version, _good, folder)
        self.path = self._table.path

    def get(self, key: str) -> Algorithm | None:
        """What was chosen for the problem `key`."""
        found = self._table.get(key)
        return None if found is None else Algorithm.from_buffer_copy(bytes.fromhex(found))

    def put(self, key: str, algorithm: Algorithm) -> None:
        """Remember a choice."""
        self._table.put(key, bytes(algorithm).hex())
