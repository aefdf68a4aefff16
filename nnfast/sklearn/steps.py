"""Steps of a training: forward, loss, penalty, backward, update, on the data of a fit or on a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends.base import Array, Backend
from ..kernels import step_state as S
from ..losses import CrossEntropy
from ..optimizers import Optimizer
from ..plan import Plan, without_link
from .core import Core
from .objectives import Objective

__all__ = ["NoStep", "Steps"]

# Steps between two chances for Ctrl-C
_AT_ONCE = 64


class NoStep(Optimizer):
    """Leaves the weights alone: the gradient is all that is wanted."""

    replayable = True

    def step(self, bk: Backend, param: Array, grad: Array, slots: dict[str, Array], state: Array) -> None:
        return None


class _Penalised(Optimizer):
    """Another optimizer, after the penalty on some of the weights."""

    replayable = True

    def __init__(self, inner: Optimizer, weights: list[slice], alpha: float, objective: Objective) -> None:
        super().__init__(inner.lr, ema=inner.ema)
        self.inner, self.slots, self.weights, self.objective = inner, inner.slots, weights, objective
        self.strength = alpha / objective.gradient

    def fill_state(self) -> dict[int, float]:
        return self.inner.fill_state()

    def record(
        self,
        bk: Backend,
        param: Array,
        grad: Array,
        slots: dict[str, Array],
        average: Array | None,
        state: Array,
        *,
        scaled: bool = False,
    ) -> None:
        share = self.objective.gradient / self.objective.value
        if self.strength:
            for part in self.weights:
                bk.l2_penalty(param[part], grad[part], state, strength=self.strength, share=share)
        if self.objective.gradient != 1:
            bk.fill(state[S.GRAD_SCALE : S.GRAD_SCALE + 1], self.objective.gradient)
        self.inner.record(bk, param, grad, slots, average, state, scaled=scaled)


class Steps:
    """Steps on a network.

    Parameters
    ----------
    core : Core
    objective : Objective
    optimizer : Optimizer
    alpha : float
        Strength of the penalty.
    rows : int
        Of the largest batch.
    weighted : bool
        Whether rows have weights.
    seed : int
        Of dropout masks.
    data : tuple, optional
        Inputs, targets and weights that :meth:`epoch` takes its batches from.
    """

    def __init__(
        self,
        core: Core,
        objective: Objective,
        optimizer: Optimizer,
        alpha: float,
        rows: int,
        weighted: bool,
        *,
        seed: int = 0,
        data: tuple[np.ndarray, np.ndarray, Any] | None = None,
    ) -> None:
        self.core, self.objective, self.weighted, self.data = core, objective, weighted, data
        self.settings: tuple[Any, ...] = (alpha, weighted)
        params, bk, dtype = core.params, core.backend, core.design.dtype
        labels = data is not None and isinstance(objective.loss, CrossEntropy)
        target: tuple[tuple[int, ...], Any] = ((), np.int64) if labels else ((core.design.units[-1],), dtype)
        params.slots = {}  # the moments of another training are nobody's any more
        self.plan = Plan(
            without_link(core.model.built, objective.loss),
            params,
            rows,
            loss=objective.loss,
            optimizer=_Penalised(optimizer, core.penalised, alpha, objective),
            targets=[target],
            weighted=weighted,
            lr_steps=_AT_ONCE if data is not None else 1,
        )
        state = np.zeros(S.SIZE)
        for slot, value in optimizer.fill_state().items():
            state[slot] = value
        state[S.SEED_LO] = seed & 0xFFFFFFFF
        self.plan.write_state(state)
        self._rate: float | None = None  # what fills the table of learning rates
        if data is None:
            return
        X, y, weight = data
        y = y.argmax(axis=1) if labels else y.astype(dtype)
        self.data = X, y, weight
        arrays = [X.astype(dtype, order="C", copy=False), y]
        if weighted:
            arrays.append(np.asarray(weight, dtype))
        held = tuple(bk.asarray(np.ascontiguousarray(x)) for x in arrays)
        self._order = bk.zeros(len(X), np.int64)
        outputs = [bk.zeros((len(X), core.design.units[-1]), dtype)] if objective.correction is not None else []
        self.plan.use_data(held, self._order, outputs)

    def set(self, slot: int, value: float) -> None:
        """Write one slot of the step state."""
        self.core.backend.fill(self.plan.state[slot : slot + 1], value)

    def _run(self, rows: int, rates: float | np.ndarray) -> None:
        """As many steps as there are learning rates in `rates`, or one."""
        if not isinstance(rates, float):
            self.core.backend.copy(np.asarray(rates, np.float64), out=self.plan.lr_table[: len(rates)])
            self._rate = None
        elif rates != self._rate:
            self.core.backend.fill(self.plan.lr_table, rates)
            self._rate = rates
        self.set(S.CURSOR, 0.0)
        self.plan.run(rows, 1 if isinstance(rates, float) else len(rates))

    def step(self, X: Any, targets: np.ndarray, weight: Any, lr: float) -> float:
        """One step on a batch; returns scikit-learn's loss of it from before, NaN once the training has diverged."""
        plan, rows = self.plan, X.shape[0]
        plan.feed(X if isinstance(X, np.ndarray) else X.toarray(), targets, weight if self.weighted else None)
        self._run(rows, lr)
        state = self._state()
        if state is None:
            return float("nan")
        to_numpy = self.core.backend.to_numpy
        return self.objective.of(float(state[S.LOSS]), lambda: to_numpy(plan.output(rows)), lambda: targets, weight)

    def _state(self) -> np.ndarray | None:
        """The step state, or None once a loss or a weight was not finite."""
        plan = self.plan
        state = plan.state if self.core.backend.xp is np else plan.read_state()
        if not state[S.BAD_STEP]:
            return state
        self.core.spoil()
        return None

    def epoch(self, order: np.ndarray, rates: np.ndarray) -> float:
        """Steps on rows ``order`` of the data, batch after batch, with a learning rate each; the mean loss."""
        assert self.data is not None
        plan, bk = self.plan, self.core.backend
        _, y, weight = self.data
        n, most = len(order), plan.batch
        bk.copy(order, out=self._order[:n])
        bk.fill(plan.state[S.ROW : S.EPOCH_INDEX + 1], 0.0)
        at_once = 1 if self.weighted else _AT_ONCE  # scikit-learn weighs a batch's loss by its rows, not their weights
        constant = float(rates[0]) if (rates == rates[0]).all() else None
        total, first, step = 0.0, 0, 0
        while first < n:
            full = (n - first) // most
            rows, steps = (most, min(full, at_once)) if full else (n - first, 1)
            chosen: float | np.ndarray = rates[step : step + steps]
            if constant is not None:
                chosen = np.full(steps, constant) if steps > 1 else constant
            self._run(rows, chosen)
            part = slice(first, first + rows)
            first, step = first + rows * steps, step + steps
            if self.weighted:
                state = self._state()
                if state is None:
                    return float("nan")
                total += rows * self._of(float(state[S.LOSS]), part, y[order[part]], weight[order[part]])
        if self.weighted:
            return total / n
        state = self._state()
        if state is None:
            return float("nan")
        return self._of(float(state[S.LOSS_SUM] / n), slice(0, n), lambda: y[order], None)

    def _of(self, value: float, part: slice, targets: Any, weight: Any) -> float:
        """scikit-learn's loss of some rows of the epoch."""

        def outputs() -> np.ndarray:
            [kept] = self.plan.outputs
            assert kept is not None
            return np.asarray(self.core.backend.to_numpy(kept[part]))

        return self.objective.of(value, outputs, targets if callable(targets) else lambda: targets, weight)

    def gradients(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The last step's gradients of the weights and of the biases, as scikit-learn scales them."""
        return self.core.split(np.array(self.core.backend.to_numpy(self.plan.grad)) * self.objective.gradient)

    # ---- what an optimizer keeps ------------------------------------------------------------------------------
    def slot(self, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Copies of one of the optimizer's arrays, in parts."""
        return self.core.split(np.array(self.core.backend.to_numpy(self.core.params.slots[name])))

    def set_slot(self, name: str, coefs: Sequence[Any], intercepts: Sequence[Any]) -> None:
        """Write one of the optimizer's arrays from its parts."""
        bk, flat = self.core.backend, self.core.params.slots[name]
        host = np.array(bk.to_numpy(flat))
        for parts, values in zip(self.core.split(host), (coefs, intercepts), strict=True):
            for part, value in zip(parts, values, strict=True):
                part[...] = value
        bk.copy(host, out=flat)

    def scale_slot(self, name: str, factor: float) -> None:
        """Multiply one of the optimizer's arrays."""
        flat = self.core.params.slots[name]
        flat *= factor
