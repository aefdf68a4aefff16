"""Inputs that lie on the device already: they stay there, and give what host arrays give."""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf

from .emulator import emulated_backend
from .fake_cupy import FakeArray


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


@pytest.mark.parametrize("batch_size", [None, 4])
def test_outputs_stay_on_the_device(problem: tuple[np.ndarray, np.ndarray], batch_size: int | None) -> None:
    X, _ = problem
    backend = emulated_backend()
    model = _model().build(4, seed=0)
    expected = model.predict(X, device=backend)
    inputs = backend.asarray(X)
    model.predict(inputs, batch_size=batch_size)
    backend.counts.reset()
    outputs = model.predict(inputs, batch_size=batch_size, on_device=True)
    assert isinstance(outputs, FakeArray)
    assert backend.counts.uploads == 0
    kept = backend.to_numpy(outputs)
    np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-6)
    model.predict(inputs[::-1].copy(), batch_size=batch_size, on_device=True)
    np.testing.assert_array_equal(backend.to_numpy(outputs), kept)  # they are the caller's
    assert model.predict(inputs[:0], on_device=True).shape == (0, 3)


def test_outputs_of_a_cpu_are_numpy_arrays(problem: tuple[np.ndarray, np.ndarray]) -> None:
    X, _ = problem
    model = _model().build(4, seed=0)
    outputs = model.predict(X, device="numpy", on_device=True)
    assert isinstance(outputs, np.ndarray)
    np.testing.assert_array_equal(outputs, model.predict(X))


def test_work_goes_to_the_current_stream(problem: tuple[np.ndarray, np.ndarray]) -> None:
    """A product and a kernel are launched on the stream that is current, not on one of the backend's own."""
    backend = emulated_backend()
    X, y = problem
    model = _model()
    model.fit(X, y, loss="cross_entropy", batch_size=21, device=backend, verbose=0)
    own = backend._cupy.cuda.Stream(non_blocking=True)
    model.predict(X)  # records
    backend._cupy.streams.launched.clear()
    with own:
        backend.linear_act(*(backend.asarray(a) for a in (X, np.ones((4, 2), "f4"), np.ones(2, "f4"))), "relu",
                           out=backend.empty((21, 2), np.float32))  # fmt: skip
        model.predict(X)
    assert set(backend._cupy.streams.launched) == {own.ptr}


@pytest.mark.parametrize("weighted", [False, True])
def test_validation_data_live_on_the_device(problem: tuple[np.ndarray, np.ndarray], weighted: bool) -> None:
    """They are brought there once, and of an evaluation only the outputs come back, at its end."""
    X, y = problem
    held: tuple = (X[:9].astype(np.float64), y[:9], *([np.linspace(0.5, 2, 9)] if weighted else []))
    curves = [
        _model().fit(
            X, y, loss="cross_entropy", epochs=3, batch_size=8, device=device, validation_data=held,
            metrics=["accuracy"], seed=0, verbose=0,
        )
        for device in ("numpy", emulated_backend())
    ]  # fmt: skip
    for name in ("val_loss", "val_accuracy"):
        np.testing.assert_allclose(curves[1][name], curves[0][name], rtol=1e-5)
    backend = emulated_backend()

    class Watch(nf.Callback):
        def __init__(self) -> None:
            self.uploads: list[int] = []

        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            self.uploads.append(backend.counts.uploads)

    per_epoch = []
    for validation in (None, held):
        watch = Watch()
        _model().fit(
            X, y, loss="cross_entropy", epochs=5, batch_size=8, device=backend, validation_data=validation,
            shuffle=False, callbacks=[watch], verbose=0,
        )  # fmt: skip
        per_epoch.append(set(np.diff(watch.uploads)[1:]))
    assert per_epoch[0] == per_epoch[1]
