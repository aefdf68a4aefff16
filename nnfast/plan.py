"""A plan: model + loss + optimizer at one batch size, as buffers and an ordered list of calls.

All sizes are added up first; then there is one allocation for everything that depends on the batch. A step is the
same calls on the same addresses every time, so a backend can record it once and replay it. A smaller
batch uses prefix views of the same buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .arena import Arena, Slot
from .backends.base import Array, Backend, Replay
from .bundles import parts
from .errors import OutOfMemoryError
from .kernels import step_state as S
from .layers import Activation, Layer
from .layers.graph import Built, outputs_of
from .losses import Loss
from .optimizers import Optimizer
from .parameters import Parameters
from .plan_layout import PlanLayout
from .plan_program import Program

__all__ = ["Plan", "without_link"]

# Plans of more bytes than this ask first how much memory there is
_ASKS_FIRST = 1 << 28


def without_link(built: list[Built], loss: Loss | None) -> list[Built]:
    """The chain up to where `loss` starts from: a last activation equal to the loss's link is left out.

    Cross-entropy of a softmax and binary cross-entropy of a sigmoid are computed from the logits, which
    is exact where probabilities would round to 0 or 1.
    """
    if loss is None:
        return built
    found = built
    for (part, _), node in zip(loss.parts, outputs_of(built), strict=True):
        if part.link is not None:
            found = _without(found, found[node.index], part.link)
    return found


def _without(built: list[Built], last: Built, link: str) -> list[Built]:
    """The nodes without the activation `link` at an output."""
    if isinstance(last.layer, Activation) and last.layer.activation.name == link:
        source = last.inputs[0]
        if last.index == len(built) - 1 and source == last.index - 1 >= 0 and built[source].output is None:
            return [*built[:source], replace(built[source], output=last.output)]
        changed: Layer = Activation("identity")
    elif getattr(getattr(last.layer, "activation", None), "name", None) == link:
        without: Any = getattr(last.layer, "without_activation", None)
        if without is None:
            return built
        changed = without()
    else:
        return built
    return [*built[: last.index], replace(last, layer=changed), *built[last.index + 1 :]]


class Plan:
    """Buffers and recorded steps of a chain of layers, for batches of up to `batch` rows.

    Parameters
    ----------
    built : list of Built
        The chain; see :func:`without_link` for one that a loss is computed from.
    params : Parameters
        The weights; they must stay where they are while the plan is used.
    batch : int
        Largest number of rows of a step.
    loss : Loss, optional
        Computed by each step.
    optimizer : Optimizer, optional
        With it the plan trains; without it, it infers.
    targets : sequence of (shape, dtype)
        Shape of one row of each output's targets and their dtype, where there is a loss.
    weighted : bool
        Whether batches come with sample weights.
    lr_steps : int
        Room in the table of learning rates.

    Attributes
    ----------
    weights : array
        ``params.flat`` as it was when the plan was made; the plan is void once that is another array.
    state : array
        The step state (``kernels/step_state.py``), float64.
    lr_table : array
        Learning rates of the next steps, float64.
    """

    def __init__(
        self,
        built: list[Built],
        params: Parameters,
        batch: int,
        *,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        targets: Sequence[tuple[tuple[int, ...], Any]] = (),
        weighted: bool = False,
        lr_steps: int = 1,
    ) -> None:
        self.built, self.params, self.batch = built, params, batch
        self.weights = params.flat
        self.loss, self.optimizer = loss, optimizer
        outputs = outputs_of(built)
        losses = [] if loss is None else [one for one, _ in loss.parts]
        self.positions = [one.positions(node.out_shape) for one, node in zip(losses, outputs, strict=bool(losses))]
        self.training = optimizer is not None
        self.backend = params.backend
        self.layout = PlanLayout(
            built,
            batch,
            params.activations,
            training=self.training,
            full=params.dtype,
            targets=targets,
            weighted=weighted,
            positions=self.positions,
        )
        bk = self.backend
        self._need_memory(optimizer)
        params.use_low()
        self._buffer = bk.zeros(self.layout.nbytes, np.uint8)
        for slots in self.layout.position_weights:
            if slots is not None:
                bk.fill(self.view(slots[1]), 1.0)
        self.grad = bk.zeros(params.size, params.dtype) if self.training else None
        if optimizer is not None:
            params.use_slots(optimizer.slots, optimizer.ema is not None)
        self.state = bk.zeros(S.SIZE, np.float64)
        self.lr_table = bk.zeros(lr_steps, np.float64)
        self._carried = [
            slot
            for node in self.layout.layers
            for name, slot, _ in node.declared
            if slot is not None and name in node.carried
        ]
        self._data: tuple[Array, ...] = ()
        self.order: Array | None = None
        self.outputs: Sequence[Array | None] = ()
        self.results: Array | None = None
        self._programs: dict[int, Program] = {}
        self._last: Program | None = None  # of the last inference on the host
        self._epochs: dict[int, Replay] = {}

    def _need_memory(self, optimizer: Optimizer | None) -> None:
        """Refuse what the device can never hold: a system that gives memory on use would end the program."""
        arrays = 0 if optimizer is None else 1 + len(optimizer.slots)
        needed = self.layout.nbytes + arrays * self.params.size * self.params.dtype.itemsize
        if self.params.low is None and self.params.activations != self.params.dtype:
            needed += self.params.size * self.params.activations.itemsize
        if needed > _ASKS_FIRST:
            free, total = self.backend.memory()
            if needed > total:
                raise OutOfMemoryError(self.backend.device, needed, free, f"batches of {self.batch:,} rows")

    # ---- what programs are made of ---------------------------------------------------------------------
    def view(self, slot: Slot, rows: int | None = None) -> Array:
        return Arena.view(self._buffer, slot, rows)

    def sources(self, program: Program) -> list[tuple[Array, Array]]:
        """The data set's arrays, if there is one, each with the buffer that a batch of it goes to."""
        return list(zip(self._data, program.buffers, strict=True)) if self._data else []

    @property
    def resident(self) -> bool:
        """Whether steps gather their own batches."""
        return bool(self._data)

    def capture(self, step: Callable[[Backend], None], temporary: Sequence[Array] = ()) -> Replay:
        """Record a step. Recording may run it: meanwhile BAD_STEP keeps it from changing any weight."""
        if self.params.precision == "tf32":
            plain = step

            def step(bk: Backend) -> None:
                with bk.rounding():
                    plain(bk)

        before = np.array(self.backend.to_numpy(self.state))
        inert = before.copy()
        inert[[S.CURSOR, S.ROW]] = 0
        inert[S.BAD_STEP] = 1
        # A run stores its outputs at row 0, where those of the epoch's first batch may lie already
        first = [output[: self.batch] for output in self.outputs if output is not None]
        kept = [np.array(self.backend.to_numpy(rows)) for rows in first]
        states = self.carried()
        try:
            return self.backend.capture(step, temporary, lambda: self.backend.copy(inert, out=self.state))
        finally:
            self.backend.copy(before, out=self.state)
            for values, rows in zip(kept, first, strict=True):
                self.backend.copy(values, out=rows)
            self.set_carried(states)

    def _program(self, rows: int) -> Program:
        program = self._programs.get(rows)
        if program is None:
            if not 1 <= rows <= self.batch:
                raise ValueError(f"the plan takes 1 to {self.batch} rows, got {rows}")
            while len(self._programs) >= 8:  # one per number of rows; odd sizes come and go
                del self._programs[next(iter(self._programs))]
            program = self._programs[rows] = Program(self, rows)
        return program

    # ---- use ---------------------------------------------------------------------------------------------
    def use_data(
        self,
        data: tuple[Array, ...],
        order: Array | None,
        outputs: Sequence[Array | None] = (),
        results: Array | None = None,
    ) -> None:
        """Let steps gather their own batches, rows ``order[ROW : ROW + rows]`` of each array of `data`.

        Parameters
        ----------
        data : tuple of array
            Inputs, then targets and sample weights where the plan has them; empty: batches are fed.
        order : array of int64
            Row numbers, those of one epoch after those of another; the contents may change between steps, the
            address not.
        outputs : sequence of (array or None), optional
            For each of the model's outputs what takes it, (rows, numbers), after each step at rows ``ROW`` onward.
        results : array, optional
            float64 (epochs, 3); takes the results of each epoch of :meth:`run_epochs`.
        """
        self._data, self.order, self.outputs, self.results = data, order, outputs, results
        for program in self._programs.values():
            del program.replay  # which knows its program: memory would wait for the garbage collector
        self._programs.clear()
        self._epochs.clear()
        self._last = None

    def takes(self, data: Sequence[Array]) -> bool:
        """Whether steps could gather from these host arrays: in one piece, with the dtype of the plan's buffers."""
        slots = self.layout.fed
        return len(data) == len(slots) and all(
            isinstance(x, np.ndarray)
            and x.flags.c_contiguous
            and x.flags.aligned
            and (x.dtype, x.shape[1:]) == (slot.dtype, slot.shape[1:])
            for x, slot in zip(data, slots, strict=True)
        )

    def feed(self, x: Array, target: Array | None = None, weight: Array | None = None) -> None:
        """Bring a batch into the plan's buffers, for the step that comes next."""
        program = self._program(x.shape[0])
        sources = self._sources_for(program, x, target, weight)
        if program.where is not None:
            program.bring(np.array(x))  # a copy: the caller may change it
        if program.feeder is None:
            program.feeder = self.backend.feeder(program.buffers)
        program.feeder.feed(sources)

    @staticmethod
    def _sources_for(program: Program, x: Array, target: Array | None, weight: Array | None) -> list[Array]:
        """What of a batch the program has buffers for, with its shape checked: a copy would broadcast."""
        given = [*parts(x), *(parts(target) if program.targets else []), *([] if program.weight is None else [weight])]
        if len(given) != len(program.buffers):
            raise ValueError(f"a batch needs {len(program.buffers)} arrays here, got {len(given)}")
        for source, out in zip(given, program.buffers, strict=True):
            if source is None or source.shape != out.shape:
                found = "nothing" if source is None else f"shape {source.shape}"
                raise ValueError(f"a batch needs an array of shape {out.shape} here, got {found}")
        return given

    def infer(self, x: Array, target: Array | None = None, weight: Array | None = None) -> Array:
        """Feed a batch, do a step, and return its output: a view that the next step overwrites."""
        program = self._program(x.shape[0])
        pairs = list(zip(self._sources_for(program, x, target, weight), program.buffers, strict=True))
        for source, out in pairs[1:] if program.bring(x) else pairs:
            self.backend.copy(source, out=out)
        try:
            program.replay.run()
        finally:
            program.leave()
        alone = len(program.inputs) == len(program.outputs) == 1
        self._last = program if alone and self.loss is None and self.backend.xp is np else None
        return program.output

    def infer_again(self, x: Any) -> np.ndarray | None:
        """A copy of the output for a host array that is like the last :meth:`infer`'s; None where it is not.

        Nothing else is asked, so that one row of a small network takes 1.7 us in all.
        """
        last = self._last
        if last is None or type(x) is not np.ndarray or x.dtype is not last.x.dtype or x.shape != last.x.shape:
            return None
        if not last.bring(x):
            last.x[...] = x
        try:
            last.replay.run()
        finally:
            last.leave()
        return last.output.copy()

    def replay(self, rows: int) -> Replay:
        """The recorded step of `rows` rows."""
        return self._program(rows).replay

    def run(self, rows: int, steps: int = 1) -> None:
        """Do `steps` steps of `rows` rows each."""
        self.replay(rows).run(steps)

    def run_epochs(self, rows: int, epochs: int) -> None:
        """Do `epochs` epochs of `rows` rows each, from row ROW of the order on, and keep their results.

        An epoch is its whole batches, a smaller one where rows are left, and
        :meth:`~nnfast.backends.base.Backend.end_epoch`.
        """
        results = self.results
        if results is None:
            raise RuntimeError("run_epochs needs a place for the epochs' results: give use_data one")
        if rows not in self._epochs:
            full, rest = divmod(rows, self.batch)
            parts = [(self._program(n).replay, times) for n, times in ((self.batch, full), (rest, 1)) if n * times]
            end = self.capture(lambda bk: bk.end_epoch(self.state, results))
            self._epochs[rows] = self.backend.chain([*parts, (end, 1)])
        self._epochs[rows].run(epochs)

    def output(self, rows: int) -> Array:
        """The output of the last step of `rows` rows: a view that the next step overwrites."""
        return self._program(rows).output

    @property
    def carries(self) -> bool:
        """Whether layers hand on a state from step to step."""
        return bool(self._carried)

    def carried(self) -> list[np.ndarray]:
        """Copies of what layers hand on from step to step, on the host."""
        return [np.array(self.backend.to_numpy(self.view(slot))) for slot in self._carried]

    def set_carried(self, values: Sequence[np.ndarray]) -> None:
        """Write what :meth:`carried` gave.

        Raises
        ------
        ValueError
            If the arrays are others.
        """
        wanted = [slot.shape for slot in self._carried]
        if (found := [value.shape for value in values]) != wanted:
            raise ValueError(f"layers hand on arrays of shapes {wanted}, got {found}")
        for slot, value in zip(self._carried, values, strict=True):
            self.backend.copy(value.astype(slot.dtype), out=self.view(slot))

    def reset_states(self) -> None:
        """Set what layers hand on from step to step to zero."""
        for slot in self._carried:
            self.backend.fill(self.view(slot), 0.0)

    def outputs_of(self, rows: int) -> list[Array]:
        """All outputs of the last step of `rows` rows, as :meth:`output`."""
        return self._program(rows).outputs

    def read_state(self) -> np.ndarray:
        """A copy of the step state on the host; waits for the device."""
        return np.array(self.backend.to_numpy(self.state))

    def read_results(self, epochs: int) -> np.ndarray:
        """Sum of losses, sum of weights and last learning rate of `epochs` epochs: (epochs, 3), on the host."""
        assert self.results is not None
        return np.array(self.backend.to_numpy(self.results[:epochs]))

    def write_state(self, host: np.ndarray) -> None:
        """Replace the step state."""
        self.backend.copy(host, out=self.state)
