"""A step recorded by the Numba backend: native segments, with calls of Python between them where there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..kernels.cpu.driver import Call, Program
from ..kernels.cpu.fusion import fused
from .base import Backend, Replay

Callback = Callable[[Any], None]


class NumbaReplay(Replay):
    """The recorded calls. Without Python in them, any number of steps is one native call.

    Parameters
    ----------
    backend : Backend
        Passed to the recorded Python functions.
    record : list
        Kernel calls and Python functions, in order.
    temporary : sequence of ndarray
        Arrays that nobody reads after a run.

    Attributes
    ----------
    parts : list
        Programs, and the Python functions between them.
    """

    def __init__(self, backend: Backend, record: list[Call | Callback], temporary: Sequence[np.ndarray] = ()) -> None:
        self._backend = backend
        if any(not isinstance(item, Call) for item in record):
            temporary = ()  # Python code may look at everything
        self.parts: list[Program | Callback] = []
        calls: list[Call] = []
        for item in record:
            if isinstance(item, Call):
                calls.append(item)
                continue
            if calls:
                self.parts.append(Program(fused(calls)))
                calls = []
            self.parts.append(item)
        if calls:
            self.parts.append(Program(fused(calls, temporary)))
        self._use(self.parts)

    def _use(self, parts: list[Program | Callback]) -> None:
        self.parts = parts
        self._whole = parts[0] if len(parts) == 1 and isinstance(parts[0], Program) else None

    @classmethod
    def chained(cls, backend: Backend, parts: Sequence[tuple[NumbaReplay, int]]) -> NumbaReplay:
        """Native replays, each so many times, as one that is native, too."""
        programs = [(part, times) for replay, times in parts for part in replay.parts if isinstance(part, Program)]
        chain = cls(backend, [])
        chain._use([Program.chain(programs)])
        return chain

    @property
    def native(self) -> bool:
        """Whether the whole step runs without Python."""
        return all(isinstance(part, Program) for part in self.parts)

    def run(self, times: int = 1) -> None:
        """Do the recorded work so many times, on the same addresses."""
        if self._whole is not None:
            self._whole.run(times)
            return
        for _ in range(times):
            for part in self.parts:
                if isinstance(part, Program):
                    part.run()
                else:
                    part(self._backend)
