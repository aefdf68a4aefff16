"""Matrix products on a GPU: cuBLASLt, with bias and activation in its epilogue; CuPy's cuBLAS where that has nothing.

The best of the algorithms that cuBLASLt proposes is found by timing when a problem is met for the first time, and
remembered on disk. What falls back to CuPy computes the same, but cannot be part of a graph.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..kernels.cuda.algorithms import Algorithms
from ..kernels.cuda.cublaslt import BIAS, DEFAULT, GELU_BIAS, RELU_BIAS, Plan, Problem, alignment
from ..kernels.cuda.cublaslt_library import Algorithm, CublasLtError, Library, find
from .base import Array
from .cupy_arrays import DTYPES, HALF, CupyArrays

__all__ = ["EPILOGUES", "CudaProducts"]

_log = logging.getLogger("nnfast")

#: Epilogues that add a bias and apply an activation
EPILOGUES = {"identity": BIAS, "relu": RELU_BIAS, "gelu_tanh": GELU_BIAS}

# Bytes that an algorithm may work in, for each stream
_WORKSPACE = 32 << 20
# Runs of each candidate that are timed
_RUNS = 3
# cublasMath_t; the last one: sums of 16 bits are not rounded to these midway
_DEFAULT_MATH, _TF32_MATH, _NO_REDUCED_SUMS = 0, 3, 16

_Addresses = tuple[int, int, int, int, int, int, int]  # A, B, C, bias, workspace, stream, aux


class CudaProducts(CupyArrays):
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    working_bytes = _WORKSPACE
    epilogues = EPILOGUES
    _scratch: Any
    _refuse: Any
    _recording: Any
    _across: Any

    def __init__(self, device_index: int, fused: bool) -> None:
        super().__init__(device_index, fused)
        self._plans: dict[Problem, Plan | None] = {}
        self._cublaslt = self._open_cublaslt() if fused else None
        if self._cublaslt is not None:
            self._algorithms = self._remembered(self._cublaslt)

    def fallbacks(self) -> dict[str, Any]:
        without, plain = copy.copy(self), copy.copy(self)
        without._cublaslt, plain.epilogues = None, {}
        for other in (without, plain):  # what it finds to be faster does not hold for this one
            other._across = {}
        return {"cuBLASLt": without, "epilogues": plain}

    def _open_cublaslt(self) -> Library | None:
        try:
            with self._device:
                return Library(find())
        except (ImportError, OSError, CublasLtError) as error:
            _log.warning("products go through CuPy, and steps are not captured in graphs: %s", error)
            return None

    def _gpu(self) -> str:
        """The GPU's name and capability."""
        properties = self._cupy.cuda.runtime.getDeviceProperties(self._index)
        return f"{properties['name'].decode()} {properties['major']}.{properties['minor']}"

    def _remembered(self, library: Library) -> Algorithms:
        return Algorithms(self._gpu(), library.version)

    @contextmanager
    def rounding(self) -> Iterator[None]:
        before, self._recording.rounding = self._recording.rounding, True
        try:
            yield
        finally:
            self._recording.rounding = before

    def gemm(
        self, a: Array, b: Array, *, out: Array, trans_a: bool = False, trans_b: bool = False, beta: float = 0.0
    ) -> None:
        if not self._product(a, b, out, trans_a, trans_b, beta):
            self._refuse("a matrix product that cuBLASLt does not do")
            handle = self._cupy.cuda.device.get_cublas_handle()
            before = self._cublas.getMathMode(handle)
            if a.dtype.char in HALF:
                mode = _NO_REDUCED_SUMS
            else:
                mode = _TF32_MATH if self._recording.rounding else _DEFAULT_MATH
            self._cublas.setMathMode(handle, mode)
            try:
                super().gemm(a, b, out=out, trans_a=trans_a, trans_b=trans_b, beta=beta)
            finally:
                self._cublas.setMathMode(handle, before)

    def _product(
        self,
        a: Array,
        b: Array,
        out: Array,
        trans_a: bool = False,
        trans_b: bool = False,
        beta: float = 0.0,
        epilogue: int = DEFAULT,
        bias: Array | None = None,
        aux: tuple[Array, int] | None = None,
    ) -> bool:
        """``out = f(op(a) @ op(b) + beta * out + bias)`` by cuBLASLt; whether it could.

        `aux` is what the epilogue leaves or reads beside that, with the elements (bits) between two rows of it. `bias`
        has the dtype of `out`, GELU's input, too. Of factors of 16 bits `out` may be float32, but without an epilogue.
        """
        kind, result = a.dtype.char, out.dtype.char
        m, k = a.shape[::-1] if trans_a else a.shape
        k_b, n = b.shape[::-1] if trans_b else b.shape
        arrays = [x for x in (a, b, out, bias) if x is not None]
        contiguous = all(x.flags.c_contiguous for x in arrays)
        widened = kind in HALF and result == "f" and epilogue == DEFAULT
        alike = b.dtype.char == kind and (result == kind or widened) and (bias is None or bias.dtype.char == result)
        fits = k == k_b and out.shape == (m, n) and (bias is None or bias.shape == (n,))
        if self._cublaslt is None or kind not in DTYPES or not (alike and contiguous and fits) or 0 in (m, n, k):
            return False
        if beta not in (0.0, 1.0):
            return False
        aligned = (alignment(a.data.ptr), alignment(b.data.ptr), alignment(out.data.ptr))
        compute = "tf32" if kind == "f" and self._recording.rounding else DTYPES["f" if kind in HALF else kind]
        held, stride = (0, 0) if aux is None else (aux[0].data.ptr, aux[1])
        problem = Problem(
            m, n, k, DTYPES[kind], compute, trans_a, trans_b, epilogue, beta == 1.0, aligned, stride, DTYPES[result]
        )  # fmt: skip
        given = 0 if bias is None else bias.data.ptr
        if given % problem.bias_alignment:
            return False
        stream = self._cupy.cuda.get_current_stream().ptr
        workspace = self._scratch("cublaslt", _WORKSPACE, "uint8").data.ptr
        addresses = (a.data.ptr, b.data.ptr, out.data.ptr, given, workspace, stream, held)
        if problem not in self._plans:
            self._plans[problem] = self._planned(self._cublaslt, problem, addresses)
        plan = self._plans[problem]
        if plan is None:
            return False
        plan.run(*addresses)
        return True

    def _planned(self, library: Library, problem: Problem, addresses: _Addresses) -> Plan | None:
        """A plan with the best algorithm, ``None`` where there is none for the problem."""
        try:
            plan = Plan(library, problem, _WORKSPACE)
        except CublasLtError as error:
            _log.info("cuBLASLt has no algorithm for %s: %s", problem, error)
            return None
        # A product that adds to its result would add several times; while a graph is captured nothing can be tried
        trial = not problem.accumulate and not self._recording.capturing
        known = self._algorithms.get(problem.key)
        if known is not None and plan.accepts(known) and (not trial or self._runs(plan, addresses, known)):
            plan.algorithm = known
            return plan
        if not trial:
            return plan
        try:
            plan.choose(lambda algorithm: self._milliseconds(lambda: plan.run(*addresses, algorithm=algorithm)))
        except CublasLtError as error:
            _log.info("cuBLASLt cannot compute %s: %s", problem, error)
            return None
        self._algorithms.put(problem.key, plan.algorithm)
        return plan

    def _runs(self, plan: Plan, addresses: _Addresses, algorithm: Algorithm) -> bool:
        """Whether `algorithm` does what it was accepted for."""
        try:
            plan.run(*addresses, algorithm=algorithm)
        except CublasLtError:
            return False
        return True

    def _milliseconds(self, work: Callable[[], Any]) -> float:
        """Time of `work` on the current stream, after a first run."""
        cuda = self._cupy.cuda
        work()
        start, end = cuda.Event(), cuda.Event()
        start.record()
        for _ in range(_RUNS):
            work()
        end.record()
        end.synchronize()
        return float(cuda.get_elapsed_time(start, end)) / _RUNS
