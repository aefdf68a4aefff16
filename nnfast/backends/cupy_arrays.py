"""CuPy's memory and CuPy's own operations: everything of the contract without a kernel of ours.

:class:`~nnfast.backends.cupy_backend.CupyBackend` puts the fused kernels on top. With ``fused=False``
this is what computes; the compositions of ``base.py`` and ``array_backend.py`` then run on CuPy arrays
and read the step state on the host where they branch on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DeviceUnavailable, OutOfMemoryError
from ..kernels.cuda.cublaslt import COMPUTE, TYPES
from . import cupy_fork
from .array_backend import ArrayBackend
from .base import Array, Feeder
from .cupy_feed import CudaFeeder

# Bytes that the pool may keep for the next training
_HELD_BACK = 64 << 20
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged

#: Dtypes that cuBLAS multiplies, by their characters; bfloat16 is that of ml_dtypes
DTYPES = {"f": "float32", "d": "float64", "e": "float16", "E": "bfloat16"}
#: Those of 16 bits, which it multiplies in float32
HALF = ("e", "E")
_GEMM_DEFAULT = -1  # cublasGemmAlgo_t


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def probe(index: int = 0) -> str | None:
    """Find out whether a CUDA device can be used, down to a real allocation and a write to it.

    Parameters
    ----------
    index : int
        Number of the device.

    Returns
    -------
    str or None
        ``None`` where it can be used, else the reason in one line.
    """
    if cupy_fork.lost():
        return cupy_fork.REASON
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return "CuPy is not installed; install the extra cuda13 or cuda12"
        return f"CuPy does not import: {_first_line(error)}"
    except Exception as error:  # a broken installation raises anything
        return f"CuPy does not import: {_first_line(error)}"
    runtime = cupy.cuda.runtime
    if getattr(runtime, "is_hip", False):
        return "this CuPy is built for ROCm; the kernels are CUDA"
    try:
        driver, built = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    except Exception as error:
        return f"the CUDA runtime does not answer: {_first_line(error)}"
    if driver == 0:
        return "no NVIDIA driver"
    if driver // 1000 < built // 1000:
        return f"the NVIDIA driver supports CUDA {_version(driver)}, CuPy is built for CUDA {_version(built)}"
    try:
        count = runtime.getDeviceCount()
    except Exception as error:
        return f"no usable GPU: {_first_line(error)}"
    if count == 0:
        return "no GPU"
    if not 0 <= index < count:
        return f"there is no device {index}; the machine has {count}, numbered from 0"
    try:
        cupy.cuda.nvrtc.getVersion()
        _ = cupy.cuda.cublas.sgemm
    except Exception as error:  # wheels that are installed without their libraries
        return f"a CUDA library is missing: {_first_line(error)}"
    try:
        with cupy.cuda.Device(index):
            x = cupy.cuda.alloc(1 << 20)
            x.memset(0, 1 << 20)
            cupy.cuda.get_current_stream().synchronize()
    except Exception as error:
        return f"device {index} does not allocate memory: {_first_line(error)}"
    return None


class CupyArrays(ArrayBackend):
    """CuPy arrays on one device, and CuPy's own operations on them.

    Parameters
    ----------
    device_index : int
        Number of the device.
    fused : bool
        Whether fused kernels are used, where a subclass has them.

    Raises
    ------
    DeviceUnavailable
        If the device cannot be used; the message gives the reason.
    """

    name = "cuda"

    def __init__(self, device_index: int = 0, fused: bool = True) -> None:
        super().__init__(fused)
        self.device = f"cuda:{device_index}"
        self._index = device_index
        self._cupy = self._import_cupy(device_index)
        cupy_fork.started()
        self._device = self._cupy.cuda.Device(device_index)
        self._cublas = self._cupy.cuda.cublas
        self._array_type: Any = self._cupy.ndarray
        # Scalars of cuBLAS calls are read from host memory
        self._scalars: dict[tuple[str, float], tuple[np.ndarray, int]] = {}

    def _import_cupy(self, index: int) -> Any:
        if reason := probe(index):
            raise DeviceUnavailable(f"device 'cuda:{index}' cannot be used: {reason}")
        import cupy

        return cupy

    # ---- memory ---------------------------------------------------------------------------------
    @property
    def xp(self) -> Any:
        return self._cupy

    def empty(self, shape: Any, dtype: Any) -> Array:
        return self._allocated(lambda: self._cupy.empty(shape, dtype))  # the pool aligns to 512 bytes

    def zeros(self, shape: Any, dtype: Any) -> Array:
        return self._allocated(lambda: self._cupy.zeros(shape, dtype))

    def _allocated(self, make: Callable[[], Array]) -> Array:
        """What `make` allocates; where there is no memory, once more without what the pool holds back."""
        try:
            return make()
        except self._cupy.cuda.memory.OutOfMemoryError:
            self._cupy.get_default_memory_pool().free_all_blocks()
            return make()

    def out_of_memory(self, error: BaseException) -> OutOfMemoryError:
        """CuPy's error as ours, after everything that can be freed was."""
        self._cupy.get_default_memory_pool().free_all_blocks()
        found = re.search(r"allocating ([\d,]+) bytes", str(error))
        return OutOfMemoryError(self.device, int(found[1].replace(",", "")) if found else 0, self.memory()[0])

    def release(self) -> None:
        pool = self._cupy.get_default_memory_pool()
        if pool.free_bytes() >= _HELD_BACK:  # to give it back waits for the device
            pool.free_all_blocks()

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """`x` as a C-contiguous CuPy array on this device.

        Parameters
        ----------
        x : array_like
            A CuPy array (copied where it is on another device), any other array on a CUDA device
            (``__cuda_array_interface__`` or DLPack), or whatever NumPy understands.
        dtype : dtype, optional
            The dtype of the result; that of `x` by default.
        """
        cupy = self._cupy
        if not isinstance(x, self._array_type):
            if hasattr(x, "__cuda_array_interface__"):
                x = cupy.asarray(x)
            elif hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] in _DLPACK_CUDA:
                x = cupy.from_dlpack(x)
            else:
                host = np.asarray(x, dtype=dtype)
                native = host.dtype.newbyteorder("=")
                host = np.ascontiguousarray(host, dtype=native).reshape(host.shape)
                return self._allocated(lambda: cupy.asarray(host))
        if x.device.id != self._index:
            # A copy between devices, made by this one
            x = self._allocated(lambda: cupy.asarray(x, dtype=dtype, order="C"))
        return self._allocated(lambda: cupy.ascontiguousarray(x, dtype=dtype)).reshape(x.shape)

    def to_numpy(self, x: Array) -> np.ndarray:
        return x.get() if isinstance(x, self._array_type) else np.asarray(x)

    def copy(self, src: Array, *, out: Array) -> None:
        if isinstance(src, self._array_type):
            self._cupy.copyto(out, src, casting="same_kind")
            return
        src = np.asarray(src)
        if not np.can_cast(src.dtype, out.dtype, "same_kind"):
            raise TypeError(f"cannot copy {src.dtype} to {out.dtype} by the rule 'same_kind'")
        if src.shape != out.shape:
            src = np.broadcast_to(src, out.shape)
        if out.flags.c_contiguous:
            out.set(np.ascontiguousarray(src, dtype=out.dtype).reshape(out.shape))
        else:
            out[...] = self._cupy.asarray(np.ascontiguousarray(src, dtype=out.dtype)).reshape(out.shape)

    def feeder(self, outs: Sequence[Array]) -> Feeder:
        return CudaFeeder(self, outs)

    def synchronize(self) -> None:
        self._device.synchronize()

    def memory(self) -> tuple[int, int]:
        """Free and total bytes; what CuPy's pool holds unused counts as free."""
        free, total = self._cupy.cuda.runtime.memGetInfo()
        return free + self._cupy.get_default_memory_pool().free_bytes(), total

    # ---- matrix products ------------------------------------------------------------------------
    def gemm(
        self, a: Array, b: Array, *, out: Array, trans_a: bool = False, trans_b: bool = False, beta: float = 0.0
    ) -> None:
        n, k = a.shape[::-1] if trans_a else a.shape
        k_b, m = b.shape[::-1] if trans_b else b.shape
        if k != k_b or out.shape != (n, m):
            raise ValueError(
                f"gemm: op(a) is {(n, k)}, op(b) is {(k_b, m)}, out is {out.shape}; expected (n, k), (k, m), (n, m)"
            )
        kind, result = a.dtype.char, out.dtype.char
        contiguous = all(x.flags.c_contiguous for x in (a, b, out))
        half = kind in HALF and b.dtype.char == kind and result in (kind, "f")
        if 0 in (n, m, k) or not (half or (contiguous and kind in "fd" and b.dtype.char == result == kind)):
            super().gemm(a, b, out=out, trans_a=trans_a, trans_b=trans_b, beta=beta)
            return
        if not contiguous:  # CuPy's own product may round sums of 16 bits midway
            cupy = self._cupy
            held = cupy.ascontiguousarray(out)
            self.gemm(
                cupy.ascontiguousarray(a), cupy.ascontiguousarray(b), out=held, trans_a=trans_a, trans_b=trans_b,
                beta=beta,
            )  # fmt: skip
            if held is not out:
                out[...] = held
            return
        if half:
            self._gemm_half(a, b, out, trans_a, trans_b, beta)
            return
        call = self._cublas.sgemm if kind == "f" else self._cublas.dgemm
        # cuBLAS counts in columns: out.T = op(b).T @ op(a).T. TF32 is off unless it is asked for.
        call(
            self._cupy.cuda.device.get_cublas_handle(),
            int(trans_b),
            int(trans_a),
            m,
            n,
            k,
            self._scalar(kind, 1.0),
            b.data.ptr,
            b.shape[1],
            a.data.ptr,
            a.shape[1],
            self._scalar(kind, beta),
            out.data.ptr,
            m,
        )

    def _gemm_half(self, a: Array, b: Array, out: Array, trans_a: bool, trans_b: bool, beta: float) -> None:
        """A product of 16 bits: added up in float32, and rounded once where `out` has 16 bits, too."""
        kind = TYPES[DTYPES[a.dtype.char]]
        self._cublas.gemmEx(
            self._cupy.cuda.device.get_cublas_handle(),
            int(trans_b),
            int(trans_a),
            out.shape[1],
            out.shape[0],
            a.shape[0 if trans_a else 1],
            self._scalar("f", 1.0),
            b.data.ptr,
            kind,
            b.shape[1],
            a.data.ptr,
            kind,
            a.shape[1],
            self._scalar("f", beta),
            out.data.ptr,
            TYPES[DTYPES[out.dtype.char]],
            out.shape[1],
            COMPUTE["float32"],
            _GEMM_DEFAULT,
        )

    def _scalar(self, kind: str, value: float) -> int:
        """Host address of a number that stays where it is."""
        key = (kind, value)
        if key not in self._scalars:
            held = np.array([value], kind)
            self._scalars[key] = held, held.ctypes.data
        return self._scalars[key][1]
