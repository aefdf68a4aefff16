"""A small problem and a small model that the tests of training share."""

from __future__ import annotations

from typing import Any

import numpy as np

import nnfast as nf


def problem(rows: int = 41, features: int = 4, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, float32, and classes that depend on them; 41 rows leave a smaller last batch."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((rows, features)).astype(np.float32)
    return X, (X @ rng.standard_normal((features, classes))).argmax(axis=1)


def network(*, norm: bool = False, dropout: float = 0.0, classes: int = 3) -> nf.Sequential:
    """A classifier; by default its training has no noise but the order of the rows."""
    layers: list[nf.Layer] = [nf.Dense(6, "tanh")]
    if norm:
        layers.append(nf.BatchNorm())
    if dropout:
        layers.append(nf.Dropout(dropout))
    return nf.Sequential([*layers, nf.Dense(classes)])


def fit(model: nf.Sequential, X: Any, y: Any = None, **arguments: Any) -> nf.History:
    """Train briefly and quietly, with everything fixed that `arguments` does not say."""
    defaults = {"loss": "cross_entropy", "optimizer": "adam", "batch_size": 8, "seed": 3, "verbose": 0}
    return model.fit(X, y, **{**defaults, **arguments})


def everything(model: nf.Sequential) -> dict[str, np.ndarray]:
    """Weights, buffers, moments and moving average."""
    return {**model.get_weights(), **model.parameters.get_slots()}


def assert_same(a: nf.Sequential, b: nf.Sequential) -> None:
    """Two models agree in every bit of their arrays, and in how far they were trained."""
    one, other = everything(a), everything(b)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name, strict=True)
    assert (a.training_state.step, a.training_state.epoch) == (b.training_state.step, b.training_state.epoch)


def differs(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether any of the arrays is another one."""
    return any(not np.array_equal(a[name], b[name]) for name in a)
