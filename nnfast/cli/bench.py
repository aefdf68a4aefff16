"""``nnfast bench``: timings of nnfast's devices and of other libraries, in one run and in turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import check_picture, check_writable, echo, finite, print_table, say_error, say_warning

if TYPE_CHECKING:
    from ..bench.measure import Settings
    from ..bench.timings import Result
    from ..bench.workloads import Workload

FAILED = 1


@click.command("bench", short_help="Time training and inference against other libraries.")
@click.option(
    "--preset",
    metavar="NAME",
    help="small, large-batch, inference, all (of these), layers, off-table, gpu, gpu-tf32 or gpu-bf16.",
)
@click.option("--workload", "names", metavar="NAME", multiple=True, help="One workload; may be given several times.")
@click.option("--sweep", is_flag=True, help="Time the workloads (by default mnist) at batch sizes from 1 to 65,536.")
@click.option("--devices", metavar="NAME,...", help="numba, numpy, cuda, or none; default: all that are here.")
@click.option(
    "--peers", metavar="NAME,...",
    help="numpy, scikit-learn, torch, torch-channels-last, torch-compile, jax, onnxruntime; torch-cuda, "
    "torch-cuda-compile, torch-cuda-max-autotune, torch-cuda-graph, jax-cuda; or none. Default: all that are here, "
    "with --devices cuda those on the GPU, else those on the CPU.",
)  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float64"]), help="In place of the workloads' own.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each contender.")
@click.option("--threads", type=click.IntRange(1), help="Of each contender; default: as many as there are cores.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=0.3, show_default=True, help="Length of a turn."
)
@click.option("--json", "json_path", metavar="FILE", help="Write everything, as pytest-benchmark compare reads it.")
@click.option("--plot", "plot_path", metavar="FILE", help="Draw the results.")
@click.option("--debug", is_flag=True, help="Show the tracebacks of contenders that failed.")
@click.pass_obj
def command(settings: dict[str, Any] | None, debug: bool, **options: Any) -> int:
    """Time whole training steps, or predictions, of nnfast and of other libraries.

    Each contender has a process of its own with the same number of threads, is checked to compute the same, and
    takes turns with the others. Give a preset or workloads.
    """
    if debug and settings is not None:
        settings["debug"] = True
    return run(debug=debug or bool(settings and settings.get("debug")), **options)


def run(
    *,
    preset: str | None,
    names: tuple[str, ...],
    sweep: bool,
    devices: str | None,
    peers: str | None,
    dtype: str | None,
    rounds: int,
    threads: int | None,
    seconds: float,
    json_path: str | None,
    plot_path: str | None,
    debug: bool,
) -> int:
    """Measure as the options say; returns the exit status."""
    from .. import machine
    from ..bench import choice, header, measure, plots, report
    from ..bench.sweep import sweep_of

    cores = machine.usable_cores()
    if threads is not None and threads > cores:
        raise ValueError(f"--threads {threads}: this process may run on {cores} cores")
    settings = measure.Settings(rounds=rounds, seconds=seconds, threads=threads or cores)
    if sweep and not preset and not names:
        names = ("mnist",)
    work = choice.workloads(preset, names, dtype)
    if sweep and plot_path and len(work) > 1:
        raise ValueError("--sweep with --plot draws one network; name one workload")
    if sweep:
        work = [size for workload in work for size in sweep_of(workload)]
    if json_path:
        check_writable(Path(json_path))
    if plot_path:
        check_picture(Path(plot_path))
    chosen = choice.contenders(_listed(devices), _listed(peers), echo)
    info = header.machine_info(chosen, settings.threads)
    _show_header(info)
    for warning in header.warnings_of(info):
        say_warning(warning)
    results: list[Result] = []
    for workload in work:
        result = _measure(workload, chosen, settings)
        if result.blas and not any(earlier.blas for earlier in results):
            _show_blas(result.blas)
        _show(result, report, debug)
        results.append(result)
    if json_path:
        value = report.as_json(results, info, header.commit_info(), settings)
        _write(Path(json_path), value)
    if plot_path:
        draw = plots.throughput if sweep else plots.bars
        draw(results, plot_path)
        echo(f"wrote {plot_path}")
    return FAILED if any(result.errors for result in results) else 0


def _measure(workload: Workload, chosen: list[str], settings: Settings) -> Result:
    from rich.console import Console

    from ..bench.measure import measure

    console = Console(stderr=True)
    with console.status(workload.name) as status:
        return measure(workload, chosen, settings, lambda text: status.update(f"{workload.name}: {text}"))


def _listed(text: str | None) -> list[str] | None:
    """The names of an option with commas; none is nothing."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [] if names == ["none"] else names


def _show_header(info: dict[str, Any]) -> None:
    cpu = info["cpu"]
    load = info["load_average"]
    print_table(
        [
            ["CPU", f"{cpu['brand_raw']}, {cpu['usable']} of {cpu['count']} cores, {info['threads']} threads each"],
            ["features", " ".join(cpu["flags"])],
            *([["GPU", ", ".join(info["gpu"].values())]] if info.get("gpu") else []),
            ["versions", ", ".join(f"{name} {found}" for name, found in info["versions"].items())],
            ["Python", f"{info['python_version']}, {info['system']} {info['release']}"],
            ["load", ", ".join(f"{value:.2f}" for value in load) if load else "not known"],
            *([name, value] for name, value in info["environment"].items()),
        ]
    )


def _show_blas(libraries: list[dict[str, Any]]) -> None:
    """As the processes of NumPy's contenders loaded them."""
    print_table([["BLAS", f"{b['library']} {b['version']}, core type {b['core']}, {b['threads']} threads, "
                  f"{Path(str(b['path'])).name}"] for b in libraries])  # fmt: skip


def _show(result: Result, report: Any, debug: bool) -> None:
    echo("")
    echo(result.workload.describe())
    for why in result.unable.values():
        echo(f"left out: {why}")
    if result.other_load is not None and result.other_load > 0.1:
        say_warning(f"other programs kept {result.other_load:.1f} cores busy meanwhile")
    if result.timed:
        print_table(report.table(result), report.HEADER)
        if (line := report.traffic_line(result)) is not None:
            echo(line)
    for timing in (result.floor, *result.timings.values()):
        if timing.error is not None:
            say_error(timing.error)
            if debug and timing.details:
                click.echo(timing.details, err=True)
    sys.stdout.flush()


def _write(path: Path, value: dict[str, Any]) -> None:
    from ..files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(finite(value), allow_nan=False, indent=1) + "\n")
    echo(f"wrote {path}")
