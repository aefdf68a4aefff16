"""Matrix products through cuBLASLt: bias and activation in the product's epilogue, and nothing hidden.

CuPy's own products cannot be captured in a graph. cuBLASLt's can: the workspace is the caller's, the algorithm is
chosen beforehand, and a call launches kernels and does nothing else. It is called through ctypes.

cuBLASLt counts in columns. A row-major ``C = A B`` is its ``C^T = B^T A^T``, so what it calls A is our B; a bias is
then added along our columns, as a layer wants it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_float, c_int32, c_uint32, c_uint64, c_void_p
from dataclasses import astuple, dataclass
from typing import Any

from .cublaslt_library import Algorithm, CublasLtError, Heuristic, Library

__all__ = [
    "BIAS",
    "COMPUTE",
    "DEFAULT",
    "DGELU_BGRAD",
    "DRELU_BGRAD",
    "GELU_AUX_BIAS",
    "GELU_BIAS",
    "RELU_AUX_BIAS",
    "RELU_BIAS",
    "TYPES",
    "Plan",
    "Problem",
    "alignment",
    "mask_bits",
]

# cublasLtEpilogue_t. Its GELU is the tanh approximation.
DEFAULT, BIAS, RELU_BIAS, GELU_BIAS = 1, 4, 6, 36
# The same, and what the backward pass needs: a bit for each number that is above 0, or GELU's input
RELU_AUX_BIAS, GELU_AUX_BIAS = 134, 164
# The product times the activation's slope, by what the forward pass left; and its column sums, the bias gradient
DRELU_BGRAD, DGELU_BGRAD = 152, 208

#: cudaDataType_t of each dtype
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
#: cublasComputeType_t. Without FAST_TF32 float32 is computed in float32.
COMPUTE = {"float32": 68, "float64": 70, "tf32": 77}

# cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t
_TRANSA, _TRANSB, _EPILOGUE, _BIAS_POINTER, _AUX_POINTER, _AUX_LD = 3, 4, 7, 8, 11, 12
_WORKSPACE_BYTES, _REDUCTION_SCHEMES, _ALIGNMENT_A = 1, 3, 5
# cublasLtReductionScheme_t: parts of a long sum are added up in float32, or it has no parts
_IN_COMPUTE_TYPE = 2
_NOT_SUPPORTED = 15

#: Algorithms that are asked for, best first
CANDIDATES = 8


def alignment(*addresses: int) -> int:
    """Bytes that all of these addresses are aligned to: a power of two up to 256."""
    together = 256
    for address in addresses:
        together |= address
    return together & -together


def mask_bits(columns: int) -> int:
    """Bits between two rows of the mask that ReLU leaves: the library wants a multiple of 128."""
    return -(-columns // 128) * 128


@dataclass(frozen=True)
class Problem:
    """What an algorithm is chosen for: row-major ``C = op(A) op(B)``, with an epilogue.

    Attributes
    ----------
    m, n, k : int
        Rows and columns of C, length of the sum.
    dtype : str
        Of A and B: float32, float64, float16 or bfloat16.
    compute : str
        float32 (that of 16 bits, too), tf32 or float64.
    trans_a, trans_b : bool
        Whether the operand is stored as its transpose.
    epilogue : int
        :data:`DEFAULT`, :data:`BIAS`, :data:`RELU_BIAS`, :data:`GELU_BIAS`, or one of those above for training.
    accumulate : bool
        Whether the product is added to what is in C.
    aligned : tuple of int
        Bytes that A, B and C are aligned to, see :func:`alignment`.
    aux : int
        Elements (of a mask: bits) between two rows of what the epilogue leaves, or reads, beside C; 0: there is none.
    out : str
        Dtype of C, the bias, and GELU's input beside C: by default `dtype`; of factors of 16 bits it may be float32.
    """

    m: int
    n: int
    k: int
    dtype: str
    compute: str
    trans_a: bool = False
    trans_b: bool = False
    epilogue: int = DEFAULT
    accumulate: bool = False
    aligned: tuple[int, int, int] = (16, 16, 16)
    aux: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", self.out or self.dtype)

    @property
    def key(self) -> str:
        """All of it as text; without `out` where there is but one choice, as choices on disk are named."""
        fields = astuple(self)
        return "-".join(map(str, fields[:-1] if self.out == self.dtype in ("float32", "float64") else fields))

    @property
    def bias_alignment(self) -> int:
        """Bytes that the bias is aligned to: parameters start at multiples of 16 elements."""
        return 32 if self.out in ("float16", "bfloat16") else 64


class Plan:
    """A problem with its descriptors and the algorithms that can solve it.

    Parameters
    ----------
    library : Library
        cuBLASLt.
    problem : Problem
        What is computed.
    workspace : int
        Bytes that an algorithm may use.

    Attributes
    ----------
    candidates : list of Algorithm
        What the library proposes, best first; never empty.
    algorithm : Algorithm
        The one that :meth:`run` uses.

    Raises
    ------
    CublasLtError
        If the library has no algorithm for this problem, with status 15.
    """

    def __init__(self, library: Library, problem: Problem, workspace: int) -> None:
        self.library, self.problem, self.workspace = library, problem, workspace
        kind, scale = TYPES[problem.dtype], TYPES["float64" if problem.dtype == "float64" else "float32"]
        number = ctypes.c_double if problem.dtype == "float64" else c_float
        self._alpha, self._beta = number(1.0), number(1.0 if problem.accumulate else 0.0)
        m, n, k = problem.m, problem.n, problem.k
        self._owned: list[tuple[str, c_void_p]] = []
        self._lock = threading.Lock()  # the operation holds the address of the bias

        def layout(rows: int, columns: int, kind: int = kind) -> c_void_p:
            """Of a row-major matrix, which the library sees with rows and columns exchanged."""
            return self._made("MatrixLayout", kind, columns, rows, columns)

        self._operation = self._made("MatmulDesc", COMPUTE[problem.compute], scale)
        for attribute, value in (
            (_TRANSA, int(problem.trans_b)),
            (_TRANSB, int(problem.trans_a)),
            (_EPILOGUE, problem.epilogue),
        ):
            number32 = c_int32(value)
            library.call("cublasLtMatmulDescSetAttribute", self._operation, attribute, byref(number32), 4)
        if problem.aux:
            self._point(_AUX_LD, ctypes.c_int64(problem.aux))
        self._b = layout(n, k) if problem.trans_b else layout(k, n)
        self._a = layout(k, m) if problem.trans_a else layout(m, k)
        self._c = layout(m, n, TYPES[problem.out])
        with self._somewhere():
            self.candidates = self._heuristics()
        self.algorithm = self.candidates[0]

    @contextmanager
    def _somewhere(self) -> Iterator[None]:
        """Within it, the operation has addresses: nothing is read there, but their alignment says what can be done."""
        places = [(_AUX_POINTER, 256)] * bool(self.problem.aux)
        places += [(_BIAS_POINTER, self.problem.bias_alignment)] * (self.problem.epilogue != DEFAULT)
        for attribute, address in places:
            self._point(attribute, c_void_p(address))
        try:
            yield
        finally:
            for attribute, _ in places:
                self._point(attribute, c_void_p(0))

    def _point(self, attribute: int, value: Any) -> None:
        """Set an attribute of eight bytes of the operation."""
        self.library.call("cublasLtMatmulDescSetAttribute", self._operation, attribute, byref(value), 8)

    def _made(self, name: str, *arguments: Any) -> c_void_p:
        made = self.library.created(name, *arguments)
        self._owned.append((name, made))
        return made

    def __del__(self) -> None:
        for name, made in getattr(self, "_owned", []):
            self.library.call(f"cublasLt{name}Destroy", made)

    def _heuristics(self) -> list[Algorithm]:
        library = self.library
        preference = self._made("MatmulPreference")
        settings: list[tuple[int, Any]] = [(_WORKSPACE_BYTES, c_uint64(self.workspace))]
        if self.problem.out in ("float16", "bfloat16"):  # else sums may be rounded to it midway
            settings.append((_REDUCTION_SCHEMES, c_uint32(_IN_COMPUTE_TYPE)))
        a, b, c = self.problem.aligned
        settings += [(_ALIGNMENT_A + i, c_uint32(value)) for i, value in enumerate((b, a, c, c))]
        for attribute, value in settings:
            size = ctypes.sizeof(value)
            library.call("cublasLtMatmulPreferenceSetAttribute", preference, attribute, byref(value), size)
        found, results = c_int32(), (Heuristic * CANDIDATES)()
        library.call(
            "cublasLtMatmulAlgoGetHeuristic", library.handle, self._operation, self._b, self._a, self._c, self._c,
            preference, CANDIDATES, results, byref(found),
        )  # fmt: skip
        good = [result.algorithm for result in results[: found.value] if result.status == 0]
        if not good:
            raise CublasLtError("cublasLtMatmulAlgoGetHeuristic", _NOT_SUPPORTED)
        return [Algorithm.from_buffer_copy(algorithm) for algorithm in good]

    def accepts(self, algorithm: Algorithm) -> bool:
        """Whether `algorithm`, from an earlier process, solves this problem within the workspace."""
        result = Heuristic()
        try:
            with self._lock, self._somewhere():
                self.library.call(
                    "cublasLtMatmulAlgoCheck", self.library.handle, self._operation, self._b, self._a, self._c, self._c,
                    byref(algorithm), byref(result),
                )  # fmt: skip
        except CublasLtError:
            return False
        return result.workspace <= self.workspace

    def choose(self, seconds: Callable[[Algorithm], float]) -> None:
        """Use the candidate that is fastest by ``seconds(algorithm)``; those that fail are left out."""
        times: list[tuple[float, int]] = []
        for number, algorithm in enumerate(self.candidates):
            try:
                times.append((seconds(algorithm), number))
            except CublasLtError:
                continue
        if not times:
            raise CublasLtError("cublasLtMatmul", _NOT_SUPPORTED)
        self.algorithm = self.candidates[min(times)[1]]

    def run(
        self,
        a: int,
        b: int,
        c: int,
        bias: int,
        workspace: int,
        stream: int,
        aux: int = 0,
        algorithm: Algorithm | None = None,
    ) -> None:
        """Compute, on a stream; all are addresses on the device, `bias` and `aux` 0 where there is none.

        The epilogues of the backward pass write their bias gradient to `bias`.
        """
        with self._lock:
            if bias:
                self._point(_BIAS_POINTER, c_void_p(bias))
            if aux:
                self._point(_AUX_POINTER, c_void_p(aux))
            self.library.call(
                "cublasLtMatmul", self.library.handle, self._operation, byref(self._alpha), b, self._b, a, self._a,
                byref(self._beta), c, self._c, c, self._c, byref(algorithm or self.algorithm), workspace,
                self.workspace, stream,
            )  # fmt: skip
