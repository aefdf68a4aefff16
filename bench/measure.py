"""One run: all contenders of a workload are checked, calibrated, and timed in turn.

The time of a step is the slope between two numbers of epochs, so that what happens once in a call (checks of
the data, recording, allocation) does not count, and nothing that happens in a step is left out.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import machine
from .contenders import ENTRIES, PEERS
from .floor import FloorSession, flops, steps_of
from .process import ContenderError, Remote
from .session import Session
from .workloads import Workload

__all__ = ["FLOOR", "Result", "Settings", "Timing", "calibrate", "measure", "slope"]

FLOOR = "GEMM floor"
AGREEMENT_STEPS = 10
LOSS_TOLERANCE = 1e-3
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


@dataclass
class Timing:
    """What was measured of one contender.

    Attributes
    ----------
    name : str
        The contender.
    steps : list of float
        Seconds per step (or prediction), one for each round.
    counts : tuple of int
        The two numbers of epochs (or predictions) of a turn.
    disagreement : float
        Largest relative difference of its results from the plain NumPy network's.
    peak_mb, increase_mb : float
        Peak memory of its process, and what of it came after the process's start.
    error : str or None
        Why there is no more, if so.
    details : str
        The traceback to `error`.
    """

    name: str
    steps: list[float] = field(default_factory=list)
    counts: tuple[int, int] = (0, 0)
    disagreement: float = 0.0
    peak_mb: float = 0.0
    increase_mb: float = 0.0
    error: str | None = None
    details: str = ""

    @property
    def median(self) -> float:
        """Seconds per step."""
        return statistics.median(self.steps)


@dataclass
class Result:
    """What was measured of one workload.

    Attributes
    ----------
    workload : Workload
        Which.
    timings : dict
        By contender.
    floor : Timing
        The matrix products of a step alone.
    peaks : list of float
        Operations per second of a large product, in each round.
    blas : list of dict
        The BLAS libraries of the floor's process.
    unable : dict
        Contenders that cannot express the workload, with the reason.
    """

    workload: Workload
    timings: dict[str, Timing]
    floor: Timing
    peaks: list[float] = field(default_factory=list)
    blas: list[dict[str, object]] = field(default_factory=list)
    unable: dict[str, str] = field(default_factory=dict)

    @property
    def timed(self) -> list[Timing]:
        """The contenders that came to the end."""
        return [timing for timing in self.timings.values() if timing.error is None]

    @property
    def errors(self) -> list[str]:
        """What went wrong, by contender."""
        return [timing.error for timing in (self.floor, *self.timings.values()) if timing.error is not None]

    @property
    def best_peer(self) -> Timing | None:
        """The fastest contender that is not nnfast."""
        return min((t for t in self.timed if t.name in PEERS), key=lambda t: t.median, default=None)

    def samples_per_second(self, timing: Timing) -> float:
        """Rows per second."""
        return self.workload.rows_per_step / timing.median

    def speedup(self, timing: Timing, other: Timing) -> float:
        """How many times the speed of `other` a contender has: the median of the rounds' ratios."""
        return _ratio(other.steps, timing.steps)

    def times_floor(self, timing: Timing) -> float:
        """How many times the floor's time a contender takes: the median of the rounds' ratios."""
        return _ratio(timing.steps, self.floor.steps)

    def peak_share(self, timing: Timing) -> float:
        """The rate of the step's matrix products, as a share of the rate of a large one in the same round."""
        work = flops(self.workload)
        return statistics.median(work / (s * peak) for s, peak in zip(timing.steps, self.peaks, strict=True))


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of each round, since the machine's speed drifts from round to round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


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
        remotes[FLOOR] = Remote(FLOOR, FloorSession, workload, settings.threads, threads=settings.threads)
        for name in result.timings:
            remotes[name] = Remote(name, Session, name, workload, settings.threads, threads=settings.threads)
        _Run(result, remotes, settings, say).run()
        for remote in remotes.values():
            remote.close()
    finally:
        for remote in remotes.values():
            remote.kill()
    return result


class _Run:
    """The steps of a run, in which any contender may fail and is then left out."""

    def __init__(
        self, result: Result, remotes: dict[str, Remote], settings: Settings, say: Callable[[str], None]
    ) -> None:
        self.result, self.remotes, self.settings, self.say = result, remotes, settings, say

    def run(self) -> None:
        """Check, calibrate, take turns."""
        self._each("starting", lambda timing, remote: remote.receive())
        floor = self.remotes[FLOOR]
        if self.result.floor.error is None:
            self.say("reference")
            self.reference = floor.call("reference", AGREEMENT_STEPS)
        if not self.result.workload.predict:
            self._each("checking", self._check_losses)
        self._each("preparing", lambda timing, remote: remote.call("prepare"))
        if self.result.workload.predict:
            self._each("checking", self._check_predictions)
        self._each("calibrating", self._calibrate)
        for number in range(1, self.settings.rounds + 1):
            self._each(f"round {number} of {self.settings.rounds}:", self._turn)
        self._each("ending", self._memory)
        if self.result.floor.error is None:
            self.result.blas = floor.call("blas")

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

    def _check_losses(self, timing: Timing, remote: Remote) -> None:
        if timing is not self.result.floor:
            losses = np.array(remote.call("losses", AGREEMENT_STEPS))
            self._compare(timing, losses, self.reference, "losses of the first steps", LOSS_TOLERANCE)

    def _check_predictions(self, timing: Timing, remote: Remote) -> None:
        if timing is not self.result.floor:
            kind, outputs = remote.call("predictions")
            reference = _softmax(self.reference) if kind == "probabilities" else self.reference
            self._compare(timing, outputs, reference, "predictions", PREDICTION_TOLERANCE)

    @staticmethod
    def _compare(timing: Timing, found: np.ndarray, expected: np.ndarray, what: str, tolerance: float) -> None:
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
                f"its {what} differ from the plain NumPy network's by {timing.disagreement:.2g} (at most "
                f"{tolerance:g} is allowed): {found.flat[at]:.6g} in place of {expected.flat[at]:.6g}"
            )

    def _calibrate(self, timing: Timing, remote: Remote) -> None:
        time.sleep(self.settings.pause)
        timing.counts = calibrate(lambda count: float(remote.call("run", count)), self.settings.seconds)

    def _turn(self, timing: Timing, remote: Remote) -> None:
        time.sleep(self.settings.pause)
        seconds = slope(lambda count: float(remote.call("run", count)), timing.counts)
        timing.steps.append(seconds / len(steps_of(self.result.workload)))
        if timing is self.result.floor:
            self.result.peaks.append(remote.call("peak"))

    @staticmethod
    def _memory(timing: Timing, remote: Remote) -> None:
        timing.peak_mb, timing.increase_mb = remote.call("memory")


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
