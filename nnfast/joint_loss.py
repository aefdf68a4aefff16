"""The loss of a model with several outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .bundles import Bundle, parts
from .layers.base import Shape
from .losses import Loss, get, name_of

__all__ = ["JointLoss", "of_outputs"]


class JointLoss(Loss):
    """``sum_k weight_k loss_k``, one loss for each output of a model, in their order.

    Parameters
    ----------
    losses : sequence of (str or Loss)
    weights : sequence of float, optional
        By default 1 each.
    """

    replayable = True

    def __init__(self, losses: Sequence[Any], weights: Sequence[float] | None = None) -> None:
        self.losses = [get(loss) for loss in losses]
        if not self.losses:
            raise ValueError("JointLoss needs at least one loss")
        self.weights = [1.0] * len(self.losses) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.losses):
            raise ValueError(f"{len(self.losses)} losses need as many weights, got {len(self.weights)}")
        if not all(0.0 <= weight < float("inf") for weight in self.weights):
            raise ValueError(f"weights of losses must be finite and not negative, got {self.weights}")

    @property
    def parts(self) -> list[tuple[Loss, float]]:
        return list(zip(self.losses, self.weights, strict=True))

    def targets(self, y: Any, out_shape: Any, dtype: Any) -> Any:
        """The targets of each output; `y` is a :class:`~nnfast.bundles.Bundle`, `out_shape` a list of shapes."""
        given, shapes = parts(y), list(out_shape)
        if not len(given) == len(shapes) == len(self.losses):
            raise ValueError(
                f"the model has {len(shapes)} outputs; got {len(self.losses)} losses and targets for {len(given)}"
            )
        checked = []
        for k, (loss, one, shape) in enumerate(zip(self.losses, given, shapes, strict=True)):
            try:
                checked.append(loss.targets(one, shape, dtype))
            except ValueError as error:
                raise ValueError(f"output {k}: {error}") from None
        return Bundle(checked)

    def config(self) -> dict[str, Any]:
        described = [{"name": name_of(loss), "config": loss.config()} for loss in self.losses]
        return {"losses": described, "weights": self.weights}


def of_outputs(loss: Any, outputs: int) -> Loss:
    """The loss of a model with so many outputs, from what a user gave: one for all of them, or one each.

    Raises
    ------
    ValueError
        If the numbers differ.
    """
    if isinstance(loss, (list, tuple)):
        loss = JointLoss(loss)
    resolved = get(loss)
    if outputs > 1 and not isinstance(resolved, JointLoss):
        resolved = JointLoss([resolved] * outputs)
    found = len(resolved.parts)
    if found != outputs:
        raise ValueError(f"the model has {outputs} output{'s' * (outputs > 1)}, got {found} losses")
    return resolved


def shapes_of(shapes: Sequence[Shape]) -> Any:
    """What a loss takes as the shape of the outputs: one shape, or the list of several."""
    return shapes[0] if len(shapes) == 1 else list(shapes)
