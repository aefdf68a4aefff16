"""Metrics of a model's outputs: which of each, their names in a history, and their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import metrics as metrics_module
from ..bundles import parts
from ..losses import Hinge, Loss, classes_of_steps
from ..metrics import Metric
from ..network import Network
from .predictions import through_link

__all__ = ["OutputMetrics", "compute_metrics", "metric_part", "metrics_of_outputs"]


@dataclass(frozen=True)
class OutputMetrics:
    """The metrics of one output.

    Attributes
    ----------
    output : int
        Which one it is.
    name : str or None
        What the names of its metrics begin with; ``None`` for the only output of a model.
    loss : Loss
        That of the output.
    metrics : list of Metric
    """

    output: int
    name: str | None
    loss: Loss
    metrics: list[Metric]

    def name_of(self, metric: Metric) -> str:
        """How a metric of this output stands in a history."""
        return metric.name if self.name is None else f"{self.name}_{metric.name}"

    def compute(self, target: np.ndarray, outputs: np.ndarray, weight: np.ndarray | None = None) -> dict[str, float]:
        """Each metric, by name, of predictions made from what the loss starts from.

        Raises
        ------
        ValueError, TypeError
            From a metric that does not fit; of several outputs the message names this one.
        """
        if classes_of_steps(target):
            weight = None if weight is None else np.repeat(weight, target.shape[1])
            target = target.reshape(-1, *target.shape[2:])
        outputs = outputs.reshape(len(target), -1)
        if outputs.dtype.itemsize == 2:
            outputs = outputs.astype(np.float32)
        if isinstance(self.loss, Hinge):
            # Metrics know classes 0 and 1 and a threshold of 0.5; the sigmoid puts the margin's 0 there
            predicted, target = through_link("sigmoid", outputs), (target > 0).astype(np.int64)
        else:
            predicted = through_link(self.loss.link, outputs)
        with _naming(self.name):
            return {self.name_of(one): float(one(target, predicted, sample_weight=weight)) for one in self.metrics}


def compute_metrics(
    wanted: Sequence[OutputMetrics], target: Any, outputs: Any, weight: np.ndarray | None = None
) -> dict[str, float]:
    """All metrics, by name.

    Parameters
    ----------
    wanted : sequence of OutputMetrics
    target : ndarray or Bundle
        Of each output, as the losses take them.
    outputs : sequence or mapping of ndarray
        What the losses start from, by number of the output; at least those that are wanted.
    weight : ndarray, optional
        (n,), of the rows.
    """
    targets = parts(target)
    logs: dict[str, float] = {}
    for one in wanted:
        logs |= one.compute(targets[one.output], outputs[one.output], weight)
    return logs


def metrics_of_outputs(model: Network, loss: Loss, metrics: Any) -> list[OutputMetrics]:
    """What a user asked for, for each output that has metrics.

    Parameters
    ----------
    model : Network
        Its outputs have names where there are several, built or not.
    loss : Loss
        Of all outputs.
    metrics : str, callable, sequence or mapping
        One metric; several, each for every output; for a model with several outputs also a list that holds lists, with
        an entry for each output, or a mapping from names of outputs, where an entry is a metric or several.

    Raises
    ------
    ValueError
        If an output or a metric is unknown, the entries are not as many as the outputs, or two numbers of a history
        would have one name.
    TypeError
        If something is no metric.
    """
    losses = [part for part, _ in loss.parts]
    if len(losses) == 1:
        only = [metrics_module.get(metric) for metric in _several(metrics)]
        return [OutputMetrics(0, None, losses[0], only)] if only else []
    names, found = model.output_names, []
    for number, entry in enumerate(_entries(metrics, names)):
        with _naming(names[number]):
            of_output = [metrics_module.get(metric) for metric in _several(entry)]
        if of_output:
            found.append(OutputMetrics(number, names[number], losses[number], of_output))
    _check_names(found)
    return found


def metric_part(name: str, model: Network) -> str:
    """What a number of a history is of: its name without ``val_`` and, of several outputs, without the output's."""
    outputs = model.output_names
    name = name.removeprefix("val_")
    for output in sorted(outputs, key=len, reverse=True) if len(outputs) > 1 else ():
        if name.startswith(f"{output}_"):
            return name[len(output) + 1 :]
    return name


def _several(metrics: Any) -> list[Any]:
    """One metric, several, or ``None``."""
    if metrics is None:
        return []
    alone = isinstance(metrics, str) or callable(metrics) or not isinstance(metrics, Iterable)
    return [metrics] if alone else list(metrics)


def _entries(metrics: Any, outputs: list[str]) -> list[Any]:
    """What was asked for, for each output."""
    known = f"the model has the outputs {', '.join(map(repr, outputs))}"
    if isinstance(metrics, Mapping):
        if unknown := [name for name in metrics if name not in outputs]:
            raise ValueError(f"metrics of {', '.join(map(repr, unknown))}: {known}")
        return [metrics.get(name, ()) for name in outputs]
    given = _several(metrics)
    if not any(isinstance(entry, (list, tuple)) for entry in given):
        return [given] * len(outputs)
    if len(given) != len(outputs):
        raise ValueError(f"metrics has {len(given)} entries, one for each output: {known}")
    return given


def _check_names(wanted: Sequence[OutputMetrics]) -> None:
    """Each number of a history needs a name of its own."""
    own = ["loss", *(one.name_of(metric) for one in wanted for metric in one.metrics)]
    names = ["lr", *own, *(f"val_{name}" for name in own)]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"two numbers of the history would be named {twice[0]!r}: rename the metric or the output")


@contextmanager
def _naming(output: str | None) -> Iterator[None]:
    """Errors of metrics say which output they are of, where there are several."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if output is None:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"output {output!r}: {error}") from error
