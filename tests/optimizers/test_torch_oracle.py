"""PyTorch on the CPU as an outside oracle: every optimizer over ten steps, clipping, the moving average.

PyTorch has no Lion: the paper's formula stands in for it.
"""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf
from tests.cases import run_optimizer
from tests.oracle import DTYPES, close, dtypes, tensor, torch


class PaperLion:
    """Lion by the paper's algorithm 2 (Chen et al., 2023), in NumPy."""

    def __init__(self, parameters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        (self.parameter,) = parameters
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.m = np.zeros(self.parameter.shape)

    def step(self):
        theta, g = self.parameter.data.numpy(), self.parameter.grad.numpy()
        beta1, beta2 = self.betas
        c = beta1 * self.m + (1 - beta1) * g
        theta -= self.lr * (np.sign(c) + self.weight_decay * theta)
        self.m = beta2 * self.m + (1 - beta2) * g


PAIRS = {
    "sgd": (nf.SGD(0.1), (torch.optim.SGD, {"lr": 0.1})),
    "momentum": (nf.SGD(0.1, momentum=0.9), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})),
    "nesterov": (
        nf.SGD(0.1, momentum=0.8, nesterov=True, weight_decay=0.1),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ),
    "adagrad": (nf.Adagrad(), (torch.optim.Adagrad, {})),
    "adagrad, options": (
        nf.Adagrad(0.2, eps=1e-2, weight_decay=0.1),
        (torch.optim.Adagrad, {"lr": 0.2, "eps": 1e-2, "weight_decay": 0.1}),
    ),
    "rmsprop": (nf.RMSprop(0.01), (torch.optim.RMSprop, {"lr": 0.01})),
    "rmsprop, momentum": (
        nf.RMSprop(0.01, rho=0.9, eps=1e-3, momentum=0.8, weight_decay=0.1),
        (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "momentum": 0.8, "weight_decay": 0.1}),
    ),
    "rmsprop, centered": (nf.RMSprop(0.01, centered=True), (torch.optim.RMSprop, {"lr": 0.01, "centered": True})),
    "rmsprop, both": (
        nf.RMSprop(0.01, momentum=0.5, centered=True),
        (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    ),
    "adam": (nf.Adam(), (torch.optim.Adam, {})),
    "adam, options": (
        nf.Adam(0.1, beta1=0.8, beta2=0.9, eps=1e-2, weight_decay=0.1),
        (torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1}),
    ),
    "adamw": (nf.AdamW(), (torch.optim.AdamW, {})),
    "adamw, options": (
        nf.AdamW(0.1, beta1=0.8, beta2=0.9, eps=1e-2, weight_decay=0.5),
        (torch.optim.AdamW, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.5}),
    ),
    "adamax": (nf.Adamax(), (torch.optim.Adamax, {})),
    "adamax, options": (
        nf.Adamax(0.1, beta1=0.8, beta2=0.9, eps=1e-2, weight_decay=0.1),
        (torch.optim.Adamax, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1}),
    ),
    "nadam": (nf.NAdam(), (torch.optim.NAdam, {})),
    "nadam, options": (
        nf.NAdam(0.1, beta1=0.8, beta2=0.9, eps=1e-2, momentum_decay=0.1, weight_decay=0.1),
        (torch.optim.NAdam, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-2, "momentum_decay": 0.1, "weight_decay": 0.1}),
    ),
    "lion": (nf.Lion(), (PaperLion, {})),
    "lion, options": (
        nf.Lion(0.05, beta1=0.8, beta2=0.95, weight_decay=0.5),
        (PaperLion, {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.5}),
    ),
}


def torch_steps(kind, arguments, start, grads, dtype, clip=lambda parameters: None):
    """Weights after each step."""
    # NAdam keeps its running product in the default dtype, whatever the parameters have
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        return _torch_steps(kind, arguments, start, grads, dtype, clip)
    finally:
        torch.set_default_dtype(torch.float32)


def _torch_steps(kind, arguments, start, grads, dtype, clip):
    parameter = torch.nn.Parameter(tensor(start, dtype))
    optimizer = kind([parameter], **arguments)
    path = []
    for grad in grads:
        parameter.grad = tensor(grad, dtype, grad=False)
        clip([parameter])
        optimizer.step()
        path.append(parameter.detach().numpy().copy())
    return path


def test_every_optimizer_has_a_pair():
    assert {type(ours) for ours, _ in PAIRS.values()} == set(nf.optimizers.TABLE.values())


@dtypes
@pytest.mark.parametrize("name", PAIRS)
def test_ten_steps(backend, rng, name, dtype):
    ours, (kind, arguments) = PAIRS[name]
    start, grads = rng.standard_normal(23), rng.standard_normal((10, 23))
    path = torch_steps(kind, arguments, start, grads, dtype)
    for steps in (1, 2, 10):
        close(run_optimizer(ours, backend, start, grads[:steps], dtype)["param"], path[steps - 1], DTYPES[dtype][0])


@dtypes
@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({"clip_norm": 1.5}, lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, 1.5)),
        ({"clip_norm": 100.0}, lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, 100.0)),
        ({"clip_value": 0.4}, lambda parameters: torch.nn.utils.clip_grad_value_(parameters, 0.4)),
    ],
    ids=["norm", "norm that is not reached", "value"],
)
def test_clipping(backend, rng, options, clip, dtype):
    start, grads = rng.standard_normal(23), rng.standard_normal((10, 23))
    path = torch_steps(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, start, grads, dtype, clip)
    results = run_optimizer(nf.SGD(0.1, momentum=0.9, **options), backend, start, grads, dtype)
    close(results["param"], path[-1], DTYPES[dtype][0])


def test_moving_average(backend, rng):
    """PyTorch's first update copies; after that one, of the initial weights here, the averages are the same."""
    start, grads = rng.standard_normal(23), rng.standard_normal((10, 23))
    module = torch.nn.Linear(23, 1, bias=False, dtype=torch.float64)
    module.weight.data[0] = torch.tensor(start)
    averaged = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8))
    averaged.update_parameters(module)
    for weights in torch_steps(torch.optim.Adam, {"lr": 0.1}, start, grads, "float64"):
        module.weight.data[0] = torch.tensor(weights)
        averaged.update_parameters(module)
    results = run_optimizer(nf.Adam(0.1, ema=0.8), backend, start, grads)
    close(results["average"], averaged.module.weight[0], 1e-12)
