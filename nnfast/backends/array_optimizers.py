"""Clipping and one flat step per optimizer in plain array code, for NumPy and CuPy alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import step_state as S

Array = Any


class ArrayOptimizers:
    """The optimizer part of :class:`~nnfast.backends.array_backend.ArrayBackend`.

    The conventions that all steps share stand in ``backends/base.py``.
    """

    xp: Any
    sq_norm: Any

    def clip_value(self, grad: Array, *, limit: float) -> None:
        self.xp.clip(grad, -limit, limit, out=grad)

    def clip_norm(self, grad: Array, state: Array, *, max_norm: float) -> None:
        self.sq_norm(grad, out=state[S.GRAD_SQ_NORM : S.GRAD_SQ_NORM + 1])
        norm = self.xp.sqrt(state[S.GRAD_SQ_NORM])
        state[S.GRAD_SCALE] = self.xp.minimum(1.0, max_norm / (norm + 1e-6))

    def l2_penalty(self, param: Array, grad: Array, state: Array, *, strength: float, share: float = 1.0) -> None:
        weight = float(state[S.BATCH_WEIGHT]) or 1.0
        grad += strength / weight * param
        total = 0.5 * strength * share * (param.astype(np.float64) ** 2).sum()
        state[S.LOSS] += total / weight
        state[S.LOSS_SUM] += total / weight * state[S.BATCH_WEIGHT]

    def unscale(self, grad: Array, state: Array) -> None:
        if state[S.BAD_STEP] != 0:
            return
        scale = float(state[S.LOSS_SCALE]) or 1.0
        grad /= scale
        if not self.xp.isfinite(grad).all():
            state[S.SKIP_STEP], state[S.GOOD_STEPS] = 1.0, 0.0
            state[S.LOSS_SCALE] = max(scale / 2.0, 1.0)
            return
        state[S.GOOD_STEPS] += 1
        if state[S.GOOD_STEPS] >= S.GROWTH_INTERVAL:
            state[S.GOOD_STEPS], state[S.LOSS_SCALE] = 0.0, min(2.0 * scale, S.MOST_LOSS_SCALE)

    # ---- shared by all steps ---------------------------------------------------------------------
    def _skipped(self, state: Array) -> bool:
        """Whether steps do nothing: after a bad one, and in one that is skipped."""
        return bool(state[S.BAD_STEP] != 0 or state[S.SKIP_STEP] != 0)

    def _begin(self, param: Array, grad: Array, state: Array, decayed: bool = True) -> tuple[Array, Array] | None:
        """The gradient that the formula starts from, and the learning rate; ``None`` where nothing is to be done."""
        if self._skipped(state):
            return None
        g = grad * float(state[S.GRAD_SCALE])
        if decayed and state[S.WEIGHT_DECAY] != 0:
            g += float(state[S.WEIGHT_DECAY]) * param
        return g, float(state[S.LR])

    def _commit(self, state: Array, *pairs: tuple[Array, Array]) -> None:
        """Store new values element by element where all of an element's are finite."""
        xp = self.xp
        finite = xp.isfinite(pairs[0][1])
        for _, new in pairs[1:]:
            finite &= xp.isfinite(new)
        if bool(finite.all()):
            for old, new in pairs:
                old[...] = new
            return
        for old, new in pairs:
            old[...] = xp.where(finite, new, old)
        state[S.BAD_STEP] = state[S.STEP]

    # ---- the steps ---------------------------------------------------------------------------------
    def sgd_step(self, param: Array, grad: Array, velocity: Array | None, state: Array, *, nesterov: bool) -> None:
        if (begun := self._begin(param, grad, state)) is None:
            return
        g, lr = begun
        if velocity is None:
            self._commit(state, (param, param - lr * g))
            return
        momentum = float(state[S.P0])
        new = momentum * velocity + g
        update = g + momentum * new if nesterov else new
        self._commit(state, (param, param - lr * update), (velocity, new))

    def adagrad_step(self, param: Array, grad: Array, total: Array, state: Array) -> None:
        if (begun := self._begin(param, grad, state)) is None:
            return
        g, lr = begun
        new = total + g * g
        self._commit(state, (param, param - lr * g / (self.xp.sqrt(new) + float(state[S.P0]))), (total, new))

    def rmsprop_step(
        self, param: Array, grad: Array, sq: Array, mean: Array | None, velocity: Array | None, state: Array
    ) -> None:
        if (begun := self._begin(param, grad, state)) is None:
            return
        g, lr = begun
        rho, eps, momentum = (float(state[i]) for i in (S.P0, S.P1, S.P2))
        new_sq = rho * sq + (1.0 - rho) * g * g
        pairs = [(sq, new_sq)]
        variance = new_sq
        if mean is not None:
            new_mean = rho * mean + (1.0 - rho) * g
            variance = self.xp.maximum(new_sq - new_mean * new_mean, 0.0)
            pairs.append((mean, new_mean))
        update = g / (self.xp.sqrt(variance) + eps)
        if velocity is not None:
            update = momentum * velocity + update
            pairs.append((velocity, update))
        self._commit(state, (param, param - lr * update), *pairs)

    def adam_step(self, param: Array, grad: Array, m: Array, v: Array, state: Array, *, decoupled: bool) -> None:
        if (begun := self._begin(param, grad, state, decayed=not decoupled)) is None:
            return
        g, lr = begun
        beta1, beta2, eps, t = (float(state[i]) for i in (S.P0, S.P1, S.P2, S.STEP))
        new_m = beta1 * m + (1.0 - beta1) * g
        new_v = beta2 * v + (1.0 - beta2) * g * g
        root = (1.0 - beta2**t) ** 0.5
        denominator = self.xp.sqrt(new_v) / root + (eps / root if state[S.P3] != 0 else eps)
        start = param * (1.0 - lr * float(state[S.WEIGHT_DECAY])) if decoupled else param
        new = start - lr / (1.0 - beta1**t) * new_m / denominator
        self._commit(state, (param, new), (m, new_m), (v, new_v))

    def adamax_step(self, param: Array, grad: Array, m: Array, u: Array, state: Array) -> None:
        if (begun := self._begin(param, grad, state)) is None:
            return
        g, lr = begun
        beta1, beta2, eps, t = (float(state[i]) for i in (S.P0, S.P1, S.P2, S.STEP))
        new_m = beta1 * m + (1.0 - beta1) * g
        new_u = self.xp.maximum(beta2 * u, self.xp.abs(g) + eps)
        self._commit(state, (param, param - lr / (1.0 - beta1**t) * new_m / new_u), (m, new_m), (u, new_u))

    def nadam_step(self, param: Array, grad: Array, m: Array, v: Array, state: Array) -> None:
        # Dozat, "Incorporating Nesterov momentum into Adam" (2016), with its schedule of mu
        if (begun := self._begin(param, grad, state)) is None:
            return
        g, lr = begun
        beta1, beta2, eps, decay, t = (float(state[i]) for i in (S.P0, S.P1, S.P2, S.P3, S.STEP))
        mu = beta1 * (1.0 - 0.5 * 0.96 ** (t * decay))
        mu_next = beta1 * (1.0 - 0.5 * 0.96 ** ((t + 1) * decay))
        product = float(state[S.P4]) * mu
        state[S.P4] = product
        new_m = beta1 * m + (1.0 - beta1) * g
        new_v = beta2 * v + (1.0 - beta2) * g * g
        denominator = self.xp.sqrt(new_v / (1.0 - beta2**t)) + eps
        step = (1.0 - mu) / (1.0 - product) * g + mu_next / (1.0 - product * mu_next) * new_m
        self._commit(state, (param, param - lr * step / denominator), (m, new_m), (v, new_v))

    def lion_step(self, param: Array, grad: Array, m: Array, state: Array) -> None:
        # Chen et al., "Symbolic discovery of optimization algorithms" (2023), algorithm 2
        if (begun := self._begin(param, grad, state, decayed=False)) is None:
            return
        g, lr = begun
        beta1, beta2 = float(state[S.P0]), float(state[S.P1])
        direction = self.xp.sign(beta1 * m + (1.0 - beta1) * g)
        new = param - lr * (direction + float(state[S.WEIGHT_DECAY]) * param)
        self._commit(state, (param, new), (m, beta2 * m + (1.0 - beta2) * g))

    def ema_step(self, param: Array, average: Array, state: Array) -> None:
        if not self._skipped(state):
            decay = float(state[S.EMA_DECAY])
            average[...] = decay * average + (1.0 - decay) * param
