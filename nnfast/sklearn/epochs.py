"""One training of an estimator by batches: the optimizer's side of its steps, and what happens after each epoch."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import is_classifier

from .. import optimizers
from ..kernels import step_state as S
from ..optimizers import SGD, Adam, Optimizer
from ..training.callbacks import Callback, FitInfo, check_callbacks
from ..training.history import History
from ..training.progress import ProgressBar
from .core import Core
from .objectives import Objective
from .steps import Steps

__all__ = ["Epochs", "Rule", "StopTraining", "rule_of"]


class StopTraining(Exception):  # noqa: N818 - no error: it ends a loop that is not ours
    """A callback ended the training after an epoch."""


class Rule:
    """How an optimizer of nnfast follows scikit-learn's, which keeps the learning rate and, at rest, the moments.

    Attributes
    ----------
    optimizer : Optimizer
        That of the steps.
    theirs : object
        scikit-learn's.
    """

    optimizer: Optimizer

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def begin(self, steps: Steps) -> None:
        """Bring what scikit-learn's optimizer keeps into the steps."""

    def rates(self, steps: Steps, number: int) -> np.ndarray:
        """The learning rates of the `number` steps that come next."""
        raise NotImplementedError

    def end_epoch(self, logs: dict[str, float]) -> None:
        """After an epoch with these numbers."""

    def keep(self, steps: Steps) -> None:
        """Bring what the steps have into scikit-learn's optimizer."""


class _SGD(Rule):
    """Its velocity is in units of the weights, nnfast's in those of the gradient."""

    def __init__(self, theirs: Any) -> None:
        super().__init__(theirs)
        momentum = float(theirs.momentum)
        self.optimizer = SGD(1.0, momentum=0.5 if momentum else 0.0, nesterov=bool(theirs.nesterov and momentum))
        self.optimizer.momentum = momentum  # scikit-learn allows 1
        self._of_velocity: float | None = None

    def begin(self, steps: Steps) -> None:
        if not self.optimizer.slots:
            return
        self._of_velocity = lr = self.theirs.learning_rate
        parts, n = [np.asarray(v) / -lr for v in self.theirs.velocities], len(steps.core.coefs)
        steps.set_slot("velocity", parts[:n], parts[n:])

    def rates(self, steps: Steps, number: int) -> np.ndarray:
        lr = float(self.theirs.learning_rate)
        if self._of_velocity is not None and lr != self._of_velocity:
            steps.scale_slot("velocity", self._of_velocity / lr)
            self._of_velocity = lr
        return np.full(number, lr)

    def keep(self, steps: Steps) -> None:
        if self._of_velocity is not None:
            coefs, intercepts = steps.slot("velocity")
            self.theirs.velocities = [-self._of_velocity * v for v in (*coefs, *intercepts)]


class _Adam(Rule):
    """Its epsilon is added before the second moment is corrected for its start at zero."""

    def __init__(self, theirs: Any) -> None:
        super().__init__(theirs)
        self.optimizer = Adam(1.0, theirs.beta_1, theirs.beta_2, theirs.epsilon, epsilon_hat=True)

    def begin(self, steps: Steps) -> None:
        steps.set(S.STEP, float(self.theirs.t))
        n = len(steps.core.coefs)
        for name, parts in (("m", self.theirs.ms), ("v", self.theirs.vs)):
            steps.set_slot(name, parts[:n], parts[n:])

    def rates(self, steps: Steps, number: int) -> np.ndarray:
        theirs = self.theirs
        theirs.t += number
        corrections = np.sqrt(1 - theirs.beta_2**theirs.t) / (1 - theirs.beta_1**theirs.t)
        theirs.learning_rate = theirs.learning_rate_init * corrections
        return np.full(number, float(theirs.learning_rate_init))

    def keep(self, steps: Steps) -> None:
        for name, attribute in (("m", "ms"), ("v", "vs")):
            coefs, intercepts = steps.slot(name)
            setattr(self.theirs, attribute, [*coefs, *intercepts])


class _Own(Rule):
    """An optimizer of nnfast's, in place of the solver's."""

    def __init__(self, theirs: Any, optimizer: Any) -> None:
        super().__init__(theirs)
        self.optimizer = optimizers.get(optimizer)
        self.schedule = self.optimizer.schedule()
        self.kept: dict[str, Any] = vars(theirs).setdefault("of_nnfast", {"step": 0, "carried": 0.0, "slots": {}})
        self.schedule.load_state_dict(self.kept.get("schedule") or self.schedule.state_dict())

    def begin(self, steps: Steps) -> None:
        steps.set(S.STEP, float(self.kept["step"]))
        if self.kept["step"]:
            steps.set(S.P4, self.kept["carried"])
        for name, (coefs, intercepts) in self.kept["slots"].items():
            steps.set_slot(name, coefs, intercepts)

    def rates(self, steps: Steps, number: int) -> np.ndarray:
        rates = np.asarray(self.schedule.table(self.kept["step"], number))
        self.kept["step"] += number
        self.theirs.learning_rate = float(rates[-1])
        return rates

    def end_epoch(self, logs: dict[str, float]) -> None:
        if self.schedule.adaptive:
            self.schedule.watch(logs)

    def keep(self, steps: Steps) -> None:
        self.kept["slots"] = {name: steps.slot(name) for name in self.optimizer.slots}
        self.kept["carried"] = float(steps.plan.read_state()[S.P4])
        self.kept["schedule"] = self.schedule.state_dict()


def rule_of(estimator: Any) -> Rule:
    """The rule for the optimizer that an estimator has."""
    theirs = estimator._optimizer
    if estimator.optimizer is not None:
        return _Own(theirs, estimator.optimizer)
    return _SGD(theirs) if estimator.solver == "sgd" else _Adam(theirs)


class Epochs:
    """The epochs of one ``fit`` or ``partial_fit``.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Initialised.
    rows : int
        Of the data.
    validation : tuple, optional
        Inputs, targets as given, and targets as the loss takes them, which are not part of the data.
    """

    def __init__(self, estimator: Any, rows: int, validation: tuple[Any, Any, Any] | None) -> None:
        self.estimator, self.rows, self.validation = estimator, rows, validation
        self.stops_early = bool(estimator.early_stopping)
        self.history = History()
        bar = [ProgressBar()] if estimator.progress_bar else []
        self.callbacks: list[Callback] = [*(estimator.callbacks or ()), *bar]
        check_callbacks(self.callbacks)
        self.epoch = 0
        self.rule: Rule | None = None

    def __enter__(self) -> Self:
        estimator, core = self.estimator, self.estimator._network()
        if self.validation is not None:
            estimator.early_stopping = False  # which would take its rows from the data
        core.model.stop_training = False
        params = core.model.parameters
        info = FitInfo(1, estimator.max_iter, self.rows, params.count, core.backend.device, self.history)
        for callback in self.callbacks:
            callback.model, callback.info = core.model, info
            callback.on_train_begin(core.model)
            callback.on_epoch_begin(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.estimator.early_stopping = self.stops_early
        core: Core = self.estimator._network()
        for callback in self.callbacks:
            callback.on_train_end(core.model)

    def batch(self, X: Any, y: Any, weight: Any, objective: Objective) -> float:
        """A step on a batch, of which the first one is the largest; returns the loss."""
        steps: Steps | None = vars(self.estimator).get("_steps")
        if self.rule is None or steps is None:
            steps = self._begin(X.shape[0], weight is not None, objective, None)
        assert self.rule is not None
        return steps.step(X, y, weight, float(self.rule.rates(steps, 1)[0]))

    def epoch_of(self, data: tuple[Any, Any, Any], order: np.ndarray, size: int, objective: Objective) -> float:
        """An epoch on rows `order` of inputs, targets and weights, in batches of `size`; returns the loss."""
        steps: Steps | None = vars(self.estimator).get("_steps")
        if self.rule is None or steps is None:
            steps = self._begin(size, data[2] is not None, objective, data)
        assert self.rule is not None
        return steps.epoch(order, self.rule.rates(steps, -(-len(order) // size)))

    def _begin(self, rows: int, weighted: bool, objective: Objective, data: tuple[Any, Any, Any] | None) -> Steps:
        estimator, core = self.estimator, self.estimator._network()
        theirs = estimator._optimizer
        steps: Steps | None = vars(estimator).get("_steps")
        rule: Rule | None = vars(estimator).get("_rule")
        loss = objective.value, objective.gradient, repr(objective.loss)
        settings = (*loss, estimator.alpha, weighted, repr(estimator.optimizer))
        if steps is not None and rule is not None and rule.theirs is theirs:
            # partial_fit comes again and again with batches alike
            fits = data is None and steps.data is None and rows <= steps.plan.batch
            if fits and steps.core is core and steps.settings == settings:
                self.rule = rule
                return steps
            rule.keep(steps)
        rule = rule_of(estimator)
        seed = int(estimator._random_state.randint(2**31)) if estimator.dropout else 0
        steps = Steps(core, objective, rule.optimizer, estimator.alpha, rows, weighted, seed=seed, data=data)
        steps.settings = settings
        rule.begin(steps)
        self.rule, estimator._steps, estimator._rule = rule, steps, rule
        return steps

    def forget_data(self) -> None:
        """After a fit: its rows are not kept, what the optimizer has is."""
        estimator = self.estimator
        steps: Steps | None = vars(estimator).get("_steps")
        if steps is not None and steps.data is not None:
            assert self.rule is not None
            self.rule.keep(steps)
            del estimator._steps, estimator._rule

    def end(self, validation: tuple[Any, Any, Any] | None) -> None:
        """After an epoch, whose loss and score the estimator has noted; `validation` as above, then weights."""
        estimator = self.estimator
        core: Core = estimator._network()
        self.epoch += 1
        logs = {"loss": float(estimator.loss_curve_[-1])}
        if validation is not None:
            X, targets, weight = validation
            logs["val_loss"] = core.loss(X, targets, weight, estimator._objective())
            estimator.validation_loss_curve_.append(logs["val_loss"])
        if self.stops_early and estimator.validation_scores_:
            logs["val_score"] = float(estimator.validation_scores_[-1])
        logs["lr"] = float(estimator._optimizer.learning_rate)
        assert self.rule is not None
        self.rule.end_epoch(logs)
        for callback in self.callbacks:
            callback.on_progress(self.rows, {"loss": logs["loss"]})
            callback.on_epoch_end(self.epoch, logs)
        self.history.append(self.epoch, logs)
        if core.model.stop_training:
            raise StopTraining
        for callback in self.callbacks:
            callback.on_epoch_begin(self.epoch + 1)

    def binarized(self, y: Any) -> np.ndarray:
        """Targets as the loss takes them, from those that a score is computed with."""
        y = np.asarray(self.estimator._label_binarizer.transform(y) if is_classifier(self.estimator) else y)
        return y.reshape(len(y), -1)
