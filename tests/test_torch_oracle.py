"""PyTorch on the CPU as an outside oracle: layers, activations, losses, and whole trainings.

Float64 is held to 1e-12 for results and 1e-10 for gradients, float32 to 1e-5 and 1e-4 (the numerics policy).
Optimizers and schedules have their oracles in ``optimizers/``.
"""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf
from tests.cases import ACTIVATIONS, LOSSES, Chain, run_layer
from tests.oracle import DTYPES, F, close, dtypes, tensor, torch

# ---- activations, layers -----------------------------------------------------------------------------------
TORCH_ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    # F.hardsigmoid's gradient has its 1/6 rounded to float32, in float64 too
    "hard_sigmoid": lambda z: torch.clamp(z / 6.0 + 0.5, 0.0, 1.0),
    "hard_swish": F.hardswish,
    "softmax": lambda z: F.softmax(z, dim=-1),
    "leaky_relu(0.3)": lambda z: F.leaky_relu(z, 0.3),
    "elu(0.7)": lambda z: F.elu(z, 0.7),
}


def compare_layer(layer, module, parameters, x, dy, backend, dtype):
    """Output and gradients of a layer against a function of tensors; `parameters` maps our names to tensors."""
    forward, gradient = DTYPES[dtype]
    results = run_layer(layer, backend, x, dy, dtype)
    tx = tensor(x, dtype)
    ty = module(tx)
    ty.backward(tensor(dy, dtype, grad=False))
    close(results["y"], ty, forward, "y")
    close(results["dx"], tx.grad, gradient, "dx")
    for name, parameter in parameters.items():
        close(results["d" + name], parameter.grad, gradient, "d" + name)
    return results


@dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(backend, rng, activation, dtype):
    x, dy = 2.5 * rng.standard_normal((9, 6)), rng.standard_normal((9, 6))
    compare_layer(nf.Activation(activation), TORCH_ACTIVATIONS[activation], {}, x, dy, backend, dtype)


def test_softplus_beyond_the_threshold_of_torch(backend):
    """PyTorch takes z itself above 20, which differs by exp(-20) = 2e-9; the formula here has no threshold."""
    z = np.array([[19.0, 21.0, 30.0]])
    results = run_layer(nf.Activation("softplus"), backend, z, np.ones((1, 3)))
    close(results["y"], np.logaddexp(0.0, z), 1e-15)
    close(results["y"], F.softplus(torch.tensor(z), threshold=1e9), 1e-15)


@dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(7, 5), (4, 3, 5)], ids=str)
def test_dense(backend, rng, activation, shape, dtype):
    W, b = rng.standard_normal((5, 6)), rng.standard_normal(6)
    layer = nf.Dense(6, activation, initializer=lambda s, r: W, bias_initializer=lambda s, r: b)
    tW, tb = tensor(W, dtype), tensor(b, dtype)

    def module(x):
        return TORCH_ACTIVATIONS[activation](F.linear(x, tW.T, tb))

    x, dy = rng.standard_normal(shape), rng.standard_normal((*shape[:-1], 6))
    compare_layer(layer, module, {"W": tW, "b": tb}, x, dy, backend, dtype)


@dtypes
@pytest.mark.parametrize("shape", [(7, 5), (4, 3, 5), (3, 1)], ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm(backend, rng, shape, eps, dtype):
    x, dy = 2.0 + rng.standard_normal(shape), rng.standard_normal(shape)
    module = torch.nn.LayerNorm(shape[-1], eps=eps, dtype=getattr(torch, dtype))
    parameters = {"gamma": module.weight, "beta": module.bias}
    compare_layer(nf.LayerNorm(eps), module, parameters, x, dy, backend, dtype)


@dtypes
@pytest.mark.parametrize("rows", [2, 7, 65])
def test_batch_norm(backend, rng, rows, dtype):
    x, dy = 2.0 + rng.standard_normal((rows, 5)), rng.standard_normal((rows, 5))
    module = torch.nn.BatchNorm1d(5, dtype=getattr(torch, dtype))
    parameters = {"gamma": module.weight, "beta": module.bias}
    results = compare_layer(nf.BatchNorm(), module, parameters, x, dy, backend, dtype)
    close(results["batchnorm.running_mean"], module.running_mean, DTYPES[dtype][0])
    close(results["batchnorm.running_var"], module.running_var, DTYPES[dtype][0])


@dtypes
def test_batch_norm_over_all_axes_but_the_last(backend, rng, dtype):
    """PyTorch has the channels on axis 1, here they are the last axis."""
    x, dy = rng.standard_normal((4, 3, 5)), rng.standard_normal((4, 3, 5))
    module = torch.nn.BatchNorm1d(5, dtype=getattr(torch, dtype))
    compare_layer(
        nf.BatchNorm(),
        lambda t: module(t.transpose(1, 2)).transpose(1, 2),
        {"gamma": module.weight, "beta": module.bias},
        x,
        dy,
        backend,
        dtype,
    )


@dtypes
@pytest.mark.parametrize("momentum", [0.1, 0.4])
def test_batch_norm_running_statistics_and_inference(backend, rng, momentum, dtype):
    batches = 3.0 + 2.0 * rng.standard_normal((5, 8, 4))
    module = torch.nn.BatchNorm1d(4, momentum=momentum, dtype=getattr(torch, dtype))
    model = nf.Sequential([nf.BatchNorm(momentum), nf.Dense(4, initializer=lambda s, r: np.eye(4))]).build(4)
    trainer = nf.Trainer(model, "mse", nf.SGD(0.0), device=backend, dtype=dtype)
    for batch in batches:
        trainer.step(batch, np.zeros((8, 4)))
        module(tensor(batch, dtype))
    weights = model.get_weights()
    forward = DTYPES[dtype][0]
    close(weights["batchnorm.running_mean"], module.running_mean, forward)
    close(weights["batchnorm.running_var"], module.running_var, forward)
    close(model.predict(batches[0].astype(dtype)), module.eval()(tensor(batches[0], dtype)), forward)


def test_dropout_scales_like_torch(backend):
    """The masks are others; what is kept is scaled alike."""
    x = np.full((50, 40), 3.0)
    kept = run_layer(nf.Dropout(0.3), backend, x, np.ones_like(x))
    ours, theirs = np.unique(kept["y"]), np.unique(F.dropout(torch.tensor(x), 0.3).numpy())
    np.testing.assert_allclose(ours, theirs, rtol=1e-15)
    np.testing.assert_array_equal(kept["dx"] != 0, kept["y"] != 0)


# ---- losses ------------------------------------------------------------------------------------------------
def torch_loss(name, pred, true):
    """The unreduced loss that PyTorch has for one of our cases: (n, m), or (n,) for cross-entropy."""
    loss = nf.losses.get(LOSSES[name].loss)
    if isinstance(loss, nf.CrossEntropy):
        target = torch.tensor(true) if true.ndim == 1 else torch.tensor(true.astype(pred.detach().numpy().dtype))
        return F.cross_entropy(pred, target, label_smoothing=loss.label_smoothing, reduction="none")
    target = torch.tensor(true.reshape(pred.shape)).to(pred.dtype)
    if isinstance(loss, nf.Huber):
        return F.huber_loss(pred, target, delta=loss.delta, reduction="none")
    if isinstance(loss, nf.Hinge):
        # Neither HingeEmbeddingLoss nor MultiMarginLoss is the hinge loss of labels -1 and 1
        return torch.clamp(1.0 - torch.where(target == 0, -1.0, target) * pred, min=0.0)
    if isinstance(loss, nf.Poisson):
        return F.poisson_nll_loss(pred, target, log_input=True, full=False, reduction="none")
    return {
        nf.MeanSquaredError: F.mse_loss,
        nf.MeanAbsoluteError: F.l1_loss,
        nf.BinaryCrossEntropy: F.binary_cross_entropy_with_logits,
    }[type(loss)](pred, target, reduction="none")


WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.0])


def our_loss(loss, pred, true, backend, dtype="float64", weight=None):
    """Loss and gradient for given outputs: those of a Dense layer that is the identity, by its bias and its input."""
    chain = Chain([nf.Dense(pred.shape[1])], np.eye(len(pred)), true, loss, backend, weight=weight, dtype=dtype)
    chain.params.set_vector(np.concatenate([pred.reshape(-1), np.zeros(pred.shape[1])]))
    value = chain.step()
    return value, chain.gradient()[: pred.size].reshape(pred.shape)


@dtypes
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss(backend, name, weighted, dtype):
    """Weights: the mean over rows is ``sum w l / sum w`` here; PyTorch's unreduced losses, averaged so."""
    case = LOSSES[name]
    forward, gradient = DTYPES[dtype]
    value, grad = our_loss(case.loss, case.pred, case.true, backend, dtype, WEIGHTS if weighted else None)
    pred = tensor(case.pred, dtype)
    per_row = torch_loss(name, pred, case.true).reshape(7, -1).mean(dim=1)
    weights = torch.tensor((WEIGHTS if weighted else np.ones(7)).astype(dtype))
    expected = (weights * per_row).sum() / weights.sum()
    expected.backward()
    close(value, expected, forward)
    close(grad, pred.grad, gradient)


def test_class_weights_are_those_of_torch_for_integer_labels(backend, rng):
    """``sum_i w[y_i] l_i / sum_i w[y_i]`` is what ``CrossEntropyLoss(weight=w)`` computes."""
    logits, labels, class_weight = rng.standard_normal((8, 3)), rng.integers(0, 3, 8), np.array([0.5, 2.0, 1.0])
    value, grad = our_loss("cross_entropy", logits, labels, backend, weight=class_weight[labels])
    pred = tensor(logits, "float64")
    expected = F.cross_entropy(pred, torch.tensor(labels), weight=torch.tensor(class_weight))
    expected.backward()
    close(value, expected, 1e-12)
    close(grad, pred.grad, 1e-10)
    model = nf.Sequential([nf.Dense(3, initializer=lambda s, r: np.eye(3))]).build(3, dtype="float64")
    history = model.fit(
        logits,
        labels,
        loss="cross_entropy",
        class_weight=dict(enumerate(class_weight)),
        optimizer=nf.SGD(0.0),
        device=backend,
        dtype="float64",
        verbose=0,
    )
    close(history["loss"][0], expected, 1e-12)


def test_class_weights_that_differ_from_torch(backend, rng):
    """Here a weight belongs to a row, so that weight 2 is the row given twice. PyTorch differs in three places."""
    logits, labels, class_weight = rng.standard_normal((8, 3)), rng.integers(0, 3, 8), np.array([0.5, 2.0, 1.0])
    row_weight = class_weight[labels]
    pred, target, theirs = torch.tensor(logits), torch.tensor(labels), torch.tensor(class_weight)

    def ours(loss, true, unreduced):
        value, _ = our_loss(loss, logits, true, backend, weight=row_weight)
        close(value, (row_weight * unreduced.numpy()).sum() / row_weight.sum(), 1e-12)
        return value

    # Smoothing: PyTorch weights each class's share of the smoothed target by that class's weight
    smoothed = ours(nf.CrossEntropy(0.2), labels, F.cross_entropy(pred, target, label_smoothing=0.2, reduction="none"))
    assert abs(smoothed - F.cross_entropy(pred, target, weight=theirs, label_smoothing=0.2).item()) > 1e-3
    # Targets given as probabilities: PyTorch divides by the number of rows, not by the weights' sum
    one_hot = np.eye(3)[labels]
    soft = ours("cross_entropy", one_hot, F.cross_entropy(pred, target, reduction="none"))
    divided = F.cross_entropy(pred, torch.tensor(one_hot), weight=theirs).item()
    close(soft * row_weight.sum() / 8, divided, 1e-12)
    # Binary cross-entropy: likewise
    binary = F.binary_cross_entropy_with_logits(pred, torch.tensor(one_hot), reduction="none").mean(dim=1)
    value = ours("binary_cross_entropy", one_hot, binary)
    weighted = F.binary_cross_entropy_with_logits(pred, torch.tensor(one_hot), weight=torch.tensor(row_weight)[:, None])
    close(value * row_weight.sum() / 8, weighted, 1e-12)


# ---- whole trainings ---------------------------------------------------------------------------------------
def twin_models(dtype):
    """The same model here and in PyTorch, with equal weights."""
    model = nf.Sequential(
        [
            nf.Dense(16, "tanh"),
            nf.BatchNorm(),
            nf.Dense(12, "gelu"),
            nf.LayerNorm(),
            nf.Dense(8, "silu", bias=False),
            nf.Dense(4),
        ]
    ).build(6, seed=5, dtype=dtype)
    linear = {"dtype": getattr(torch, dtype)}
    twin = torch.nn.Sequential(
        torch.nn.Linear(6, 16, **linear),
        torch.nn.Tanh(),
        torch.nn.BatchNorm1d(16, **linear),
        torch.nn.Linear(16, 12, **linear),
        torch.nn.GELU(),
        torch.nn.LayerNorm(12, **linear),
        torch.nn.Linear(12, 8, bias=False, **linear),
        torch.nn.SiLU(),
        torch.nn.Linear(8, 4, **linear),
    )
    weights = model.get_weights()
    with torch.no_grad():
        for name, module in (("dense", 0), ("dense_1", 3), ("dense_2", 6), ("dense_3", 8)):
            twin[module].weight.copy_(torch.tensor(weights[f"{name}.W"].T))
            if twin[module].bias is not None:
                twin[module].bias.copy_(torch.tensor(weights[f"{name}.b"]))
    return model, twin


TRAININGS = {
    "sgd": (
        nf.SGD(0.05, momentum=0.9, weight_decay=1e-3),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
    ),
    "adamw": (nf.AdamW(0.01, weight_decay=0.1), torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "clipped rmsprop": (nf.RMSprop(0.01, clip_norm=0.5), torch.optim.RMSprop, {"lr": 0.01}),
}


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-10), ("float32", 1e-4)])
@pytest.mark.parametrize("name", TRAININGS)
def test_training(backend, rng, name, dtype, rtol):
    """Twenty steps from equal weights on equal batches, the last of them smaller; then inference."""
    ours, kind, arguments = TRAININGS[name]
    model, twin = twin_models(dtype)
    trainer = nf.Trainer(model, nf.CrossEntropy(0.1), ours, device=backend, batch_size=16, dtype=dtype)
    optimizer = kind(twin.parameters(), **arguments)
    for step in range(20):
        rows = 16 if step < 19 else 7
        x, y = rng.standard_normal((rows, 6)).astype(dtype), rng.integers(0, 4, rows)
        expected = F.cross_entropy(twin(torch.tensor(x)), torch.tensor(y), label_smoothing=0.1)
        optimizer.zero_grad()
        expected.backward()
        if ours.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), ours.clip_norm)
        optimizer.step()
        close(trainer.step(x, y), expected, rtol, f"loss of step {step}")
    weights = model.get_weights()
    for name, module in (("dense", 0), ("dense_1", 3), ("dense_2", 6), ("dense_3", 8)):
        close(weights[f"{name}.W"], twin[module].weight.T, rtol, name)
    close(weights["batchnorm.running_var"], twin[2].running_var, rtol)
    x = rng.standard_normal((9, 6)).astype(dtype)
    close(model.predict(x), twin.eval()(torch.tensor(x)), rtol)
