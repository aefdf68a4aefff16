"""What came out of a run: times of each contender, and the figures that are made of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from .contenders import PEERS
from .floor import flops, steps_of, traffic
from .workloads import Workload

__all__ = ["FLOOR", "Result", "Timing"]

FLOOR = "GEMM floor"


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
    bandwidths : list of float
        Bytes per second of a copy, in each round; 0 on a CPU.
    blas : list of dict
        The BLAS libraries of the floor's process.
    unable : dict
        Contenders that cannot express the workload, with the reason.
    other_load : float or None
        Cores that other programs kept busy while the turns went on, on average; ``None`` where it is not known.
    """

    workload: Workload
    timings: dict[str, Timing]
    floor: Timing
    peaks: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    blas: list[dict[str, object]] = field(default_factory=list)
    unable: dict[str, str] = field(default_factory=dict)
    other_load: float | None = None

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

    def traffic_share(self, timing: Timing) -> float | None:
        """The rate of the least traffic of a step, as a share of that of a copy in the same round; on a GPU."""
        if not self.bandwidths or not all(self.bandwidths):
            return None
        steps = steps_of(self.workload)
        moved = sum(traffic(self.workload, rows) for rows in steps) / len(steps)
        return statistics.median(moved / (s * rate) for s, rate in zip(timing.steps, self.bandwidths, strict=True))


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of each round, since the machine's speed drifts from round to round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
