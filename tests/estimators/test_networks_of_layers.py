"""Image, sequence and text models as estimators, on the flat rows of scikit-learn."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import nnfast as nf
from nnfast.sklearn import NNClassifier, NNRegressor


def images() -> nf.Sequential:
    return nf.Sequential(
        [nf.Reshape((8, 8, 1)), nf.Conv2D(6, 3, "relu"), nf.MaxPool2D(), nf.Flatten(), nf.Dense(10)]
    )  # fmt: skip


def rows_of_images() -> nf.Sequential:
    return nf.Sequential([nf.Reshape((8, 8)), nf.Bidirectional(nf.GRU(12)), nf.Dense(10)])


def patches() -> nf.Model:
    x = nf.Input(64)
    h = nf.PositionalEmbedding()(nf.Dense(12)(nf.Reshape((8, 8))(x)))
    return nf.Model(x, nf.Dense(10)(nf.GlobalAvgPool1D()(nf.TransformerBlock(2, 16)(h))))


MODELS = {"images": images, "rows of images": rows_of_images, "patches": patches}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X[:400] / 16, np.array([f"digit {n}" for n in y[:400]])


def classifier(model: Any, **more: Any) -> NNClassifier:
    options: dict[str, Any] = {"epochs": 8, "batch_size": 20, "random_state": 0, "device": "numpy"}
    return NNClassifier(model, optimizer=nf.Adam(0.02), **(options | more))


@pytest.mark.parametrize("name", MODELS)
def test_images(name: str, digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    fitted = classifier(MODELS[name]()).fit(X[:300], y[:300])
    assert fitted.score(X[300:], y[300:]) > 0.7
    np.testing.assert_allclose(fitted.predict_proba(X[:5]).sum(1), 1, atol=1e-5)
    assert set(fitted.predict(X)) <= set(y)
    assert (fitted.n_features_in_, fitted.model_.in_shape) == (64, (64,))
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    # One row, as scikit-learn asks for it, and a wrong number of features
    assert fitted.predict(X[:1]).shape == (1,)
    with pytest.raises(ValueError, match="63 features"):
        fitted.predict(X[:, 1:])


def test_a_clone_begins_anew(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    estimator = classifier(images(), epochs=1).fit(X, y)
    other = clone(estimator)
    assert not hasattr(other, "model_")
    assert not other.model.is_built
    np.testing.assert_array_equal(other.fit(X, y).predict_proba(X), estimator.predict_proba(X))


def test_grid_search_over_architectures(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    hopeless = nf.Sequential([nf.Reshape((8, 8, 1)), nf.GlobalAvgPool2D(), nf.Dense(10)])
    search = GridSearchCV(classifier(None, epochs=5), {"model": [hopeless, images(), rows_of_images()]}, cv=2)
    search.fit(X, y)
    assert search.best_index_ != 0
    assert search.best_score_ > 0.5
    assert search.predict(X[:3]).shape == (3,)


def test_a_pipeline(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    pipeline = make_pipeline(MinMaxScaler(), classifier(lambda n, outputs: images()))
    assert cross_val_score(pipeline, X, y, cv=2).min() > 0.6


def words() -> tuple[np.ndarray, np.ndarray]:
    """Sentences of indices with zeros behind them; the class is whether word 3 is in it."""
    rng = np.random.default_rng(0)
    X = rng.integers(1, 9, (300, 7))
    X[np.arange(7) >= rng.integers(3, 8, 300)[:, None]] = 0
    return X, (X == 3).any(axis=1)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float64])
def test_words(kind: Any) -> None:
    X, y = words()
    layers = [nf.Embedding(9, 6, mask_zero=True), nf.LSTM(8), nf.Dense(1)]
    fitted = classifier(nf.Sequential(layers), epochs=15).fit(X.astype(kind), y)
    assert fitted.score(X, y) > 0.9
    # Ones that are no words
    for wrong, message in ((X + 8, "outside of the vocabulary"), (X + 0.5, "not whole")):
        with pytest.raises(ValueError, match=message):
            fitted.predict(wrong)
        with pytest.raises(ValueError, match=message):
            clone(fitted).fit(wrong, y)


@pytest.mark.parametrize("pool", [nf.GlobalMaxPool1D, nf.GlobalAvgPool1D])
def test_pooled_words(pool: Any) -> None:
    """What is behind a sentence says nothing."""
    X, y = words()
    model = nf.Sequential([nf.Embedding(9, 6, mask_zero=True), pool(), nf.Dense(8, "relu"), nf.Dense(1)])
    fitted = classifier(model, epochs=15).fit(X, y)
    assert fitted.score(X, y) > 0.9
    proba = fitted.predict_proba(X)
    np.testing.assert_allclose(clone(fitted).fit(X[:, ::-1], y).predict_proba(X[:, ::-1]), proba, rtol=1e-3, atol=1e-4)


def test_search_for_a_text_model() -> None:
    X, y = words()
    models = [
        nf.Sequential([nf.Embedding(9, 8), nf.TransformerBlock(2, 8), nf.GlobalMaxPool1D(), nf.Dense(1)]),
        nf.Sequential([nf.Embedding(9, 8), nf.Conv1D(8, 3, "relu", padding="same"), nf.GlobalMaxPool1D(), nf.Dense(1)]),
    ]
    search = GridSearchCV(classifier(None, epochs=10), {"model": models}, cv=2).fit(X, y)
    assert min(search.cv_results_["mean_test_score"]) > 0.8


def test_a_series() -> None:
    t = np.arange(400) / 5
    series = np.sin(t) + 0.5 * np.sin(2.3 * t)
    X = np.lib.stride_tricks.sliding_window_view(series, 12)[:-1]
    y = np.column_stack([series[12:], -series[12:]])
    model = nf.Sequential([nf.Reshape((12, 1)), nf.LSTM(12), nf.Dense(2)])
    options = {"epochs": 15, "batch_size": 16, "random_state": 0, "device": "numpy"}
    fitted = NNRegressor(model, optimizer=nf.Adam(0.02), **options).fit(X[:300], y[:300])
    assert fitted.score(X[300:], y[300:]) > 0.95
    assert fitted.predict(X).shape == y.shape
