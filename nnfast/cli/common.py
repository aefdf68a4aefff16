"""What the commands share: options, messages, the JSON line, tables."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "check_picture",
    "check_writable",
    "device_option",
    "echo",
    "emit_json",
    "output_options",
    "print_table",
    "say_error",
    "say_warning",
    "version",
]

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")

F = TypeVar("F", bound=Callable[..., Any])


def version() -> str:
    """The version of nnfast."""
    from .. import __version__

    return __version__


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and isinstance(ctx.obj, dict):
        ctx.obj["debug"] = True


def output_options(command: F) -> F:
    """Add ``--json`` and ``--debug``."""
    debug = click.option(
        "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
    return as_json(debug(command))


def device_option(command: F) -> F:
    """Add ``--device``."""
    return click.option(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, numpy, numba, cuda or cuda:N; without it, NNFAST_DEVICE or auto.",
    )(command)


def echo(text: str) -> None:
    """A line for the reader."""
    click.echo(text)


def say_error(text: str) -> None:
    """An error as one line on stderr."""
    click.echo(f"nnfast: error: {' '.join(text.split())}", err=True)


def say_warning(text: str) -> None:
    """A warning as one line on stderr."""
    click.echo(f"nnfast: warning: {' '.join(text.split())}", err=True)


def finite(value: Any) -> Any:
    """`value` for JSON: NumPy numbers become Python's, NaN and infinity ``null``."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_writable(path: Path) -> None:
    """Find out before the work whether a file could be written in the end.

    Raises
    ------
    OSError
        If its folder is missing, or it is a folder itself.
    """
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write {path}: the folder {path.parent} is not writable")


def check_picture(path: Path) -> None:
    """As :func:`check_writable`, for a picture that matplotlib is to draw.

    Raises
    ------
    ValueError
        If the ending is no picture's.
    ImportError
        If matplotlib is not installed.
    """
    import importlib.util

    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"--plot {path}: the ending must be one of {', '.join(PICTURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--plot needs matplotlib: pip install matplotlib")
    check_writable(path)


def emit_json(value: dict[str, Any]) -> None:
    """Print `value` as one line of valid JSON."""
    click.echo(json.dumps(finite(value), allow_nan=False))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """Print rows as an aligned table, as wide as the terminal or, in a file, as wide as it needs to be."""
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=header is not None, pad_edge=False)
    for i in range(len(header or rows[0])):
        table.add_column(header[i] if header else "", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 10_000)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())  # rich pads each line up to the width of the table
