"""Running the command line, in this process and in a new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast
from nnfast.cli import main


def strict_json(line: str) -> dict[str, Any]:
    """Parse a line as JSON; NaN and infinity, which Python would let pass, are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(line, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


class Cli:
    """Calls ``nnfast`` in a folder of its own; NumPy unless the arguments name a device."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def raw(self, *args: object) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        self.capsys.readouterr()
        status = main([str(arg) for arg in args])
        out, err = self.capsys.readouterr()
        return status, out, err

    def __call__(self, command: str, *args: object) -> str:
        """Stdout of a call that succeeds."""
        device = () if "--device" in args else ("--device", "numpy")
        status, out, err = self.raw(command, *args, *device)
        assert status == 0, err
        return out

    def json(self, command: str, *args: object) -> dict[str, Any]:
        """The JSON line of a call that succeeds."""
        return strict_json(self(command, *args, "--json").splitlines()[-1])

    def error(self, *args: object) -> str:
        """The error of a call that fails as it should: one line, status 2, no traceback."""
        status, _, err = self.raw(*args)
        assert status == 2, err
        assert err.startswith("nnfast: error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err

    @staticmethod
    def new_process(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """``nnfast`` in a new interpreter."""
        return run([sys.executable, "-m", "nnfast", *map(str, args)], **environment)


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that finds the package where this process found it."""
    root = str(Path(nnfast.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNFAST_DEVICE", raising=False)
    return Cli(capsys)


@pytest.fixture
def customers(tmp_path) -> Path:
    """A table with numbers, text, truth values and holes, whose target follows from the others."""
    rng = np.random.default_rng(0)
    lines = ["age,town,member,spent,kind"]
    for i in range(300):
        age, town = rng.integers(18, 90), rng.choice(["Rome", "Oslo", "Lima"])
        member, spent = rng.random() < 0.5, rng.normal(100, 30)
        kind = "gold" if (town == "Rome") == bool(member) else "silver" if spent > 100 else "basic"
        cells = [str(age), str(town), str(bool(member)), f"{spent:.3f}", kind]
        if i % 29 == 0:
            cells[int(rng.integers(0, 4))] = ""
        lines.append(",".join(cells))
    path = tmp_path / "customers.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
