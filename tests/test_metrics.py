"""Metrics: against scikit-learn with weights and ties, and against counts done by hand."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest

from nnfast import metrics


@pytest.fixture
def sk():
    return pytest.importorskip("sklearn.metrics")


def case(classes, weighted, seed=0, n=97):
    """Labels, probabilities with many ties, weights (one of them zero)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    y[:classes] = np.arange(classes)
    raw = rng.integers(1, 5, (n, classes)) + 2.0 * (np.arange(classes) == y[:, None])
    p = raw / raw.sum(axis=1, keepdims=True)
    w = rng.uniform(0.0, 3.0, n) * (np.arange(n) != 5) if weighted else None
    return y, p, w


WEIGHTED = pytest.mark.parametrize("weighted", [False, True])
AVERAGES = ("macro", "micro", "weighted")


@WEIGHTED
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_accuracy(sk, classes, weighted):
    y, p, w = case(classes, weighted)
    expected = sk.accuracy_score(y, p.argmax(axis=1), sample_weight=w)
    assert metrics.accuracy(y, p, w) == pytest.approx(expected, rel=1e-14)
    assert metrics.accuracy(np.eye(classes)[y], p, w) == pytest.approx(expected, rel=1e-14)
    assert metrics.accuracy(y.astype(np.float32), p.astype(np.float32), w) == pytest.approx(expected, rel=1e-14)
    assert metrics.accuracy(y[:, None], p.argmax(axis=1), w) == pytest.approx(expected, rel=1e-14)


@WEIGHTED
@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_top_k(sk, k, weighted):
    y, p, w = case(7, weighted)
    # scikit-learn prefers the last of equal scores; the reversed columns make that the first
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that k = 7 of 7 is always right
        expected = sk.top_k_accuracy_score(6 - y, p[:, ::-1], k=k, sample_weight=w, labels=np.arange(7))
    assert metrics.top_k_accuracy(y, p, w, k=k) == pytest.approx(expected, rel=1e-14)
    assert metrics.get(f"top_{k}_accuracy")(y, p, w) == pytest.approx(expected, rel=1e-14)
    if k == 1:
        assert metrics.top_k_accuracy(y, p, w, k=1) == metrics.accuracy(y, p, w)
    assert metrics.top_k_accuracy(y, p, w, k=70) == 1.0


@WEIGHTED
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_precision_recall_f1(sk, name, average, weighted):
    y, p, w = case(5, weighted)
    p[y == 3] = p[0]  # class 3 is never right
    oracle = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}[name]
    expected = oracle(y, p.argmax(axis=1), average=average, sample_weight=w, zero_division=0.0)
    assert getattr(metrics, name)(y, p, w, average=average) == pytest.approx(expected, rel=1e-13)
    assert metrics.get(f"{name}_{average}")(y, p, w) == pytest.approx(expected, rel=1e-13)
    if average == "macro":
        assert getattr(metrics, name)(y, p, w) == pytest.approx(expected, rel=1e-13)


@WEIGHTED
@pytest.mark.parametrize("shape", ["(n,)", "(n, 1)", "(n, 2)"])
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_binary(sk, name, shape, weighted):
    y, p, w = case(2, weighted)
    predicted = p[:, 1] > 0.5
    oracle = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}[name]
    given = {"(n,)": p[:, 1], "(n, 1)": p[:, 1:], "(n, 2)": p}[shape]
    expected = oracle(y, predicted, sample_weight=w)
    assert getattr(metrics, name)(y, given, w) == pytest.approx(expected, rel=1e-13)
    assert getattr(metrics, name)(y, given, w, average="binary") == pytest.approx(expected, rel=1e-13)
    assert metrics.accuracy(y, given, w) == pytest.approx(sk.accuracy_score(y, predicted, sample_weight=w), rel=1e-14)


def test_classes_that_do_not_occur_are_left_out_of_the_macro_mean(sk):
    y, p, _ = case(3, False)
    wider = np.hstack((p, np.zeros((len(p), 2))))
    expected = sk.f1_score(y, p.argmax(axis=1), average="macro")
    assert metrics.f1(y, wider) == pytest.approx(expected, rel=1e-13)


def test_nothing_predicted_counts_as_zero():
    y, p = np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])
    assert (metrics.precision(y, p), metrics.recall(y, p), metrics.f1(y, p)) == (0.0, 0.0, 0.0)


@WEIGHTED
def test_roc_auc_binary(sk, weighted):
    y, p, w = case(2, weighted)
    assert len(np.unique(p[:, 1])) < 20, "the case needs ties"
    expected = sk.roc_auc_score(y, p[:, 1], sample_weight=w)
    for given in (p, p[:, 1], p[:, 1:]):
        assert metrics.roc_auc(y, given, w) == pytest.approx(expected, rel=1e-13)
    assert metrics.roc_auc(y, np.full(len(y), 0.3), w) == pytest.approx(0.5)


@WEIGHTED
@pytest.mark.parametrize("classes", [3, 6])
def test_roc_auc_one_versus_rest(sk, classes, weighted):
    y, p, w = case(classes, weighted)
    expected = sk.roc_auc_score(y, p, multi_class="ovr", average="macro", sample_weight=w)
    assert metrics.roc_auc(y, p, w) == pytest.approx(expected, rel=1e-13)
    assert metrics.roc_auc(np.eye(classes)[y], p, w) == pytest.approx(expected, rel=1e-13)


def test_roc_auc_keeps_small_scores_apart():
    y = np.array([0, 1, 0, 1])
    assert metrics.roc_auc(y, np.array([1e-30, 2e-30, 1e-20, 2e-20])) == 0.75


def test_roc_auc_without_two_classes_is_nan():
    assert np.isnan(metrics.roc_auc(np.ones(4, int), np.linspace(0, 1, 4)))
    y, p, _ = case(3, False)
    keep = y != 2
    by_hand = np.mean([metrics.roc_auc((y == c)[keep], p[keep, c]) for c in (0, 1)])
    assert metrics.roc_auc(y[keep], p[keep]) == pytest.approx(by_hand)


@WEIGHTED
@pytest.mark.parametrize("outputs", [None, 1, 3])
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("mae", "mean_absolute_error"),
        ("mse", "mean_squared_error"),
        ("rmse", "root_mean_squared_error"),
        ("r2", "r2_score"),
    ],
)
def test_regression(sk, name, oracle, outputs, weighted):
    rng = np.random.default_rng(3)
    shape = (50,) if outputs is None else (50, outputs)
    y = rng.normal(size=shape) * 10 + 3
    p = y + rng.normal(size=shape)
    w = rng.uniform(0.1, 2.0, 50) if weighted else None
    expected = getattr(sk, oracle)(y, p, sample_weight=w)
    assert metrics.get(name)(y, p, w) == pytest.approx(expected, rel=1e-12)
    assert metrics.get(oracle.removesuffix("_score"))(y, p, w) == pytest.approx(expected, rel=1e-12)
    if outputs == 1:
        assert metrics.get(name)(y[:, 0], p, w) == pytest.approx(expected, rel=1e-12)


def test_r2_of_a_constant_target(sk):
    y = np.stack((np.full(5, 2.0), np.arange(5.0)), axis=1)
    for p in (y, y + 0.5):
        assert metrics.r2(y, p) == pytest.approx(sk.r2_score(y, p))
    assert np.isnan(metrics.r2([1.0], [1.0]))


def test_float32_is_accumulated_in_float64():
    y = np.full(3_000_000, 0.1, np.float32)
    assert metrics.mean_absolute_error(y, np.zeros_like(y)) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@WEIGHTED
def test_confusion_matrix(sk, weighted):
    y, p, w = case(4, weighted)
    expected = sk.confusion_matrix(y, p.argmax(axis=1), sample_weight=w)
    np.testing.assert_allclose(metrics.confusion_matrix(y, p, w), expected, rtol=1e-13)
    np.testing.assert_allclose(metrics.confusion_matrix(y, p.argmax(axis=1), w), expected, rtol=1e-13)
    assert metrics.confusion_matrix(y, p.argmax(axis=1), classes=6).shape == (6, 6)
    assert metrics.confusion_matrix([0, 0], np.array([0, 0])).shape == (2, 2)


@pytest.mark.parametrize("name", [*metrics.names(), "top_3_accuracy", "f1_micro"])
def test_a_duplicated_row_equals_weight_two(name):
    rng = np.random.default_rng(8)
    y, p, _ = case(9, False)
    p[::4] = p[::-4][: len(p[::4])]  # some are wrong, so that top-5 is not 1
    if name in {"mae", "mse", "rmse", "r2"}:
        y, p = rng.normal(size=(30, 2)), rng.normal(size=(30, 2))
    twice = rng.integers(1, 3, len(y))
    metric = metrics.get(name)
    repeated = metric(np.repeat(y, twice, axis=0), np.repeat(p, twice, axis=0))
    assert metric(y, p, twice) == pytest.approx(repeated, rel=1e-12)
    assert metric(y, p) != pytest.approx(repeated, rel=1e-6), "the weights made no difference"


@pytest.mark.parametrize("name", metrics.names())
def test_nan_and_zero_weights_give_nan(name):
    y, p = np.array([0, 1, 1, 0]), np.array([0.1, np.nan, 0.3, 0.2])
    metric = metrics.get(name)
    assert np.isnan(metric(y, p))
    assert np.isnan(metric(y, np.nan_to_num(p), np.zeros(4)))


@pytest.mark.parametrize("name", metrics.names())
def test_inputs_are_not_changed_and_may_be_read_only(name):
    y, p, w = case(2, True)
    p = p[:, 1]
    kept = [a.copy() for a in (y, p, w)]
    for a in (y, p, w):
        a.flags.writeable = False
    assert type(metrics.get(name)(y, p, w)) is float
    assert metrics.get(name)(y[::2], p[::2], w[::2]) == metrics.get(name)(y[::2].copy(), p[::2].copy(), w[::2].copy())
    for a, b in zip((y, p, w), kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_get():
    assert metrics.get("top_5_accuracy").name == "top_5_accuracy"
    assert metrics.get("mean_squared_error").name == "mse"
    assert metrics.get(metrics.accuracy) == metrics.get("acc") == metrics.get("Accuracy")
    assert metrics.get("mae").higher_is_better is False
    assert metrics.get("f1").higher_is_better is True
    metric = metrics.get("rmse")
    assert metrics.get(metric) is metric


def test_own_functions():
    def bias(y_true, y_pred):
        return np.mean(y_pred - y_true)

    def weighted_bias(y_true, y_pred, sample_weight=None):
        return np.average(y_pred - y_true, weights=sample_weight)

    y, p, w = np.zeros(3), np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 0.0])
    assert metrics.get(bias).name == "bias"
    assert metrics.get(bias).higher_is_better is None
    assert metrics.get(bias)(y, p, w) == 3.0
    assert metrics.get(weighted_bias)(y, p, w) == 1.5
    assert metrics.get(functools.partial(metrics.f1, average="micro")).name == "f1"


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("acuracy", ValueError, r"unknown metric 'acuracy'; known are accuracy.*r2"),
        ("top_0_accuracy", ValueError, "unknown metric"),
        ("f1_mean", ValueError, "unknown metric"),
        (3, TypeError, "not int"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_bad_spec(spec, error, match):
    with pytest.raises(error, match=match):
        metrics.get(spec)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: metrics.accuracy([0, 1], np.zeros((3, 2))), ValueError, r"2 rows and y_pred 3: \(2,\), \(3, 2\)"),
        (lambda: metrics.accuracy([], np.zeros((0, 2))), ValueError, "no rows"),
        (lambda: metrics.accuracy([0, 3], np.zeros((2, 3))), ValueError, "label 3; with 3 classes they are 0 to 2"),
        (lambda: metrics.accuracy([0, -1], np.zeros(2)), ValueError, "label -1"),
        (lambda: metrics.accuracy([0.5, 1], np.zeros(2)), ValueError, "whole numbers"),
        (lambda: metrics.accuracy([np.nan, 1], np.zeros(2)), ValueError, "whole numbers"),
        (lambda: metrics.accuracy(np.eye(4)[:2], np.zeros((2, 3))), ValueError, "4 columns and y_pred 3 classes"),
        (lambda: metrics.accuracy(np.full((2, 3), np.nan), np.zeros((2, 3))), ValueError, "not finite"),
        (lambda: metrics.accuracy([0, 1], np.zeros((2, 2, 1))), ValueError, r"y_pred must have shape.*\(2, 2, 1\)"),
        (lambda: metrics.accuracy(["a", "b"], np.zeros(2)), TypeError, "y_true must hold real numbers, not dtype"),
        (lambda: metrics.accuracy([0, 1], np.zeros(2, complex)), TypeError, "y_pred must hold real numbers"),
        (lambda: metrics.accuracy([0, 1], np.array([0, -1])), ValueError, "labels from -1 to 0"),
        (lambda: metrics.accuracy([0, 1], np.zeros(2), [1.0]), ValueError, r"shape \(2,\), got \(1,\)"),
        (lambda: metrics.accuracy([0, 1], np.zeros(2), [1.0, -1.0]), ValueError, "not negative"),
        (lambda: metrics.f1([0, 1], np.zeros((2, 3)), average="binary"), ValueError, "two classes, got 3"),
        (lambda: metrics.f1([0, 1], np.zeros(2), average="mean"), ValueError, "got 'mean'"),
        (lambda: metrics.top_k_accuracy([0, 1], np.zeros(2), k=0), ValueError, "at least 1"),
        (lambda: metrics.confusion_matrix([0, 1], [np.nan, 0.0]), ValueError, "NaN"),
        (lambda: metrics.mean_squared_error(np.zeros(3), np.zeros((3, 2))), ValueError, r"\(3, 1\) and \(3, 2\)"),
        (lambda: metrics.r2(np.zeros(3), np.zeros(4)), ValueError, "3 rows and y_pred 4"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
