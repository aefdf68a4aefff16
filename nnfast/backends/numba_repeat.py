"""Calls that come again: the kernels' records of one that was made before are used once more, at other addresses.

To make the records of a call takes Python longer than a small kernel runs. A loop over a backend's functions makes the
same calls in each turn, on the same arrays or on new ones of the same shapes, so only the addresses in the records
change.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels.cpu import threads
from ..kernels.cpu.driver import Call, Program
from ..kernels.cpu.fusion import fused

__all__ = ["NumbaRepeat"]

# Calls that are kept, and bytes of their working memory
_MOST, _MOST_BYTES = 64, 64 << 20


@dataclass
class _Kept:
    """A program, and for each array of its call where in the records its addresses stand, and how far into it."""

    program: Program
    places: list[list[tuple[np.ndarray, int, int]]]
    at: list[int]
    nbytes: int

    def run(self, addresses: list[int]) -> None:
        if addresses != self.at:
            for address, before, places in zip(addresses, self.at, self.places, strict=True):
                if address != before:
                    for record, place, offset in places:
                        record[place] = address + offset
            self.at = addresses
        self.program.run()


class NumbaRepeat:
    """Mixin of :class:`~nnfast.backends.numba_backend.NumbaBackend`."""

    _record: list[Any] | None

    def __init__(self, fused: bool = True) -> None:
        super().__init__(fused)  # type: ignore[call-arg]
        self._kept: dict[Any, _Kept] = {}

    def repeated(self, method: str, arguments: Mapping[str, Any]) -> None:
        arrays = [x for x in arguments.values() if isinstance(x, np.ndarray)]
        if self._record is not None or not all(x.size for x in arrays):
            getattr(self, method)(**arguments)
            return
        addresses = [_address(x) for x in arrays]
        # All that the records depend on but the addresses: of those, which are the same
        same = tuple(map(addresses.index, addresses)) if len(set(addresses)) < len(addresses) else None
        key = (method, threads.count(), same, *map(_form, arguments.values()))
        # Nobody else can run it meanwhile
        kept = self._kept.pop(key, None)
        new = kept is None
        if kept is None:
            kept = self._made(method, arguments, arrays, addresses)
            if kept is None:
                return
        kept.run(addresses)
        self._kept[key] = kept
        while new and (len(self._kept) > _MOST or sum(each.nbytes for each in [*self._kept.values()]) > _MOST_BYTES):
            self._kept.pop(next(iter(self._kept), None), None)

    def _made(
        self, method: str, arguments: Mapping[str, Any], arrays: list[np.ndarray], addresses: list[int]
    ) -> _Kept | None:
        """The call's kernels, ready to run; ``None`` where it was done by other means."""
        recorder = copy.copy(self)
        record: list[Any] = []
        recorder._record = record
        getattr(recorder, method)(**arguments)
        if not all(isinstance(call, Call) for call in record):
            for item in record:
                if isinstance(item, Call):
                    Program(fused([item])).run()
                else:
                    item(self)
            return None
        program = Program(fused(record))
        # Not the caller's arrays: they may end before this does
        held = [x for x in _arrays(program.calls) if not any(np.may_share_memory(x, other) for other in arrays)]
        records = [x for x in {id(x): x for x in held}.values() if x.dtype == np.int64 and x.ndim == 1]
        places = []
        for array, begin in zip(arrays, addresses, strict=True):
            end = begin + array.nbytes
            places.append(
                [(r, int(i), int(r[i]) - begin) for r in records for i in np.flatnonzero((begin <= r) & (r < end))]
            )
        kept: Any = tuple(held)
        program.calls = kept
        return _Kept(program, places, addresses, sum(x.nbytes for x in held))


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _form(value: Any) -> Any:
    return (value.shape, value.strides, value.dtype, value.flags.num) if isinstance(value, np.ndarray) else value


def _arrays(items: Sequence[Any]) -> Iterator[np.ndarray]:
    """All arrays that calls need, their records among them."""
    for item in items:
        if isinstance(item, np.ndarray):
            yield item
        elif isinstance(item, Call):
            yield from (item.ints, item.floats)
            yield from _arrays((*item.keep, *item.reads, *item.writes, *item.sums, *item.room))
            if item.packs is not None:
                yield item.packs.to
        elif isinstance(item, (tuple, list)):
            yield from _arrays(item)
