"""Steps as CUDA graphs: what a step launches is recorded once and launched as a whole, with no Python between kernels.

A graph holds addresses, so nothing in a step may allocate, wait, or copy from the host. Methods that do so (CuPy's own
operations, a user's Python code) refuse, and their steps run kernel by kernel.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .base import Array, Backend, Replay
from .cupy_linear import Auxiliary

__all__ = ["CudaGraphs", "GraphReplay"]

_log = logging.getLogger("nnfast")


# Steps in one graph where many follow each other: a launch costs the host some microseconds, and the GPU a gap
SEVERAL = 16


class GraphReplay(Replay):
    """A captured step; runs on the stream that is current then.

    Parameters
    ----------
    backend : CudaGraphs
        Which captures several steps as one graph when they are first asked for.
    step : callable
        The step.
    graph : cupy.cuda.Graph
        Of one step.
    auxiliary : Auxiliary
        Memory that the graph works on, and the plan does not know of.
    """

    def __init__(self, backend: CudaGraphs, step: Callable[[Backend], None], graph: Any, auxiliary: Any) -> None:
        self._backend, self._recorded, self._graph, self._auxiliary = backend, step, graph, auxiliary
        self._several: Any = None

    def run(self, times: int = 1) -> None:
        if times >= SEVERAL and self._several is None:
            self._several = self._backend.graph_of(self._recorded, self._auxiliary, SEVERAL) or False
        if self._several:
            many, times = divmod(times, SEVERAL)
            for _ in range(many):
                self._several.launch()
        for _ in range(times):
            self._graph.launch()


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class _Recording(threading.local):
    """What this thread is doing, and why its step cannot be a graph."""

    capturing = False
    rounding = False
    refused: str | None = None
    auxiliary: Any = None  # cupy_linear.Auxiliary, while products wait
    pending: Any = None  # the operands of one that does
    sums: Any = None  # address and shape of a loss's gradient, the sums of its columns by blocks, and their number
    copying: Any = None  # a parameter, and where its steps leave it rounded
    copied = False  # whether the last call to the backend that may have changed it was such a step


class CudaGraphs:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _cupy: Any
    _device: Any
    _cublaslt: Any
    _waiting: Any
    _make_masks: Any
    _flush: Any
    fused: bool

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._recording = _Recording()
        self._streams = threading.local()
        self._said: set[str] = set()

    def _refuse(self, reason: str) -> None:
        """Note that what runs now cannot be in a graph."""
        if self._recording.refused is None:
            self._recording.refused = reason

    def python(self, function: Callable[..., None], *args: Any) -> None:
        self._flush()
        self._refuse(f"Python code, {getattr(function, '__qualname__', function)}")
        function(self, *args)
        self._recording.copied = False  # it may have changed the parameter

    def capture(
        self,
        step: Callable[[Backend], None],
        temporary: Sequence[Array] = (),
        before: Callable[[], None] = lambda: None,
    ) -> Replay:
        """A graph of ``step(self)``, or, where something in it refuses, the step as it is."""
        with self._device:
            # What is on the current stream must be there before another one reads it
            self._cupy.cuda.get_current_stream().synchronize()
            stream = self._stream()
            with stream:
                # Compiles kernels, chooses algorithms, takes working memory
                self._recording.refused = None if self.fused else "operations that are not fused"
                auxiliary = Auxiliary()
                before()
                with self._waiting(auxiliary):
                    step(self)  # type: ignore[arg-type]
                if self._recording.refused is None and self._make_masks(auxiliary):
                    before()
                    with self._waiting(auxiliary):  # now with the masks
                        step(self)  # type: ignore[arg-type]
                stream.synchronize()
        graph = None if self._recording.refused else self.graph_of(step, auxiliary)
        if graph is None:
            reason = str(self._recording.refused)
            if self.fused and reason not in self._said:
                self._said.add(reason)
                _log.warning("a step runs kernel by kernel, since it cannot be captured in a graph: %s", reason)
            return Replay(lambda: self._eager(step))
        return GraphReplay(self, step, graph, auxiliary)

    def _eager(self, step: Callable[[Backend], None]) -> None:
        with self._device:
            step(self)  # type: ignore[arg-type]

    def graph_of(self, step: Callable[[Backend], None], auxiliary: Any, times: int = 1) -> Any:
        """The graph of so many steps, or ``None`` where CUDA refuses. Nothing is computed now."""
        runtime = self._cupy.cuda.runtime
        failed: Exception | None = None
        graph = None
        with self._device, self._stream() as stream:
            try:
                stream.begin_capture()
            except (runtime.CUDARuntimeError, RuntimeError) as error:
                self._refuse(_line(error))
                return None
            self._recording.capturing = True
            try:
                for _ in range(times):
                    with self._waiting(auxiliary):
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
            self._refuse(_line(failed))
            return None
        return graph

    def _stream(self) -> Any:
        """This thread's stream for captures: the default stream cannot be captured."""
        if not hasattr(self._streams, "stream"):
            self._streams.stream = self._cupy.cuda.Stream(non_blocking=True)
        return self._streams.stream
