"""scikit-learn's ``MLPClassifier`` and ``MLPRegressor`` on nnfast's kernels."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from sklearn import neural_network
from sklearn.base import is_classifier
from sklearn.metrics import accuracy_score
from sklearn.utils._param_validation import StrOptions

from ..losses import Loss
from .arrays import host, like
from .on_nnfast import EXTRA_CONSTRAINTS, OnNNFast

__all__ = ["MLPClassifier", "MLPRegressor"]

# Keyword-only arguments beside scikit-learn's, with their defaults
_EXTRAS: dict[str, Any] = {
    "device": "auto",
    "dropout": 0.0,
    "batch_norm": False,
    "class_weight": None,
    "optimizer": None,
    "loss": "log_loss",
    "callbacks": None,
    "progress_bar": False,
}


def _with_extras(cls: Any) -> Any:
    """Give an estimator a constructor with the arguments of its scikit-learn class, of any version, and the extras."""
    parent = cls.__mro__[2].__init__
    signature = inspect.signature(parent)
    extras = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in _EXTRAS.items()
        if name not in signature.parameters and (name != "class_weight" or is_classifier(cls()))
    }
    signature = signature.replace(parameters=[*signature.parameters.values(), *extras.values()])

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        del arguments["self"]
        own = {name: arguments.pop(name) for name in extras}
        parent(self, **arguments)
        vars(self).update(own)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    cls.__init__ = __init__
    return cls


@_with_extras
class MLPClassifier(OnNNFast, neural_network.MLPClassifier):
    """scikit-learn's multi-layer perceptron classifier on nnfast's kernels.

    All arguments, attributes and methods of :class:`sklearn.neural_network.MLPClassifier`, whose documentation holds;
    from equal weights and random numbers it has the same loss curve. Besides:

    Parameters
    ----------
    activation : str or Activation
        Also any other activation of nnfast, see :mod:`nnfast.activations`.
    warm_start : bool or "exact"
        With ``"exact"`` the next ``fit`` goes on with the optimizer's moments and learning rate, too.
    device : str or Backend
        Where to compute: ``"cpu"``, ``"numpy"``, ``"numba"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
    dropout : float
        Share of each hidden layer's outputs that a step drops.
    batch_norm : bool
        Whether hidden layers normalise over the batch, before their activation.
    class_weight : dict, "balanced" or None
        Factor on the weight of each class's rows.
    optimizer : str or Optimizer, optional
        An optimizer of nnfast in place of `solver`, with its own learning rate.
    loss : str or Loss
        ``"log_loss"``, or a loss of nnfast's: ``nnfast.CrossEntropy(label_smoothing=0.1)`` for several classes,
        binary ones for two, or for several labels.
    callbacks : sequence of Callback, optional
        Called after each epoch, with ``loss``, and ``val_loss`` and ``val_score`` where there are validation rows.
    progress_bar : bool
        Whether to show a bar.

    Attributes
    ----------
    validation_loss_curve_ : list of float
        The loss on validation rows, without the penalty, after each epoch.
    model_ : Sequential
        The network as a model of nnfast.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPClassifier._parameter_constraints,
        **EXTRA_CONSTRAINTS,
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "loss": [str, Loss],
    }

    def _predict(self, X: Any, check_input: bool = True) -> Any:
        if self.out_activation_ != "softmax":
            return super()._predict(X, check_input=check_input)
        # The largest output has the largest probability
        return self.classes_[self._outputs(X, check_input).argmax(axis=1)]

    def _score(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        # scikit-learn before 1.9 asks whether labels are NaN, which text cannot tell
        return accuracy_score(y, self._predict(X, check_input=False), sample_weight=sample_weight)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities (n, classes)."""
        return like(super().predict_proba(host(X)), X)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities (n, classes)."""
        return like(super().predict_log_proba(host(X)), X)


@_with_extras
class MLPRegressor(OnNNFast, neural_network.MLPRegressor):
    """scikit-learn's multi-layer perceptron regressor on nnfast's kernels.

    All arguments, attributes and methods of :class:`sklearn.neural_network.MLPRegressor`, and those that
    :class:`MLPClassifier` has besides, but for the weights of classes.

    Parameters
    ----------
    loss : str or Loss
        ``"squared_error"``, ``"poisson"`` where the installed scikit-learn has it, or a loss of nnfast's, such as
        ``"huber"``.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPRegressor._parameter_constraints,
        **EXTRA_CONSTRAINTS,
        "loss": [str, Loss],
    }
