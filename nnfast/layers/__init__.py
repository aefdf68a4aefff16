"""The layers. A model file names them by class; the names here are all that loading one resolves."""

from .base import BuildContext, Layer, TensorSpec
from .dense import Dense
from .norm import BatchNorm, LayerNorm
from .pointwise import Activation, Dropout, Flatten

__all__ = ["Activation", "BatchNorm", "BuildContext", "Dense", "Dropout", "Flatten", "Layer", "LayerNorm", "TensorSpec"]

TABLE: dict[str, type[Layer]] = {
    layer.__name__: layer for layer in (Activation, BatchNorm, Dense, Dropout, Flatten, LayerNorm)
}
