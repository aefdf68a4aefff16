"""Inference plans kept between calls."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from .layers.graph import Built
from .losses import Loss, name_of
from .parameters import Parameters
from .plan import Plan
from .plan_layout import PlanLayout

__all__ = ["PlanPool"]


class PlanPool:
    """Inference plans of a model, kept for the next call; several threads get one each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Any, list[Plan]] = {}
        self._row_bytes: dict[Any, int] = {}
        self._last: list[Plan] = []  # those idle under the key of the last prediction

    def row_bytes(self, built: list[Built], dtype: Any) -> int:
        """Memory of an inference plan for each row of its batch."""
        found = self._row_bytes.get(dtype)
        if found is None:
            found = self._row_bytes[dtype] = max(1, PlanLayout(built, 16, dtype, training=False).nbytes // 16)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> PlanPool:
        return PlanPool()

    def __reduce__(self) -> tuple[type[PlanPool], tuple[()]]:
        return PlanPool, ()

    def take(
        self, built: list[Built], params: Parameters, batch: int, loss: Loss | None, targets: Any, weighted: bool
    ) -> tuple[Any, Plan]:
        """A plan for these sizes that nobody else uses until it is given back, and what to give it back under.

        The arguments are those of :class:`Plan`.
        """
        described: Any = loss  # a loss of the user's own may hold anything: it is its own key
        if loss is not None and loss.replayable:
            described = (name_of(loss), repr(loss.config()))
        key = (batch, described, repr(targets), weighted)
        with self._lock:
            plan = self._taken(self._idle.get(key) or [])
        # The weights may have moved to another device or dtype since
        if plan is None or plan.weights is not params.flat:
            plan = Plan(built, params, batch, loss=loss, targets=targets, weighted=weighted)
        return key, plan

    def give_back(self, key: Any, plan: Plan) -> None:
        """Keep `plan` for the next :meth:`take`."""
        with self._lock:
            plans = self._idle.get(key)
            if plans is None:
                plans = self._idle[key] = []
            plans.append(plan)
            self._last = plans
            while len(self._idle) > 6:
                del self._idle[next(iter(self._idle))]

    def again(self, x: Any, params: Parameters) -> np.ndarray | None:
        """The outputs for `x` where it is like the last prediction's, on the host; None where it is not.

        Parameters
        ----------
        x : object
            What a user gives as a batch.
        params : Parameters
            The weights.
        """
        plans = self._last
        plan = self._taken(plans)
        if plan is None:
            return None
        try:
            return plan.infer_again(x) if plan.weights is params.flat else None
        finally:
            plans.append(plan)

    def reset_states(self) -> None:
        """Set what layers hand on from prediction to prediction to zero."""
        with self._lock:
            for plans in self._idle.values():
                for plan in plans:
                    plan.reset_states()

    @staticmethod
    def _taken(plans: list[Plan]) -> Plan | None:
        """One of the plans, which nobody else has then; :meth:`again` takes them without the lock."""
        try:
            return plans.pop()
        except IndexError:
            return None
