"""Calls that work row by row, run tile by tile: a tile of the batch goes through all of them while it is in the cache.

The forward pass, the loss and the backward pass of a network of dense layers are such calls from end to end, but for
the gradients of large weights, which sum over the rows. What must be done before (packing of weights) or can be done
after (adding up partial sums) is moved out of the way.
"""

# ruff: noqa: E741 - the kernels' own names
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import threads, tuning
from .atomics import fetch_add
from .driver import Call
from .gemm import reduced_together
from .intrinsics import call_kernel, cycle_count
from .specialise import kernel


def chain_tiles(I, F, task):
    """I: tiles, tiles of a task, clocks or 0, number of kernels, then function and records of each; same tiles for all.

    Where there are `clocks`, the cycles that each kernel took, in all threads, are added to them.
    """
    for tile in range(task * I[1], min((task + 1) * I[1], I[0])):
        for c in range(I[3]):
            began = cycle_count() if I[2] != 0 else 0
            call_kernel(I[4 + 3 * c], I[5 + 3 * c], I[6 + 3 * c], tile)
            if I[2] != 0:
                fetch_add(I[2] + 8 * c, cycle_count() - began)


def _operands(call: Call) -> list[tuple[int, int, int, bool]]:
    """Address, bytes of a row, end, and whether it is written, of each array of a call.

    An array without the batch's rows has rows of 0 bytes: a tile needs all of it.
    """
    found = []
    rows = [(x, True) for x in call.writes] + [(x, False) for x in call.reads]
    for x, written in rows:
        if x is not None:
            found.append((x.ctypes.data, x.nbytes // max(len(x), 1), x.ctypes.data + x.nbytes, written))
    seen = {id(x) for x, _ in rows}
    whole = [(x, True) for x in call.sums] + [(x, False) for x in call.keep if id(x) not in seen]
    for x, written in whole:
        if isinstance(x, np.ndarray):
            found.append((x.ctypes.data, 0, x.ctypes.data + x.nbytes, written))
    return found


class _Chain:
    """Calls on the same tiles that nothing has to come between."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._touched: list[tuple[int, int, int, bool]] = []  # as _operands gives them

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
        for address, size, end, written in _operands(call):
            for other, other_size, other_end, other_written in self._touched:
                overlap = address < other_end and other < end
                tile_by_tile = size and (address, size) == (other, other_size)
                if overlap and (written or other_written) and not tile_by_tile:
                    return True
        return False

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self._touched += _operands(call)

    def call(self) -> Call:
        """All of it as one call."""
        tiles = self.calls[0].tiles
        assert tiles is not None
        time = sum(call.nanoseconds for call in self.calls)
        parallel = tiles.tasks > 1 and time >= tuning.PARALLEL_NS
        blas = any(call.blas for call in self.calls)
        if len(self.calls) == 1 and tiles.per_task == 1:
            one = self.calls[0]
            return Call(one.function, one.ints, one.floats, tiles.tasks, parallel, blas, (one,))
        columns = [v for call in self.calls for v in (call.function, call.ints.ctypes.data, call.floats.ctypes.data)]
        ints = np.array([tiles.number, tiles.per_task, 0, len(self.calls), *columns])
        return Call(kernel(chain_tiles), ints, np.zeros(1), tiles.tasks, parallel, blas, tuple(self.calls))


def _cut_for_update(call: Call, late: Sequence[Call], step: Call) -> Call | None:
    """The product `call` by tiles of rows of a weight, if the optimizer's `step` can follow it tile by tile.

    Meanwhile it asks for the weights that come next: other threads have read them, and to take them from their caches
    is most of what an update costs.
    """
    grad, weights = step.reads[0], step.writes[0]
    out = call.writes[0] if call.cut is not None else None
    if call.cut is None or out is None or grad is None or weights is None:
        return None
    tiles = tuning.update_tiles(len(out), out.nbytes, call.nanoseconds, threads.count())
    begin, end = grad.ctypes.data, grad.ctypes.data + grad.nbytes
    inside = begin <= out.ctypes.data and out.ctypes.data + out.nbytes <= end and out.dtype == grad.dtype
    disturbed = any(
        np.may_share_memory(x, y) for x in call.reads if x is not None for y in step.writes if y is not None
    )
    if tiles is None or not inside or disturbed:
        return None
    *before, product = call.cut(tiles, weights.ctypes.data - begin)
    product.tiles, product.writes = tiles, (out,)
    return None if before else product


def _with_update(late: Sequence[Call], step: Call) -> list[Call]:
    """`late` calls and the optimizer's `step`, which updates rows of a large weight once their gradient is there.

    So that gradient is read from a near cache, and never from that of another thread.
    """
    cut = [(call, _cut_for_update(call, late, step)) for call in late]
    products = [product for _, product in cut if product is not None]
    if not products:
        return [*reduced_together(late), step]
    grad = step.reads[0]
    assert grad is not None
    pieces: list[tuple[int, int, int]] = []  # first element, size, chunk
    rest = [(0, grad.size)]
    for product in products:
        out, tiles = product.writes[0], product.tiles
        assert out is not None
        assert tiles is not None
        first = (out.ctypes.data - grad.ctypes.data) // grad.itemsize
        pieces.append((first, out.size, tiles.tile * out.shape[1]))
        around = [part for a, b in rest for part in ((a, min(b, first)), (max(a, first + out.size), b))]
        rest = [(a, b) for a, b in around if a < b]
    pieces += [(a, b - a, tuning.chunks(b - a, threads.count())[0]) for a, b in rest]
    assert step.update is not None
    updates = step.update(pieces)
    result = reduced_together([call for call, product in cut if product is None])
    for product, update in zip(products, updates, strict=False):
        update.tiles = product.tiles
        chain = _Chain()
        chain.calls = [product, update]
        result.append(chain.call())
    return [*result, *updates[len(products) :]]


def fused(calls: Sequence[Call]) -> list[Call]:
    """The same work, with runs of calls that have tiles as one call each."""
    result: list[Call] = []
    chain, late = _Chain(), list[Call]()

    def too_early(call: Call) -> bool:
        """Whether `call` writes what a late one has yet to read, or needs what one has yet to write."""
        pending = [(x, False) for other in late for x in other.reads] + [
            (x, True) for other in late for x in other.writes
        ]
        return any(
            (waits or written) and begin < x.ctypes.data + x.nbytes and x.ctypes.data < end
            for begin, _, end, written in _operands(call)
            for x, waits in pending
            if x is not None
        )

    def flush(step: Call | None = None) -> None:
        nonlocal chain
        if chain.calls:
            result.append(chain.call())
        result.extend(reduced_together(late) if step is None else _with_update(late, step))
        chain = _Chain()
        late.clear()

    for call in calls:
        if call.tiles is not None:
            if not chain.takes(call) or too_early(call):
                flush()
            chain.add(call)
        elif call.when == "early":
            if chain.disturbed_by(call) or too_early(call):
                flush()
            result.append(call)
        elif call.when == "late":
            late.append(call)
        elif call.update is not None:
            flush(call)
        else:
            flush()
            result.append(call)
    flush()
    return result
