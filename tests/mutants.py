"""Mutants: the NumPy backend with one method broken on purpose, and what each of them is checked on.

``test_mutants.py`` sees every one of them die.
"""

from __future__ import annotations

import numpy as np

import nnfast as nf
from nnfast import activations
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels import step_state as S
from tests.cases import dense_case


# ---- mutants of layers -------------------------------------------------------------------------------------
class ActGradSign(NumpyBackend):
    def act_grad(self, act, dy, saved, *, out):
        super().act_grad(act, -dy, saved, out=out)


class ActGradAtTheOutput(NumpyBackend):
    """The derivative of a function of the pre-activation, taken at the output."""

    def act_grad(self, act, dy, saved, *, out):
        y = np.empty_like(saved)
        if activations.get(act).saves == "input":
            self.act(act, saved, out=y)
            saved = y
        super().act_grad(act, dy, saved, out=out)


class ActGradForgotten(NumpyBackend):
    def act_grad(self, act, dy, saved, *, out):
        out[...] = dy


class SoftmaxGradDiagonal(NumpyBackend):
    """Only the diagonal of the Jacobian."""

    def act_grad(self, act, dy, saved, *, out):
        out[...] = dy * saved * (1.0 - saved)


class StaleWeightGradient(NumpyBackend):
    """dW from the output buffer's old contents."""

    def linear_act_grad(self, dy, x, W, saved, act, *, dx, dW, db):
        old = dW.copy()
        super().linear_act_grad(dy, x, W, saved, act, dx=dx, dW=dW, db=db)
        dW[...] = old


class AccumulatedWeightGradient(NumpyBackend):
    """dW added to what was there: right in the first step only."""

    def linear_act_grad(self, dy, x, W, saved, act, *, dx, dW, db):
        old = dW.copy()
        super().linear_act_grad(dy, x, W, saved, act, dx=dx, dW=dW, db=db)
        dW += old


class MissingBiasGradient(NumpyBackend):
    def linear_act_grad(self, dy, x, W, saved, act, *, dx, dW, db):
        super().linear_act_grad(dy, x, W, saved, act, dx=dx, dW=dW, db=None)


class BiasGradientIsAMean(NumpyBackend):
    def linear_act_grad(self, dy, x, W, saved, act, *, dx, dW, db):
        super().linear_act_grad(dy, x, W, saved, act, dx=dx, dW=dW, db=db)
        db /= len(dy)


class BiasGradientBeforeTheActivation(NumpyBackend):
    def linear_act_grad(self, dy, x, W, saved, act, *, dx, dW, db):
        before = dy.sum(axis=0)
        super().linear_act_grad(dy, x, W, saved, act, dx=dx, dW=dW, db=db)
        db[...] = before


class InputGradientByTheUntransposed(NumpyBackend):
    """``dz @ W`` in place of ``dz @ W.T``: the shapes fit where W is square."""

    def linear_act_grad(self, dy, x, W, saved, act, *, dx, dW, db):
        super().linear_act_grad(dy, x, W, saved, act, dx=dx, dW=dW, db=db)
        dx[...] = dy @ W


class InputGradientScaled(NumpyBackend):
    def linear_act_grad(self, dy, x, W, saved, act, *, dx, dW, db):
        super().linear_act_grad(dy, x, W, saved, act, dx=dx, dW=dW, db=db)
        dx *= 1.0 + 1e-4


class LastRowForgotten(NumpyBackend):
    """The tail of a loop over the batch."""

    def linear_act_grad(self, dy, x, W, saved, act, *, dx, dW, db):
        super().linear_act_grad(dy, x, W, saved, act, dx=dx, dW=dW, db=db)
        dW -= np.outer(x[-1], dy[-1])


class LinearForwardWithoutBias(NumpyBackend):
    """Its gradient fits this wrong forward pass in all but db."""

    def linear_act(self, x, W, b, act, *, out, saved=None):
        super().linear_act(x, W, None, act, out=out, saved=saved)


class SavedAfterTheActivation(NumpyBackend):
    def linear_act(self, x, W, b, act, *, out, saved=None):
        super().linear_act(x, W, b, act, out=out, saved=saved)
        if saved is not None:
            saved[...] = out


class DropoutNotScaledInBackward(NumpyBackend):
    """Forward and backward are the same call; here the second one in a step does not scale."""

    calls = 0

    def dropout(self, x, state, *, rate, stream, out):
        self.calls += 1
        super().dropout(x, state, rate=rate, stream=stream, out=out)
        if self.calls % 2 == 0:
            out *= 1.0 - rate


class DropoutMaskRedrawn(NumpyBackend):
    calls = 0

    def dropout(self, x, state, *, rate, stream, out):
        self.calls += 1
        super().dropout(x, state, rate=rate, stream=stream + self.calls % 2, out=out)


class BatchNormWithoutMeanTerm(NumpyBackend):
    """The batch's mean taken as a constant."""

    def batch_norm_grad(self, dy, x, gamma, mean, var, *, eps, dx, dgamma, dbeta):
        super().batch_norm_grad(dy, x, gamma, mean, var, eps=eps, dx=dx, dgamma=dgamma, dbeta=dbeta)
        dx += gamma / np.sqrt(var + eps) * dbeta / len(x)


class BatchNormWithoutVarianceTerm(NumpyBackend):
    def batch_norm_grad(self, dy, x, gamma, mean, var, *, eps, dx, dgamma, dbeta):
        super().batch_norm_grad(dy, x, gamma, mean, var, eps=eps, dx=dx, dgamma=dgamma, dbeta=dbeta)
        rstd = 1.0 / np.sqrt(var + eps)
        dx += gamma * rstd * (x - mean) * rstd * dgamma / len(x)


class BatchNormUnbiasedInBackward(NumpyBackend):
    def batch_norm_grad(self, dy, x, gamma, mean, var, *, eps, dx, dgamma, dbeta):
        unbiased = var * len(x) / (len(x) - 1)
        super().batch_norm_grad(dy, x, gamma, mean, unbiased, eps=eps, dx=dx, dgamma=dgamma, dbeta=dbeta)


class BatchNormGradsSwapped(NumpyBackend):
    def batch_norm_grad(self, dy, x, gamma, mean, var, *, eps, dx, dgamma, dbeta):
        super().batch_norm_grad(dy, x, gamma, mean, var, eps=eps, dx=dx, dgamma=dbeta, dbeta=dgamma)


class LayerNormWithoutMeanTerm(NumpyBackend):
    def layer_norm_grad(self, dy, x, gamma, mean, rstd, *, dx, dgamma, dbeta):
        super().layer_norm_grad(dy, x, gamma, mean, rstd, dx=dx, dgamma=dgamma, dbeta=dbeta)
        dx += rstd[:, None] * (dy * gamma).mean(axis=1, keepdims=True)


class LayerNormGammaForgotten(NumpyBackend):
    """Invisible while gamma is 1: the layer's initial weights alone would not show it."""

    def layer_norm_grad(self, dy, x, gamma, mean, rstd, *, dx, dgamma, dbeta):
        super().layer_norm_grad(dy, x, np.ones_like(gamma), mean, rstd, dx=dx, dgamma=dgamma, dbeta=dbeta)


class LayerNormEpsForgotten(NumpyBackend):
    def layer_norm(self, x, gamma, beta, *, eps, out, mean, rstd):
        super().layer_norm(x, gamma, beta, eps=eps, out=out, mean=mean, rstd=rstd)
        rstd[...] = 1.0 / x.std(axis=1)


def dense(activation):
    return lambda: dense_case(activation, (4,), 4)


def plain(layer, shape=(4,)):
    return lambda: (layer, np.random.default_rng(6).standard_normal((5, *shape)))


class ScaledNorm(nf.LayerNorm):
    """A LayerNorm whose gamma is not 1."""

    def build(self, in_shape, ctx):
        ctx.param("gamma", in_shape[-1:], lambda shape, rng: 1.0 + rng.random(shape))
        ctx.param("beta", in_shape[-1:], "zeros")
        ctx.scratch("mean", in_shape[:-1])
        ctx.scratch("rstd", in_shape[:-1])
        return in_shape


LAYER_MUTANTS = [
    (ActGradSign, dense("tanh")),
    (ActGradSign, plain(nf.Activation("sigmoid"))),
    (ActGradAtTheOutput, dense("gelu")),
    (ActGradAtTheOutput, plain(nf.Activation("silu"))),
    (ActGradForgotten, dense("relu")),
    (SoftmaxGradDiagonal, dense("softmax")),
    (StaleWeightGradient, dense("identity")),
    (AccumulatedWeightGradient, dense("tanh")),
    (MissingBiasGradient, dense("identity")),
    (BiasGradientIsAMean, dense("tanh")),
    (BiasGradientBeforeTheActivation, dense("sigmoid")),
    (InputGradientByTheUntransposed, dense("tanh")),
    (InputGradientScaled, dense("tanh")),
    (LastRowForgotten, dense("elu")),
    (LinearForwardWithoutBias, dense("tanh")),
    (SavedAfterTheActivation, dense("mish")),
    (DropoutNotScaledInBackward, plain(nf.Dropout(0.4))),
    (DropoutMaskRedrawn, plain(nf.Dropout(0.4))),
    (BatchNormWithoutMeanTerm, plain(nf.BatchNorm())),
    (BatchNormWithoutVarianceTerm, plain(nf.BatchNorm())),
    (BatchNormUnbiasedInBackward, plain(nf.BatchNorm())),
    (BatchNormGradsSwapped, plain(nf.BatchNorm())),
    (LayerNormWithoutMeanTerm, plain(nf.LayerNorm())),
    (LayerNormGammaForgotten, plain(ScaledNorm())),
    (LayerNormEpsForgotten, plain(nf.LayerNorm(0.1))),
]


# ---- mutants of losses -------------------------------------------------------------------------------------
class LossGradientSign(NumpyBackend):
    def elementwise_loss(self, name, pred, target, weight, state, *, param=0.0, dpred):
        super().elementwise_loss(name, pred, target, weight, state, param=param, dpred=dpred)
        if dpred is not None:
            dpred *= -1.0


class LossGradientNotMeaned(NumpyBackend):
    """The mean over the rows is missing in the gradient, not in the loss."""

    def elementwise_loss(self, name, pred, target, weight, state, *, param=0.0, dpred):
        super().elementwise_loss(name, pred, target, weight, state, param=param, dpred=dpred)
        if dpred is not None:
            dpred *= len(pred)


class MeanOverRowsForgetsColumns(NumpyBackend):
    """Loss and gradient agree with each other: only another backend, or the formula, tells."""

    def elementwise_loss(self, name, pred, target, weight, state, *, param=0.0, dpred):
        super().elementwise_loss(name, pred, target, weight, state, param=param, dpred=dpred)
        state[S.LOSS] *= pred.shape[1]
        if dpred is not None:
            dpred *= pred.shape[1]


class WeightsForgotten(NumpyBackend):
    def elementwise_loss(self, name, pred, target, weight, state, *, param=0.0, dpred):
        super().elementwise_loss(name, pred, target, None, state, param=param, dpred=dpred)

    def softmax_xent(self, logits, labels, weight, state, *, smoothing=0.0, dlogits):
        super().softmax_xent(logits, labels, None, state, smoothing=smoothing, dlogits=dlogits)


class WeightsDividedByRows(NumpyBackend):
    """``sum w l / n`` in place of ``sum w l / sum w``."""

    def softmax_xent(self, logits, labels, weight, state, *, smoothing=0.0, dlogits):
        super().softmax_xent(logits, labels, weight, state, smoothing=smoothing, dlogits=dlogits)
        if weight is not None:
            factor = weight.sum() / len(weight)
            state[S.LOSS] *= factor
            if dlogits is not None:
                dlogits *= factor


class ParameterForgotten(NumpyBackend):
    def elementwise_loss(self, name, pred, target, weight, state, *, param=0.0, dpred):
        super().elementwise_loss(name, pred, target, weight, state, param=1.0, dpred=None)
        loss = float(state[S.LOSS])
        super().elementwise_loss(name, pred, target, weight, state, param=param, dpred=dpred)
        state[S.LOSS] = loss


class SoftmaxGradientWithoutTarget(NumpyBackend):
    def softmax_xent(self, logits, labels, weight, state, *, smoothing=0.0, dlogits):
        super().softmax_xent(logits, labels, weight, state, smoothing=smoothing, dlogits=dlogits)
        if dlogits is not None:
            dlogits[0, labels[0] if labels.ndim == 1 else 0] += 1.0 / len(logits)


class SmoothingInTheLossOnly(NumpyBackend):
    def softmax_xent(self, logits, labels, weight, state, *, smoothing=0.0, dlogits):
        super().softmax_xent(logits, labels, weight, state, smoothing=0.0, dlogits=dlogits)
        super().softmax_xent(logits, labels, weight, state, smoothing=smoothing, dlogits=None)


class MassOfSoftTargetsTakenAsOne(NumpyBackend):
    """``p - t`` is the gradient only where the targets of a row sum to one."""

    def softmax_xent(self, logits, labels, weight, state, *, smoothing=0.0, dlogits):
        super().softmax_xent(logits, labels, weight, state, smoothing=smoothing, dlogits=None)
        if dlogits is not None:
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            dlogits[...] = (e / e.sum(axis=1, keepdims=True) - labels) / len(logits)


LOSS_MUTANTS = [
    *((LossGradientSign, name) for name in ("mean_squared_error", "binary_cross_entropy", "poisson", "hinge, 0 and 1")),
    *((LossGradientNotMeaned, name) for name in ("mean_squared_error", "mean_absolute_error", "huber")),
    (ParameterForgotten, "huber(0.4)"),
    (SoftmaxGradientWithoutTarget, "cross_entropy"),
    (SoftmaxGradientWithoutTarget, "cross_entropy, soft"),
    (SmoothingInTheLossOnly, "cross_entropy, smoothed"),
    (MassOfSoftTargetsTakenAsOne, "cross_entropy, counts"),
    (WeightsForgotten, "mean_squared_error"),
    (WeightsForgotten, "cross_entropy"),
    (WeightsDividedByRows, "cross_entropy"),
]
# Consistent in themselves: only the comparison with another backend shows them
PARITY_LOSS_MUTANTS = [*LOSS_MUTANTS, (MeanOverRowsForgetsColumns, "mean_squared_error")]


# ---- mutants of optimizers ---------------------------------------------------------------------------------
class UphillSgd(NumpyBackend):
    def sgd_step(self, param, grad, velocity, state, *, nesterov):
        super().sgd_step(param, -grad, velocity, state, nesterov=nesterov)


class NesterovForgotten(NumpyBackend):
    def sgd_step(self, param, grad, velocity, state, *, nesterov):
        super().sgd_step(param, grad, velocity, state, nesterov=False)


class GradientScaleForgotten(NumpyBackend):
    def clip_norm(self, grad, state, *, max_norm):
        super().clip_norm(grad, state, max_norm=max_norm)
        state[S.GRAD_SCALE] = 1.0


class ClipValueForgotten(NumpyBackend):
    def clip_value(self, grad, *, limit):
        pass


class BiasCorrectionForgotten(NumpyBackend):
    def adam_step(self, param, grad, m, v, state, *, decoupled):
        step = float(state[S.STEP])
        state[S.STEP] = 1e6
        super().adam_step(param, grad, m, v, state, decoupled=decoupled)
        state[S.STEP] = step


class DecayNotDecoupled(NumpyBackend):
    def adam_step(self, param, grad, m, v, state, *, decoupled):
        super().adam_step(param, grad, m, v, state, decoupled=False)


class MomentsInTheWrongOrder(NumpyBackend):
    def adam_step(self, param, grad, m, v, state, *, decoupled):
        super().adam_step(param, grad, v, m, state, decoupled=decoupled)


class DecayForgotten(NumpyBackend):
    def lion_step(self, param, grad, m, state):
        decay = float(state[S.WEIGHT_DECAY])
        state[S.WEIGHT_DECAY] = 0.0
        super().lion_step(param, grad, m, state)
        state[S.WEIGHT_DECAY] = decay


class CenteringForgotten(NumpyBackend):
    def rmsprop_step(self, param, grad, sq, mean, velocity, state):
        super().rmsprop_step(param, grad, sq, None, velocity, state)


class MomentumScheduleForgotten(NumpyBackend):
    def nadam_step(self, param, grad, m, v, state):
        state[S.P4] = 1.0
        super().nadam_step(param, grad, m, v, state)


class StaleMaximum(NumpyBackend):
    def adamax_step(self, param, grad, m, u, state):
        super().adamax_step(param, grad, m, u, state)
        u.fill(0.0)


class LastParameterForgotten(NumpyBackend):
    """The tail of a loop in blocks."""

    def adagrad_step(self, param, grad, total, state):
        super().adagrad_step(param[:-1], grad[:-1], total[:-1], state)


class BadStepIgnored(NumpyBackend):
    """Right in every step but the one after a loss that was not finite."""

    def sgd_step(self, param, grad, velocity, state, *, nesterov):
        bad = float(state[S.BAD_STEP])
        state[S.BAD_STEP] = 0.0
        super().sgd_step(param, grad, velocity, state, nesterov=nesterov)
        state[S.BAD_STEP] = bad


class AverageTheWrongWayRound(NumpyBackend):
    def ema_step(self, param, average, state):
        decay = float(state[S.EMA_DECAY])
        average[...] = (1.0 - decay) * average + decay * param


class LearningRateOfTheNextStep(NumpyBackend):
    def begin_step(self, state, lr_table):
        super().begin_step(state, np.append(lr_table[1:], 0.0))


OPTIMIZER_MUTANTS = [
    (UphillSgd, nf.SGD(0.1)),
    (NesterovForgotten, nf.SGD(0.1, momentum=0.9, nesterov=True)),
    (GradientScaleForgotten, nf.SGD(0.1, clip_norm=1.5)),
    (ClipValueForgotten, nf.SGD(0.1, clip_value=0.3)),
    (BiasCorrectionForgotten, nf.Adam()),
    (DecayNotDecoupled, nf.AdamW(0.01, weight_decay=0.1)),
    (MomentsInTheWrongOrder, nf.Adam()),
    (DecayForgotten, nf.Lion(0.01, weight_decay=0.5)),
    (CenteringForgotten, nf.RMSprop(0.01, centered=True)),
    (MomentumScheduleForgotten, nf.NAdam()),
    (StaleMaximum, nf.Adamax()),
    (LastParameterForgotten, nf.Adagrad()),
    (BadStepIgnored, nf.SGD(0.1)),
    (AverageTheWrongWayRound, nf.SGD(0.1, ema=0.9)),
    (LearningRateOfTheNextStep, nf.SGD(lambda step: 0.1 * 0.5**step)),
]
