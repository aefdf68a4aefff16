"""A copy of a small network's weights for each thread, which all threads update alike.

Threads that share the update of a few thousand weights spend most of it on taking lines from each other's caches: every
line of the weights has been read by all of them when one writes it again, and such a write waits until the others
have let go of the line, 13 ns where the cores are near and 70 where they are not. So each thread has weights and an
optimizer's arrays of its own, and does the whole update; what it reads of the gradient is the sum of all parts, in the
same order in all threads, and so the numbers are the same. Only partial gradients go from thread to thread.
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
from .sums import reduce_call

__all__ = ["Update", "reaches", "with_copies"]


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
    assert step.update is not None
    weights, grad = step.writes[0], step.reads[0]
    assert weights is not None
    assert grad is not None
    arrays = [x for x in step.writes if x is not None]
    number = tiles.tasks
    packs = [item.packs for item in items if isinstance(item, Call) and item.packs is not None]
    packs = [packing for packing in packs if np.may_share_memory(packing.weights, weights)]
    # What is added up in the gradient, from sums over the rows that the chain goes through
    inside = [call for call in update.late if call.reduces and reaches([call], [grad])]
    sums = [x for call in work.calls for x in call.sums if x is not None]
    rest = [call for call in update.late if all(call is not other for other in inside)]
    others = [item for item in items if isinstance(item, Call) and not any(item.packs is p for p in packs)]
    if (
        not 1 < number <= tuning.OWN_COPIES
        or tiles.per_task > 1
        or weights.size > tuning.OWN_ELEMENTS
        or sum(call.nanoseconds for call in work.calls) < tuning.PARALLEL_NS
        or not all(len(call.keep[0]) == number and any(call.keep[0] is x for x in sums) for call in inside)
        or any(call.keep[-1].dtype != grad.dtype for call in inside)
        or reaches([*others, *rest], [*arrays, grad])
        or reaches(work.calls, [*arrays[1:], grad])
    ):
        return None

    def for_each(x: np.ndarray) -> np.ndarray:
        """A row like `x` for each task, on cache lines of its own."""
        line = memory.ALIGNMENT // x.itemsize
        return memory.zeros((number, -(-x.size // line) * line), x.dtype)[:, : x.size]

    own = [for_each(x) for x in arrays]
    parts = for_each(grad)
    moved = [(weights, own[0].ctypes.data, own[0].strides[0])]
    # A kernel goes on from one task's part to the next by the length of a part
    moved += [
        (part, parts.ctypes.data + out.ctypes.data - grad.ctypes.data, parts.strides[0] - part[0].nbytes)
        for part, out in (call.keep for call in inside)
    ]
    opening = [_copy_call([(x, 0, e, e.strides[0]) for x, e in zip(arrays, own, strict=True)], number, "first")]
    packing: list[Call] = []
    room = [*own, parts]
    for one in packs:
        first = own[0].ctypes.data + one.weights.ctypes.data - weights.ctypes.data
        call, each = one.copies(number, first, own[0].strides[0])
        packing.append(call)
        moved.append((one.to, each.ctypes.data, each.strides[0]))
        room.append(each)
        opening.append(Call(call.function, call.ints, call.floats, number, True, keep=(call,), when="first"))
    where = {id(x): e for x, e in zip(arrays, own, strict=True)}
    together = Chain()
    copies = [None if x is None else where[id(x)] for x in step.writes]
    together.calls = [step.update.copies(copies, parts), *packing]
    for call in together.calls:
        call.tiles, call.nanoseconds = tuning.Tiles(number, 1), tuning.PARALLEL_NS
    result = opening
    for item in items:
        if isinstance(item, Chain):
            used = [x for other in (*others, *rest) for x in chain.memory_of([other])]
            result.append(item.call(temporary, used, moved, room))
        elif isinstance(item, Update):
            result += [*rest, together.call()]
        elif any(item is other for other in others):
            result.append(item)
    whole = reduce_call(parts, grad)
    whole.when = "last"
    return [*result, whole, _copy_call([(e, 0, x, 0) for x, e in zip(arrays, own, strict=True)], 1, "last")]
