"""The CUDA backend: CuPy arrays, cuBLAS, and the hand-written kernels of ``kernels/cuda``.

Whatever changes from step to step is read from the step state on the device, and no method with a
kernel allocates once it has run at a batch size, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from ..errors import DeviceUnavailable
from ..kernels.cuda import loader
from . import cupy_fork
from .base import Array, Backend
from .cupy_arrays import CupyArrays, probe
from .cupy_graph import CudaGraphs
from .cupy_layers import CudaLayers
from .cupy_linear import CudaLinear
from .cupy_products import CudaProducts
from .cupy_steps import CudaSteps

__all__ = ["CupyBackend", "probe"]

_Class = TypeVar("_Class", bound=type)


def _on_own_device(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: CupyBackend, *args: Any, **kwargs: Any) -> Any:
        if self._recording.pending is not None and method.__name__ != "linear_act_grad":
            self._flush()  # a product that waited for this call, in vain
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

    @wraps(method)
    def call(self: CupyBackend, *args: Any, **kwargs: Any) -> None:
        if not self.fused or method(self, *args, **kwargs) is NotImplemented:
            self._refuse(f"{method.__name__} by CuPy's own operations")
            composed(self, *args, **kwargs)

    return call


def _contract(cls: _Class) -> _Class:
    """Wrap the contract's methods: each runs on its backend's device, kernels with their fallback."""
    for name, declared in vars(Backend).items():
        if name.startswith("_") or not callable(declared) or name in ("capture", "chain", "python", "rounding"):
            continue
        method = getattr(cls, name)
        if any(name in vars(part) for part in (CudaLayers, CudaLinear, CudaSteps)):
            method = _kernel_or_composition(method)
        setattr(cls, name, _on_own_device(method))
    return cls


@_contract
class CupyBackend(CudaGraphs, CudaLinear, CudaLayers, CudaSteps, CudaProducts):
    """One CUDA device through CuPy.

    Work goes to the current stream of the calling thread. float32 and float64 have kernels; other
    dtypes, and arrays that are not C-contiguous, are computed by CuPy's own operations.

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

    # ---- what the kernels' methods are built from ----------------------------------------------
    def _type(self, *arrays: Array | None) -> str | None:
        """The CUDA type of these arrays, if they all have the one dtype and are C-contiguous."""
        kind = ""
        for x in arrays:
            if x is None:
                continue
            char = x.dtype.char
            if char != (kind or char) or not isinstance(x, self._array_type) or not x.flags.c_contiguous:
                return None
            kind = char
        return loader.SCALARS.get(kind)

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
