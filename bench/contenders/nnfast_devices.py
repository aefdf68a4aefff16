"""nnfast through its public API, on each of its devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

import nnfast as nf

from ..floor_cuda import device_seconds
from ..networks import flat
from ..workloads import Weights
from .base import Contender
from .nnfast_networks import layers_of


class _Losses(nf.Callback):
    """Keeps the loss of each step, and ends training after some of them."""

    def __init__(self, steps: int) -> None:
        self.steps, self.kept = steps, []  # type: tuple[int, list[float]]

    def on_step_end(self, step: int, logs: dict[str, float]) -> None:
        self.kept.append(logs["loss"])
        self.model.stop_training = len(self.kept) == self.steps


class _Device(Contender):
    device: ClassVar[str]

    def build(self, weights: Weights, X: np.ndarray, y: np.ndarray) -> None:
        work = self.workload
        layers: list[nf.Layer]
        if work.network is not None:
            layers = layers_of(work.network)
        else:
            layers = []
            for units in work.sizes[1:-1]:
                layers.append(nf.Dense(units, work.activation))
                if work.dropout:
                    layers.append(nf.Dropout(work.dropout))
            layers.append(nf.Dense(work.sizes[-1]))
        self.model = nf.Sequential(layers)
        self.model.build(work.in_shape if work.network is not None else work.sizes[0], dtype=work.dtype)
        given, arrays = self.model.get_weights(), flat(weights)
        # Running statistics come last, and start as they are
        self.model.set_weights(given | dict(zip(list(given)[: len(arrays)], arrays, strict=True)))
        self.X, self.y = X, y
        if work.optimizer == "adam":
            self.optimizer: nf.Optimizer = nf.Adam(work.lr)
        else:
            self.optimizer = nf.SGD(work.lr, work.momentum)

    def _fit(self, epochs: int, **more: Any) -> nf.History:
        work = self.workload
        return self.model.fit(
            self.X,
            self.y,
            loss=work.loss,
            optimizer=self.optimizer,
            epochs=epochs,
            batch_size=work.batch,
            device=self.device,
            precision=work.precision or work.dtype,
            seed=0,
            verbose=0,
            **more,
        )

    def epochs(self, count: int) -> list[float]:
        return list(self._fit(count)["loss"])

    def losses(self, steps: int) -> list[float]:
        watch = _Losses(steps)
        self._fit(-(-steps // self.workload.steps), shuffle=False, callbacks=[watch])
        return watch.kept

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.model.predict(inputs, device=self.device)


class NumpyDevice(_Device):
    """``device="numpy"``."""

    device = "numpy"


class NumbaDevice(_Device):
    """``device="numba"``."""

    device = "numba"


class CudaDevice(_Device):
    """``device="cuda"``."""

    device = "cuda"

    def seconds(self, work: Callable[[], object]) -> float:
        return device_seconds(nf.get_backend(self.device), work)
