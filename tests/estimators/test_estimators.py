"""All four estimators in scikit-learn's world: its checks, searches, copies, files, and other libraries' arrays."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

import joblib
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_diabetes, load_digits
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import nnfast as nf
from nnfast.sklearn import MLPClassifier, MLPRegressor, NNClassifier, NNRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

CLASSIFIERS = {
    "MLP": lambda **more: MLPClassifier(**{"max_iter": 30, "random_state": 0, "device": "cpu", **more}),
    "NN": lambda **more: NNClassifier(**{"epochs": 30, "random_state": 0, "device": "cpu", **more}),
}
REGRESSORS = {
    "MLP": lambda **more: MLPRegressor(**{"max_iter": 60, "random_state": 0, "learning_rate_init": 0.01, **more}),
    "NN": lambda **more: NNRegressor(**{"epochs": 60, "random_state": 0, "optimizer": nf.Adam(0.01), **more}),
}
classifiers = pytest.mark.parametrize("make", CLASSIFIERS.values(), ids=CLASSIFIERS)
regressors = pytest.mark.parametrize("make", REGRESSORS.values(), ids=REGRESSORS)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X[:600] / 16, y[:600]


@parametrize_with_checks(
    [MLPClassifier(max_iter=25), MLPRegressor(max_iter=25), NNClassifier(), NNRegressor()],
)
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@classifiers
@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_grid_search_in_two_jobs(make: Any, backend: str, digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    make().fit(X[:100], y[:100])  # what a fork would take along
    of_mlp = {"learning_rate_init": [1e-2, 1e-6]}
    rates = of_mlp if isinstance(make(), MLPClassifier) else {"optimizer": [nf.Adam(0.01), "sgd"]}
    search = GridSearchCV(make(), rates, cv=2, n_jobs=2)
    with joblib.parallel_backend(backend, n_jobs=2):
        search.fit(X, y)
    assert search.best_index_ == 0
    assert search.best_score_ > 0.8


@classifiers
def test_pipeline_calibration_and_importance(make: Any, digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    pipeline = make_pipeline(StandardScaler(), make()).fit(X, y)
    assert pipeline.score(X, y) > 0.95
    pipeline.set_output(transform="default")
    calibrated = CalibratedClassifierCV(make(), cv=2).fit(X, y)
    assert calibrated.score(X, y) > 0.8
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(1), 1, atol=1e-6)
    importance = permutation_importance(pipeline, X[:200], y[:200], n_repeats=2, random_state=0)
    assert importance.importances_mean[0] == pytest.approx(0, abs=1e-9)  # a pixel that is always blank
    assert importance.importances_mean.max() > 0.01


@regressors
def test_regression(make: Any) -> None:
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    assert cross_val_score(make(), X, y, cv=3).mean() > 0.35
    both = np.column_stack([y, -y])
    assert make().fit(X, both).predict(X).shape == both.shape


@pytest.mark.parametrize("make", [*CLASSIFIERS.values(), *REGRESSORS.values()])
def test_files_and_copies(make: Any, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    X, y = digits
    estimator = make().fit(X, y)
    joblib.dump(estimator, tmp_path / "model.joblib")
    copies = [joblib.load(tmp_path / "model.joblib"), pickle.loads(pickle.dumps(estimator)), copy.deepcopy(estimator)]
    for other in copies:
        np.testing.assert_array_equal(other.predict(X), estimator.predict(X))
    unfitted = sklearn.base.clone(estimator)
    assert unfitted.get_params().keys() == estimator.get_params().keys()
    with pytest.raises(sklearn.exceptions.NotFittedError):
        unfitted.predict(X)
    np.testing.assert_array_equal(unfitted.fit(X, y).predict(X), estimator.predict(X))


@pytest.mark.parametrize("make", [*CLASSIFIERS.values(), *REGRESSORS.values()])
def test_metadata_routing(make: Any, digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    weight = np.linspace(0, 2, len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, make().set_fit_request(sample_weight=True))
        pipeline.fit(X, y, sample_weight=weight)
    X = StandardScaler().fit_transform(X)
    np.testing.assert_allclose(pipeline[-1].predict(X), make().fit(X, y, sample_weight=weight).predict(X))


_PYTORCH = """
import sys
import numpy as np, sklearn, torch
sys.path.insert(0, sys.argv[1])
from tests.estimators.test_estimators import CLASSIFIERS, REGRESSORS
from sklearn.datasets import load_digits

X, y = load_digits(return_X_y=True)
X, y = X[:300] / 16, y[:300]
X_t, y_t = torch.asarray(X), torch.asarray(y)
for make in (*CLASSIFIERS.values(), *REGRESSORS.values()):
    wanted = make().fit(X, y)
    with sklearn.config_context(array_api_dispatch=True):
        estimator = make().fit(X_t, y_t)
        for method in ("predict", "predict_proba", "predict_log_proba"):
            if hasattr(estimator, method):
                found = getattr(estimator, method)(X_t)
                assert isinstance(found, torch.Tensor), method
                np.testing.assert_array_equal(found.numpy(), getattr(wanted, method)(X))
        assert abs(float(estimator.score(X_t, y_t)) - wanted.score(X, y)) < 1e-6
        text = make().fit(X_t, np.array(["a", "b"])[y % 2]).predict(X_t) if "Classifier" in repr(wanted) else X
        assert isinstance(text, np.ndarray)  # no other library has text
    assert isinstance(estimator.predict(X_t), np.ndarray)
"""


def test_arrays_of_pytorch() -> None:
    """In a process of its own, since SciPy reads whether it is to take such arrays when it is imported."""
    pytest.importorskip("torch")
    if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 7):
        pytest.importorskip("array_api_compat", reason="scikit-learn has its own from 1.7 on")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run([sys.executable, "-c", _PYTORCH, root], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("make", [*CLASSIFIERS.values(), *REGRESSORS.values()])
def test_arrays_of_a_gpu(make: Any, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """CuPy's interface, on the emulated device: inputs come to the host, training goes to the device."""
    emulator = pytest.importorskip("tests.cuda.emulator", reason="the emulated CUDA device is not there")
    bk = emulator.emulated_backend()
    X, y = digits[0][:60], digits[1][:60]
    small = {"max_iter": 3} if "max_iter" in make().get_params() else {"epochs": 3}
    estimator = make(device=bk, **small).fit(bk.asarray(X), y)
    np.testing.assert_allclose(estimator.predict(bk.asarray(X)), make(**small).fit(X, y).predict(X), rtol=1e-6)


# ---- networks of nnfast ---------------------------------------------------------------------------------------
def network(features: int, outputs: int) -> nf.Sequential:
    return nf.Sequential([nf.Dense(16, "gelu"), nf.LayerNorm(), nf.Dropout(0.1), nf.Dense(outputs)])


@pytest.mark.parametrize(
    "model",
    [
        None,
        network,
        nf.Sequential([nf.Dense(16, "relu"), nf.Dense(10)]),
        nf.Sequential([nf.Dense(16, "relu"), nf.Dense(10, "softmax")]),
    ],
)
def test_any_network(any_backend: Any, model: Any, digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:200], digits[1][:200]
    estimator = NNClassifier(model, epochs=40, optimizer=nf.Adam(0.01), device=any_backend, random_state=0)
    estimator.fit(X, np.array([f"digit {label}" for label in y]))
    assert estimator.score(X, np.array([f"digit {label}" for label in y])) > 0.95
    assert estimator.n_iter_ == len(estimator.loss_curve_) == 40
    np.testing.assert_allclose(estimator.predict_proba(X).sum(1), 1, atol=1e-6)
    if isinstance(model, nf.Sequential):
        assert not model.is_built  # what was given is as it was


def test_images_as_they_are(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    model = nf.Sequential([nf.Flatten(), nf.Dense(16, "relu"), nf.Dense(10)])
    estimator = NNClassifier(model, optimizer=nf.Adam(0.01), epochs=30, random_state=0).fit(X.reshape(-1, 8, 8), y)
    assert estimator.score(X.reshape(-1, 8, 8), y) > 0.9


def test_weights_that_a_model_has_are_where_it_starts(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    model = nf.Sequential([nf.Dense(16, "relu"), nf.Dense(10)])
    model.fit(X, y, loss="cross_entropy", epochs=30, verbose=0, dtype="float64")
    before = model.get_flat_weights().copy()
    estimator = NNClassifier(model, epochs=1, random_state=0).fit(X, y)
    assert estimator.score(X, y) > 0.9
    np.testing.assert_array_equal(model.get_flat_weights(), before)


def test_two_classes_and_labels(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    for outputs in (1, 2):
        model = nf.Sequential([nf.Dense(16, "relu"), nf.Dense(outputs)])
        estimator = NNClassifier(model, optimizer=nf.Adam(0.01), epochs=30, random_state=0).fit(X, y > 4)
        assert estimator.predict_proba(X).shape == (len(X), 2)
        assert estimator.score(X, y > 4) > 0.9
        assert estimator.predict(X).dtype == bool
    labels = np.column_stack([y > 4, y % 2, y == 3]).astype(int)
    estimator = NNClassifier(optimizer=nf.Adam(0.01), epochs=60, random_state=0).fit(X, labels)
    assert estimator.score(X, labels) > 0.9
    assert estimator.predict_proba(X).shape == labels.shape


@pytest.mark.parametrize("kind", [NNClassifier, NNRegressor])
def test_going_on(kind: Any, digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    whole = kind(epochs=6, shuffle=False, random_state=0).fit(X, y)
    parts = kind(epochs=3, shuffle=False, random_state=0, warm_start=True).fit(X, y).fit(X, y)
    np.testing.assert_allclose(parts.loss_curve_, whole.loss_curve_, rtol=1e-6)
    steps = kind(shuffle=False, random_state=0)
    for _ in range(6):
        steps.partial_fit(X, y)
    np.testing.assert_allclose(steps.loss_curve_, whole.loss_curve_, rtol=1e-6)
    assert steps.n_iter_ == whole.n_iter_ == 6


def test_classes_that_come_later(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    estimator = NNClassifier(random_state=0)
    first = y < 5
    estimator.partial_fit(X[first], y[first], classes=np.arange(10))
    for _ in range(60):
        estimator.partial_fit(X, y)
    assert estimator.score(X, y) > 0.9


def test_validation_and_class_weight(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    own = NNClassifier(epochs=4, random_state=0).fit(X[:400], y[:400], X_val=X[400:], y_val=y[400:])
    split = NNClassifier(epochs=4, random_state=0, validation_fraction=0.2).fit(X, y)
    for estimator in (own, split):
        assert len(estimator.validation_loss_curve_) == 4
    names = np.array(["few", "many"])[(y > 0).astype(int)]
    heavy = NNClassifier(epochs=4, random_state=0, class_weight={"few": 50.0}).fit(X, names)
    plain = NNClassifier(epochs=4, random_state=0).fit(X, names)
    assert (heavy.predict(X) == "few").sum() > (plain.predict(X) == "few").sum()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"model": nf.Sequential([nf.Dense(3)])},
            "the model has 3 outputs, the targets need 10; make it with a function",
        ),
        ({"model": 3}, "model must be a network, a function that makes one, or None, not int"),
        ({"model": lambda features, outputs: 3}, r"must return a network, it gave int"),
        ({"loss": "huber"}, "loss='huber' is not for NNClassifier"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"class_weight": {77: 1.0}}, r"class_weight has \[77\]"),
        ({"precision": "float8"}, "precision"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str, digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    with pytest.raises((ValueError, TypeError), match=match):
        NNClassifier(**arguments).fit(X, y)
