"""Streams, events and graphs of the emulated device.

A stream that is being captured keeps what is launched, and does it when the graph is launched. What CUDA forbids
meanwhile, and what a graph could not survive (memory that is taken from the pool and given back), raises
:class:`CaptureError`, which no backend catches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any


class FakeError(RuntimeError):
    """``cupy.cuda.runtime.CUDARuntimeError``."""


class CaptureError(AssertionError):
    """Something that must not be in a graph was done while one was captured."""


class FakeGraph:
    """``cupy.cuda.Graph``."""

    def __init__(self, streams: Streams, work: list[Callable[[], None]]) -> None:
        self.streams, self.work = streams, work

    def launch(self, stream: Any = None) -> None:
        self.streams.forbid("a graph")
        self.streams.launched.append(self.streams.current.ptr)
        self.streams.cupy.counts.graphs += 1
        for each in self.work:
            each()


class FakeStream:
    """``cupy.cuda.Stream``."""

    def __init__(self, streams: Streams, ptr: int) -> None:
        self.streams, self.ptr = streams, ptr
        self.pending: list[Callable[[], None]] = []
        self.done = 0
        self._former: list[FakeStream] = []

    def __enter__(self) -> FakeStream:
        self._former.append(self.streams.current)
        self.streams.current = self
        return self

    def __exit__(self, *exc: object) -> None:
        self.streams.current = self._former.pop()

    def synchronize(self) -> None:
        self.streams.forbid("a wait")
        self.streams.cupy.counts.syncs += 1
        self.catch_up(self.done + len(self.pending))

    def later(self, work: Callable[[], None]) -> None:
        """A copy beside the computation: as late as may be, when somebody waits for it."""
        self.pending.append(work)

    def catch_up(self, number: int) -> None:
        """Do what is pending, up to the copy of that number since the beginning."""
        while self.pending and self.done < number:
            self.pending.pop(0)()
            self.done += 1

    def wait_event(self, event: FakeEvent) -> None:
        self.streams.forbid("a wait for another stream")
        self.streams.waits.append((self.ptr, event))
        event.reach()

    def begin_capture(self, mode: Any = None) -> None:
        if not self.ptr:
            raise FakeError("cudaErrorStreamCaptureUnsupported: the default stream")
        if self.streams.refuse_capture:
            raise FakeError("cudaErrorStreamCaptureUnsupported: for a test")
        self.streams.captured = []

    def end_capture(self) -> FakeGraph:
        if self.streams.captured is None:
            raise FakeError("cudaErrorIllegalState: nothing is being captured")
        graph = FakeGraph(self.streams, self.streams.captured)
        self.streams.captured = None
        return graph


class Streams:
    """All streams of a device.

    Attributes
    ----------
    current : FakeStream
        Where work goes.
    captured : list or None
        What was launched since a capture began.
    refuse_capture : bool
        Let every capture fail.
    waits : list
        Pairs of a stream's number and an event that it was told to wait for.
    """

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self._numbers = itertools.count()
        self.current = self.new()
        self.captured: list[Callable[[], None]] | None = None
        self.refuse_capture = False
        self.launched: list[int] = []  # the streams of all that was launched
        self.waits: list[tuple[int, FakeEvent]] = []  # the stream, and what it waited for

    def new(self, null: bool = False, non_blocking: bool = False) -> FakeStream:
        return FakeStream(self, next(self._numbers))

    def do(self, work: Callable[[], None]) -> None:
        """Launch work: now, or with the graph."""
        self.launched.append(self.current.ptr)
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def forbid(self, what: str) -> None:
        """Fail if a graph is being captured."""
        if self.captured is not None:
            raise CaptureError(f"{what} while a graph is captured")


class FakeEvent:
    """``cupy.cuda.Event``: its time is the number of launches, in milliseconds."""

    def __init__(self, streams: Streams) -> None:
        self.streams, self.time = streams, 0.0
        self.stream: FakeStream | None = None
        self.number = 0

    def record(self, stream: FakeStream | None = None) -> None:
        self.stream = stream or self.streams.current
        self.number = self.stream.done + len(self.stream.pending)
        self.time = float(self.streams.cupy.counts.launches)

    def reach(self) -> None:
        """Let its stream come as far as it."""
        if self.stream is not None:
            self.stream.catch_up(self.number)

    def synchronize(self) -> None:
        self.streams.forbid("a wait")
        if self.stream is not None and self.stream.done < self.number:
            self.streams.cupy.counts.syncs += 1  # to wait for what is done already costs nothing
        self.reach()
