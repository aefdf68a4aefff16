"""The calls of one step of a plan, on layers that are bound to its buffers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from .backends.base import Array, Backend, Feeder, Replay
from .layers import Layer

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["Program"]


class Program:
    """The calls of one step at one number of rows, on bound layers."""

    def __init__(self, plan: Plan, rows: int) -> None:
        self.plan, self.rows = plan, rows
        layout, view = plan.layout, plan.view
        self.x = view(layout.x, rows)
        self.target = None if layout.target is None else view(layout.target, rows)
        self.weight = None if layout.weight is None else view(layout.weight, rows)
        self.buffers: list[Array] = [a for a in (self.x, self.target, self.weight) if a is not None]
        self.feeder: Feeder | None = None
        self.layers: list[Layer] = []
        x = self.x
        for built, slots in zip(plan.built, layout.layers, strict=True):
            arrays: dict[str, Array | None] = plan.params.of_layer(built.index, plan.grad)
            for name, slot, per_row in slots.declared:
                arrays[name] = None if slot is None else view(slot, rows if per_row else None)
            bound = built.layer.bind(arrays, training=plan.training, stream=built.index)
            y = x.reshape(rows, *built.out_shape) if slots.output is None else view(slots.output, rows)
            for name, value in (("x", x), ("y", y), ("state", plan.state)):
                setattr(bound, name, value)
            self.layers.append(bound)
            x = y
        self.output = x
        self.gradients: list[Array] = [
            view(slot, rows).reshape(rows, *built.out_shape)
            for slot, built in zip(layout.gradients, plan.built if plan.training else [], strict=True)
        ]
        # Whoever feeds batches may read the output of a step, or its input, but nothing else
        inner = [layer.y for layer in self.layers[:-1]] + self.gradients
        inner += [view(slot, rows) for each in layout.layers for _, slot, per_row in each.declared if slot and per_row]
        if plan.resident:
            inner += [*self.buffers, self.output]
        # A prediction's threads read its inputs where the user has them: for what one thread has just copied, another
        # one waits
        least = plan.backend.fetch_bytes
        fetches = not plan.training and not plan.resident and least is not None and self.x.nbytes >= least
        self.where = np.zeros(2, np.int64) if fetches else None
        self._inputs: np.ndarray | None = None
        if fetches:
            inner.append(self.x)
        self.replay: Replay = plan.capture(self.train if plan.training else self.infer, inner)

    def _matrix(self, x: Array) -> Array:
        return x.reshape(self.rows, -1)

    def bring(self, x: Array) -> bool:
        """Let runs take their inputs from `x`, or a copy of the right kind, until :meth:`leave`; whether they do."""
        where = self.where
        if where is None:
            return False
        row = x[0] if x.dtype == self.x.dtype and x.flags.aligned else None
        if row is None or not row.flags.c_contiguous:
            x = np.ascontiguousarray(x).astype(self.x.dtype, casting="same_kind", copy=False)
        self._inputs = x
        where[0], where[1] = x.__array_interface__["data"][0], x.strides[0]
        return True

    def leave(self) -> None:
        """Forget what :meth:`bring` was given."""
        if self.where is not None:
            self.where[0], self._inputs = 0, None

    def _forward(self, bk: Backend) -> None:
        if self.where is not None:
            bk.fetch(self.where, out=self.x)
        for source, out in self.plan.sources(self):
            bk.take_batch(source, self.plan.order, self.plan.state, out=out)
        for layer in self.layers:
            if not layer.is_view(self.plan.training):
                layer.record(bk, layer.forward, layer.x, layer.y)

    def _loss(self, bk: Backend, dpred: Array | None) -> None:
        plan = self.plan
        if plan.loss is not None:
            plan.loss.record(bk, self._matrix(self.output), self.target, self.weight, plan.state, dpred)
            bk.record_loss(plan.state)

    def _keep_output(self, bk: Backend) -> None:
        if self.plan.outputs is not None:
            bk.store_batch(self._matrix(self.output), self.plan.state, out=self.plan.outputs)

    def infer(self, bk: Backend) -> None:
        """Forward and, if there is a loss, its value."""
        self._forward(bk)
        self._loss(bk, None)
        self._keep_output(bk)
        bk.end_step(self.plan.state, self.rows)

    def train(self, bk: Backend) -> None:
        """Forward, loss, backward, update."""
        plan = self.plan
        assert plan.optimizer is not None
        bk.begin_step(plan.state, plan.lr_table)
        self._forward(bk)
        built, gradients = plan.built, self.gradients
        self._loss(bk, self._matrix(gradients[-1]))
        self._keep_output(bk)
        # Layers before the first one with parameters need no gradient
        first = next((i for i, b in enumerate(built) if any(s.kind == "param" for s in b.specs)), len(built))
        for i in range(len(built) - 1, first - 1, -1):
            layer = self.layers[i]
            if layer.is_view(True):
                continue  # the same memory under another shape
            layer.record(bk, layer.backward, gradients[i], gradients[i - 1] if i > first else None)
        params = plan.params
        scaled = params.low is not None and params.precision == "fp16"
        with nullcontext() if params.low is None else bk.copying(params.flat, params.low):
            plan.optimizer.record(bk, params.flat, plan.grad, params.slots, params.average, plan.state, scaled=scaled)
        bk.end_step(plan.state, self.rows)
