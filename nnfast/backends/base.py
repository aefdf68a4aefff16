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
from .recurrent import RecurrentOperations
from .replay import Feeder, Replay
from .spatial import SpatialOperations

Array = Any


class Backend(SpatialOperations, RecurrentOperations, AttentionOperations, ABC):
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

    # ---- normalisation, over rows of 2-d arrays -------------------------------------------------
    # With x, out, dy and dx of 16 bits all other arrays are float32
    @abstractmethod
    def layer_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, rstd: Array
    ) -> None:
        """``out = (x - mean) * rstd * gamma + beta`` with the statistics of each row.

        `x`, `out` (n, m); `gamma`, `beta` (m,); `mean`, ``rstd = 1 / sqrt(var + eps)`` (n,), written.
        """

    @abstractmethod
    def layer_norm_grad(
        self, dy: Array, x: Array, gamma: Array, mean: Array, rstd: Array, *, dx: Array, dgamma: Array, dbeta: Array
    ) -> None:
        """Gradients of :meth:`layer_norm`; `dx` may be ``None`` or `dy`."""

    @abstractmethod
    def batch_norm(
        self, x: Array, gamma: Array, beta: Array, *, eps: float, out: Array, mean: Array, var: Array
    ) -> None:
        """Normalise each column by the batch's own mean and (biased) variance, which are written.

        `x`, `out` (n, m); `gamma`, `beta`, `mean`, `var` (m,).
        """

    @abstractmethod
    def batch_norm_grad(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        mean: Array,
        var: Array,
        *,
        eps: float,
        dx: Array,
        dgamma: Array,
        dbeta: Array,
    ) -> None:
        """Gradients of :meth:`batch_norm`; `dx` may be ``None`` or `dy`."""

    @abstractmethod
    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float, out: Array
    ) -> None:
        """``out = (x - mean) / sqrt(var + eps) * gamma + beta`` with given statistics."""

    @abstractmethod
    def batch_norm_track(
        self,
        mean: Array,
        var: Array,
        state: Array,
        *,
        rows: int,
        momentum: float,
        running_mean: Array,
        running_var: Array,
    ) -> None:
        """``running = (1 - momentum) * running + momentum * batch``, unless a step was bad.

        The variance tracked is the unbiased one, ``var * rows / (rows - 1)``.
        """

    # ---- losses: write LOSS and BATCH_WEIGHT of the state ---------------------------------------
    # The gradient, not the loss, is multiplied by LOSS_SCALE (0 counts as 1)
    @abstractmethod
    def elementwise_loss(
        self,
        name: str,
        pred: Array,
        target: Array,
        weight: Array | None,
        state: Array,
        *,
        param: float = 0.0,
        dpred: Array | None,
    ) -> None:
        """A loss that is a mean over elements; formulas in ``backends/formulas.py``.

        `pred`, `target`, `dpred` (n, m) of one dtype, `target` float32 where the others are of 16 bits;
        `weight` (n,) or ``None`` for ones. LOSS is
        ``sum_ij w_i l_ij / (m sum_i w_i)`` and `dpred` its gradient, all zero where the weights sum
        to zero. `dpred` ``None`` asks for the loss alone; `dpred` may be `pred`.
        """

    @abstractmethod
    def softmax_xent(
        self,
        logits: Array,
        labels: Array,
        weight: Array | None,
        state: Array,
        *,
        smoothing: float = 0.0,
        dlogits: Array | None,
    ) -> None:
        """Softmax + cross-entropy, loss and gradient in one call.

        `logits`, `dlogits` (n, c); `labels` int64 (n,), in range, or soft targets (n, c) of the
        logits' dtype, float32 for logits of 16 bits. Targets become
        ``(1 - smoothing) * target + smoothing / c``. `weight` as in
        :meth:`elementwise_loss`; `dlogits` may be ``None`` or `logits`.
        """

    # ---- the step's own bookkeeping -------------------------------------------------------------
    @abstractmethod
    def begin_step(self, state: Array, lr_table: Array) -> None:
        """``STEP += 1; LR = lr_table[CURSOR]; CURSOR += 1; GRAD_SCALE = 1; SKIP_STEP = 0``; `lr_table` float64.

        SKIP_STEP is left alone where :meth:`reduced` gives no dtype of 16 bits.
        """

    @abstractmethod
    def sum_losses(self, state: Array, *, weight: float, first: bool) -> None:
        """``LOSS = TOTAL_LOSS = weight * LOSS + (0 if first else TOTAL_LOSS)``: one loss after the other of a step."""

    @abstractmethod
    def record_loss(self, state: Array) -> None:
        """Add LOSS to the epoch's sums while BAD_STEP is 0; set BAD_STEP to STEP if LOSS is not finite."""

    @abstractmethod
    def end_step(self, state: Array, rows: int) -> None:
        """``ROW += rows``."""

    @abstractmethod
    def end_epoch(self, state: Array, results: Array) -> None:
        """``results[EPOCH_INDEX] = LOSS_SUM, WEIGHT_SUM, LR; EPOCH_INDEX += 1``; both sums become 0.

        Nothing is done once BAD_STEP is set: EPOCH_INDEX stays the number of epochs without a bad step.
        `results` float64 (epochs, 3).
        """

    @abstractmethod
    def clip_value(self, grad: Array, *, limit: float) -> None:
        """Clip `grad` in place to ``[-limit, limit]``; NaN stays NaN."""

    @abstractmethod
    def clip_norm(self, grad: Array, state: Array, *, max_norm: float) -> None:
        """``GRAD_SQ_NORM = |grad|**2; GRAD_SCALE = min(1, max_norm / (|grad| + 1e-6))``."""

    @abstractmethod
    def l2_penalty(self, param: Array, grad: Array, state: Array, *, strength: float, share: float = 1.0) -> None:
        """``grad += strength * param / BATCH_WEIGHT``, the gradient of a penalty on arrays of any one shape.

        ``share * strength / 2 * (param**2).sum() / BATCH_WEIGHT`` is added to LOSS, and times BATCH_WEIGHT to LOSS_SUM;
        a BATCH_WEIGHT of 0 counts as 1.
        """

    @abstractmethod
    def unscale(self, grad: Array, state: Array) -> None:
        """``grad /= LOSS_SCALE``, and what follows for this step and the next ones; nothing once BAD_STEP is set.

        Where an element is not finite, ``SKIP_STEP = 1; LOSS_SCALE = max(LOSS_SCALE / 2, 1); GOOD_STEPS = 0``.
        Else ``GOOD_STEPS += 1``, and at GROWTH_INTERVAL of them
        ``LOSS_SCALE = min(2 * LOSS_SCALE, MOST_LOSS_SCALE); GOOD_STEPS = 0``, as PyTorch's ``GradScaler`` does.
        """

    # ---- one flat optimizer step each ------------------------------------------------------------
    # All read LR, WEIGHT_DECAY, GRAD_SCALE, STEP (t) and do nothing once BAD_STEP is set, nor in a step
    # that SKIP_STEP says to skip (which backends heed where `reduced` gives a dtype of 16 bits). With
    # g = GRAD_SCALE * grad, and g += WEIGHT_DECAY * param where the decay is not decoupled. An element
    # whose new value would not be finite keeps its old value, and its moments theirs, and BAD_STEP is set.
    @abstractmethod
    def sgd_step(self, param: Array, grad: Array, velocity: Array | None, state: Array, *, nesterov: bool) -> None:
        """P0 momentum. ``velocity = P0 * velocity + g; u = g + P0 * velocity if nesterov else velocity``."""

    @abstractmethod
    def adagrad_step(self, param: Array, grad: Array, total: Array, state: Array) -> None:
        """P0 eps. ``total += g**2; param -= LR * g / (sqrt(total) + P0)``."""

    @abstractmethod
    def rmsprop_step(
        self, param: Array, grad: Array, sq: Array, mean: Array | None, velocity: Array | None, state: Array
    ) -> None:
        """P0 rho, P1 eps, P2 momentum; `mean` for the centered form, `velocity` where P2 is not 0.

        ``sq = P0 * sq + (1 - P0) * g**2; u = g / (sqrt(sq - mean**2) + P1)``.
        """

    @abstractmethod
    def adam_step(self, param: Array, grad: Array, m: Array, v: Array, state: Array, *, decoupled: bool) -> None:
        """P0 beta1, P1 beta2, P2 eps, P3 not 0 where eps is divided by ``sqrt(1 - P1**t)``, too.

        With `decoupled`, ``param *= 1 - LR * WEIGHT_DECAY`` first (AdamW).
        """

    @abstractmethod
    def adamax_step(self, param: Array, grad: Array, m: Array, u: Array, state: Array) -> None:
        """P0 beta1, P1 beta2, P2 eps. ``u = max(P1 * u, |g| + P2); param -= LR / (1 - P0**t) * m / u``."""

    @abstractmethod
    def nadam_step(self, param: Array, grad: Array, m: Array, v: Array, state: Array) -> None:
        """P0 beta1, P1 beta2, P2 eps, P3 momentum decay, P4 the running product of mu_t (from 1, updated)."""

    @abstractmethod
    def lion_step(self, param: Array, grad: Array, m: Array, state: Array) -> None:
        """P0 beta1, P1 beta2. ``param -= LR * (sign(P0 m + (1-P0) g) + WEIGHT_DECAY * param); m = P1 m + (1-P1) g``."""

    @abstractmethod
    def ema_step(self, param: Array, average: Array, state: Array) -> None:
        """``average = EMA_DECAY * average + (1 - EMA_DECAY) * param``, unless a step was bad or is skipped."""

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
