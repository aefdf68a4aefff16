"""Calls that work row by row, run tile by tile: a tile of the batch goes through all of them while it is in the cache.

The forward pass, the loss and the backward pass of a network of dense layers are such calls from end to end, but for
the gradients of large weights, which sum over the rows. What must be done before (packing of weights) or can be done
after (adding up partial sums) is moved out of the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import threads, tuning
from .chain import Chain, memory_of, operands
from .copies import Update, with_copies
from .driver import Call
from .sums import reduced_together


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
    written = [x for x in step.writes if x is not None]
    disturbed = any(np.may_share_memory(x, y) for x in call.reads if x is not None for y in written)
    # The others run first: none may need the result, or write what the product reads
    others = [other for other in late if other is not call]
    needed = any(np.may_share_memory(x, out) for x in memory_of(others)) or any(
        np.may_share_memory(x, y)
        for other in others
        for x in other.writes
        for y in call.reads
        if x is not None and y is not None
    )
    if tiles is None or not inside or disturbed or needed:
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
    updates = step.update.pieces(pieces)
    result = reduced_together([call for call, product in cut if product is None])
    for product, update in zip(products, updates, strict=False):
        update.tiles = product.tiles
        chain = Chain()
        chain.calls = [product, update]
        result.append(chain.call())
    return [*result, *updates[len(products) :]]


def fused(calls: Sequence[Call], temporary: Sequence[np.ndarray] = ()) -> list[Call]:
    """The same work, with runs of calls that have tiles as one call each.

    What ends up in the arrays that are `temporary` is undefined: a chain that is alone with one keeps only the tile
    that it is at.
    """
    items: list[Call | Chain] = []
    for item in _in_chains(calls):
        items += _with_update(item.late, item.step) if isinstance(item, Update) else [item]
    used = [(each, memory_of(each.calls if isinstance(each, Chain) else [each])) for each in items]
    finished: list[Call] = []
    for each, _ in used:
        if isinstance(each, Chain):
            others = [array for other, arrays in used if other is not each for array in arrays]
            finished.append(each.call(temporary, others))
        else:
            finished.append(each)
    return finished


def fused_for_many(calls: Sequence[Call], temporary: Sequence[np.ndarray] = ()) -> list[Call] | None:
    """What :func:`fused` gives, for runs of many steps, where there is another way for these; else ``None``."""
    return with_copies(_in_chains(calls), temporary)


def _in_chains(calls: Sequence[Call]) -> list[Call | Chain | Update]:
    """The calls with runs of those that have tiles put together."""
    result: list[Call | Chain | Update] = []
    chain, late = Chain(), list[Call]()

    def too_early(call: Call) -> bool:
        """Whether `call` writes what a late one has yet to read, or needs what one has yet to write."""
        pending = [(x, False) for other in late for x in other.reads] + [
            (x, True) for other in late for x in other.writes
        ]
        return any(
            (waits or written) and begin < x.ctypes.data + x.nbytes and x.ctypes.data < end
            for begin, _, end, written in operands(call)
            for x, waits in pending
            if x is not None
        )

    def flush(step: Call | None = None) -> None:
        nonlocal chain
        if chain.calls:
            result.append(chain)
        if step is None:
            result.extend(reduced_together(late))
        else:
            result.append(Update(list(late), step))
        chain = Chain()
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
