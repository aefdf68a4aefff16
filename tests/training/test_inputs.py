"""Whatever holds the numbers, the trained weights are the same, and the input is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend
from nnfast.training import loop
from nnfast.training.data import EmptyDataError, as_array

from .helpers import assert_same, fit, network, problem


class OnlyArray:
    """Something that is no array but turns into one."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._values, dtype=dtype)


class OnlyDLPack:
    """Something that speaks nothing but DLPack."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __dlpack__(self, **arguments: Any) -> Any:
        return self._values.__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


def _module(name: str) -> Any:
    return pytest.importorskip(name)


def _strided(a: np.ndarray) -> np.ndarray:
    wide = np.zeros((2 * len(a), *(2 * n for n in a.shape[1:])), a.dtype)
    view = wide[(slice(None, None, 2),) * a.ndim]
    view[...] = a
    return view


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


CONTAINERS: dict[str, Callable[[np.ndarray], Any]] = {
    "lists": lambda a: a.tolist(),
    "tuple of rows": lambda a: tuple(a),
    "strided": _strided,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "read-only": _read_only,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "float64": lambda a: a.astype(np.float64),
    "__array__": OnlyArray,
    "__dlpack__": OnlyDLPack,
    "pandas": lambda a: (_module("pandas").DataFrame if a.ndim > 1 else _module("pandas").Series)(a),
    "polars": lambda a: (_module("polars").DataFrame if a.ndim > 1 else _module("polars").Series)(a),
    "torch": lambda a: _module("torch").tensor(a),
    "torch with a graph": lambda a: _module("torch").tensor(a, requires_grad=a.dtype.kind == "f"),
    "pyarrow": lambda a: _module("pyarrow").array(a) if a.ndim == 1 else a,
}


@pytest.fixture
def reference(backend: Backend) -> nf.Sequential:
    X, y = problem()
    model = network()
    fit(model, X, y, epochs=2, device=backend)
    return model


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_trains_the_same_model(container: str, backend: Backend, reference: nf.Sequential) -> None:
    X, y = problem()
    held_X, held_y = CONTAINERS[container](X), CONTAINERS[container](y)
    model = network()
    fit(model, held_X, held_y, epochs=2, device=backend)
    assert_same(model, reference)
    np.testing.assert_array_equal(model.predict(held_X), reference.predict(X))
    assert model.evaluate(held_X, held_y) == reference.evaluate(X, y)
    if isinstance(held_X, np.ndarray):
        np.testing.assert_array_equal(held_X, X)
        np.testing.assert_array_equal(held_y, y)


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint16", "int64", "bool", ">i4", ">f2"])
def test_other_number_types_equal_float32(dtype: str, backend: Backend) -> None:
    X, y = problem()
    X = (3 * X).round().astype(dtype)
    before = X.copy()
    one, other = network(), network()
    fit(one, X, y, epochs=2, device=backend)
    fit(other, X.astype(np.float32), y, epochs=2, device=backend)
    assert_same(one, other)
    np.testing.assert_array_equal(X, before)
    assert X.dtype == np.dtype(dtype)


def test_tables_with_columns_of_several_types() -> None:
    pandas = _module("pandas")
    table = pandas.DataFrame({"a": [1.5, 2.5], "b": [True, False], "c": [3, 4]})
    for each in (table, table.convert_dtypes()):
        np.testing.assert_array_equal(as_array(each, "X"), [[1.5, 1, 3], [2.5, 0, 4]])
    missing = pandas.DataFrame({"a": [1.5, None], "b": [1, 2]}).convert_dtypes()
    with pytest.raises(ValueError, match="nan at row 1, column 0"):
        fit(network(), missing, [0, 1], device="numpy")
    for more in (["x", "y"], pandas.Categorical(["x", "y"]), pandas.to_datetime(["2020", "2021"])):
        with pytest.raises(TypeError, match="real numbers"):
            fit(network(), table.assign(d=more), [0, 1], device="numpy")


@pytest.mark.parametrize("layout", ["C", "big-endian"])
def test_memory_mapped_file(layout: str, backend: Backend, reference: nf.Sequential, tmp_path: Path) -> None:
    X, y = problem()
    np.save(tmp_path / "X.npy", X if layout == "C" else X.astype(">f4"))
    np.save(tmp_path / "y.npy", y)
    model = network()
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r"), np.load(tmp_path / "y.npy", mmap_mode="r")
    fit(model, *mapped, epochs=2, device=backend)
    assert_same(model, reference)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("metrics", [(), ("accuracy",)])
def test_streamed_equals_resident(
    weighted: bool, metrics: tuple[str, ...], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = problem()
    X64 = X.astype(np.float64)  # float32 would be gathered from where it is
    weight = np.linspace(0, 2, len(y)) if weighted else None
    arguments = {"epochs": 2, "device": backend, "sample_weight": weight, "metrics": metrics}
    resident, streamed = network(), network()
    one = fit(resident, X64, y, **arguments)
    used = []
    source = loop.StreamedSource
    monkeypatch.setattr(loop, "StreamedSource", lambda *args: used.append(source) or source(*args))
    monkeypatch.setattr(type(backend), "memory", lambda self: (0, 1 << 30))
    other = fit(streamed, X64, y, **arguments)
    assert used == [source]
    assert_same(resident, streamed)
    assert dict(one) == dict(other)


# ---- iterables of batches ------------------------------------------------------------------------------
class Batches:
    """A data loader: every pass gives all batches again."""

    def __init__(self, *arrays: np.ndarray, size: int = 8) -> None:
        self.arrays, self.size = arrays, size

    def __len__(self) -> int:
        return -(-len(self.arrays[0]) // self.size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        for start in range(0, len(self.arrays[0]), self.size):
            yield tuple(a[start : start + self.size] for a in self.arrays)


@pytest.mark.parametrize("kind", ["loader", "list", "tuple of torch tensors"])
def test_batches_again_and_again(kind: str, backend: Backend) -> None:
    X, y = problem()
    batches: Any = Batches(X, y)
    if kind == "list":
        batches = list(batches)
    elif kind == "tuple of torch tensors":
        torch = _module("torch")
        batches = tuple((torch.tensor(xb), torch.tensor(yb)) for xb, yb in batches)
    one, other = network(), network()
    a = fit(one, batches, epochs=3, device=backend, metrics=["accuracy"], validation_data=(X, y))
    b = fit(other, X, y, epochs=3, device=backend, shuffle=False, metrics=["accuracy"], validation_data=(X, y))
    assert_same(one, other)
    assert dict(a) == dict(b)


def test_batches_with_weights(backend: Backend) -> None:
    X, y = problem()
    weight = np.linspace(0.5, 2, len(y))
    one, other = network(), network()
    fit(one, Batches(X, y, weight), epochs=2, device=backend, class_weight={1: 3.0})
    fit(other, X, y, epochs=2, device=backend, shuffle=False, sample_weight=weight, class_weight={1: 3.0})
    assert_same(one, other)


def test_an_iterator_lasts_for_one_epoch(backend: Backend) -> None:
    X, y = problem()
    one, other = network(), network()
    fit(one, iter(Batches(X, y)), device=backend)
    fit(other, X, y, device=backend, shuffle=False)
    assert_same(one, other)
    with pytest.raises(EmptyDataError, match="epoch 3 brought no batches"):
        fit(one, iter(Batches(X, y)), epochs=2, device=backend)
    assert one.training_state.epoch == 2


def test_an_error_in_the_iterable_reaches_the_caller(backend: Backend) -> None:
    X, y = problem()

    def batches() -> Iterator[Any]:
        yield X[:8], y[:8]
        raise OSError("the disk is gone")

    model = network()
    with pytest.raises(OSError, match="the disk is gone"):
        fit(model, batches(), device=backend)
    assert model.training_state.step == 1
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (iter([]), EmptyDataError, "empty"),
        (iter([1]), TypeError, "each batch must be"),
        (iter([(np.ones((2, 4)),)]), TypeError, "tuple of 1"),
        (iter([(np.ones((2, 4)), [0, 1, 2])]), ValueError, "2 rows of x and 3 of y"),
        (iter([(np.ones((2, 4)), [0, 3])]), ValueError, r"0\.\.2, row 1 has 3"),
        (iter([(np.full((2, 4), np.nan), [0, 1])]), ValueError, "nan at row 0"),
        ([(np.ones((2, 4)), [0, 1]), (np.ones((3, 4)), [0, 1, 2])], ValueError, "no later one may have more"),
        ([(np.ones((2, 4)), [0, 1]), (np.ones((2, 5)), [0, 1])], ValueError, r"\(2, 5\) does not fit"),
        ([(np.ones((2, 4)), [0, 1]), (np.ones((2, 4)), [0, 1], [1, 1])], ValueError, "the first one did not"),
    ],
)
def test_batches_that_do_not_fit(batches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(network(), batches, device="numpy")


def test_batches_must_fit_the_model_too() -> None:
    model = network().build(4)
    with pytest.raises(ValueError, match=r"\(2, 1\) does not fit the model, which takes \(n, 4\)"):
        fit(model, [(np.ones((2, 1)), np.array([0, 1]))], device="numpy")


@pytest.mark.parametrize("argument", [{"validation_split": 0.2}, {"sample_weight": [1.0]}])
def test_batches_and_arguments_for_arrays(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs arrays"):
        fit(network(), Batches(*problem()), device="numpy", **argument)
