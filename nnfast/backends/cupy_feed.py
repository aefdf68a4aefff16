"""Batches on their way from the host to a GPU while it computes.

A copy from ordinary memory waits for itself. So each batch goes into page-locked memory first, from there to the device
on a stream of its own, and into the plan's buffers when the step that reads them is next. There are two of each, so the
copy of one batch runs beside the step of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Array, Feeder

__all__ = ["CudaFeeder"]


class _Turn:
    """One of the two sets of memory: page-locked, on the device, and when each of them is free again."""

    def __init__(self, cupy: Any, outs: Sequence[Array]) -> None:
        self.locked = [self._locked(cupy, out) for out in outs]
        self.staged = [cupy.empty(out.shape, out.dtype) for out in outs]
        self.copied, self.used = cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True)

    @staticmethod
    def _locked(cupy: Any, out: Array) -> np.ndarray:
        memory = cupy.cuda.alloc_pinned_memory(max(out.nbytes, 1))
        return np.frombuffer(memory, out.dtype, out.size).reshape(out.shape)


class CudaFeeder(Feeder):
    """Feeds arrays of the host, by turns through two sets of memory.

    Parameters
    ----------
    backend : CupyBackend
        Whose device it is.
    outs : sequence of array
        Where batches go.
    """

    def __init__(self, backend: Any, outs: Sequence[Array]) -> None:
        super().__init__(backend, outs)
        self._cupy = backend.xp
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._turns = [_Turn(self._cupy, outs) for _ in range(2)]

    def feed(self, sources: Sequence[Array]) -> None:
        if not all(isinstance(source, np.ndarray) for source in sources):
            super().feed(sources)  # on the device already
            return
        turn = self._turns[0]
        self._turns.reverse()
        turn.copied.synchronize()  # of the batch before the last one: long ago
        for locked, source in zip(turn.locked, sources, strict=True):
            np.copyto(locked, source, casting="same_kind")
        self._stream.wait_event(turn.used)
        for locked, staged in zip(turn.locked, turn.staged, strict=True):
            staged.set(locked, stream=self._stream)
        turn.copied.record(self._stream)
        now = self._cupy.cuda.get_current_stream()
        now.wait_event(turn.copied)
        for staged, out in zip(turn.staged, self.outs, strict=True):
            self._cupy.copyto(out, staged)
        turn.used.record(now)
