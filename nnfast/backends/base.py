"""The contract of a backend: what a layer, a loss or an optimizer may ask of a device.

Every compute method writes into the arrays it is given and returns nothing. Arrays are C-contiguous
and of the backend's own kind; those that a method writes do not overlap those that it reads unless
the method says so. ``act`` arguments are names or :class:`nnfast.activations.Activation` rows.
``state`` is the step state (``kernels/step_state.py``): whatever changes from step to step is read
from it on the device, so that a step can be recorded once and replayed.

The fused methods have defaults here, composed from the primitives. A backend overrides what it does
better and calls ``super()`` for what its override does not support. Setting ``fused = False`` forces
the compositions: they are the oracle of the parity tests and the baseline of the benchmarks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from .. import activations, random
from ..activations import Activation
from .attention import AttentionOperations
from .norms import NormOperations
from .recurrent import RecurrentOperations
from .replay import Feeder, Replay
from .spatial import SpatialOperations
from .steps import StepOperations

Array = Any


class Backend(NormOperations, StepOperations, SpatialOperations, RecurrentOperations, AttentionOperations, ABC):
    """Arrays and operations of one device.

    Attributes
    ----------
    name : str
        ``"numpy"``, ``"numba"`` or ``"cuda"``.
    device : str
        The device string, such as ``"cuda:1"``.
    fused : bool
        Whether fused kernels are used; ``False`` forces the composed defaults.
    working_bytes : int
        Memory that the backend itself takes for any training, about. What depends on the model is not counted: on CUDA
        a training of recurrent layers takes up to 4 arrays of ``n * steps * units`` more, those of its largest one.
    fetch_bytes : int or None
        Size of a prediction's inputs from which on :meth:`fetch` pays; None where it never does.
    """

    working_bytes = 0
    fetch_bytes: int | None = None

    name: str
    device: str

    def __init__(self, fused: bool = True) -> None:
        self.fused = fused

    def __repr__(self) -> str:
        return f"<{type(self).__name__} device={self.device!r} fused={self.fused}>"

    # ---- memory ---------------------------------------------------------------------------------
    @property
    @abstractmethod
    def xp(self) -> Any:
        """The array namespace, ``numpy`` or ``cupy``."""

    @abstractmethod
    def empty(self, shape: Any, dtype: Any) -> Array:
        """A new array, not initialised, aligned to 64 bytes.

        Raises
        ------
        OutOfMemoryError
            If the device has less memory; so do all methods that allocate.
        """

    @abstractmethod
    def zeros(self, shape: Any, dtype: Any) -> Array:
        """A new array of zeros, aligned to 64 bytes."""

    @abstractmethod
    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """`x` as a C-contiguous array of this backend; without a copy where it already is one."""

    @abstractmethod
    def to_numpy(self, x: Array) -> Any:
        """`x` as a NumPy array on the host; waits for the device."""

    @abstractmethod
    def copy(self, src: Array, *, out: Array) -> None:
        """``out[...] = src``; `src` may also be a NumPy array, of another dtype."""

    def feeder(self, outs: Sequence[Array]) -> Feeder:
        """What brings one batch after the other into the same arrays, where it can while the device computes."""
        return Feeder(self, outs)

    @abstractmethod
    def fill(self, x: Array, value: float) -> None:
        """``x[...] = value``."""

    def synchronize(self) -> None:
        """Wait until the device has finished all that was asked of it."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device's memory."""

    def release(self) -> None:
        """Give memory that is not used back to the system; called when a training has ended."""

    def capture(
        self,
        step: Callable[[Backend], None],
        temporary: Sequence[Array] = (),
        before: Callable[[], None] = lambda: None,
    ) -> Replay:
        """Record the calls that ``step(backend)`` makes, for replaying them.

        What is in the `temporary` arrays after a run is undefined: a backend need not write what only the step reads.

        A backend may pass itself or a recorder of its own to `step`, and may run `step` now, several times, or not. It
        calls `before` ahead of each run, and the caller resets what the last one would have changed. Work that does not
        go through the backend is wrapped in :meth:`python`.
        """
        return Replay(lambda: step(self))

    def fallbacks(self) -> dict[str, Backend]:
        """Backends that compute on this device as where a part of it is missing, by what is missing; for self-tests."""
        return {}

    def rounding(self) -> AbstractContextManager[None]:
        """Within it, float32 products may round their factors to 10 bits of mantissa, where that is faster."""
        return nullcontext()

    def reduced(self, precision: str) -> np.dtype | None:
        """The dtype of activations and of the copy of the weights for this precision.

        ``None``: that of the weights. A backend without 16-bit types computes every precision so.

        Raises
        ------
        ImportError
            If the dtype needs a package that is missing.
        """
        return None

    @contextmanager
    def copying(self, param: Array, low: Array) -> Iterator[None]:
        """Within it, an optimizer's step on `param` also leaves its result in `low`, rounded to the dtype of `low`.

        At the end of the block `low` is as after ``copy(param, out=low)``, if it was so at its beginning.
        """
        yield
        self.copy(param, out=low)

    def chain(self, parts: Sequence[tuple[Replay, int]]) -> Replay:
        """One replay that runs each of `parts` so many times, in order: the steps of an epoch, and its end.

        The parts come from :meth:`capture` of this backend.
        """

        def run() -> None:
            for replay, times in parts:
                replay.run(times)

        return Replay(run)

    def shuffle(self, seed: int, numbers: Sequence[int], table: np.ndarray) -> None:
        """Fill a table on the host with random orders: :func:`nnfast.random.shuffle`, the same on every backend."""
        random.shuffle(seed, numbers, table)

    def repeated(self, method: str, arguments: Mapping[str, Any]) -> None:
        """Call a method of the contract by its name; a backend may be quicker where equal calls come again."""
        getattr(self, method)(**arguments)

    def python(self, function: Callable[..., None], *args: Any) -> None:
        """Call Python code as part of a step: a user's layer, loss or optimizer.

        A recorder keeps the call itself, so that the code runs again in each replay.
        """
        function(self, *args)

    # ---- primitives -----------------------------------------------------------------------------
    @abstractmethod
    def gemm(
        self, a: Array, b: Array, *, out: Array, trans_a: bool = False, trans_b: bool = False, beta: float = 0.0
    ) -> None:
        """``out = op(a) @ op(b) + beta * out`` for 2-d arrays."""

    @abstractmethod
    def add(self, x: Array, y: Array, *, out: Array) -> None:
        """``out = x + y`` for equal shapes; `out` may be `x` or `y`."""

    @abstractmethod
    def add_bias(self, x: Array, b: Array, *, out: Array) -> None:
        """``out = x + b`` with `x` (n, m), `b` (m,); `out` may be `x`."""

    @abstractmethod
    def sum_rows(self, x: Array, *, out: Array) -> None:
        """``out = x.sum(axis=0)`` with `x` (n, m), `out` (m,), which may be of the wider dtype of weights."""

    @abstractmethod
    def act(self, act: str | Activation, z: Array, *, out: Array) -> None:
        """``out = f(z)``; `out` may be `z`. Softmax is over the last axis."""

    @abstractmethod
    def act_grad(self, act: str | Activation, dy: Array, saved: Array, *, out: Array) -> None:
        """``out = dy * f'``, from ``saved = y`` or ``z`` as the row's `saves` says; `out` may be `dy`."""

    @abstractmethod
    def dropout(self, x: Array, state: Array, *, rate: float, stream: int, out: Array) -> None:
        """Zero elements with probability `rate` and scale the rest by ``1 / (1 - rate)``.

        Element ``i`` (flat, C order) is kept where word ``i % 4`` of Philox 4x32-10 at counter
        ``(i // 4, stream, STEP mod 2**32, STEP div 2**32)``, key ``(SEED_LO, SEED_HI)``, is less than
        ``random.keep_threshold(rate)``. The backward pass is the same call on the gradient: no mask
        is stored. `out` may be `x`.
        """

    @abstractmethod
    def take_rows(self, x: Array, index: Array, *, out: Array) -> None:
        """``out[i] = x[index[i]]`` along the first axis; `index` int64, in range."""

    @abstractmethod
    def add_at_rows(self, x: Array, index: Array, *, out: Array) -> None:
        """``out[index[i]] += x[i]``, repeated indices included."""

    @abstractmethod
    def take_batch(self, x: Array, order: Array, state: Array, *, out: Array) -> None:
        """``out[i] = x[order[ROW + i]]``: the rows of the current batch; `order` int64.

        `x` and `out` have equal trailing shapes and dtypes.
        """

    @abstractmethod
    def copy_columns(self, x: Array, *, out: Array) -> None:
        """``out[...] = x`` for matrices of one shape and dtype whose rows are each in one piece, but may lie apart."""

    def fetch(self, where: Array, *, out: Array) -> None:
        """``out[...] = x`` for an x of the shape and dtype of `out`, whose rows are each in one piece.

        `where`, int64 (2,), has its address when this runs, and the bytes from row to row; nothing is done where the
        address is 0. Only backends with :attr:`fetch_bytes` have it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no fetch")

    @abstractmethod
    def store_batch(self, x: Array, state: Array, *, out: Array) -> None:
        """``out[ROW + i] = x[i]``: keep the outputs of the current batch for the epoch's metrics."""

    @abstractmethod
    def sq_norm(self, x: Array, *, out: Array) -> None:
        """``out[0] = (x**2).sum()``, accumulated in float64; `out` float64 of shape (1,)."""

    # ---- fused, composed here ---------------------------------------------------------------------
    def linear_act(
        self, x: Array, W: Array, b: Array | None, act: str | Activation, *, out: Array, saved: Array | None = None
    ) -> None:
        """``z = x @ W + b; out = f(z)``, and ``saved = z`` where `saved` is given.

        `x` (n, k), `W` (k, m), `b` (m,) or ``None``, `out` and `saved` (n, m), all of one dtype.
        """
        act = activations.get(act)
        self.gemm(x, W, out=out)
        if b is not None:
            self.add_bias(out, b, out=out)
        if saved is not None:
            self.copy(out, out=saved)
        if act.name != "identity":
            self.act(act, out, out=out)

    def linear_act_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        saved: Array | None,
        act: str | Activation,
        *,
        dx: Array | None,
        dW: Array,
        db: Array | None,
    ) -> None:
        """Gradients of :meth:`linear_act`: ``dz = dy * f'; dW = x.T @ dz; db = dz.sum(0); dx = dz @ W.T``.

        `saved` is `y` or `z` as ``act.saves`` says. `dy` is used up: it may hold `dz` afterwards.
        `dx` is ``None`` for a first layer, `db` where there is no bias. `dW` and `db` are float32 where the
        others are of 16 bits.
        """
        act = activations.get(act)
        if act.name != "identity":
            self.act_grad(act, dy, saved, out=dy)
        if db is not None:
            self.sum_rows(dy, out=db)
        self.gemm(x, dy, out=dW, trans_a=True)
        if dx is not None:
            self.gemm(dy, W, out=dx, trans_b=True)
