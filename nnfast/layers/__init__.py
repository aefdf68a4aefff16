"""The layers. A model file names them by class; the names here are all that loading one resolves."""

from .base import BuildContext, Layer, TensorSpec
from .convolution import Conv1D, Conv2D, DepthwiseConv2D
from .dense import Dense
from .group_norm import GroupNorm
from .images import Reshape, UpSampling1D, UpSampling2D, ZeroPadding1D, ZeroPadding2D
from .norm import BatchNorm, LayerNorm
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
from .transposed_convolution import Conv2DTranspose

__all__ = [
    "Activation",
    "AvgPool1D",
    "AvgPool2D",
    "BatchNorm",
    "BuildContext",
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GlobalAvgPool1D",
    "GlobalAvgPool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "GroupNorm",
    "Layer",
    "LayerNorm",
    "MaxPool1D",
    "MaxPool2D",
    "Reshape",
    "SpatialDropout",
    "TensorSpec",
    "UpSampling1D",
    "UpSampling2D",
    "ZeroPadding1D",
    "ZeroPadding2D",
]

#: Layers of images and sequences
SPATIAL: tuple[type[Layer], ...] = (
    AvgPool1D,
    AvgPool2D,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    DepthwiseConv2D,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    GroupNorm,
    MaxPool1D,
    MaxPool2D,
    Reshape,
    SpatialDropout,
    UpSampling1D,
    UpSampling2D,
    ZeroPadding1D,
    ZeroPadding2D,
)

TABLE: dict[str, type[Layer]] = {
    layer.__name__: layer for layer in (Activation, BatchNorm, Dense, Dropout, Flatten, LayerNorm, *SPATIAL)
}
