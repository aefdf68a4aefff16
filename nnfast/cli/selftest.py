"""``nnfast selftest``: does this machine compute right?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import check_writable, echo, say_error, version

if TYPE_CHECKING:
    from ..selftest import Outcome

FAILED = 1


@click.command("selftest", short_help="Check that a device computes right.")
@click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="numpy, numba, cpu, cuda, cuda:N or auto."
)
@click.option("--json", "json_path", metavar="FILE", help="Write all outcomes.")
@click.option("--debug", is_flag=True, help="Show the tracebacks of checks that failed.")
@click.pass_obj
def command(settings: dict[str, Any] | None, device: str, json_path: str | None, debug: bool) -> int:
    """Check every operation, layer, loss and optimizer of a device against NumPy in float64.

    One line for each check; exit status 1 where one fails. It takes under three minutes.
    """
    from .. import devices, selftest

    if settings is not None:
        settings["debug"] = debug = debug or settings.get("debug", False)
    path = None if json_path is None else Path(json_path)
    if path is not None:
        check_writable(path)
    backend = devices.get_backend(device)

    def report(outcome: Outcome) -> None:
        if outcome.error is None:
            echo(f"ok      {outcome.name} ({outcome.seconds:.2f} s)")
        else:
            echo(f"FAILED  {outcome.name}: {outcome.error[:300]}")
            if debug:
                echo(outcome.details)

    outcomes = selftest.run(backend, report)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if path is not None:
        found = {"nnfast": version(), "device": backend.device, "checks": [asdict(outcome) for outcome in outcomes]}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    seconds = sum(outcome.seconds for outcome in outcomes)
    if failed:
        say_error(f"{len(failed)} of {len(outcomes)} checks of {backend.device} failed")
        return FAILED
    echo(f"{len(outcomes)} checks of {backend.device} passed in {seconds:.0f} s")
    return 0
