"""A trained language model together with its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.text import Vocabulary
from ..errors import CheckpointError

__all__ = ["TextBundle", "is_text"]

KEY = "text"  # where in the model file's extra JSON it is kept


def is_text(model: Any) -> bool:
    """Whether a model that was loaded is one of text."""
    return isinstance(model.extra.get(KEY), dict)


@dataclass
class TextBundle:
    """A model and the characters that its numbers mean.

    Attributes
    ----------
    model : Sequential
    vocabulary : Vocabulary
    kind : str
        ``"charnn"`` or ``"transformer"``.
    data : str
        What it was trained on.
    """

    model: Any
    vocabulary: Vocabulary
    kind: str
    data: str

    def save(self, path: str | Path) -> None:
        """Write the model file."""
        own = {"vocabulary": self.vocabulary.characters, "kind": self.kind, "data": self.data}
        self.model.save(path, extra={KEY: own})

    @classmethod
    def of(cls, model: Any, path: str | Path) -> TextBundle:
        """What a model that was loaded from `path` says of itself.

        Raises
        ------
        CheckpointError
            If it is no model of text, or its vocabulary is not the one of its layers.
        """
        if not is_text(model):
            raise CheckpointError(f"{path} is no model of text: 'nnfast train FILE --model charnn' makes one")
        own = model.extra[KEY]
        try:
            vocabulary = Vocabulary(own["vocabulary"])
            fits = model.out_shape[-1:] == (len(vocabulary),)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} has no vocabulary that could be read: {error}") from None
        if not fits:
            raise CheckpointError(f"{path} has a vocabulary of {len(vocabulary)}, but outputs {model.out_shape}")
        return cls(model, vocabulary, str(own.get("kind")), str(own.get("data")))

    @classmethod
    def load(cls, path: str | Path, device: str) -> TextBundle:
        """Read a model file that ``nnfast train --model charnn`` or ``transformer`` wrote, for use on `device`."""
        from .bundle import load_model

        return cls.of(load_model(path, device), path)

    def metrics(self, text: str) -> dict[str, float]:
        """Bits per character of a text, how many characters of it are measured, and how many are unknown.

        Raises
        ------
        ValueError
            If the text has fewer than two characters.
        """
        from ..training.generation import bits

        if len(text) < 2:
            raise ValueError(f"a text of {len(text)} characters has none that follows on another one")
        codes = self.vocabulary.encode(text)
        found = bits(self.model, codes)
        return {
            "bits_per_character": float(found.mean()),
            "characters": len(found),
            "unknown": int(np.count_nonzero(codes == 0)),
        }
