"""Convolutions by cuDNN, where its frontend is installed (the extra ``cudnn``) and faster than the kernels here.

A problem is compared once: every plan of cuDNN must give what the kernels give, and the fastest of all is remembered on
disk. Where nothing was compared (while a graph is captured), or cuDNN is not there, the kernels compute.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from .. import activations
from ..activations import Activation
from ..errors import OutOfMemoryError
from ..kernels.cuda import cudnn_graphs
from ..kernels.cuda.algorithms import table
from ..kernels.cuda.cublaslt import alignment
from ..kernels.cuda.cudnn_graphs import BIAS, FACTOR, RESULT, SOURCE, Convolution, CudnnError, Library, Plan
from ..kernels.remembered import Remembered
from ..window import Window
from .base import Array
from .cupy_arrays import DTYPES, HALF

__all__ = ["CHOICES", "CudaCudnn"]

_log = logging.getLogger("nnfast")

#: What ``NNFAST_CONV`` may say; "own" are the kernels here
CHOICES = ("measured", "own", "cudnn")

# Bytes that a plan may work in
_WORKSPACE = 128 << 20
# Bytes that graphs' arrays are aligned to
_ALIGNMENT = 16
# Products in a convolution below which it is not asked: launches are most of the time, and it takes one more
_FEWEST_PRODUCTS = 1 << 24
# By what is computed in: how far a plan may be off, as a share of the largest result
_TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "tf32": 2e-2}
_HALF_TOLERANCE = 3e-2
# On disk, of a problem that the kernels compute
_OWN = ""

_Work = Callable[[Plan, int], None]


class CudaCudnn:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _cupy: Any
    _device: Any
    _recording: Any
    _launch: Any
    _scratch: Any
    _bias_act: Any
    _rows: Any
    _stream: Any
    _gpu: Any
    _milliseconds: Any
    fused: bool
    fill: Any
    to_numpy: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._conv_choice = self._conv_asked_for()
        self._conv_library: list[Library | None] = []  # one, once it was asked for
        self._conv_plans: dict[Convolution, tuple[Plan, int] | None] = {}

    def fallbacks(self) -> dict[str, Any]:
        found: dict[str, Any] = super().fallbacks()  # type: ignore[misc]
        if self._cudnn() is None:
            return found
        for missing, choice in (("cuDNN", "own"), ("kernels for convolutions", "cudnn")):
            other = copy.copy(self)
            other._conv_choice, other._conv_plans = choice, {}
            found[missing] = other
        return found

    # ---- the library ------------------------------------------------------------------------------
    def _conv_asked_for(self) -> str:
        asked = os.environ.get("NNFAST_CONV") or CHOICES[0]
        if asked not in CHOICES:
            raise ValueError(f"NNFAST_CONV is {asked!r}; expected {', '.join(map(repr, CHOICES))}")
        return asked

    def _cudnn(self) -> Library | None:
        """The library, loaded when a convolution first asks for it."""
        if not self.fused or self._conv_choice == "own":
            return None
        if not self._conv_library:
            library = self._open_cudnn()
            if library is not None:
                self._conv_choices = self._remembered_convolutions(library)
            self._conv_library.append(library)  # last: another thread may look for it
        return self._conv_library[0]

    def _open_cudnn(self) -> Library | None:
        try:
            with self._device:
                return Library(cudnn_graphs.find())
        except ModuleNotFoundError:
            return None  # it is an extra
        except (OSError, CudnnError) as error:
            _log.warning("convolutions do not go through cuDNN: %s", error)
            return None

    def _remembered_convolutions(self, library: Library) -> Remembered:
        return table("cudnn", self._gpu(), library.version, lambda value: isinstance(value, str))

    # ---- what convolutions ask for ----------------------------------------------------------------
    def _cudnn_forward(
        self,
        t: str,
        x: Array,
        W: Array,
        b: Array | None,
        act: Activation,
        saved: Array | None,
        out: Array,
        window: Window,
        groups: int,
        own: Callable[[], None],
    ) -> bool:
        """``out = f(x * W + b)``, which `own` computes, too; whether it was done."""
        problem = self._problem("forward", x, window, groups, out, b)
        if problem is None:
            return False
        problem = replace(problem, bias=b is not None)
        pixels, z = out.reshape(-1, out.shape[3]), None if saved is None else saved.reshape(-1, out.shape[3])

        def convolve(plan: Plan, number: int, bias: Array | None) -> None:
            by_rows = self._turned(t, W, W.shape[3])
            self._run(plan, number, {SOURCE: x, FACTOR: by_rows, BIAS: bias, RESULT: out})

        def work(plan: Plan, number: int) -> None:
            convolve(plan, number, b)
            softmax = act.name == "softmax"
            pointwise = activations.get(None) if plan.problem.relu or softmax else act
            if pointwise.name != "identity" or z is not None:
                self._bias_act(t, pointwise, pixels, None, z, pixels)
            if softmax:
                self._rows(t, "softmax", out, out, out)

        def keeps_nan(plan: Plan, number: int) -> bool:
            """Whether what is not a number comes through the plan's ReLU: a training that fails must be seen to."""
            nothing = self._scratch(f"not a number {x.dtype.char}", out.shape[3], x.dtype)
            self.fill(nothing, float("nan"))
            convolve(plan, number, nothing)
            return bool(np.isnan(self.to_numpy(out).astype(np.float64)).all())

        fusable = act.name == "relu" and b is not None and saved is None
        if fusable and self._by_cudnn(replace(problem, relu=True), out, own, work, keeps_nan):
            return True
        return self._by_cudnn(problem, out, own, work)

    def _cudnn_image(
        self, t: str, dy: Array, W: Array, window: Window, groups: int, dx: Array, own: Callable[[], None]
    ) -> bool:
        """The gradient with respect to the image, which `own` computes, too; whether it was done."""
        problem = self._problem("image", dx, window, groups, dy)

        def work(plan: Plan, number: int) -> None:
            by_rows = self._turned(t, W, W.shape[3])
            self._run(plan, number, {SOURCE: dy, FACTOR: by_rows, RESULT: dx})

        return problem is not None and self._by_cudnn(problem, dx, own, work)

    def _cudnn_weights(
        self, t: str, dy: Array, x: Array, window: Window, groups: int, dW: Array, own: Callable[[], None]
    ) -> bool:
        """The gradient with respect to the weights, which `own` computes, too; whether it was done.

        Of 16 bits it is kept in float32, which cuDNN has no plan for.
        """
        problem = None if dW.dtype != x.dtype else self._problem("weights", x, window, groups, dy)

        def work(plan: Plan, number: int) -> None:
            by_rows = self._scratch(f"by rows {dW.dtype.char}", dW.size, dW.dtype)
            self._run(plan, number, {SOURCE: dy, FACTOR: x, RESULT: by_rows})
            self._turn(t, by_rows, dW, dW.shape[3], dW.size // dW.shape[3])

        return problem is not None and self._by_cudnn(problem, dW, own, work)

    def _problem(
        self, kind: str, image: Array, window: Window, groups: int, result: Array, bias: Array | None = None
    ) -> Convolution | None:
        """What cuDNN is asked for; ``None`` where it cannot be.

        Its results are as large as the windows say, and its plans take every array to be aligned. Weights are in
        working memory, which is.
        """
        (top, bottom), (left, right) = window.padding
        products = result.size * prod(window.size) * (image.shape[3] // groups)
        if products < _FEWEST_PRODUCTS and self._conv_choice == "measured":
            return None
        if self._cudnn() is None or window.out_size(*image.shape[1:3]) != result.shape[1:3]:
            return None
        addresses = [array.data.ptr for array in (image, result, bias) if array is not None]
        if min(top, bottom, left, right) < 0 or alignment(*addresses) < _ALIGNMENT:
            return None
        char = image.dtype.char
        rounding = char == "f" and self._recording.rounding
        return Convolution(
            kind, image.shape, result.shape, window.size, window.stride, (top, left), (bottom, right), window.dilation,
            groups, DTYPES[char], "tf32" if rounding else DTYPES["f" if char in HALF else char],
        )  # fmt: skip

    # ---- which way --------------------------------------------------------------------------------
    def _by_cudnn(
        self,
        problem: Convolution,
        result: Array,
        own: Callable[[], None],
        work: _Work,
        holds: Callable[[Plan, int], bool] = lambda plan, number: True,
    ) -> bool:
        """Do `work` by the plan that was found best for a problem; ``False`` where there is none."""
        if problem not in self._conv_plans:
            if self._recording.capturing:
                return False
            self._conv_plans[problem] = self._compared(problem, result, own, work, holds)
        chosen = self._conv_plans[problem]
        if chosen is None:
            return False
        work(*chosen)
        return True

    def _compared(
        self,
        problem: Convolution,
        result: Array,
        own: Callable[[], None],
        work: _Work,
        holds: Callable[[Plan, int], bool],
    ) -> tuple[Plan, int] | None:
        """The fastest plan that gives what `own` gives, if it is faster; what is remembered is taken as it is."""
        library = self._cudnn()
        assert library is not None
        measured = self._conv_choice == "measured"
        known = self._conv_choices.get(problem.key) if measured else None
        if known == _OWN:
            return None
        try:
            plan = Plan(library, problem)
            for number, _ in plan.candidates(_WORKSPACE, known) if known is not None else ():
                work(plan, number)
                return plan, number
        except CudnnError as error:  # it has no plan at all; or one that did work in an earlier process
            _log.info("%s: %s", error, problem)
            return None
        own()
        reference = self.to_numpy(result).astype(np.float64)
        best, chosen = self._milliseconds(own) if measured else float("inf"), None
        for number, name in plan.candidates(_WORKSPACE):
            took = self._trial(plan, number, name, result, reference, work, holds)
            if took < best:
                best, chosen = took, (number, name)
                if not measured:
                    break
        if measured:
            self._conv_choices.put(problem.key, _OWN if chosen is None else chosen[1])
        return None if chosen is None else (plan, chosen[0])

    def _trial(
        self,
        plan: Plan,
        number: int,
        name: str,
        result: Array,
        reference: np.ndarray,
        work: _Work,
        holds: Callable[[Plan, int], bool],
    ) -> float:
        """Milliseconds that a plan takes; infinity where it cannot be used."""
        try:
            work(plan, number)
            found = self.to_numpy(result).astype(np.float64)
            if not _agree(found, reference, plan.problem) or not holds(plan, number):
                _log.info("cuDNN's plan %s computes something else: %s", name, plan.problem)
                return float("inf")
            if not self._captures(lambda: work(plan, number)):
                _log.info("cuDNN's plan %s cannot be in a graph: %s", name, plan.problem)
                return float("inf")
            return float(self._milliseconds(lambda: work(plan, number)))
        except (CudnnError, OutOfMemoryError) as error:
            _log.info("cuDNN's plan %s: %s: %s", name, error, plan.problem)
            return float("inf")

    def _captures(self, work: Callable[[], None]) -> bool:
        """Whether work can be part of a graph."""
        runtime = self._cupy.cuda.runtime
        self._cupy.cuda.get_current_stream().synchronize()
        with self._stream() as stream:
            work()  # takes its working memory on this stream
            stream.synchronize()
            try:
                stream.begin_capture()
            except (runtime.CUDARuntimeError, RuntimeError):
                return False
            good = True
            try:
                work()
            except (CudnnError, runtime.CUDARuntimeError):
                good = False
            finally:
                try:
                    stream.end_capture()
                except (runtime.CUDARuntimeError, RuntimeError):
                    good = False
        return good

    # ---- what it is made of -----------------------------------------------------------------------
    def _run(self, plan: Plan, number: int, arrays: dict[int, Array | None]) -> None:
        needed = plan.workspace(number)
        workspace = self._scratch("cudnn", needed, "uint8").data.ptr if needed else 0
        addresses = {use: array.data.ptr for use, array in arrays.items() if array is not None}
        plan.run(number, addresses, workspace, self._cupy.cuda.get_current_stream().ptr)

    def _turned(self, t: str, W: Array, columns: int) -> Array:
        """Weights with a row for each channel of the result, in working memory."""
        by_rows = self._scratch(f"by rows {W.dtype.char}", W.size, W.dtype)
        self._turn(t, W, by_rows, W.size // columns, columns)
        return by_rows

    def _turn(
        self, t: str, matrices: Array, out: Array, rows: int, columns: int, places: int = 1, groups: int = 1
    ) -> None:
        """``turn_weights`` of ``conv.cu``; with one place and group `out` is a (rows, columns) matrix's transpose."""
        blocks = places * groups * -(-rows // 32) * -(-columns // 32)
        self._launch("conv", "turn_weights", (t,), ((blocks,), (256,)), matrices, out, groups, rows, columns)


def _agree(found: np.ndarray, reference: np.ndarray, problem: Convolution) -> bool:
    """Whether two results differ by no more than rounding; what is not finite must be so in both."""
    finite = np.isfinite(reference)
    if not np.array_equal(finite, np.isfinite(found)):
        return False
    half = problem.dtype in ("float16", "bfloat16")
    tolerance = _HALF_TOLERANCE if half else _TOLERANCE[problem.compute]
    scale = np.abs(reference, where=finite, out=np.zeros_like(reference)).max(initial=0.0)
    difference = np.abs(np.subtract(found, reference, where=finite, out=np.zeros_like(reference)))
    return bool(difference.max(initial=0.0) <= tolerance * scale)
