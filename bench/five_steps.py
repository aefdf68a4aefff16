"""From your NumPy class to nnfast in five steps, each of which runs, computes the same, and prints its time.

    python -m nnfast.bench.five_steps [--device cuda]

1. The class that tutorials end with: one dict of weights, a backward pass by hand.
2. The same code on a backend's functions: layer, gradient and loss are one fused kernel each.
3. Memory of its own: every result has its array, and nothing is allocated in a step.
4. The layers as a model, with your own loop: forward, loss, backward and update are one recorded step.
5. The loop goes, too: whole epochs run natively, and a device flag takes them to a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

import nnfast as nf

__all__ = ["STEPS", "Model", "Step2", "Step3", "main", "run", "step_1", "step_2", "step_3", "step_4", "step_5"]

SIZES, BATCH, RATE = (64, 100, 10), 200, 1e-3
Weights = dict[str, np.ndarray]


def initial_weights(seed: int = 0) -> Weights:
    """The weights that all five start from."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for i, (inputs, outputs) in enumerate(pairwise(SIZES), 1):
        weights[f"W{i}"] = (rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)).astype(np.float32)
        weights[f"b{i}"] = np.zeros(outputs, np.float32)
    return weights


def data(rows: int = 3200) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and labels that follow from them."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((rows, SIZES[0])).astype(np.float32)
    return X, (X @ rng.standard_normal((SIZES[0], SIZES[-1]))).argmax(axis=1)


# ---- 1. NumPy -----------------------------------------------------------------------------------------------
class Model:
    """Two layers, ReLU, softmax and Adam: the code before."""

    def __init__(self, weights: Weights) -> None:
        self.weights = {name: value.copy() for name, value in weights.items()}
        self.m = {name: np.zeros_like(value) for name, value in weights.items()}
        self.v = {name: np.zeros_like(value) for name, value in weights.items()}
        self.t = 0

    def loss_and_gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[float, Weights]:
        w = self.weights
        h = np.maximum(x @ w["W1"] + w["b1"], 0)
        z = h @ w["W2"] + w["b2"]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        rows = np.arange(len(x))
        loss = -float(np.log(p[rows, y]).mean())
        p[rows, y] -= 1
        dz = p / len(x)
        dh = dz @ w["W2"].T * (h > 0)
        return loss, {"W1": x.T @ dh, "b1": dh.sum(axis=0), "W2": h.T @ dz, "b2": dz.sum(axis=0)}

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        self.t += 1
        loss, gradients = self.loss_and_gradients(x, y)
        for name, g in gradients.items():
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
            m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.999**self.t)
            self.weights[name] -= RATE * m / (np.sqrt(v) + 1e-8)
        return loss

    def train(self, X: np.ndarray, y: np.ndarray, epochs: int) -> list[float]:
        starts = range(0, len(X), BATCH)
        return [float(np.mean([self.step(X[a : a + BATCH], y[a : a + BATCH]) for a in starts])) for _ in range(epochs)]


# ---- 2. A backend's functions --------------------------------------------------------------------------------
class Step2(Model):
    """What was a few lines each is a call each; the rest of the class stays."""

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        super().__init__(weights)
        self.bk = nf.get_backend(device)

    def loss_and_gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[float, Weights]:
        w, bk = self.weights, self.bk
        h = bk.linear_act(x, w["W1"], w["b1"], "relu")
        z = bk.linear_act(h, w["W2"], w["b2"], "identity")
        loss, dz = bk.softmax_xent(z, y)
        dh, dW2, db2 = bk.linear_act_grad(dz, h, w["W2"], None, "identity")
        dW1, db1 = bk.linear_act_grad(dh, x, w["W1"], h, "relu", dx=None)
        return loss, {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2}

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        self.t += 1
        loss, gradients = self.loss_and_gradients(x, y)
        for name, g in gradients.items():
            flat = (a.reshape(-1) for a in (self.weights[name], g, self.m[name], self.v[name]))
            self.bk.adam_step(*flat, lr=RATE, t=self.t)
        return loss


# ---- 3. Memory of its own -----------------------------------------------------------------------------------
class Step3(Step2):
    """All weights in one flat array, so that Adam is one call, and an array for every result."""

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        super().__init__(weights, device)
        flat = np.concatenate([value.ravel() for value in weights.values()])
        self.flat, self.gradient = flat, np.zeros_like(flat)
        self.moments = np.zeros((2, flat.size), np.float32)
        ends = np.cumsum([value.size for value in weights.values()])
        parts = list(zip(weights.items(), ends, strict=True))
        self.weights = {n: self.flat[e - v.size : e].reshape(v.shape) for (n, v), e in parts}
        self.gradients = {n: self.gradient[e - v.size : e].reshape(v.shape) for (n, v), e in parts}
        self.h, self.dh = np.empty((2, BATCH, SIZES[1]), np.float32)
        self.z, self.dz = np.empty((2, BATCH, SIZES[2]), np.float32)
        self.state = np.zeros(nf.kernels.step_state.SIZE)

    def loss_and_gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[float, Weights]:
        w, d, bk = self.weights, self.gradients, self.bk
        bk.linear_act(x, w["W1"], w["b1"], "relu", out=self.h)
        bk.linear_act(self.h, w["W2"], w["b2"], "identity", out=self.z)
        bk.softmax_xent(self.z, y, None, self.state, dlogits=self.dz)
        bk.linear_act_grad(self.dz, self.h, w["W2"], None, "identity", dx=self.dh, dW=d["W2"], db=d["b2"])
        bk.linear_act_grad(self.dh, x, w["W1"], self.h, "relu", dx=None, dW=d["W1"], db=d["b1"])
        return float(self.state[nf.kernels.step_state.LOSS]), d

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        self.t += 1
        loss, _ = self.loss_and_gradients(x, y)
        self.bk.adam_step(self.flat, self.gradient, *self.moments, lr=RATE, t=self.t)
        return loss


def step_1(weights: Weights, X: np.ndarray, y: np.ndarray, epochs: int, device: str) -> list[float]:
    return Model(weights).train(X, y, epochs)


def step_2(weights: Weights, X: np.ndarray, y: np.ndarray, epochs: int, device: str) -> list[float]:
    return Step2(weights).train(X, y, epochs)


def step_3(weights: Weights, X: np.ndarray, y: np.ndarray, epochs: int, device: str) -> list[float]:
    return Step3(weights).train(X, y, epochs)


# ---- 4. A model, your own loop ------------------------------------------------------------------------------
def the_model(weights: Weights) -> nf.Sequential:
    """The layers, with the same weights."""
    model = nf.Sequential([nf.Dense(SIZES[1], "relu"), nf.Dense(SIZES[2])]).build(SIZES[0])
    model.set_weights(dict(zip(model.get_weights(), weights.values(), strict=True)))
    return model


def step_4(weights: Weights, X: np.ndarray, y: np.ndarray, epochs: int, device: str) -> list[float]:
    trainer = nf.Trainer(the_model(weights), "cross_entropy", nf.Adam(RATE), device="cpu", batch_size=BATCH)
    starts = range(0, len(X), BATCH)
    return [float(np.mean([trainer.step(X[a : a + BATCH], y[a : a + BATCH]) for a in starts])) for _ in range(epochs)]


# ---- 5. No loop, any device ---------------------------------------------------------------------------------
def step_5(weights: Weights, X: np.ndarray, y: np.ndarray, epochs: int, device: str) -> list[float]:
    history = the_model(weights).fit(
        X, y, loss="cross_entropy", optimizer=nf.Adam(RATE), epochs=epochs, batch_size=BATCH, shuffle=False,
        device=device, verbose=0,
    )  # fmt: skip
    return list(history["loss"])


Step = Callable[[Weights, np.ndarray, np.ndarray, int, str], list[float]]
STEPS: dict[str, Step] = {
    "1. NumPy": step_1,
    "2. a backend's functions": step_2,
    "3. memory of its own": step_3,
    "4. a model, your own loop": step_4,
    "5. whole epochs": step_5,
}


def run(epochs: int = 10, device: str = "cpu") -> dict[str, tuple[float, list[float]]]:
    """Seconds of a training step, and the losses of the epochs, of each of the five."""
    weights, (X, y) = initial_weights(), data()
    steps = -(-len(X) // BATCH)
    found = {}
    for name, step in STEPS.items():
        losses = step(weights, X, y, epochs, device)  # compiles, and warms up
        times = []
        for count in (epochs, 3 * epochs):
            began = time.perf_counter()
            step(weights, X, y, count, device)
            times.append(time.perf_counter() - began)
        found[name] = ((times[1] - times[0]) / (2 * epochs * steps), losses)
    return found


def main(args: list[str] | None = None) -> int:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="of the last step; default: cpu")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args(args)
    found = run(options.epochs, options.device)
    first = next(iter(found.values()))[0]
    for name, (seconds, losses) in found.items():
        where = f" ({options.device})" if name == list(found)[-1] else ""
        print(f"{name + where:32}{seconds * 1e6:10.1f} us a step{first / seconds:8.1f}x   loss {losses[-1]:.6f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
