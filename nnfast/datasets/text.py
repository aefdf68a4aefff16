"""Text as numbers: reading files, a vocabulary of characters, windows to train on.

>>> words = Vocabulary.of("abracadabra")
>>> words.characters, words.decode(words.encode("cab"))
('abcdr', 'cab')
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import DataError

__all__ = ["UNKNOWN", "Text", "Vocabulary", "load_text", "read_text", "windows"]

#: How a character that the vocabulary does not have is written
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Vocabulary:
    """Characters and their numbers: 1 for the first one, and 0 for all that are not among them.

    Parameters
    ----------
    characters : str
        Each one once, in the order of their code points.
    """

    characters: str

    def __post_init__(self) -> None:
        if not isinstance(self.characters, str):
            raise TypeError(f"Vocabulary: characters must be text, not {type(self.characters).__name__}")
        if list(self.characters) != sorted(set(self.characters)):
            raise ValueError("Vocabulary: characters must be sorted, each one once")

    @classmethod
    def of(cls, text: str, *, min_count: int = 1) -> Vocabulary:
        """The characters that occur at least `min_count` times in `text`."""
        points, counts = np.unique(_points(text), return_counts=True)
        return cls("".join(map(chr, points[counts >= min_count].tolist())))

    def __len__(self) -> int:
        return len(self.characters) + 1

    @cached_property
    def _sorted(self) -> np.ndarray:
        return _points(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """The numbers of the characters of `text`, int64 (len(text),)."""
        points = _points(text)
        if not self.characters:
            return np.zeros(len(points), np.int64)
        place = np.minimum(np.searchsorted(self._sorted, points), len(self._sorted) - 1)
        return np.where(self._sorted[place] == points, place + 1, 0).astype(np.int64)

    def decode(self, codes: Iterable[int]) -> str:
        """The text of such numbers, with :data:`UNKNOWN` for 0.

        Raises
        ------
        ValueError
            If a number is no character's.
        """
        numbers = np.asarray(codes if isinstance(codes, np.ndarray) else list(codes), np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise ValueError(
                f"characters have the numbers 0 to {len(self) - 1}, got {numbers.min()} to {numbers.max()}"
            )
        table = UNKNOWN + self.characters
        return "".join(table[number] for number in numbers.tolist())


def _points(text: str) -> np.ndarray:
    """Code points of the characters, (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@dataclass(frozen=True)
class Text:
    """A text in two parts, as numbers.

    Attributes
    ----------
    name : str
        Where it was read.
    train, validation : ndarray of int64
        Numbers of the characters of the first part, and of the rest.
    vocabulary : Vocabulary
        The characters of the first part.
    files : tuple of str
        The files, in the order that they follow one another.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    vocabulary: Vocabulary
    files: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls, text: str, *, name: str = "text", validation: float = 0.1, min_count: int = 1, files: Sequence[str] = ()
    ) -> Text:
        """Split a text and number its characters; the parameters are those of :func:`load_text`."""
        if not 0 <= validation < 1:
            raise ValueError(f"validation must be a share in [0, 1), got {validation}")
        cut = len(text) - round(validation * len(text))
        if cut == 0:
            raise DataError(f"{name}: {len(text)} characters leave none to train on beside validation")
        vocabulary = Vocabulary.of(text[:cut], min_count=min_count)
        codes = vocabulary.encode(text)
        return cls(name, codes[:cut], codes[cut:], vocabulary, tuple(files))


def _files(sources: Sequence[Source]) -> list[Path]:
    """The files that the sources name, those of a folder by name, and each one once, also where links lead to it."""
    found: dict[Path, Path] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
            if not inside:
                raise DataError(f"the folder {path} has no files")
        elif path.is_file():
            inside = [path]
        else:
            raise DataError(f"there is no text file {str(source)!r}")
        for each in inside:
            found.setdefault(each.resolve(), each)
    return [resolved if name.is_symlink() else name for resolved, name in found.items()]


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # a byte order mark at the beginning is not in what `error` counts
        start = error.start + (len(content) - len(error.object))
        line = content.count(b"\n", 0, start) + 1
        raise DataError(
            f"{path} is not UTF-8 text: byte 0x{content[start]:02x} at offset {start}, in line {line}, is not part of "
            "a character"
        ) from None
    if "\0" in text:
        raise DataError(f"{path} is binary: it has a zero byte at offset {content.index(0)}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(source: Source | Sequence[Source]) -> tuple[str, tuple[str, ...]]:
    """Read text files, one after the other.

    Parameters
    ----------
    source : path_like or sequence of path_like
        UTF-8 files, or folders of them, whose files are taken by name; what links lead to is read once.

    Returns
    -------
    text : str
        With ``\\n`` at the end of each line.
    files : tuple of str
        What was read.

    Raises
    ------
    DataError
        If a file is missing, binary, not UTF-8, or all are empty.
    """
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    files = _files(sources)
    parts = [_decoded(path) for path in files]
    # a line does not go on in the next file
    text = "".join(part if part.endswith("\n") or len(parts) == 1 else part + "\n" for part in parts if part)
    names = tuple(map(str, files))
    if not text:
        raise DataError(f"{', '.join(names) or 'the list of files'}: there is no text, the size is 0")
    return text, names


def load_text(source: Source | Sequence[Source], *, validation: float = 0.1, min_count: int = 1) -> Text:
    """Read text files and set the end aside for validation.

    The split is one place in the whole text, so that no part of validation lies between parts of training.

    Parameters
    ----------
    source : path_like or sequence of path_like
        As for :func:`read_text`.
    validation : float
        Share of the characters, in [0, 1), that comes last and is held back.
    min_count : int
        Characters that occur less often than this in the part to train on are not in the vocabulary. With 2 a model
        learns how probable an unknown character is, from those that occur once.

    Returns
    -------
    Text

    Raises
    ------
    DataError
        If the files cannot be read as text.
    """
    text, files = read_text(source)
    name = ", ".join(map(str, [source] if isinstance(source, (str, os.PathLike)) else source))
    return Text.of(text, name=name, validation=validation, min_count=min_count, files=files)


def windows(
    codes: np.ndarray, steps: int, *, stride: int | None = None, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text into windows, and into what comes one character later in each place.

    Parameters
    ----------
    codes : ndarray of int64
        Numbers of the characters, (length,).
    steps : int
        Length of a window.
    stride : int, optional
        From the beginning of a window to that of the next one; by default `steps`. Characters at the end that fill no
        window are left out.
    rows : int, optional
        Cut the text into so many parts of equal length, and let row `i` of each batch of `rows` windows go on where
        row `i` of the batch before ended. This is the order that layers with ``stateful=True`` need, with
        ``batch_size=rows`` and ``shuffle=False``.

    Returns
    -------
    x, y : ndarray of int64
        (windows, steps); ``y[i, t]`` follows on ``x[i, t]`` in the text.

    Raises
    ------
    DataError
        If the text is too short for one window, or for one in each of `rows` parts.

    Examples
    --------
    >>> x, y = windows(np.arange(7), 3)
    >>> x.tolist(), y.tolist()
    ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    >>> windows(np.arange(9), 2, rows=2)[0].tolist()
    [[0, 1], [4, 5], [2, 3], [6, 7]]
    """
    codes = np.asarray(codes)
    if codes.ndim != 1 or codes.dtype.kind not in "iu":
        raise TypeError(f"windows: codes must be whole numbers of shape (length,), got {codes.dtype} {codes.shape}")
    for what, value in (("steps", steps), ("stride", stride), ("rows", rows)):
        if value is not None and value < 1:
            raise ValueError(f"windows: {what} must be at least 1, got {value}")
    if stride is not None and rows is not None:
        raise ValueError("windows: give stride or rows, not both; windows that go on overlap nowhere")
    each = (len(codes) - 1) // (rows or 1)  # characters of a part that have a next one
    if each < steps:
        parts = f" for each of {rows} rows" if rows else ""
        needed = (rows or 1) * steps + 1
        raise DataError(f"the text has {len(codes)} characters; windows of {steps} steps{parts} need at least {needed}")
    if rows is None:
        starts = np.arange(0, each - steps + 1, stride or steps)
    else:
        starts = (np.arange(each // steps)[:, None] * steps + np.arange(rows) * each).reshape(-1)
    cut = np.lib.stride_tricks.sliding_window_view(codes, steps + 1)[starts]
    return cut[:, :-1].astype(np.int64), cut[:, 1:].astype(np.int64)
