"""Losses and metrics of a data set that is not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends.base import Backend
from ..bundles import Bundle, parts
from ..joint_loss import shapes_of
from ..losses import Loss
from ..network import Network
from . import data
from .inference import forward
from .output_metrics import OutputMetrics, compute_metrics

__all__ = ["Validation"]


class Validation:
    """A checked validation set, evaluated after each epoch."""

    def __init__(
        self,
        model: Network,
        x: Any,
        y: Any,
        weight: Any,
        loss: Loss,
        metrics: Sequence[OutputMetrics],
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
            found = outputs if isinstance(outputs, list) else [outputs]
            host = {one.output: model.parameters.backend.to_numpy(found[one.output]) for one in self.metrics}
            logs |= compute_metrics(self.metrics, self.target, host, self.weight)
        return logs


def _on(backend: Backend, x: Any, dtype: Any = None) -> Any:
    """An array, or those of a bundle, on a device; numbers as `dtype`, indices as they are."""
    held = [backend.asarray(one, one.dtype if one.dtype == np.int64 else dtype) for one in parts(x)]
    return Bundle(held) if isinstance(x, Bundle) else held[0]
