"""What is built: kernels and bench as nnfast's own, no top-level package but nnfast, and all that it needs."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _installed(*names: str) -> bool:
    """Whether all of these are installed; a folder called ``build`` beside us, which pip leaves, is not."""
    try:
        return all(importlib.metadata.version(name) for name in names)
    except importlib.metadata.PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not in a checkout"),
    pytest.mark.skipif(not _installed("build", "setuptools"), reason="build or setuptools is not installed"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and a wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    # In a copy, since building leaves folders behind
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("nnfast", "kernels", "tests", "bench"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


def _wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def _expected() -> set[str]:
    """Every source file, by its place in the package."""
    package = {path.relative_to(ROOT) for path in (ROOT / "nnfast").rglob("*.py")}
    kernels = {path.relative_to(ROOT) for kind in ("*.py", "*.cu", "*.cuh") for path in (ROOT / "kernels").rglob(kind)}
    bench = {path.relative_to(ROOT) for where in ("bench", "bench/contenders") for path in (ROOT / where).glob("*.py")}
    # Two folders are links to those beside the package
    names = {path.as_posix() for path in package if path.parts[1] not in ("kernels", "bench")}
    return names | {f"nnfast/{path.as_posix()}" for path in kernels | bench}


def test_the_wheel_has_everything_in_its_place(built: Path) -> None:
    with zipfile.ZipFile(_wheel(built)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    assert len(names) == len(set(names))
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"nnfast"}, "tests, bench or kernels leaked"
    inside = {name for name in names if name.startswith("nnfast/")}
    assert inside == _expected() | {"nnfast/py.typed"}
    assert any(name.endswith(".cu") for name in inside)
    assert any(name.endswith(".cuh") for name in inside)


def test_the_sdist_has_the_sources(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert {"pyproject.toml", "README.md", "LICENSE", "nnfast/__init__.py", "nnfast/py.typed"} <= names
    assert {
        name.removeprefix("nnfast/") for name in _expected() if name.startswith(("nnfast/kernels/", "nnfast/bench/"))
    } <= names


def test_the_metadata(built: Path) -> None:
    with zipfile.ZipFile(_wheel(built)) as archive:
        (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{folder}/METADATA").decode()
        assert "nnfast = nnfast.cli:main" in archive.read(f"{folder}/entry_points.txt").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    lines = metadata.splitlines()
    assert "Name: nnfast" in lines
    assert "Requires-Python: >=3.11" in lines
    assert "License-Expression: MIT" in lines
    required = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    for needed in ("numpy>=2", "numba", "safetensors"):
        assert any(line.startswith(f"Requires-Dist: {needed}") for line in required)
    assert not any("scipy" in line or "threadpoolctl" in line for line in required), "only BLAS by pointer needs them"
    extra = [line for line in lines if line.endswith(("extra == 'blas'", 'extra == "blas"'))]
    assert [line.split()[1].partition(">")[0] for line in extra] == ["scipy", "threadpoolctl"]
    assert not any("cupy" in line or "torch" in line for line in required), "what needs a GPU is optional"


def test_the_wheel_works_where_it_is_unpacked(built: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    with zipfile.ZipFile(_wheel(built)) as archive:
        archive.extractall(place)
    script = """
        import importlib.metadata, importlib.util, pathlib, sys
        import nnfast as nf
        import nnfast.kernels.step_state
        from nnfast.kernels import cuda
        place = pathlib.Path(sys.argv[1])
        for module in (nf, nnfast.kernels, cuda):
            assert pathlib.Path(module.__file__).is_relative_to(place), module.__file__
        assert any(pathlib.Path(cuda.__file__).parent.glob("*.cu"))
        spec = importlib.util.find_spec("kernels")
        assert spec is None or not str(spec.origin).startswith(str(place))
        assert importlib.metadata.version("nnfast") == nf.__version__
        model = nf.Sequential([nf.Dense(4, "tanh"), nf.Dense(2)])
        model.fit([[0.0], [1.0]], [0, 1], loss="cross_entropy", epochs=2, device="numpy", verbose=0)
        model.save("model.safetensors")
        from nnfast.bench import contenders, workloads
        assert pathlib.Path(contenders.__file__).is_relative_to(place)
        assert workloads.find("xor").steps == 1
        print(nf.load("model.safetensors").predict([[0.5]], device="numpy").shape)
    """
    # Not the checkout, but where the packages that it needs are
    others = [path for path in sys.path if path and Path(path).resolve() != ROOT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), *others])}
    for command, expected in [
        (["-c", textwrap.dedent(script), str(place)], "(1, 2)"),
        (["-m", "nnfast", "--version"], "0."),
        (
            [
                "-m",
                "nnfast",
                "bench",
                "--workload",
                "xor",
                "--devices",
                "numpy",
                "--peers",
                "numpy",
                "--rounds",
                "1",
                "--seconds",
                "0.001",
            ],
            "GEMM floor",
        ),
    ]:
        done = subprocess.run(
            [sys.executable, *command],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
