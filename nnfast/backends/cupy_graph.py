"""Steps as CUDA graphs: what a step launches is recorded once and launched as a whole, with no Python between kernels.

A graph holds addresses, so nothing in a step may allocate, wait, or copy from the host. Methods that do so (CuPy's own
operations, a user's Python code) refuse, and their steps run kernel by kernel.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from .base import Backend, Replay

__all__ = ["CudaGraphs", "GraphReplay"]

_log = logging.getLogger("nnfast")


class GraphReplay(Replay):
    """A captured step; runs on the stream that is current then."""

    def __init__(self, graph: Any, keep: tuple[Any, ...]) -> None:
        self._graph, self._keep = graph, keep

    def run(self, times: int = 1) -> None:
        for _ in range(times):
            self._graph.launch()


class _Recording(threading.local):
    """What this thread is doing, and why its step cannot be a graph."""

    capturing = False
    refused: str | None = None


class CudaGraphs:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _cupy: Any
    _device: Any
    _cublaslt: Any
    fused: bool

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._recording = _Recording()
        self._streams = threading.local()
        self._said: set[str] = set()

    @property
    def _capturing(self) -> bool:
        return self._recording.capturing

    def _refuse(self, reason: str) -> None:
        """Note that what runs now cannot be in a graph."""
        if self._recording.refused is None:
            self._recording.refused = reason

    def python(self, function: Callable[..., None], *args: Any) -> None:
        self._refuse(f"Python code, {getattr(function, '__qualname__', function)}")
        function(self, *args)

    def capture(self, step: Callable[[Backend], None]) -> Replay:
        """A graph of ``step(self)``, or, where something in it refuses, the step as it is."""
        with self._device:
            # What is on the current stream must be there before another one reads it
            self._cupy.cuda.get_current_stream().synchronize()
            stream = self._stream()
            with stream:
                # Compiles kernels, chooses algorithms, takes working memory
                self._recording.refused = None if self.fused else "operations that are not fused"
                step(self)  # type: ignore[arg-type]
                stream.synchronize()
                graph = None if self._recording.refused else self._captured(step, stream)
        if graph is None:
            reason = str(self._recording.refused)
            if self.fused and reason not in self._said:
                self._said.add(reason)
                _log.warning("a step runs kernel by kernel, since it cannot be captured in a graph: %s", reason)
            return Replay(lambda: self._eager(step))
        return GraphReplay(graph, (step, self))

    def _eager(self, step: Callable[[Backend], None]) -> None:
        with self._device:
            step(self)  # type: ignore[arg-type]

    def _captured(self, step: Callable[[Backend], None], stream: Any) -> Any:
        """The graph, or ``None`` where CUDA refuses."""
        runtime = self._cupy.cuda.runtime
        self._recording.capturing = True
        stream.begin_capture()
        failed: Exception | None = None
        graph = None
        try:
            step(self)  # type: ignore[arg-type]
        except (runtime.CUDARuntimeError, RuntimeError) as error:
            failed = error
        finally:
            self._recording.capturing = False
            try:
                graph = stream.end_capture()
            except (runtime.CUDARuntimeError, RuntimeError) as error:
                failed = failed or error
        if failed is not None:
            self._refuse(f"{type(failed).__name__}: {str(failed).splitlines()[0][:200] if str(failed) else ''}")
            return None
        return graph

    def _stream(self) -> Any:
        """This thread's stream for captures: the default stream cannot be captured."""
        if not hasattr(self._streams, "stream"):
            self._streams.stream = self._cupy.cuda.Stream(non_blocking=True)
        return self._streams.stream
