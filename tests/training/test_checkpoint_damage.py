"""Model files that are damaged, or were made to deceive: a clear error, at once, and nothing is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import nnfast as nf
from nnfast.training import checkpoint

from .helpers import assert_same, fit, network, problem


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file, with everything in it that a file may have."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = network(norm=True)
    fit(model, *problem(), device="numpy", optimizer=nf.NAdam(0.01, ema=0.9))
    model.extra = {"tiny": 1e-8}
    model.save(path)
    return path


def _refused(path: Path, match: str = ".") -> None:
    """Loading says what is wrong, and allocates no more than the file is large."""
    tracemalloc.start()
    try:
        with pytest.raises(nf.CheckpointError, match=match):
            nf.load(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000 + 20 * path.stat().st_size
    finally:
        tracemalloc.stop()


# ---- damage --------------------------------------------------------------------------------------------
def test_truncation(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    size = len(content)
    path = tmp_path / "model.safetensors"
    for length in range(size):
        path.write_bytes(content[:length])
        if length % 97:
            with pytest.raises(nf.CheckpointError):
                nf.load(path)
        else:
            _refused(path)


@pytest.mark.parametrize("more", [b"\0", b"more" * 1000])
def test_something_behind_the_end(more: bytes, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole.read_bytes() + more)
    _refused(path)


def test_a_bit_that_flipped(whole: Path, tmp_path: Path) -> None:
    content = bytearray(whole.read_bytes())
    path = tmp_path / "model.safetensors"
    start = 8 + struct.unpack("<Q", content[:8])[0]
    rng = np.random.default_rng(0)
    # Every bit of the length; one of every third byte of the header, where each means something else; some of the data
    places = [(byte, bit) for byte in range(8) for bit in range(8)]
    places += [(byte, int(rng.integers(8))) for byte in range(8, start, 3)]
    places += [(int(byte), int(rng.integers(8))) for byte in rng.integers(start, len(content), 200)]
    places += [(len(content) - 1, 7)]
    for byte, bit in places:
        content[byte] ^= 1 << bit
        path.write_bytes(content)
        with pytest.raises(nf.CheckpointError):
            nf.load(path)
        content[byte] ^= 1 << bit
    path.write_bytes(content)
    assert_same(nf.load(path), nf.load(whole))


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder where a file is written in a seventh of the time, if there is one."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def _mutated(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to four random changes, of bits, bytes, and pieces."""
    new = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        # Half of them in the header, where most of what can be meant is
        at = rng.randrange(len(new) if rng.random() < 0.5 else min(len(new), 2500))
        length = rng.randint(1, 40)
        kind = rng.randrange(6)
        if kind == 0:
            new[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            new[at] = rng.randrange(256)
        elif kind == 2:
            new[at] = ord(rng.choice('0123456789"[]{}:,-e.'))
        elif kind == 3:
            del new[at : at + length]
        elif kind == 4:
            new[at:at] = rng.randbytes(length)
        else:
            source = rng.randrange(len(new))
            new[at : at + length] = new[source : source + length]
    return bytes(new)


@pytest.mark.parametrize("seed", range(4))
def test_random_mutations(seed: int, whole: Path, in_memory: Path) -> None:
    """A hundred thousand in all: each refused, none taking a second or much memory."""
    content, path = whole.read_bytes(), in_memory / "model.safetensors"
    rng = random.Random(seed)

    def too_long(*_: Any) -> None:
        raise AssertionError(f"a file took more than a second: {path.read_bytes()!r}")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, too_long)
    try:
        for _ in range(25_000):
            damaged = _mutated(content, rng)
            path.write_bytes(damaged)
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            try:
                nf.load(path)
            except nf.CheckpointError:
                continue
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            assert damaged == content  # changes that undo each other
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000  # in KiB


def test_blocks_that_were_lost(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    path = tmp_path / "model.safetensors"
    for start in range(0, len(content), 256):
        for block in (bytes(256), b"\xff" * 256):
            path.write_bytes((content[:start] + block + content[start + 256 :])[: len(content)])
            _refused(path)


# ---- other files in disguise ---------------------------------------------------------------------------
class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "executed")


def _numpy_object(target: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(target)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _zip(target: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(target)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda target: pickle.dumps(Bomb(target)),
        _numpy_object,
        _zip,
        lambda target: f"open({str(target)!r}, 'w')".encode(),
        lambda target: b"\x89PNG\r\n\x1a\n" + bytes(100),
        lambda target: b"",
        lambda target: bytes(1000),
    ],
    ids=["pickle", "npy", "zip", "python", "png", "empty", "zeros"],
)
def test_other_files(make: Callable[[Path], bytes], tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "model.safetensors"
    path.write_bytes(make(target))
    _refused(path)
    assert not target.exists()


def test_someone_elses_safetensors(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": np.zeros(3)}, tmp_path / "m.safetensors", metadata)
        _refused(tmp_path / "m.safetensors", "not a model of nnfast")


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 2**40, 10**8 + 1])
def test_a_huge_header(length: int, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + whole.read_bytes()[8:])
    _refused(path)


def test_sizes_that_lie(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    path = tmp_path / "model.safetensors"

    def change(**tensor: Any) -> None:
        header = json.loads(content[8:start])
        header["dense.W"].update(tensor)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[start:])
        _refused(path)

    for shape in ([2**40], [2**32, 2**32], [2**63, 2], [0], [4, 5], [-4, 6], [], ["4", 6], 24, None):
        change(shape=shape)
    for offsets in ([0, 2**62], [2**62, 2**63], [8, 0], [-8, 0], [4, 100], [0, 0], [0], "0,96", None):
        change(data_offsets=offsets)
    for dtype in ("F64", "BF16", "F8_E4M3", "I32", "O", "", 5, None):
        change(dtype=dtype)


# ---- a right digest around wrong contents --------------------------------------------------------------
def _forged(whole: Path, path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], Any]) -> None:
    """Write the sound file with a change and a fresh digest, as somebody who means harm would."""
    with safe_open(whole, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        header = json.loads(file.metadata()["nnfast"])
    del header["digest"]
    text = change(header, tensors)
    text = text if isinstance(text, str) else json.dumps(header)
    save_file(tensors, path, {"nnfast": checkpoint._sealed(text, tensors)})


def test_a_forgery_without_a_change_is_sound(whole: Path, tmp_path: Path) -> None:
    _forged(whole, tmp_path / "m.safetensors", lambda header, tensors: None)
    assert_same(nf.load(tmp_path / "m.safetensors"), nf.load(whole))


def _set(*path_and_value: Any) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    *path, last, value = path_and_value

    def change(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        place: Any = header
        for key in path:
            place = place[key]
        place[last] = value

    return change


def _tensor(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    def change(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = np.asarray(value)

    return change


def _bad_layers(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    header["layers"] = [{"class": "Dense", "name": "dense", "config": {"units": 10**5, "in_features": 10**6}}]
    header["in_shape"] = [10**6]


FORGERIES: dict[str, tuple[Any, str]] = {
    "version": (_set("format", 2), "format version 2"),
    "no version": (lambda header, tensors: header.pop("format"), "format version None"),
    "class": (_set("layers", 0, "class", "Evil"), "'Evil', which nnfast does not have"),
    "class of Python": (_set("layers", 0, "class", "os.system"), "'os.system'"),
    "class of another kind": (_set("layers", 0, "class", ["Dense"]), "does not describe"),
    "base class": (_set("layers", 0, "class", "Layer"), "'Layer', which nnfast does not have"),
    "argument": (_set("layers", 0, "config", "evil", 1), "cannot be made"),
    "units": (_set("layers", 0, "config", "units", -1), "units"),
    "more units": (_set("layers", 0, "config", "units", 7), r"dense\.W is float32 \(4, 6\)"),
    "endless units": (_set("layers", 0, "config", "units", 10**400), r"\(4, 6\)"),
    "eps": (_set("layers", 1, "config", "eps", 10**400), "."),
    "activation": (_set("layers", 0, "config", "activation", "evil"), "evil"),
    "initializer": (_set("layers", 0, "config", "initializer", {"name": "evil"}), "evil"),
    "huge layers": (_bad_layers, "lacks the arrays|has arrays"),
    "no layers": (_set("layers", []), "at least one layer"),
    "layers of another kind": (_set("layers", 5), "does not describe"),
    "layer of another kind": (_set("layers", 0, ["Dense"]), "does not describe"),
    "layer without a name": (_set("layers", 0, "name", 5), "name"),
    "layers with one name": (_set("layers", 0, "name", "dense_1"), "named 'dense_1'"),
    "loss": (_set("loss", "name", "evil"), "'evil', which nnfast does not have"),
    "loss's argument": (_set("loss", "config", {"label_smoothing": 2}), "label_smoothing"),
    "input": (_set("in_shape", [5]), r"dense\.W is float32 \(4, 6\)"),
    "huge input": (_set("in_shape", [10**12]), r"dense\.W"),
    "input of text": (_set("in_shape", "4"), r"dense\.W|does not describe"),
    "no input": (_set("in_shape", []), "feature axis"),
    "dtype": (_set("dtype", "float16"), "float16"),
    "other dtype": (_set("dtype", "float64"), "float64"),
    "object dtype": (_set("dtype", "object"), "object"),
    "slots": (_set("training", "slots", ["m"]), "has arrays that its layers do not"),
    "more slots": (_set("training", "slots", ["m", "v", "w"]), "lacks the arrays"),
    "slots of another kind": (_set("training", "slots", 7), "does not describe"),
    "step": (_set("training", "step", -1), "step -1"),
    "endless step": (_set("training", "step", 10**30), "not possible"),
    "epoch": (_set("training", "epoch", None), "does not describe"),
    "seed": (_set("training", "seed", 2**70), "seed"),
    "carried": (_set("training", "carried", {"3": 1.0}), "not possible"),
    "carried outside": (_set("training", "carried", {"999": 1.0}), "not possible"),
    "optimizer": (_set("training", "optimizer", ["adam"]), "does not describe"),
    "optimizer's name": (_set("training", "optimizer", {"name": 5}), "optimizer's name"),
    "schedule": (_set("training", "schedule", 5), "does not describe"),
    "extra": (_set("extra", 5), "does not describe"),
    "missing part": (lambda header, tensors: header.pop("training"), "does not describe"),
    "no JSON": (lambda header, tensors: '{"format"}', "not valid JSON"),
    "deep JSON": (lambda header, tensors: "[" * 10**6 + "}", "not valid JSON"),
    "deep JSON inside": (
        lambda header, tensors: '{"format": 1, "extra": ' + "[" * 10**5 + "]" * 10**5 + "}",
        "not valid JSON",
    ),
    "a number without end": (lambda header, tensors: '{"format": ' + "9" * 10**6 + "}", "not valid JSON|version"),
    "shape": (_tensor("dense.b", np.zeros(7, np.float32)), r"dense\.b is float32 \(7,\), its layer has float32 \(6,\)"),
    "shape of a moment": (_tensor("m:dense.b", np.zeros(7, np.float32)), r"m:dense\.b"),
    "type": (_tensor("dense.b", np.zeros(6, np.float64)), r"dense\.b is float64"),
    "type of integers": (_tensor("dense.b", np.zeros(6, np.int32)), r"dense\.b is int32"),
    "NaN": (_tensor("dense.b", np.full(6, np.nan, np.float32)), "NaN"),
    "missing array": (lambda header, tensors: bool(tensors.pop("dense.b").size), r"lacks the arrays \['dense\.b'\]"),
    "extra array": (_tensor("evil", np.zeros(1, np.float32)), r"do not: \['evil'\]"),
    "extra slot": (_tensor("evil:dense.b", np.zeros(6, np.float32)), "do not"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forgeries(forgery: str, whole: Path, tmp_path: Path) -> None:
    change, message = FORGERIES[forgery]
    _forged(whole, tmp_path / "m.safetensors", change)
    _refused(tmp_path / "m.safetensors", message)


@pytest.mark.parametrize("depth", range(100, 3000, 100))
def test_json_of_any_depth(depth: int, whole: Path, tmp_path: Path) -> None:
    """However deep it is nested, it is loaded or refused; there is no depth at which something else happens."""
    path = tmp_path / "m.safetensors"
    deep = "[" * depth + "]" * depth
    _forged(whole, path, lambda header, tensors: json.dumps(header).replace('"tiny": 1e-08', f'"tiny": {deep}'))
    try:
        model = nf.load(path)
    except nf.CheckpointError:
        _refused(path, "not valid JSON")
    else:
        assert json.dumps(model.extra) == f'{{"tiny": {deep}}}'
