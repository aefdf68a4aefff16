"""Steps for a hand-written training loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import devices, losses, optimizers
from ..backends.base import Backend
from ..bundles import row_shapes
from ..joint_loss import JointLoss, shapes_of
from ..kernels import step_state as S
from ..layers.base import positive_int
from ..network import Network
from ..precision import resolve
from . import data
from .engine import Engine
from .sources import rows_of

__all__ = ["Trainer"]


class Trainer:
    """One optimizer step at a time, for loops of one's own.

    Parameters
    ----------
    model : Network
        Built, or built from the first batch.
    loss : str or Loss
        What to minimise.
    optimizer : str or Optimizer
        How.
    device : str or Backend
        Where; see :func:`nnfast.get_backend`.
    batch_size : int, optional
        Largest number of rows of a step; by default that of the first batch.
    steps_per_epoch, total_steps : int, optional
        For schedules of the learning rate that are measured in epochs, or by the end of training.
    dtype : {"float32", "float64"}, optional
        Of the weights and the computation; by default that of `precision`.
    precision : {"float32", "tf32", "bf16", "fp16", "float64"}, optional
        What the computation may round; by default that of `dtype`, or float32.
    seed : int, optional
        For initial weights and dropout masks.

    Examples
    --------
    >>> trainer = Trainer(model, "cross_entropy", "adam", batch_size=64)  # doctest: +SKIP
    >>> for xb, yb in batches:  # doctest: +SKIP
    ...     loss = trainer.step(xb, yb)
    """

    def __init__(
        self,
        model: Network,
        loss: str | losses.Loss,
        optimizer: str | optimizers.Optimizer = "adam",
        *,
        device: str | Backend = "auto",
        batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        dtype: Any = None,
        precision: str | None = None,
        seed: int | None = None,
    ) -> None:
        self.model = model
        self.loss = losses.get(loss) if not isinstance(loss, (list, tuple)) else JointLoss(loss)
        self.optimizer = optimizers.get(optimizer)
        self.backend = devices.get_backend(device)
        self.batch_size = None if batch_size is None else positive_int(batch_size, "batch_size")
        self.precision, self.dtype = resolve(precision, dtype)
        self._seed = seed
        self._lengths = (steps_per_epoch, total_steps)
        self._engine: Engine | None = None

    def _start(self, x: np.ndarray, target: np.ndarray, weighted: bool) -> Engine:
        engine = Engine(
            self.model,
            self.loss,
            self.optimizer,
            self.backend,
            self.dtype,
            self.batch_size or len(x),
            targets=rows_of(target),
            weighted=weighted,
            precision=self.precision,
        )
        engine.bind(*self._lengths)
        engine.set(S.ROW, 0.0)
        self.batch_size, self._weighted = engine.plan.batch, weighted
        self._arrays = self._arrays_of(self.model)
        return engine

    @staticmethod
    def _arrays_of(model: Network) -> tuple[Any, ...]:
        params = model.parameters
        return params.flat, params.slots, params.average

    def _current(self, x: np.ndarray, target: np.ndarray, weighted: bool) -> Engine:
        """The engine; a new one where the model was rebuilt, moved or trained in another way meanwhile."""
        engine = self._engine
        if engine is None or any(a is not b for a, b in zip(self._arrays, self._arrays_of(self.model), strict=True)):
            self._engine = engine = self._start(x, target, weighted)
        elif engine.step != self.model.training_state.step:
            engine.resume()
        return engine

    def step(self, xb: Any, yb: Any, sample_weight: Any = None) -> float:
        """Forward, loss, backward, update on one batch.

        Parameters
        ----------
        xb, yb : array_like
            As for ``model.fit``.
        sample_weight : array_like, optional
            (n,); either every step brings weights, or none.

        Returns
        -------
        float
            The weighted mean loss of the batch, before the update.

        Raises
        ------
        NonFiniteError
            If the loss is NaN or infinite; the weights are those from before the step.
        ValueError, TypeError
            If the batch does not fit, or holds NaN or infinity; nothing has changed then.
        """
        x = data.as_inputs(xb, self.model.number_of_inputs, "xb")
        y = data.as_targets(yb, len(self.loss.parts), "yb")
        data.check_inputs(x, self.model.in_shapes if self.model.is_built else None, "xb")
        if len(x) != len(y):
            raise ValueError(f"xb has {len(x)} rows, yb has {len(y)}")
        if len(x) == 0:
            raise data.EmptyDataError("the batch has no rows")
        if self.batch_size is not None and len(x) > self.batch_size:
            raise ValueError(f"the batch has {len(x)} rows, batch_size is {self.batch_size}")
        if self._engine is not None and (sample_weight is not None) != self._weighted:
            raise ValueError("either every step brings sample_weight, or none")
        nodes = self.model.built if self.model.is_built else self.model.nodes(row_shapes(x))
        x = data.as_kind(x, nodes, "xb", self.backend.reduced(self.precision) or self.dtype)
        with self.model.unbuilt_on_error():
            self.model.prepare(row_shapes(x), self._seed, self.dtype)
            target = self.loss.targets(y, shapes_of(self.model.out_shapes), self.dtype)
            weight = data.sample_weights(sample_weight, None, target, len(x), self.dtype)
            engine = self._current(x, target, weight is not None)
        engine.plan.feed(x, target, weight)
        engine.run(len(x))
        state = engine.read()
        if state[S.BAD_STEP]:
            # The error is raised once; the next step starts from the weights that were kept
            engine.note(state)
            engine.resume()
            engine.set(S.BAD_STEP, 0.0)
            engine.check(state)
        engine.note(state)
        return float(state[S.LOSS])

    def reset_states(self) -> None:
        """Let stateful layers begin anew in the next step, as at the start of another text."""
        if self._engine is not None:
            self._engine.plan.reset_states()

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return 0 if self._engine is None else self.model.training_state.step
