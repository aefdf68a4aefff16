"""PyTorch's weights and modules, in and out: outputs of both sides must agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.interop import torch as interop

torch = pytest.importorskip("torch")
nn = torch.nn

ACTIVATIONS = [name for name in nf.activations.names() if name != "identity"]


def model_of_all(dtype: str = "float32") -> nf.Sequential:
    """One of each layer, with weights that are not those of the start."""
    model = nf.Sequential(
        [
            nf.Flatten(), nf.Dense(9, "leaky_relu(0.2)"), nf.BatchNorm(0.3, 1e-3), nf.Dense(7, bias=False),
            nf.LayerNorm(1e-4), nf.Activation("elu(0.7)"), nf.Dropout(0.4), nf.Dense(5, "gelu"), nf.Dense(3, "softmax"),
        ]
    ).build((2, 4), seed=3, dtype=dtype)  # fmt: skip
    rng = np.random.default_rng(1)
    model.set_weights({k: v + 0.3 * rng.random(v.shape) for k, v in model.get_weights().items()})
    return model


def both(model: nf.Sequential, module: Any, rows: int = 11) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(2).standard_normal((rows, *model.in_shape)).astype(model.dtype)
    with torch.inference_mode():
        return model.predict(x, device="numpy"), module(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_to_a_module_and_back(dtype: str) -> None:
    model = model_of_all(dtype)
    module = nf.interop.torch.to_module(model)
    assert not module.training
    ours, theirs = both(model, module)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)
    again = interop.from_module(module, model.in_shape)
    assert again.dtype == model.dtype
    x = np.ones((2, 2, 4))
    np.testing.assert_array_equal(again.predict(x, device="numpy"), model.predict(x, device="numpy"))
    assert [repr(layer) for layer in again.layers] == [
        repr(layer) for layer in (*model.layers[:3], nf.Dense(7, bias=False), *model.layers[4:])
    ]
    for name, value in model.get_weights().items():
        np.testing.assert_array_equal(again.get_weights()[name], value)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    model = nf.Sequential([nf.Dense(6, name), nf.Activation(name)]).build(4, seed=0)
    module = interop.to_module(model)
    ours, theirs = both(model, module)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)
    again = interop.from_module(module)
    assert [layer.activation.name for layer in again.layers] == [name, name]
    np.testing.assert_array_equal(both(again, module)[0], ours)


def test_the_state_dict_is_that_of_the_module() -> None:
    model = model_of_all()
    state, theirs = interop.state_dict(model), interop.to_module(model).state_dict()
    assert list(state) == list(theirs)
    for key, value in state.items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key])
    # A copy: training goes on without it
    state["1.weight"].zero_()
    assert model.get_weights()["dense.W"].any()


class Net(nn.Module):
    """Names and a forward pass of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.fc2(self.norm(torch.relu(self.fc1(x))))


def trained_net() -> Net:
    torch.manual_seed(0)
    net = Net()
    for _ in range(3):  # running statistics of its own
        net(torch.randn(32, 4) + 1)
    return net.eval()


def mlp() -> nf.Sequential:
    return nf.Sequential([nf.Dense(8, "relu"), nf.BatchNorm(), nf.Dense(3)])


@pytest.mark.parametrize("built", [False, True])
def test_weights_of_a_module_of_ones_own(built: bool) -> None:
    net, model = trained_net(), mlp()
    if built:
        model.build(4)
    interop.load_state_dict(model, net.state_dict())
    ours, theirs = both(model, net)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)


def test_a_safetensors_file_needs_no_torch(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = trained_net()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    x = np.random.default_rng(2).standard_normal((5, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    program = f"""
import sys
sys.modules["torch"] = None
import numpy as np, nnfast as nf
model = nf.Sequential([nf.Dense(8, "relu"), nf.BatchNorm(), nf.Dense(3)])
nf.interop.torch.load_state_dict(model, {str(tmp_path / "net.safetensors")!r})
np.save({str(tmp_path / "y.npy")!r}, model.predict(np.load({str(tmp_path / "x.npy")!r}), device="numpy"))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    with torch.inference_mode():
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), net(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_half_precision_weights_are_read() -> None:
    net, model = trained_net(), mlp()
    interop.load_state_dict(model, net.to(torch.bfloat16).state_dict())
    assert model.dtype == np.float32
    np.testing.assert_array_equal(model.get_weights()["dense.b"], net.fc1.bias.detach().float().numpy())


def test_float64_makes_a_float64_model() -> None:
    model = mlp()
    interop.load_state_dict(model, trained_net().double().state_dict())
    assert model.dtype == np.float64


def test_training_goes_on_from_them() -> None:
    """A step from torch's weights is torch's own step."""
    net, x, y = trained_net(), torch.randn(16, 4), torch.randint(0, 3, (16,))
    model = mlp()
    interop.load_state_dict(model, net.state_dict())
    nf.Trainer(model, "cross_entropy", nf.SGD(0.1, momentum=0.0), device="numpy").step(x.numpy(), y.numpy())
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    back = interop.state_dict(model)
    for (key, theirs), ours in zip(net.state_dict().items(), back.values(), strict=True):
        if "num_batches" not in key:
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5, err_msg=key)


def test_nested_modules_and_those_that_do_nothing() -> None:
    module = nn.Sequential(
        nn.Identity(), nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.ReLU())), nn.Dropout(0.2), nn.Linear(5, 2)
    ).eval()
    model = interop.from_module(module)
    assert repr(model) == repr(nf.Sequential([nf.Dense(5, "relu"), nf.Dropout(0.2), nf.Dense(2)]))
    np.testing.assert_allclose(*both(model, module), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.PReLU()), r"module 1: PReLU.*no counterpart"),
        (nn.Sequential(nn.Sequential(nn.Conv3d(1, 2, 3))), r"module 0\.0: Conv3d.*no counterpart"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False)), r"module 1: BatchNorm1d"),
        (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm((2, 3))), r"module 1: LayerNorm"),
        (nn.Sequential(nn.Linear(4, 3), nn.Softplus(beta=2)), r"module 1: Softplus"),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=0)), r"module 1: Softmax"),
        (nn.Sequential(nn.Flatten(0)), r"module 0: Flatten"),
        (nn.Sequential(nn.ReLU()), r"give in_shape"),
    ],
)
def test_what_has_no_counterpart(module: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interop.from_module(module)


class Twice(nf.Layer):
    def forward(self, bk: Any, x: Any, y: Any) -> None:
        y[...] = 2 * x


def test_a_layer_of_ones_own_has_none() -> None:
    model = nf.Sequential([nf.Dense(3), Twice()]).build(2)
    for convert in (interop.to_module, interop.state_dict):
        with pytest.raises(ValueError, match=r"layer 1 \(twice\): Twice has no counterpart in PyTorch"):
            convert(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nf.Sequential([nf.Dense(8), nf.Dense(3)]), r"2 layers with weights \(dense, dense_1\), the state dict has 3"),
        (nf.Sequential([nf.Dense(8), nf.BatchNorm(), nf.Dense(4)]), r"'fc2' .*dense_1.*W has shape \(8, 3\)"),
        (nf.Sequential([nf.Dense(8, bias=False), nf.BatchNorm(), nf.Dense(3)]), r"'fc1' .*unknown \['b'\]"),
        (nf.Sequential([nf.Dense(8), nf.LayerNorm(), nf.Dense(3)]), r"'norm' .*unknown \['running_mean'"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_change_nothing(model: nf.Sequential, message: str) -> None:
    model.build(4, seed=0)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        interop.load_state_dict(model, trained_net().state_dict())
    for name, value in model.get_weights().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.safetensors"):
        interop.load_state_dict(mlp(), tmp_path / "none.safetensors")
