"""Fashion-MNIST: 60,000 + 10,000 images of clothes, 28 x 28, ten classes (Xiao, Rasul, Vollgraf, 2017).

Looked for in ``NNFAST_DATA``, the user's cache folder and where Debian's package
``dataset-fashion-mnist`` puts it; otherwise downloaded into the cache folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from ..files import replacing
from .base import Dataset
from .idx import load_folder

__all__ = ["CLASS_NAMES", "FILES", "find", "load"]

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# SHA-256 and size of the files as Zalando publishes them
FILES = {
    "train-images-idx3-ubyte.gz": ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26421880),
    "train-labels-idx1-ubyte.gz": ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29515),
    "t10k-images-idx3-ubyte.gz": ("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4422102),
    "t10k-labels-idx1-ubyte.gz": ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5148),
}
SOURCES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_TIMEOUT = 20.0  # seconds without an answer


def cache_folder() -> Path:
    """Where downloaded data sets are kept."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("nnfast")) / "datasets"


def _candidates() -> list[Path]:
    folders = []
    if os.environ.get("NNFAST_DATA"):
        given = Path(os.environ["NNFAST_DATA"]).expanduser()
        folders += [given / "fashion-mnist", given]
    return [*folders, cache_folder() / "fashion-mnist", DEBIAN]


def find() -> Path | None:
    """The first folder that has all four files, gzipped or not; ``None`` if there is none."""
    for folder in _candidates():
        if all((folder / name).is_file() or (folder / name.removesuffix(".gz")).is_file() for name in FILES):
            return folder
    return None


def load(report: Callable[[str], None] = lambda message: None) -> Dataset:
    """Fashion-MNIST from the disk, or from the network the first time.

    Parameters
    ----------
    report : callable
        Called with a line of text before each download.

    Raises
    ------
    DataError
        If it is not on the disk and cannot be downloaded, or a file is damaged.
    """
    folder = find() or _download(cache_folder() / "fashion-mnist", report)
    data = load_folder(folder, name="fashion-mnist", class_names=CLASS_NAMES)
    if data.X_test is None or data.X_train.shape[1:] != (28, 28):  # type: ignore[union-attr]
        raise DataError(f"{folder} does not hold Fashion-MNIST")
    return data


def _download(folder: Path, report: Callable[[str], None]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (digest, size) in FILES.items():
        if (folder / name).is_file():
            continue  # a file appears there only after its checksum was right
        failures = []
        for source in SOURCES:
            report(f"downloading {source}{name} ({size / 1e6:.1f} MB)")
            try:
                data = _get(source + name, size)
            except (OSError, ValueError) as error:  # URLError, time-outs and broken transfers are OSErrors
                failures.append(f"{source}: {getattr(error, 'reason', None) or error}")
                continue
            if hashlib.sha256(data).hexdigest() == digest:
                with replacing(folder / name) as path:
                    path.write_bytes(data)
                break
            failures.append(f"{source}: wrong checksum")
        else:
            raise DataError(
                f"fashion-mnist is not on this machine and {name} could not be downloaded ({'; '.join(failures)}). "
                f"Put the four files into {folder}, point NNFAST_DATA to them, or install Debian's package "
                "dataset-fashion-mnist"
            )
    return folder


def _get(url: str, size: int) -> bytes:
    import http.client
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=_TIMEOUT) as answer:
            data = answer.read(size + 1)
    except http.client.HTTPException as error:
        raise OSError(f"broken transfer: {error!r}") from error
    if len(data) != size:
        raise OSError(f"got {len(data)} bytes, expected {size}")
    return data
