"""The first gate: every instantiation of every kernel compiles for every architecture, without a warning."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest

from nnfast.kernels import step_state
from nnfast.kernels.cuda import FILES, expressions, source
from tests.cuda.host_shim import private_folder
from tests.cuda.nvrtc import ARCHITECTURES, compile_file, unavailable

# Files of many large kernels take NVRTC up to a quarter of a minute for each architecture: the oldest, the newest and
# one between see whether they compile
LARGE = {
    "attention", "attention_grad", "attention_tensor", "attention_tensor_grad", "conv", "depthwise", "gru", "gru_grad",
    "recurrent",
}  # fmt: skip
PAIRS = [(file, a) for file in FILES for a in ARCHITECTURES if file not in LARGE or a in ("75", "90", "120")]

# A few registers are saved around the calls that double-precision division and square root make on
# some architectures; arrays that fell out of the registers would be larger.
MOST_LOCAL_BYTES = 32


def compile_once(file: str, architecture: str, folder: str) -> dict:
    """Compile a file, or wait until another process that runs these tests has done so."""
    with Path(folder, f"{file}-sm{architecture}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return compile_file(file, architecture, folder)


@pytest.fixture(scope="module")
def compiled() -> Iterator[dict[tuple[str, str], Future]]:
    """All compilations, on all cores: NVRTC holds the interpreter's lock, so in processes."""
    if reason := unavailable():
        pytest.skip(reason)
    folder = str(private_folder())
    workers = min(8, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield {(file, arch): pool.submit(compile_once, file, arch, folder) for file, arch in PAIRS}


@pytest.mark.parametrize(("file", "architecture"), PAIRS)
def test_compiles(compiled: dict[tuple[str, str], Future], file: str, architecture: str) -> None:
    result = compiled[file, architecture].result(timeout=300)
    assert result["messages"].strip() == ""
    assert result["binary"] > 0
    assert set(result["kernels"]) <= set(result["local"])  # besides them, functions like pow
    assert len(set(result["kernels"])) == len(expressions(file))
    spilled = {name: local for name, local in result["local"].items() if max(local) > MOST_LOCAL_BYTES}
    assert not spilled, "[stack frame, spill stores] in bytes"


def test_every_file_is_listed() -> None:
    from nnfast.kernels.cuda import loader

    folder = loader._HERE
    assert {path.stem for path in folder.glob("*.cu")} == set(FILES)
    included = {name for file in FILES for name in loader._INCLUDE.findall((folder / f"{file}.cu").read_text())}
    headers = {path.name for path in folder.glob("*.cuh")}
    assert included <= headers
    assert all(f'"{header}"' in "".join(source(file) for file in FILES) for header in headers)


def test_sources_name_the_state_slots() -> None:
    text = source("step")
    assert f"#define STATE_ROW {step_state.ROW}\n" in text
    assert f"#define STATE_EMA_DECAY {step_state.EMA_DECAY}\n" in text
    assert "#include" not in text


def test_sources_use_no_floating_point_atomics() -> None:
    for file in FILES:
        assert "atomicAdd" not in source(file)


def test_import_needs_no_cupy() -> None:
    program = (
        "import sys; sys.modules['cupy'] = None; import nnfast.kernels.cuda as c, nnfast.backends.cupy_backend as b;"
        "assert 'numba' not in sys.modules and 'scipy' not in sys.modules; print(len(c.FILES), b.probe())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{len(FILES)} CuPy is not installed")
