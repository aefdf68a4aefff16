"""The network behind an estimator, on its device; its weights are those of the estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import devices
from ..backends.base import Backend
from ..layers import Activation, BatchNorm, Dense, Dropout, Layer
from ..model import Sequential
from ..training.inference import forward
from .objectives import Objective

__all__ = ["Core", "Design"]

# Bytes of a sparse input's rows as dense ones, in a prediction
_DENSE_BYTES = 1 << 26


@dataclass(frozen=True)
class Design:
    """What a network is made from; equal designs are the same network but for its weights."""

    units: tuple[int, ...]
    activation: Any
    dtype: np.dtype[Any]
    device: str | Backend
    dropout: float
    batch_norm: bool

    def layers(self) -> list[Layer]:
        """Dense layers, each hidden one followed by what else there is."""
        layers: list[Layer] = []
        for n in self.units[1:-1]:
            if self.batch_norm:
                layers += [Dense(n), BatchNorm(), Activation(self.activation)]
            else:
                layers.append(Dense(n, self.activation))
            if self.dropout:
                layers.append(Dropout(self.dropout))
        return [*layers, Dense(self.units[-1])]


class Core:
    """A network on a device, and the arrays on the host that an estimator shares with it.

    Parameters
    ----------
    design : Design

    Attributes
    ----------
    model : Sequential
    coefs, intercepts : list of ndarray
        The weights of the dense layers; on a CPU those that the network computes with.
    """

    def __init__(self, design: Design) -> None:
        self.design = design
        self.backend = devices.get_backend(design.device)
        self.model = Sequential(design.layers())
        self.model.build(design.units[0], dtype=design.dtype, seed=0, initialise=design.batch_norm)
        self.model.place(self.backend)
        params = self.params = self.model.parameters
        dense = {built.index for built in self.model.built if isinstance(built.layer, Dense)}
        entries = self._entries = [entry for entry in params.entries if entry.layer in dense]
        self._host = params.flat if self.backend.xp is np else np.array(self.backend.to_numpy(params.flat))
        self.coefs, self.intercepts = self.split(self._host)
        self.penalised = [slice(e.offset, e.offset + e.size) for e in entries if e.spec.name == "W"]
        self._others = sorted(self.model.get_weights().keys() - {entry.key for entry in entries})

    def split(self, flat: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Parts of an array like the flat weights: those of the dense layers' weights, those of their biases."""
        coefs, intercepts = ([e.view(flat) for e in self._entries if e.spec.name == name] for name in ("W", "b"))
        return coefs, intercepts

    # ---- weights ------------------------------------------------------------------------------------------
    def holds(self, coefs: Sequence[Any], intercepts: Sequence[Any]) -> bool:
        """Whether these are the arrays that the network shares."""
        ours = [*self.coefs, *self.intercepts]
        theirs = [*coefs, *intercepts]
        return len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))

    def take(self, coefs: Sequence[Any], intercepts: Sequence[Any]) -> None:
        """Copy weights into the network."""
        for ours, theirs in zip((*self.coefs, *self.intercepts), (*coefs, *intercepts), strict=True):
            np.copyto(ours, theirs, casting="same_kind")
        self.push()

    def push(self) -> None:
        """Bring the shared arrays to the device, if it has its own."""
        if self._host is not self.params.flat:
            self.backend.copy(self._host, out=self.params.flat)

    def pull(self) -> None:
        """Bring the device's weights into the shared arrays."""
        if self._host is not self.params.flat:
            np.copyto(self._host, self.backend.to_numpy(self.params.flat))

    def spoil(self) -> None:
        """Make all weights NaN, as they are after a training that diverged."""
        self.backend.fill(self.params.flat, float("nan"))
        self.pull()

    @property
    def others(self) -> dict[str, np.ndarray]:
        """Copies of what is no weight of a dense layer: scales, shifts and running statistics."""
        weights = self.model.get_weights() if self._others else {}
        return {key: weights[key] for key in self._others}

    @others.setter
    def others(self, values: dict[str, np.ndarray]) -> None:
        if values:
            self.model.set_weights({**self.model.get_weights(), **values})

    # ---- results --------------------------------------------------------------------------------------------
    def outputs(self, X: Any) -> np.ndarray:
        """The last layer's outputs, before any link; `X` (n, features), dense or sparse."""
        self.push()
        if isinstance(X, np.ndarray):
            return np.asarray(self.model.predict(X))
        rows = max(1, _DENSE_BYTES // (self.design.dtype.itemsize * max(1, X.shape[1])))
        parts = [self.model.predict(X[i : i + rows].toarray()) for i in range(0, X.shape[0], rows)]
        return np.concatenate(parts)

    def loss(self, X: Any, targets: np.ndarray, weight: Any, objective: Objective) -> float:
        """scikit-learn's loss, without the penalty."""
        self.push()
        dtype = self.design.dtype
        X = np.ascontiguousarray(X if isinstance(X, np.ndarray) else X.toarray(), dtype)
        target = np.ascontiguousarray(targets, dtype)
        own = None if weight is None else np.ascontiguousarray(weight, dtype)
        outputs, value = forward(self.model, X, loss=objective.loss, target=target, weight=own)
        return objective.of(value, lambda: np.asarray(outputs), lambda: targets, weight)
