"""A chain of calls that work row by row, as one call that takes a tile of the batch through all of them."""

# ruff: noqa: E741 - the kernels' own names
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import memory
from . import tuning
from .atomics import fetch_add
from .driver import Call
from .intrinsics import call_kernel, cycle_count, pointer_i64
from .specialise import kernel

# Numbers that describe a kernel of a chain, and an address of its record that follows the tile
KERNEL, MOVE = 6, 5
_LINE = memory.ALIGNMENT  # rooms of tiles begin at a multiple of it


def chain_tiles(I, F, task):
    """I: tiles, tiles of a task, clocks or 0, number of kernels, room for a record of each task, its bytes, then of
    each kernel: function, records, length of the first one, first and number of its moves; then the moves: place in
    the record, address of the array, of its room, bytes of that for a task, bytes of a tile. Same tiles for all.

    Where there are `clocks`, the cycles that each kernel took, in all threads, are added to them. Kernels count on from
    an array's first row; where there is room for a tile only, they are told that it begins as far before.
    """
    moves = 6 + KERNEL * I[3]
    for tile in range(task * I[1], min((task + 1) * I[1], I[0])):
        for c in range(I[3]):
            began = cycle_count() if I[2] != 0 else 0
            k = 6 + KERNEL * c
            record = I[k + 1]
            if I[k + 5] != 0:
                record = I[4] + task * I[5]
                given, moved = pointer_i64(I[k + 1]), pointer_i64(record)
                for i in range(I[k + 3]):
                    moved[i] = given[i]
                for m in range(I[k + 4], I[k + 4] + I[k + 5]):
                    at = moves + MOVE * m
                    moved[I[at]] += I[at + 2] + task * I[at + 3] - I[at + 1] - tile * I[at + 4]
            call_kernel(I[k], record, I[k + 2], tile)
            if I[2] != 0:
                fetch_add(I[2] + 8 * c, cycle_count() - began)


def operands(call: Call) -> list[tuple[int, int, int, bool]]:
    """Address, bytes of a row, end, and whether it is written, of each array of a call.

    An array without the batch's rows has rows of 0 bytes: a tile needs all of it.
    """
    found = []
    rows = [(x, True) for x in call.writes] + [(x, False) for x in call.reads]
    for x, written in rows:
        if x is not None:
            found.append((x.ctypes.data, x.nbytes // max(len(x), 1), x.ctypes.data + x.nbytes, written))
    seen = {(x.ctypes.data, x.nbytes) for x, _ in rows if x is not None}  # perhaps under another shape
    kept = [x for x in _flat(call.keep) if isinstance(x, np.ndarray) and (x.ctypes.data, x.nbytes) not in seen]
    for x, written in [(x, True) for x in call.sums] + [(x, False) for x in kept]:
        if x is not None:
            found.append((x.ctypes.data, 0, x.ctypes.data + x.nbytes, written))
    return found


def _flat(items: Iterable[Any]) -> Iterator[Any]:
    """What there is in sequences, and in sequences within."""
    for item in items:
        if isinstance(item, (tuple, list)):
            yield from _flat(item)
        else:
            yield item


class Chain:
    """Calls on the same tiles that nothing has to come between."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._touched: list[tuple[int, int, int, bool]] = []  # as operands() gives them

    def takes(self, call: Call) -> bool:
        """Whether `call` may run tile by tile with those that are here.

        It may not where two arrays with rows of other lengths, or other starts, share memory: a tile of one would
        be several tiles of the other.
        """
        if self.calls and call.tiles != self.calls[0].tiles:
            return False
        return not self.disturbed_by(call)

    def disturbed_by(self, call: Call) -> bool:
        """Whether `call` and those that are here cannot both go tile by tile through memory that they share."""
        for address, size, end, written in operands(call):
            for other, other_size, other_end, other_written in self._touched:
                overlap = address < other_end and other < end
                tile_by_tile = size and (address, size) == (other, other_size)
                if overlap and (written or other_written) and not tile_by_tile:
                    return True
        return False

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self._touched += operands(call)

    def call(
        self,
        temporary: Sequence[np.ndarray] = (),
        elsewhere: Sequence[np.ndarray] = (),
        moved: Sequence[tuple[np.ndarray, int, int]] = (),
        room: Sequence[np.ndarray] = (),
    ) -> Call:
        """All of it as one call, which keeps a tile of what is `temporary` and not used `elsewhere`.

        In place of each array of `moved`, which are an array, an address and bytes, task t uses what lies at the
        address, t times the bytes further. Their memory is in `room`.
        """
        tiles = self.calls[0].tiles
        assert tiles is not None
        time = sum(call.nanoseconds for call in self.calls)
        parallel = tiles.tasks > 1 and time >= tuning.PARALLEL_NS
        blas = any(call.blas for call in self.calls)
        if len(self.calls) == 1 and tiles.per_task == 1 and not moved:
            one = self.calls[0]
            return Call(one.function, one.ints, one.floats, tiles.tasks, parallel, blas, (one,))
        local = [] if tiles.per_task == 1 else self._local(temporary, elsewhere)
        sizes = [-(-tiles.tile * x.nbytes // len(x) // _LINE) * _LINE + _LINE for x in local]
        tile_room = memory.empty(tiles.tasks * sum(sizes), np.uint8)
        longest = max(len(call.ints) for call in self.calls)
        records = np.empty((tiles.tasks, -(-longest // 16) * 16 + 16), np.int64)
        kernels: list[int] = []
        moves: list[int] = []
        for call in self.calls:
            first = len(moves) // MOVE
            if call.ahead is not None and any(
                y is not None and np.may_share_memory(x, y) for x in local for y in call.writes
            ):
                call.ints[call.ahead] = 0
            at = tile_room.ctypes.data
            for x, size in zip(local, sizes, strict=True):
                begin, end = x.ctypes.data, x.ctypes.data + x.nbytes
                for place in np.flatnonzero((begin <= call.ints) & (call.ints < end)):
                    moves += [int(place), begin, at, size, tiles.tile * x.nbytes // len(x)]
                at += tiles.tasks * size
            for x, to, step in moved:
                begin, end = x.ctypes.data, x.ctypes.data + x.nbytes
                for place in np.flatnonzero((begin <= call.ints) & (call.ints < end)):
                    moves += [int(place), begin, to, step, 0]
            number = len(moves) // MOVE - first
            kernels += [call.function, call.ints.ctypes.data, call.floats.ctypes.data, len(call.ints), first, number]
        head = [tiles.number, tiles.per_task, 0, len(self.calls), records.ctypes.data, records.strides[0]]
        chain = Call(
            kernel(chain_tiles), np.array([*head, *kernels, *moves]), np.zeros(1), tiles.tasks, parallel, blas,
            tuple(self.calls),
        )  # fmt: skip
        chain.room = (tile_room, records, *room)
        return chain

    def _local(self, temporary: Sequence[np.ndarray], elsewhere: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The arrays that need not exist: nobody else uses them, and a tile is written here before it is read."""
        found: dict[int, np.ndarray] = {}
        for x in temporary:
            if x.ctypes.data in found or any(np.may_share_memory(x, y) for y in elsewhere):
                continue
            row = x.nbytes // max(len(x), 1)
            touching = [call for call in self.calls if any(np.may_share_memory(x, y) for y in memory_of([call]))]
            alike = all(
                (begin, size) == (x.ctypes.data, row)
                for call in touching
                for begin, size, end, _ in operands(call)
                if begin < x.ctypes.data + x.nbytes and x.ctypes.data < end
            )
            if not touching or not alike:
                continue
            first = touching[0]
            written = any(y is not None and np.may_share_memory(x, y) for y in first.writes)
            if written and not any(y is not None and np.may_share_memory(x, y) for y in first.reads):
                found[x.ctypes.data] = x
        return list(found.values())


def memory_of(calls: Iterable[Call]) -> list[np.ndarray]:
    """All arrays that these calls, and calls in them, hold."""

    def each(call: Call) -> Iterator[np.ndarray]:
        for x in _flat((call.keep, call.reads, call.writes, call.sums)):
            if isinstance(x, np.ndarray):
                yield x
            elif isinstance(x, Call):
                yield from each(x)

    return [x for call in calls for x in each(call)]
