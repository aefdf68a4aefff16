"""Data sets: by name, from files, and from files that lie."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nnfast import datasets
from nnfast.datasets import Table, fashion_mnist, idx, tables
from nnfast.errors import DataError

HAS_FASHION = fashion_mnist.find() is not None


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 5, 4), np.uint8)


# ---- IDX -----------------------------------------------------------------------------------------------
class TestIdx:
    @pytest.mark.parametrize(
        ("code", "dtype"), [(8, "u1"), (9, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
    )
    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_dtypes(self, tmp_path, code, dtype, pack):
        array = (np.arange(24) - 5).astype(dtype).reshape(2, 3, 4)
        (tmp_path / "a").write_bytes(pack(idx_bytes(array, code)))
        found = idx.read_idx(tmp_path / "a")
        np.testing.assert_array_equal(found, array)
        assert found.dtype == np.dtype(dtype)
        assert found.dtype.isnative

    def test_no_rows(self, tmp_path):
        (tmp_path / "a").write_bytes(idx_bytes(np.zeros((0, 3, 3), np.uint8)))
        assert idx.read_idx(tmp_path / "a").shape == (0, 3, 3)

    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda b: b"", "not an IDX file"),
            (lambda b: b"\x89PNG" + b, "not an IDX file"),
            (lambda b: b[:2] + b"\x07" + b[3:], "not an IDX file"),
            (lambda b: b[:3] + b"\0" + b[4:], "not an IDX file"),
            (lambda b: b[:9], "truncated"),
            (lambda b: b[:-1], "truncated"),
            (lambda b: b + b"\0", "longer than its header says"),
            (lambda b: b[:4] + b"\xff" * 12 + b[16:], "truncated"),
        ],
    )
    def test_damage(self, tmp_path, images, pack, damage, message):
        (tmp_path / "a").write_bytes(pack(damage(idx_bytes(images))))
        with pytest.raises(DataError, match=message):
            idx.read_idx(tmp_path / "a")

    @pytest.mark.parametrize("cut", [slice(None, -6), slice(None, 20)])
    def test_damaged_gzip(self, tmp_path, images, cut):
        (tmp_path / "a").write_bytes(gzip.compress(idx_bytes(images))[cut])
        with pytest.raises(DataError, match="damaged gzip"):
            idx.read_idx(tmp_path / "a")

    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_lying_sizes_take_no_memory(self, tmp_path, pack):
        import tracemalloc

        # 4 GiB promised, 100 KB there; gzip could hold at most about 1000 times its size
        (tmp_path / "a").write_bytes(pack(bytes([0, 0, 8, 2]) + struct.pack(">2I", 1 << 16, 1 << 16) + bytes(100_000)))
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match="truncated"):
                idx.read_idx(tmp_path / "a")
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()

    def test_sizes_of_a_plain_file_are_checked_before_reading(self, tmp_path, images):
        (tmp_path / "a").write_bytes(idx_bytes(images)[:-3])
        with pytest.raises(DataError, match="needs 140 bytes of data, the file has 137"):
            idx.read_idx(tmp_path / "a")

    def test_folder(self, tmp_path, images):
        labels = np.arange(7, dtype=np.uint8)
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
        (tmp_path / "emnist-x-test-images-idx3-ubyte").write_bytes(idx_bytes(images[:2]))
        (tmp_path / "emnist-x-test-labels-idx1-ubyte").write_bytes(idx_bytes(labels[:2]))
        (tmp_path / "readme.txt").write_text("hello")
        data = datasets.load(tmp_path)
        np.testing.assert_array_equal(data.X_train, images)
        assert data.X_train.dtype == np.uint8
        np.testing.assert_array_equal(data.y_train, labels)
        np.testing.assert_array_equal(data.X_test, images[:2])
        np.testing.assert_array_equal(data.y_test, labels[:2])
        assert (data.task, data.pixel_max) == ("classification", 255.0)

    def test_folder_of_unlabelled_test_images(self, tmp_path, images):
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images))
        np.testing.assert_array_equal(datasets.load(tmp_path, need_target=False).X_train, images)
        with pytest.raises(DataError, match="no targets"):
            datasets.load(tmp_path)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, "no IDX files"),
            ({"train-images-idx3-ubyte": (7, 5, 4), "train-labels-idx1-ubyte": (6,)}, r"\(7, 5, 4\).*\(6,\)"),
            ({"train-images-idx3-ubyte": (7, 5, 4), "a-train-images-idx3-ubyte": (7, 5, 4)}, "two files"),
            ({"train-images-idx3-ubyte": (7, 5, 4), "t10k-images-idx3-ubyte": (7, 5, 5)}, r"\(5, 4\).*\(5, 5\)"),
            ({"train-images-idx1-ubyte": (7,)}, "at least two axes"),
        ],
    )
    def test_bad_folder(self, tmp_path, files, message):
        for name, shape in files.items():
            (tmp_path / name).write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
        with pytest.raises(DataError, match=message):
            datasets.load(tmp_path)


# ---- text ----------------------------------------------------------------------------------------------
class TestCsv:
    def read(self, tmp_path: Path, text: str | bytes) -> Table:
        path = tmp_path / "t.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return tables.read_csv(path)

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ", "])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_cells(self, tmp_path, delimiter, end, pack):
        lines = [["age", "name"], ["3", '"a, b; c"'], ["", "NA"], ["4.5", " ü "]]
        table = self.read(tmp_path, pack((end.join(delimiter.join(row) for row in lines) + end).encode()))
        assert table.names == ("age", "name")
        assert table.columns["age"].tolist() == ["3", None, "4.5"]
        assert table.columns["name"].tolist() == ["a, b; c", None, "ü"]

    def test_byte_order_mark_and_quoted_line_break(self, tmp_path):
        table = self.read(tmp_path, b'\xef\xbb\xbfa,b\n"x\ny",1\n')
        assert table.names == ("a", "b")
        assert table.columns["a"].tolist() == ["x\ny"]

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("5.1,3.5,setosa\n4.9,3.0,setosa\n", ("x0", "x1", "x2")),  # no header
            ("1,2\n3,4\n", ("x0", "x1")),
            ("id,2019,2020\n7,1,2\n", ("id", "2019", "2020")),  # numbers as names
            ("a,b\nx,y\n", ("a", "b")),
            ("a,,c\n1,2,3\n", ("a", "x1", "c")),  # a column without a name
            ("a\n1\n", ("a",)),
        ],
    )
    def test_header(self, tmp_path, text, names):
        assert self.read(tmp_path, text).names == names

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "empty"),
            ("\n\n", "empty"),
            ("a,b\n", "no rows"),
            ("a,b\n1,2\n1,2,3\n", "line 3: 3 cells, but the first row has 2"),
            ("a,b,a\n1,2,3\n", "more than one column called 'a'"),
            (b"a,b\n\xff\xfe,2\n", "not UTF-8"),
            (b"\x1f\x8b\x08garbage", "damaged gzip"),
            ("a,b\n" + "x" * 200_000 + ",1\n", "line 2"),
        ],
    )
    def test_damage(self, tmp_path, text, message):
        with pytest.raises(DataError, match=message):
            self.read(tmp_path, text)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (["1", None, "-2.5e3"], [1.0, np.nan, -2500.0]),
            ([None, None], [np.nan, np.nan]),
            (["1", "x"], None),
            (["1_000"], None),
        ],
    )
    def test_as_numbers(self, values, expected):
        found = datasets.as_numbers(np.array(values, object))
        if expected is None:
            assert found is None
        else:
            np.testing.assert_array_equal(found, expected)


# ---- load ----------------------------------------------------------------------------------------------
CSV = "size,colour,price\n1,red,10.5\n2,blue,11\n3,red,12.25\n"


class TestLoad:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text(CSV)
        return path

    @pytest.mark.parametrize("target", ["price", 2, -1, "2"])
    def test_target_by_name_and_position(self, path, target):
        data = datasets.load(path, target)
        assert data.feature_names == ("size", "colour")
        assert (data.target, data.task) == ("price", "regression")
        np.testing.assert_array_equal(data.y_train, [10.5, 11, 12.25])

    def test_drop(self, path):
        assert datasets.load(path, "price", drop=["size"]).feature_names == ("colour",)

    def test_a_name_has_precedence_over_a_position(self, tmp_path):
        (tmp_path / "t.csv").write_text("id,1\n7,5\n8,6\n")
        assert datasets.load(tmp_path / "t.csv", "1").target == "1"
        assert datasets.load(tmp_path / "t.csv", 0).target == "id"

    @pytest.mark.parametrize(
        ("values", "task"),
        [
            (["a", "b"], "classification"),
            (["True", "False"], "classification"),
            (["0", "1", "0", "1"], "classification"),
            (["0.0", "1.0", "0.0", "1.0"], "classification"),
            (["1", "2", "3"], "regression"),  # no value twice
            (["0.5", "1", "1"], "regression"),
            ([str(i % 21) for i in range(100)], "regression"),  # more than 20 values
        ],
    )
    def test_task(self, tmp_path, values, task):
        (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"1,{v}\n" for v in values))
        assert datasets.load(tmp_path / "t.csv", "y").task == task
        forced = {"classification": "regression", "regression": "classification"}[task]
        assert datasets.load(tmp_path / "t.csv", "y", forced).task == forced

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({}, DataError, "--target.*size, colour, price"),
            ({"target": "prize"}, DataError, "no column 'prize'.*size, colour, price"),
            ({"target": 3}, DataError, "no column '3'"),
            ({"target": "price", "drop": ["price"]}, ValueError, "both|cannot be the target"),
            ({"target": "price", "drop": ["size", "colour"]}, DataError, "no column is left"),
            ({"target": "price", "task": "clustering"}, ValueError, "clustering"),
        ],
    )
    def test_wrong_options(self, path, kwargs, error, message):
        with pytest.raises(error, match=message):
            datasets.load(path, **kwargs)

    def test_missing_targets(self, tmp_path):
        (tmp_path / "t.csv").write_text("x,y\n1,2\n1,\n1,NA\n")
        with pytest.raises(DataError, match="2 target values are missing or infinite, the first in row 2"):
            datasets.load(tmp_path / "t.csv", "y")

    @pytest.mark.parametrize(
        ("name", "message"), [("nothing.csv", "neither a file"), ("t.xlsx", r"ending is not one of \.csv")]
    )
    def test_not_a_data_file(self, tmp_path, name, message):
        (tmp_path / "t.xlsx").write_bytes(b"x")
        with pytest.raises(DataError, match=message):
            datasets.load(tmp_path / name, "y")

    def test_names_have_their_own_target(self):
        with pytest.raises(ValueError, match="its own target"):
            datasets.load("xor", "y")
        with pytest.raises(ValueError, match="classification"):
            datasets.load("xor", task="regression")


class TestParquet:
    @pytest.fixture
    def pa(self):
        return pytest.importorskip("pyarrow")

    def write(self, pa, path, columns):
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)

    def test_types(self, pa, tmp_path):
        path = tmp_path / "t.parquet"
        columns = {
            "i": pa.array([1, None, 3], pa.int32()),
            "f": pa.array([0.5, 1.5, None]),
            "b": pa.array([True, None, False]),
            "s": pa.array(["x", None, "y"]),
            "c": pa.array(["u", "v", "u"]).dictionary_encode(),
            "day": pa.array([0, 1, 2], pa.date32()),
        }
        self.write(pa, path, columns)
        table = tables.read_parquet(path, drop=["day"])
        np.testing.assert_array_equal(table.columns["i"], [1, np.nan, 3])
        np.testing.assert_array_equal(table.columns["f"], [0.5, 1.5, np.nan])
        assert table.columns["b"].tolist() == ["True", None, "False"]
        assert table.columns["s"].tolist() == ["x", None, "y"]
        assert table.columns["c"].tolist() == ["u", "v", "u"]
        with pytest.raises(DataError, match="'day' has type date32"):
            tables.read_parquet(path)
        with pytest.raises(DataError, match="no column 'night'"):
            tables.read_parquet(path, drop=["night"])

    def test_same_as_csv(self, pa, tmp_path):
        self.write(pa, tmp_path / "t.parquet", {"size": [1, 2, 3], "colour": ["r", "b", "r"], "price": [1.5, 2.0, 3.0]})
        (tmp_path / "t.csv").write_text("size,colour,price\n1,r,1.5\n2,b,2\n3,r,3\n")
        a, b = datasets.load(tmp_path / "t.parquet", "price"), datasets.load(tmp_path / "t.csv", "price")
        np.testing.assert_array_equal(a.y_train, b.y_train)
        assert a.feature_names == b.feature_names
        np.testing.assert_array_equal(
            datasets.as_numbers(a.X_train.columns["size"]), datasets.as_numbers(b.X_train.columns["size"])
        )

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"hello" * 100])
    def test_damage(self, pa, tmp_path, content):
        (tmp_path / "t.parquet").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as parquet"):
            datasets.load(tmp_path / "t.parquet", "y")


class TestNumpyFiles:
    def test_npy(self, tmp_path):
        array = np.arange(12.0).reshape(4, 3)
        np.save(tmp_path / "a.npy", array)
        data = datasets.load(tmp_path / "a.npy", -1)
        np.testing.assert_array_equal(data.X_train, array[:, :2])
        np.testing.assert_array_equal(data.y_train, array[:, 2])
        assert data.target == "2"

    def test_structured_npy_is_a_table(self, tmp_path):
        array = np.array([(1, "a", 2.5), (2, "b", 3.5)], [("i", "i4"), ("s", "U3"), ("y", "f4")])
        np.save(tmp_path / "a.npy", array)
        data = datasets.load(tmp_path / "a.npy", "y")
        assert data.feature_names == ("i", "s")
        assert data.X_train.columns["s"].tolist() == ["a", "b"]

    @pytest.mark.parametrize(
        ("target", "message"), [(None, "give the number of a column"), ("price", "must be the number"), (3, "must be")]
    )
    def test_npy_without_a_target(self, tmp_path, target, message):
        np.save(tmp_path / "a.npy", np.zeros((4, 3)))
        with pytest.raises(DataError, match=message):
            datasets.load(tmp_path / "a.npy", target)

    def test_npz(self, tmp_path):
        x, y = np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.array([0, 1, 0])
        np.savez_compressed(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
        data = datasets.load(tmp_path / "a.npz")
        np.testing.assert_array_equal(data.X_train, x)
        np.testing.assert_array_equal(data.X_test, x[:1])
        np.testing.assert_array_equal(data.y_test, [0])
        assert data.pixel_max == 255.0

    def test_npz_with_a_named_target(self, tmp_path):
        np.savez(tmp_path / "a.npz", X=np.zeros((3, 2)), y=np.zeros(3), other=np.array(["a", "b", "a"]))
        assert datasets.load(tmp_path / "a.npz", "other").y_train.tolist() == ["a", "b", "a"]
        np.savez(tmp_path / "b.npz", u=np.zeros((3, 2)))
        with pytest.raises(DataError, match="no array called X"):
            datasets.load(tmp_path / "b.npz")

    def test_npz_that_does_not_fit(self, tmp_path):
        np.savez(tmp_path / "a.npz", X=np.zeros((3, 2)), y=np.zeros(4))
        with pytest.raises(DataError, match=r"\(3, 2\).*\(4,\)"):
            datasets.load(tmp_path / "a.npz")

    @pytest.mark.parametrize("kind", ["npy", "npz"])
    def test_objects_are_refused_and_no_code_runs(self, tmp_path, kind):
        class Trap:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "ran",))

        path = tmp_path / f"a.{kind}"
        trap = np.array([[Trap(), 1]], object)
        np.save(path, trap, allow_pickle=True) if kind == "npy" else np.savez(path, X=trap)
        with pytest.raises(DataError, match=r"Object arrays|Python objects"):
            datasets.load(path, 0)
        assert not (tmp_path / "ran").exists()

    def lying_header(self) -> bytes:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 8)})
        return file.getvalue() + bytes(64)

    def test_lying_npy(self, tmp_path):
        (tmp_path / "a.npy").write_bytes(self.lying_header())
        with pytest.raises(DataError, match=r"cannot be read as \.npy"):
            datasets.load(tmp_path / "a.npy", 0)

    def test_lying_npz(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("X.npy", self.lying_header())
        with pytest.raises(DataError, match="does not fit into"):
            datasets.load(tmp_path / "a.npz")

    @pytest.mark.parametrize("kind", ["npy", "npz"])
    @pytest.mark.parametrize("keep", [0, 10, 100, -1])
    def test_truncated(self, tmp_path, kind, keep):
        path = tmp_path / f"a.{kind}"
        np.save(path, np.ones((50, 3))) if kind == "npy" else np.savez(path, X=np.ones((50, 3)), y=np.ones(50))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match="cannot be read as"):
            datasets.load(path, 0)


# ---- by name -------------------------------------------------------------------------------------------
def test_xor():
    data = datasets.load("xor")
    np.testing.assert_array_equal(data.y_train, np.logical_xor(*data.X_train.T.astype(bool)))


def test_spiral_is_seeded_and_not_linear():
    from nnfast.datasets.small import spiral

    a, b, c = spiral(), spiral(), spiral(seed=1)
    np.testing.assert_array_equal(a.X_train, b.X_train)
    assert not np.array_equal(a.X_train, c.X_train)
    assert np.abs(a.X_train).max() < 1.2
    assert abs(a.y_train.mean() - 0.5) < 0.01
    X = np.c_[a.X_train, np.ones(len(a.X_train))]
    linear = X @ np.linalg.lstsq(X, 2.0 * a.y_train - 1.0, rcond=None)[0] > 0
    assert (linear == a.y_train).mean() < 0.75
    # rows of one arm are neighbours: the nearest training row is almost always of the right class
    nearest = ((a.X_test[:, None] - a.X_train[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (a.y_train[nearest] == a.y_test).mean() > 0.98


def test_digits():
    sklearn = pytest.importorskip("sklearn.datasets")
    data, again = datasets.load("digits"), datasets.load("digits")
    assert data.X_train.shape[1:] == (8, 8)
    assert len(data.X_train) + len(data.X_test) == 1797
    assert len(data.X_test) == 359
    np.testing.assert_array_equal(data.X_train, again.X_train)
    both = np.concatenate([data.X_train, data.X_test]).reshape(1797, 64)
    np.testing.assert_array_equal(np.sort(both.sum(axis=1)), np.sort(sklearn.load_digits().data.sum(axis=1)))


# ---- Fashion-MNIST ------------------------------------------------------------------------------------------
@pytest.mark.skipif(not HAS_FASHION, reason="Fashion-MNIST is not on this machine")
def test_fashion_mnist_on_disk():
    data = datasets.load("fashion-mnist")
    assert data.X_train.shape == (60000, 28, 28)
    assert data.X_test.shape == (10000, 28, 28)
    assert data.X_train.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(data.y_train), np.full(10, 6000))
    np.testing.assert_array_equal(np.bincount(data.y_test), np.full(10, 1000))
    # SHA-256 of the published files' contents, behind the 16 and 8 bytes of the headers
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 10000, 28, 28)
    digest = hashlib.sha256(header + data.X_test.tobytes()).hexdigest()
    assert digest == "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"


class TestDownload:
    @pytest.fixture
    def published(self, tmp_path, monkeypatch, images):
        """Four small files in the place of the published ones, served from a folder."""
        big = np.zeros((3, 28, 28), np.uint8)
        source, cache = tmp_path / "source", tmp_path / "cache"
        source.mkdir()
        files = {}
        for name in fashion_mnist.FILES:
            content = big if "images" in name else np.arange(3, dtype=np.uint8)
            packed = gzip.compress(idx_bytes(content))
            (source / name).write_bytes(packed)
            files[name] = (hashlib.sha256(packed).hexdigest(), len(packed))
        monkeypatch.setattr(fashion_mnist, "FILES", files)
        monkeypatch.setattr(fashion_mnist, "SOURCES", (source.as_uri() + "/",))
        monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
        monkeypatch.setattr(fashion_mnist, "cache_folder", lambda: cache)
        monkeypatch.delenv("NNFAST_DATA", raising=False)
        return source

    def test_once(self, published):
        lines: list[str] = []
        data = datasets.load("fashion-mnist", report=lines.append)
        assert data.X_train.shape == (3, 28, 28)
        assert len(lines) == 4
        for path in published.iterdir():
            path.unlink()
        datasets.load("fashion-mnist", report=lines.append)
        assert len(lines) == 4

    def test_nnfast_data_comes_first(self, published, monkeypatch):
        monkeypatch.setenv("NNFAST_DATA", str(published))
        assert fashion_mnist.find() == published

    @pytest.mark.parametrize("length", ["same", "longer", "shorter"])
    def test_wrong_content_is_not_kept(self, published, tmp_path, length):
        name = "t10k-images-idx3-ubyte.gz"
        right = (published / name).read_bytes()
        wrong = {"same": right[:-1] + bytes([right[-1] ^ 1]), "longer": right + b"x", "shorter": right[:-1]}[length]
        (published / name).write_bytes(wrong)
        with pytest.raises(DataError, match=r"t10k-images.*(wrong checksum|expected \d+).*dataset-fashion-mnist"):
            datasets.load("fashion-mnist")
        kept = sorted(p.name for p in (tmp_path / "cache" / "fashion-mnist").iterdir())
        assert kept == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
        (published / name).write_bytes(right)
        assert len(datasets.load("fashion-mnist").X_test) == 3  # goes on where it stopped

    def test_no_network(self, published, monkeypatch):
        import urllib.request
        from urllib.error import URLError

        def refuse(*args, **kwargs):
            raise URLError("Name or service not known")

        monkeypatch.setattr(urllib.request, "urlopen", refuse)
        with pytest.raises(DataError, match=r"could not be downloaded.*Name or service not known.*NNFAST_DATA"):
            datasets.load("fashion-mnist")
