"""scikit-learn: a fitted ``MLPClassifier`` or ``MLPRegressor`` as a model, and a model as one of these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import losses
from ..layers import Activation, Dense, Layer
from ..losses import BinaryCrossEntropy, CrossEntropy, Hinge, Loss, MeanSquaredError, Poisson
from ..model import Sequential
from ..network import Network

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

__all__ = ["from_sklearn", "to_sklearn"]

# scikit-learn's names of activations, and of those of the output with the loss that they go with
_ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
_LOSSES: dict[str, type[Loss]] = {
    "softmax": CrossEntropy,
    "logistic": BinaryCrossEntropy,
    "identity": MeanSquaredError,
    "exp": Poisson,
}


def from_sklearn(estimator: MLPClassifier | MLPRegressor) -> Sequential:
    """A model with the weights of a fitted estimator.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Fitted.

    Returns
    -------
    Sequential
        With the loss that the estimator was trained with: ``predict_proba`` gives its probabilities, with one column
        where there are two classes; for regression ``predict`` gives its predictions, after the Poisson loss
        ``predict_proba`` does. Classes are their places in ``estimator.classes_``. Its type is that of the weights.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If it is none of these two.
    """
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.utils.validation import check_is_fitted

    if not isinstance(estimator, (MLPClassifier, MLPRegressor)):
        raise TypeError(f"expected an MLPClassifier or an MLPRegressor, got {type(estimator).__name__}")
    check_is_fitted(estimator)
    coefs = [np.asarray(W) for W in estimator.coefs_]
    layers: list[Layer] = [Dense(W.shape[1], _ACTIVATIONS[estimator.activation]) for W in coefs[:-1]]
    model = Sequential([*layers, Dense(coefs[-1].shape[1])])
    model.build(coefs[0].shape[0], dtype=coefs[0].dtype, initialise=False)
    arrays = [a for W, b in zip(coefs, estimator.intercepts_, strict=True) for a in (W, np.asarray(b))]
    model.set_weights(dict(zip(model.get_weights(), arrays, strict=True)))
    model.loss = _LOSSES[estimator.out_activation_]()
    return model


def to_sklearn(model: Network, classes: Any = None) -> MLPClassifier | MLPRegressor:
    """A fitted estimator of scikit-learn with the weights of a model.

    Parameters
    ----------
    model : Sequential
        Of dense layers with biases, whose activations are one of identity, relu, sigmoid and tanh for all but the last;
        trained, since its loss says what it predicts.
    classes : array_like, optional
        Labels of the classes in the order of the outputs; by default 0, 1, ...

    Returns
    -------
    MLPClassifier or MLPRegressor
        Ready to predict, and to go on with ``partial_fit``, or ``fit`` with ``warm_start``.

    Raises
    ------
    ValueError
        If scikit-learn has no such network, the model has no loss, or `classes` are not as many as it has.
    """
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.preprocessing import LabelBinarizer

    dense, hidden = _as_mlp(model)
    loss = model.loss
    if loss is None:
        raise ValueError("the model has no loss, which says what it predicts: fit it, or set model.loss")
    output = _output_of(loss, model)
    weights = model.get_weights()
    sizes = tuple(weights[f"{name}.b"].shape[0] for name in dense)
    common = {"hidden_layer_sizes": sizes[:-1], "activation": hidden}
    if loss.classification:
        number = 2 if output == "logistic" and sizes[-1] == 1 else sizes[-1]
        labels = np.arange(number) if classes is None else np.asarray(classes)
        if labels.shape != (number,) or len(np.unique(labels)) != number:
            raise ValueError(f"the model has {number} classes, got the labels {labels.tolist()}")
        if (np.sort(labels) != labels).any():
            raise ValueError("scikit-learn has classes in sorted order: the labels must be, too")
        estimator: Any = MLPClassifier(**common)
        estimator._label_binarizer = LabelBinarizer().fit(labels)
        estimator.classes_ = estimator._label_binarizer.classes_
    else:
        if classes is not None:
            raise ValueError(f"{type(loss).__name__} is no loss of classes; classes were given")
        estimator = MLPRegressor(**common, **({"loss": "poisson"} if output == "exp" else {}))
    estimator.coefs_ = [weights[f"{name}.W"] for name in dense]
    estimator.intercepts_ = [weights[f"{name}.b"] for name in dense]
    estimator.out_activation_, estimator.n_layers_ = output, len(sizes) + 1
    estimator.n_outputs_, estimator.n_features_in_ = sizes[-1], estimator.coefs_[0].shape[0]
    estimator.n_iter_, estimator.t_ = model.training_state.epoch, 0
    # What a training that goes on compares with and adds to
    estimator.loss_curve_, estimator._no_improvement_count = [], 0
    estimator.best_loss_, estimator.validation_scores_, estimator.best_validation_score_ = np.inf, None, None
    estimator._best_coefs = [W.copy() for W in estimator.coefs_]
    estimator._best_intercepts = [b.copy() for b in estimator.intercepts_]
    result: MLPClassifier | MLPRegressor = estimator
    return result


def _as_mlp(model: Network) -> tuple[list[str], str]:
    """Names of the dense layers, and scikit-learn's name of the hidden layers' activation."""
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    hidden: set[str] = set()
    dense: list[str] = []
    link = None if model.loss is None else model.loss.link
    for built in model.built:
        layer, last = built.layer, built is model.built[-1]
        if isinstance(layer, Activation) and last and layer.activation.name == link:
            continue  # what the loss starts before
        if not isinstance(layer, Dense) or not layer.bias or len(built.in_shape) != 1:
            raise ValueError(f"layer {built.index} ({built.name}): scikit-learn has no {layer!r}")
        dense.append(built.name)
        kind = layer.activation.name
        if last or isinstance(model.built[built.index + 1].layer, Activation):
            if kind not in ("identity", link):
                raise ValueError(f"layer {built.index} ({built.name}): scikit-learn's outputs have no {kind}")
        elif kind not in names:
            raise ValueError(f"layer {built.index} ({built.name}): scikit-learn has no {kind}")
        else:
            hidden.add(names[kind])
    if len(hidden) > 1:
        raise ValueError(f"scikit-learn has one activation for all hidden layers, not {', '.join(sorted(hidden))}")
    return dense, next(iter(hidden), "relu")


def _output_of(loss: Loss, model: Network) -> str:
    """scikit-learn's name of the output's activation."""
    for output, kind in _LOSSES.items():
        if isinstance(loss, kind):
            return output
    if loss.classification or isinstance(loss, Hinge):
        raise ValueError(f"scikit-learn has no classifier with the loss {losses.name_of(loss)}")
    return "identity"
