"""Where the arrays of a plan lie that depend on the batch size."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from .arena import Arena, Slot
from .parameters import Built

__all__ = ["PlanLayout"]


@dataclass(frozen=True, slots=True)
class _LayerSlots:
    """Places of one layer's output and of what it declared."""

    output: Slot | None  # None: a view of the input
    declared: tuple[tuple[str, Slot | None, bool], ...]  # name, place (None: not kept), per row


class PlanLayout:
    """Where everything that depends on the batch size will be; nothing is allocated yet.

    Parameters
    ----------
    built : list of Built
        The chain.
    batch : int
        Rows.
    dtype : dtype
        Of activations and their gradients.
    training : bool
        Whether there is a backward pass.
    full : dtype, optional
        Of sample weights, and of what layers want in full; by default `dtype`.
    target : tuple of (shape, dtype), optional
        One row of targets.
    weighted : bool
        Whether there are sample weights.

    Attributes
    ----------
    nbytes : int
        Size of the one allocation.
    """

    def __init__(
        self,
        built: list[Built],
        batch: int,
        dtype: Any,
        *,
        training: bool,
        full: Any = None,
        target: tuple[tuple[int, ...], Any] | None = None,
        weighted: bool = False,
    ) -> None:
        arena = Arena()
        self.x = arena.reserve((batch, *built[0].in_shape), dtype)
        self.target = None if target is None else arena.reserve((batch, *target[0]), target[1])
        full = dtype if full is None else full
        self.weight = arena.reserve((batch,), full) if weighted else None
        widest = max(prod(layer.out_shape) for layer in built)
        # Without a backward pass an output is dead once the next layer has read it: two buffers do
        turns = [] if training else [arena.reserve((batch, widest), dtype) for _ in range(2)]
        self.layers: list[_LayerSlots] = []
        for layer in built:
            output = None
            if not layer.layer.is_view(training):
                shape = (batch, *layer.out_shape)
                if training:
                    output = arena.reserve(shape, dtype)
                else:
                    output = Slot(turns[0].offset, shape, turns[0].dtype)
                    turns.reverse()
            declared = []
            for spec in layer.specs:
                if spec.kind in ("saved", "scratch"):
                    shape = (batch, *spec.shape) if spec.per_row else spec.shape
                    kept = training or spec.kind == "scratch"
                    place = arena.reserve(shape, full if spec.full else dtype) if kept else None
                    declared.append((spec.name, place, spec.per_row))
            self.layers.append(_LayerSlots(output, tuple(declared)))
        self.gradients = self._reserve_gradients(arena, built, batch, dtype) if training else []
        self.nbytes = arena.nbytes

    @staticmethod
    def _reserve_gradients(arena: Arena, built: list[Built], batch: int, dtype: Any) -> list[Slot]:
        """Places of the gradients with respect to each layer's output.

        A gradient is dead once that of the layer below is written, so two of one width can take turns. Widths do not
        share memory: a backend may run a part of the batch through several layers before the next part.
        """
        reserved: dict[tuple[int, int], Slot] = {}
        slots: list[Slot] = []
        turn = 0
        for above, layer in zip([None, *built[:0:-1]], built[::-1], strict=True):
            width = prod(layer.out_shape)
            if above is not None and not above.layer.is_view(True) and width == prod(above.out_shape):
                turn = 1 - turn
            if (width, turn) not in reserved:
                reserved[width, turn] = arena.reserve((batch, width), dtype)
            slots.append(reserved[width, turn])
        return slots[::-1]
