"""The calls of recurrent layers: weights are packed once, then tasks take tiles of the batch through all steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import memory
from . import gemm, product, threads, tuning
from . import recurrent_tiles as R
from .driver import Call
from .specialise import kernel
from .sums import reduce_call

__all__ = ["Cell", "backward_calls", "forward_calls"]

_LINE = memory.ALIGNMENT


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent cell.

    Attributes
    ----------
    name : {"rnn", "gru", "lstm"}
    option : bool
        Of an RNN whether it has relu, of a GRU whether reset comes after the product.
    """

    name: str
    option: bool = False

    @property
    def gates(self) -> int:
        """Gates that have weights."""
        return {"rnn": 1, "gru": 3, "lstm": 4}[self.name]

    @property
    def slots(self) -> int:
        """Numbers that a step keeps of each unit."""
        return {"rnn": 1, "gru": 4, "lstm": 4}[self.name]

    def record(self) -> dict[int, int]:
        """What the kernels know of it. A GRU's slots are new, reset, update, and what reset meets."""
        last = {"rnn": 0, "gru": 3 if self.option else 0, "lstm": 3}[self.name]
        return {
            R.OPTION: self.option,
            R.GATES: self.gates,
            R.SLOTS: self.slots,
            R.SHIFT: self.name == "gru",
            R.LAST_SLOT: last,
            R.MET_SLOT: 3 if self.name == "gru" and not self.option else -1,
        }


class _Sequences:
    """How a batch of sequences is cut, and the record that the kernels go by, filled as far as both ways share it.

    What a forward pass keeps lies by tiles and blocks, so these depend on nothing that may change before its backward
    pass, such as the number of threads that may be used now.
    """

    def __init__(
        self,
        cell: Cell,
        x: np.ndarray,
        W: np.ndarray,
        U: np.ndarray,
        h0: np.ndarray | None,
        mask: np.ndarray | None,
        reverse: bool,
        y: np.ndarray,
        back: bool,
    ) -> None:
        (self.batch, self.steps, self.features), self.units = x.shape, U.shape[0]
        self.cell, self.dtype = cell, x.dtype
        self.blocks = product.blocking(self.dtype)
        per_row = cell.slots * self.units * self.dtype.itemsize
        flops = 2 * self.batch * self.steps * (self.features + self.units) * U.shape[1]
        tiles = tuning.sequence_tiles(self.batch, threads.most() if flops >= tuning.PARALLEL_FLOPS else 1)
        self.tile, self.tasks = tiles.tile, tiles.tasks
        self.block = tuning.sequence_block(self.steps, self.tile, per_row)
        self.keep: list[Any] = [x, W, U, h0, mask, y]
        self.before: list[Call] = []
        # Whether products may read a matrix of some gates where it lies, beyond the last column by up to a vector
        self.reads = self.blocks.reads_columns(self.units, self.units, True, False)
        self.ints = np.zeros(R.LENGTH, np.int64)
        kernel_address, products = R.sequence_kernels(cell.name, self.dtype, back)
        self.address = kernel_address
        self.work_bytes = _LINE  # room at 0 is none
        self.put(
            cell.record()
            | {
                R.BATCH: self.batch,
                R.TILE: self.tile,
                R.TILES: tiles.number,
                R.PER_TASK: tiles.per_task,
                R.STEPS: self.steps,
                R.BLOCK: self.block,
                R.FEATURES: self.features,
                R.UNITS: self.units,
                R.REVERSE: reverse,
                R.WIDE: self.tile == 1 and self.reads,
                R.PRODUCT: products,
                R.X: _address(x),
                R.Y: _address(y),
                R.MASK: _address(mask),
                R.H0: _address(h0),
            }
        )
        rows, state = self.tile * self.block, self.tile * self.units
        self.work(R.X_AT, rows * self.features)
        self.work(R.ZERO_AT, state)
        row = per_row // self.dtype.itemsize if self.tile == 1 else self.units
        if back:
            self.packs(R.U, U, self.units, self.units, True, self.tile)
            self.packs(R.W, W, self.units, self.features, True, rows)
        else:
            self.packs(R.U, U, self.units, self.units, False, self.tile)
            self.packs(R.W, W, self.features, self.units, False, rows)
        for place, stride in (
            (R.X_ROOM_AT, self.features),
            (R.H_ROOM_AT, max(row, self.units)),
            (R.Z_ROOM_AT, row),
        ):
            if not self.blocks.reads_rows(stride):  # its products have sums of one gate's units, or of all gates'
                self.work(place, self.blocks.rows_size(self.tile, self.blocks.depth, False))

    def put(self, values: dict[int, Any]) -> None:
        """Set places of the record."""
        for place, value in values.items():
            self.ints[place] = value

    def work(self, place: int, size: int) -> None:
        """Reserve room for `size` elements in each task's working memory."""
        self.ints[place] = self.work_bytes
        self.work_bytes += -(-size * self.dtype.itemsize // _LINE) * _LINE

    def packs(self, place: int, b: np.ndarray, k: int, n: int, trans: bool, rows: int) -> None:
        """Describe a matrix whose gates are (k, n), each of them packed where products of several rows meet it."""
        gate = self.units * self.dtype.itemsize
        self.put({place: b.ctypes.data, place + 1: b.shape[1], place + 2: trans, place + 5: gate})
        if rows == 1 and (trans or self.reads):
            return
        size = self.blocks.columns_size(k, n)
        to = memory.empty((self.cell.gates, -(-size // 16) * 16), self.dtype)
        self.put({place + R.B_STATE: gemm.PACKED, place + 4: to.ctypes.data, place + 6: to.strides[0]})
        ints = np.array([to.ctypes.data, to.strides[0], b.ctypes.data, gate, k, n, b.shape[1], trans])
        address = kernel(gemm.pack_copy, self.dtype, self.blocks.variant, PACK_COLUMNS=self.blocks.pack_columns)
        shared = self.cell.gates > 1 and to.size >= tuning.PARALLEL_TRANSFERS
        self.before.append(Call(address, ints, np.zeros(1), self.cell.gates, shared, keep=(b, to), when="early"))
        self.keep.append(to)

    def calls(self) -> list[Call]:
        """The calls that the record describes."""
        work = memory.empty((self.tasks, self.work_bytes), np.uint8)
        records = memory.empty((self.tasks, 32), np.int64)
        self.put({R.WORK: work.ctypes.data, R.WORK_STEP: work.strides[0]})
        self.put({R.RECORD: records.ctypes.data, R.RECORD_STEP: records.strides[0]})
        keep = (*self.keep, work, records)
        main = Call(self.address, self.ints, np.zeros(1), self.tasks, self.tasks > 1, keep=keep)
        return [*self.before, main]


def _address(x: np.ndarray | None) -> int:
    return 0 if x is None else int(x.ctypes.data)


def forward_calls(
    cell: Cell,
    x: np.ndarray,
    W: np.ndarray,
    U: np.ndarray,
    b: np.ndarray | None,
    c: np.ndarray | None,
    *,
    h0: np.ndarray | None,
    c0: np.ndarray | None,
    mask: np.ndarray | None,
    reverse: bool,
    y: np.ndarray,
    cells: np.ndarray | None,
    gates: np.ndarray | None,
    last_cell: np.ndarray | None,
) -> list[Call]:
    """The calls of a recurrent layer; all arrays C-contiguous, of one dtype, float32 or float64."""
    made = _Sequences(cell, x, W, U, h0, mask, reverse, y, False)
    made.keep += [b, c, c0, cells, gates, last_cell]
    state = made.tile * made.units
    made.put({R.B: _address(b), R.C: _address(c), R.C0: _address(c0), R.LAST_CELL: _address(last_cell)})
    made.put({R.KEPT: _address(gates), R.CELLS: _address(cells)})
    made.work(R.H_AT, 2 * state)
    if gates is None:
        made.work(R.Z_AT, made.block * state * cell.slots)
    if cell.name == "lstm" and cells is None:
        made.work(R.CELL_AT, 2 * state)
    if c is not None:
        made.work(R.BIAS_AT, 3 * made.units)
    return made.calls()


def backward_calls(
    cell: Cell,
    dy: np.ndarray,
    x: np.ndarray,
    W: np.ndarray,
    U: np.ndarray,
    *,
    y: np.ndarray,
    cells: np.ndarray | None,
    gates: np.ndarray | None,
    h0: np.ndarray | None,
    c0: np.ndarray | None,
    mask: np.ndarray | None,
    reverse: bool,
    dx: np.ndarray | None,
    dW: np.ndarray,
    dU: np.ndarray,
    db: np.ndarray | None,
    dc: np.ndarray | None,
    dh0: np.ndarray | None,
    dc0: np.ndarray | None,
) -> list[Call]:
    """The calls of the gradients; `gates` becomes those of the sums. Tasks' parts are added in their order."""
    made = _Sequences(cell, x, W, U, h0, mask, reverse, y, True)
    one = np.ones(1, made.dtype)
    made.keep += [dy, cells, gates, c0, dx, dW, dU, db, dc, dh0, dc0, one]
    rows, state = made.tile * made.block, made.tile * made.units
    made.put({R.DY: _address(dy), R.DY_STEPS: dy.ndim == 3, R.DX: _address(dx), R.C0: _address(c0)})
    made.put({R.DH0: _address(dh0), R.DC0: _address(dc0), R.ONE: _address(one)})
    made.put({R.KEPT: _address(gates), R.CELLS: _address(cells)})
    made.work(R.H_AT, (made.block + 1) * state)
    made.work(R.DH_AT, 2 * state)
    if gates is None:
        made.work(R.Z_AT, rows * made.units * cell.slots)
    if cell.name == "lstm":
        made.work(R.DCELL_AT, 2 * state)
    if cell.name == "gru" and not cell.option:
        made.work(R.MET_AT, state)
    if dx is not None:
        made.work(R.DX_AT, rows * made.features)
    if not made.reads:
        made.put({R.SUM_STATE: gemm.PACK})
        made.work(R.B_ROOM_AT, made.blocks.columns_size(rows, made.units))
    after: list[Call] = []
    for place, out in ((R.DW, dW), (R.DU, dU), (R.DB, db), (R.DC, dc)):
        if out is None:
            continue
        parts = out[None]
        if made.tasks > 1:
            parts = memory.empty((made.tasks, *out.shape), made.dtype)
            after.append(reduce_call(parts, out))
        made.keep.append(parts)
        made.put({place: parts.ctypes.data, place + 1: parts.strides[0]})
    return [*made.calls(), *after]
