"""Where an epoch's batches come from: arrays on the device, arrays on the host, or the user's iterable."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import random
from ..backends.base import Array
from ..bundles import Bundle, parts, row_shapes
from ..joint_loss import shapes_of
from ..layers.graph import Built, outputs_of
from ..losses import Loss
from . import data
from .engine import Engine

__all__ = ["ArraySource", "BatchSource", "ResidentSource", "Source", "StreamedSource", "next_chunk", "rows_of"]

# Called after some steps with the number of rows done in the epoch; True ends training
Pause = Callable[[int], bool]

# Time between two looks at Ctrl-C and at the progress bar
_PAUSE_SECONDS = 0.1

# Row numbers that the orders of the epochs that run at once may have together: half a megabyte
_MOST_ORDERED = 60_000


def next_chunk(chunk: int, seconds: float) -> int:
    """How many steps or epochs to run at once after `chunk` of them took `seconds`: up to the next look."""
    return max(1, min(chunk * 4, int(chunk * _PAUSE_SECONDS / max(seconds, 1e-7))))


def rows_of(target: Any) -> list[tuple[tuple[int, ...], Any]]:
    """Shape of one row, and dtype, of the targets of each output."""
    return [(tuple(one.shape[1:]), one.dtype) for one in parts(target)]


class Source(ABC):
    """Batches of one data set.

    Attributes
    ----------
    rows : int or None
        Rows in an epoch, where that is known.
    steps : int or None
        Steps in an epoch, where that is known.
    batch : int
        Largest number of rows of a batch.
    targets : sequence of (shape, dtype)
        One row of the targets of each output as the loss takes them.
    weighted : bool
        Whether batches come with sample weights.
    at_once : int
        Epochs that :meth:`run_epochs` may run at once, at most; 1: it is not there.
    """

    rows: int | None = None
    steps: int | None = None
    at_once = 1
    batch: int
    targets: list[tuple[tuple[int, ...], Any]]
    weighted = False

    def attach(self, engine: Engine, measured: Sequence[int] = ()) -> None:
        """Get ready for epochs on `engine`, of which the outputs with these numbers are to be kept."""
        self.measured = list(measured)

    @abstractmethod
    def run_epoch(
        self, engine: Engine, epoch: int, pause: Pause, each_step: bool, start: int = 0, outputs: Any = None
    ) -> int:
        """Run the steps of epoch `epoch`; returns the number of rows that were used.

        `start` rows were done before, with these `outputs`, by number, where some are kept.
        """

    def run_epochs(self, engine: Engine, first: int, count: int) -> None:
        """Run `count` whole epochs from `first` on, without a pause, and keep their results on the device."""
        raise NotImplementedError(f"{type(self).__name__} runs one epoch at a time")

    @abstractmethod
    def kept(self, rows: int) -> tuple[Any, dict[int, np.ndarray]]:
        """Targets of the epoch's first `rows` rows, and by number the outputs that were to be kept."""


class ArraySource(Source):
    """Checked arrays, in a new order each epoch if `shuffle`."""

    def __init__(
        self, x: Any, target: np.ndarray, weight: np.ndarray | None, batch: int, shuffle: bool, seed: int
    ) -> None:
        self.x, self.y, self.weight = x, target, weight
        self.batch = batch
        self.rows = len(target)
        self.steps = -(-self.rows // batch)
        self.targets = rows_of(target)
        self.weighted = weight is not None
        self._orders = random.Orders(seed, self.rows) if shuffle else None

    def attach(self, engine: Engine, measured: Sequence[int] = ()) -> None:
        super().attach(engine, measured)
        if self._orders is not None:
            self._orders.shuffle = engine.backend.shuffle

    def order_of(self, epoch: int) -> np.ndarray:
        """Row numbers in the order of epoch `epoch`."""
        return np.arange(len(self.y)) if self._orders is None else self._orders.of(epoch, 1)[0]


class ResidentSource(ArraySource):
    """The data set lives on the device, and each step gathers its own rows there."""

    def attach(self, engine: Engine, measured: Sequence[int] = ()) -> None:
        super().attach(engine, measured)
        bk, params = engine.backend, engine.model.parameters
        slots = engine.plan.layout.inputs
        arrays: list[Array] = [bk.asarray(one, slot.dtype) for one, slot in zip(parts(self.x), slots, strict=True)]
        arrays += [bk.asarray(one) for one in parts(self.y)]
        if self.weight is not None:
            arrays.append(bk.asarray(self.weight, params.dtype))
        assert self.rows is not None
        assert self.steps is not None
        if not measured and not engine.plan.carries:  # there is room for the outputs of one epoch
            self.at_once = max(1, min(engine.lr_steps // self.steps, _MOST_ORDERED // self.rows))
        self._order = bk.asarray(np.tile(np.arange(self.rows, dtype=np.int64), self.at_once))
        results = bk.empty((self.at_once, 3), np.float64)
        widths = [int(np.prod(node.out_shape)) for node in outputs_of(engine.plan.built)]
        self._outputs = {k: bk.empty((self.rows, widths[k]), params.activations) for k in self.measured}
        self._backend = bk
        outputs = [self._outputs.get(k) for k in range(len(widths))] if self._outputs else []
        engine.plan.use_data(tuple(arrays), self._order, outputs, results)

    def order_rows(self, engine: Engine, first: int, count: int) -> None:
        """Bring the orders of `count` epochs from `first` on to the device."""
        assert self.rows is not None
        if self._orders is not None:
            engine.backend.copy(self._orders.of(first, count).reshape(-1), out=self._order[: count * self.rows])

    def run_epochs(self, engine: Engine, first: int, count: int) -> None:
        assert self.rows is not None
        self.order_rows(engine, first, count)
        engine.run_epochs(self.rows, count)

    def run_epoch(
        self, engine: Engine, epoch: int, pause: Pause, each_step: bool, start: int = 0, outputs: Any = None
    ) -> int:
        assert self.rows is not None
        if start % self.batch or start >= self.rows:
            raise ValueError(f"a batch of {self.batch} rows cannot begin at row {start} of {self.rows}")
        if start:
            for k, kept in self._outputs.items():
                engine.backend.copy(np.asarray(outputs[k]), out=kept[:start])
        self._host_order = self.order_of(epoch)
        if self._orders is not None:
            engine.backend.copy(self._host_order, out=self._order[: self.rows])
        full, rest = divmod(self.rows, self.batch)
        done, chunk = start // self.batch, 1
        while done < full:
            steps = engine.until_pause(min(chunk, full - done))
            began = time.perf_counter()
            engine.run(self.batch, steps)
            done += steps
            if (each_step or done < full or rest) and pause(done * self.batch):
                return done * self.batch
            if not each_step:
                # The clock includes pause(), which waits for the device
                chunk = next_chunk(steps, time.perf_counter() - began)
        if rest:
            engine.run(rest)
            if each_step:
                pause(self.rows)
        return self.rows

    def kept(self, rows: int) -> tuple[Any, dict[int, np.ndarray]]:
        outputs = {k: self._backend.to_numpy(kept)[:rows] for k, kept in self._outputs.items()}
        return self.y[self._host_order[:rows]], outputs


class _FedSource(Source):
    """Batches are brought to the device one by one, prepared in a thread ahead of the step."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[tuple[Array, Array, Array | None]]:
        """Checked batches of an epoch."""

    def run_epoch(
        self, engine: Engine, epoch: int, pause: Pause, each_step: bool, start: int = 0, outputs: Any = None
    ) -> int:
        done = 0
        self._kept: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
        looked = time.perf_counter()
        items = data.prefetch(self.batches(epoch))
        try:
            for x, y, weight in items:
                if done < start:
                    if self.measured:
                        self._keep(y, [np.asarray(outputs[k][done : done + len(x)]) for k in self.measured])
                    done += len(x)
                    continue
                engine.plan.feed(x, y, weight)
                engine.run(len(x))
                done += len(x)
                if self.measured:
                    found = engine.plan.outputs_of(len(x))
                    host = [np.array(engine.backend.to_numpy(found[k])) for k in self.measured]
                    self._keep(y, [output.reshape(len(x), -1) for output in host])
                now = time.perf_counter()
                if each_step or engine.step == engine.pause_at or now - looked > _PAUSE_SECONDS:
                    looked = now
                    if pause(done):
                        break
        finally:
            items.close()  # type: ignore[attr-defined]
        return done

    def _keep(self, y: Any, outputs: list[np.ndarray]) -> None:
        """Note the targets and outputs of a batch for the end of the epoch."""
        self._kept.append(([np.array(one) for one in parts(y)], outputs))

    def kept(self, rows: int) -> tuple[Any, dict[int, np.ndarray]]:
        targets, outputs = ([np.concatenate(k) for k in zip(*of, strict=True)] for of in zip(*self._kept, strict=True))
        return Bundle(targets), dict(zip(self.measured, outputs, strict=True))


class StreamedSource(_FedSource, ArraySource):
    """Arrays that do not fit on the device, or lie in a memory-mapped file: batches are gathered on the host."""

    def batches(self, epoch: int) -> Iterator[tuple[Array, Array, Array | None]]:
        assert self.rows is not None
        order = self.order_of(epoch)
        for start in range(0, self.rows, self.batch):
            index = order[start : start + self.batch]
            yield self.x[index], self.y[index], None if self.weight is None else self.weight[index]


class BatchSource(_FedSource):
    """The user's own iterable of ``(x, y)`` or ``(x, y, sample_weight)``, one pass per epoch.

    The first batch is looked at before training, for shapes; then the iterable starts again, unless it
    is an iterator, which can be gone through only once.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        loss: Loss,
        class_weight: Any,
        dtype: Any,
        inputs: Any,
        numbers: tuple[int, int] = (1, 1),
    ) -> None:
        self._items, self._loss, self._class_weight, self._dtype = batches, loss, class_weight, dtype
        self._inputs = inputs
        iterator = iter(batches)
        try:
            first = next(iterator)
        except StopIteration:
            raise data.EmptyDataError("the iterable of batches is empty: there is nothing to train on") from None
        self._rest = iterator if iterator is batches else None
        self.first = first
        x, y, weight = data.unpack_batch(first)
        self._numbers = numbers
        self.in_shapes = row_shapes(data.as_inputs(x, numbers[0], "x of a batch"))
        self.batch = len(data.as_targets(y, numbers[1], "y of a batch"))
        self.weighted = weight is not None or class_weight is not None
        try:
            self.steps = len(batches)  # type: ignore[arg-type]
        except TypeError:
            self.steps = None

    def expect(self, nodes: Sequence[Built], in_shapes: Sequence[tuple[int, ...]]) -> None:
        """Learn the model's layers, which say what batches must look like and what targets become."""
        self.in_shapes = list(in_shapes)
        self._nodes, self._out_shapes = nodes, [node.out_shape for node in outputs_of(nodes)]
        _, y, _ = self._checked(self.first)
        self.targets = rows_of(y)

    def _checked(self, item: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        x, y, weight = data.unpack_batch(item)
        x = data.as_inputs(x, self._numbers[0], "x of a batch")
        y = data.as_targets(y, self._numbers[1], "y of a batch")
        data.check_inputs(x, self.in_shapes, "x of a batch")
        x = data.as_kind(x, self._nodes, "x of a batch", self._inputs)
        if len(x) != len(y):
            raise ValueError(f"a batch has {len(x)} rows of x and {len(y)} of y")
        if len(x) > self.batch:
            raise ValueError(f"a batch has {len(x)} rows; the first one had {self.batch}, no later one may have more")
        target = self._loss.targets(y, shapes_of(self._out_shapes), self._dtype)
        weights = data.sample_weights(weight, self._class_weight, target, len(y), self._dtype)
        if self.weighted and weights is None:
            weights = np.ones(len(y), self._dtype)
        if not self.weighted and weights is not None:
            raise ValueError("a batch came with sample weights, but the first one did not")
        return x, target, weights

    def batches(self, epoch: int) -> Iterator[tuple[Array, Array, Array | None]]:
        if self._rest is not None:
            # An iterator: its first item is in our hands already
            if self.first is not None:
                first, self.first = self.first, None
                yield self._checked(first)
            yield from map(self._checked, self._rest)
            return
        yield from map(self._checked, self._items)
