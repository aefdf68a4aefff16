"""PyTorch's modules as layers. Needs no PyTorch: classes go by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..activations import Activation as Function
from ..layers import (
    GRU,
    LSTM,
    Activation,
    AvgPool1D,
    AvgPool2D,
    BatchNorm,
    Bidirectional,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    GroupNorm,
    Layer,
    LayerNorm,
    Masking,
    MaxPool1D,
    MaxPool2D,
    MultiHeadAttention,
    PositionalEmbedding,
    Reshape,
    RMSNorm,
    SimpleRNN,
    SpatialDropout,
    UpSampling1D,
    UpSampling2D,
    ZeroPadding1D,
    ZeroPadding2D,
)
from ..layers.convolution import ConvolutionLayer
from .torch_activations import activation_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["first_features", "layers_of"]


def layers_of(module: nn.Module) -> list[Layer]:
    """The layers of a chain of modules.

    Raises
    ------
    ValueError
        If a module, or an argument of one, has no counterpart.
    """
    layers: list[Layer] = []
    modules = [(name, part) for name, part in _flat(module) if _kind(part) != "Identity"]
    images = _begins_with_images(modules)
    for number, (name, part) in enumerate(modules):
        kind = _kind(part)
        if (activation := activation_of(part, images)) is not None:
            _activate(layers, activation)
            continue
        if kind in ("ChannelsFirst", "ChannelsLast"):
            images = kind == "ChannelsFirst"
            continue
        before, after = modules[number - 1 : number], modules[number + 1 : number + 2]
        if kind == "Flatten" and before and "Adaptive" in type(before[0][1]).__name__ and _flattens(part):
            continue  # a global pooling layer gives rows of numbers
        found = _READERS[kind](part) if kind in _READERS else None
        if found is None or images is not _IMAGES.get(kind, images):
            where = " of images with their channels first" if found is not None and images else ""
            raise ValueError(f"module {name}: {part}{where} has no counterpart in nnfast")
        layers.append(found)
        if kind in _GLOBAL:
            if not after or not _flattens(after[0][1]):
                layers.append(Reshape((*(1,) * int(kind[-2]), -1)))
            else:
                images = False
        elif kind == "Flatten":
            images = False
    return layers


def first_features(module: nn.Module) -> int:
    """Inputs of the first linear module, if only what works on rows of numbers comes before it.

    Raises
    ------
    ValueError
        If there is none.
    """
    for _, part in _flat(module):
        kind = _kind(part)
        if kind == "Linear":
            return int(part.in_features)
        if kind in _READERS and kind not in ("BatchNorm1d", "Dropout", "Flatten", "LayerNorm"):
            raise ValueError(f"the shape of the inputs is not known: give in_shape, as {kind} comes first")
    raise ValueError("the shape of the inputs is not known: give in_shape, as no module is linear")


def _kind(part: Any) -> str:
    """The name of a module's class, nothing for one of somebody else's."""
    return type(part).__name__ if type(part).__module__.startswith(("torch.nn.", "nnfast.interop.")) else ""


def _flat(module: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """All modules in their order, with those of inner Sequentials in place of these."""
    if type(module).__name__ != "Sequential":
        return [(prefix, module)]
    return [
        found for name, part in module.named_children() for found in _flat(part, f"{prefix}.{name}" if prefix else name)
    ]


def _begins_with_images(modules: list[tuple[str, Any]]) -> bool:
    kinds = (_kind(part) for _, part in modules)
    return next((_IMAGES[kind] for kind in kinds if kind in _IMAGES), False)


def _activate(layers: list[Layer], activation: Function) -> None:
    """As part of the layer before, where that can have one, or as a layer."""
    last: Any = layers[-1] if layers else None
    if isinstance(last, (Dense, ConvolutionLayer)) and last.activation.name == "identity":
        layers[-1] = type(last)(**(last.config() | {"activation": str(activation)}))
    else:
        layers.append(Activation(activation))


def _flattens(part: Any) -> bool:
    return type(part).__name__ == "Flatten" and (part.start_dim, part.end_dim) == (1, -1)


# ---- modules, each with arguments that have a counterpart, or None -------------------------------------------
def _convolution(layer: Callable[..., Layer]) -> Callable[[Any], Layer | None]:
    def read(part: Any) -> Layer | None:
        if part.padding_mode != "zeros":
            return None
        padding = part.padding if isinstance(part.padding, str) else _pairs(part.padding)
        more = {"output_padding": part.output_padding} if layer is Conv2DTranspose else {}
        return layer(
            part.out_channels, part.kernel_size, stride=part.stride, padding=padding, dilation=part.dilation,
            groups=part.groups, bias=part.bias is not None, **more,
        )  # fmt: skip

    return read


def _pairs(padding: Any) -> tuple[tuple[int, int], ...] | int:
    """The same on both sides of each axis."""
    return padding if isinstance(padding, int) else tuple((int(n), int(n)) for n in padding)


def _max_pool(layer: Callable[..., Layer]) -> Callable[[Any], Layer | None]:
    def read(part: Any) -> Layer | None:
        if part.ceil_mode or part.return_indices or part.dilation not in (1, (1,), (1, 1)):
            return None
        return layer(part.kernel_size, part.stride, _pairs(part.padding))

    return read


def _avg_pool(layer: Callable[..., Layer]) -> Callable[[Any], Layer | None]:
    def read(part: Any) -> Layer | None:
        if part.ceil_mode or getattr(part, "divisor_override", None) is not None:
            return None
        return layer(part.kernel_size, part.stride, _pairs(part.padding), count_padding=part.count_include_pad)

    return read


def _of_all(layer: Callable[[], Layer]) -> Callable[[Any], Layer | None]:
    return lambda part: layer() if part.output_size in (1, (1,), (1, 1)) else None


def _zero_pad_1d(part: Any) -> Layer | None:
    return ZeroPadding1D(part.padding) if min(part.padding) >= 0 else None


def _zero_pad_2d(part: Any) -> Layer | None:
    left, right, above, below = part.padding
    return ZeroPadding2D(((above, below), (left, right))) if min(part.padding) >= 0 else None


def _upsample(part: Any) -> Layer | None:
    factors, mode = part.scale_factor, part.mode
    # One number says nothing of the axes, but the mode may
    sizes = factors if isinstance(factors, tuple) else (factors,) * (1 if mode == "linear" else 2)
    layer = UpSampling1D if len(sizes) == 1 else UpSampling2D
    if mode not in layer.interpolations or part.align_corners or any(n is None or int(n) != n for n in sizes):
        return None
    return layer(tuple(map(int, sizes)), mode)


def _batch_norm(part: Any) -> Layer | None:
    if part.affine and part.track_running_stats and part.momentum:
        return BatchNorm(part.momentum, part.eps)
    return None


def _layer_norm(part: Any) -> Layer | None:
    fits = len(part.normalized_shape) == 1 and part.elementwise_affine and part.bias is not None
    return LayerNorm(part.eps) if fits else None


def _rms_norm(part: Any) -> Layer | None:
    fits = len(part.normalized_shape) == 1 and part.elementwise_affine and part.eps
    return RMSNorm(part.eps) if fits else None


def _embedding(part: Any) -> Layer | None:
    return Embedding(part.num_embeddings, part.embedding_dim) if part.max_norm is None else None


def _sequences(part: Any) -> Layer | None:
    rnn = part.rnn
    if rnn.num_layers != 1 or not rnn.batch_first or getattr(rnn, "proj_size", 0):
        return None
    options = {"return_sequences": part.every, "reverse": part.reverse, "bias": rnn.bias}
    layer: Any
    match type(rnn).__name__:
        case "RNN":
            layer = SimpleRNN(rnn.hidden_size, rnn.nonlinearity, **options)
        case "GRU":
            layer = GRU(rnn.hidden_size, **options)
        case _:
            layer = LSTM(rnn.hidden_size, **options)
    return Bidirectional(layer, part.merge) if rnn.bidirectional else layer


def _attention(part: Any) -> Layer | None:
    width = part.out_proj.in_features
    return MultiHeadAttention(
        part.heads, width // part.heads, causal=part.causal, bias=part.in_proj_bias is not None,
        rotary=part.base or False, out_features=part.out_proj.out_features,
    )  # fmt: skip


def _positions(part: Any) -> Layer | None:
    learned = any(True for _ in part.parameters())
    return PositionalEmbedding("learned", len(part.P)) if learned else PositionalEmbedding("sinusoidal")


_READERS: dict[str, Callable[[Any], Layer | None]] = {
    "AdaptiveAvgPool1d": _of_all(GlobalAvgPool1D),
    "AdaptiveAvgPool2d": _of_all(GlobalAvgPool2D),
    "AdaptiveMaxPool1d": _of_all(GlobalMaxPool1D),
    "AdaptiveMaxPool2d": _of_all(GlobalMaxPool2D),
    "Attention": _attention,
    "AvgPool1d": _avg_pool(AvgPool1D),
    "AvgPool2d": _avg_pool(AvgPool2D),
    "BatchNorm1d": _batch_norm,
    "BatchNorm2d": _batch_norm,
    "Conv1d": _convolution(Conv1D),
    "Conv2d": _convolution(Conv2D),
    "ConvTranspose2d": _convolution(Conv2DTranspose),
    "Dropout": lambda part: Dropout(part.p),
    "Dropout1d": lambda part: SpatialDropout(part.p),
    "Dropout2d": lambda part: SpatialDropout(part.p),
    "Embedding": _embedding,
    "Flatten": lambda part: Flatten() if _flattens(part) else None,
    "GroupNorm": lambda part: GroupNorm(part.num_groups, part.eps) if part.affine else None,
    "LayerNorm": _layer_norm,
    "Linear": lambda part: Dense(part.out_features, bias=part.bias is not None),
    "Masking": lambda part: Masking(part.value),
    "MaxPool1d": _max_pool(MaxPool1D),
    "MaxPool2d": _max_pool(MaxPool2D),
    "Positions": _positions,
    "RMSNorm": _rms_norm,
    "Sequences": _sequences,
    "Unflatten": lambda part: Reshape(tuple(part.unflattened_size)) if part.dim == 1 else None,
    "Upsample": _upsample,
    "ZeroPad1d": _zero_pad_1d,
    "ZeroPad2d": _zero_pad_2d,
}
_GLOBAL = {kind for kind in _READERS if kind.startswith("Adaptive")}
# Modules that take images, or sequences, with their channels first only, and those that take none such
_FIRST = {
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Upsample",
    "ZeroPad1d",
    "ZeroPad2d",
    "Dropout1d",
    "Dropout2d",
    "BatchNorm2d",
}
_LAST = {"Attention", "Embedding", "LayerNorm", "Linear", "Masking", "Positions", "RMSNorm", "Sequences", "Unflatten"}
_POOLS = {kind for kind in _READERS if "Pool" in kind}
_IMAGES = dict.fromkeys(_FIRST | _POOLS, True) | dict.fromkeys(_LAST, False)
