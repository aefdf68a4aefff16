"""The real frontend and the real cuDNN take the graphs that are asked for; the device is a description of an H200.

A gate without a GPU, like the compilation of the kernels: plans are found and built for the GPU, none is executed.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import nnfast
from nnfast.kernels.cuda.cudnn_graphs import CANDIDATES, Convolution
from nnfast.window import Window
from tests.cuda.cudnn_without_a_gpu import NO_LIBRARY
from tests.cuda.host_shim import compiler

# Of the driver, what cuDNN's libraries are linked against; none of it is called to build a plan
_DRIVER = (
    "cuGetErrorString",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeIm2col",
    "cuTensorMapEncodeTiled",
)

# window, images, result channels, groups
_SHAPES: dict[str, tuple[Window, tuple[int, int, int, int], int, int]] = {
    "cnn": (Window((3, 3), (1, 1), ((1, 1), (1, 1))), (256, 28, 28, 32), 64, 1),
    "stride": (Window((3, 3), (2, 2), ((0, 1), (0, 1))), (32, 56, 56, 64), 128, 1),
    "dilation": (Window((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)), (16, 32, 32, 16), 16, 1),
    "groups": (Window((3, 3), (1, 1), ((1, 1), (1, 1))), (16, 14, 14, 64), 64, 4),
    "depthwise": (Window((3, 3), (1, 1), ((1, 1), (1, 1))), (64, 32, 32, 64), 64, 64),
    "sequence": (Window((1, 5), (1, 1), ((0, 0), (4, 0))), (32, 1, 128, 64), 64, 1),
    "odd": (Window((3, 3), (1, 1), ((1, 1), (1, 1))), (64, 28, 28, 1), 32, 1),
}
_TYPES = {
    "float32": ("float32", "float32"),
    "tf32": ("float32", "tf32"),
    "float64": ("float64", "float64"),
    "fp16": ("float16", "float32"),
    "bf16": ("bfloat16", "float32"),
}
_KINDS = ("forward", "image", "weights")


def problem(shape: str, kind: str, precision: str) -> Convolution:
    window, image, m, groups = _SHAPES[shape]
    (top, bottom), (left, right) = window.padding
    dtype, compute = _TYPES[precision]
    return Convolution(
        kind, image, (image[0], *window.out_size(*image[1:3]), m), window.size, window.stride, (top, left),
        (bottom, right), window.dilation, groups, dtype, compute, kind == "forward", kind == "forward",
    )  # fmt: skip


CASES = [(shape, kind, precision) for shape in _SHAPES for kind in _KINDS for precision in _TYPES]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Any]:
    """By case: names of cuDNN's plans, or why there is none."""
    if importlib.util.find_spec("cudnn") is None:
        pytest.skip("the cuDNN frontend is not installed")
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "driver.c"
    source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in _DRIVER))
    built = [compiler() or "gcc", "-x", "c", "-shared", "-fPIC", str(source), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(built, check=True, capture_output=True)
    file = folder / "problems.json"
    file.write_text(json.dumps([asdict(problem(*case)) for case in CASES]))
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(Path(nnfast.__file__).parents[1])}
    for name, first in paths.items():
        paths[name] = os.pathsep.join(filter(None, [first, os.environ.get(name)]))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("cudnn_without_a_gpu.py")), str(file)],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode == NO_LIBRARY:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_there_are_plans(case: tuple[str, str, str], plans: dict[tuple[str, str, str], Any]) -> None:
    names = plans[case]
    assert isinstance(names, list), names
    assert 1 <= len(names) <= CANDIDATES


@pytest.mark.parametrize("kind", _KINDS)
def test_float32_does_without_tensor_cores(kind: str, plans: dict[tuple[str, str, str], Any]) -> None:
    assert not set(plans["cnn", kind, "float32"]) & set(plans["cnn", kind, "tf32"])


def test_what_is_called_with_a_gpu_alone_is_called_as_the_frontend_says() -> None:
    cudnn = pytest.importorskip("cudnn", exc_type=(ImportError, OSError))
    inspect.signature(cudnn.pygraph.execute_plan_at_index).bind(None, {1: 0}, 0, 0, handle=None)
    assert callable(cudnn.create_handle)
    try:
        inspect.signature(cudnn.set_stream).bind(handle=None, stream=0)
    except ValueError:  # compiled, in older frontends: their text has the names
        assert "handle" in cudnn.set_stream.__doc__
        assert "stream" in cudnn.set_stream.__doc__
