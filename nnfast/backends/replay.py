"""What a backend gives out for steps and batches that come again and again: their plain forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Array, Backend

__all__ = ["Feeder", "Replay"]


class Replay:
    """A recorded step. The base form calls the Python function again."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    def run(self, times: int = 1) -> None:
        """Do the recorded work so many times, on the same addresses."""
        for _ in range(times):
            self._step()


class Feeder:
    """Brings batches of the host into arrays of a device; see :meth:`Backend.feeder`.

    Attributes
    ----------
    outs : list of array
        Where they go.
    """

    def __init__(self, backend: Backend, outs: Sequence[Array]) -> None:
        self._backend, self.outs = backend, list(outs)

    def feed(self, sources: Sequence[Array]) -> None:
        """Copy each source, of the same shape, to its place, for what the device is asked for next.

        The sources may be changed as soon as it returns.
        """
        for source, out in zip(sources, self.outs, strict=True):
            self._backend.copy(source, out=out)
