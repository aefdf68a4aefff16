"""What a model consists of, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .backends.base import Backend
from .layers.graph import Built
from .parameters import Parameters
from .plan_layout import PlanLayout

__all__ = ["Summary"]


def _size(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"


@dataclass(frozen=True)
class Row:
    """One layer of the table."""

    name: str
    layer: str
    out_shape: tuple[int, ...]
    parameters: int


class Summary:
    """Layers, shapes, parameters and memory of a model; ``print`` shows the table.

    Attributes
    ----------
    rows : list of Row
        One per layer.
    parameters : int
        Number of trained parameters.
    plan_bytes : int
        What a training step of the batch size needs for activations and their gradients.
    weight_bytes : int
        Weights, their gradients, two moments, and the copy in 16 bits where there is one.
    device : str or None
        Where it would train.
    working_bytes, total_bytes, free_bytes : int
        On that device: what the backend works in, all that a training takes but for the data set, and what is free
        now; 0 without a device.
    """

    def __init__(self, built: list[Built], params: Parameters, batch_size: int, backend: Backend | None = None) -> None:
        self.in_shape = built[0].in_shape
        self.batch_size = batch_size
        self.rows = [
            Row(b.name, repr(b.layer), b.out_shape, sum(prod(s.shape) for s in b.specs if s.kind == "param"))
            for b in built
        ]
        self.parameters = params.count
        where = params.backend if backend is None else backend
        reduced = where.reduced(params.precision)
        layout = PlanLayout(built, batch_size, reduced or params.dtype, training=True, full=params.dtype)
        self.plan_bytes = layout.nbytes
        self.weight_bytes = params.size * (4 * params.dtype.itemsize + (0 if reduced is None else 2))
        self.dtype = params.dtype
        self.device = None if backend is None else backend.device
        self.working_bytes = self.total_bytes = self.free_bytes = 0
        if backend is not None:
            self.working_bytes = backend.working_bytes
            self.total_bytes = self.weight_bytes + self.plan_bytes + self.working_bytes
            self.free_bytes = backend.memory()[0]

    def __str__(self) -> str:
        head = ("layer", "", "output", "parameters")
        table = [head, ("input", "", str(("n", *self.in_shape)).replace("'", ""), "")]
        for row in self.rows:
            shape = str(("n", *row.out_shape)).replace("'", "")
            table.append((row.name, row.layer, shape, f"{row.parameters:,}"))
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        lines = ["  ".join((*(c.ljust(w) for c, w in zip(line[:3], widths[:3], strict=True)), line[3].rjust(widths[3])))
                 for line in table]  # fmt: skip
        lines.insert(1, "-" * max(map(len, lines)))
        lines.append(
            f"{self.parameters:,} parameters, {self.dtype}: {_size(self.weight_bytes)} with gradients and two moments; "
            f"a training step of {self.batch_size} rows takes {_size(self.plan_bytes)} more"
        )
        if self.device is not None:
            working = f", {_size(self.working_bytes)} of it to work in" if self.working_bytes else ""
            lines.append(
                f"on {self.device}: {_size(self.total_bytes)} in all{working}, beside the data; "
                f"{_size(self.free_bytes)} are free"
            )
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__
