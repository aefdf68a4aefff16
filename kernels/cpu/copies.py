"""A copy of a small network's weights for each thread, which all threads update alike.

Threads that share the update of a few thousand weights spend most of it on taking lines from each other's caches: every
line of the weights has been read by all of them when one writes it again, and such a write waits until the others
have let go of the line, 13 ns where the cores are near and 70 where they are not. So each thread has weights and an
optimizer's arrays of its own, adds up all partial gradients, and does the whole update. The sums and the updates are
the same in all threads, in the same order, and so are the numbers. Only partial gradients go from thread to thread.
"""

# ruff: noqa: E741 - globals in capitals are put in where the copies are made
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import memory
from . import chain, tuning
from .chain import Chain
from .driver import Call
from .intrinsics import copy_memory
from .specialise import kernel
from .sums import sums_for_each

__all__ = ["Update", "reaches", "with_copies"]

# Place of the size, the chunk and the first array in an optimizer's record
_SIZE, _CHUNK, _ARRAYS = 2, 3, 4


@dataclass
class Update:
    """An optimizer's step, after the late calls of the chain before it."""

    late: list[Call]
    step: Call


def copy_each(I, F, task):
    """I: number, then of each copy: from, bytes from task to task, to, bytes likewise, bytes to copy."""
    for c in range(I[0]):
        at = 1 + 5 * c
        copy_memory(I[at + 2] + task * I[at + 3], I[at] + task * I[at + 1], I[at + 4])


def _copy_call(pairs: Sequence[tuple[np.ndarray, int, np.ndarray, int]], tasks: int, when: str) -> Call:
    """Of pairs (from, bytes from task to task, to, bytes likewise); the shorter array is copied whole."""
    records = [
        v
        for source, step, out, out_step in pairs
        for v in (source.ctypes.data, step, out.ctypes.data, out_step, min(source.nbytes, out.nbytes))
    ]
    ints = np.array([len(pairs), *records], np.int64)
    return Call(kernel(copy_each), ints, np.zeros(1), tasks, tasks > 1, keep=(pairs,), when=when)


def reaches(calls: Iterable[Call], arrays: Sequence[np.ndarray]) -> bool:
    """Whether the records of any of these calls, or of calls in chains, have an address in one of the arrays."""

    def each(call: Call) -> Iterator[Call]:
        yield call
        if call.function == kernel(chain.chain_tiles):
            for inner in call.keep:
                yield from each(inner)

    return any(
        bool(((x.ctypes.data <= one.ints) & (one.ints < x.ctypes.data + x.nbytes)).any())
        for call in calls
        for one in each(call)
        for x in arrays
    )


def with_copies(items: Sequence[Call | Chain | Update], temporary: Sequence[np.ndarray]) -> list[Call] | None:
    """The calls of a step where each thread has its own weights, or ``None`` where that cannot be, or would not pay.

    They begin with what fills the copies, and end with what brings them back.
    """
    chains = [item for item in items if isinstance(item, Chain)]
    updates = [item for item in items if isinstance(item, Update)]
    if len(chains) != 1 or len(updates) != 1:
        return None
    [work], [update] = chains, updates
    step, tiles = update.step, work.calls[0].tiles
    assert tiles is not None
    arrays = [x for x in (step.writes[0], step.reads[0], *step.writes[1:]) if x is not None]
    weights, grad = arrays[:2]
    number = tiles.tasks
    packs = [item.packs for item in items if isinstance(item, Call) and item.packs is not None]
    packs = [packing for packing in packs if np.may_share_memory(packing.weights, weights)]
    # What is added up in the gradient, from sums over the rows that the chain goes through
    inside = [call for call in update.late if call.reduces and reaches([call], [grad])]
    sums = [x for call in work.calls for x in call.sums if x is not None]
    rest = [call for call in update.late if all(call is not other for other in inside)]
    others = [item for item in items if isinstance(item, Call) and not any(item.packs is p for p in packs)]
    records = step.ints[_ARRAYS:]
    if (
        not 1 < number <= tuning.OWN_COPIES
        or weights.size > tuning.OWN_ELEMENTS
        or sum(call.nanoseconds for call in work.calls) < tuning.PARALLEL_NS
        or not {int(address) for address in records} <= {0, *(x.ctypes.data for x in arrays)}
        or not all(any(np.may_share_memory(call.keep[0], x) for x in sums) for call in inside)
        or any(call.keep[-1].dtype != grad.dtype for call in inside)
        or reaches([*others, *rest], arrays)
        or reaches(work.calls, arrays[1:])
    ):
        return None
    own = [memory.zeros((number, x.size), x.dtype) for x in arrays]
    step_bytes = own[0].strides[0]
    opening: list[Call] = [
        _copy_call([(x, 0, e, e.strides[0]) for x, e in zip(arrays, own, strict=True)], number, "first")
    ]
    closing = _copy_call([(e[0], 0, x, 0) for x, e in zip(arrays, own, strict=True)], 1, "last")
    pairs = [(weights, own[0])]
    packing: list[Call] = []
    for one in packs:
        call, each = one.copies(number, own[0].ctypes.data + one.weights.ctypes.data - weights.ctypes.data, step_bytes)
        packing.append(call)
        pairs.append((one.to, each))
        opening.append(Call(call.function, call.ints, call.floats, number, True, keep=(call,), when="first"))
    ints = step.ints.copy()
    ints[_SIZE], ints[_CHUNK] = number * weights.size, weights.size
    where = {x.ctypes.data: e.ctypes.data for x, e in zip(arrays, own, strict=True)}
    ints[_ARRAYS:] = [where.get(int(address), 0) for address in records]
    adds = sums_for_each(inside, number, own[1].ctypes.data - grad.ctypes.data, step_bytes, grad.dtype)
    together = Chain()
    together.calls = [adds, Call(step.function, ints, step.floats, number, keep=(step, own)), *packing]
    for call in together.calls:
        call.tiles, call.nanoseconds = tuning.Tiles(number, 1), tuning.PARALLEL_NS
    result = opening
    for item in items:
        if isinstance(item, Chain):
            used = [x for other in (*others, *rest) for x in chain.memory_of([other])]
            result.append(item.call(temporary, used, pairs))
        elif isinstance(item, Update):
            result += [*rest, together.call()]
        elif any(item is other for other in others):
            result.append(item)
    return [*result, closing]
