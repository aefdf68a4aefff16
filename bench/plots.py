"""Pictures of results: the speed of each contender by workload, and throughput against batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..plotting.style import COLOURS, GREY, MARKERS, PathArgument, finish, grid_of_axes, new_figure, tidy
from .contenders import DEVICES, ENTRIES, PEERS
from .report import duration
from .timings import Result

__all__ = ["bars", "throughput"]

_COLOUR_OF = dict(zip((name for name in ENTRIES), COLOURS, strict=False))
_BAR = 0.34  # inches


def _colour(name: str) -> str:
    return _COLOUR_OF.get(name, GREY)


def bars(results: Sequence[Result], path: PathArgument = None) -> Any:
    """Draw a panel for each workload: the speed of each contender, relative to the best peer.

    Parameters
    ----------
    results : sequence of Result
        Those without a contender that came to the end are left out.
    path : str or Path, optional
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    results = [result for result in results if result.timed]
    if not results:
        raise ValueError("there is nothing to draw: no contender came to the end")
    most = max(len(result.timed) for result in results)
    figure, axes = grid_of_axes(len(results), 5.6, 1.1 + _BAR * most, 2 if len(results) == 4 else 3)
    for ax, result in zip(axes, results, strict=True):
        _bars_of(ax, result)
    return finish(figure, path)


def _bars_of(ax: Any, result: Result) -> None:
    best = result.best_peer or min(result.timed, key=lambda timing: timing.median)
    timings = sorted(result.timed, key=lambda timing: result.speedup(timing, best))
    speeds = [result.speedup(timing, best) for timing in timings]
    colours = [GREY if timing.name in PEERS else COLOURS[0] for timing in timings]
    ax.barh([timing.name for timing in timings], speeds, color=colours, height=0.7, zorder=2)
    ax.axvline(1, color="black", linewidth=0.8, linestyle="--", zorder=1)
    longest = max(speeds)
    for i, (timing, speed) in enumerate(zip(timings, speeds, strict=True)):
        ax.annotate(
            duration(timing.median), (speed, i), (3, 0), textcoords="offset points", va="center", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    ax.set_xlim(0, 1.25 * longest)
    work = result.workload
    what = "predictions" if work.predict else f"batches of {work.batch:,}"
    title = f"{work.name}: {work.layout}" if work.network is None else work.name  # a network's layout is a long line
    ax.set_title(f"{title}, {what}", fontsize=10)
    ax.set_xlabel(f"speed, relative to {best.name}")
    tidy(ax)
    ax.grid(False, axis="y")


def crossing_of(slow: Sequence[tuple[int, float]], fast: Sequence[tuple[int, float]]) -> float | None:
    """The batch size from which on `fast` stays ahead of `slow`; both are pairs of a batch size and rows per second.

    Between two batch sizes both are straight lines on logarithmic axes. ``None`` where one is ahead throughout.
    """
    at = dict(slow)
    gaps = [(math.log(size), math.log(rate / at[size])) for size, rate in sorted(fast) if size in at]
    for (x0, y0), (x1, y1) in reversed(list(pairwise(gaps))):
        if y1 <= 0:
            return None
        if y0 <= 0:
            return math.exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return None


def throughput(results: Sequence[Result], path: PathArgument = None) -> Any:
    """Draw rows per second against batch size, a line for each contender and one for the floor.

    Parameters
    ----------
    results : sequence of Result
        Of one network at several batch sizes.
    path : str or Path, optional
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        size = result.workload.predict or result.workload.batch
        timings = [*result.timed, *([result.floor] if result.floor.error is None else [])]
        for timing in timings:
            lines.setdefault(timing.name, []).append((size, result.samples_per_second(timing)))
    if not any(name in ENTRIES for name in lines):
        raise ValueError("there is nothing to draw: no contender came to the end")
    figure = new_figure(7.0, 4.8)
    ax = figure.subplots()
    for i, (name, points) in enumerate(lines.items()):
        own = name in ENTRIES
        ours = own and name not in PEERS
        ax.loglog(
            *zip(*sorted(points), strict=True),
            color=_colour(name) if own else GREY,
            linestyle="-" if ours else "--" if own else ":",
            marker=MARKERS[i % len(MARKERS)] if own else None,
            markersize=4,
            linewidth=2.0 if ours else 1.3,
            label=name,
        )
    cuda, cpu = (lines.get(DEVICES[device].name, []) for device in ("cuda", "numba"))
    if (crossing := crossing_of(cpu, cuda)) is not None:
        ax.axvline(crossing, color=GREY, linewidth=1.0, zorder=1)
        ax.annotate(
            f"the GPU is faster from {crossing:,.0f} rows on", (crossing, 0.03), (4, 0), rotation=90, fontsize=8,
            xycoords=("data", "axes fraction"), textcoords="offset points",
        )  # fmt: skip
    work = results[0].workload
    title = f"{work.layout}, {work.activation}" if work.network is None else work.name.partition("-batch-")[0]
    ax.set_title(f"{title}, {work.dtype}", fontsize=11)
    ax.set_xlabel("rows of a prediction" if work.predict else "batch size")
    ax.set_ylabel("rows per second")
    ax.set_xscale("log", base=4)
    ax.set_xticks(sorted({size for points in lines.values() for size, _ in points}))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.minorticks_off()
    tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    return finish(figure, path)
