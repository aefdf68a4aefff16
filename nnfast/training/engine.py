"""A model in training on one device: the plan, the learning rates and the counters, but no data.

``fit`` and :class:`~nnfast.training.trainer.Trainer` both drive this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.base import Backend
from ..errors import NonFiniteError
from ..kernels import step_state as S
from ..losses import Loss
from ..network import CARRIED, Network
from ..optimizers import Optimizer
from ..plan import Plan, without_link

__all__ = ["Engine"]


class Engine:
    """Steps of a model on a device.

    Parameters
    ----------
    model : Network
        Built; its weights move to `backend` and `dtype`.
    loss : Loss
    optimizer : Optimizer
        If it is of the same kind as the last one, its moments and step number go on.
    backend : Backend
    dtype : dtype
    batch : int
        Largest number of rows of a step.
    target : tuple of (shape, dtype)
        One row of targets.
    weighted : bool
        Whether batches come with sample weights.
    lr_steps : int
        Steps whose learning rates are made ready at a time.
    """

    def __init__(
        self,
        model: Network,
        loss: Loss,
        optimizer: Optimizer,
        backend: Backend,
        dtype: Any,
        batch: int,
        *,
        target: tuple[tuple[int, ...], Any],
        weighted: bool,
        lr_steps: int = 1024,
    ) -> None:
        self.model, self.loss, self.optimizer, self.backend = model, loss, optimizer, backend
        config, self.schedule = optimizer.config(), optimizer.schedule()  # may fail: nothing has changed yet
        params = model.parameters
        params.move(backend, dtype)
        model.remember(loss, optimizer)
        self.progress = progress = model.training_state
        if progress.optimizer is None or progress.optimizer["name"] != type(optimizer).__name__:
            # Another optimizer's moments and bias corrections mean nothing to this one
            params.slots, progress.step, progress.carried, progress.schedule = {}, 0, {}, {}
        before, progress.optimizer = progress.optimizer, config
        if progress.schedule and before is not None and before.get("lr") == config["lr"]:
            self.schedule.load_state_dict(progress.schedule)
        self.lr_steps = max(1, lr_steps)
        self.plan = Plan(
            without_link(model.built, loss),
            params,
            batch,
            loss=loss,
            optimizer=optimizer,
            target=target,
            weighted=weighted,
            lr_steps=self.lr_steps,
        )
        self._ready = 0  # steps left in the table
        self.step = progress.step
        state = np.zeros(S.SIZE)
        for slot, value in optimizer.fill_state().items():
            state[slot] = value
        for slot, value in progress.carried.items():
            state[slot] = value
        state[S.STEP] = self.step
        state[S.SEED_LO], state[S.SEED_HI] = progress.seed & 0xFFFFFFFF, progress.seed >> 32
        self.plan.write_state(state)

    def set(self, slot: int, value: float) -> None:
        """Write one slot of the step state, without waiting for the device."""
        self.backend.fill(self.plan.state[slot : slot + 1], value)

    def begin_epoch(self) -> None:
        """Zero the epoch's sums and go to its first row."""
        for slot in (S.ROW, S.LOSS_SUM, S.WEIGHT_SUM):
            self.set(slot, 0.0)

    def resume(self) -> None:
        """Go on from where the model stands, which another run, or a step that was bad, may have changed."""
        self.step = self.progress.step
        self.set(S.STEP, self.step)
        for slot, value in self.progress.carried.items():
            self.set(slot, value)
        self.forget_rates()

    def forget_rates(self) -> None:
        """The schedule has changed its mind: the learning rates that are ready are void."""
        self._ready = 0

    def run(self, rows: int, steps: int = 1) -> None:
        """Do `steps` steps of `rows` rows each."""
        while steps > 0:
            if self._ready == 0:
                table = self.schedule.table(self.step, self.lr_steps)
                self.backend.copy(table, out=self.plan.lr_table)
                self.set(S.CURSOR, 0.0)
                self._ready = self.lr_steps
            now = min(steps, self._ready)
            self.plan.run(rows, now)
            self._ready -= now
            self.step += now
            steps -= now

    def read(self) -> np.ndarray:
        """The step state on the host; waits for the device."""
        return self.plan.read_state()

    def check(self, state: np.ndarray) -> None:
        """Raise :class:`NonFiniteError` if a step up to `state` was bad."""
        if state[S.BAD_STEP]:
            step = int(state[S.BAD_STEP])
            raise NonFiniteError(
                f"the loss, or the update of a weight, stopped being finite at step {step} (learning rate "
                f"{state[S.LR]:.3g}); the last finite weights are kept. Try a smaller learning rate, clip_norm=1.0, "
                "or standardised inputs",
                step,
            )

    def note(self, state: np.ndarray) -> None:
        """Write back how far training came, by the step state."""
        bad = int(state[S.BAD_STEP])
        self.progress.step = bad - 1 if bad else self.step
        self.progress.carried = {slot: float(state[slot]) for slot in CARRIED}
        self.progress.schedule = self.schedule.state_dict()

    def finish(self) -> None:
        """Training ends here; the model keeps no part of the plan."""
        self.note(self.read())
        self.plan.use_data((), None, None)
