"""Where the time of a recorded step goes: nanoseconds of each kernel, adding up to the step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from . import fusion
from .driver import Program
from .specialise import kernel, name_of

__all__ = ["Part", "profile"]


@dataclass
class Part:
    """A kernel's share of a run.

    Attributes
    ----------
    name : str
        Of the kernel.
    seconds : float
        Of one run, as the leading thread saw it.
    tasks : int
        Its tasks; more than 1 are shared among threads where `shared`.
    shared : bool
    parts : list of Part
        The kernels of a chain of tiles, with the time of the chain divided among them as the threads spent it.
    """

    name: str
    seconds: float
    tasks: int
    shared: bool
    parts: list[Part] = field(default_factory=list)


def profile(program: Program, times: int) -> tuple[float, list[Part]]:
    """Run a program `times` times; the seconds of a run, and the kernels' parts of them in order.

    The parts are scaled from the processor's cycles to the wall-clock time of the whole, so that they add up to
    it; what the driver itself takes is spread over them.
    """
    chain = kernel(fusion.chain_tiles)
    inner: dict[int, np.ndarray] = {}
    for c, call in enumerate(program.calls):
        if call.function == chain:
            inner[c] = np.zeros(len(call.keep), np.int64)
            call.ints[2] = inner[c].ctypes.data
    try:
        program.cycles(1)  # warm
        for clocks in inner.values():
            clocks[:] = 0
        began = time.perf_counter()
        cycles = program.cycles(times)
        seconds = (time.perf_counter() - began) / times
    finally:
        for c in inner:
            program.calls[c].ints[2] = 0
    parts = []
    for c, call in enumerate(program.calls):
        part = Part(name_of(call.function), seconds * cycles[c] / cycles.sum(), call.tasks, call.parallel)
        if c in inner:
            shares = inner[c] / inner[c].sum()
            part.parts = [
                Part(name_of(one.function), part.seconds * share, call.tasks, call.parallel)
                for one, share in zip(call.keep, shares, strict=True)
            ]
        parts.append(part)
    return seconds, parts
