"""The command line: ``nnfast train``, ``predict``, ``evaluate``, ``sample``, ``export``, ``info``,
``bench``, ``selftest``.

A command is one file in this folder that defines ``command``, and its name in ``COMMANDS``. The files
import what computes inside their functions, so that ``nnfast --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from .common import say_error, say_warning, version

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS = ("train", "predict", "evaluate", "sample", "export", "info", "bench", "selftest")

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Commands(click.Group):
    """Imports a command's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return import_module(f"{__name__}.{name}").command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version(), prog_name="nnfast", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def cli(settings: dict[str, Any] | None, debug: bool) -> None:
    """Train neural networks with NumPy, fused Numba kernels or CuPy.

    \b
    nnfast train fashion-mnist              train on real images
    nnfast train data.csv --target price    train on a table
    nnfast train book.txt --model charnn    train on a text, for 'nnfast sample'
    nnfast predict model.safetensors new.csv --out predictions.csv
    nnfast export model.safetensors model.onnx
    nnfast bench --preset small             time it against other libraries
    nnfast selftest --device cuda           check that a device computes right
    """
    if debug and settings is not None:
        settings["debug"] = True


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    args : sequence of str, optional
        The arguments; those of the process if not given.

    Returns
    -------
    int
        Exit status: 0, or 2 after an error that was told in one line, or 130 after Ctrl-C; ``bench`` and
        ``selftest`` give 1 where a contender or a check failed.
    """
    from ..errors import NNFastError

    settings: dict[str, Any] = {"debug": False}
    expected = (NNFastError, ValueError, TypeError, OSError, ImportError, MemoryError)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            # NumPy's "overflow encountered in matmul": a loss that is not finite has its own error
            warnings.filterwarnings("ignore", message=".* encountered in ", category=RuntimeWarning)
            result = cli.main(args, prog_name="nnfast", standalone_mode=False, obj=settings)
            sys.stdout.flush()
    except click.Abort:
        say_error("interrupted")
        return INTERRUPTED
    except KeyboardInterrupt:
        say_error("interrupted")
        return INTERRUPTED
    except click.ClickException as error:
        hint = f" (see '{error.ctx.command_path} --help')" if isinstance(error, click.UsageError) and error.ctx else ""
        say_error(error.format_message() + hint)
        return USAGE_ERROR
    except BrokenPipeError:
        # the reader of a pipe, such as `head`, has seen enough; nothing may be flushed into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except expected as error:
        if settings["debug"]:
            raise
        say_error(_describe(error))
        return USAGE_ERROR
    return result if isinstance(result, int) else 0


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    say_warning(str(message))
