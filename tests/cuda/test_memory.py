"""Memory of a GPU, on the emulated device: told beforehand, refused with a typed error, given back."""

from __future__ import annotations

import gc
import pickle
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.cupy_arrays import _HELD_BACK
from nnfast.errors import DeviceUnavailable, NNFastError, OutOfMemoryError
from tests.cuda.emulator import EmulatedBackend, emulated_backend


@pytest.fixture
def bk() -> EmulatedBackend:
    return emulated_backend()


def problem(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 20)).astype(np.float32), rng.integers(0, 3, rows)


def network() -> nf.Sequential:
    return nf.Sequential([nf.Dense(64, "relu"), nf.Dense(64, "relu"), nf.Dense(3)])


def fit(model: nf.Sequential, bk: Any, rows: int = 300, **arguments: Any) -> nf.History:
    defaults = {"loss": "cross_entropy", "optimizer": "adam", "batch_size": 10, "seed": 0, "verbose": 0}
    return model.fit(*problem(rows), device=bk, **{**defaults, **arguments})


def test_the_pool_is_emptied_before_it_is_given_up(bk: EmulatedBackend) -> None:
    pool = bk._cupy.pool
    pool.limit = 1000
    first = bk.empty(600, np.uint8)
    del first
    assert pool.held == 600
    pool.limit = 500  # what is held back does not count
    assert bk.zeros(400, np.uint8).size == 400


def test_the_error_names_need_and_free_bytes(bk: EmulatedBackend) -> None:
    bk._cupy.pool.limit = 1000
    kept = bk.empty(300, np.uint8)
    for ask in (
        lambda: bk.empty((100, 10), np.float64),
        lambda: bk.zeros((100, 10), np.float64),
        lambda: bk.asarray(np.zeros((100, 10))),
        lambda: bk._scratch("test", 8000, np.uint8),
    ):
        with pytest.raises(OutOfMemoryError, match=r"8,000 bytes.*700 are free on 'cuda:0'") as caught:
            ask()
        assert (caught.value.needed, caught.value.free, caught.value.device) == (8000, 700, "cuda:0")
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, NNFastError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.needed, again.free) == (str(caught.value), 8000, 700)
    assert kept.size == 300


@pytest.mark.parametrize("trained", [False, True])
def test_a_fit_that_does_not_fit_changes_nothing(bk: EmulatedBackend, trained: bool) -> None:
    model = network()
    if trained:
        fit(model, "numpy", optimizer="sgd")
    else:
        model.build(20, seed=0)
    before, device = model.get_weights(), model.device
    state = model.training_state.config()
    loss, optimizer = model.loss, model.last_optimizer
    pool = bk._cupy.pool
    pool.limit = pool.used + (33 << 20)
    used = pool.used
    for batch in (30_000, 3_000_000):  # too much for what is free, and more than the device has
        rows = min(batch, 30_000)
        with pytest.raises(OutOfMemoryError):
            fit(model, bk, rows, batch_size=batch, epochs=2)
    assert model.device == device
    assert model.training_state.config() == state
    assert (model.loss, model.last_optimizer) == (loss, optimizer)
    for name, value in model.get_weights().items():
        np.testing.assert_array_equal(value, before[name])
    gc.collect()
    assert pool.used <= used
    # and the next smaller one works
    fit(model, bk, epochs=1)
    assert model.device == "cuda:0"


def test_a_model_that_was_not_built_is_not_built_again(bk: EmulatedBackend) -> None:
    bk._cupy.pool.limit = bk._cupy.pool.used + 1000
    model = network()
    with pytest.raises(OutOfMemoryError):
        fit(model, bk)
    assert not model.is_built


def test_no_room_for_the_data_after_the_plan(bk: EmulatedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnfast.training.sources import ResidentSource

    model = network().build(20, seed=0)

    def full(self: Any, engine: Any, keep_outputs: bool) -> None:
        raise OutOfMemoryError("cuda:0", 10, 1)

    monkeypatch.setattr(ResidentSource, "attach", full)
    with pytest.raises(OutOfMemoryError):
        fit(model, bk)
    assert model.device == "numpy"
    assert not model.parameters.slots


def test_memory_goes_back_after_a_fit(bk: EmulatedBackend) -> None:
    model = network()
    fit(model, bk)
    pool = bk._cupy.pool
    used, held = pool.used, pool.held
    fit(model, bk, rows=3000, batch_size=3000)
    assert pool.used <= used + 4096  # the weights, and the working memory of kernels
    assert pool.free_bytes() < _HELD_BACK
    big = bk.empty(_HELD_BACK, np.uint8)
    del big
    fit(model, bk)
    assert pool.free_bytes() == 0
    assert pool.held <= held + 4096


def test_what_a_summary_says_is_taken(bk: EmulatedBackend) -> None:
    model = network()
    fit(model, bk, epochs=1)  # working memory
    model = network().build(20, seed=0)
    pool = bk._cupy.pool
    summary = model.summary(batch_size=256, device=bk)
    assert model.device == "numpy"
    assert summary.free_bytes == bk.memory()[0]
    assert summary.total_bytes == summary.weight_bytes + summary.plan_bytes + summary.working_bytes
    before, most = pool.used, 0
    take = pool.take

    def watched(nbytes: int) -> None:
        nonlocal most
        take(nbytes)
        most = max(most, pool.used - before)

    pool.take = watched
    fit(model, bk, rows=256, batch_size=256)
    data = 256 * 20 * 4 + 256 * 8
    expected = summary.total_bytes - summary.working_bytes + data
    assert expected * 0.95 <= most <= expected * 1.15
    text = str(summary)
    assert f"on cuda:0: {summary.total_bytes / 1e6:.1f} MB in all, 33.6 MB of it to work in" in text
    assert " are free" in text
    assert "on " not in str(model.summary(256)).splitlines()[-1].split("parameters")[0]


def test_a_summary_for_a_cpu() -> None:
    summary = network().build(20).summary(device="numpy")
    assert summary.working_bytes == 0
    assert str(summary).splitlines()[-1].startswith("on numpy: ")
    with pytest.raises(ValueError, match="'gpu' is not known"):
        network().build(20).summary(device="gpu")


def test_a_plan_that_no_machine_holds_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    bk = nf.devices.get_backend("numpy")
    monkeypatch.setattr(type(bk), "memory", lambda self: (1 << 30, 1 << 31))
    model = network().build(20, seed=0)
    trainer = nf.Trainer(model, "cross_entropy", device=bk, batch_size=10_000_000)
    with pytest.raises(OutOfMemoryError, match="for batches of 10,000,000 rows"):
        trainer.step(*problem(10))
    with pytest.raises(OutOfMemoryError):
        nf.devices.get_backend("numpy").empty((1 << 60,), np.uint8)


# ---- another allocator -----------------------------------------------------------------------------
class FakeTorchCuda:
    """``torch.cuda`` with a pool of a thousand bytes."""

    def __init__(self, available: bool = True) -> None:
        self.available, self.blocks = available, dict[int, tuple[int, int, int]]()

    def is_available(self) -> bool:
        return self.available

    def caching_allocator_alloc(self, nbytes: int, device: int, stream: int) -> int:
        if nbytes > 1000:
            raise FakeTorchError
        self.blocks[512 * (len(self.blocks) + 1)] = nbytes, device, stream
        return 512 * len(self.blocks)

    def caching_allocator_delete(self, address: int) -> None:
        del self.blocks[address]

    def memory_allocated(self, device: int) -> int:
        return 77


class FakeTorchError(RuntimeError):
    """``torch.OutOfMemoryError``."""


@pytest.fixture
def modules(bk: EmulatedBackend, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Stand-ins for cupy and torch, where they are imported."""

    class CupyError(MemoryError):
        def __init__(self, nbytes: int, total: int, limit: int) -> None:
            super().__init__(f"Out of memory allocating {nbytes:,} bytes (allocated so far: {total:,} bytes).")

    cupy = SimpleNamespace(
        cuda=SimpleNamespace(
            get_current_stream=lambda: SimpleNamespace(ptr=5),
            memory=SimpleNamespace(OutOfMemoryError=CupyError),
            PythonFunctionAllocator=lambda take, free: SimpleNamespace(malloc=(take, free)),
            set_allocator=lambda allocator: setattr(cupy, "allocator", allocator),
        ),
        get_default_memory_pool=lambda: SimpleNamespace(malloc="the pool"),
        allocator=None,
    )
    torch = SimpleNamespace(cuda=FakeTorchCuda(), OutOfMemoryError=FakeTorchError)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "torch", torch)
    return cupy, torch


def test_memory_of_pytorch(modules: tuple[Any, Any]) -> None:
    cupy, torch = modules
    nf.devices.use_allocator("torch")
    take, give_back = cupy.allocator
    address = take(100, 1)
    assert torch.cuda.blocks == {address: (100, 1, 5)}  # on the stream that the work is on
    with pytest.raises(MemoryError, match="allocating 2,000 bytes"):
        take(2000, 1)
    give_back(address, 1)
    assert not torch.cuda.blocks
    nf.devices.use_allocator("cupy")
    assert cupy.allocator == "the pool"
    nf.devices.use_allocator(print)
    assert cupy.allocator is print


def test_allocators_that_are_none(modules: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cupy, torch = modules
    with pytest.raises(ValueError, match="'numpy'"):
        nf.devices.use_allocator("numpy")
    with pytest.raises(TypeError, match="int"):
        nf.devices.use_allocator(3)  # type: ignore[arg-type]
    torch.cuda.available = False
    with pytest.raises(DeviceUnavailable, match="this one cannot"):
        nf.devices.use_allocator("torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DeviceUnavailable, match="needs PyTorch"):
        nf.devices.use_allocator("torch")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceUnavailable, match="needs CuPy"):
        nf.devices.use_allocator("cupy")
    assert cupy.allocator is None
