"""JAX with Optax: a whole epoch is one compiled scan over its steps, with donated weights and moments."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

# Several processes share a GPU's memory: one may not take most of it beforehand
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..workloads import Weights
from .base import Contender
from .jax_networks import apply, initial_statistics

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


class JaxOptax(Contender):
    """The data stay on the device; an epoch takes the order of its rows, which NumPy draws faster than XLA sorts.

    A call for each step instead is as fast for `mnist`, and slower for the smaller and the larger workloads. Networks
    of other layers get such calls: within a scan XLA's convolutions are several times slower.
    """

    platform = "cpu"  # it would choose a GPU by itself

    def build(self, weights: Weights, X: np.ndarray, y: np.ndarray) -> None:
        work = self.workload
        jax.config.update("jax_platforms", self.platform)
        # On a GPU its own choice for float32 is TF32
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if work.precision == "tf32" else "float32")
        jax.config.update("jax_enable_x64", work.dtype == "float64")
        self.optimizer = (
            optax.adam(work.lr, eps=1e-8) if work.optimizer == "adam" else optax.sgd(work.lr, work.momentum)
        )
        params = jax.tree.map(jnp.array, weights)
        self.X, self.y = self.inputs(X), jnp.array(y)
        network = work.network
        self.statistics = [] if network is None else initial_statistics(network.layers, params)
        self.state = (params, self.optimizer.init(params), jax.random.key(0), self.statistics)
        self.rng = np.random.default_rng(0)
        self._epoch = jax.jit(self._one_epoch, donate_argnums=0)
        self._step = jax.jit(self._one_step, donate_argnums=0)
        self._step_on = jax.jit(lambda state, X, y, index: self._one_step(state, X[index], y[index]), donate_argnums=0)
        self._logits = jax.jit(self._predicted)

    def _predicted(self, params: Any, statistics: Any, x: Any) -> Any:
        network = self.workload.network
        return self._forward(params, x) if network is None else apply(network.layers, params, statistics, x, False)[0]

    def _forward(self, params: Any, x: Any, key: Any = None) -> Any:
        activation = _ACTIVATIONS[self.workload.activation]
        low = self.workload.precision == "bf16"
        for i, (W, b) in enumerate(params):
            x = x @ W.astype(x.dtype) + b.astype(x.dtype) if low else x @ W + b
            if i < len(params) - 1:
                x = activation(x)
                if key is not None and self.workload.dropout:
                    keep = 1 - self.workload.dropout
                    mask = jax.random.bernoulli(jax.random.fold_in(key, i), keep, x.shape)
                    x = jnp.where(mask, x / keep, 0)
        return x

    def _loss(self, params: Any, statistics: Any, x: Any, y: Any, key: Any) -> Any:
        """The loss, and the running statistics after this batch."""
        if self.workload.network is None:
            z = self._forward(params, x, key)
        else:
            z, statistics = apply(self.workload.network.layers, params, statistics, x, True)
        z = z.astype(jnp.float32) if self.workload.precision == "bf16" else z
        if self.workload.loss == "cross_entropy":
            loss = optax.softmax_cross_entropy_with_integer_labels(z, y).mean()
        elif self.workload.loss == "binary_cross_entropy":
            loss = optax.sigmoid_binary_cross_entropy(z, y).mean()
        else:
            loss = jnp.square(z - y).mean()
        return loss, statistics

    def _one_step(self, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        params, moments, key, statistics = state
        use = None
        if self.workload.dropout:
            key, use = jax.random.split(key)
        (loss, statistics), grads = jax.value_and_grad(self._loss, has_aux=True)(params, statistics, x, y, use)
        updates, moments = self.optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments, key, statistics), loss

    def _one_epoch(self, state: Any, X: Any, y: Any, order: Any) -> tuple[Any, Any]:
        rows, batch = self.workload.rows, self.workload.batch
        full, rest = divmod(rows, batch)

        def step(state: Any, index: Any) -> tuple[Any, Any]:
            return self._one_step(state, X[index], y[index])

        total = jnp.zeros((), self.workload.dtype)
        if full:
            state, losses = jax.lax.scan(step, state, order[: full * batch].reshape(full, batch))
            total += losses.sum() * batch
        if rest:
            state, loss = step(state, order[full * batch :])
            total += loss * rest
        return state, total / rows

    def _step_by_step(self, order: np.ndarray) -> Any:
        """An epoch of a call for each step; returns its mean loss."""
        batch, total = self.workload.batch, jnp.zeros((), self.workload.dtype)
        for start in range(0, len(order), batch):
            index = order[start : start + batch]
            self.state, loss = self._step_on(self.state, self.X, self.y, index)
            total += loss * len(index)
        return total / len(order)

    def epochs(self, count: int) -> list[float]:
        means = []
        for _ in range(count):
            order = self.rng.permutation(self.workload.rows).astype(np.int32)
            if self.workload.network is None:
                self.state, mean = self._epoch(self.state, self.X, self.y, order)
            else:
                mean = self._step_by_step(order)
            means.append(mean)
        return [float(mean) for mean in jax.device_get(means)]

    def losses(self, steps: int) -> list[float]:
        found = []
        for rows in self.batches_in_order(steps):
            self.state, loss = self._step(self.state, self.X[rows], self.y[rows])
            found.append(float(loss))
        return found

    def inputs(self, X: np.ndarray) -> jax.Array:
        return jnp.array(X, jnp.bfloat16 if self.workload.precision == "bf16" else None)

    def predict(self, inputs: jax.Array) -> jax.Array:
        return self._logits(self.state[0], self.state[3], inputs).block_until_ready()


class JaxOnCuda(JaxOptax):
    """The same on a GPU."""

    platform = "cuda"
