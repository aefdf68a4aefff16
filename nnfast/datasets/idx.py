"""IDX files, the format of MNIST and its relatives, plain or gzipped.

An IDX file is two zero bytes, a byte for the dtype, a byte for the number of axes, the axes as
big-endian 32-bit numbers, and the elements in C order, big-endian (LeCun, Cortes, Burges: "The MNIST
database of handwritten digits").
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import DataError
from .base import Dataset

__all__ = ["is_idx_folder", "load_folder", "read_idx"]

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20

_NAME = re.compile(r"(?:^|[-_.])(train|t10k|test)[-_.](images|labels)[-_.]idx\d-ubyte(?:\.gz)?$")


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file.

    Parameters
    ----------
    path : str or Path
        The file; gzip is recognised by its first bytes, not by the name.

    Returns
    -------
    ndarray
        In native byte order, of the shape and dtype that the file states.

    Raises
    ------
    DataError
        If it is no IDX file, is damaged, or its size is not what its header says. A header that
        promises more than there is takes no memory.
    """
    path = Path(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not gzipped:
                return _read(raw, path, size)
            with gzip.open(raw) as file:
                return _read(file, path, None)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}") from error


def _read(file: BinaryIO, path: Path, size: int | None) -> np.ndarray:
    """Read from an open file of `size` bytes; ``None`` if that is not known, since it is packed."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _DTYPES or head[3] == 0:
        raise DataError(f"{path} is not an IDX file: it starts with {head.hex(' ') or 'nothing'}")
    axes = head[3]
    sizes = file.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise DataError(f"{path} is truncated: its header should have {axes} axes")
    shape = struct.unpack(f">{axes}I", sizes)
    dtype = np.dtype(_DTYPES[head[2]])
    expected = prod(shape) * dtype.itemsize
    if size is not None and expected != (room := size - 4 - 4 * axes):
        kind = "truncated" if expected > room else "longer than its header says"
        raise DataError(f"{path} is {kind}: shape {shape} needs {expected} bytes of data, the file has {room}")
    # in pieces, so that memory follows what a packed file really holds, not what its header promises
    data = bytearray()
    while len(data) <= expected and (chunk := file.read(min(_CHUNK, expected + 1 - len(data)))):
        data += chunk
    if len(data) != expected:
        kind = "truncated" if len(data) < expected else "longer than its header says"
        raise DataError(f"{path} is {kind}: shape {shape} needs {expected} bytes of data")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _find(folder: Path) -> dict[tuple[str, str], Path]:
    """The IDX files of a folder by part ("train", "test") and content ("images", "labels")."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        if match := _NAME.search(path.name):
            key = ("train" if match[1] == "train" else "test", match[2])
            # a.gz beside its unpacked twin: the plain one sorts first and needs no unpacking
            if key in found and found[key].name != path.name.removesuffix(".gz"):
                raise DataError(f"{folder} has two files of {key[0]} {key[1]}: {found[key].name} and {path.name}")
            found.setdefault(key, path)
    return found


def is_idx_folder(folder: Path) -> bool:
    """Whether `folder` holds IDX images under the usual names."""
    return any(content == "images" for _, content in _find(folder))


def load_folder(folder: Path, *, name: str | None = None, class_names: tuple[str, ...] | None = None) -> Dataset:
    """The data set in a folder of IDX files.

    Files are named as MNIST's are, ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and ``t10k-``
    or ``test-`` in the place of ``train-``; anything before (``emnist-letters-``) and ``.gz`` at the end
    are allowed. A folder with test images alone is read too, for predictions.

    Raises
    ------
    DataError
        If there are no images, or images and labels do not fit each other.
    """
    found = _find(folder)
    parts = {}
    for part in ("train", "test"):
        if (part, "images") not in found:
            continue
        images = read_idx(found[part, "images"])
        if images.ndim < 2:
            raise DataError(f"{found[part, 'images']} has shape {images.shape}; images need at least two axes")
        labels = None
        if (part, "labels") in found:
            labels = read_idx(found[part, "labels"])
            if labels.shape != images.shape[:1]:
                raise DataError(
                    f"{folder}: the {part} part has images of shape {images.shape} and labels of shape {labels.shape}"
                )
            labels = labels.astype(np.int64)
        parts[part] = images, labels
    if not parts:
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} has no IDX files such as train-images-idx3-ubyte.gz; it has: {names}")
    X, y = parts.get("train") or parts["test"]
    X_test, y_test = parts["test"] if len(parts) == 2 else (None, None)
    if X_test is not None and X_test.shape[1:] != X.shape[1:]:
        raise DataError(f"{folder}: train images are {X.shape[1:]}, test images {X_test.shape[1:]}")
    return Dataset(
        name or str(folder),
        X,
        y,
        X_test,
        y_test,
        task=None if y is None else "classification",
        class_names=class_names,
        pixel_max=255.0 if X.dtype == np.uint8 else None,
    )
