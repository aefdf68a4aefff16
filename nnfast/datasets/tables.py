"""Tables from .csv and .parquet files, arrays from .npy and .npz files."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .base import Table

__all__ = ["as_numbers", "read_csv", "read_npy", "read_npz", "read_parquet"]

# Cells that mean "no value", as pandas reads them, and the UCI archive's "?"
MISSING = frozenset(
    ["", "?", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "NaT"]
)
_MAX_DEFLATE_RATIO = 1032  # zlib's documentation: deflate never packs more than about 1032 : 1


def as_numbers(values: np.ndarray) -> np.ndarray | None:
    """A column as float64 with NaN for what is missing; ``None`` if a value is no number."""
    if values.dtype != object:
        return values.astype(np.float64, copy=False) if values.dtype.kind in "iuf" else None
    try:
        numbers = [np.nan if v is None else float(v) for v in values]
    except (ValueError, TypeError):
        return None
    if any(v is not None and "_" in str(v) for v in values):  # float("1_000") is Python's, not a data file's
        return None
    return np.array(numbers, np.float64)


def text_column(cells: Iterable[str | None]) -> np.ndarray:
    """Cells as an object array of ``str``, with ``None`` where one is missing."""
    stripped = [None if cell is None else cell.strip() for cell in cells]
    found = [None if cell in MISSING else cell for cell in stripped]
    column = np.empty(len(found), object)
    column[:] = found
    return column


# ---- csv ----------------------------------------------------------------------------------------------
def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _delimiter(sample: str) -> str:
    """The delimiter that cuts the first lines into the most, equally many, cells."""
    best, columns = ",", 1
    for candidate in ",;\t|":
        widths = {len(row) for row in csv.reader(io.StringIO(sample), delimiter=candidate) if row}
        if len(widths) == 1 and (width := widths.pop()) > columns:
            best, columns = candidate, width
    return best


def _has_header(first: list[str], second: list[str] | None) -> bool:
    """A first row without numbers is a header, and so is one with text above a number."""
    if not any(_is_number(cell) for cell in first):
        return True
    return second is not None and any(
        not _is_number(a) and a.strip() not in MISSING and _is_number(b) for a, b in zip(first, second, strict=True)
    )


def read_csv(path: str | Path) -> Table:
    """Read a text file of comma-, semicolon-, tab- or bar-separated values, plain or gzipped.

    Encoding UTF-8, with or without a byte-order mark. The delimiter is found from the first lines. The
    first row is the header if it has no numbers or has text above a number; without a header the columns
    are called ``x0``, ``x1``, ... . Empty cells, ``NA``, ``NaN``, ``null``, ``None`` and ``?`` are missing values.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    Table
        Text columns.

    Raises
    ------
    DataError
        If the file is empty, is not UTF-8, has rows of different lengths or two columns of one name.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}") from None
    sample = "".join(text[: 1 << 16].splitlines(keepends=True)[:20])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(sample), skipinitialspace=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if not row:
                continue
            if rows and len(row) != len(rows[0]):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} cells, but the first row has {len(rows[0])}"
                )
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise DataError(f"{path} is empty")
    if _has_header(rows[0], rows[1] if len(rows) > 1 else None):
        names = [name.strip() or f"x{i}" for i, name in enumerate(rows.pop(0))]
    else:
        names = [f"x{i}" for i in range(len(rows[0]))]
    _check_names(path, names)
    if not rows:
        raise DataError(f"{path} has a header but no rows")
    return Table({name: text_column(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})


def _check_names(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"{path} has more than one column called {twice[0]!r}")


# ---- parquet ------------------------------------------------------------------------------------------
def read_parquet(path: str | Path, drop: Iterable[str] = ()) -> Table:
    """Read a parquet file; needs PyArrow.

    Numbers become float64, text and categories text, truth values the texts ``True`` and ``False``.

    Parameters
    ----------
    path : str or Path
        The file.
    drop : iterable of str
        Columns that are not wanted; their type does not matter.

    Raises
    ------
    DataError
        If PyArrow is missing, the file is damaged, or a column has a type that is neither of these.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"parquet files need PyArrow: pip install pyarrow ({error})") from None
    path, unwanted = Path(path), set(drop)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None
    _check_names(path, table.column_names)
    if absent := unwanted.difference(table.column_names):
        raise DataError(f"{path} has no column {min(absent)!r}; its columns are: {', '.join(table.column_names)}")
    columns: dict[str, np.ndarray] = {}
    for name, values in zip(table.column_names, table.columns, strict=True):
        if name in unwanted or re.fullmatch(r"__index_level_\d+__", name):  # pandas keeps its index like this
            continue
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            columns[name] = values.cast(pa.float64()).to_numpy().astype(np.float64)
        elif pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            columns[name] = text_column(None if v is None else str(v) for v in values.to_pylist())
        else:
            raise DataError(f"{path}: column {name!r} has type {kind}; only numbers, text and truth values are read")
    return Table(columns)


# ---- npy, npz ------------------------------------------------------------------------------------------
def _usable(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biufU":
        raise DataError(f"{path} holds elements of type {array.dtype}; only numbers and text are read")
    return array


def read_npy(path: str | Path) -> np.ndarray | Table:
    """Read a .npy file: an array, or a :class:`Table` from a structured array. Never runs code.

    Raises
    ------
    DataError
        If the file is damaged or holds Python objects.
    """
    path = Path(path)
    try:
        # mapped, because mapping compares the header with the size of the file
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of several arrays; name it .npz")
    except (ValueError, EOFError, TypeError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as .npy: {error}") from None
    if array.dtype.names:
        columns: dict[str, np.ndarray] = {}
        for name in array.dtype.names:
            values = _usable(path, array[name])
            columns[name] = text_column(map(str, values)) if values.dtype.kind in "bU" else values.astype(np.float64)
        return Table(columns)
    return np.array(_usable(path, array))


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of a .npz file. Never runs code.

    Raises
    ------
    DataError
        If the file is damaged, holds Python objects, or states sizes that it cannot hold; sizes are
        checked before memory is taken.
    """
    path = Path(path)
    size = path.stat().st_size
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    _check_npy_size(member, min(info.file_size, size * _MAX_DEFLATE_RATIO))
                with archive.open(info) as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                arrays[info.filename.removesuffix(".npy")] = _usable(path, array)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from None
    if not arrays:
        raise DataError(f"{path} holds no arrays")
    return arrays


def _check_npy_size(member: Any, room: int) -> None:
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unknown .npy version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    if prod(shape) * dtype.itemsize > room:
        raise ValueError(f"shape {shape} of {dtype} does not fit into {room} bytes")
