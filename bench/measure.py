"""One run: all contenders of a workload are checked, calibrated, and timed in turn.

The time of a step is the slope between two numbers of epochs, so that what happens once in a call (checks of
the data, recording, allocation) does not count, and nothing that happens in a step is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from .. import machine
from .contenders import ENTRIES
from .floor import FloorSession, steps_of
from .process import ContenderError, Remote, busy_seconds
from .session import Session
from .timings import FLOOR, Result, Timing
from .workloads import Workload

__all__ = ["Settings", "calibrate", "measure", "slope"]

AGREEMENT_STEPS = 10
LOSS_TOLERANCE = 1e-3
ROUNDED_TOLERANCE = {"tf32": 1e-2, "bf16": 1e-1}  # where factors, or everything but weights and sums, are rounded
PREDICTION_TOLERANCE = 1e-4
_ATTEMPTS = 3  # at a turn whose slope is not positive


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes
    ----------
    rounds : int
        Turns of each contender.
    seconds : float
        That the larger number of epochs should take longer than the smaller one.
    pause : float
        Seconds before each turn: threads of OpenBLAS and OpenMP spin for some 0.1 s after their last work.
    threads : int
        Of each contender.
    """

    rounds: int = 5
    seconds: float = 0.3
    pause: float = 0.5
    threads: int = field(default_factory=machine.usable_cores)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if not self.seconds > 0 or self.pause < 0:
            raise ValueError(f"seconds must be above 0 and pause at least 0, got {self.seconds} and {self.pause}")


def calibrate(run: Callable[[int], float], seconds: float) -> tuple[int, int]:
    """Two numbers of epochs, the larger one longer by some `seconds`.

    Parameters
    ----------
    run : callable
        Trains for a number of epochs and returns the seconds.
    seconds : float
        The difference to aim at.
    """
    run(1)  # compiles, allocates
    count = 1
    # The better of two runs: one that another program held up would end the search at too small a number
    while (took := min(run(count), run(count))) < seconds / 4:
        count *= min(10, max(2, math.ceil(seconds / 2 / max(took, 1e-9))))
    # Two epochs at least: where a single one is long, the smaller number is as large as that
    more = max(2, math.ceil(seconds * count / took))
    few = max(1, more // 8)
    return few, few + more


def slope(run: Callable[[int], float], counts: tuple[int, int]) -> float:
    """Seconds of an epoch from the difference between two numbers of them.

    Raises
    ------
    ArithmeticError
        If more epochs take less time, several times on end.
    """
    few, many = counts
    run(few)  # wakes threads and fills caches after the others' turns
    for _ in range(_ATTEMPTS):
        short, long = run(few), run(many)
        if long > short:
            return (long - short) / (many - few)
    raise ArithmeticError(f"{many} epochs took {long:.3g} s, but {few} took {short:.3g} s: the machine is too busy")


def measure(
    workload: Workload, names: Sequence[str], settings: Settings, say: Callable[[str], None] = lambda text: None
) -> Result:
    """Measure contenders on a workload.

    Parameters
    ----------
    workload : Workload
        What to do.
    names : sequence of str
        Contenders, from :data:`~nnfast.bench.contenders.ENTRIES`.
    settings : Settings
        How.
    say : callable, optional
        Told what is done now.

    Returns
    -------
    Result
        One that failed has an error in it and no times; the others go on without it.
    """
    unable = {name: why for name in names if (why := ENTRIES[name].unable(workload)) is not None}
    result = Result(workload, {name: Timing(name) for name in names if name not in unable}, Timing(FLOOR))
    result.unable = unable
    remotes: dict[str, Remote] = {}
    try:
        say("starting")
        floor = _floor_of(result.timings)
        remotes[FLOOR] = Remote(FLOOR, floor, workload, settings.threads, threads=settings.threads)
        for name in result.timings:
            remotes[name] = Remote(name, Session, name, workload, settings.threads, threads=settings.threads)
        _Run(result, remotes, settings, say).run()
        for remote in remotes.values():
            remote.close()
    finally:
        for remote in remotes.values():
            remote.kill()
    return result


def _floor_of(names: Collection[str]) -> type[FloorSession]:
    """The floor where these contenders compute: on a GPU, if all of them do."""
    if not names or not all(ENTRIES[name].gpu for name in names):
        return FloorSession
    from .floor_cuda import CudaFloorSession

    return CudaFloorSession


class _Run:
    """The steps of a run, in which any contender may fail and is then left out."""

    def __init__(
        self, result: Result, remotes: dict[str, Remote], settings: Settings, say: Callable[[str], None]
    ) -> None:
        self.result, self.remotes, self.settings, self.say = result, remotes, settings, say

    def run(self) -> None:
        """Check, calibrate, take turns."""
        self._each("starting", lambda timing, remote: remote.receive())
        self.reference: np.ndarray | None = None
        self._each("checking", self._refer)
        if not self.result.workload.predict:
            self._each("checking", self._check_losses)
        self._each("preparing", lambda timing, remote: remote.call("prepare"))
        if self.result.workload.predict:
            self._each("checking", self._check_predictions)
        self._each("calibrating", self._calibrate)
        began, others = time.perf_counter(), self._other_seconds()
        for number in range(1, self.settings.rounds + 1):
            self._each(f"round {number} of {self.settings.rounds}:", self._turn)
        now = self._other_seconds()
        if others is not None and now is not None:
            self.result.other_load = max(0.0, now - others) / (time.perf_counter() - began)
        self._each("ending", self._end)

    def _other_seconds(self) -> float | None:
        """Time that all cores have been busy with other programs, since some time ago."""
        seconds = busy_seconds()
        for remote in self.remotes.values():
            own = remote.busy_seconds()
            if seconds is None or own is None:
                return None
            seconds -= own
        return None if seconds is None else seconds - time.process_time()

    def _each(self, what: str, do: Callable[[Timing, Remote], None]) -> None:
        for timing in (self.result.floor, *self.result.timings.values()):
            if timing.error is not None:
                continue
            self.say(f"{what} {timing.name}")
            try:
                do(timing, self.remotes[timing.name])
            except (ContenderError, ArithmeticError) as error:
                timing.error = str(error) if isinstance(error, ContenderError) else f"{timing.name}: {error}"
                timing.details = getattr(error, "details", "")
                self.remotes[timing.name].kill()  # its memory and threads are not for the others to bear

    def _refer(self, timing: Timing, remote: Remote) -> None:
        if timing is self.result.floor:
            self.reference = remote.call("reference", AGREEMENT_STEPS)

    def _check_losses(self, timing: Timing, remote: Remote) -> None:
        if timing is not self.result.floor:
            losses = np.array(remote.call("losses", AGREEMENT_STEPS))
            tolerance = ROUNDED_TOLERANCE.get(self.result.workload.precision, LOSS_TOLERANCE)
            self._compare(timing, losses, self.reference, "losses of the first steps", tolerance)

    def _check_predictions(self, timing: Timing, remote: Remote) -> None:
        if timing is not self.result.floor:
            kind, outputs = remote.call("predictions")
            expected = self.reference
            if kind == "probabilities" and expected is not None:
                expected = _probabilities(expected)
            self._compare(timing, outputs, expected, "predictions", PREDICTION_TOLERANCE)

    def _compare(
        self, timing: Timing, found: np.ndarray, expected: np.ndarray | None, what: str, tolerance: float
    ) -> None:
        if expected is None:
            raise ArithmeticError(f"its {what} could not be checked, since the floor's process failed")
        if found.shape != expected.shape:
            raise ArithmeticError(f"its {what} have the shape {found.shape}, not {expected.shape}")
        if what == "predictions":
            difference = np.abs(found - expected) / np.abs(expected).max()
        else:
            difference = np.abs(found - expected) / np.abs(expected)
        timing.disagreement = float(difference.max())
        if not timing.disagreement <= tolerance:
            at = int(np.nanargmax(difference)) if np.isfinite(difference).any() else 0
            raise ArithmeticError(
                f"its {what} differ from {self._whose()} by {timing.disagreement:.2g} (at most "
                f"{tolerance:g} is allowed): {found.flat[at]:.6g} in place of {expected.flat[at]:.6g}"
            )

    def _whose(self) -> str:
        """Of what the reference is."""
        return "the plain NumPy network's" if self.result.workload.network is None else "those of nnfast on NumPy"

    def _calibrate(self, timing: Timing, remote: Remote) -> None:
        time.sleep(self.settings.pause)
        timing.counts = calibrate(partial(remote.call, "run"), self.settings.seconds)

    def _turn(self, timing: Timing, remote: Remote) -> None:
        time.sleep(self.settings.pause)
        seconds = slope(partial(remote.call, "run"), timing.counts)
        timing.steps.append(seconds / len(steps_of(self.result.workload)))
        if timing is self.result.floor:
            self.result.peaks.append(remote.call("peak"))
            self.result.bandwidths.append(remote.call("bandwidth"))

    def _end(self, timing: Timing, remote: Remote) -> None:
        timing.peak_mb, timing.increase_mb = remote.call("memory")
        if timing is self.result.floor:
            self.result.blas = remote.call("blas")


def _probabilities(z: np.ndarray) -> np.ndarray:
    """Of each class from its logit; of the class 1 from a single one."""
    if z.shape[1] == 1:
        return 1 / (1 + np.exp(-z))
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
