"""The two multi-layer perceptrons against scikit-learn's, from equal random numbers; and what they have besides."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
from scipy import sparse
from sklearn import neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.fixes import parse_version

import nnfast as nf
from nnfast.backends.base import Backend
from nnfast.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

MODERN = parse_version(sklearn.__version__) >= parse_version("1.7")  # sample weights, Poisson
TEXT = parse_version(sklearn.__version__) >= parse_version("1.9")  # early stopping with labels that are text


def problem(kind: str, rows: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and targets of a kind that follow from them."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 5))
    names = TEXT
    z = X @ rng.standard_normal((5, 3)) + 0.3 * rng.standard_normal((rows, 3))
    targets = {
        "binary": lambda: np.array(["no", "yes"] if names else [3, 5])[(z[:, 0] > 0).astype(int)],
        "classes": lambda: np.array(["ant", "bee", "cow"] if names else [2, 3, 5])[z.argmax(axis=1)],
        "labels": lambda: (z > 0).astype(int),
        "value": lambda: z[:, 0],
        "values": lambda: z,
        "counts": lambda: np.floor(np.exp(np.clip(z[:, 0], -2, 2))),
    }
    return X, targets[kind]()


def ours_of(kind: str, **arguments: Any) -> Any:
    """Our estimator for a kind of target."""
    defaults = {"hidden_layer_sizes": (7, 4), "max_iter": 6, "batch_size": 25, "random_state": 1, "device": "numba"}
    make = MLPClassifier if kind in ("binary", "classes", "labels") else MLPRegressor
    return make(**{**defaults, **arguments})


def both(kind: str, **arguments: Any) -> tuple[Any, Any]:
    """scikit-learn's estimator for a kind of target, and ours."""
    ours = ours_of(kind, **arguments)
    theirs = getattr(neural_network, type(ours).__name__)()
    return theirs.set_params(**{k: v for k, v in ours.get_params().items() if k in theirs.get_params()}), ours


def alike(theirs: Any, ours: Any, X: Any, tolerance: float = 1e-9) -> None:
    """Whether two fitted estimators are the same."""
    for name in ("n_iter_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_", "t_"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("loss_", "loss_curve_", "validation_scores_", "best_validation_score_", "best_loss_"):
        if hasattr(theirs, name):
            found, wanted = getattr(ours, name), getattr(theirs, name)
            if wanted is None:
                assert found is None, name
            else:
                np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance, err_msg=name)
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * 10, err_msg=name)
    found, wanted = ours.predict(X), theirs.predict(X)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if wanted.dtype.kind == "f":
        np.testing.assert_allclose(found, wanted, atol=tolerance * 10)
    else:
        np.testing.assert_array_equal(found, wanted)
    if hasattr(theirs, "predict_proba"):
        for method in ("predict_proba", "predict_log_proba"):
            found, wanted = getattr(ours, method)(X), getattr(theirs, method)(X)
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=tolerance * 10)


SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05},
    "sgd, no momentum": {"solver": "sgd", "learning_rate_init": 0.05, "momentum": 0},
    "sgd, all momentum": {"solver": "sgd", "learning_rate_init": 0.001, "momentum": 1.0},
    "sgd, plain momentum": {"solver": "sgd", "learning_rate_init": 0.05, "nesterovs_momentum": False},
    "sgd, invscaling": {"solver": "sgd", "learning_rate_init": 0.5, "learning_rate": "invscaling", "power_t": 0.3},
    "sgd, adaptive": {
        "solver": "sgd", "learning_rate_init": 0.1, "learning_rate": "adaptive", "tol": 0.5, "n_iter_no_change": 1,
        "max_iter": 20,
    },
    "lbfgs": {"solver": "lbfgs", "max_iter": 15},
    "penalty": {"alpha": 3.0},
    "no penalty": {"alpha": 0.0},
    "one layer": {"hidden_layer_sizes": 6},
    "no layer": {"hidden_layer_sizes": ()},
    "in order": {"shuffle": False},
    "batch auto": {"batch_size": "auto"},
    "stops early": {"early_stopping": True, "validation_fraction": 0.2, "n_iter_no_change": 2, "max_iter": 30},
    "tolerance": {"tol": 0.05, "n_iter_no_change": 2, "max_iter": 50},
    "epsilon": {"epsilon": 1e-2, "beta_1": 0.5, "beta_2": 0.9},
    **{activation: {"activation": activation} for activation in ("identity", "logistic", "tanh")},
}  # fmt: skip
KINDS = ("binary", "classes", "labels", "value", "values")


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_scikit_learn(kind: str, settings: str) -> None:
    X, y = problem(kind)
    theirs, ours = both(kind, **SETTINGS[settings])
    alike(theirs.fit(X, y), ours.fit(X, y), X, 1e-6 if settings == "lbfgs" else 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_on_each_backend(any_backend: Backend, kind: str) -> None:
    X, y = problem(kind)
    for solver in ("adam", "sgd", "lbfgs"):
        theirs, ours = both(kind, solver=solver, device=any_backend)
        alike(theirs.fit(X, y), ours.fit(X, y), X, 1e-6 if solver == "lbfgs" else 1e-9)
    theirs, ours = both(kind, device=any_backend)
    classes = {"binary": np.unique(y), "classes": np.unique(y), "labels": np.arange(3)}
    more = {"classes": classes[kind]} if kind in classes else {}
    for part in range(3):
        rows = slice(30 * part, 30 * part + 30)
        theirs.partial_fit(X[rows], y[rows], **more)
        ours.partial_fit(X[rows], y[rows], **more)
        alike(theirs, ours, X)


@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind: str) -> None:
    X, y = problem(kind)
    X = X.astype(np.float32)
    y = y.astype(np.float32) if y.dtype == np.float64 else y
    theirs, ours = both(kind)
    alike(theirs.fit(X, y), ours.fit(X, y), X, 2e-4)
    assert ours.coefs_[0].dtype == np.float32
    assert ours.predict(X.astype(np.float64)).dtype == theirs.predict(X.astype(np.float64)).dtype


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("resident", [True, False])
def test_sparse(make: Any, solver: str, resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not resident:
        monkeypatch.setattr("nnfast.sklearn.on_nnfast._DENSE_BYTES", 0)
        monkeypatch.setattr("nnfast.sklearn.core._DENSE_BYTES", 100)
    X, y = problem("classes")
    X = make(np.where(X > 0.5, X, 0))
    theirs, ours = both("classes", solver=solver, early_stopping=solver == "adam")
    alike(theirs.fit(X, y), ours.fit(X, y), X, 1e-6 if solver == "lbfgs" else 1e-9)


@pytest.mark.skipif(not MODERN, reason="scikit-learn has no sample weights before 1.7")
@pytest.mark.parametrize("kind", [*KINDS, "counts"])
@pytest.mark.parametrize("settings", ["adam", "lbfgs", "stops early", "penalty"])
def test_sample_weight(kind: str, settings: str) -> None:
    X, y = problem(kind)
    weight = np.random.default_rng(2).uniform(0, 3, len(X))
    weight[::7] = 0
    more = {"loss": "poisson"} if kind == "counts" else {}
    theirs, ours = both(kind, **SETTINGS[settings], **more)
    alike(theirs.fit(X, y, weight), ours.fit(X, y, weight), X, 1e-6 if settings == "lbfgs" else 1e-9)


@pytest.mark.skipif(not MODERN, reason="scikit-learn has no Poisson loss before 1.7")
@pytest.mark.parametrize("settings", ["adam", "sgd", "lbfgs"])
def test_poisson(settings: str) -> None:
    X, y = problem("counts")
    theirs, ours = both("counts", **SETTINGS[settings], loss="poisson")
    alike(theirs.fit(X, y), ours.fit(X, y), X, 1e-6 if settings == "lbfgs" else 1e-9)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_far_from_right_at_first(solver: str) -> None:
    """scikit-learn takes no probability for less than the dtype's epsilon; the losses of rows end there."""
    X, y = problem("classes")
    for kind in ("classes", "labels", "binary"):
        _, y = problem(kind)
        theirs, ours = both(kind, solver=solver, learning_rate_init=1e-4, alpha=0.0)
        theirs.fit(200 * X, y), ours.fit(200 * X, y)
        assert theirs.loss_curve_[0] > 5
        np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("settings", ["adam", "sgd"])
def test_warm_start(settings: str) -> None:
    X, y = problem("classes")
    theirs, ours = both("classes", **{**SETTINGS[settings], "max_iter": 3}, warm_start=True)
    for _ in range(3):
        alike(theirs.fit(X, y), ours.fit(X, y), X)


def test_weights_that_were_set_count() -> None:
    X, y = problem("values")
    theirs, ours = both("values")
    theirs.fit(X, y), ours.fit(X, y)
    ours.coefs_[0][:] = theirs.coefs_[0][:] = 0.5  # in place
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-9)
    ours.coefs_ = [W * 0.1 for W in theirs.coefs_]  # others
    theirs.coefs_ = [W * 0.1 for W in theirs.coefs_]
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-9)
    theirs.set_params(activation="tanh"), ours.set_params(activation="tanh")
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-9)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_copy_goes_on_alike(how: str, solver: str) -> None:
    X, y = problem("classes")
    ours = ours_of("classes", solver=solver)
    for _ in range(3):
        ours.partial_fit(X, y, classes=np.unique(y))
    other = pickle.loads(pickle.dumps(ours)) if how == "pickle" else copy.deepcopy(ours)
    np.testing.assert_array_equal(other.predict_proba(X), ours.predict_proba(X))
    for estimator in (ours, other):
        for _ in range(3):
            estimator.partial_fit(X, y)
    for a, b in zip(ours.coefs_, other.coefs_, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert not any(np.shares_memory(a, b) for a, b in zip(ours.coefs_, other.coefs_, strict=True))


def test_constructor_and_parameters() -> None:
    theirs, ours = neural_network.MLPClassifier(), MLPClassifier()
    assert ours.get_params().items() >= theirs.get_params().items()
    assert clone(MLPClassifier((3,), "tanh", alpha=2.0, device="numpy")).get_params()["device"] == "numpy"
    assert isinstance(ours, neural_network.MLPClassifier)
    with pytest.raises(TypeError, match="solvr"):
        MLPClassifier(solvr="adam")
    with pytest.raises(TypeError):
        MLPRegressor(class_weight="balanced")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"activation": "swish9"}, "activation"),
        ({"dropout": 1.5}, "dropout"),
        ({"device": 3}, "device"),
        ({"loss": "mean_squared_error"}, "is a classifier: loss='mean_squared_error' is not for it"),
        ({"loss": "binary_cross_entropy"}, "is not for these targets, whose outputs go through 'softmax'"),
        ({"optimizer": "lion", "solver": "lbfgs"}, "takes the place of 'adam' or 'sgd'"),
        ({"optimizer": "lion9"}, "unknown optimizer"),
        ({"callbacks": [3]}, "Callback"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str) -> None:
    X, y = problem("classes")
    with pytest.raises((ValueError, TypeError), match=match):
        MLPClassifier(**arguments).fit(X, y)


def test_labels_that_are_text_stop_early() -> None:
    X, y = problem("classes")
    y = np.array([f"class {label}" for label in y])
    ours = ours_of("classes", early_stopping=True, max_iter=50, learning_rate_init=0.02).fit(X, y)
    assert ours.best_validation_score_ > 0.5
    assert set(ours.predict(X)) <= set(y)


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_a_row_of_weight_two_is_two_rows(solver: str) -> None:
    """With every version of scikit-learn, those that have no weights too."""
    X, y = problem("classes", 40)
    weight = np.where(np.arange(40) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(40), weight.astype(int))
    settings: dict[str, Any] = {"solver": solver, "batch_size": "auto", "max_iter": 10, "learning_rate_init": 0.01}
    weighted = ours_of("classes", **settings).fit(X, y, weight)
    repeated = ours_of("classes", **settings).fit(X[twice], y[twice])
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6)


# ---- beyond scikit-learn -------------------------------------------------------------------------------------
@pytest.mark.parametrize("activation", ["gelu", "silu", "leaky_relu", nf.activations.get("elu(0.7)")])
def test_other_activations(activation: Any) -> None:
    X, y = problem("classes")
    ours = ours_of("classes", activation=activation, max_iter=60, learning_rate_init=0.01)
    assert ours.fit(X, y).score(X, y) > 0.8


def test_dropout_and_batch_norm() -> None:
    X, y = problem("classes", 300)
    ours = ours_of("classes", dropout=0.2, batch_norm=True, max_iter=60, learning_rate_init=0.01)
    assert ours.fit(X, y).score(X, y) > 0.8
    np.testing.assert_array_equal(ours.predict_proba(X), ours.predict_proba(X))  # nothing is dropped here
    assert [type(layer).__name__ for layer in ours.model_.layers][:4] == ["Dense", "BatchNorm", "Activation", "Dropout"]
    other = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(other.predict_proba(X), ours.predict_proba(X))  # running statistics are kept
    again = ours_of("classes", dropout=0.2, batch_norm=True, max_iter=60, learning_rate_init=0.01).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), ours.predict_proba(X))


def test_class_weight() -> None:
    X, y = problem("binary")
    first, second = np.unique(y)
    weights = {first: 3.0, second: 0.5}
    weighted = ours_of("binary", class_weight=weights)
    plain = ours_of("binary")
    weighted.fit(X, y)
    plain.fit(X, y, np.where(y == first, 3.0, 0.5))
    np.testing.assert_array_equal(weighted.predict_proba(X), plain.predict_proba(X))
    with pytest.raises(ValueError, match="balanced"):
        ours_of("binary", class_weight="balanced").partial_fit(X, y, classes=[first, second])


@pytest.mark.parametrize(
    "optimizer", [nf.Lion(0.005), nf.NAdam(0.01), nf.SGD(0.1, momentum=0.9), nf.AdamW(0.01, clip_norm=1.0)]
)
def test_an_optimizer_of_nnfast(optimizer: Any) -> None:
    X, y = problem("classes")
    ours = ours_of("classes", optimizer=optimizer, max_iter=60)
    assert ours.fit(X, y).score(X, y) > 0.7


def test_adam_of_nnfast_is_near_the_solver() -> None:
    X, y = problem("value")
    solver = ours_of("value", epsilon=1e-12)
    ours = ours_of("value", optimizer=nf.Adam(1e-3, eps=1e-12))
    np.testing.assert_allclose(ours.fit(X, y).loss_curve_, solver.fit(X, y).loss_curve_, rtol=1e-8)


def test_losses_of_nnfast() -> None:
    X, y = problem("classes")
    plain = ours_of("classes")
    same = ours_of("classes", loss=nf.CrossEntropy())
    np.testing.assert_allclose(same.fit(X, y).loss_curve_, plain.fit(X, y).loss_curve_, rtol=1e-9)
    smoothed = ours_of("classes", loss=nf.CrossEntropy(label_smoothing=0.3), max_iter=200, learning_rate_init=0.01)
    assert smoothed.fit(X, y).predict_proba(X).max() < 0.95
    X, y = problem("value")
    y[3] = 1e3
    huber = ours_of("value", loss="huber", max_iter=200, learning_rate_init=0.01)
    assert np.median(np.abs(huber.fit(X, y).predict(X) - y)) < 0.5
    X, y = problem("counts")
    poisson = ours_of("counts", loss=nf.Poisson())
    assert (poisson.fit(X, y).predict(X) > 0).all()


@pytest.mark.parametrize("early", [False, True])
def test_validation_rows_of_ones_own(early: bool) -> None:
    X, y = problem("classes", 120)
    ours = ours_of("classes", early_stopping=early, n_iter_no_change=3, max_iter=80, learning_rate_init=0.02)
    ours.fit(X[:80], y[:80], X_val=X[80:], y_val=y[80:])
    assert len(ours.validation_loss_curve_) == len(ours.loss_curve_) == ours.n_iter_
    assert ours.early_stopping is early
    if early:
        assert len(ours.validation_scores_) == ours.n_iter_ < 80
        assert ours.best_validation_score_ == max(ours.validation_scores_) == ours.score(X[80:], y[80:])
    else:
        from sklearn.metrics import log_loss

        assert ours.validation_loss_curve_[-1] == pytest.approx(log_loss(y[80:], ours.predict_proba(X[80:])))
    with pytest.raises(ValueError, match="X_val and y_val go together"):
        ours.fit(X, y, X_val=X)
    with pytest.raises(ValueError, match="X_val has 40 rows, y_val has 39"):
        ours.fit(X, y, X_val=X[80:], y_val=y[81:])


class Watch(nf.Callback):
    """Notes what it sees, and ends training after an epoch."""

    def __init__(self, last: int) -> None:
        self.last, self.seen = last, []

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.seen.append((epoch, dict(logs)))
        self.model.stop_training = epoch == self.last


def test_callbacks_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = problem("classes")
    watch = Watch(3)
    ours = ours_of("classes", callbacks=[watch], max_iter=10, early_stopping=True, progress_bar=True)
    ours.fit(X, y)
    assert ours.n_iter_ == len(ours.loss_curve_) == 3
    assert [epoch for epoch, _ in watch.seen] == [1, 2, 3]
    assert watch.seen[-1][1].keys() == {"loss", "val_loss", "val_score", "lr"}
    assert [logs["loss"] for _, logs in watch.seen] == ours.loss_curve_
    assert "loss" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [{}, {"solver": "sgd", "learning_rate": "invscaling"}, {"optimizer": "nadam"}])
def test_exact_warm_start(arguments: dict[str, Any]) -> None:
    """Two fits of three epochs are one of six; scikit-learn's own start the optimizer anew."""
    X, y = problem("classes")
    whole = ours_of("classes", **arguments, shuffle=False, max_iter=6)
    whole.fit(X, y)
    for kind, equal in (("exact", True), (True, False)):
        parts = ours_of("classes", **arguments, shuffle=False, max_iter=3, warm_start=kind)
        parts.fit(X, y).fit(X, y)
        assert len(parts.loss_curve_) == 6
        assert np.allclose(parts.loss_curve_, whole.loss_curve_, rtol=1e-9, atol=0) is equal


def test_warnings_are_theirs() -> None:
    X, y = problem("classes")
    for estimator in both("classes", batch_size=1000, max_iter=2):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            estimator.fit(X, y)
        assert sorted(w.category.__name__ for w in seen) == ["ConvergenceWarning", "UserWarning"]
        assert any("larger than sample size" in str(w.message) for w in seen)
        assert any(issubclass(w.category, ConvergenceWarning) for w in seen)


def test_weights_that_diverge() -> None:
    X, y = problem("value")
    for estimator in both("value", solver="sgd", learning_rate_init=1e6, activation="identity", max_iter=20):
        with pytest.raises(ValueError, match="non-finite parameter weights"), np.errstate(all="ignore"):
            estimator.fit(1e3 * X, y)
