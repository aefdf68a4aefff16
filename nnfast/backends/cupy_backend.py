"""The CUDA backend: CuPy arrays, cuBLAS, and the hand-written kernels of ``kernels/cuda``.

Whatever changes from step to step is read from the step state on the device, and no method with a
kernel allocates once it has run at a batch size, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

import threading
from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from ..errors import DeviceUnavailable
from ..kernels.cuda import loader
from . import cupy_fork
from .base import Array, Backend
from .cupy_arrays import CupyArrays, probe
from .cupy_attention import CudaAttention
from .cupy_conv import CudaConv
from .cupy_graph import CudaGraphs
from .cupy_layers import CudaLayers
from .cupy_linear import CudaLinear
from .cupy_norms import CudaNorms
from .cupy_products import CudaProducts
from .cupy_recurrent import CudaRecurrent
from .cupy_rows import CudaRows
from .cupy_spatial import CudaSpatial
from .cupy_steps import CudaSteps

__all__ = ["CupyBackend", "probe"]

_Class = TypeVar("_Class", bound=type)

#: The parts whose methods are kernels
KERNELS = (
    CudaLayers,
    CudaLinear,
    CudaRows,
    CudaNorms,
    CudaConv,
    CudaSpatial,
    CudaRecurrent,
    CudaAttention,
    CudaSteps,
)


def operations() -> Iterator[str]:
    """The methods of the contract, those that its mixins declare included."""
    for part in Backend.__mro__:
        if part not in (object, ABC):
            yield from (name for name, x in vars(part).items() if callable(x) and not name.startswith("_"))


# What may come between a loss and its last layer's gradient
_LEAVES_GRADIENTS = ("record_loss", "store_batch", "linear_act_grad")

# Of the contract, what does nothing on the device by itself
_HOST = ("capture", "chain", "copying", "python", "reduced", "rounding")


def _on_own_device(method: Callable[..., Any]) -> Callable[..., Any]:
    changes = method.__name__ != "ema_step"  # which reads what a step has just written

    @wraps(method)
    def call(self: CupyBackend, *args: Any, **kwargs: Any) -> Any:
        if self._recording.pending is not None and method.__name__ != "linear_act_grad":
            self._flush()  # a product that waited for this call, in vain
        if self._recording.sums is not None and method.__name__ not in _LEAVES_GRADIENTS:
            self._recording.sums = None  # this one may write to the gradient
        if changes:
            self._recording.copied = False
        if cupy_fork.lost():
            raise DeviceUnavailable(f"device {self.device!r} cannot be used: {cupy_fork.REASON}")
        try:
            if self._cupy.cuda.runtime.getDevice() == self._index:
                return method(self, *args, **kwargs)
            with self._cupy.cuda.Device(self._index):
                return method(self, *args, **kwargs)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise self.out_of_memory(error) from None

    return call


def _kernel_or_composition(method: Callable[..., Any]) -> Callable[..., None]:
    """Run `method`; where `fused` is off or it returns ``NotImplemented``, CuPy's own operations."""
    composed = getattr(CupyArrays, method.__name__)
    # The contract's own compositions call other methods, each of which may have a kernel
    own = composed is not getattr(Backend, method.__name__)

    @wraps(method)
    def call(self: CupyBackend, *args: Any, **kwargs: Any) -> None:
        if not self.fused or method(self, *args, **kwargs) is NotImplemented:
            if own or not self.fused:
                self._refuse(f"{method.__name__} by CuPy's own operations")
            composed(self, *args, **kwargs)

    return call


def _contract(cls: _Class) -> _Class:
    """Wrap the contract's methods: each runs on its backend's device, kernels with their fallback."""
    for name in operations():
        if name in _HOST:
            continue
        method = getattr(cls, name)
        if any(name in vars(part) for part in KERNELS):
            method = _kernel_or_composition(method)
        setattr(cls, name, _on_own_device(method))
    return cls


@_contract
class CupyBackend(
    CudaGraphs,
    CudaLinear,
    CudaLayers,
    CudaRows,
    CudaNorms,
    CudaConv,
    CudaSpatial,
    CudaRecurrent,
    CudaAttention,
    CudaSteps,
    CudaProducts,
):
    """One CUDA device through CuPy.

    Work goes to the current stream of the calling thread. float32 and float64 have kernels, and so have
    activations of float16 and bfloat16; other dtypes, and arrays that are not C-contiguous, are computed
    by CuPy's own operations.

    Parameters
    ----------
    device_index : int
        Number of the device.
    fused : bool
        ``False`` forces the composed defaults, through CuPy's own operations.

    Raises
    ------
    DeviceUnavailable
        If the device cannot be used; the message gives the reason.
    """

    def __init__(self, device_index: int = 0, fused: bool = True) -> None:
        super().__init__(device_index, fused)
        self._kernels = loader.Kernels(self._cupy, self._device.attributes["MultiProcessorCount"])
        self._work: dict[tuple[int, int, str], list[Array]] = {}
        self._reduced: dict[str, np.dtype] = {}

    # ---- 16 bits -------------------------------------------------------------------------------
    def reduced(self, precision: str) -> np.dtype | None:
        if not self.fused or precision not in ("bf16", "fp16"):
            return None
        if precision not in self._reduced:  # the device is asked once
            self._reduced[precision] = np.dtype(np.float16) if precision == "fp16" else self._bfloat16()
        return self._reduced[precision]

    def _bfloat16(self) -> np.dtype:
        properties = self._cupy.cuda.runtime.getDeviceProperties(self._index)
        if properties["major"] < 8:
            found = f"{self.device} has {properties['major']}.{properties['minor']}"
            raise DeviceUnavailable(
                f"precision 'bf16' needs a GPU of compute capability 8.0 or newer, {found}; use 'fp16'"
            )
        try:
            from ml_dtypes import bfloat16
        except ModuleNotFoundError:
            message = "precision 'bf16' needs the package ml_dtypes; install the extra cuda13 or cuda12"
            raise ImportError(message, name="ml_dtypes") from None
        return np.dtype(bfloat16)

    @contextmanager
    def copying(self, param: Array, low: Array) -> Iterator[None]:
        recording = self._recording
        before, recording.copying, recording.copied = recording.copying, (param, low), False
        try:
            yield
        finally:
            recording.copying = before
        if not recording.copied:
            self.copy(param, out=low)
        recording.copied = False

    def copy(self, src: Array, *, out: Array) -> None:
        if not (self.fused and self._cast(src, out)):
            super().copy(src, out=out)

    # ---- what the kernels' methods are built from ----------------------------------------------
    def _type(self, *arrays: Array | None, wide: tuple[Array | None, ...] = ()) -> str | None:
        """The CUDA type of these arrays, if all have the one dtype, and `wide` ones that which it is computed with."""
        kind, computed = self._char(arrays), self._char(wide)
        return loader.SCALARS.get(kind) if computed in ("", loader.WIDE.get(kind)) else None

    def _wide_type(self, *arrays: Array | None) -> str | None:
        """The CUDA type of these arrays, if all have the one dtype, and not one of 16 bits."""
        return self._type(*arrays, wide=arrays)

    def _char(self, arrays: tuple[Array | None, ...]) -> str:
        """The character of the dtype that all these arrays have; ``"?"`` where they differ, or are not C-contiguous."""
        kind = ""
        for x in arrays:
            if x is None:
                continue
            char = x.dtype.char
            if char != (kind or char) or not isinstance(x, self._array_type) or not x.flags.c_contiguous:
                return "?"
            kind = char
        return kind

    def _launch(self, file: str, kernel: str, args: tuple[str, ...], shape: tuple[Any, ...], *arguments: Any) -> None:
        """Launch on the current stream; ``None`` is a null pointer, ints are int64, floats double."""
        function = self._kernels.get(file, kernel, *args)
        function(shape[0], shape[1], tuple(0 if x is None else x for x in arguments))

    def _scratch(self, use: str, count: int, dtype: Any) -> Array:
        """Working memory of this thread and stream, not initialised, at least `count` long.

        An array that has become too small is kept all the same: a recorded step may hold its address.
        """
        key = (threading.get_ident(), self._cupy.cuda.get_current_stream().ptr, use)
        held = self._work.setdefault(key, [])
        if not held or held[-1].size < count:
            held.append(self.zeros(max(count, 1024), dtype))
        return held[-1]

    def _sync(self) -> Array:
        """Counters of the kernels whose last block finishes the work; kernels leave them at zero."""
        return self._scratch("sync", 16, np.uint32)

    def _partial(self) -> Array:
        """One double for each block of a launch."""
        return self._scratch("partial", self._kernels.most_blocks, np.float64)
