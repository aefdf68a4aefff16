"""What an estimator that is made of a network does, whatever it predicts: checks, the model, training, copies."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .. import losses
from ..layers import Dense
from ..layers.base import positive_int
from ..losses import Loss
from ..model import Sequential
from ..network import Network
from .arrays import host

__all__ = ["NetworkEstimator"]


class NetworkEstimator(BaseEstimator):
    """What both estimators share."""

    # Made by fit
    model_: Network
    n_outputs_: int
    n_features_in_: int

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
        callbacks: Any = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.validation_fraction = validation_fraction
        self.shuffle = shuffle
        self.callbacks = callbacks
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    def _weights_of_classes(self) -> Any:
        return None

    def _targets(self, y: np.ndarray, reset: bool) -> np.ndarray:
        """Targets as the loss takes them; with `reset` they define what there is to predict."""
        raise NotImplementedError

    def _default_loss(self, outputs: int) -> Loss:
        raise NotImplementedError

    # ---- fitting ---------------------------------------------------------------------------------------------
    def _new_model(self, X: np.ndarray, seed: int) -> Network:
        in_shape, precision = X.shape[1:], self.precision or X.dtype.name
        made = self.model
        if made is None:
            made = Sequential([Dense(100, "relu"), Dense(self.n_outputs_)])
        elif isinstance(made, Network):
            # One that has weights starts from them; fit must not change what it was given
            made = made.copy() if made.is_built else made.like(copy.deepcopy(made.layers))
        elif callable(made):
            made = made(int(np.prod(in_shape)), self.n_outputs_)
            if not isinstance(made, Network):
                raise TypeError(f"model(n_features, n_outputs) must return a network, it gave {type(made).__name__}")
        else:
            raise TypeError(f"model must be a network, a function that makes one, or None, not {type(made).__name__}")
        if not made.is_built:
            made.build(in_shape, seed=seed, dtype="float64" if precision == "float64" else "float32")
        return made

    def _checked(self, X: Any, y: Any, sample_weight: Any, reset: bool) -> tuple[np.ndarray, np.ndarray, Any]:
        X, y = validate_data(
            self,
            host(X),
            host(y),
            allow_nd=True,
            dtype=(np.float32, np.float64),
            multi_output=True,
            y_numeric=isinstance(self, RegressorMixin),
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        weight = None if sample_weight is None else _check_sample_weight(host(sample_weight), X)
        return X, y, weight

    def _train(self, X: np.ndarray, target: np.ndarray, weight: Any, epochs: int, validation: Any, seed: int) -> Any:
        size = min(200, len(X)) if self.batch_size == "auto" else positive_int(self.batch_size, "batch_size")
        outputs = int(np.prod(self.model_.out_shape))
        loss = self._default_loss(outputs) if self.loss is None else losses.get(self.loss)
        if loss.classification != isinstance(self, ClassifierMixin):
            raise ValueError(f"loss={self.loss!r} is not for {type(self).__name__}")
        self._check_outputs(outputs, loss)
        own: Any = self
        history = self.model_.fit(  # type: ignore[attr-defined]
            X,
            target,
            loss=loss,
            optimizer=copy.deepcopy(own.optimizer),
            epochs=epochs,
            batch_size=size,
            device=own.device,
            precision=own.precision or self.model_.dtype.name,
            validation_data=validation,
            validation_split=0.0 if validation is not None else own.validation_fraction,
            shuffle=own.shuffle,
            sample_weight=weight,
            class_weight=self._weights_of_classes(),
            callbacks=own.callbacks or (),
            seed=seed,
            verbose=int(own.verbose),
        )
        return history

    def _check_outputs(self, outputs: int, loss: Loss) -> None:
        if outputs != self.n_outputs_:
            raise ValueError(
                f"the model has {outputs} outputs, the targets need {self.n_outputs_}; make it with a function: "
                f"{type(self).__name__}(model=lambda n_features, n_outputs: ...)"
            )

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array-like
            (n, features), or (n, *in_shape) where the model takes that.
        y : array-like
            (n,) or (n, outputs).
        sample_weight : array-like, optional
            (n,).
        X_val, y_val : array-like, optional
            Rows that the loss is computed on after each epoch.

        Returns
        -------
        self
        """
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val go together, one of them is missing")
        goes_on = bool(self.warm_start) and hasattr(self, "model_")
        X, y, weight = self._checked(X, y, sample_weight, not goes_on)
        target = self._targets(y, not goes_on)
        seed = int(check_random_state(self.random_state).randint(2**31))
        if not goes_on:
            self.model_ = self._new_model(X, seed)
        validation = None
        if X_val is not None:
            X_v, y_v, _ = self._checked(X_val, y_val, None, False)
            validation = X_v, self._targets(y_v, False)
        epochs = positive_int(self.epochs, "epochs")
        history = self._train(X, target, weight, epochs, validation, seed)
        if not goes_on:
            self._forget_curves()
        self._note(history)
        return self

    def _forget_curves(self) -> None:
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []
        self.validation_loss_curve_: list[float] = []

    def _note(self, history: Any) -> None:
        self.history_ = history
        self.n_iter_ += len(history["loss"])
        self.loss_curve_ += history["loss"]
        if "val_loss" in history:
            self.validation_loss_curve_ += history["val_loss"]

    def _go_on(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        first = not hasattr(self, "model_")
        X, y, weight = self._checked(X, y, sample_weight, first)
        if first:
            target = self._targets(y if classes is None else np.asarray(classes), True)
            seed = int(check_random_state(self.random_state).randint(2**31))
            self.model_ = self._new_model(X, seed)
            self._forget_curves()
        target = self._targets(y, False)
        self._note(self._train(X, target, weight, 1, None, self.model_.training_state.seed))
        return self

    # ---- predicting --------------------------------------------------------------------------------------------
    def _outputs(self, X: Any) -> np.ndarray:
        """Probabilities, rates or values."""
        check_is_fitted(self, "model_")
        X = validate_data(self, host(X), allow_nd=True, dtype=(np.float32, np.float64), reset=False)
        return np.asarray(self.model_.predict_proba(X, device=self.device))  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if "model_" in state:
            # A copy is on the host, wherever the model is
            state = {**state, "model_": state["model_"].copy()}
        return state
