"""From what a model puts out to probabilities and classes, on the host."""

from __future__ import annotations

import numpy as np

from ..backends import formulas

__all__ = ["classes", "through_link"]


def through_link(link: str | None, outputs: np.ndarray) -> np.ndarray:
    """Logits as probabilities, log rates as rates; other outputs as they are."""
    if link is None:
        return outputs
    if link == "softmax":
        return formulas.softmax(np, outputs)
    if link == "sigmoid":
        return formulas.sigmoid(np, outputs)
    if link == "exp":
        return np.exp(outputs)
    raise ValueError(f"unknown link {link!r}; known are softmax, sigmoid and exp")


def classes(outputs: np.ndarray, threshold: float) -> np.ndarray:
    """The class of each row: the largest of several outputs, or whether a single one is above `threshold`."""
    if outputs.shape[-1] == 1:
        return (outputs[..., 0] > threshold).astype(np.int64)
    return outputs.argmax(axis=-1)
