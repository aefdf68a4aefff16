"""The network in plain NumPy, as someone who knows it well writes it from scratch.

All weights lie in one flat array, so that the optimizer is a few calls in place, and the large products go
into arrays made once.
"""

from __future__ import annotations

from math import pi, sqrt

import numpy as np

from ..workloads import Weights
from .base import Contender


class PlainNumpy(Contender):
    """Forward, backward and update by hand."""

    def build(self, weights: Weights, X: np.ndarray, y: np.ndarray) -> None:
        work = self.workload
        self.X, self.y = X, y
        self.rng = np.random.default_rng(0)
        self.flat = np.concatenate([array.ravel() for layer in weights for array in layer])
        self.grad = np.empty_like(self.flat)
        self.moments = [np.zeros_like(self.flat) for _ in range(2 if work.optimizer == "adam" else 1)]
        self.scratch = np.empty_like(self.flat)
        self.time = 0
        self.layers, self.grads = self._views(self.flat), self._views(self.grad)
        rows = work.predict or work.batch
        # Of each layer: its output, and for the backward pass the derivative of its activation and dx
        self.a = [np.empty((rows, width), work.dtype) for width in work.sizes[1:]]
        if not work.predict:
            self.slope = [np.empty_like(a) for a in self.a[:-1]]
            self.delta = [np.empty_like(a) for a in self.a[:-1]]
            self.x = np.empty((rows, work.sizes[0]), work.dtype)

    def _views(self, flat: np.ndarray) -> Weights:
        views, at = [], 0
        for inputs, outputs in self.workload.layers:
            W = flat[at : at + inputs * outputs].reshape(inputs, outputs)
            at += W.size
            views.append((W, flat[at : at + outputs]))
            at += outputs
        return views

    def _forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        last = len(self.layers) - 1
        for i, (W, b) in enumerate(self.layers):
            z = np.matmul(x, W, out=self.a[i][: len(x)])
            z += b
            if i < last:
                slope = self.slope[i][: len(x)] if training else None
                activate(self.workload.activation, z, slope)
                if training and self.workload.dropout:
                    keep = 1 - self.workload.dropout
                    mask = (self.rng.random(z.shape, np.float32) < keep).astype(z.dtype)
                    mask /= keep
                    z *= mask
                    slope *= mask
            x = z
        return x

    def _step(self, x: np.ndarray, y: np.ndarray) -> float:
        n = len(x)
        z = self._forward(x, training=True)
        loss = loss_and_gradient(self.workload.loss, z, y)  # z is its own gradient now
        delta = z
        for i in reversed(range(len(self.layers))):
            below = self.a[i - 1][:n] if i else x
            dW, db = self.grads[i]
            np.matmul(below.T, delta, out=dW)
            np.sum(delta, axis=0, out=db)
            if i:
                delta = np.matmul(delta, self.layers[i][0].T, out=self.delta[i - 1][:n])
                delta *= self.slope[i - 1][:n]
        self._update()
        return loss

    def _update(self) -> None:
        work, g, s = self.workload, self.grad, self.scratch
        if work.optimizer == "sgd":
            (velocity,) = self.moments
            velocity *= work.momentum
            velocity += g
            np.multiply(velocity, work.lr, out=s)
            self.flat -= s
            return
        self.time += 1
        m, v = self.moments
        m *= 0.9
        np.multiply(g, 0.1, out=s)
        m += s
        v *= 0.999
        np.multiply(g, g, out=s)
        s *= 0.001
        v += s
        np.sqrt(v, out=s)
        s *= 1 / sqrt(1 - 0.999**self.time)
        s += 1e-8
        np.divide(m, s, out=s)
        s *= work.lr / (1 - 0.9**self.time)
        self.flat -= s

    def epochs(self, count: int) -> list[float]:
        work, means = self.workload, []
        for _ in range(count):
            order, total = self.rng.permutation(work.rows), 0.0
            for start in range(0, work.rows, work.batch):
                rows = order[start : start + work.batch]
                x = np.take(self.X, rows, axis=0, out=self.x[: len(rows)], mode="clip")  # "raise" would buffer
                total += self._step(x, self.y[rows]) * len(rows)
            means.append(total / work.rows)
        return means

    def losses(self, steps: int) -> list[float]:
        return [self._step(self.X[rows], self.y[rows]) for rows in self.batches_in_order(steps)]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self._forward(inputs, training=False)


def activate(name: str, z: np.ndarray, slope: np.ndarray | None) -> None:
    """Apply an activation in place; its derivative goes into `slope`, where it is given."""
    if name == "relu":
        np.maximum(z, 0, out=z)
        if slope is not None:
            np.greater(z, 0, out=slope)
    elif name == "tanh":
        np.tanh(z, out=z)
        if slope is not None:
            np.multiply(z, z, out=slope)
            np.subtract(1, slope, out=slope)
    elif name == "sigmoid":
        sigmoid(z, out=z)
        if slope is not None:
            np.subtract(1, z, out=slope)
            slope *= z
    elif name == "silu":
        s = sigmoid(z, out=np.empty_like(z))
        if slope is not None:
            np.subtract(1, s, out=slope)
            slope *= z
            slope += 1
            slope *= s
        z *= s
    else:
        from scipy.special import erf

        phi = erf(z * (1 / sqrt(2)))
        phi += 1
        phi *= 0.5
        if slope is not None:
            np.multiply(z, z, out=slope)
            slope *= -0.5
            np.exp(slope, out=slope)
            slope *= z
            slope *= 1 / sqrt(2 * pi)
            slope += phi
        z *= phi


def sigmoid(z: np.ndarray, out: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-z))``."""
    np.negative(z, out=out)
    np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)


def loss_and_gradient(name: str, z: np.ndarray, y: np.ndarray) -> float:
    """The mean loss; the gradient with respect to `z` replaces `z`."""
    if name == "mean_squared_error":
        z -= y
        loss = float(np.vdot(z, z)) / z.size
        z *= 2 / z.size
        return loss
    if name == "binary_cross_entropy":
        loss = float(np.mean(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))))
        sigmoid(z, out=z)
        z -= y
        z /= z.size
        return loss
    rows = np.arange(len(z))
    z -= z.max(axis=1, keepdims=True)
    right = z[rows, y]
    np.exp(z, out=z)
    total = z.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - right))
    z /= total
    z[rows, y] -= 1
    z /= len(z)
    return loss
