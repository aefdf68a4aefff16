"""The part of CuPy that the CUDA backend uses, on the CPU.

Arrays live in NumPy memory with guard bytes around each allocation, kernels run through the host shim
with the real launch shapes, and argument types are compared with the kernel's parameters. Arrays are
of a class of their own: a NumPy array among them is a ``TypeError``, as in CuPy. What a GPU would pay for
dearly is counted: waits for the device, copies between host and device, allocations.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from nnfast.kernels.cuda import FILES, OPTIONS, source
from tests.cuda.fake_memory import FakeOutOfMemoryError, FakePool, Memory
from tests.cuda.fake_streams import FakeError, FakeEvent, Streams
from tests.cuda.host_shim import HostShim, points_to


@dataclass
class Counts:
    """What happened since the last :meth:`reset`."""

    launches: int = 0
    allocations: int = 0
    #: Times the host waited for the device: copies to the host, ``bool(array)``, ``synchronize``.
    syncs: int = 0
    #: Copies from host to device.
    uploads: int = 0
    #: Graphs that were launched; their kernels count as launches, too.
    graphs: int = 0
    kernels: list[str] = field(default_factory=list)

    def reset(self) -> None:
        """Start counting anew."""
        self.__init__()  # type: ignore[misc]


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to ten bits of mantissa."""
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & ~np.uint64(0x1FFF)
    return bits.astype(np.uint32).view(np.float32)


def _cuda_type(number: int) -> np.dtype[Any]:
    """The dtype of a ``cudaDataType_t``."""
    if number == 14:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype({0: np.float32, 2: np.float16}[number])


def _stored(address: int, dtype: Any, rows: int, columns: int, leading: int) -> np.ndarray:
    """The column-major (rows, columns) matrix at an address."""
    if leading < max(1, rows) or not address:
        raise ValueError("CUBLAS_STATUS_INVALID_VALUE")
    dtype = np.dtype(dtype)
    cells = (ctypes.c_uint8 * ((leading * (columns - 1) + rows) * dtype.itemsize)).from_address(address)
    steps = (dtype.itemsize, leading * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(np.frombuffer(cells, dtype), (rows, columns), steps)


def _unwrap(value: Any) -> Any:
    if isinstance(value, FakeArray):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(_unwrap(v) for v in value)
    return value


class FakeArray(np.lib.mixins.NDArrayOperatorsMixin):
    """``cupy.ndarray``: never converts itself to a NumPy array."""

    def __init__(self, cupy: FakeCupy, host: np.ndarray, memory: Memory, device: int) -> None:
        self.cupy, self.host, self.memory, self._device = cupy, host, memory, device

    # ---- what it is ---------------------------------------------------------------------------
    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    itemsize = property(lambda self: self.host.itemsize)
    flags = property(lambda self: self.host.flags)
    device = property(lambda self: SimpleNamespace(id=self._device))
    data = property(lambda self: SimpleNamespace(ptr=self.host.ctypes.data))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.host.__array_interface__, "version": 3}

    def __len__(self) -> int:
        return len(self.host)

    def __repr__(self) -> str:
        return f"FakeArray({self.host!r})"

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def _view(self, host: np.ndarray) -> FakeArray:
        return FakeArray(self.cupy, host, self.memory, self._device)

    def _result(self, host: Any) -> FakeArray:
        """A view where NumPy made one, else a new device array."""
        if isinstance(host, np.ndarray) and np.may_share_memory(host, self.host):
            return self._view(host)
        return self.cupy._new(host)

    # ---- views, elements ----------------------------------------------------------------------
    T = property(lambda self: self._view(self.host.T))

    def reshape(self, *shape: Any) -> FakeArray:
        return self._result(self.host.reshape(*shape))

    def ravel(self) -> FakeArray:
        return self._result(self.host.ravel())

    def transpose(self, *axes: Any) -> FakeArray:
        return self._view(self.host.transpose(*axes))

    def swapaxes(self, first: int, second: int) -> FakeArray:
        return self._view(self.host.swapaxes(first, second))

    def view(self, dtype: Any = None) -> FakeArray:
        return self._view(self.host.view() if dtype is None else self.host.view(dtype))

    def __getitem__(self, index: Any) -> FakeArray:
        index = _unwrap(index)
        index = index if isinstance(index, tuple) else (index,)
        if not any(i is Ellipsis for i in index if not isinstance(i, np.ndarray)):
            index = (*index, Ellipsis)  # an element is a view without dimensions, as in CuPy
        return self._result(self.host[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.host[_unwrap(index)] = _unwrap(value)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    # ---- operations ---------------------------------------------------------------------------
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if method == "__call__":
            function = ufunc
        elif method in ("at", "reduce"):
            function = getattr(ufunc, method)
        else:
            return NotImplemented
        if out is None:
            result = function(*map(_unwrap, inputs), **kwargs)
            return None if result is None else self.cupy._new(result)
        self.cupy.streams.do(lambda: function(*map(_unwrap, inputs), out=_unwrap(out), **kwargs))
        return out[0] if isinstance(out, tuple) else out

    def astype(self, dtype: Any, copy: bool = True, **kwargs: Any) -> FakeArray:
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return self.cupy._new(self.host.astype(dtype))

    def copy(self, order: str = "C") -> FakeArray:
        return self.cupy._new(self.host.copy())

    def fill(self, value: Any) -> None:
        self.cupy.streams.do(lambda: self.host.fill(_unwrap(value)))

    # ---- between host and device --------------------------------------------------------------
    def get(self, *args: Any, **kwargs: Any) -> np.ndarray:
        self.cupy.streams.forbid("a copy to the host")
        self.cupy.counts.syncs += 1
        return self.host.copy()

    def set(self, array: np.ndarray, stream: Any = None) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype or array.shape != self.shape:
            raise TypeError("set() takes a NumPy array of the same shape and dtype")
        self.cupy.streams.forbid("a copy from the host")
        self.cupy.counts.uploads += 1

        def upload() -> None:
            self.host[...] = array

        if stream is None or stream is self.cupy.streams.current:
            upload()
            return
        if not any(np.may_share_memory(array, locked) for locked in self.cupy.locked):
            raise RuntimeError("a copy beside the computation needs page-locked memory")
        stream.later(upload)

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __index__(self) -> int:
        return self.get().__index__()


def _reduction(name: str) -> Any:
    def method(self: FakeArray, *args: Any, out: Any = None, **kwargs: Any) -> Any:
        return getattr(self.cupy, name)(self, *args, out=out, **kwargs)

    return method


for _name in ("sum", "mean", "max", "min", "all", "any", "argmax", "dot"):
    setattr(FakeArray, _name, _reduction(_name))


class FakeKernel:
    """``RawKernel``: checks what CUDA does not, then runs on the host shim."""

    def __init__(self, cupy: FakeCupy, name: str) -> None:
        self.cupy, self.name = cupy, name
        self.kernel = cupy.shim.kernels[name]

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
        if not 1 <= np.prod(block) <= 1024 or not all(1 <= g <= 65535 for g in grid[1:]) or grid[0] < 1:
            raise ValueError(f"{self.name}: launch shape {grid} x {block} is out of range")
        if len(args) != len(self.kernel.signature):
            raise TypeError(f"{self.name} takes {len(self.kernel.signature)} arguments, got {len(args)}")
        values = [
            self._value(i, code, arg) for i, (code, arg) in enumerate(zip(self.kernel.signature, args, strict=True))
        ]
        memories = [weakref.ref(arg.memory) for arg in args if isinstance(arg, FakeArray)]

        def launch() -> None:
            self.cupy.counts.launches += 1
            self.cupy.counts.kernels.append(self.name)
            self.kernel.launch(grid, block, values)
            for memory in memories:
                if (held := memory()) is None:
                    raise MemoryError(f"{self.name} works on memory that was given back")
                if not held.intact():
                    raise MemoryError(f"{self.name} wrote outside of its arrays")

        self.cupy.streams.do(launch)

    def _value(self, i: int, code: str, arg: Any) -> Any:
        if len(code) == 1:  # CuPy passes int as int64 and float as double
            wanted = {"q": int, "d": float}[code]
            if type(arg) is not wanted:
                raise TypeError(
                    f"{self.name}: argument {i} is {type(arg).__name__}, the parameter takes {wanted.__name__}"
                )
            return arg
        if isinstance(arg, FakeArray):
            if not points_to(code, arg.dtype):
                raise TypeError(f"{self.name}: argument {i} is {arg.dtype}, the parameter points to {code[1]!r}")
            if arg.device.id != self.cupy.current_device:
                raise RuntimeError(f"{self.name}: argument {i} is on another device than the current one")
            return arg.host.ctypes.data
        if type(arg) is int and arg == 0:
            return 0
        raise TypeError(f"{self.name}: argument {i} is {type(arg).__name__}, the parameter is a pointer")


class FakeModule:
    """``RawModule``: the source must be the one that the host shim was compiled from."""

    def __init__(self, cupy: FakeCupy, *, code: str, options: tuple[str, ...], name_expressions: list[str]) -> None:
        if code not in (source(file) for file in FILES) or options != OPTIONS:
            raise ValueError("a module that the host shim has not compiled")
        self.cupy, self.names = cupy, name_expressions

    def get_function(self, name: str) -> FakeKernel:
        if name not in self.names:
            raise KeyError(f"{name} is not among the name expressions")
        return FakeKernel(self.cupy, name)


class FakeDevice:
    """``cupy.cuda.Device``."""

    def __init__(self, cupy: FakeCupy, index: int) -> None:
        self.cupy, self.id = cupy, index
        self.attributes = {"MultiProcessorCount": cupy.multiprocessors}
        self._former: list[int] = []

    def __enter__(self) -> FakeDevice:
        self._former.append(self.cupy.current_device)
        self.cupy.current_device = self.id
        return self

    def __exit__(self, *exc: object) -> None:
        self.cupy.current_device = self._former.pop()

    def synchronize(self) -> None:
        self.cupy.streams.forbid("a wait")
        self.cupy.counts.syncs += 1


class _Ufunc:
    """A CuPy ufunc: a function with ``at``."""

    def __init__(self, cupy: FakeCupy, ufunc: np.ufunc) -> None:
        self.cupy, self.ufunc = cupy, ufunc

    def __call__(self, *args: Any, out: Any = None, **kwargs: Any) -> Any:
        if out is None:
            return self.cupy._new(self.ufunc(*map(_unwrap, args), **kwargs))
        self.ufunc(*map(_unwrap, args), out=_unwrap(out), **kwargs)
        return out

    def at(self, a: FakeArray, index: Any, b: Any) -> None:
        self.ufunc.at(a.host, _unwrap(index), _unwrap(b))


_UFUNCS = (
    *("abs", "add", "subtract", "multiply", "divide", "maximum", "minimum", "exp", "expm1", "log", "log1p", "tanh"),
    *("sqrt", "square", "sign", "isfinite", "isnan", "matmul", "sin", "cos"),
)
_FUNCTIONS = (
    *("sum", "mean", "max", "min", "all", "any", "argmax", "where", "clip", "full_like", "ones_like", "zeros_like"),
    *("dot", "concatenate", "stack"),
)


class FakeCupy:
    """Stands for the module ``cupy``."""

    __name__ = "cupy"
    ndarray = FakeArray

    def __init__(self, shim: HostShim, multiprocessors: int = 2, devices: int = 2) -> None:
        self.shim, self.counts, self.current_device = shim, Counts(), 0
        self.streams = Streams(self)
        self.multiprocessors = multiprocessors
        for name in _UFUNCS:
            setattr(self, name, _Ufunc(self, getattr(np, name)))
        for name in _FUNCTIONS:
            setattr(self, name, self._function(getattr(np, name)))
        self.math_mode = 0
        self.locked: list[np.ndarray] = []
        self.pool = FakePool()
        self.cuda = SimpleNamespace(
            memory=SimpleNamespace(OutOfMemoryError=FakeOutOfMemoryError),
            Device=lambda index=None: FakeDevice(self, self.current_device if index is None else index),
            runtime=SimpleNamespace(
                getDevice=lambda: self.current_device,
                getDeviceCount=lambda: devices,
                memGetInfo=lambda: (self.pool.limit - self.pool.held, self.pool.limit),
                getDeviceProperties=lambda index: {"name": b"Emulated GPU", "major": 9, "minor": 0},
                CUDARuntimeError=FakeError,
            ),
            get_current_stream=lambda: self.streams.current,
            Stream=self.streams.new,
            Event=lambda disable_timing=False: FakeEvent(self.streams),
            alloc_pinned_memory=self._locked,
            get_elapsed_time=lambda start, end: end.time - start.time,
            cublas=SimpleNamespace(
                sgemm=self._gemm(np.float32),
                dgemm=self._gemm(np.float64),
                gemmEx=self._gemm_ex,
                getMathMode=lambda handle: self.math_mode,
                setMathMode=lambda handle, mode: setattr(self, "math_mode", mode),
            ),
            device=SimpleNamespace(get_cublas_handle=lambda: 1),
        )

    def RawModule(self, **kwargs: Any) -> FakeModule:
        return FakeModule(self, **kwargs)

    def _locked(self, nbytes: int) -> np.ndarray:
        """``alloc_pinned_memory``: at least as many bytes."""
        self.locked.append(np.zeros(nbytes + 16, np.uint8))
        return self.locked[-1]

    def get_default_memory_pool(self) -> Any:
        return self.pool

    # ---- arrays ---------------------------------------------------------------------------------
    def empty(self, shape: Any, dtype: Any = np.float64) -> FakeArray:
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        self.streams.forbid("an allocation")
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.pool.take(nbytes)
        memory = Memory(nbytes)
        weakref.finalize(memory, self.pool.give_back, nbytes)
        self.counts.allocations += 1
        return FakeArray(self, memory.bytes.view(dtype).reshape(shape), memory, self.current_device)

    def _new(self, host: Any) -> FakeArray:
        host = np.asarray(host)
        out = self.empty(host.shape, host.dtype)
        out.host[...] = host
        return out

    def zeros(self, shape: Any, dtype: Any = np.float64) -> FakeArray:
        out = self.empty(shape, dtype)
        out.host.fill(0)
        return out

    def full(self, shape: Any, value: Any, dtype: Any = None) -> FakeArray:
        return self._new(np.full(shape, _unwrap(value), dtype))

    def arange(self, *args: Any, **kwargs: Any) -> FakeArray:
        return self._new(np.arange(*args, **kwargs))

    def asarray(self, x: Any, dtype: Any = None, order: str | None = None) -> FakeArray:
        if isinstance(x, FakeArray):
            if x.device.id == self.current_device and dtype in (None, x.dtype):
                return x
            return self._new(x.host if dtype is None else x.host.astype(dtype))
        if hasattr(x, "__cuda_array_interface__"):  # memory on the device: no copy
            described = x.__cuda_array_interface__
            dtype = np.dtype(described["typestr"])
            nbytes = int(np.prod(described["shape"])) * dtype.itemsize
            cells = (ctypes.c_uint8 * nbytes).from_address(described["data"][0])
            host = np.frombuffer(cells, dtype).reshape(described["shape"])
            return FakeArray(self, host, Memory(0), self.current_device)
        x = np.asarray(x, dtype)
        if (x.dtype.kind in "OSUV" and x.dtype.char != "E") or not x.dtype.isnative:  # E: bfloat16
            raise ValueError(f"Unsupported dtype {x.dtype}")
        self.counts.uploads += 1
        return self._new(x)

    def from_dlpack(self, x: Any) -> FakeArray:
        if isinstance(x, FakeArray):
            return x._view(x.host)
        return FakeArray(self, np.from_dlpack(x.on_host), Memory(0), self.current_device)

    def ascontiguousarray(self, x: FakeArray, dtype: Any = None) -> FakeArray:
        if not isinstance(x, FakeArray):
            raise TypeError(f"Unsupported type {type(x)}")
        if x.flags.c_contiguous and dtype in (None, x.dtype) and x.ndim:
            return x
        return self._new(np.ascontiguousarray(x.host, dtype))

    def copyto(self, dst: FakeArray, src: FakeArray, casting: str = "same_kind") -> None:
        self.streams.do(lambda: np.copyto(_unwrap(dst), _unwrap(src), casting=casting))  # type: ignore[arg-type]

    def _function(self, function: Any) -> Any:
        def call(*args: Any, out: Any = None, **kwargs: Any) -> Any:
            if out is None:
                return self._new(function(*map(_unwrap, args), **kwargs))
            function(*map(_unwrap, args), out=_unwrap(out), **kwargs)
            return out

        return call

    # ---- cuBLAS ---------------------------------------------------------------------------------
    def _gemm(self, dtype: Any) -> Any:
        ctype = ctypes.c_float if dtype is np.float32 else ctypes.c_double

        def gemm(
            handle: int, trans_a: int, trans_b: int, m: int, n: int, k: int, alpha: int, a: int, lda: int, b: int,
            ldb: int, beta: int, c: int, ldc: int,
        ) -> None:  # fmt: skip
            self.counts.launches += 1
            self.counts.kernels.append("gemm")
            A = _stored(a, dtype, k, m, lda).T if trans_a else _stored(a, dtype, m, k, lda)
            B = _stored(b, dtype, n, k, ldb).T if trans_b else _stored(b, dtype, k, n, ldb)
            if dtype is np.float32 and self.math_mode == 3:  # CUBLAS_TF32_TENSOR_OP_MATH
                A, B = tf32(A), tf32(B)
            C = _stored(c, dtype, m, n, ldc)
            scale_a, scale_c = (ctype.from_address(at).value for at in (alpha, beta))
            product = dtype(scale_a) * (A @ B)
            C[...] = product if scale_c == 0 else product + dtype(scale_c) * C

        return gemm

    def _gemm_ex(
        self, handle: int, trans_a: int, trans_b: int, m: int, n: int, k: int, alpha: int, a: int, type_a: int,
        lda: int, b: int, type_b: int, ldb: int, beta: int, c: int, type_c: int, ldc: int, compute: int, algo: int,
    ) -> None:  # fmt: skip
        """``gemmEx`` on factors of 16 bits."""
        # CUDA_R_32F is 0, CUBLAS_COMPUTE_32F 68, CUBLAS_GEMM_DEFAULT -1
        if type_a not in (2, 14) or type_b != type_a or type_c not in (type_a, 0) or (compute, algo) != (68, -1):
            raise ValueError("CUBLAS_STATUS_NOT_SUPPORTED")
        self.counts.launches += 1
        self.counts.kernels.append("gemmEx")
        kind, result = _cuda_type(type_a), _cuda_type(type_c)
        A = _stored(a, kind, k, m, lda).T if trans_a else _stored(a, kind, m, k, lda)
        B = _stored(b, kind, n, k, ldb).T if trans_b else _stored(b, kind, k, n, ldb)
        C = _stored(c, result, m, n, ldc)
        scale_a, scale_c = (np.float32(ctypes.c_float.from_address(at).value) for at in (alpha, beta))
        A, B = A.astype(np.float32), B.astype(np.float32)
        product = A @ B
        if not self.math_mode & 16:  # without CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: sums rounded midway
            product = A[:, k // 2 :] @ B[k // 2 :] + (A[:, : k // 2] @ B[: k // 2]).astype(result).astype(np.float32)
        product = scale_a * product
        C[...] = (product if scale_c == 0 else product + scale_c * C.astype(np.float32)).astype(result)
