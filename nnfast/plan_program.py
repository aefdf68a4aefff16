"""The calls of one step of a plan, on layers that are bound to its buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from .backends.base import Array, Backend, Feeder, Replay
from .layers import Layer
from .layers.graph import Built, outputs_of
from .plan_flow import Backward
from .plan_layout import LayerSlots

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["Program"]


class Program:
    """The calls of one step at one number of rows, on bound layers."""

    def __init__(self, plan: Plan, rows: int) -> None:
        self.plan, self.rows = plan, rows
        layout, view = plan.layout, plan.view
        self.inputs = [view(slot, rows) for slot in layout.inputs]
        self.targets = [view(slot, rows) for slot in layout.targets]
        self.weight = None if layout.weight is None else view(layout.weight, rows)
        self.buffers: list[Array] = [*self.inputs, *self.targets, *([] if self.weight is None else [self.weight])]
        self.feeder: Feeder | None = None
        self.layers: list[Layer] = []
        self._outputs: list[Array] = []
        for built, slots in zip(plan.built, layout.layers, strict=True):
            self._bind(built, slots)
        self.outputs = [self._outputs[node.index] for node in outputs_of(plan.built)]
        self._gradients = {root: view(slot, rows) for root, slot in layout.gradients.items()}
        self._backward = [self._backward_of(step) for step in layout.flow.backward]
        # Whoever feeds batches may read the output of a step, or its input, but nothing else
        flow = layout.flow
        inner = [y for i, y in enumerate(self._outputs) if flow.root[i] == i and i not in flow.outs]
        inner += [*self._gradients.values(), *(view(slot, rows) for slot in layout.parts.values())]
        inner += [
            view(slot, rows)
            for slots in layout.layers
            for name, slot, per_row in slots.declared
            if slot and per_row and name not in slots.carried
        ]
        if plan.resident:
            inner += [*self.buffers, *self.outputs]
        # Sequences also as products see them: a row for each step
        inner += [x.reshape(-1, x.shape[-1]) for x in inner if x.ndim == 3]
        # A prediction's threads read its inputs where the user has them: for what one thread has just copied, another
        # one waits
        least = plan.backend.fetch_bytes
        fetches = not plan.training and not plan.resident and least is not None and self.x.nbytes >= least
        fetches = fetches and len(self.inputs) == 1
        self.where = np.zeros(2, np.int64) if fetches else None
        self._inputs: np.ndarray | None = None
        if fetches:
            inner.append(self.x)
        self.replay: Replay = plan.capture(self.train if plan.training else self.infer, inner)

    @property
    def x(self) -> Array:
        """The buffer of the first input."""
        return self.inputs[0]

    @property
    def output(self) -> Array:
        """The first output."""
        return self.outputs[0]

    @property
    def gradients(self) -> list[Array]:
        """Gradients of the layers' outputs."""
        return list(self._gradients.values())

    def _bind(self, built: Built, slots: LayerSlots) -> None:
        """Add a copy of a layer with its arrays."""
        plan, rows, view = self.plan, self.rows, self.plan.view
        arrays: dict[str, Array | None] = plan.params.of_layer(built.owner, plan.grad)
        for name, slot, per_row in slots.declared:
            arrays[name] = None if slot is None else view(slot, rows if per_row else None)
        for (node, name), slot in plan.layout.shared.items():
            if node == built.index:
                arrays["d" + name] = view(slot)
        bound = built.layer.bind(arrays, training=plan.training, stream=built.index)
        xs = [self._outputs[i] if i >= 0 else self.inputs[-1 - i] for i in built.inputs]
        y = xs[0].reshape(rows, *built.out_shape) if slots.output is None else view(slots.output, rows)
        masks = [None if node is None else self.layers[node].out_mask for node in built.masks]
        values = {"x": xs if built.layer.many else xs[0], "y": y, "state": plan.state, "mask": masks[0], "masks": masks}
        for name, value in values.items():
            setattr(bound, name, value)
        self.layers.append(bound)
        self._outputs.append(y)

    def _backward_of(self, step: Backward) -> Callable[[Backend], None]:
        """What a layer's backward pass calls."""
        layer, node = self.layers[step.node], self.plan.built[step.node]
        dy = self._gradients[step.node]
        into: list[Array | None] = []
        sums: list[tuple[Array, Array]] = []
        for k, (root, adds, shape) in enumerate(zip(step.into, step.adds, node.in_shapes, strict=True)):
            if root is None:
                into.append(None)
                continue
            whole = self._gradients[root]
            if adds:
                part = self.plan.view(self.plan.layout.parts[step.node, k], self.rows)
                sums.append((whole, part))
                whole = part
            into.append(whole.reshape(self.rows, *shape))
        if step.weights_add:
            first = self.plan.params.of_layer(node.owner, self.plan.grad)
            sums += [
                (first["d" + name], self.plan.view(slot))
                for (index, name), slot in self.plan.layout.shared.items()
                if index == node.index
            ]
        again = [self.layers[i] for i in step.again]

        def backward(bk: Backend) -> None:
            for other in again:
                other.record(bk, other.forward, other.x, other.y)
            layer.record(bk, layer.backward, dy, into if layer.many else into[0])
            for total, part in sums:
                bk.add(total, part, out=total)

        return backward

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
        for layer, root in zip(self.layers, enumerate(self.plan.layout.flow.root), strict=True):
            if root[0] == root[1]:
                layer.record(bk, layer.forward, layer.x, layer.y)

    def _loss(self, bk: Backend, dpreds: Sequence[Array | None]) -> None:
        """The loss of each output, and their sum."""
        plan = self.plan
        if plan.loss is None:
            return
        parts = plan.loss.parts
        for k, ((loss, share), pred, dpred) in enumerate(zip(parts, self.outputs, dpreds, strict=True)):
            rows, target, weight = self.rows, self.targets[k] if self.targets else None, self.weight
            if (places := plan.positions[k]) > 1:
                rows, weight = rows * places, self._position_weight(bk, k)
                target = None if target is None else target.reshape(rows, *target.shape[2:])
            dpred = None if dpred is None else dpred.reshape(rows, -1)
            loss.record(bk, pred.reshape(rows, -1), target, weight, plan.state, dpred)
            if len(parts) > 1:
                if dpred is not None and share != 1.0:
                    bk.multiply(dpred, share, out=dpred)
                bk.sum_losses(plan.state, weight=share, first=k == 0)
        bk.record_loss(plan.state)

    def _position_weight(self, bk: Backend, k: int) -> Array | None:
        """Weights of the places in output `k`: those of the rows, and 0 for padding."""
        plan, slots = self.plan, self.plan.layout.position_weights[k]
        if slots is None:
            return None
        out, ones = plan.view(slots[0], self.rows), plan.view(slots[1])
        mask = outputs_of(plan.built)[k].out_mask
        here = None if mask is None else self.layers[mask].out_mask
        if self.weight is None:
            bk.copy(here, out=out)
            return out.reshape(-1)
        bk.gemm(self.weight[:, None], ones, out=out)
        if here is not None:
            bk.act_grad("relu", out, here, out=out)  # times whether it is above 0
        return out.reshape(-1)

    def _keep_outputs(self, bk: Backend) -> None:
        if self.plan.outputs:
            for output, kept in zip(self.outputs, self.plan.outputs, strict=True):
                if kept is not None:
                    bk.store_batch(output.reshape(self.rows, -1), self.plan.state, out=kept)

    def infer(self, bk: Backend) -> None:
        """Forward and, if there is a loss, its value."""
        self._forward(bk)
        self._loss(bk, [None] * len(self.outputs))
        self._keep_outputs(bk)
        bk.end_step(self.plan.state, self.rows)

    def train(self, bk: Backend) -> None:
        """Forward, loss, backward, update."""
        plan = self.plan
        assert plan.optimizer is not None
        bk.begin_step(plan.state, plan.lr_table)
        self._forward(bk)
        self._loss(bk, [self._gradients.get(out) for out in plan.layout.flow.outs])
        self._keep_outputs(bk)
        for backward in self._backward:
            backward(bk)
        params = plan.params
        scaled = params.low is not None and params.precision == "fp16"
        with nullcontext() if params.low is None else bk.copying(params.flat, params.low):
            plan.optimizer.record(bk, params.flat, plan.grad, params.slots, params.average, plan.state, scaled=scaled)
        bk.end_step(plan.state, self.rows)
