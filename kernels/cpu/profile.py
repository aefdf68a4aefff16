"""Where the time of a recorded step goes: nanoseconds of each kernel, adding up to the step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache as once

import numpy as np
from numba import njit

from . import chain as chains
from .driver import Program
from .intrinsics import cycle_count
from .specialise import kernel, name_of

__all__ = ["Part", "cycles_per_second", "profile"]


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


@njit(nogil=True)
def _cycles():
    return cycle_count()


@once
def cycles_per_second() -> float:
    """Rate of the counter, from 50 ms of wall-clock time."""
    _cycles()
    began, first = time.perf_counter(), _cycles()
    while (seconds := time.perf_counter() - began) < 0.05:
        pass
    return float(_cycles() - first) / seconds


def profile(program: Program, times: int, before: Callable[[], None], seconds: float = 0.5) -> tuple[float, list[Part]]:
    """Run a program for some time; the seconds of one run, and the kernels' parts of them in order.

    Parameters
    ----------
    program : Program
        The recorded calls of a step.
    times : int
        Runs one after the other, after each call of `before`.
    before : callable
        Brings the step state to the beginning of an epoch.
    seconds : float
        How long to measure, at least.
    """
    chain = kernel(chains.chain_tiles)
    inner: dict[int, np.ndarray] = {}
    for c, call in enumerate(program.calls):
        if call.function == chain:
            inner[c] = np.zeros(len(call.keep), np.int64)
            call.ints[2] = inner[c].ctypes.data
    cycles, runs, began = np.zeros(len(program.calls), np.int64), 0, 0.0
    try:
        while not runs or time.perf_counter() - began < seconds:
            if not began:  # warm
                before()
                program.cycles(times)
                for clocks in inner.values():
                    clocks[:] = 0
                began = time.perf_counter()
            before()
            cycles += program.cycles(times)
            runs += times
    finally:
        for c in inner:
            program.calls[c].ints[2] = 0
    took = cycles / runs / cycles_per_second()
    parts = []
    for c, call in enumerate(program.calls):
        part = Part(name_of(call.function), took[c], call.tasks, call.parallel)
        if c in inner:
            shares = inner[c] / inner[c].sum()
            part.parts = [
                Part(name_of(one.function), part.seconds * share, call.tasks, call.parallel)
                for one, share in zip(call.keep, shares, strict=True)
            ]
        parts.append(part)
    return float(took.sum()), parts
