"""Inputs that lie on the device already: they stay there, and give what host arrays give."""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf

from .emulator import emulated_backend


def _model() -> nf.Sequential:
    return nf.Sequential([nf.Dense(6, "tanh"), nf.Dense(3)])


@pytest.fixture
def problem(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((21, 4)).astype(np.float32), rng.integers(0, 3, 21)


def test_fit_and_predict(problem: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = problem
    backend = emulated_backend()
    curves, outputs = [], []
    for inputs in (X, backend.asarray(X)):
        model = _model()
        history = model.fit(
            inputs,
            y,
            loss="cross_entropy",
            epochs=2,
            batch_size=8,
            device=backend,
            validation_split=0.2,
            metrics=["accuracy"],
            seed=0,
            verbose=0,
        )
        curves.append(dict(history))
        outputs.append(model.predict(inputs))
        assert isinstance(outputs[-1], np.ndarray)
    assert curves[0] == curves[1]
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_a_cpu_model_takes_them_too(problem: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = problem
    inputs = emulated_backend().asarray(X)
    model, other = _model(), _model()
    for m, x in ((model, X), (other, inputs)):
        m.fit(x, y, loss="cross_entropy", epochs=2, batch_size=8, device="numpy", seed=0, verbose=0)
    np.testing.assert_array_equal(model.predict(X), other.predict(inputs))


def test_nan_on_the_device_is_found(problem: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = problem
    X[3, 2] = np.nan
    backend = emulated_backend()
    with pytest.raises(ValueError, match="NaN or infinity"):
        _model().fit(backend.asarray(X), y, loss="cross_entropy", device=backend, verbose=0)
