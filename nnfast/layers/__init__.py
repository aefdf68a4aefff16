"""The layers. A model file names them by class; the names here are all that loading one resolves."""

from .attention import CrossAttention, MultiHeadAttention
from .base import BuildContext, Layer, TensorSpec
from .blocks import Chain, Parallel, Residual, TransformerBlock
from .convolution import Conv1D, Conv2D, DepthwiseConv2D
from .dense import Dense
from .embedding import Embedding, Masking
from .graph import Block
from .merge import Add, Concat
from .norm import BatchNorm, LayerNorm, RMSNorm
from .pointwise import Activation, Dropout, Flatten
from .positions import PositionalEmbedding
from .transposed_convolution import Conv2DTranspose

__all__ = [
    "Activation",
    "Add",
    "BatchNorm",
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
    "Layer",
    "LayerNorm",
    "Masking",
    "MultiHeadAttention",
    "Parallel",
    "PositionalEmbedding",
    "RMSNorm",
    "Residual",
    "TensorSpec",
    "TransformerBlock",
]

TABLE: dict[str, type[Layer]] = {
    name: kind
    for name, kind in list(globals().items())
    if isinstance(kind, type) and issubclass(kind, Layer) and kind not in (Block, Layer)
}
