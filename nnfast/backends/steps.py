"""The part of the contract that makes a step of training: losses, bookkeeping, optimizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Array


class StepOperations(ABC):
    """Mixin of :class:`~nnfast.backends.base.Backend`."""

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
