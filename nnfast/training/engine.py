"""A model in training on one device: the plan, the learning rates and the counters, but no data.

``fit`` and :class:`~nnfast.training.trainer.Trainer` both drive this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends.base import Backend
from ..errors import NonFiniteError
from ..kernels import step_state as S
from ..losses import Loss
from ..network import CARRIED, Network
from ..optimizers import Optimizer
from ..plan import Plan, without_link
from ..precision import FIRST_LOSS_SCALE

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
    targets : sequence of (shape, dtype)
        One row of the targets of each output.
    weighted : bool
        Whether batches come with sample weights.
    lr_steps : int
        Steps whose learning rates are made ready at a time, at most.
    precision : str, optional
        See :mod:`nnfast.precision`; by default that of the dtype.
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
        targets: Sequence[tuple[tuple[int, ...], Any]],
        weighted: bool,
        lr_steps: int = 1024,
        precision: str | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.backend = model, loss, optimizer, backend
        config, self.schedule = optimizer.config(), optimizer.schedule()  # may fail: nothing has changed yet
        params = model.parameters
        params.move(backend, dtype, precision)
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
            targets=targets,
            weighted=weighted,
            lr_steps=self.lr_steps,
        )
        self.pause_at: int | None = None  # the step after which whoever runs epochs must look
        self._ready = 0  # steps left in the table
        self._steps_per_epoch: int | None = None
        self._total_steps: int | None = None
        self.step = progress.step
        state = np.zeros(S.SIZE)
        for slot, value in optimizer.fill_state().items():
            state[slot] = value
        for slot, value in self._carried().items():
            state[slot] = value
        state[S.STEP] = self.step
        state[S.SEED_LO], state[S.SEED_HI] = progress.seed & 0xFFFFFFFF, progress.seed >> 32
        self.plan.write_state(state)

    def set(self, slot: int, value: float) -> None:
        """Write one slot of the step state, without waiting for the device."""
        self.backend.fill(self.plan.state[slot : slot + 1], value)

    def bind(self, steps_per_epoch: int | None, total_steps: int | None) -> None:
        """Tell the lengths that schedules are measured in; see :meth:`nnfast.optimizers.Schedule.bind`."""
        self.schedule.bind(steps_per_epoch, total_steps)
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps

    def begin_epochs(self) -> None:
        """Zero the sums and the count of the epochs that run next, and carried states, and go to the first row."""
        self.plan.reset_states()
        self.backend.fill(self.plan.state[S.ROW : S.EPOCH_INDEX + 1], 0.0)

    def until_pause(self, steps: int) -> int:
        """`steps`, or as many of them as there are up to the one to pause after."""
        return steps if self.pause_at is None else max(1, min(steps, self.pause_at - self.step))

    def resume(self) -> None:
        """Go on from where the model stands, which another run, or a step that was bad, may have changed."""
        self.step = self.progress.step
        self.set(S.STEP, self.step)
        for slot, value in self._carried().items():
            self.set(slot, value)
        self.forget_rates()

    def _carried(self) -> dict[int, float]:
        """What an earlier training left in the step state, and where the scale of the loss's gradient begins."""
        values = dict(self.progress.carried)
        params = self.model.parameters
        if params.low is None or params.precision != "fp16":
            values |= {S.LOSS_SCALE: 0.0, S.GOOD_STEPS: 0.0}
        elif not values.get(S.LOSS_SCALE):
            values |= {S.LOSS_SCALE: FIRST_LOSS_SCALE, S.GOOD_STEPS: 0.0}
        return values

    def forget_rates(self) -> None:
        """The schedule has changed its mind: the learning rates that are ready are void."""
        self._ready = 0

    def _fill_rates(self) -> None:
        n = self.lr_steps
        if self.schedule.adaptive and self._steps_per_epoch is not None:
            n = min(n, self._steps_per_epoch)  # the end of the epoch may change those of the next one
        if self._total_steps is not None and self.step < self._total_steps:
            n = min(n, self._total_steps - self.step)
        self.backend.copy(self.schedule.table(self.step, n), out=self.plan.lr_table[:n])
        self.set(S.CURSOR, 0.0)
        self._ready = n

    def run(self, rows: int, steps: int = 1) -> None:
        """Do `steps` steps of `rows` rows each."""
        while steps > 0:
            if self._ready == 0:
                self._fill_rates()
            now = min(steps, self._ready)
            self.plan.run(rows, now)
            self._ready -= now
            self.step += now
            steps -= now

    def epochs_ready(self, steps: int) -> int:
        """How many epochs of `steps` steps the table of learning rates has room for, from here on."""
        if self._ready == 0:
            self._fill_rates()
        return self._ready // steps

    def run_epochs(self, rows: int, epochs: int) -> None:
        """Do `epochs` whole epochs of `rows` rows each, at most as many as :meth:`epochs_ready`, in one go."""
        self.plan.run_epochs(rows, epochs)
        steps = epochs * -(-rows // self.plan.batch)
        self._ready -= steps
        self.step += steps

    def read(self) -> np.ndarray:
        """The step state on the host; waits for the device."""
        return self.plan.read_state()

    def check(self, state: np.ndarray) -> None:
        """Raise :class:`NonFiniteError` if a step up to `state` was bad."""
        if state[S.BAD_STEP]:
            step = int(state[S.BAD_STEP])
            raise NonFiniteError(
                f"the loss, or the update of a weight, stopped being finite at step {step} (learning rate "
                f"{self.schedule(step - 1):.3g}); the last finite weights are kept. Try a smaller learning "
                "rate, clip_norm=1.0, or standardised inputs",
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
        self.plan.use_data((), None)
