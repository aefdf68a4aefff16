"""Every Python block of the README runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def _title(block: str) -> str:
    lines = [line for line in block.splitlines() if line and not line.startswith(("import", "from", " ", ")", "#"))]
    return re.sub(r"\W+", "-", lines[0])[:40]


@pytest.mark.parametrize("block", BLOCKS, ids=map(_title, BLOCKS))
def test_python_block(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("sklearn", "torch", "onnx"):
        if f"{package}." in block or f"{package} import" in block or f'.{package}"' in block:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 5


def test_commands_named_in_the_readme_exist() -> None:
    import click

    from nnfast.cli import cli

    named = set(re.findall(r"`nnfast ([a-z]+)", README)) | set(re.findall(r"&& nnfast ([a-z]+)", README))
    assert named
    assert named <= set(cli.list_commands(click.Context(cli)))


PATHS = sorted(set(re.findall(r"\b(?:bench|nnfast|kernels)/[\w/.-]+\.(?:py|png)\b", README)))


@pytest.mark.parametrize("path", PATHS)
def test_files_named_in_the_readme_exist(path: str) -> None:
    assert (ROOT / path).is_file()
