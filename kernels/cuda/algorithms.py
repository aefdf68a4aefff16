"""The algorithms that were chosen for matrix products, remembered on disk for each GPU and cuBLASLt version."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from .cublaslt import Algorithm

__all__ = ["Algorithms"]

_BYTES = 64  # of an algorithm
_MOST = 1 << 22  # bytes of a file that is read


def _folder() -> Path:
    from platformdirs import user_cache_dir

    return Path(os.environ.get("NNFAST_CACHE") or user_cache_dir("nnfast")).expanduser().absolute()


class Algorithms:
    """A table from a problem's key to an algorithm, in a JSON file that is read once and written with each change.

    The bytes are cuBLASLt's own, which checks them before it uses them. A file that is damaged counts as empty; where
    none can be written, the choice holds for this process.

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
        name = re.sub(r"[^A-Za-z0-9.]+", "-", gpu).strip("-").lower()
        self.path = (folder or _folder()) / f"cublaslt-{version}-{name}.json"
        self._lock = threading.Lock()
        self._table = self._read()

    def _read(self) -> dict[str, str]:
        try:
            if self.path.stat().st_size > _MOST:
                return {}
            table = json.loads(self.path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return {}
        if not isinstance(table, dict):
            return {}
        good = re.compile(rf"[0-9a-f]{{{2 * _BYTES}}}")
        return {key: value for key, value in table.items() if isinstance(value, str) and good.fullmatch(value)}

    def get(self, key: str) -> Algorithm | None:
        """What was chosen for the problem `key`."""
        found = self._table.get(key)
        return None if found is None else Algorithm.from_buffer_copy(bytes.fromhex(found))

    def put(self, key: str, algorithm: Algorithm) -> None:
        """Remember a choice."""
        with self._lock:
            # Another process may have written since
            self._table = {**self._read(), **self._table, key: bytes(algorithm).hex()}
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    json.dump(self._table, file, indent=0)
                os.replace(name, self.path)
