"""Device strings, and machines on which Numba or CuPy is missing or broken."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import nnfast as nf
from nnfast import devices

BLOCK = """
    import sys
    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {blocked}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    sys.meta_path.insert(0, Block())
"""


def _python(script: str, *, folder: Path | None = None, blocked: tuple[str, ...] = (), **environment: str) -> str:
    """Run a program in a new process, which finds packages in `folder` first; its output."""
    found = [str(folder)] if folder else []
    environment["PYTHONPATH"] = os.pathsep.join([*found, *filter(None, sys.path)])
    kept = {k: v for k, v in os.environ.items() if k != "NNFAST_DEVICE"}
    program = textwrap.dedent(BLOCK.format(blocked=blocked)) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program],
        env={**kept, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


TRAIN = """
    import warnings
    import nnfast as nf
    def train(device):
        model = nf.Sequential([nf.Dense(2)])
        model.fit([[0.0, 1.0], [1.0, 0.0]], [0, 1], loss="cross_entropy", device=device, verbose=0)
        return model.device
"""


def test_without_numba_and_cupy() -> None:
    script = (
        TRAIN
        + """
    available = nf.available_devices()
    assert available["numpy"] is None
    assert "No module named 'numba'" in available["numba"], available
    assert "cupy" in available["cuda"].lower(), available
    assert train("numpy") == "numpy"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [train(device) for device in ("cpu", "cpu", "auto", "cpu")] == ["numpy"] * 4
    assert len(caught) == 1, [str(w.message) for w in caught]
    assert caught[0].category is RuntimeWarning and "No module named 'numba'" in str(caught[0].message)
    for device in ("numba", "cuda", "cuda:1"):
        try:
            train(device)
        except nf.DeviceUnavailable as error:
            print(error)
    """
    )
    lines = _python(script, blocked=("numba", "llvmlite", "cupy", "cupy_backends", "cupyx")).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("device 'numba' cannot be used: ")
    assert "numba" in lines[0].partition(": ")[2]
    assert lines[1].startswith("device 'cuda:0' cannot be used: ")
    assert lines[2].startswith("device 'cuda:1' cannot be used: ")
    assert "cupy" in lines[1].partition(": ")[2].lower()


BROKEN = {
    "a library is missing": "raise OSError('libfoo.so.1: cannot open shared object file')",
    "wrong version": "raise ImportError('libfoo.so.1 needs NumPy 1.x')",
    "an odd error": "raise SystemError('libfoo.so.1 is odd')",
    "an empty package": "",
}


@pytest.mark.parametrize("package", ["numba", "cupy"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_package_that_is_broken(package: str, how: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(BROKEN[how])
    device = "numba" if package == "numba" else "cuda"
    script = (
        TRAIN
        + f"""
    reason = nf.available_devices()[{device!r}]
    print(reason)
    try:
        train({device!r})
    except nf.DeviceUnavailable as error:
        assert reason in str(error), error
    else:
        raise AssertionError("no error")
    print(train("numpy"))
    """
    )
    reason, trained = _python(script, folder=tmp_path).splitlines()
    assert trained == "numpy"
    assert ("libfoo.so.1" in reason) if BROKEN[how] else (package in reason.lower())


def test_cuda_without_a_gpu() -> None:
    reason = nf.available_devices().get("cuda")
    if reason is None:
        pytest.skip("there is a GPU")
    with pytest.raises(nf.DeviceUnavailable) as caught:
        nf.get_backend("cuda")
    assert reason in str(caught.value)
    assert isinstance(caught.value, RuntimeError)


# ---- device strings ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("device", "expected"),
    [("numpy", "numpy"), (" NumPy ", "numpy"), ("numba", "numba"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3")],
)
def test_names(device: str, expected: str) -> None:
    assert devices.resolve(device) == expected


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "numpy,numba"])
def test_unknown_names(device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' is not known; known are 'auto'"):
        devices.resolve(device)


def test_other_types() -> None:
    for device in (0, b"numpy", ["numpy"]):
        with pytest.raises(TypeError, match="must be a string"):
            devices.resolve(device)  # type: ignore[arg-type]


def test_one_backend_per_device() -> None:
    backend = nf.get_backend("numpy")
    assert nf.get_backend("numpy") is backend
    assert nf.get_backend(backend) is backend
    composed = nf.get_backend("numpy", fused=False)
    assert (backend.fused, composed.fused) == (True, False)


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument, then NNFAST_DEVICE, then "auto"."""
    everywhere = devices.resolve("auto")
    monkeypatch.setenv("NNFAST_DEVICE", "numpy")
    assert devices.resolve("numba") == "numba"
    assert devices.resolve("auto") == devices.resolve() == devices.resolve("") == "numpy"
    monkeypatch.setenv("NNFAST_DEVICE", " CUDA:2 ")
    assert devices.resolve("auto") == "cuda:2"
    assert devices.resolve("numpy") == "numpy"
    for unset in ("auto", "", "  "):
        monkeypatch.setenv("NNFAST_DEVICE", unset)
        assert devices.resolve("auto") == everywhere
    monkeypatch.setenv("NNFAST_DEVICE", "tpu")
    with pytest.raises(ValueError, match="NNFAST_DEVICE 'tpu' is not known"):
        devices.resolve("auto")
    assert devices.resolve("cpu") in ("numba", "numpy")


def test_the_variable_says_where_models_train_and_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNFAST_DEVICE", "numpy")
    model = nf.Sequential([nf.Dense(2)])
    model.fit([[0.0], [1.0]], [0, 1], loss="cross_entropy", verbose=0)
    assert model.device == "numpy"
    built = nf.Sequential([nf.Dense(2)]).build(1)
    built.predict([[0.0]])
    assert built.device == "numpy"
    if nf.available_devices()["numba"] is None:
        model.fit([[0.0], [1.0]], [0, 1], device="numba", verbose=0)
        monkeypatch.setenv("NNFAST_DEVICE", "cuda:7")
        model.predict([[0.0]])  # a model stays where it was trained
        assert model.device == "numba"
        model.predict([[0.0]], device="numpy")
        assert model.device == "numpy"


def test_auto_says_once_which(tmp_path: Path) -> None:
    script = """
    import logging
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
    import nnfast as nf
    for _ in range(3):
        nf.get_backend("auto")
    """
    (line,) = [line for line in _python(script).splitlines() if line.startswith("nnfast ")]
    assert "device 'auto' is '" in line
