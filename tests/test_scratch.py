"""The from-scratch drop-in against the class that the tutorials write, on every backend that is here."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from nnfast.errors import NonFiniteError
from nnfast.scratch import NeuralNetwork

XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
TARGET = np.array([[0], [1], [1], [0]])
PARAMETERS = ("weights_1", "bias_1", "weights_2", "bias_2")
ACTIVATIONS = ("z_1", "a_1", "z_2", "a_2")


class Tutorial:
    """Plain NumPy, from the formulas: standard-normal weights, zero biases, two layers of sigmoids."""

    def __init__(self, input_size, hidden_size, output_size):
        self.weights_1 = np.random.standard_normal((input_size, hidden_size))  # noqa: NPY002
        self.bias_1 = np.zeros((1, hidden_size))
        self.weights_2 = np.random.standard_normal((hidden_size, output_size))  # noqa: NPY002
        self.bias_2 = np.zeros((1, output_size))

    def sigmoid(self, z):
        return 1.0 / (1.0 + np.exp(-z))

    def sigmoid_derivative(self, z):
        return self.sigmoid(z) * (1.0 - self.sigmoid(z))

    def feedforward(self, X):
        self.z_1 = np.dot(X, self.weights_1) + self.bias_1
        self.a_1 = self.sigmoid(self.z_1)
        self.z_2 = np.dot(self.a_1, self.weights_2) + self.bias_2
        self.a_2 = self.sigmoid(self.z_2)
        return self.a_2

    def backpropagation(self, X, y, learning_rate):
        delta_2 = (y - self.a_2) * self.sigmoid_derivative(self.z_2)
        delta_1 = np.dot(delta_2, self.weights_2.T) * self.sigmoid_derivative(self.z_1)
        self.weights_2 += learning_rate * np.dot(self.a_1.T, delta_2)
        self.bias_2 += learning_rate * np.sum(delta_2, axis=0, keepdims=True)
        self.weights_1 += learning_rate * np.dot(X.T, delta_1)
        self.bias_1 += learning_rate * np.sum(delta_1, axis=0, keepdims=True)

    def train(self, X, y, epochs, learning_rate):
        losses = []
        for _ in range(epochs):
            output = self.feedforward(X)
            self.backpropagation(X, y, learning_rate)
            losses.append(np.mean((y - output) ** 2))
        return losses


@pytest.fixture
def device(any_backend):
    """Each CPU backend, the emulated CUDA device and a real one."""
    return any_backend


def pair(device, sizes=(2, 4, 1), seed=0, dtype="float64"):
    """The tutorial's network and ours, with equal weights."""
    np.random.seed(seed)  # noqa: NPY002
    reference = Tutorial(*sizes)
    net = NeuralNetwork(*sizes, device=device, dtype=dtype)
    for name in PARAMETERS:
        setattr(net, name, getattr(reference, name))
    return reference, net


def assert_equal_state(net, reference, names=PARAMETERS + ACTIVATIONS, **tolerance):
    for name in names:
        ours, theirs = getattr(net, name), getattr(reference, name)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, err_msg=name, **tolerance)


def test_a_thousand_epochs_of_xor(device):
    reference, net = pair(device)
    start = net.weights_1.copy()
    losses = reference.train(XOR, TARGET, 1000, 0.5)
    net.train(XOR, TARGET, 1000, 0.5, verbose=0)
    assert_equal_state(net, reference, rtol=0, atol=1e-9)
    assert np.abs(net.weights_1 - start).max() > 0.1
    assert np.mean((TARGET - net.feedforward(XOR)) ** 2) < losses[0]


@pytest.mark.parametrize("sizes", [(3, 1, 1), (5, 17, 3), (1, 2, 20)])
def test_other_sizes(device, sizes):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(33, sizes[0])), rng.uniform(size=(33, sizes[2]))
    reference, net = pair(device, sizes)
    reference.train(X, y, 50, 0.02)
    net.train(X, y, 50, 0.02, verbose=0)
    assert_equal_state(net, reference, rtol=1e-9, atol=1e-11)


def test_by_hand(device):
    """feedforward and backpropagation called one by one, with other rows each time, and train between."""
    rng = np.random.default_rng(2)
    reference, net = pair(device, (3, 5, 2))
    for n, rate in ((7, 0.3), (2, 0.1), (7, 0.2)):
        X, y = rng.normal(size=(n, 3)), rng.uniform(size=(n, 2))
        np.testing.assert_allclose(net.feedforward(X), reference.feedforward(X), rtol=1e-12)
        assert_equal_state(net, reference, ACTIVATIONS, rtol=1e-12)
        for _ in range(2):  # the second from the activations of before the first
            net.backpropagation(X, y, rate)
            reference.backpropagation(X, y, rate)
        assert_equal_state(net, reference, rtol=1e-10, atol=1e-12)
        net.train(X, y, 3, rate, verbose=0)
        reference.train(X, y, 3, rate)
        assert_equal_state(net, reference, rtol=1e-10, atol=1e-12)


def test_edited_activations_are_used(device):
    reference, net = pair(device, (2, 3, 1))
    for each in (reference, net):
        each.feedforward(XOR)
        each.z_1 = each.z_1 + 0.5
        each.a_2 = each.a_2 * 0.5
        each.backpropagation(XOR, TARGET, 0.7)
    assert_equal_state(net, reference, rtol=1e-11)


def test_parameters_can_be_assigned_between_runs(device):
    _, net = pair(device)
    net.train(XOR, TARGET, 5, 0.5, verbose=0)
    np.random.seed(9)  # noqa: NPY002
    fresh = Tutorial(2, 4, 1)
    for name in PARAMETERS:
        setattr(net, name, getattr(fresh, name))
    fresh.train(XOR, TARGET, 5, 0.25)
    net.train(XOR, TARGET, 5, 0.25, verbose=0)
    assert_equal_state(net, fresh, rtol=1e-12, atol=1e-14)


def test_float32(device):
    reference, net = pair(device, dtype="float32")
    reference.train(XOR, TARGET, 100, 0.5)
    net.train(XOR, TARGET, 100, 0.5, verbose=0)
    assert_equal_state(net, reference, rtol=1e-4, atol=1e-5)
    assert net.weights_1.dtype == net.a_2.dtype == net.feedforward(XOR).dtype == np.float32


def test_printed_lines(device, capsys):
    reference, net = pair(device)
    losses = reference.train(XOR, TARGET, 7, 0.5)
    net.train(XOR, TARGET, 7, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[0] for line in lines] == [f"Epoch {n}" for n in range(1, 8)]
    np.testing.assert_allclose([float(line.split("Loss: ")[1]) for line in lines], losses, rtol=1e-12)


@pytest.mark.parametrize(("verbose", "epochs"), [(0, []), (3, [3, 6, 9]), (10, [10]), (True, list(range(1, 11)))])
def test_verbose(verbose, epochs, capsys):
    net = NeuralNetwork(2, 3, 1, device="numpy", seed=0)
    net.train(XOR, TARGET, 10, 0.5, verbose=verbose)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split(", ")[0].removeprefix("Epoch ")) for line in lines] == epochs


def test_verbose_does_not_change_the_training(capsys):
    nets = [NeuralNetwork(2, 3, 1, device="numpy", seed=0) for _ in range(3)]
    for net, verbose in zip(nets, (0, 1, 7), strict=True):
        net.train(XOR, TARGET, 50, 0.5, verbose=verbose)
    for net in nets[1:]:
        np.testing.assert_array_equal(net.weights_1, nets[0].weights_1)


def test_initial_weights():
    np.random.seed(3)  # noqa: NPY002
    reference = Tutorial(4, 6, 2)
    np.random.seed(3)  # noqa: NPY002
    assert_equal_state(NeuralNetwork(4, 6, 2), reference, PARAMETERS, rtol=0)
    a, b, c = (NeuralNetwork(4, 600, 20, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.weights_1, b.weights_1)
    assert not np.array_equal(a.weights_1, c.weights_1)
    assert a.weights_2.std() == pytest.approx(1.0, abs=0.03)
    assert not a.bias_1.any()
    assert a.bias_1.shape == (1, 600)


def test_one_seed_gives_the_same_weights_everywhere(device):
    a, b = NeuralNetwork(4, 60, 20, seed=1, device="numpy"), NeuralNetwork(4, 60, 20, seed=1, device=device)
    for name in PARAMETERS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_results_are_the_callers_own():
    net = NeuralNetwork(2, 3, 1, device="numpy", seed=0)
    first = net.feedforward(XOR)
    kept, a_1 = first.copy(), net.a_1
    a_1_kept = a_1.copy()
    first += 1.0
    np.testing.assert_array_equal(net.a_2, kept)
    net.feedforward(1 - XOR)
    np.testing.assert_array_equal(a_1, a_1_kept)
    with pytest.raises(ValueError, match="read-only"):
        net.a_1[0, 0] = 1.0


def test_weights_can_be_changed_in_place_on_the_cpu():
    reference, net = pair("numpy", (2, 3, 1))
    for each in (reference, net):
        each.weights_1 *= 2.0
        each.bias_2[0, 0] = 0.75
        each.feedforward(XOR)
    assert_equal_state(net, reference, rtol=1e-13)


def test_one_sample_and_one_output():
    reference, net = pair("numpy")
    np.testing.assert_allclose(net.feedforward(np.array([0, 1])), reference.feedforward(np.array([0, 1])), rtol=1e-13)
    flat, column = (pair("numpy")[1] for _ in range(2))
    flat.train(XOR, TARGET[:, 0], 5, 0.5, verbose=0)
    column.train(XOR, TARGET, 5, 0.5, verbose=0)
    np.testing.assert_array_equal(flat.weights_1, column.weights_1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_independent(backend, duplicate):
    _, net = pair(backend.device)
    net.train(XOR, TARGET, 3, 0.5, verbose=0)
    kept = net.weights_1.copy()
    twin = duplicate(net)
    twin.train(XOR, TARGET, 4, 0.5, verbose=0)
    np.testing.assert_array_equal(net.weights_1, kept)
    net.train(XOR, TARGET, 4, 0.5, verbose=0)
    np.testing.assert_array_equal(net.weights_1, twin.weights_1)
    assert repr(twin) == repr(net)


def test_inputs_are_not_changed(device):
    _, net = pair(device)
    X, y = np.asfortranarray(XOR.astype(np.float32)), TARGET.astype(np.int8)
    kept_x, kept_y = X.copy(), y.copy()
    X.flags.writeable = y.flags.writeable = False
    net.train(X, y, 3, 0.5, verbose=0)
    np.testing.assert_array_equal(X, kept_x)
    np.testing.assert_array_equal(y, kept_y)
    twin = pair(device)[1]
    twin.train(XOR, TARGET, 3, 0.5, verbose=0)
    np.testing.assert_array_equal(net.weights_1, twin.weights_1)


def test_zero_rate_and_zero_epochs_change_nothing(device):
    reference, net = pair(device)
    net.train(XOR, TARGET, 20, 0.0, verbose=0)
    assert_equal_state(net, reference, PARAMETERS, rtol=0)
    net.train(XOR, TARGET, 0, 0.5)
    assert_equal_state(net, reference, PARAMETERS, rtol=0)


def test_a_step_that_is_not_finite(device):
    _, net = pair(device)
    net.train(XOR, TARGET, 2, 0.5, verbose=0)
    net.weights_2 = np.full((4, 1), 1e-3)
    with pytest.raises(NonFiniteError, match=r"in epoch 1;.*smaller learning_rate") as caught:
        net.train(XOR, TARGET, 5, 1e308, verbose=0)
    assert caught.value.step == 1
    for name in PARAMETERS:
        assert np.isfinite(getattr(net, name)).all()
    net.feedforward(XOR)
    with pytest.raises(NonFiniteError, match="in step 1"):
        net.backpropagation(XOR, TARGET, 1e308)
    net.train(XOR, TARGET, 2, 0.5, verbose=0)  # it goes on from there


def make(*args, **kwargs):
    return lambda: NeuralNetwork(*args, device="numpy", **kwargs)


@pytest.fixture
def net():
    return NeuralNetwork(2, 3, 2, device="numpy", seed=0)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (make(2, 0, 1), ValueError, "hidden_size must be at least 1, got 0"),
        (make(2.0, 3, 1), TypeError, "input_size must be an int, not float"),
        (make(2, 3, True), TypeError, "output_size must be an int, not bool"),
        (make(2, 3, 1, dtype="int32"), ValueError, "float64 or float32, got int32"),
        (lambda: NeuralNetwork(2, 3, 1, device="gpu"), ValueError, "'gpu'"),
    ],
)
def test_bad_construction(build, error, match):
    with pytest.raises(error, match=match):
        build()


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (np.zeros((4, 3)), ValueError, r"X must have shape \(n, 2\), got \(4, 3\)"),
        (np.zeros(3), ValueError, r"X must have shape \(n, 2\), got \(3,\)"),
        (np.zeros((2, 2, 2)), ValueError, r"got \(2, 2, 2\)"),
        (np.zeros((0, 2)), ValueError, "X is empty"),
        (np.array([[np.nan, 0.0]]), ValueError, "X holds NaN"),
        (np.array([["a", "b"]]), TypeError, "X must hold real numbers, not dtype"),
        (np.zeros((1, 2), complex), TypeError, "complex128"),
    ],
)
def test_bad_input(net, X, error, match):
    with pytest.raises(error, match=match):
        net.feedforward(X)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((XOR, np.zeros((4, 1)), 1, 0.1), ValueError, r"y must have shape \(n, 2\), got \(4, 1\)"),
        ((XOR, np.zeros((3, 2)), 1, 0.1), ValueError, "X has 4 rows and y has 3"),
        ((XOR, np.full((4, 2), np.inf), 1, 0.1), ValueError, "y holds NaN or infinite"),
        ((XOR, np.zeros((4, 2)), -1, 0.1), ValueError, "epochs must not be negative"),
        ((XOR, np.zeros((4, 2)), 1.5, 0.1), TypeError, "epochs must be an int, not float"),
        ((XOR, np.zeros((4, 2)), 1, np.nan), ValueError, "learning_rate must be finite"),
        ((XOR, np.zeros((4, 2)), 1, 0.1, -1), ValueError, "verbose must not be negative"),
    ],
)
def test_bad_training(net, arguments, error, match):
    kept = net.weights_1.copy()
    with pytest.raises(error, match=match):
        net.train(*arguments)
    np.testing.assert_array_equal(net.weights_1, kept)


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        ("weights_1", np.zeros((3, 2)), ValueError, r"weights_1 has shape \(2, 3\), got \(3, 2\)"),
        ("bias_1", np.zeros(3), ValueError, r"bias_1 has shape \(1, 3\), got \(3,\)"),
        ("weights_2", np.full((3, 2), np.nan), ValueError, "weights_2 must be finite"),
        ("bias_2", np.array([["a", "b"]]), TypeError, "bias_2 must hold real numbers"),
        ("a_1", np.zeros((4, 3)), AttributeError, "a_1 is there after feedforward"),
    ],
)
def test_bad_assignment(net, name, value, error, match):
    with pytest.raises(error, match=match):
        setattr(net, name, value)


def test_order_of_calls(net):
    with pytest.raises(AttributeError, match="z_1 is there after feedforward"):
        _ = net.z_1
    assert not hasattr(net, "a_2")
    with pytest.raises(RuntimeError, match="feedforward"):
        net.backpropagation(XOR, np.zeros((4, 2)), 0.1)
    net.feedforward(XOR)
    with pytest.raises(ValueError, match="X has 2 rows, the last feedforward had 4"):
        net.backpropagation(XOR[:2], np.zeros((2, 2)), 0.1)
    with pytest.raises(ValueError, match=r"a_1 has shape \(4, 3\), got \(4, 4\)"):
        net.a_1 = np.zeros((4, 4))


def test_a_change_in_place_is_never_lost_in_silence(device):
    _, net = pair(device)
    weights = net.weights_1
    if weights.flags.writeable:
        weights[0, 0] = 7.0
        assert net.weights_1[0, 0] == 7.0
    else:
        with pytest.raises(ValueError, match="read-only"):
            weights[0, 0] = 7.0
