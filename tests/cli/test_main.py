"""The command line as a whole: help, version, errors, cost of starting."""

from __future__ import annotations

import sys

import click
import pytest

import nnfast
from nnfast import cli as cli_module
from nnfast.cli import COMMANDS, common

from .conftest import run


def test_help_names_every_command(cli):
    status, out, _ = cli.raw("--help")
    assert status == 0
    for name in COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(cli, command):
    status, out, _ = cli.raw(command, "--help")
    assert status == 0
    assert f"Usage: nnfast {command}" in out
    assert "--json" in out
    assert "--debug" in out


def test_version(cli):
    status, out, _ = cli.raw("--version")
    assert (status, out) == (0, f"nnfast {nnfast.__version__}\n")


def test_python_m(cli):
    done = cli.new_process("--version")
    assert (done.returncode, done.stdout) == (0, f"nnfast {nnfast.__version__}\n")


def test_help_imports_nothing_heavy(cli):
    heavy = "numpy numba cupy scipy sklearn pandas pyarrow matplotlib rich"
    code = (
        "import sys\nfrom nnfast.cli import main\nstatus = main(['train', '--help'])\n"
        f"found = [name for name in {heavy.split()!r} if name in sys.modules]\n"
        "assert not found, found\nsys.exit(status)"
    )
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["train"], "Missing argument 'DATA'"),
        (["train", "xor", "--epochs", "0"], "'--epochs'"),
        (["train", "xor", "--epochs", "many"], "'many'"),
        (["train", "xor", "--wings"], "--wings"),
        (["predict", "m.safetensors"], "Missing argument 'DATA'"),
    ],
)
def test_usage_errors(cli, args, message):
    assert message in cli.error(*args)


@pytest.mark.parametrize("place", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_the_traceback(cli, place):
    with pytest.raises(nnfast.DataError, match="neither a file"):
        cli.raw(*place, "nothing.csv")


def test_debug_in_a_new_process(cli):
    done = cli.new_process("train", "nothing.csv", "--debug", NNFAST_DEVICE="numpy")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    done = cli.new_process("train", "nothing.csv", NNFAST_DEVICE="numpy")
    assert done.returncode == 2
    assert done.stderr.startswith("nnfast: error: 'nothing.csv' is neither a file")
    assert "Traceback" not in done.stderr


class TestFailures:
    """What a command may raise, and what becomes of it."""

    @pytest.fixture
    def failing(self, monkeypatch):
        def make(error: BaseException) -> None:
            @click.command("train")
            def command() -> None:
                raise error

            monkeypatch.setattr(cli_module._Commands, "get_command", lambda self, ctx, name: command)

        return make

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (nnfast.DeviceUnavailable("no driver"), "no driver"),
            (ValueError("a\nb   c"), "a b c"),
            (TypeError("x"), "x"),
            (MemoryError(), "MemoryError"),
            (ImportError("pip install it"), "pip install it"),
            (FileNotFoundError(2, "No such file or directory", "f.csv"), "f.csv: No such file or directory"),
            (click.ClickException("c"), "c"),
        ],
    )
    def test_one_line(self, cli, failing, error, line):
        failing(error)
        assert cli.error("train") == f"nnfast: error: {line}\n"

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
    def test_interrupted(self, cli, failing, error):
        failing(error)
        status, _, err = cli.raw("train")
        assert status == 130
        assert "interrupted" in err

    def test_a_fault_of_the_program_is_not_hidden(self, cli, failing):
        failing(AttributeError("bug"))
        with pytest.raises(AttributeError, match="bug"):
            cli.raw("train")


def test_warnings_are_one_line(cli, monkeypatch):
    import warnings

    @click.command("train")
    def command() -> None:
        warnings.warn("slow\nhere", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr(cli_module._Commands, "get_command", lambda self, ctx, name: command)
    assert cli.raw("train") == (0, "", "nnfast: warning: slow here\n")


def test_reader_of_the_pipe_has_gone(cli):
    code = f"{sys.executable!r} -m nnfast predict --help | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = run(["bash", "-c", code])
    assert done.stderr == ""
    assert done.stdout.endswith("0\n")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (1.5, 1.5),
        ({"a": [float("inf"), (1, "x")]}, {"a": [None, [1, "x"]]}),
    ],
)
def test_finite(value, expected):
    assert common.finite(value) == expected


def test_finite_takes_numpy():
    import numpy as np

    assert common.finite({"a": np.array([1.0, np.nan]), "b": np.int64(3), 4: np.array(["x"])}) == {
        "a": [1.0, None],
        "b": 3,
        "4": ["x"],
    }
