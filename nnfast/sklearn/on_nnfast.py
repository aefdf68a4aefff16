"""What the two multi-layer perceptrons replace of scikit-learn's: the work.

Arguments, checks, messages, the splits, shuffles and stops of a training are scikit-learn's own, and so are the random
numbers that it draws. Where the data fit on the device, scikit-learn gets numbers of rows for data, and all of an
epoch for a batch; what it then asks for are replayed steps of nnfast, batch by batch, the updates included.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.utils import compute_sample_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .. import activations, losses
from ..activations import Activation
from ..backends.base import Backend
from ..kernels import step_state as S
from ..losses import Loss
from ..optimizers import Optimizer
from ..training.callbacks import Callback
from ..training.loop import fits_on
from ..training.predictions import through_link
from .arrays import host, like
from .core import Core, Design
from .epochs import Epochs, StopTraining
from .objectives import LINKS, Objective, objective
from .steps import NoStep, Steps

__all__ = ["EXTRA_CONSTRAINTS", "OnNNFast"]

#: What the arguments beside scikit-learn's may be
EXTRA_CONSTRAINTS: dict[str, Any] = {
    "activation": [StrOptions({"logistic", *activations.names()} - {"softmax"}), Activation],
    "warm_start": ["boolean", StrOptions({"exact"})],
    "device": [str, Backend],
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "batch_norm": ["boolean"],
    "optimizer": [str, Optimizer, None],
    "callbacks": ["array-like", None],
    "progress_bar": ["boolean"],
}

# Bytes up to which sparse inputs become dense ones for a fit; larger ones do so batch by batch
_DENSE_BYTES = 1 << 28

# What a copy, or a file, of an estimator goes without
_NOT_KEPT = {
    "_core",
    "_asked",
    "_steps",
    "_full",
    "_rule",
    "_epochs",
    "_data",
    "_of_batch",
    "_given",
    "_given_weight",
    "_row_weight",
    "_apart",
}


def _is_done(params: Any, grads: Any) -> None:
    """In place of an optimizer's update, which was part of the step."""


def _resident(core: Core, X: Any, y: np.ndarray, weight: Any) -> tuple[Any, np.ndarray, Any] | None:
    """Inputs, targets and weights as arrays that batches are taken from; None where `X` is too large for that."""
    if not isinstance(X, np.ndarray):
        if X.shape[0] * X.shape[1] * core.design.dtype.itemsize > _DENSE_BYTES:
            return None
        X = X.toarray()
    if not fits_on(core.backend, X, core.design.dtype):
        return None
    return X, y, weight


class OnNNFast:
    """What both estimators replace of scikit-learn's."""

    # Of scikit-learn's class
    coefs_: list[Any]
    intercepts_: list[Any]
    activation: Any
    alpha: float
    loss: Any
    n_features_in_: int
    n_layers_: int
    n_outputs_: int
    out_activation_: str
    solver: str
    batch_size: Any
    early_stopping: bool
    validation_fraction: float
    warm_start: Any
    _best_coefs: list[Any]
    _best_intercepts: list[Any]
    # Of ours
    device: str | Backend
    dropout: float
    batch_norm: bool
    optimizer: Any
    callbacks: Sequence[Callback] | None
    progress_bar: bool
    validation_loss_curve_: list[float]
    _asked: tuple[Any, ...]

    # ---- the network ----------------------------------------------------------------------------------------
    def _design(self) -> Design:
        shapes = [np.shape(W) for W in self.coefs_]
        kind = "sigmoid" if isinstance(self.activation, str) and self.activation == "logistic" else self.activation
        dtype = np.result_type(*(np.asarray(W).dtype for W in (*self.coefs_, *self.intercepts_)))
        return Design(
            (shapes[0][0], *(shape[1] for shape in shapes)),
            kind,
            np.dtype(np.float32 if dtype == np.float32 else np.float64),
            self.device,
            float(self.dropout),
            bool(self.batch_norm),
        )

    def _network(self) -> Core:
        """The network with the weights that the estimator has now."""
        core: Core | None = vars(self).get("_core")
        asked = (self.activation, self.device, self.dropout, self.batch_norm)
        if core is not None and core.holds(self.coefs_, self.intercepts_) and self._asked == asked:
            return core
        design = self._design()
        if core is None or core.design != design:
            core = Core(design)
            core.others = vars(self).get("_others") or {}
        core.take(self.coefs_, self.intercepts_)
        # From here on these are the same arrays, so that what is written to them counts
        self.coefs_, self.intercepts_ = list(core.coefs), list(core.intercepts)
        self._core, self._asked = core, asked
        return core

    @property
    def model_(self) -> Any:
        """The network, a model of nnfast, whose outputs are those before ``out_activation_``."""
        check_is_fitted(self)
        core = self._network()
        core.push()
        core.model.loss = self._objective().loss
        return core.model

    def __getstate__(self) -> dict[str, Any]:
        rule, steps = vars(self).get("_rule"), vars(self).get("_steps")
        if rule is not None and steps is not None and rule.theirs is vars(self).get("_optimizer"):
            rule.keep(steps)
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name not in _NOT_KEPT}

    def _initialize(self, y: Any, layer_units: Any, dtype: Any) -> None:
        super()._initialize(y, layer_units, dtype)  # type: ignore[misc]
        self.validation_loss_curve_ = []
        vars(self).pop("_others", None)
        vars(self).pop("_core", None)
        loss = self._own_loss()
        if loss is not None and loss.link == "exp":
            self.out_activation_ = "exp"

    # ---- losses ----------------------------------------------------------------------------------------------
    def _own_loss(self) -> Loss | None:
        """The loss of nnfast that was asked for; None for scikit-learn's own."""
        if isinstance(self.loss, str) and self.loss in ("log_loss", "squared_error", "poisson"):
            return None
        loss = losses.get(self.loss)
        if loss.classification != is_classifier(self):
            kind = "a classifier" if is_classifier(self) else "a regressor"
            raise ValueError(f"{type(self).__name__} is {kind}: loss={self.loss!r} is not for it")
        return loss

    def _objective(self) -> Objective:
        loss = self._own_loss()
        if loss is not None:
            if loss.link != LINKS[self.out_activation_]:
                raise ValueError(
                    f"loss={self.loss!r} is not for these targets, whose outputs go through {self.out_activation_!r}"
                )
            return Objective(loss)
        return objective(self.out_activation_, self.n_outputs_)

    # ---- the optimizer ----------------------------------------------------------------------------------------
    # scikit-learn makes one at the start of each fit; it keeps the learning rate, and is where the state of a training
    # that goes on is kept
    @property
    def _optimizer(self) -> Any:
        try:
            return vars(self)["_optimizer"]
        except KeyError:
            raise AttributeError("_optimizer") from None

    @_optimizer.setter
    def _optimizer(self, optimizer: Any) -> None:
        before: Any = vars(self).get("_optimizer")
        if isinstance(self.warm_start, str) and type(before) is type(optimizer):
            parts = before.ms if hasattr(before, "ms") else before.velocities
            if [np.shape(x) for x in parts] == [np.shape(x) for x in (*self.coefs_, *self.intercepts_)]:
                return
        optimizer.update_params = _is_done
        vars(self)["_optimizer"] = optimizer

    # ---- training --------------------------------------------------------------------------------------------
    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Any:
        X, y = host(X), host(y)
        sample_weight = vars(self).pop("_given_weight", sample_weight)
        class_weight = vars(self).get("class_weight")
        if self.optimizer is not None and self.solver == "lbfgs":
            raise ValueError(f"optimizer={self.optimizer!r} takes the place of 'adam' or 'sgd', the solver is 'lbfgs'")
        if class_weight is not None:
            if incremental and isinstance(class_weight, str):
                raise ValueError(f"class_weight={class_weight!r} needs all rows, partial_fit sees a part: give a dict")
            of_classes = compute_sample_weight(class_weight, y)
            sample_weight = of_classes if sample_weight is None else np.asarray(sample_weight) * of_classes
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        if weights and "sample_weight" not in inspect.signature(super()._fit).parameters:  # type: ignore[misc]
            # scikit-learn 1.6 has no weights: the steps take them from here, by the numbers of the rows
            self._row_weight = _check_sample_weight(weights.pop("sample_weight"), X)
        try:
            return super()._fit(X, y, incremental=incremental, **weights)  # type: ignore[misc]
        finally:
            vars(self).pop("_row_weight", None)

    def _fit_stochastic(self, X: Any, y: Any, *args: Any) -> None:
        core = self._network()
        self._set_validation()
        incremental = bool(args[-1])
        own = vars(self).get("_row_weight")
        weight = args[0] if len(args) == 7 else own
        data = None if incremental and own is None else _resident(core, X, y, weight)
        if own is not None and data is None:
            raise TypeError("sample_weight needs scikit-learn 1.7 or newer for inputs as large as these")
        epochs = self._epochs = Epochs(self, X.shape[0], vars(self).get("_apart"))
        size = self.batch_size
        try:
            with epochs:
                if data is not None:
                    # scikit-learn's loop shuffles and splits numbers of rows, and has one batch: all of an epoch
                    self._data, self._of_batch = data, size
                    self.batch_size = self._rows_to_train_on(X.shape[0])
                    X = np.arange(X.shape[0]).reshape(-1, 1)
                super()._fit_stochastic(X, y, *args)  # type: ignore[misc]
        except StopTraining:
            stopped = True
        else:
            stopped = epochs.validation is not None
        finally:
            self.batch_size = size
            epochs.forget_data()
            for name in ("_epochs", "_data", "_of_batch"):
                vars(self).pop(name, None)
        if stopped and epochs.stops_early:
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts
        core.pull()
        self._others = core.others

    def _rows_to_train_on(self, rows: int) -> int:
        """How many rows scikit-learn does not set aside for early stopping; warns where batches are larger."""
        if self.early_stopping:
            rows -= int(np.ceil(self.validation_fraction * rows))
        if self.batch_size != "auto" and self.batch_size > rows:
            message = "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            warnings.warn(message, stacklevel=4)
        return max(rows, 1)

    def _update_no_improvement_count(self, early_stopping: bool, X: Any, y: Any, *weight: Any) -> None:
        epochs = self._epochs
        self._network().pull()
        update = super()._update_no_improvement_count  # type: ignore[misc]
        if early_stopping and "_data" in vars(self):
            X = self._data[0][np.ravel(X)]
        if epochs.validation is not None:
            X, y, targets = epochs.validation
            update(epochs.stops_early, X, y, *(None for _ in weight))
            epochs.end((X, targets, None))
            return
        update(early_stopping, X, y, *weight)
        epochs.end((X, epochs.binarized(y), weight[0] if weight else None) if early_stopping else None)

    def _fit_lbfgs(self, *args: Any) -> None:
        try:
            super()._fit_lbfgs(*args)  # type: ignore[misc]
        finally:
            vars(self).pop("_full", None)

    def _backprop(self, X: Any, y: Any, *args: Any) -> Any:
        """One step on a batch: its loss; the gradients too where the solver, or a caller, does the update."""
        weight = args[0] if len(args) == 5 else vars(self).get("_row_weight")
        goal = self._objective()
        if "_data" in vars(self):
            size = min(200, len(X)) if self._of_batch == "auto" else min(self._of_batch, len(X))
            return self._epochs.epoch_of(self._data, np.ravel(X), size, goal), *args[-2:]
        if "_epochs" in vars(self):
            return self._epochs.batch(X, y, weight, goal), *args[-2:]
        core = self._network()
        wanted = (self.alpha, weight is not None)
        held: Steps | None = vars(self).get("_full")
        if held is None or held.core is not core or held.plan.batch != X.shape[0] or held.settings != wanted:
            held = self._full = Steps(core, goal, NoStep(), self.alpha, X.shape[0], weight is not None)
        held.set(S.BAD_STEP, 0.0)
        return held.step(X, y, weight, 0.0), *held.gradients()

    # ---- what users call -------------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None) -> Any:
        """Fit the network.

        Parameters
        ----------
        X : array-like or sparse matrix
            (n, features).
        y : array-like
            (n,) or (n, outputs).
        sample_weight : array-like, optional
            (n,).
        X_val, y_val : array-like, optional
            Rows beside `X`: the loss on them after each epoch is in ``validation_loss_curve_``, and ``early_stopping``
            scores them in place of rows of `X`.

        Returns
        -------
        self
        """
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val go together, one of them is missing")
        weights = {} if sample_weight is None else {"sample_weight": host(sample_weight)}
        if weights and "sample_weight" not in inspect.signature(super().fit).parameters:  # type: ignore[misc]
            self._given_weight = weights.pop("sample_weight")
        self._given = None if X_val is None else (host(X_val), host(y_val))
        try:
            return super().fit(X, y, **weights)  # type: ignore[misc]
        finally:
            vars(self).pop("_given", None)
            vars(self).pop("_given_weight", None)
            vars(self).pop("_apart", None)

    def _set_validation(self) -> None:
        """Check the validation rows that fit was given, against the data that it has seen."""
        given = vars(self).get("_given")
        if given is None:
            return
        X, y = given
        X = validate_data(self, X, accept_sparse=["csr"], dtype=(np.float64, np.float32), reset=False)
        y = np.asarray(y)
        if len(y) != X.shape[0]:
            raise ValueError(f"X_val has {X.shape[0]} rows, y_val has {len(y)}")
        targets = self._label_binarizer.transform(y) if is_classifier(self) else y  # type: ignore[attr-defined]
        targets = np.asarray(targets).reshape(len(y), -1)
        if targets.shape[1] != self.n_outputs_:
            raise ValueError(f"y_val has {targets.shape[1]} columns, y has {self.n_outputs_}")
        self._apart = X, y, targets

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> np.ndarray:
        outputs = self._outputs(X, check_input)
        return through_link(LINKS[self.out_activation_], outputs)

    def _outputs(self, X: Any, check_input: bool) -> np.ndarray:
        """The network's outputs before their link, in the dtype that scikit-learn would have them in."""
        if check_input and not self._plain(X):
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        core = self._network()
        outputs = core.outputs(X)
        return outputs.astype(np.result_type(X.dtype, core.design.dtype), copy=False)

    def _plain(self, X: Any) -> bool:
        """Whether scikit-learn's checks, which take longer than a small network, would let `X` through as it is."""
        return (
            type(X) is np.ndarray
            and X.dtype in (np.float32, np.float64)
            and X.ndim == 2
            and X.shape[0] > 0
            and X.shape[1] == self.n_features_in_
            and not hasattr(self, "feature_names_in_")
            and bool(np.isfinite(X.sum()))
        )

    def predict(self, X: Any) -> Any:
        """The classes, or values, of `X` (n, features)."""
        return like(super().predict(host(X)), X)  # type: ignore[misc]
