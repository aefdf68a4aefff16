"""What was measured on this machine, in a JSON file that later processes read."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Remembered"]

_MOST = 1 << 22  # bytes of a file that is read


class Remembered:
    """A table from names to values, in a JSON file that is read once and written with each change.

    A file that is damaged counts as empty; where none can be written, what is put holds for this process.

    Parameters
    ----------
    path : Path or None
        The file; its folder is made where it is missing. ``None``: nothing is kept.
    good : callable
        Whether a value is one that can be used; others in the file are left out.
    """

    def __init__(self, path: Path | None, good: Callable[[Any], bool]) -> None:
        self.path = path
        self._good = good
        self._lock = threading.Lock()
        self._table = self._read()

    def _read(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        try:
            if self.path.stat().st_size > _MOST:
                return {}
            table = json.loads(self.path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return {}
        return {key: value for key, value in table.items() if self._good(value)} if isinstance(table, dict) else {}

    def get(self, key: str) -> Any:
        """The value, or ``None``."""
        return self._table.get(key)

    def put(self, key: str, value: Any) -> None:
        """Remember a value."""
        with self._lock:
            # Another process may have written since
            self._table = {**self._read(), **self._table, key: value}
            if self.path is None:
                return
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    json.dump(self._table, file, indent=0)
                os.replace(name, self.path)
