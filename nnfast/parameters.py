"""Where a model's weights live: flat arrays on one device, with a named view per parameter.

Zeroing, clipping, the optimizer, the moving average and a checkpoint are then one call each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import random
from .backends.base import Array, Backend
from .layers.base import TensorSpec
from .layers.graph import Built

__all__ = ["Entry", "Parameters"]

# Elements between the starts of two parameters are a multiple of this, so that each one starts on a
# cache line in float32; the padding stays zero.
_ALIGN = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter's or a buffer's place in its flat array."""

    key: str
    layer: int
    spec: TensorSpec
    offset: int

    @property
    def size(self) -> int:
        return prod(self.spec.shape)

    def view(self, flat: Array) -> Array:
        """This entry as a view of a flat array."""
        return flat[self.offset : self.offset + self.size].reshape(self.spec.shape)


class Parameters:
    """The weights, buffers, moments and moving average of a built model.

    Attributes
    ----------
    entries, buffer_entries : list of Entry
        Places of the trained parameters and of the buffers.
    backend : Backend
        Where the arrays are.
    dtype : dtype
        Of all of them.
    precision : str
        What a computation with them may round; see :mod:`nnfast.precision`.
    flat, buffers : array
        All parameters, all buffers.
    low : array or None
        A copy of `flat` in 16 bits, where the computation has such activations and has begun.
    slots : dict of str to array
        The optimizer's moments, shaped like `flat`.
    average : array or None
        Moving average of `flat`.
    """

    def __init__(self, built: list[Built], backend: Backend, dtype: Any) -> None:
        self.entries: list[Entry] = []
        self.buffer_entries: list[Entry] = []
        self.size = self._place(built, "param", self.entries)
        self.buffer_size = self._place(built, "buffer", self.buffer_entries)
        self.backend = backend
        self.dtype = np.dtype(dtype)
        self.precision = self.dtype.name
        self.flat = backend.zeros(self.size, self.dtype)
        self.buffers = backend.zeros(self.buffer_size, self.dtype)
        self.slots: dict[str, Array] = {}
        self.average: Array | None = None
        self.low: Array | None = None

    @property
    def activations(self) -> np.dtype[Any]:
        """Type of activations: that of the weights, or of 16 bits where the precision and the device say so."""
        reduced = self.backend.reduced(self.precision)
        return self.dtype if reduced is None else np.dtype(reduced)

    def use_low(self) -> None:
        """Make sure that the copy in 16 bits exists, where there is to be one."""
        if self.low is None and self.activations != self.dtype:
            low = self.backend.empty(self.size, self.activations)
            self.backend.copy(self.flat, out=low)
            self.low = low

    def _changed(self) -> None:
        """`flat` was written from outside of a step."""
        if self.low is not None:
            self.backend.copy(self.flat, out=self.low)

    @staticmethod
    def _place(built: list[Built], kind: str, entries: list[Entry]) -> int:
        offset = 0
        for layer in built:
            for spec in layer.specs if layer.owner == layer.index else ():
                if spec.kind == kind:
                    entries.append(Entry(f"{layer.name}.{spec.name}", layer.index, spec, offset))
                    offset += -(-prod(spec.shape) // _ALIGN) * _ALIGN
        return offset

    @property
    def count(self) -> int:
        """Number of trained parameters."""
        return sum(entry.size for entry in self.entries)

    def initialise(self, seed: int) -> None:
        """Draw all parameters and buffers anew; moments and the moving average go."""
        for entries, flat in ((self.entries, self.flat), (self.buffer_entries, self.buffers)):
            for number, entry in enumerate(entries):
                rng = random.generator(seed, random.INIT, number)
                values = np.asarray(entry.spec.init(entry.spec.shape, rng), self.dtype)
                if values.shape != entry.spec.shape:
                    raise ValueError(
                        f"the initializer of {entry.key} gave shape {values.shape}, expected {entry.spec.shape}"
                    )
                self.backend.copy(values, out=entry.view(flat))
        self.slots, self.average = {}, None
        self._changed()

    def move(self, backend: Backend, dtype: Any, precision: str | None = None) -> None:
        """Bring everything to another backend, dtype or precision; by default that of the dtype, if it is another."""
        dtype = np.dtype(dtype)
        if precision is None:
            precision = self.precision if dtype == self.dtype else dtype.name
        if precision != self.precision:
            self.precision = precision
            self.flat, self.low = self.flat[:], None  # plans made for another one end here
        if backend is self.backend and dtype == self.dtype:
            return

        def moved(array: Array) -> Array:
            out = backend.empty(array.shape, dtype)
            backend.copy(self.backend.to_numpy(array).astype(dtype), out=out)
            return out

        # All of it, or, if the device has no room, nothing
        flat, buffers = moved(self.flat), moved(self.buffers)
        slots = {name: moved(array) for name, array in self.slots.items()}
        average = None if self.average is None else moved(self.average)
        self.flat, self.buffers, self.slots, self.average, self.low = flat, buffers, slots, average, None
        self.backend, self.dtype = backend, dtype

    @contextmanager
    def unchanged_on_error(self) -> Iterator[None]:
        """If the block fails, the arrays are those from before, where they were. It may replace them, not write."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise

    def use_slots(self, names: tuple[str, ...], average: bool) -> None:
        """Make sure that moments of these names exist, and the moving average if it is wanted.

        Moments of other names are dropped, since they belong to another optimizer.
        """
        if set(names) != set(self.slots):
            self.slots = {name: self.backend.zeros(self.size, self.dtype) for name in names}
        if average and self.average is None:
            self.average = self.backend.empty(self.size, self.dtype)
            self.backend.copy(self.flat, out=self.average)
        elif not average:
            self.average = None

    def of_layer(self, index: int, grad: Array | None) -> dict[str, Array]:
        """The views that binding sets on layers whose owner is `index`: parameters, gradients and buffers by name."""
        views = {e.spec.name: e.view(self.buffers) for e in self.buffer_entries if e.layer == index}
        for entry in self.entries:
            if entry.layer == index:
                views[entry.spec.name] = entry.view(self.flat if self.low is None or entry.spec.full else self.low)
                if grad is not None:
                    views["d" + entry.spec.name] = entry.view(grad)
        return views

    # ---- in and out, as NumPy arrays -----------------------------------------------------------------
    def get(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers, by key."""
        return {**self._named(self.entries, self.flat), **self._named(self.buffer_entries, self.buffers)}

    def get_slots(self) -> dict[str, np.ndarray]:
        """Copies of the moments and the moving average by ``"slot:key"``; the average's slot is ``average``."""
        flats = dict(self.slots)
        if self.average is not None:
            flats["average"] = self.average
        return {f"{slot}:{k}": a for slot, flat in flats.items() for k, a in self._named(self.entries, flat).items()}

    def _named(self, entries: list[Entry], flat: Array) -> dict[str, np.ndarray]:
        host = self.backend.to_numpy(flat)
        return {entry.key: entry.view(host).copy() for entry in entries}

    def check(self, values: dict[str, Any]) -> dict[str, np.ndarray]:
        """`values` as arrays, once every key and shape was found to fit.

        Raises
        ------
        ValueError
            If keys are missing or unknown, a shape differs, or a value is not finite.
        """
        expected = {e.key: e.spec.shape for e in (*self.entries, *self.buffer_entries)}
        missing, unknown = sorted(expected.keys() - values.keys()), sorted(values.keys() - expected.keys())
        if missing or unknown:
            raise ValueError(f"weights do not fit the model: missing {missing}, unknown {unknown}")
        arrays = {}
        for key, shape in expected.items():
            array = np.asarray(values[key])
            if array.dtype.kind not in "fiu":
                raise TypeError(f"{key} must be numbers, not {array.dtype}")
            if array.shape != shape:
                raise ValueError(f"{key} must have shape {shape}, got {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{key} contains NaN or infinity")
            arrays[key] = array
        return arrays

    def set(self, values: dict[str, Any]) -> None:
        """Write all parameters and buffers, or, if anything does not fit, none of them.

        Raises
        ------
        ValueError, TypeError
            As :meth:`check`.
        """
        arrays = self.check(values)
        self._write(self.entries, self.flat, arrays)
        self._write(self.buffer_entries, self.buffers, arrays)
        self._changed()

    def set_slots(self, values: dict[str, np.ndarray]) -> None:
        """Write what :meth:`get_slots` gave; the keys and shapes were checked by the caller."""
        slots: dict[str, dict[str, np.ndarray]] = {}
        for name, array in values.items():
            slot, _, key = name.partition(":")
            slots.setdefault(slot, {})[key] = array
        average = "average" in slots
        self.use_slots(tuple(slot for slot in slots if slot != "average"), average)
        for slot, named in slots.items():
            self._write(self.entries, self.average if slot == "average" else self.slots[slot], named)

    def _write(self, entries: list[Entry], flat: Array, arrays: dict[str, np.ndarray]) -> None:
        # One copy to the device, however many parameters there are
        host = np.array(self.backend.to_numpy(flat))
        for entry in entries:
            entry.view(host)[...] = arrays[entry.key]
        self.backend.copy(host, out=flat)

    def vector(self) -> np.ndarray:
        """All parameters as one NumPy vector without padding, in the order of `entries`."""
        host = self.backend.to_numpy(self.flat)
        parts = [host[e.offset : e.offset + e.size] for e in self.entries]
        return np.concatenate(parts) if parts else np.zeros(0, self.dtype)

    def set_vector(self, values: Any) -> None:
        """Write what :meth:`vector` gave."""
        values = np.asarray(values)
        if values.shape != (self.count,):
            raise ValueError(f"the model has {self.count} parameters, got an array of shape {values.shape}")
        host, start = np.array(self.backend.to_numpy(self.flat)), 0
        for entry in self.entries:
            host[entry.offset : entry.offset + entry.size] = values[start : start + entry.size]
            start += entry.size
        self.backend.copy(host, out=self.flat)
        self._changed()

    def load_average(self) -> None:
        """Write the moving average to the parameters."""
        assert self.average is not None
        self.backend.copy(self.average, out=self.flat)
        self._changed()
