"""A step recorded by the Numba backend: native segments, with calls of Python between them where there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..kernels.cpu import tuning
from ..kernels.cpu.copies import reaches
from ..kernels.cpu.driver import Call, Program
from ..kernels.cpu.fusion import fused, fused_for_many
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
        self._calls, self._temporary = calls, temporary  # all of them, where it is one program

    def _use(self, parts: list[Program | Callback]) -> None:
        self.parts = parts
        self._whole = parts[0] if len(parts) == 1 and isinstance(parts[0], Program) else None

    @cached_property
    def many(self) -> Program | None:
        """The program for runs of many steps, where all is one program."""
        if self._whole is None or not self._whole.parallel:
            return self._whole
        calls = fused_for_many(self._calls, self._temporary)
        return self._whole if calls is None else Program(calls)

    @classmethod
    def chained(cls, backend: Backend, parts: Sequence[tuple[NumbaReplay, int]]) -> NumbaReplay:
        """Native replays, each so many times, as one that is native, too."""
        programs: list[tuple[Program, int]] = []
        outer = -1
        for replay, times in parts:
            if (many := replay.many) is not None and many is not replay._whole:
                own = [x for call in replay._calls if call.update is not None for x in call.writes if x is not None]
                # Where nobody else needs the weights, they are brought there and back once
                alone = not reaches((call for other, _ in parts if other is not replay for call in other._calls), own)
                if alone or times >= tuning.OWN_STEPS:
                    outer = len(programs) if alone else outer
                    programs.append((many, times))
                    continue
            programs += [(part, times) for part in replay.parts if isinstance(part, Program)]
        chain = cls(backend, [])
        chain._use([Program.chain(programs, outer)])
        return chain

    @property
    def native(self) -> bool:
        """Whether the whole step runs without Python."""
        return all(isinstance(part, Program) for part in self.parts)

    def run(self, times: int = 1) -> None:
        """Do the recorded work so many times, on the same addresses."""
        if self._whole is not None:
            many = self.many if times >= tuning.OWN_STEPS else self._whole
            assert many is not None
            many.run(times)
            return
        for _ in range(times):
            for part in self.parts:
                if isinstance(part, Program):
                    part.run()
                else:
                    part(self._backend)
