"""The layers. A model file names them by class; the names here are all that loading one resolves."""

from .base import BuildContext, Layer, TensorSpec
from .blocks import Chain, Parallel, Residual
from .convolution import Conv1D, Conv2D, DepthwiseConv2D
from .dense import Dense
from .merge import Add, Concat
from .norm import BatchNorm, LayerNorm
from .pointwise import Activation, Dropout, Flatten
from .transposed_convolution import Conv2DTranspose

_SPATIAL: tuple[type[Layer], ...] = (Conv1D, Conv2D, DepthwiseConv2D, Conv2DTranspose)
_BLOCKS: tuple[type[Layer], ...] = (Add, Chain, Concat, Parallel, Residual)

__all__ = ["Activation", "BatchNorm", "BuildContext", "Dense", "Dropout", "Flatten", "Layer", "LayerNorm", "TensorSpec"]
__all__ += [layer.__name__ for layer in (*_SPATIAL, *_BLOCKS)]

TABLE: dict[str, type[Layer]] = {
    layer.__name__: layer for layer in (Activation, BatchNorm, Dense, Dropout, Flatten, LayerNorm, *_SPATIAL, *_BLOCKS)
}
