"""PyTorch on the CPU, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..workloads import Weights
from .base import Contender
from .pytorch_networks import module_of

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "gelu": nn.GELU}
_LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "mean_squared_error": F.mse_loss,
}


class Eager(Contender):
    """``nn.Sequential`` with a fused optimizer; the loss stays a tensor until the end of the run."""

    device = "cpu"
    #: Whether images have their channels last in memory
    channels_last = False
    #: Adam's option that keeps its step on the device
    capturable = False

    def build(self, weights: Weights, X: np.ndarray, y: np.ndarray) -> None:
        work = self.workload
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision("high" if work.precision == "tf32" else "highest")
        self.model = self._network(weights).to(self.device)
        self.loss = _LOSSES[work.loss]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if work.optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
                parameters, work.lr, eps=1e-8, fused=True, capturable=self.capturable
            )
        else:
            self.optimizer = torch.optim.SGD(parameters, work.lr, work.momentum, fused=True)
        self.X, self.y = self.inputs(X), torch.from_numpy(y).to(self.device)
        self.model.train(not work.predict)
        self.compile()

    def _network(self, weights: Weights) -> nn.Sequential:
        work = self.workload
        dtype = getattr(torch, work.dtype)
        if work.network is not None:
            return module_of(work.network, weights, dtype, self.channels_last)
        layers: list[nn.Module] = []
        for i, (W, b) in enumerate(weights):
            linear = nn.Linear(W.shape[0], W.shape[1], dtype=dtype)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(W.T))
                linear.bias.copy_(torch.from_numpy(b))
            layers.append(linear)
            if i < len(weights) - 1:
                layers.append(_ACTIVATIONS[work.activation]())
                if work.dropout:
                    layers.append(nn.Dropout(work.dropout))
        return nn.Sequential(*layers)

    def compile(self) -> None:
        """Choose what :meth:`step` and :meth:`predict` call."""
        self.forward_loss = self.model_and_loss
        self.forward: Callable[..., torch.Tensor] = self.model_alone

    def model_alone(self, x: torch.Tensor) -> torch.Tensor:
        """The network, with autocast where the workload is in bfloat16: its weights are float32 all the same."""
        if self.workload.precision != "bf16":
            return self.model(x)
        # A graph must not find a weight's copy in the cache from outside of it
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=not self.capturable):
            return self.model(x)

    def model_and_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The network and its loss, which is computed in float32."""
        z = self.model_alone(x)
        return self.loss(z.float() if self.workload.precision == "bf16" else z, y)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One training step; returns the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward_loss(x, y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def step_on(self, index: torch.Tensor) -> torch.Tensor:
        """A training step on these rows of the data; the loss is good until the next step."""
        return self.step(self.X.index_select(0, index), self.y.index_select(0, index))

    def epochs(self, count: int) -> list[float]:
        rows, batch = self.workload.rows, self.workload.batch
        means = []
        for _ in range(count):
            total = torch.zeros((), device=self.device)
            for index in torch.randperm(rows, device=self.device).split(batch):
                total += self.step_on(index) * len(index)
            means.append(total / rows)
        return torch.stack(means).tolist()

    def losses(self, steps: int) -> list[float]:
        return [self.step(self.X[rows], self.y[rows]).item() for rows in self.batches_in_order(steps)]

    def inputs(self, X: np.ndarray) -> torch.Tensor:
        if X.ndim == 4 and not self.channels_last:
            X = np.ascontiguousarray(X.transpose(0, 3, 1, 2))
        x = torch.from_numpy(X).to(self.device)
        return x.to(torch.bfloat16) if self.workload.precision == "bf16" else x

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.forward(inputs)


class ChannelsLast(Eager):
    """Images with their channels last in memory, which oneDNN's convolutions and pooling take without reordering."""

    channels_last = True


class Compiled(Eager):
    """The forward pass with its loss in one ``torch.compile``, and the fused optimizer beside it.

    On the CPU this is the fastest of the usual ways: with the optimizer in the compiled function as well, a step
    of `small` takes some 20 to 50 % longer, and one of `mnist` as long.
    """

    mode: str | None = None
    channels_last = True

    def compile(self) -> None:
        # The check of the losses may have had batches of another size: without this the size would be a variable now
        self.forward_loss = torch.compile(self.model_and_loss, mode=self.mode, dynamic=False)
        self.forward = torch.compile(self.model_alone, mode=self.mode, dynamic=False)
