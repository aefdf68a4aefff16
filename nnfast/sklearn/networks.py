"""Any network of nnfast as an estimator of scikit-learn."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from ..losses import BinaryCrossEntropy, CrossEntropy, Hinge, Loss, MeanSquaredError
from .arrays import host, like
from .network_estimator import NetworkEstimator

__all__ = ["NNClassifier", "NNRegressor"]


class NNClassifier(ClassifierMixin, NetworkEstimator):
    """A network of nnfast as a classifier.

    Parameters
    ----------
    model : Network, callable or None
        The network; a function of the number of features and of outputs that makes it; or None for one hidden layer of
        100. It has one output for two classes, one for each of several classes, and one for each of several labels. One
        that has weights starts from them; it is copied, never changed.
    loss : str or Loss, optional
        By default binary cross-entropy for two classes and for labels, cross-entropy else.
    optimizer : str or Optimizer
        See :mod:`nnfast.optimizers`.
    epochs : int
        Passes over the data.
    batch_size : int or "auto"
        Rows of a step; ``"auto"`` is 200, or all if they are fewer.
    device : str or Backend
        Where to compute.
    precision : {"float32", "tf32", "bf16", "fp16", "float64"}, optional
        What the computation may round; by default that of the inputs, float32 or float64.
    validation_fraction : float
        Share of the rows set aside for ``validation_loss_curve_``.
    shuffle : bool
        Whether each epoch has an order of its own.
    class_weight : dict, "balanced" or None
        Factor on the weight of each class's rows.
    callbacks : sequence of Callback, optional
        See :mod:`nnfast.training.callbacks`.
    warm_start : bool
        Whether the next ``fit`` goes on, the optimizer's state included.
    random_state : int, RandomState or None
        Of initial weights, orders and dropout.
    verbose : int
        0 is silent, 1 shows a bar.

    Attributes
    ----------
    model_ : Network
        The fitted model.
    classes_ : ndarray
        Labels of the classes.
    history_ : History
        Of the last fit.
    loss_curve_, validation_loss_curve_ : list of float
        After each epoch.
    n_iter_ : int
        Epochs done.
    n_features_in_, n_outputs_ : int
        Sizes.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        loss: Any = None,
        optimizer: Any = "adam",
        epochs: int = 100,
        batch_size: Any = "auto",
        device: Any = "auto",
        precision: str | None = None,
        validation_fraction: float = 0.0,
        shuffle: bool = True,
        class_weight: Any = None,
        callbacks: Any = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            model,
            loss=loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            device=device,
            precision=precision,
            validation_fraction=validation_fraction,
            shuffle=shuffle,
            callbacks=callbacks,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _weights_of_classes(self) -> Any:
        if not isinstance(self.class_weight, dict):
            return self.class_weight
        places = {label: i for i, label in enumerate(self.classes_.tolist())}
        unknown = [label for label in self.class_weight if label not in places]
        if unknown:
            raise ValueError(f"class_weight has {unknown}, the classes are {self.classes_.tolist()}")
        return {places[label]: value for label, value in self.class_weight.items()}

    def _targets(self, y: np.ndarray, reset: bool) -> np.ndarray:
        if reset:
            check_classification_targets(y)
            self._labels = type_of_target(y).startswith("multilabel")
            if self._labels:
                self.classes_ = np.arange(y.shape[1])
            else:
                if y.ndim == 2 and y.shape[1] > 1:
                    raise ValueError("several columns of classes are not supported; labels of 0 and 1 are")
                self._encoder = LabelEncoder().fit(np.ravel(y))
                self.classes_ = self._encoder.classes_
                if len(self.classes_) < 2:
                    raise ValueError(f"a classifier needs 2 classes, the data have one class: {self.classes_.tolist()}")
            self.n_outputs_ = 1 if not self._labels and len(self.classes_) == 2 else len(self.classes_)
        if self._labels:
            if y.ndim != 2 or y.shape[1] != self.n_outputs_:
                raise ValueError(f"y must have {self.n_outputs_} columns of labels, its shape is {y.shape}")
            return np.asarray(y, np.float64)
        return np.asarray(self._encoder.transform(np.ravel(y)))

    def _default_loss(self, outputs: int) -> Loss:
        return BinaryCrossEntropy() if self._labels or outputs == 1 else CrossEntropy()

    def _check_outputs(self, outputs: int, loss: Loss) -> None:
        if not (outputs == len(self.classes_) == 2 and isinstance(loss, CrossEntropy)):
            super()._check_outputs(outputs, loss)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One pass over the rows of `X`.

        Parameters
        ----------
        X, y, sample_weight
            As for :meth:`fit`.
        classes : array-like, optional
            All classes; at first, where `y` has not all of them.

        Returns
        -------
        self
        """
        return self._go_on(X, y, sample_weight, classes)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities (n, classes)."""
        proba = self._outputs(X)
        if isinstance(self.model_.loss, Hinge):
            raise AttributeError("a model trained with the hinge loss has no probabilities")
        if not self._labels and proba.shape[1] == 1:
            proba = np.hstack([1 - proba, proba])
        return like(proba, X)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities (n, classes)."""
        return like(np.log(np.asarray(host(self.predict_proba(X)))), X)

    def predict(self, X: Any) -> Any:
        """The class of each row (n,), or labels (n, labels)."""
        outputs = self._outputs(X)
        threshold = 0.0 if isinstance(self.model_.loss, Hinge) else 0.5
        if self._labels:
            return like((outputs > threshold).astype(np.int64), X)
        number = (outputs[:, 0] > threshold).astype(int) if outputs.shape[1] == 1 else outputs.argmax(axis=1)
        return like(self.classes_[number], X)


class NNRegressor(RegressorMixin, NetworkEstimator):
    """A network of nnfast as a regressor.

    Parameters
    ----------
    model : Network, callable or None
        As for :class:`NNClassifier`, with an output for each column of the targets.
    loss : str or Loss
        A loss of values, such as ``"huber"``, or ``"poisson"``, whose predictions are rates.
    optimizer, epochs, batch_size, device, precision, validation_fraction, shuffle, callbacks
        As for :class:`NNClassifier`.
    warm_start, random_state, verbose
        As for :class:`NNClassifier`.

    Attributes
    ----------
    model_, history_, loss_curve_, validation_loss_curve_, n_iter_, n_features_in_, n_outputs_
        As for :class:`NNClassifier`.
    """

    def _targets(self, y: np.ndarray, reset: bool) -> np.ndarray:
        columns = 1 if y.ndim == 1 else y.shape[1]
        if reset:
            self.n_outputs_, self._flat = columns, y.ndim == 1
        elif columns != self.n_outputs_:
            raise ValueError(f"y must have {self.n_outputs_} columns, its shape is {y.shape}")
        return np.asarray(y, np.float64).reshape(len(y), -1)

    def _default_loss(self, outputs: int) -> Loss:
        return MeanSquaredError()

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """One pass over the rows of `X`; arguments as for :meth:`fit`."""
        return self._go_on(X, y, sample_weight)

    def predict(self, X: Any) -> Any:
        """Values (n,), or (n, outputs)."""
        outputs = self._outputs(X).reshape(-1, self.n_outputs_)
        return like(outputs.ravel() if self._flat else outputs, X)
