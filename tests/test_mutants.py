"""Tests of the tests: each way to break a forward or backward pass on purpose must be noticed by the checks.

Mutants of the reference itself have to be caught by the gradient check against differences; the same fault on another
backend has to be caught by the parity check.
"""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf
from nnfast import devices
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.testing import check_layer, check_loss, check_optimizer
from tests.cases import LOSSES
from tests.mutants import LAYER_MUTANTS, LOSS_MUTANTS, OPTIMIZER_MUTANTS, PARITY_LOSS_MUTANTS

ORIGINAL = NumpyBackend


def named(mutants):
    return [pytest.param(*row, id=f"{row[0].__name__}-{number}") for number, row in enumerate(mutants)]


@pytest.fixture
def become_the_reference(monkeypatch):
    """Lets ``numpy`` stand for a mutant, so that nothing but differences can tell."""

    def become(mutant):
        devices.get_backend("numpy")
        monkeypatch.setitem(devices._backends, ("numpy", True), mutant())
        assert type(devices.get_backend("numpy")) is mutant

    return become


@pytest.mark.parametrize(("mutant", "case"), named(LAYER_MUTANTS))
def test_layer_mutant_of_the_reference(become_the_reference, mutant, case):
    layer, x = case()
    check_layer(layer, x.shape[1:], x=x, backends=[ORIGINAL()])  # the case itself is sound
    become_the_reference(mutant)
    with pytest.raises(AssertionError, match="gradient"):
        check_layer(layer, x.shape[1:], x=x, backends=[])


@pytest.mark.parametrize(("mutant", "case"), named(LAYER_MUTANTS))
def test_layer_mutant_beside_the_reference(mutant, case):
    layer, x = case()
    with pytest.raises(AssertionError, match=" on numpy, "):
        check_layer(layer, x.shape[1:], x=x, backends=[mutant()])


@pytest.mark.parametrize(("mutant", "name"), named(LOSS_MUTANTS))
def test_loss_mutant_of_the_reference(become_the_reference, mutant, name):
    case = LOSSES[name]
    become_the_reference(mutant)
    with pytest.raises(AssertionError, match=r"gradient|rows of weight k"):
        check_loss(case.loss, case.pred, case.true, backends=[])


@pytest.mark.parametrize(("mutant", "name"), named(PARITY_LOSS_MUTANTS))
def test_loss_mutant_beside_the_reference(mutant, name):
    case = LOSSES[name]
    weight = np.arange(1.0, 8.0)
    with pytest.raises(AssertionError, match=" on numpy, "):
        check_loss(case.loss, case.pred, case.true, sample_weight=weight, backends=[mutant()])


@pytest.mark.parametrize(("mutant", "optimizer"), named(OPTIMIZER_MUTANTS))
def test_optimizer_mutant(mutant, optimizer):
    check_optimizer(optimizer, backends=[ORIGINAL()])
    with pytest.raises(AssertionError, match=" on numpy, "):
        check_optimizer(optimizer, backends=[mutant()])


@pytest.mark.parametrize("table", [LAYER_MUTANTS, PARITY_LOSS_MUTANTS, OPTIMIZER_MUTANTS])
def test_an_unchanged_subclass_survives(table):
    """What kills the mutants is the mutation."""

    class Unchanged(NumpyBackend):
        pass

    for _, case in table:
        if isinstance(case, nf.Optimizer):
            check_optimizer(case, backends=[Unchanged()])
        elif callable(case):
            layer, x = case()
            check_layer(layer, x.shape[1:], x=x, backends=[Unchanged()])
        else:
            loss = LOSSES[case]
            check_loss(loss.loss, loss.pred, loss.true, backends=[Unchanged()])


class WrongValue(nf.losses.Loss):
    """Errors in a user's own classes are found as well."""

    def value(self, y_pred, y_true):
        return (y_pred - y_true) ** 2

    def gradient(self, y_pred, y_true):
        return y_pred - y_true


class AllocatingLayer(nf.layers.Layer):
    """Says that it does all its work through the backend, and does not."""

    replayable = True

    def forward(self, bk, x, y):
        bk.copy(x * 2.0, out=y)

    def backward(self, bk, dy, dx):
        if dx is not None:
            bk.copy(dy * 2.0, out=dx)


def test_faults_of_a_user():
    rng = np.random.default_rng(0)
    with pytest.raises(AssertionError, match=r"WrongValue\(\): gradient"):
        check_loss(WrongValue(), *rng.standard_normal((2, 5, 3)), backends=[])
    if nf.available_devices()["numba"] is None:
        # The product is computed once, while the step is recorded
        with pytest.raises(AssertionError, match="AllocatingLayer"):
            check_layer(AllocatingLayer(), (3,), backends=["numba"])
