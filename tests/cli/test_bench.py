"""``nnfast bench``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnfast.bench import measure as measure_module
from nnfast.bench.contenders import PEERS
from tests.bench.helpers import FaultySession

FAST = ("--rounds", 1, "--seconds", 1e-4, "--threads", 1)


def test_a_run(cli, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    status, out, err = cli.raw(
        "bench", "--workload", "xor", "--devices", "numpy", "--peers", "numpy", *FAST,
        "--json", "run.json", "--plot", "run.png",
    )  # fmt: skip
    assert status == 0, err
    assert "xor, 2-4-1, sigmoid, binary_cross_entropy, adam, batches of 4, float32" in out
    for text in ("nnfast-numpy", "GEMM floor", "x best peer", "peak MB", "openblas", "core type", "load"):
        assert text in out
    assert "OPENBLAS_CORETYPE=Haswell" in err
    found = json.loads((tmp_path / "run.json").read_text())
    assert [bench["param"] for bench in found["benchmarks"]] == ["xor-nnfast-numpy", "xor-numpy", "xor-GEMM floor"]
    assert found["machine_info"]["blas"][0]["threads"] == 1
    assert (tmp_path / "run.png").exists()


def test_another_dtype(cli, tmp_path):
    args = ("--workload", "tiny", "--devices", "numpy", "--peers", "none", *FAST, "--json", "run.json")
    status, out, err = cli.raw("bench", *args, "--dtype", "float64")
    assert status == 0, err
    assert "tiny-float64, 10-10-10-10-1" in out
    found = json.loads((tmp_path / "run.json").read_text())["benchmarks"][0]["extra_info"]
    assert found["workload"]["dtype"] == "float64"
    assert found["best_peer"] is None


def test_sweep(cli, monkeypatch):
    monkeypatch.setattr("nnfast.bench.sweep.sweep_of.__defaults__", ((1, 8),))
    args = ("--workload", "small", "--devices", "numpy", "--peers", "none", *FAST)
    status, out, err = cli.raw("bench", "--sweep", *args)
    assert status == 0, err
    assert "small-batch-1," in out
    assert "small-batch-8," in out


def test_failures_are_told_and_the_others_go_on(cli, monkeypatch):
    monkeypatch.setattr(measure_module, "Session", FaultySession)
    args = ("--workload", "tiny", "--devices", "numpy,numba", "--peers", "numpy", *FAST)
    status, out, err = cli.raw("bench", *args)
    assert status == 1
    assert "nnfast-numba" in out
    assert "nnfast: error: numpy: the process died with exit code 9\n" in err
    assert "nnfast: error: nnfast-numpy: its losses of the first steps differ" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to measure: name a preset (small, large-batch"),
        (["--preset", "huge"], "preset 'huge' is not known; known are small, large-batch, inference, all, off-table"),
        (["--workload", "cifar"], "workload 'cifar' is not known; known are xor, tiny"),
        (["--workload", "xor", "--peers", "theano"], "peer 'theano' is not known; known are numpy, scikit-learn"),
        (["--workload", "xor", "--devices", "tpu"], "device 'tpu' is not known; known are numba, numpy, cuda"),
        (["--workload", "xor", "--devices", "none", "--peers", "none"], "leave no contender"),
        (["--workload", "xor", "--threads", "4096"], "--threads 4096: this process may run on"),
        (["--workload", "xor", "--rounds", "0"], "'--rounds'"),
        (["--workload", "xor", "--seconds", "0"], "'--seconds'"),
        (["--workload", "xor", "--json", "no/run.json"], "the folder no does not exist"),
        (["--workload", "xor", "--plot", "run.txt"], "--plot run.txt: the ending must be one of"),
        (["--preset", "small", "--sweep", "--plot", "a.png"], "--sweep with --plot draws one network"),
    ],
)
def test_errors(cli, args, message):
    assert message in cli.error("bench", *args)


def test_a_peer_that_is_not_installed(cli, monkeypatch):
    for name in PEERS:
        entry = type(
            "Absent",
            (),
            {"missing": lambda self: "it is not installed: pip install it", "name": name, "gpu": PEERS[name].gpu},
        )()
        if name != "numpy":
            monkeypatch.setitem(PEERS, name, entry)
    assert "peer 'jax' cannot be used: it is not installed" in cli.error("bench", "--workload", "xor", "--peers", "jax")
    status, out, err = cli.raw("bench", "--workload", "xor", "--devices", "none", *FAST)
    assert status == 0, err
    assert "without peer torch: it is not installed: pip install it" in out


def test_heavy_libraries_are_not_loaded_here():
    code = (
        "import sys\nfrom nnfast.cli import main\n"
        "if __name__ == '__main__':\n"
        "    args = '--workload xor --devices numpy --peers numpy --rounds 1 --seconds 1e-4 --threads 1'\n"
        "    status = main(['bench', *args.split()])\n"
        "    found = {'torch', 'jax', 'sklearn', 'onnxruntime'} & set(sys.modules)\n"
        "    sys.exit(f'loaded {found}' if found else status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _alive(group: int) -> list[str]:
    """Processes of a group that have not ended; one that nobody has waited for yet has."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just gone
        if int(of) == group and state != "Z":
            found.append(path.parent.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look for processes in")
def test_ctrl_c():
    """The command ends with 130 and a line; nothing that it started is left."""
    args = ["--workload", "mnist", "--devices", "numpy", "--peers", "numpy", "--rounds", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nnfast", "bench", *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # Tests that run in the background of a shell ignore it, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("load"):
                break
        deadline = time.monotonic() + 120
        while len(_alive(process.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)  # until the command, two contenders and the floor are there
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        assert "nnfast: error: interrupted" in err
        deadline = time.monotonic() + 60
        while (left := _alive(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
