"""scikit-learn's multilayer perceptrons.

Three things are its own: its Adam adds epsilon to the root of the moment before the correction of the bias,
its squared error is half of everybody else's, and its classifiers predict probabilities.
"""

from __future__ import annotations

import warnings
from math import sqrt

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from ..workloads import Weights
from .base import Contender


class ScikitLearn(Contender):
    """``MLPClassifier``, or ``MLPRegressor`` for the squared error."""

    def build(self, weights: Weights, X: np.ndarray, y: np.ndarray) -> None:
        work = self.workload
        self.X, self.y = X, y.reshape(-1) if work.loss != "cross_entropy" and work.sizes[-1] == 1 else y
        regression = work.loss == "mean_squared_error"
        self.outputs = "logits" if regression else "probabilities"
        self.factor = 2.0 if regression else 1.0
        self.classes = None if regression else np.arange(max(2, work.sizes[-1]))
        if not regression:
            self.y = self.y.astype(np.int64)
        kind = MLPRegressor if regression else MLPClassifier
        # Its gradient of the squared error is that of half the sum over the outputs; only SGD notices
        rate = work.lr * (self.factor / work.sizes[-1] if regression and work.optimizer == "sgd" else 1.0)
        self.model = kind(
            hidden_layer_sizes=work.sizes[1:-1],
            activation={"sigmoid": "logistic"}.get(work.activation, work.activation),
            solver=work.optimizer,
            alpha=0.0,
            batch_size=min(work.batch, work.rows),
            learning_rate_init=rate,
            momentum=work.momentum,
            nesterovs_momentum=False,
            epsilon=1e-8,
            n_iter_no_change=np.inf,
            random_state=0,
        )
        # Arrays exist after a first step only, which is then undone
        self._partial(slice(0, min(work.rows, 2)))
        for place, value in zip(
            [*self.model.coefs_, *self.model.intercepts_], [*(W for W, _ in weights), *(b for _, b in weights)],
            strict=True,
        ):  # fmt: skip
            place[...] = value
        vars(self.model).pop("_optimizer")  # its moments; made anew by the next step

    def _partial(self, rows: slice) -> float:
        more = {} if self.classes is None else {"classes": self.classes}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "batch_size larger than sample size": the last, smaller one
            self.model.partial_fit(self.X[rows], self.y[rows], **more)
        return float(self.model.loss_) * self.factor

    def epochs(self, count: int) -> list[float]:
        self.model.set_params(max_iter=count, warm_start=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as many epochs as were asked for
            self.model.fit(self.X, self.y)
        return [float(loss) * self.factor for loss in self.model.loss_curve_[-count:]]

    def losses(self, steps: int) -> list[float]:
        found = []
        for step, rows in enumerate(self.batches_in_order(steps), 1):
            # What the others' epsilon amounts to in its place; with large batches the difference is seen
            epsilon = 1e-8 * sqrt(1 - 0.999**step)
            self.model.set_params(epsilon=epsilon)  # read when the optimizer is made, at the first step
            if hasattr(self.model, "_optimizer"):
                self.model._optimizer.epsilon = epsilon
            found.append(self._partial(rows))
        return found

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        if self.classes is None:
            return self.model.predict(inputs).reshape(len(inputs), -1)
        found = self.model.predict_proba(inputs)
        return found[:, 1:] if self.workload.sizes[-1] == 1 else found
