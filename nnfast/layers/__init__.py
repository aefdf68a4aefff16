"""The layers. A model file names them by class; the names here are all that loading one resolves."""

from .attention import CrossAttention, MultiHeadAttention
from .base import BuildContext, Layer, TensorSpec
from .bidirectional import Bidirectional
from .blocks import Chain, Parallel, Residual, TransformerBlock
from .convolution import Conv1D, Conv2D, DepthwiseConv2D
from .dense import Dense
from .embedding import Embedding, Masking
from .graph import Block
from .group_norm import GroupNorm
from .images import Reshape, UpSampling1D, UpSampling2D, ZeroPadding1D, ZeroPadding2D
from .merge import Add, Concat
from .norm import BatchNorm, LayerNorm, RMSNorm
from .pointwise import Activation, Dropout, Flatten, SpatialDropout
from .pooling import (
    AvgPool1D,
    AvgPool2D,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    MaxPool1D,
    MaxPool2D,
)
from .positions import PositionalEmbedding
from .recurrent import GRU, LSTM, SimpleRNN
from .transposed_convolution import Conv2DTranspose

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "Add",
    "AvgPool1D",
    "AvgPool2D",
    "BatchNorm",
    "Bidirectional",
    "Block",
    "BuildContext",
    "Chain",
    "Concat",
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "CrossAttention",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAvgPool1D",
    "GlobalAvgPool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "GroupNorm",
    "Layer",
    "LayerNorm",
    "Masking",
    "MaxPool1D",
    "MaxPool2D",
    "MultiHeadAttention",
    "Parallel",
    "PositionalEmbedding",
    "RMSNorm",
    "Reshape",
    "Residual",
    "SimpleRNN",
    "SpatialDropout",
    "TensorSpec",
    "TransformerBlock",
    "UpSampling1D",
    "UpSampling2D",
    "ZeroPadding1D",
    "ZeroPadding2D",
]

TABLE: dict[str, type[Layer]] = {
    name: kind
    for name, kind in list(globals().items())
    if isinstance(kind, type) and issubclass(kind, Layer) and kind not in (Block, Layer)
}
