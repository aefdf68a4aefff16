"""Language models of characters: networks, their training, and what they write.

>>> import nnfast as nf
>>> text = nf.datasets.load_text("book.txt")              # doctest: +SKIP
>>> model, history = nf.language.train(text, "charnn")    # doctest: +SKIP
>>> nf.language.sample(model, text.vocabulary, "It was ")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np

from .datasets.text import Text, Vocabulary, windows
from .errors import DataError
from .layers import GRU, Dense, Dropout, Embedding, Layer, LayerNorm, TransformerBlock
from .model import Sequential
from .network import Network
from .random import UNKNOWN, checked_seed, generator
from .training.callbacks import Callback
from .training.generation import bits, generate
from .training.history import History

__all__ = ["RECIPES", "BitsPerCharacter", "Recipe", "network", "recipe_for", "sample", "train"]

HEAD_UNITS = 32  # features of a head of attention


@dataclass(frozen=True)
class Recipe:
    """What a language model is made of, and how it is trained.

    Attributes
    ----------
    kind : {"charnn", "transformer"}
        Gated recurrent units, or blocks of causal attention.
    units : int
        Size of a recurrent layer's state, or features of a Transformer's steps.
    layers : int
        Recurrent layers, or blocks.
    embedding : int
        Features of a character, for recurrent layers.
    dropout : float
        Rate after the layers; after the embedding it is half as much.
    steps : int
        Characters of a window: as far as gradients go back, and as far as a Transformer sees.
    batch_size : int
        Windows of a step. Those of recurrent layers go on where the ones of the step before ended.
    unknown : float
        Share of the characters that are unknown in training, at random: so a model learns how probable a character is
        that the text does not have, and what to do after one.
    clip_norm : float
        Largest norm of the gradient.
    """

    kind: str
    units: int
    layers: int
    steps: int
    batch_size: int
    epochs: int
    lr: float
    dropout: float
    embedding: int = 64
    optimizer: str = "adamw"
    schedule: str = "one_cycle"
    unknown: float = 0.02
    clip_norm: float = 1.0

    def but(self, **options: Any) -> Recipe:
        """The recipe with the options that are not ``None``."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})

    @property
    def heads(self) -> int:
        """Heads of attention."""
        return max(1, self.units // HEAD_UNITS)


RECIPES = {
    "charnn": Recipe("charnn", units=256, layers=1, steps=64, batch_size=16, epochs=15, lr=4e-3, dropout=0.3),
    "transformer": Recipe(
        "transformer", units=128, layers=4, steps=256, batch_size=4, epochs=24, lr=2.5e-3, dropout=0.3
    ),
}  # fmt: skip
# Characters that these numbers of epochs are for, and windows of an epoch for each one of a batch, at least
_LENGTH, _BATCHES = 214_000, 16


def recipe_for(kind: str, text: Text) -> Recipe:
    """The recipe for a text: a short one is read more often, in smaller batches, than a long one.

    Parameters
    ----------
    kind : {"charnn", "transformer"}
    text : Text

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind not in RECIPES:
        raise ValueError(f"there is no language model {kind!r}; there are {', '.join(RECIPES)}")
    recipe, length = RECIPES[kind], max(len(text.train), 1)
    batch_size = max(min(4, recipe.batch_size), min(recipe.batch_size, length // (recipe.steps * _BATCHES)))
    return recipe.but(epochs=min(100, max(1, round(recipe.epochs * _LENGTH / length))), batch_size=batch_size)


def network(recipe: Recipe, vocabulary: int) -> Sequential:
    """The network of a recipe, for so many different numbers of characters; not built.

    Inputs are (n, steps), outputs logits (n, steps, vocabulary).
    """
    drop = [Dropout(recipe.dropout)] if recipe.dropout else []
    first = [Dropout(recipe.dropout / 2)] if recipe.dropout else []
    layers: list[Layer]
    if recipe.kind == "charnn":
        layers = [Embedding(vocabulary, recipe.embedding), *first]
        for _ in range(recipe.layers):
            layers += [GRU(recipe.units, return_sequences=True, stateful=True), *drop]
        return Sequential([*layers, Dense(vocabulary)])
    if recipe.units % (2 * recipe.heads):
        raise ValueError(
            f"a Transformer of {recipe.units} units has {recipe.heads} heads, which need an even share each: "
            f"units must be a multiple of {HEAD_UNITS}"
        )
    layers = [Embedding(vocabulary, recipe.units), *first]
    for _ in range(recipe.layers):
        layers.append(TransformerBlock(recipe.heads, causal=True, rotary=True, dropout=recipe.dropout))
    return Sequential([*layers, LayerNorm(), Dense(vocabulary)])


class BitsPerCharacter(Callback):
    """Adds bits per character to each epoch's numbers: ``bits`` of training, ``val_bits`` of a text held back.

    Those of training are the loss in other units, so that they are measured with dropout and before the epoch's end.

    Parameters
    ----------
    text : Text
    """

    def __init__(self, text: Text) -> None:
        self.text = text

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        logs["bits"] = logs["loss"] / log(2)
        if len(self.text.validation):
            logs["val_bits"] = float(bits(self.model, self.text.validation, self.text.train).mean())


def train(
    text: Text,
    recipe: str | Recipe = "charnn",
    *,
    device: str = "auto",
    precision: str = "float32",
    seed: int | None = 0,
    callbacks: Sequence[Callback] = (),
    verbose: int = 1,
    resume: Any = None,
) -> tuple[Sequential, History]:
    """Train a language model on the first part of a text.

    Parameters
    ----------
    text : Text
        What :func:`nnfast.datasets.load_text` gave.
    recipe : str or Recipe
        ``"charnn"`` or ``"transformer"``, or what :meth:`Recipe.but` made of one.
    device, precision, seed, verbose, resume
        As for :meth:`nnfast.Sequential.fit`.
    callbacks : sequence of Callback
        They find ``bits`` and ``val_bits`` among the numbers of an epoch.

    Returns
    -------
    model : Sequential
    history : History

    Raises
    ------
    DataError
        If the text is too short for the recipe.
    """
    from . import optimizers

    recipe = recipe_for(recipe, text) if isinstance(recipe, str) else recipe
    recurrent = recipe.kind == "charnn"
    if 0 < len(text.validation) < 2:
        raise DataError(f"{text.name}: a validation part of {len(text.validation)} characters is too short")
    rows = recipe.batch_size
    if recurrent and len(text.train) > recipe.steps:
        rows = min(rows, (len(text.train) - 1) // recipe.steps)  # a short text has fewer parts
    codes = _with_unknown(text.train, recipe.unknown, seed)
    # Half of a Transformer's windows begin in the middle of another one: each character is seen at two places
    cut = {"rows": rows} if recurrent else {"stride": -(-recipe.steps // 2)}
    x, y = windows(codes, recipe.steps, **cut)
    rate = optimizers.schedules.get({"name": recipe.schedule, "lr": recipe.lr})
    optimizer = optimizers.get(recipe.optimizer, lr=rate, clip_norm=recipe.clip_norm)
    model = network(recipe, len(text.vocabulary))
    history = model.fit(
        x,
        y,
        loss="cross_entropy",
        optimizer=optimizer,
        epochs=recipe.epochs,
        batch_size=rows,
        shuffle=not recurrent,
        device=device,
        precision=precision,
        seed=seed,
        callbacks=[BitsPerCharacter(text), *callbacks],
        verbose=verbose,
        resume=resume,
    )
    return model, history


def _with_unknown(codes: np.ndarray, share: float, seed: int | None) -> np.ndarray:
    if not 0 <= share < 1:
        raise ValueError(f"the share of unknown characters must be in [0, 1), got {share}")
    if not share:
        return codes
    drawn = generator(checked_seed(seed), UNKNOWN).random(len(codes))
    return np.where(drawn < share, 0, codes)


def sample(
    model: Network,
    vocabulary: Vocabulary,
    prompt: str = "",
    length: int = 500,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int | None = None,
) -> str:
    """Let a model go on with a text; returns what it adds.

    Parameters
    ----------
    model : Model
        Trained on numbers of `vocabulary`.
    vocabulary : Vocabulary
    prompt : str
        What comes before; by default the end of a line.
    length, temperature, top_k, seed
        As for :func:`nnfast.training.generation.generate`; a character that the vocabulary does not have is never
        drawn.

    Returns
    -------
    str
        `length` characters.

    Raises
    ------
    ValueError
        If the model is of another kind, or an argument does not fit.
    """
    if len(vocabulary) < 2:
        raise ValueError("the vocabulary has no characters")
    before = vocabulary.encode(prompt or "\n")
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "seed": seed}
    return vocabulary.decode(generate(model, np.asarray(before), length, exclude=(0,), **options))
