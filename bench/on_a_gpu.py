"""Everything that waits for a GPU, in one go and one file: the self-test, the tests, the timings.

    python -m nnfast.bench.on_a_gpu --json FILE

What is done is written after each part, so that a run that is cut off loses nothing. Parts that the time does not
suffice for are named as left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DeviceUnavailable
from ..files import replacing
from . import choice, header, report
from .measure import Settings, measure
from .timings import Result
from .workloads import PRESETS, Workload

__all__ = ["collect", "main"]

# The least time that a part is begun with: starting and checking the contenders of a workload takes most of it
_LEAST_SECONDS = 40.0
_SELFTEST_SECONDS, _TEST_SECONDS = 180.0, 150.0
_TAIL = 4000  # characters of an output that are kept


def _command(arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """How a command of Python's ended: its status (``None``: it took too long), its time, the end of its output."""
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )  # fmt: skip
        status: int | None = done.returncode
        output = done.stdout
    except subprocess.TimeoutExpired as error:
        status, output = None, (error.stdout or b"").decode(errors="replace")
    return {"status": status, "seconds": time.perf_counter() - began, "output": output[-_TAIL:]}


def collect(
    path: Path,
    *,
    minutes: float = 9.0,
    device: str = "cuda",
    tests: Sequence[str] = ("-m", "gpu", "tests"),
    workloads: Sequence[Workload] = (*PRESETS["gpu"], *PRESETS["gpu-tf32"], *PRESETS["gpu-bf16"]),
    peers: Sequence[str] | None = None,
    settings: Settings | None = None,
) -> bool:
    """Run all parts and write what they give to `path`; whether all of them went well.

    Parameters
    ----------
    path : Path
        JSON, in pytest-benchmark's format, with ``selftest``, ``tests`` and ``left_out`` beside the timings.
    minutes : float
        After which no new part begins, and a test that is running ends.
    device : str
        Of nnfast.
    tests : sequence of str
        What pytest is told.
    workloads : sequence of Workload
        What is timed.
    peers : sequence of str, optional
        By default those on the GPU that are here.
    settings : Settings, optional
        Of the timings.

    Raises
    ------
    DeviceUnavailable
        If the device cannot be used.
    """
    end = time.perf_counter() + 60 * minutes
    settings = settings or Settings(rounds=3, seconds=0.2, pause=0.1)
    names = choice.contenders([device], peers, print)
    info = header.machine_info(names, settings.threads)
    parts: dict[str, Any] = {"selftest": None, "tests": None, "left_out": []}
    results: list[Result] = []

    def left() -> float:
        return end - time.perf_counter()

    def write() -> None:
        found = report.as_json(results, info, header.commit_info(), settings) | parts
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder, "selftest.json")
        arguments = ["-m", "nnfast", "selftest", "--device", device, "--json", str(outcomes)]
        parts["selftest"] = _command(arguments, min(_SELFTEST_SECONDS, left()))
        if outcomes.exists():
            parts["selftest"] |= json.loads(outcomes.read_text(encoding="utf-8"))
    _say("self-test", parts["selftest"])
    write()
    parts["tests"] = _command(["-m", "pytest", "-q", "-x", *tests], max(1.0, min(_TEST_SECONDS, left())))
    _say("tests", parts["tests"])
    write()
    for workload in workloads:
        if left() < _LEAST_SECONDS:
            parts["left_out"].append(workload.name)
            continue
        result = measure(workload, names, settings)
        results.append(result)
        print(workload.describe())
        for row in report.table(result):
            print("  " + "  ".join(row))
        for line in (report.traffic_line(result), *result.errors):
            print(f"  {line}" if line else "", end="\n" if line else "")
        write()
    write()
    if parts["left_out"]:
        print(f"left out, for lack of time: {', '.join(parts['left_out'])}")
    good = all(parts[name]["status"] == 0 for name in ("selftest", "tests"))
    return good and not any(result.errors for result in results)


def _say(what: str, part: dict[str, Any]) -> None:
    ends = "took too long" if part["status"] is None else f"ended with {part['status']}"
    lines = part["output"].strip().splitlines() or [""]
    print(f"{what} {ends} after {part['seconds']:.0f} s: {lines[-1]}", flush=True)


def main(args: list[str] | None = None) -> int:
    """The command; the status is 0 where everything went well, 1 where something failed, 2 where it could not begin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="what to write")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing new begins; default: 9")
    options = parser.parse_args(args)
    try:
        return 0 if collect(options.json, minutes=options.minutes) else 1
    except (DeviceUnavailable, OSError) as error:
        print(f"nnfast: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
