"""Every layer's weights and module in PyTorch: outputs of both sides must agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.interop import torch as interop
from nnfast.layers.graph import Block
from tests.layer_samples import SAMPLES, is_stateful, model_of, randomised, sample_ids

torch = pytest.importorskip("torch")
nn = torch.nn
parts = pytest.importorskip("nnfast.interop.torch_parts")

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def inputs(model: Any) -> np.ndarray:
    rng = np.random.default_rng(2)
    if model.takes_indices:
        return rng.integers(0, 5, (3, *model.in_shape))
    return rng.standard_normal((3, *model.in_shape)).astype(model.dtype)


def first(x: np.ndarray) -> np.ndarray:
    """Channels first."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def agree(model: Any, module: Any, *, images: bool, out: bool | None = None) -> None:
    """Outputs of both, for inputs, and outputs, whose channels are first in PyTorch."""
    x = inputs(model)
    expected = model.predict(x, device="numpy")
    out = images and expected.ndim > 2 if out is None else out
    with torch.inference_mode():
        found = module.eval()(torch.from_numpy(first(x) if images else x)).numpy()
    np.testing.assert_allclose(found, first(expected) if out else expected, **CLOSE)


SPATIAL = {"AvgPool2D", "BatchNorm", "Conv1D", "Conv2D", "Conv2DTranspose", "GroupNorm", "MaxPool1D", "UpSampling2D"}
NOT_IN_TORCH = "reset_after=False"
CASES = [
    pytest.param(layer, shape, id=name)
    for (layer, shape), name in zip(SAMPLES, sample_ids, strict=True)
    if not is_stateful(layer) and NOT_IN_TORCH not in name
]


def takes_images(model: Any) -> bool:
    from nnfast.interop.torch_layout import places

    return any(
        layout.first
        for place in places(model.built)
        for source, layout in zip(place.built.inputs, place.given, strict=True)
        if source < 0
    )


@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_each_layer(layer: Any, shape: Any) -> None:
    model = randomised(model_of(layer, shape))
    images = takes_images(model)
    if type(layer).__name__ in SPATIAL and len(model.in_shape) > 1:
        assert images
    module = interop.to_module(model)
    flattens = isinstance(layer, nf.Flatten)
    agree(model, module, images=images, out=None if not flattens else False)
    # and the weights come back
    again = model_of(layer, shape)
    interop.load_state_dict(again, module.state_dict())
    for name, value in model.get_weights().items():
        np.testing.assert_array_equal(again.get_weights()[name], value, err_msg=name)
    state = interop.state_dict(model)
    assert list(state) == list(module.state_dict())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [case for case in CASES if not isinstance(case.values[0], (Block, nf.Add, nf.Concat, nf.CrossAttention))],
)
def test_modules_become_layers(layer: Any, shape: Any) -> None:
    model = randomised(model_of(layer, shape))
    module = interop.to_module(model)
    names = [type(part).__name__ for part in module]
    if {"ConstantPad1d", "ConstantPad2d", "MeanOfPixels"} & set(names) or "Conv2DTranspose" in repr(layer):
        pytest.skip("a padding that no single layer has")
    again = interop.from_module(module, model.in_shape)
    x = inputs(model)
    np.testing.assert_allclose(again.predict(x, device="numpy"), model.predict(x, device="numpy"), **CLOSE)


# ---- modules of one's own ----------------------------------------------------------------------------------
def image_net() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False), nn.GroupNorm(3, 6), nn.SiLU(), nn.Dropout2d(0.3),
        nn.Upsample(scale_factor=2), nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.BatchNorm1d(128), nn.Dropout(0.2), nn.ReLU(), nn.Linear(128, 5),
        nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip
    for _ in range(2):
        net(torch.randn(8, 2, 9, 8))
    return net.eval()


def test_an_image_net() -> None:
    """Behind the flattened image a Linear has its rows in another order, and a norm its features."""
    net = image_net()
    model = interop.from_module(net, (9, 8, 2))
    assert repr(model.layers[0]) == "Conv2D(filters=4, kernel_size=[3, 2], stride=[2, 1], padding=1)"
    assert [type(layer).__name__ for layer in model.layers] == [
        "Conv2D", "BatchNorm", "Activation", "MaxPool2D", "Conv2D", "GroupNorm", "Activation", "SpatialDropout",
        "UpSampling2D", "Conv2DTranspose", "AvgPool2D", "Flatten", "BatchNorm", "Dropout", "Activation", "Dense",
        "Dense",
    ]  # fmt: skip
    agree(model, net, images=True)
    # The same modules come back
    again = interop.to_module(model)
    agree(model, again, images=True)
    assert [(k, v.shape) for k, v in again.state_dict().items()] == [(k, v.shape) for k, v in net.state_dict().items()]
    for key, value in again.state_dict().items():
        if "num_batches" not in key:
            np.testing.assert_array_equal(value, net.state_dict()[key], err_msg=key)


def test_an_image_net_in_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = image_net()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    model = interop.from_module(net, (9, 8, 2)).copy()
    model.set_weights({name: np.zeros_like(value) for name, value in model.get_weights().items()})
    interop.load_state_dict(model, tmp_path / "net.safetensors")
    agree(model, net, images=True)


def test_a_net_that_pools_everything() -> None:
    net = nn.Sequential(
        nn.Conv1d(3, 4, 3, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)
    )  # fmt: skip
    model = interop.from_module(net, (9, 3))
    assert [type(layer).__name__ for layer in model.layers] == ["Conv1D", "GlobalAvgPool1D", "Dense"]
    agree(model, net, images=True)
    pooled = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Conv2d(3, 2, 1))
    agree(interop.from_module(pooled, (4, 5, 3)), pooled, images=True)


def test_nets_that_interpolate() -> None:
    for mode, kind, shape in (("linear", "UpSampling1D", (5, 3)), ("bilinear", "UpSampling2D", (5, 4, 3))):
        net = nn.Sequential(nn.Upsample(scale_factor=2, mode=mode, align_corners=False))
        model = interop.from_module(net, shape)
        assert repr(model.layers[0]) == f"{kind}(interpolation={mode!r})"
        agree(model, net, images=True)


class Text(nn.Module):
    """Recurrent modules, attention and positions, in the order of their use."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.place = nn.Parameter(torch.randn(1, 6, 4)[0])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.stack = nn.LSTM(4, 3, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.rnn = nn.RNN(5, 4, nonlinearity="relu", batch_first=True, bias=False)
        self.norm = nn.RMSNorm(4, eps=1e-6)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        x = self.words(x) + self.place
        x, _ = self.attention(x, x, x)
        x, _ = self.gru(self.stack(x)[0])
        return self.out(self.norm(self.rnn(x)[0][:, -1]))


def text_model() -> Any:
    return nf.Sequential(
        [
            nf.Embedding(7, 4), nf.PositionalEmbedding(), nf.MultiHeadAttention(2),
            nf.Bidirectional(nf.LSTM(3, return_sequences=True)), nf.Bidirectional(nf.LSTM(3, return_sequences=True)),
            nf.GRU(5, return_sequences=True), nf.SimpleRNN(4, "relu", bias=False), nf.RMSNorm(), nf.Dense(2),
        ]
    ).build(6, seed=0)  # fmt: skip


def test_a_text_net() -> None:
    torch.manual_seed(0)
    net, model = Text(), text_model()
    # A parameter of the module itself comes before those of its parts
    state = dict(net.state_dict())
    place = state.pop("place")
    words = state.pop("words.weight")
    interop.load_state_dict(model, {"words.weight": words, "place.P": place, **state})
    agree(model, net, images=False)


def test_stacks_and_directions_come_back() -> None:
    model = randomised(text_model())
    state = interop.state_dict(model)
    again = text_model()
    interop.load_state_dict(again, state)
    x = inputs(model)
    np.testing.assert_array_equal(again.predict(x, device="numpy"), model.predict(x, device="numpy"))


def test_a_graph() -> None:
    x = nf.Input((6, 5, 2))
    shared = nf.Conv2D(2, 3, padding="same", activation="tanh")
    h = nf.Add()(shared(x), shared(shared(x)), x)
    h = nf.Residual([nf.BatchNorm(), nf.Conv2D(4, 1)], nf.Conv2D(4, 1, bias=False))(h)
    one = nf.Flatten()(nf.MaxPool2D()(h))
    other = nf.GlobalAvgPool2D()(h)
    words = nf.CrossAttention(2, 2, out_features=3)(nf.Reshape((6, -1))(h), nf.Reshape((5, -1))(x))
    y = nf.Concat()(nf.Dense(3)(one), one, other, nf.LSTM(3)(words))
    model = randomised(nf.Model(x, nf.Dense(2)(y)).build(seed=0))
    module = interop.to_module(model)
    agree(model, module, images=True)
    zero = nf.Model(x, nf.Dense(2)(y)).build(seed=5)
    interop.load_state_dict(zero, module.state_dict())
    agree(zero, module, images=True)
    # It is a module like others
    loss = module.train()(torch.from_numpy(first(inputs(model)))).sum()
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())


def test_an_autoencoder_gives_images() -> None:
    layers = [nf.Conv2D(3, 3, "relu", stride=2, padding=1), nf.Conv2DTranspose(1, 4, "sigmoid", stride=2, padding=1)]
    model = randomised(nf.Sequential(layers).build((8, 6, 1), seed=0))
    agree(model, interop.to_module(model), images=True, out=True)


def test_training_goes_on_from_them() -> None:
    """A step of a net with a flattened image, from torch's weights, is torch's own step."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    model = interop.from_module(net, (5, 6, 2))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 5, 6, 2)).astype(np.float32), rng.integers(0, 3, 8)
    nf.Trainer(model, "cross_entropy", nf.SGD(0.1, momentum=0.0), device="numpy").step(x, y)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    nn.functional.cross_entropy(net(torch.from_numpy(first(x))), torch.from_numpy(y)).backward()
    optimizer.step()
    back = interop.state_dict(model)
    for key, theirs in net.state_dict().items():
        np.testing.assert_allclose(back[key].numpy(), theirs.numpy(), rtol=1e-4, atol=1e-6, err_msg=key)


# ---- what has no counterpart ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nf.Embedding(5, 3, mask_zero=True), nf.LSTM(2)], r"layer 1 \(lstm\): LSTM has masked steps"),
        ([nf.Embedding(5, 4, mask_zero=True), nf.MultiHeadAttention(2)], r"MultiHeadAttention has masked steps"),
        (
            [nf.Embedding(5, 4, mask_zero=True), nf.Dense(2), nf.GlobalAvgPool1D()],
            r"layer 2 \(globalavgpool1d\): GlobalAvgPool1D has masked steps",
        ),
        ([nf.Embedding(5, 3), nf.GRU(2, reset_after=False)], r"layer 1 \(gru\): PyTorch's GRU resets after"),
        ([nf.Embedding(5, 3), nf.Bidirectional(nf.GRU(2, stateful=True))], r"Bidirectional with stateful=True"),
    ],
)
def test_layers(layers: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interop.to_module(nf.Sequential(layers).build(4))


def test_modules_that_see_what_is_masked() -> None:
    """As layers they would leave it out."""
    pool = nn.Sequential(parts.ChannelsFirst(), nn.AdaptiveMaxPool1d(1), nn.Flatten())
    rnn = parts.Sequences(nn.GRU(2, 3, batch_first=True), every=False, reverse=False)
    for module, name in ((pool, "GlobalMaxPool1D"), (rnn, "GRU")):
        with pytest.raises(ValueError, match=f"layer 1 .*: {name} has masked steps, which have no counterpart"):
            interop.from_module(nn.Sequential(parts.Masking(0.0), module), (4, 2))


class Attention(nn.Module):
    """Of somebody's own, with a name that nnfast uses, too."""


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(Attention()), r"module 0: Attention.*no counterpart"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="reflect")), r"module 0: Conv2d.*no counterpart"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), r"module 0: MaxPool2d"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), r"module 0: AdaptiveAvgPool2d"),
        (nn.Sequential(nn.Conv1d(3, 4, 1), nn.Linear(6, 2)), r"module 1: Linear.* of images with their channels first"),
        (nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 2, 1)), r"module 2: Conv1d"),
        (nn.Sequential(nn.Upsample(scale_factor=2, mode="bicubic")), r"module 0: Upsample"),
        (nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)), r"module 0: Upsample"),
        (nn.Sequential(nn.Upsample(scale_factor=1.5, mode="bilinear")), r"module 0: Upsample"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(dim=-1)), r"module 1: Softmax"),
    ],
)
def test_modules(module: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interop.from_module(module, (6, 6, 3))


def test_the_shape_of_an_image_is_to_be_given() -> None:
    with pytest.raises(ValueError, match=r"give in_shape, as Conv2d comes first"):
        interop.from_module(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)))


def test_weights_of_another_layer() -> None:
    model = nf.Sequential([nf.Conv2D(4, 3)]).build((5, 5, 2))
    with pytest.raises(
        ValueError, match=r"'0' of the state dict does not fit layer conv2d.*W has shape \(3, 3, 3, 4\)"
    ):
        interop.load_state_dict(model, nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict())
    gru = nf.Sequential([nf.GRU(2, reset_after=False)]).build((5, 3))
    with pytest.raises(ValueError, match=r"'' of the state dict does not fit layer gru.*: PyTorch's GRU resets after"):
        interop.load_state_dict(gru, nn.GRU(3, 2).state_dict())
    with pytest.raises(nf.NotBuiltError):
        interop.load_state_dict(nf.Sequential([nf.Conv2D(4, 3), nf.Flatten(), nf.Dense(2)]), image_net().state_dict())
