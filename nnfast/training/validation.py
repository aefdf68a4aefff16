"""Losses and metrics of a data set that is not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.base import Backend
from ..bundles import Bundle, parts
from ..joint_loss import shapes_of
from ..losses import Hinge, Loss, classes_of_steps
from ..network import Network
from . import data
from .inference import forward
from .predictions import through_link

__all__ = ["Validation", "compute_metrics"]


class Validation:
    """A checked validation set, evaluated after each epoch."""

    def __init__(
        self,
        model: Network,
        x: Any,
        y: Any,
        weight: Any,
        loss: Loss,
        metrics: list[Any],
        dtype: Any,
        inputs: Any = None,
    ) -> None:
        x = data.as_inputs(x, model.number_of_inputs, "validation X")
        y = data.as_targets(y, len(loss.parts), "validation y")
        data.check_inputs(x, model.in_shapes, "validation X")
        if len(x) != len(y):
            raise ValueError(f"validation X has {len(x)} rows, validation y has {len(y)}")
        if len(x) == 0:
            raise data.EmptyDataError("the validation data have no rows")
        x = data.as_kind(x, model.built, "validation X", inputs or dtype)
        self.x, self.loss, self.metrics = x, loss, metrics
        self._resident: tuple[Any, ...] | None = None
        self.target = loss.targets(y, shapes_of(model.out_shapes), dtype)
        self.weight = data.sample_weights(weight, None, self.target, len(x), dtype)

    def live_on(self, backend: Backend, inputs: Any) -> None:
        """Keep the data on a GPU, so that an evaluation brings only its outputs to the host, and those at its end."""
        if backend.xp is not np:
            x = _on(backend, self.x, inputs)
            self._resident = (x, *(None if a is None else _on(backend, a) for a in (self.target, self.weight)))

    def evaluate(self, model: Network, batch_size: int | None = None) -> dict[str, float]:
        """Loss and metrics, by name."""
        x, target, weight = self._resident or (self.x, self.target, self.weight)
        outputs, loss = forward(
            model,
            x,
            loss=self.loss,
            target=target,
            weight=weight,
            batch_size=batch_size,
            outputs=bool(self.metrics),
            on_device=self._resident is not None,
        )
        logs = {"loss": loss}
        if outputs is not None:
            outputs = model.parameters.backend.to_numpy(outputs)
            logs |= compute_metrics(self.metrics, self.loss, self.target, outputs, self.weight)
        return logs


def _on(backend: Backend, x: Any, dtype: Any = None) -> Any:
    """An array, or those of a bundle, on a device; numbers as `dtype`, indices as they are."""
    held = [backend.asarray(one, one.dtype if one.dtype == np.int64 else dtype) for one in parts(x)]
    return Bundle(held) if isinstance(x, Bundle) else held[0]


def compute_metrics(
    metrics: list[Any], loss: Loss, target: np.ndarray, outputs: np.ndarray, weight: np.ndarray | None = None
) -> dict[str, float]:
    """Each metric of predictions made from what the loss starts from."""
    if classes_of_steps(target):
        weight = None if weight is None else np.repeat(weight, target.shape[1])
        target = target.reshape(-1, *target.shape[2:])
    outputs = outputs.reshape(len(target), -1)
    if outputs.dtype.itemsize == 2:
        outputs = outputs.astype(np.float32)
    if isinstance(loss, Hinge):
        # Metrics know classes 0 and 1 and a threshold of 0.5; the sigmoid puts the margin's 0 there
        predicted, target = through_link("sigmoid", outputs), (target > 0).astype(np.int64)
    else:
        predicted = through_link(loss.link, outputs)
    return {metric.name: float(metric(target, predicted, sample_weight=weight)) for metric in metrics}
