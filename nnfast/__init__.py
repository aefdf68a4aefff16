"""nnfast: one forward/backprop code for neural networks, on NumPy, fused Numba kernels or CuPy.

Names are resolved on first use, so that importing the package loads neither numba nor cupy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAYERS = (
    "Activation", "Add", "AvgPool1D", "AvgPool2D", "BatchNorm", "Bidirectional", "Block", "Chain", "Concat", "Conv1D",
    "Conv2D", "Conv2DTranspose", "CrossAttention", "Dense", "DepthwiseConv2D", "Dropout", "Embedding", "Flatten",
    "GRU", "GlobalAvgPool1D", "GlobalAvgPool2D", "GlobalMaxPool1D", "GlobalMaxPool2D", "GroupNorm", "LSTM", "Layer",
    "LayerNorm", "Masking", "MaxPool1D", "MaxPool2D", "MultiHeadAttention", "Parallel", "PositionalEmbedding",
    "RMSNorm", "Reshape", "Residual", "SimpleRNN", "SpatialDropout", "TransformerBlock", "UpSampling1D",
    "UpSampling2D", "ZeroPadding1D", "ZeroPadding2D",
)  # fmt: skip

# name -> module that defines it
_NAMES = {
    "get_backend": "functional",
    "available_devices": "devices",
    **dict.fromkeys(("Model", "Sequential", "load"), "model"),
    "Input": "layers.symbolic",
    "JointLoss": "joint_loss",
    **dict.fromkeys(_LAYERS, "layers"),
    **dict.fromkeys(
        (
            "Loss",
            "MeanSquaredError",
            "MeanAbsoluteError",
            "Huber",
            "BinaryCrossEntropy",
            "CrossEntropy",
            "Poisson",
            "Hinge",
        ),
        "losses",
    ),
    **dict.fromkeys(
        ("Optimizer", "SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam", "Lion"), "optimizers"
    ),
    "Trainer": "training.trainer",
    "History": "training.history",
    **dict.fromkeys(
        (
            "Callback",
            "EarlyStopping",
            "ModelCheckpoint",
            "CSVLogger",
            "LearningRateLogger",
            "StopOnNonFinite",
        ),
        "training.callbacks",
    ),
    "NeuralNetwork": "scratch",
    "WeightPath": "plotting",
    "TrainingCheckpoint": "training.resuming",
    "ProgressBar": "training.progress",
    **dict.fromkeys(
        (
            "NNFastError",
            "DeviceUnavailable",
            "OutOfMemoryError",
            "NonFiniteError",
            "CheckpointError",
            "DataError",
            "NotBuiltError",
        ),
        "errors",
    ),
}
_MODULES = frozenset(
    {
        "activations",
        "datasets",
        "devices",
        "errors",
        "initializers",
        "interop",
        "language",
        "layers",
        "losses",
        "metrics",
        "optimizers",
        "plotting",
        "precision",
        "preprocessing",
        "random",
        "testing",
        "training",
    }
)

__all__ = [*_NAMES, *_MODULES, "__version__"]

if TYPE_CHECKING:
    from .devices import available_devices
    from .errors import (
        CheckpointError,
        DataError,
        DeviceUnavailable,
        NNFastError,
        NonFiniteError,
        NotBuiltError,
        OutOfMemoryError,
    )
    from .functional import get_backend
    from .joint_loss import JointLoss
    from .layers import *  # noqa: F403 - its names are those of _LAYERS, and a test says so
    from .layers.symbolic import Input
    from .losses import (
        BinaryCrossEntropy,
        CrossEntropy,
        Hinge,
        Huber,
        Loss,
        MeanAbsoluteError,
        MeanSquaredError,
        Poisson,
    )
    from .model import Model, Sequential, load
    from .optimizers import SGD, Adagrad, Adam, Adamax, AdamW, Lion, NAdam, Optimizer, RMSprop
    from .plotting import WeightPath
    from .scratch import NeuralNetwork
    from .training.callbacks import (
        Callback,
        CSVLogger,
        EarlyStopping,
        LearningRateLogger,
        ModelCheckpoint,
        StopOnNonFinite,
    )
    from .training.history import History
    from .training.progress import ProgressBar
    from .training.resuming import TrainingCheckpoint
    from .training.trainer import Trainer


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'nnfast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
