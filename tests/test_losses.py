"""Every loss: gradient, parity and weights through ``check_loss``; which targets are taken; a loss of one's own."""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf
from nnfast import losses
from nnfast.losses import Loss, class_labels
from nnfast.testing import check_gradient, check_loss
from tests.cases import LOSSES, Chain

WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.0])


# ---- values and gradients ----------------------------------------------------------------------------------
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss(any_backend, name, weighted):
    case = LOSSES[name]
    weight = WEIGHTS if weighted else None
    check_loss(case.loss, case.pred, case.true, sample_weight=weight, backends=[any_backend])


def test_every_loss_has_a_case():
    assert {type(losses.get(case.loss)) for case in LOSSES.values()} == set(losses.TABLE.values())


class Quartic(Loss):
    """A loss as a user writes one: per element, with plain array operations."""

    def value(self, y_pred, y_true):
        return (y_pred - y_true) ** 4

    def gradient(self, y_pred, y_true):
        return 4.0 * (y_pred - y_true) ** 3


class SquaredDistance(Loss):
    """One number per row, and a link, so that a last sigmoid is left out in training."""

    link = "sigmoid"

    def value(self, y_pred, y_true):
        return ((y_pred - y_true) ** 2).sum(axis=1)

    def gradient(self, y_pred, y_true):
        return 2.0 * (y_pred - y_true)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("loss", [Quartic(), SquaredDistance()], ids=repr)
def test_loss_of_a_user(any_backend, rng, loss, weighted):
    pred, true = rng.standard_normal((2, 7, 3))
    check_loss(loss, pred, true, sample_weight=WEIGHTS if weighted else None, backends=[any_backend])


def test_loss_of_a_user_in_training(any_backend, rng):
    x = rng.standard_normal((20, 2))
    y = x @ [0.5, -0.25]
    model = nf.Sequential([nf.Dense(4, "tanh"), nf.Dense(1)])
    history = model.fit(x, y, loss=Quartic, optimizer=nf.Adam(0.05), epochs=30, seed=0, device=any_backend, verbose=0)
    assert history["loss"][-1] < 0.1 * history["loss"][0]
    twin = nf.Sequential([nf.Dense(4, "tanh"), nf.Dense(1)])
    expected = twin.fit(x, y, loss=Quartic, optimizer=nf.Adam(0.05), epochs=30, seed=0, device="numpy", verbose=0)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-3)


@pytest.mark.parametrize("method", ["value", "gradient"])
def test_loss_of_a_user_with_a_wrong_shape(backend, method):
    wrong = type("Wrong", (Quartic,), {method: lambda self, p, t: (p - t).sum(axis=0)})
    model = nf.Sequential([nf.Dense(3)])
    with pytest.raises(ValueError, match=rf"Wrong\.{method} must have shape .*\(5, 3\), it has \(3,\)"):
        model.fit(np.ones((5, 2)), np.ones((5, 3)), loss=wrong, device=backend, verbose=0)


def test_what_a_user_forgot_is_named():
    with pytest.raises(NotImplementedError, match="Loss does not define gradient"):
        Loss().gradient(1, 2)


@pytest.mark.parametrize(
    ("link", "loss", "units"), [("softmax", "cross_entropy", 3), ("sigmoid", "binary_cross_entropy", 2)]
)
@pytest.mark.parametrize("own_layer", [False, True])
def test_a_model_that_ends_in_the_link_is_trained_from_the_logits(backend, rng, link, loss, units, own_layer):
    x = 5.0 * rng.standard_normal((6, 4))
    y = rng.integers(0, 3, 6) if loss == "cross_entropy" else rng.integers(0, 2, (6, 2))
    ending = [nf.Dense(units), nf.Activation(link)] if own_layer else [nf.Dense(units, link)]
    linked = Chain(ending, x, y, loss, backend)
    plain = Chain([nf.Dense(units, initializer="glorot_uniform")], x, y, loss, backend)
    linked.params.set_vector(plain.params.vector())
    assert linked.step() == plain.step()
    np.testing.assert_array_equal(linked.gradient(), plain.gradient())
    check_gradient(linked.loss_at, linked.gradient(), linked.params.vector())


@pytest.mark.parametrize("ending", [[nf.Dense(3, "tanh")], [nf.Dense(3), nf.Activation("tanh")]], ids=str)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", SquaredDistance()], ids=str)
def test_any_other_last_activation_stays(backend, rng, ending, loss):
    x, W = rng.standard_normal((6, 4)), rng.standard_normal((4, 3))
    y = rng.integers(0, 3, 6) if loss == "cross_entropy" else rng.standard_normal((6, 3))
    chain = Chain(ending, x, y, loss, backend)
    chain.params.set_vector(np.append(W, np.zeros(3)))
    outputs = np.tanh(x @ W)
    if loss == "cross_entropy":
        expected = np.mean(np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(6), y])
    else:
        expected = np.mean((outputs - y) ** 2) * (1 if loss == "mse" else 3)
    assert chain.step() == pytest.approx(expected, rel=1e-12)
    check_gradient(chain.loss_at, chain.gradient(), chain.params.vector())


def test_saturated_logits_lose_nothing(backend):
    """From probabilities, log(0) would be infinite here."""
    for activation, loss, y, expected in (
        ("softmax", "cross_entropy", [1], 1000.0),
        ("sigmoid", "binary_cross_entropy", [[0, 1]], 500.0),
    ):
        model = nf.Sequential([nf.Dense(2, activation, initializer=lambda shape, rng: np.eye(2))]).build(2)
        assert model.evaluate([[500.0, -500.0]], y, loss=loss, device=backend)["loss"] == expected


# ---- targets -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "bool", "float32", "float64"])
def test_labels_of_any_type(dtype):
    y = np.array([0, 1, 1], dtype)
    for shape in ((3,), (3, 1)):
        target = losses.get("cross_entropy").targets(y.reshape(shape), (2 + (shape == (3,)),), np.float32)
        assert target.dtype == np.int64
        assert target.tolist() == [0, 1, 1]


@pytest.mark.parametrize("y", [np.eye(3, dtype=int), np.eye(3, dtype=bool), np.eye(3, dtype=np.float16)])
def test_one_hot_of_any_type(y):
    target = losses.get("cross_entropy").targets(y, (3,), np.float32)
    assert target.dtype == np.float32
    np.testing.assert_array_equal(target, np.eye(3))


@pytest.mark.parametrize(
    ("shape", "out_shape", "expected"),
    [
        ((5,), (1,), (5, 1)),
        ((5, 1), (1,), (5, 1)),
        ((5, 2, 3), (2, 3), (5, 6)),
        ((0,), (1,), (0, 1)),
        ((0, 2), (2,), (0, 2)),
    ],
    ids=str,
)
def test_shapes_of_targets(shape, out_shape, expected):
    target = losses.get("mse").targets(np.zeros(shape), out_shape, np.float32)
    assert target.shape == expected
    assert target.dtype == np.float32


@pytest.mark.parametrize(
    ("loss", "y", "out_shape", "error", "match"),
    [
        ("mse", np.zeros((4, 2)), (3,), ValueError, r"MeanSquaredError: targets of shape \(4, 2\) .*output \(n, 3\)"),
        ("mse", np.zeros(4), (3,), ValueError, r"targets of shape \(4,\)"),
        ("mae", np.array(["a", "b"]), (1,), TypeError, r"MeanAbsoluteError: targets must be numbers, not <U1"),
        ("huber", np.array([1j]), (1,), TypeError, r"Huber: targets must be numbers, not complex128"),
        ("mse", np.array([0.0, np.nan]), (1,), ValueError, r"contain NaN or infinity.*, first in row 1"),
        ("mse", np.array([[0.0, np.inf]]), (2,), ValueError, r"contain NaN or infinity.*, first in row 0"),
        ("bce", np.array([0.0, 1.5]), (1,), ValueError, r"must be in \[0, 1\], row 1 has 1.5; .*cross_entropy"),
        ("bce", np.array([[0, -1]]), (2,), ValueError, r"must be in \[0, 1\], row 0 has -1"),
        ("poisson", np.array([1, -2]), (1,), ValueError, r"Poisson: targets must not be negative, the smallest is -2"),
        ("hinge", np.array([1, 2]), (1,), ValueError, r"Hinge: targets must be -1 and 1, or 0 and 1; found \[1. 2.\]"),
        ("hinge", np.array([0.5]), (1,), ValueError, r"Hinge: targets must be"),
        ("cross_entropy", np.array([0, -1]), (3,), ValueError, r"class labels must be in 0..2, row 1 has -1"),
        ("cross_entropy", np.array([3, 0]), (3,), ValueError, r"class labels must be in 0..2, row 0 has 3"),
        ("cross_entropy", np.array([2**63], np.uint64), (3,), ValueError, r"class labels must be in 0..2"),
        ("cross_entropy", np.array([0.0, 0.5]), (3,), ValueError, r"must be whole numbers, row 1 has 0.5"),
        ("cross_entropy", np.array([0.0, np.nan]), (3,), ValueError, r"must be whole numbers, row 1 has nan"),
        ("cross_entropy", np.array(["cat", "dog"]), (3,), TypeError, r"class labels must be integers, .*encode names"),
        ("cross_entropy", np.zeros((2, 2)), (3,), ValueError, r"\(2, 2\) are neither \(n,\) nor \(n, 3\)"),
        ("cross_entropy", np.array([[0.5, -0.5, 1.0]]), (3,), ValueError, r"soft targets must not be negative"),
        ("cross_entropy", np.array([[0.5, np.nan, 1.0]]), (3,), ValueError, r"NaN or infinity.*, first in row 0"),
        ("cross_entropy", np.zeros(2), (1,), ValueError, r"needs one output per class, .*binary_cross_entropy"),
        ("cross_entropy", np.zeros(2), (2, 3), ValueError, r"shape \(2,\) are neither \(n, 2\) nor \(n, 2, 3\)"),
        ("cross_entropy", np.zeros(2), (), ValueError, r"output must be \(n, classes\), it is \(n,\)"),
    ],
)
def test_bad_targets(loss, y, out_shape, error, match):
    with pytest.raises(error, match=match):
        losses.get(loss).targets(y, out_shape, np.float32)


@pytest.mark.parametrize("bad", [-1, 4, 0.5])
def test_bad_labels_are_found_before_a_step_on_every_backend(any_backend, bad):
    model = nf.Sequential([nf.Dense(3)]).build(2, seed=0)
    before = model.get_weights()
    with pytest.raises(ValueError, match="class labels"):
        model.fit(np.ones((3, 2)), [0, 1, bad], loss="cross_entropy", device=any_backend, verbose=0)
    with pytest.raises(ValueError, match="class labels"):
        model.evaluate(np.ones((3, 2)), [0, 1, bad], loss="cross_entropy", device=any_backend)
    for name, value in model.get_weights().items():
        np.testing.assert_array_equal(value, before[name])


def test_class_labels_are_not_copied():
    y = np.array([0, 1, 2])
    assert class_labels(y, 3) is y


# ---- weights -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["mean_squared_error", "cross_entropy", "cross_entropy, soft"])
def test_weights_that_sum_to_zero(any_backend, name):
    """A batch may hold nothing but rows of weight 0: loss and gradient are 0, not NaN."""
    case = LOSSES[name]
    chain = Chain([nf.Dense(case.pred.shape[1])], case.pred, case.true, case.loss, any_backend, weight=np.zeros(7))
    assert chain.step() == 0.0
    np.testing.assert_array_equal(chain.gradient(), 0.0)


@pytest.mark.parametrize("class_weight", [{0: 2.0, 2: 0.5}, "balanced"])
def test_class_weight_is_a_factor_on_rows(backend, rng, class_weight):
    x, y = rng.standard_normal((9, 2)), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    factors = {0: 9 / 12, 1: 9 / 9, 2: 9 / 6} if class_weight == "balanced" else {0: 2.0, 1: 1.0, 2: 0.5}
    own = rng.random(9)
    arguments = {
        "loss": "cross_entropy",
        "optimizer": nf.SGD(0.5),
        "epochs": 2,
        "batch_size": 4,
        "seed": 0,
        "device": backend,
        "verbose": 0,
    }
    model, twin = nf.Sequential([nf.Dense(3)]), nf.Sequential([nf.Dense(3)])
    model.fit(x, y, class_weight=class_weight, sample_weight=own, **arguments)
    twin.fit(x, y, sample_weight=own * [factors[int(label)] for label in y], **arguments)
    np.testing.assert_array_equal(model.get_flat_weights(), twin.get_flat_weights())


@pytest.mark.parametrize(
    ("weights", "error", "match"),
    [
        ({"sample_weight": [1.0, 2.0]}, ValueError, r"sample_weight must have shape \(3,\), got \(2,\)"),
        ({"sample_weight": [1.0, -1.0, 1.0]}, ValueError, r"sample_weight must not be negative, row 1 has -1"),
        ({"sample_weight": [1.0, np.nan, 1.0]}, ValueError, r"sample_weight contains nan at row 1"),
        ({"sample_weight": [0.0, 0.0, 0.0]}, ValueError, r"sample_weight is zero for every row"),
        ({"sample_weight": ["a", "b", "c"]}, TypeError, r"sample_weight must hold real numbers"),
        ({"class_weight": "even"}, ValueError, r"class_weight must be a dict or 'balanced', got 'even'"),
        ({"class_weight": [1.0, 2.0]}, TypeError, r"class_weight must be a dict or 'balanced', not list"),
        ({"class_weight": {0: -1.0}}, ValueError, r"class_weight\[0\] must be finite and not negative, got -1"),
    ],
)
def test_bad_weights(weights, error, match):
    with pytest.raises(error, match=match):
        nf.Sequential([nf.Dense(2)]).fit(
            np.ones((3, 2)), [0, 1, 1], loss="cross_entropy", device="numpy", verbose=0, **weights
        )


def test_class_weight_needs_classes():
    with pytest.raises((ValueError, TypeError), match="class_weight"):
        nf.Sequential([nf.Dense(1)]).fit(
            np.ones((3, 2)), [0.0, 1.5, 2.0], loss="mse", device="numpy", verbose=0, class_weight={0: 2.0}
        )


# ---- looking one up ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("MSE", nf.MeanSquaredError),
        ("mae", nf.MeanAbsoluteError),
        (" cross_entropy ", nf.CrossEntropy),
        ("sparse_categorical_crossentropy", nf.CrossEntropy),
        (nf.Huber, nf.Huber),
        (nf.Huber(2.0), nf.Huber),
    ],
    ids=str,
)
def test_get(spec, kind):
    assert type(losses.get(spec)) is kind


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: losses.get("cross"), ValueError, r"unknown loss 'cross'; known are mean_squared_error, .*hinge"),
        (lambda: losses.get(3), TypeError, r"loss must be a name or a Loss, not int"),
        (lambda: nf.Huber(0.0), ValueError, r"Huber: delta must be positive and finite, got 0.0"),
        (lambda: nf.Huber(float("inf")), ValueError, r"Huber: delta"),
        (lambda: nf.CrossEntropy(1.0), ValueError, r"CrossEntropy: label_smoothing must be in \[0, 1\), got 1.0"),
        (lambda: nf.CrossEntropy(-0.1), ValueError, r"label_smoothing"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("name", LOSSES)
def test_config_round_trip(name):
    loss = losses.get(LOSSES[name].loss)
    again = losses.TABLE[losses.name_of(loss)](**loss.config())
    assert (type(again), again.config(), repr(again)) == (type(loss), loss.config(), repr(loss))


@pytest.mark.parametrize("device", ["numpy", "numba"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_class_for_each_step_of_a_sequence(device, weighted):
    """The mean over all steps, as of so many rows; a row's weight counts for each of its steps."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((6, 5, 4)), rng.integers(0, 3, (6, 5))
    weight = np.arange(6) % 3 + 0.5 if weighted else None
    options = {"loss": "cross_entropy", "optimizer": nf.SGD(0.1), "epochs": 3, "seed": 0, "dtype": "float64"}
    steps = nf.Sequential([nf.Dense(3)])
    flat = nf.Sequential([nf.Dense(3)])
    of_steps = None if weight is None else np.repeat(weight, 5)
    options |= {"shuffle": False, "verbose": 0}
    found = steps.fit(X, y, batch_size=2, sample_weight=weight, device=device, **options)
    want = flat.fit(X.reshape(-1, 4), y.reshape(-1), batch_size=10, sample_weight=of_steps, device="numpy", **options)
    np.testing.assert_allclose(found["loss"], want["loss"], rtol=1e-12)
    np.testing.assert_allclose(steps.get_flat_weights(), flat.get_flat_weights(), rtol=1e-10, atol=1e-12)
    logs = steps.evaluate(X, y, metrics=["accuracy"])
    assert logs["accuracy"] == pytest.approx((steps.predict(X).argmax(axis=-1) == y).mean())
    with pytest.raises(ValueError, match="each row has a class for every step"):
        steps.fit(X, y, class_weight={0: 2.0}, verbose=0)
