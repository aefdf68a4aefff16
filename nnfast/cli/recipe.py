"""What ``nnfast train`` does when it is not told: layers, epochs and so on for each kind of data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..datasets import Dataset, Table

__all__ = ["Recipe", "parse_layers", "recipe_for"]


@dataclass(frozen=True)
class Recipe:
    """Defaults of a training run; an option of the command line replaces each of them.

    Attributes
    ----------
    layers : tuple of int
        Width of each hidden layer, or channels of each convolution.
    units : int
        Width of the hidden layer behind convolutions.
    patience : int or None
        Epochs without a better validation loss after which to stop; ``None`` trains to the end.
    """

    layers: tuple[int, ...] = (64, 32)
    units: int = 0
    activation: str = "relu"
    dropout: float = 0.0
    optimizer: str = "adam"
    lr: float | None = 1e-3
    schedule: str = "cosine"
    epochs: int = 50
    batch_size: int = 32
    val_split: float = 0.1
    patience: int | None = None

    def but(self, **options: Any) -> Recipe:
        """The recipe with the options that are not ``None``."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


_NAMED = {
    # four rows: nothing to hold back, and a smooth activation finds its way out of plateaus
    "xor": Recipe(layers=(8,), activation="tanh", lr=0.05, epochs=200, batch_size=4, val_split=0.0),
    "spiral": Recipe(layers=(64, 64), lr=0.01, epochs=100, batch_size=50),
    "digits": Recipe(layers=(128, 64), epochs=40, batch_size=32),
    "fashion-mnist": Recipe(layers=(256, 128), lr=2e-3, epochs=10, batch_size=128, val_split=0.05),
}
# Two convolutions; Fashion-MNIST has 111,426 parameters with these
_IMAGES = Recipe(
    layers=(32, 64), units=40, dropout=0.2, lr=2e-3, schedule="one_cycle", epochs=12, batch_size=128, val_split=0.05
)
_TABLE_STEPS = 4000  # optimizer steps that a table of unknown content gets, within 5 to 200 epochs


def recipe_for(data: Dataset, model: str = "mlp") -> Recipe:
    """The defaults for a data set and a kind of model, ``"mlp"`` or ``"cnn"``."""
    if model == "cnn":
        return _for_images(data)
    if data.name in _NAMED:
        return _NAMED[data.name]
    rows = len(data.X_train)
    batch_size = 32 if rows <= 5_000 else 128 if rows <= 50_000 else 256
    if data.pixel_max is not None:
        return replace(_NAMED["fashion-mnist"], batch_size=max(batch_size, 32), epochs=10 if rows > 20_000 else 30)
    epochs = min(200, max(5, _TABLE_STEPS * batch_size // max(rows, 1)))
    # a small file is learned by heart in that time, so the validation part decides when it is enough
    return Recipe(
        epochs=epochs, batch_size=batch_size, val_split=0.2 if rows <= 5_000 else 0.1, patience=max(5, epochs // 5)
    )


def _for_images(data: Dataset) -> Recipe:
    rows, shape = len(data.X_train), () if isinstance(data.X_train, Table) else data.X_train.shape[1:]
    if len(shape) not in (2, 3):
        raise ValueError(
            f"--model cnn is for images, rows of shape (height, width) or (height, width, channels); {data.name} has "
            + (f"rows of shape {shape}" if shape else "a table")
        )
    if rows > 20_000:
        return _IMAGES
    return replace(_IMAGES, epochs=30, batch_size=32 if rows <= 5_000 else 64, val_split=0.1)


def parse_layers(text: str) -> tuple[int, ...]:
    """``"256,128"`` as ``(256, 128)``; ``"none"`` is a model without hidden layers.

    Raises
    ------
    ValueError
        If it is not a list of positive whole numbers.
    """
    if text.strip().lower() in ("none", ""):
        return ()
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = (0,)
    if min(widths) < 1:
        raise ValueError(f"--layers takes positive whole numbers such as 256,128, or none; got {text!r}")
    return widths
