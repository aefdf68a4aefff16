"""The part of the cuDNN frontend that the CUDA backend uses, on the CPU.

A graph is computed in float64 from the sizes and strides that its tensors were given, so that a wrong layout gives
wrong numbers. Which plans there are, and what is wrong with them, is up to the test.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

VERSION = 91400
NOTES = ("TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "NONDETERMINISTIC", "WINOGRAD")


class FakeCudnnError(RuntimeError):
    """What the frontend raises."""


class Misuse(BaseException):
    """What no backend may catch: it did something that the frontend does not check."""


def require(condition: bool, what: str = "a call of the frontend") -> None:
    """Raise :class:`Misuse` where a condition does not hold."""
    if not condition:
        raise Misuse(what)


@dataclass
class FakePlan:
    """A plan, and what it is like.

    Attributes
    ----------
    name : str
        Its name.
    notes : tuple of str
        Numerical notes that it has.
    workspace : int
        Bytes that it works in.
    launches : int
        Kernels that it launches, which is its time.
    builds, runs, captures : bool
        Whether it can be built, executed, and executed while a graph is captured.
    right, keeps_nan : bool
        Whether it computes what it should, and lets what is not a number through its ReLU.
    """

    name: str = "eng0"
    notes: tuple[str, ...] = ()
    workspace: int = 0
    launches: int = 1
    builds: bool = True
    runs: bool = True
    captures: bool = True
    right: bool = True
    keeps_nan: bool = True


class FakeTensor:
    """``cudnn.tensor``."""

    def __init__(self, **attributes: Any) -> None:
        self.dim: list[int] = attributes.get("dim", [])
        self.stride: list[int] = attributes.get("stride", [])
        self.data_type, self.uid = attributes.get("data_type"), attributes.get("uid")
        self.output = False

    def set_output(self, value: bool) -> FakeTensor:
        self.output = value
        return self

    def set_data_type(self, value: Any) -> FakeTensor:
        self.data_type = value
        return self

    def set_dim(self, value: list[int]) -> FakeTensor:
        self.dim = value
        return self

    def set_stride(self, value: list[int]) -> FakeTensor:
        self.stride = value
        return self

    def set_uid(self, value: int) -> FakeTensor:
        self.uid = value
        return self

    def at(self, address: int) -> np.ndarray:
        """The array at an address."""
        reach = sum((size - 1) * step for size, step in zip(self.dim, self.stride, strict=True)) + 1
        dtype = np.dtype(self.data_type)
        cells = np.frombuffer((ctypes.c_uint8 * (reach * dtype.itemsize)).from_address(address), dtype)
        return np.lib.stride_tricks.as_strided(cells, self.dim, [step * dtype.itemsize for step in self.stride])


def windows(image: np.ndarray, place: tuple[int, int], result: tuple[int, ...], stride: Any, dilation: Any) -> Any:
    """Of a padded image, the pixels that stand at one place of all windows."""
    down, across = (at * step for at, step in zip(place, dilation, strict=True))
    lines, columns = ((n - 1) * step + 1 for n, step in zip(result, stride, strict=True))
    return image[:, :, down : down + lines : stride[0], across : across + columns : stride[1]]


class FakeGraph:
    """``cudnn.pygraph``."""

    def __init__(self, cudnn: FakeCudnn, **types: Any) -> None:
        assert types.pop("handle") == cudnn.handle
        self.cudnn, self.types = cudnn, types
        self.inputs: dict[int, FakeTensor] = {}
        self.kind, self.window = "", {}
        self.operands: tuple[FakeTensor, FakeTensor] | None = None
        self.added: FakeTensor | None = None
        self.cut = False
        self.result = FakeTensor()
        self.left_out: list[str] = []
        self.plans: list[FakePlan] = []
        self.built: set[int] = set()

    # ---- what is computed -------------------------------------------------------------------------
    def tensor(self, **attributes: Any) -> FakeTensor:
        made = FakeTensor(**attributes)
        self.inputs[attributes["uid"]] = made
        return made

    def _convolution(self, kind: str, first: FakeTensor, second: FakeTensor, window: dict[str, Any]) -> FakeTensor:
        assert set(window) == {"pre_padding", "post_padding", "stride", "dilation"}
        self.kind, self.operands, self.window = kind, (first, second), window
        return self.result

    def conv_fprop(self, *, image: FakeTensor, weight: FakeTensor, **window: Any) -> FakeTensor:
        return self._convolution("forward", image, weight, window)

    def conv_dgrad(self, *, loss: FakeTensor, filter: FakeTensor, **window: Any) -> FakeTensor:
        return self._convolution("image", loss, filter, window)

    def conv_wgrad(self, *, image: FakeTensor, loss: FakeTensor, **window: Any) -> FakeTensor:
        return self._convolution("weights", image, loss, window)

    def bias(self, *, input: FakeTensor, bias: FakeTensor) -> FakeTensor:
        self.added = bias
        return input

    def relu(self, *, input: FakeTensor) -> FakeTensor:
        self.cut = True
        return input

    # ---- plans ------------------------------------------------------------------------------------
    def validate(self) -> None:
        if not self.result.output or any(tensor.uid is None for tensor in (self.result, *self.inputs.values())):
            raise FakeCudnnError("a tensor without a number, or no output")

    def build_operation_graph(self) -> None:
        self.cudnn.graphs += 1

    def create_execution_plans(self, modes: list[str]) -> None:
        assert modes == ["A", "FALLBACK"]
        self.plans = list(self.cudnn.plans)
        if not self.plans:
            raise FakeCudnnError("No valid engine configs\nfor this graph")

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        self.left_out = notes

    def get_execution_plan_count(self) -> int:
        return len(self.plans)

    def get_plan_name_at_index(self, number: int) -> str:
        return self.plans[number].name

    def build_plan_at_index(self, number: int) -> None:
        plan = self.plans[number]
        if not plan.builds or set(plan.notes) & set(self.left_out):
            raise FakeCudnnError(f"plan {number} did not build")
        self.built.add(number)
        self.cudnn.built.append(plan.name)

    def get_workspace_size_plan_at_index(self, number: int) -> int:
        return self.plans[number].workspace

    def execute_plan_at_index(self, addresses: dict[int, int], workspace: int, number: int, handle: Any) -> None:
        plan, cupy = self.plans[number], self.cudnn.cupy
        require(number in self.built)
        require(handle == self.cudnn.handle)
        require(set(addresses) == {*self.inputs, self.result.uid})
        require(all(isinstance(address, int) for address in (*addresses.values(), workspace)))
        require(bool(workspace or not plan.workspace))
        require(all(address % 16 == 0 for address in (*addresses.values(), workspace)), "alignment")
        require(self.cudnn.stream == cupy.streams.current.ptr)
        if not plan.runs or not (plan.captures or cupy.streams.captured is None):
            raise FakeCudnnError("CUDNN_STATUS_EXECUTION_FAILED")
        self.cudnn.executed.append(plan.name)

        def launch() -> None:
            cupy.counts.launches += plan.launches
            cupy.counts.kernels.append("cudnn")
            self._compute(plan, addresses)

        cupy.streams.do(launch)

    # ---- numbers ----------------------------------------------------------------------------------
    def _compute(self, plan: FakePlan, addresses: dict[int, int]) -> None:
        assert self.operands is not None
        first, second = (tensor.at(addresses[tensor.uid]).astype(np.float64) for tensor in self.operands)
        out = self.result.at(addresses[self.result.uid])
        found = getattr(self, f"_{self.kind}")(first, second, out.shape)
        if self.added is not None:
            found = found + self.added.at(addresses[self.added.uid]).astype(np.float64)
        if self.cut:
            found = np.where(np.isnan(found) & plan.keeps_nan, found, np.fmax(found, 0))
        out[...] = found if plan.right else found + 0.5 * np.abs(found).max()

    def _padded(self, image: np.ndarray) -> np.ndarray:
        sides = zip(self.window["pre_padding"], self.window["post_padding"], strict=True)
        return np.pad(image, [(0, 0), (0, 0), *sides])

    def _places(self, height: int, width: int) -> Any:
        return ((down, across) for down in range(height) for across in range(width))

    def _seen(self, image: np.ndarray, place: tuple[int, int], result: tuple[int, ...]) -> np.ndarray:
        return np.asarray(windows(image, place, result, self.window["stride"], self.window["dilation"]))

    def _forward(self, image: np.ndarray, weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        groups, padded, out = image.shape[1] // weight.shape[1], self._padded(image), np.zeros(shape)
        for down, across in self._places(*weight.shape[2:]):
            x = _grouped(self._seen(padded, (down, across), shape[2:]), groups)
            w = weight[:, :, down, across].reshape(groups, -1, weight.shape[1])
            out += np.einsum("ngchw,gkc->ngkhw", x, w).reshape(shape)
        return out

    def _image(self, dy: np.ndarray, weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        groups, padded = shape[1] // weight.shape[1], self._padded(np.zeros(shape))
        for down, across in self._places(*weight.shape[2:]):
            w = weight[:, :, down, across].reshape(groups, -1, weight.shape[1])
            seen = self._seen(padded, (down, across), dy.shape[2:])
            seen += np.einsum("ngkhw,gkc->ngchw", _grouped(dy, groups), w).reshape(seen.shape)
        (top, left), (height, width) = self.window["pre_padding"], shape[2:]
        return padded[:, :, top : top + height, left : left + width]

    def _weights(self, image: np.ndarray, dy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        groups, padded, out = image.shape[1] // shape[1], self._padded(image), np.zeros(shape)
        for down, across in self._places(*shape[2:]):
            x = _grouped(self._seen(padded, (down, across), dy.shape[2:]), groups)
            sums = np.einsum("ngkhw,ngchw->gkc", _grouped(dy, groups), x)
            out[:, :, down, across] = sums.reshape(shape[:2])
        return out


def _grouped(images: np.ndarray, groups: int) -> np.ndarray:
    n, channels, *sizes = images.shape
    return images.reshape(n, groups, channels // groups, *sizes)


class FakeCudnn:
    """The module ``cudnn``.

    Attributes
    ----------
    plans : list of FakePlan
        What there is for every graph.
    built, executed : list of str
        Names of the plans that were.
    graphs : int
        How many were built.
    """

    heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")

    def __init__(self, cupy: Any, plans: list[FakePlan]) -> None:
        from ml_dtypes import bfloat16

        self.cupy, self.plans = cupy, plans
        self.handle, self.stream = 7, -1
        self.graphs = 0
        self.built: list[str] = []
        self.executed: list[str] = []
        self.data_type = SimpleNamespace(FLOAT=np.float32, DOUBLE=np.float64, HALF=np.float16, BFLOAT16=bfloat16)
        self.numerical_note = SimpleNamespace(**{note: note for note in NOTES})

    def backend_version(self) -> int:
        return VERSION

    def create_handle(self) -> int:
        return self.handle

    def set_stream(self, *, handle: int, stream: int) -> None:
        assert handle == self.handle
        self.stream = stream

    def pygraph(self, **types: Any) -> FakeGraph:
        return FakeGraph(self, **types)
