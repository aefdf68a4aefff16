"""The third gate: the CUDA backend's own code, on an emulated device."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast import activations
from nnfast.backends.cupy_backend import KERNELS, CupyBackend, operations, probe
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.errors import DeviceUnavailable
from nnfast.kernels import step_state as S
from nnfast.kernels.cuda import loader
from nnfast.selftest.operations import Operations
from nnfast.training import sources
from nnfast.training.engine import Engine
from tests.cuda.emulator import EmulatedBackend, FakeArray, emulated_backend


# ---- a step that can be captured ------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steady_state_neither_waits_nor_copies_nor_allocates(dtype: str) -> None:
    bk = emulated_backend()
    sweep = Operations(bk, dtype)
    sweep.run()  # working memory is made here
    bk.counts.reset()
    sweep.run()
    assert bk.counts.launches > 100
    assert (bk.counts.syncs, bk.counts.uploads, bk.counts.allocations) == (0, 0, 0)


def test_steady_state_of_a_whole_model(emulated_cuda: EmulatedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, seen, run = emulated_cuda.counts, [], Engine.run

    def counted(self: Engine, rows: int, steps: int = 1) -> None:
        counts.reset()
        run(self, rows, steps)
        seen.append((steps, counts.launches > 20 * steps, counts.syncs, counts.uploads, counts.allocations))

    monkeypatch.setattr(Engine, "run", counted)
    # How long a step takes decides how many there are between two looks at the results
    monkeypatch.setattr(sources, "next_chunk", lambda steps, seconds: 4 * steps)
    layers = [nf.Dense(9, "gelu"), nf.BatchNorm(), nf.Dropout(0.3), nf.Dense(7, "tanh"), nf.LayerNorm(), nf.Dense(3)]
    rng = np.random.default_rng(1)
    nf.Sequential(layers).fit(
        rng.standard_normal((64, 5)),
        rng.integers(0, 3, 64),
        loss="cross_entropy",
        optimizer=nf.AdamW(0.01, clip_norm=1.0, ema=0.9),
        sample_weight=rng.random(64),
        batch_size=16,
        epochs=2,
        device=emulated_cuda,
        seed=0,
        verbose=0,
    )
    # The last steps of the second epoch: the learning rates of an epoch are uploaded at its start
    steps, *rest = seen[-1]
    assert steps > 1
    assert rest == [True, 0, 0, 0]


def test_step_is_read_on_the_device(emulated_cuda: EmulatedBackend) -> None:
    """The same calls again, with other numbers in the state, do other work: nothing was baked in."""
    bk = emulated_cuda
    x = bk.asarray(np.arange(20.0).reshape(10, 2))
    order, out = bk.asarray(np.arange(10)[::-1].copy()), bk.zeros((3, 2), "float64")
    state, rates = bk.zeros(S.SIZE, "float64"), bk.asarray(np.array([0.5, 0.25]))
    seen = []
    for _ in range(2):
        bk.begin_step(state, rates)
        bk.take_batch(x, order, state, out=out)
        bk.end_step(state, 3)
        seen.append((bk.to_numpy(out)[0, 0], bk.to_numpy(state)[[S.STEP, S.LR, S.ROW]].tolist()))
    assert seen == [(18.0, [1.0, 0.5, 3.0]), (12.0, [2.0, 0.25, 6.0])]


def test_rates_beyond_the_table_are_the_last_one(emulated_cuda: EmulatedBackend) -> None:
    state, rates = emulated_cuda.zeros(S.SIZE, "float64"), emulated_cuda.asarray(np.array([0.5, 0.25, 8.0]))[:2]
    for _ in range(3):
        emulated_cuda.begin_step(state, rates)
    assert emulated_cuda.to_numpy(state)[[S.CURSOR, S.LR]].tolist() == [3.0, 0.25]


def test_an_epoch_beyond_the_table_of_results_does_not_count(emulated_cuda: EmulatedBackend) -> None:
    state, results = emulated_cuda.zeros(S.SIZE, "float64"), emulated_cuda.zeros((3, 3), "float64")[:2]
    state[S.WEIGHT_SUM] = 4.0
    for _ in range(3):
        emulated_cuda.end_epoch(state, results)
    assert emulated_cuda.to_numpy(state)[S.EPOCH_INDEX] == 2
    assert emulated_cuda.to_numpy(results).tolist() == [[0, 4, 0], [0, 0, 0]]


@pytest.mark.parametrize("size", [3, 5000])
def test_a_bad_step_leaves_nothing_behind(emulated_cuda: EmulatedBackend, size: int) -> None:
    """Once the host has cleared BAD_STEP, updates go on."""
    bk = emulated_cuda
    param, grad, state = bk.zeros(size, "float32"), bk.zeros(size, "float32"), bk.zeros(S.SIZE, "float64")
    for slot, value in ((S.STEP, 4.0), (S.LR, 1.0), (S.GRAD_SCALE, 1.0)):
        state[slot] = value
    grad[size - 1] = np.inf
    bk.sgd_step(param, grad, None, state, nesterov=False)
    assert bk.to_numpy(state)[S.BAD_STEP] == 4
    assert not bk.to_numpy(param).any()
    state[S.BAD_STEP] = 0.0
    bk.fill(grad, -1.0)
    bk.sgd_step(param, grad, None, state, nesterov=False)
    assert bk.to_numpy(state)[S.BAD_STEP] == 0
    np.testing.assert_array_equal(bk.to_numpy(param), np.ones(size, "float32"))


def test_working_memory_is_kept_when_it_grows(emulated_cuda: EmulatedBackend) -> None:
    """A captured step holds addresses: an array that became too small must stay alive."""
    small = emulated_cuda._scratch("columns f", 10, np.float32)
    large = emulated_cuda._scratch("columns f", 100_000, np.float32)
    held = [array for arrays in emulated_cuda._work.values() for array in arrays]
    assert any(array is small for array in held)
    assert emulated_cuda._scratch("columns f", 10, np.float32) is large


def test_threads_do_not_share_working_memory(emulated_cuda: EmulatedBackend) -> None:
    other: list[Any] = []
    thread = threading.Thread(target=lambda: other.append(emulated_cuda._sync()))
    thread.start()
    thread.join()
    assert other[0] is not emulated_cuda._sync()


# ---- which code runs -------------------------------------------------------------------------------
def test_every_method_of_the_contract_has_a_kernel_or_a_reason() -> None:
    memory = {"empty", "zeros", "asarray", "to_numpy", "copy", "fill", "synchronize", "memory", "release", "feeder"}
    recording = {"capture", "chain", "python", "rounding", "copying", "fallbacks"}
    host = {"shuffle", "reduced", "repeated", "fetch"}
    kernels = {name for part in KERNELS for name in vars(part)}
    assert set(operations()) - memory - recording - host - kernels == {"gemm"}


def test_not_fused_launches_no_kernel_of_ours() -> None:
    bk = emulated_backend(fused=False)
    Operations(bk, "float64", 20, 6).run()
    assert set(bk.counts.kernels) == {"gemm"}


def test_fused_is_a_switch(emulated_cuda: EmulatedBackend) -> None:
    x = emulated_cuda.asarray(np.ones((2, 2)))
    emulated_cuda.fused = False
    emulated_cuda.add(x, x, out=x)
    assert not emulated_cuda.counts.kernels
    emulated_cuda.fused = True
    emulated_cuda.add(x, x, out=x)
    assert emulated_cuda.counts.kernels == ["add<double>"]
    np.testing.assert_array_equal(emulated_cuda.to_numpy(x), np.full((2, 2), 4.0))


def test_launches_of_a_linear_layer(emulated_cuda: EmulatedBackend) -> None:
    """One forward where the epilogue has the activation and nothing else is kept, else two; three backward."""
    bk, product = emulated_cuda, "cublasLtMatmul"
    x, W, b, y = (bk.zeros(s, "float32") for s in ((8, 4), (4, 3), (3,), (8, 3)))
    dx, dW, db = bk.zeros((8, 4), "float32"), bk.zeros((4, 3), "float32"), bk.zeros(3, "float32")
    for _ in range(2):  # algorithms are chosen the first time
        launched = []
        for act, saved in (("relu", None), ("gelu_tanh", None), ("gelu_tanh", y.copy()), ("tanh", None)):
            bk.counts.reset()
            bk.linear_act(x, W, b, act, out=y, saved=saved)
            launched.append(bk.counts.kernels)
        bk.counts.reset()
        bk.linear_act_grad(y, x, W, y, "relu", dx=dx, dW=dW, db=db)
    kernels = ["bias_act<float, GeluTanh>", "bias_act<float, Tanh>"]
    assert launched == [[product], [product], [product, kernels[0]], [product, kernels[1]]]
    assert bk.counts.kernels == ["act_grad_bias<float, Relu>", product, product]


def test_what_the_kernels_do_not_support_is_computed_all_the_same(emulated_cuda: EmulatedBackend) -> None:
    bk, rng = emulated_cuda, np.random.default_rng(0)
    half = rng.standard_normal((6, 4)).astype(np.float16)
    out = bk.zeros((6, 4), np.float32)
    bk.act("tanh", bk.asarray(half), out=out)  # of two dtypes
    np.testing.assert_allclose(bk.to_numpy(out), np.tanh(half.astype(np.float32)), rtol=1e-6)
    weights = bk.asarray(half)
    bk.clip_value(weights, limit=0.5)  # what has no 16-bit form
    np.testing.assert_array_equal(bk.to_numpy(weights), half.clip(-0.5, 0.5))
    wide = bk.asarray(rng.standard_normal((6, 8)))
    strided = wide[:, ::2]
    out64 = bk.zeros((6, 4), "float64")
    bk.add(strided, strided, out=out64)
    np.testing.assert_array_equal(bk.to_numpy(out64), 2 * bk.to_numpy(wide)[:, ::2])
    bk.gemm(strided, strided, out=(product := bk.zeros((4, 4), "float64")), trans_a=True)
    part = bk.to_numpy(wide)[:, ::2]
    np.testing.assert_allclose(bk.to_numpy(product), part.T @ part, rtol=1e-14)
    bk.copy(part, out=wide[:, 1::2])
    np.testing.assert_array_equal(bk.to_numpy(wide)[:, 1::2], part)
    assert set(bk.counts.kernels) == set()


def test_mixed_dtypes_go_to_the_composition(emulated_cuda: EmulatedBackend) -> None:
    bk = emulated_cuda
    x, b = np.ones((3, 2), "float32"), np.array([1.0, 2.0])
    out = bk.zeros((3, 2), "float32")
    bk.add_bias(bk.asarray(x), bk.asarray(b), out=out)
    np.testing.assert_array_equal(bk.to_numpy(out), x + b)
    assert not bk.counts.kernels


@pytest.mark.parametrize(
    ("method", "shapes", "options"),
    [
        ("add", {"x": (3, 4), "y": (4, 4), "out": (3, 4)}, {}),
        ("add_bias", {"x": (3, 4), "b": (5,), "out": (3, 4)}, {}),
        ("sum_rows", {"x": (3, 4), "out": (3,)}, {}),
        ("act", {"z": (3, 4), "out": (2, 4)}, {"act": "relu"}),
        ("act_grad", {"dy": (3, 4), "saved": (3, 5), "out": (3, 4)}, {"act": "relu"}),
        ("take_rows", {"x": (9, 4), "index": (3,), "out": (3, 5)}, {}),
        ("gemm", {"a": (3, 4), "b": (5, 4), "out": (3, 4)}, {}),
        ("sgd_step", {"param": (8,), "grad": (7,), "velocity": (8,), "state": (S.SIZE,)}, {"nesterov": False}),
        ("softmax_xent", {"logits": (3, 4), "labels": (2,), "weight": (3,), "state": (S.SIZE,)}, {"dlogits": None}),
    ],
)
def test_wrong_shapes_are_errors_not_wild_accesses(
    emulated_cuda: EmulatedBackend, method: str, shapes: dict[str, tuple[int, ...]], options: dict[str, Any]
) -> None:
    kinds = {"index": np.int64, "labels": np.int64}
    arrays = {name: emulated_cuda.zeros(shape, kinds.get(name, np.float64)) for name, shape in shapes.items()}
    with pytest.raises((ValueError, IndexError)):
        getattr(emulated_cuda, method)(**arrays, **options)


def test_numpy_arrays_in_device_calls_are_type_errors(emulated_cuda: EmulatedBackend) -> None:
    bk = emulated_cuda
    host, device = np.ones((3, 2)), bk.zeros((3, 2), "float64")
    for call in (
        lambda: bk.add(device, host, out=device),
        lambda: bk.act("relu", host, out=device),
        lambda: bk.begin_step(np.zeros(S.SIZE), bk.zeros(3, "float64")),
        lambda: bk.end_epoch(np.zeros(S.SIZE), bk.zeros((3, 3), "float64")),
        lambda: bk.take_batch(host, bk.zeros(3, np.int64), bk.zeros(S.SIZE, "float64"), out=device),
        lambda: np.asarray(device),
        lambda: device + host,
        lambda: host + device,
    ):
        with pytest.raises(TypeError):
            call()


def test_missing_saved_is_an_error(emulated_cuda: EmulatedBackend) -> None:
    dy = emulated_cuda.zeros((3, 2), "float64")
    with pytest.raises((TypeError, AttributeError)):
        emulated_cuda.act_grad("relu", dy, None, out=dy)


# ---- devices ---------------------------------------------------------------------------------------
def test_second_device_is_made_current_for_its_own_calls_only() -> None:
    bk = emulated_backend(1)
    assert bk.device == "cuda:1"
    x = bk.asarray(np.ones((4, 3), "float32"))
    assert x.device.id == 1
    bk.act("tanh", x, out=x)
    bk.gemm(x, x, out=bk.zeros((3, 3), "float32"), trans_a=True)
    bk.synchronize()
    assert bk.xp.current_device == 0
    elsewhere = bk.xp.zeros((4, 3), np.float32)  # on the current device, which is 0
    with pytest.raises(RuntimeError, match="another device"):
        bk.act("tanh", elsewhere, out=elsewhere)
    moved = bk.asarray(bk.xp.zeros((4, 3), np.float32))
    assert moved.device.id == 1


class OnDevice:
    """Another library's array in device memory."""

    def __init__(self, values: np.ndarray, protocol: str) -> None:
        self.on_host = values
        if protocol == "interface":
            self.__cuda_array_interface__ = {
                "typestr": values.dtype.str,
                "shape": values.shape,
                "data": (values.ctypes.data, False),
                "version": 3,
            }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


@pytest.mark.parametrize("protocol", ["interface", "dlpack"])
def test_arrays_of_other_libraries_stay_on_the_device(emulated_cuda: EmulatedBackend, protocol: str) -> None:
    values = np.arange(6.0).reshape(2, 3)
    x = emulated_cuda.asarray(OnDevice(values, protocol))
    assert isinstance(x, FakeArray)
    assert emulated_cuda.counts.uploads == emulated_cuda.counts.syncs == 0
    np.testing.assert_array_equal(emulated_cuda.to_numpy(x), values)


def test_array_likes_of_the_host(emulated_cuda: EmulatedBackend) -> None:
    torch = pytest.importorskip("torch")
    x = emulated_cuda.asarray(torch.arange(4.0))
    np.testing.assert_array_equal(emulated_cuda.to_numpy(x), np.arange(4.0))
    read_only = np.arange(3)
    read_only.flags.writeable = False
    np.testing.assert_array_equal(emulated_cuda.to_numpy(emulated_cuda.asarray(read_only)), read_only)
    with pytest.raises(ValueError, match="dtype"):
        emulated_cuda.asarray(["a", "b"])


# ---- the launch shapes -----------------------------------------------------------------------------
@pytest.mark.parametrize("multiprocessors", [1, 2, 132])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000, 100_000])
@pytest.mark.parametrize(("columns", "at_once"), [(1, 1), (31, 1), (33, 1), (5000, 1), (4, 4), (72, 8), (5000, 2)])
def test_tiles_cover_all_rows_and_columns(multiprocessors: int, rows: int, columns: int, at_once: int) -> None:
    (tiles, chunks), block, per_chunk = loader.Kernels(None, multiprocessors).tiles(rows, columns, at_once)
    across = min(-(-columns // tiles), 32 * at_once)  # a tile's columns
    assert tiles == -(-columns // (32 * at_once))
    assert tiles * across >= columns
    assert block == (256,)
    assert chunks * per_chunk >= rows > (chunks - 1) * per_chunk
    assert 1 <= chunks <= 65535
    assert chunks == 1 or per_chunk >= 32


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("rows", [1, 8, 65, 65_536, 10**7])
@pytest.mark.parametrize("columns", [1, 10, 1000, 50_000, 10**6])
def test_every_block_of_a_loss_has_rows(multiprocessors: int, rows: int, columns: int) -> None:
    kernels = loader.Kernels(None, multiprocessors)
    (blocks,), block, at_a_time = kernels.row_tiles(rows, columns)
    assert block == (256,)
    assert 8 <= at_a_time <= 64
    assert (blocks - 1) * at_a_time < rows
    assert 1 <= blocks <= kernels.most_blocks
    assert blocks * columns <= max(1 << 24, columns)


def test_large_and_empty_launches() -> None:
    kernels = loader.Kernels(None, 4)
    for shape in (kernels.flat(0), kernels.flat(10**12), kernels.warps(0), kernels.warps(10**12)):
        assert 1 <= shape[0][0] <= kernels.most_blocks
    assert kernels.tiles(0, 0)[0] == (1, 1)


def test_rows_of_zero_are_fine(emulated_cuda: EmulatedBackend) -> None:
    bk = emulated_cuda
    empty, sums = bk.zeros((0, 3), "float32"), bk.zeros(3, "float32")
    bk.fill(sums, 7.0)
    bk.act("relu", empty, out=empty)
    bk.act("softmax", empty, out=empty)
    bk.sum_rows(empty, out=sums)
    bk.gemm(empty, empty, out=(product := bk.zeros((3, 3), "float32")), trans_a=True)
    assert not bk.to_numpy(sums).any()
    assert not bk.to_numpy(product).any()


# ---- the emulator itself ---------------------------------------------------------------------------
def test_emulator_checks_arguments(emulated_cuda: EmulatedBackend) -> None:
    bk = emulated_cuda
    kernel = bk._kernels.get("reduce", "clip_value", "float")
    x = bk.zeros(8, "float32")
    with pytest.raises(TypeError, match="points to"):
        kernel((1,), (256,), (bk.zeros(8, "float64"), 8, 1.0))
    with pytest.raises(TypeError, match="takes float"):
        kernel((1,), (256,), (x, 8, 1))
    with pytest.raises(TypeError, match="3 arguments"):
        kernel((1,), (256,), (x, 8))
    with pytest.raises(MemoryError, match="outside"):
        kernel((1,), (256,), (x, 9, 0.0))


def test_emulator_counts(emulated_cuda: EmulatedBackend) -> None:
    bk = emulated_cuda
    x = bk.asarray(np.ones(3))
    assert (bk.counts.uploads, bk.counts.allocations, bk.counts.syncs) == (1, 1, 0)
    bk.counts.reset()
    assert float(x.sum()) == 3.0
    assert bool(x[0] == 1)
    assert (bk.counts.uploads, bk.counts.allocations, bk.counts.syncs) == (0, 2, 2)
    bk.counts.reset()
    view = x[1:].reshape(2, 1).T
    view[...] = 5.0
    x[0] += 1.0
    assert (bk.counts.allocations, bk.counts.syncs) == (0, 0)
    np.testing.assert_array_equal(x.get(), [2, 5, 5])


# ---- probing ---------------------------------------------------------------------------------------
def fake_runtime(driver: int = 13000, built: int = 13000, count: Any = 1) -> ModuleType:
    """A module ``cupy`` whose runtime answers so."""

    def device_count() -> int:
        if isinstance(count, Exception):
            raise count
        return count

    def alloc(size: int) -> Any:
        raise MemoryError("out of memory allocating 1048576 bytes\nsecond line")

    module = ModuleType("cupy")
    runtime = SimpleNamespace(
        is_hip=False,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: built,
        getDeviceCount=device_count,
    )
    module.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        runtime=runtime,
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
        cublas=SimpleNamespace(sgemm=None),
        alloc=alloc,
        Device=lambda index: __import__("contextlib").nullcontext(),
    )
    return module


@pytest.mark.parametrize(
    ("module", "index", "reason"),
    [
        (None, 0, "CuPy is not installed"),
        (fake_runtime(driver=0), 0, "no NVIDIA driver"),
        (fake_runtime(driver=12040), 0, "supports CUDA 12.4, CuPy is built for CUDA 13.0"),
        (
            fake_runtime(count=RuntimeError("cudaErrorNoDevice: none\nmore")),
            0,
            "no usable GPU: RuntimeError: cudaErrorNo",
        ),
        (fake_runtime(count=0), 0, "no GPU"),
        (fake_runtime(count=2), 2, "there is no device 2; the machine has 2"),
        (fake_runtime(count=2), -1, "there is no device -1"),
        (fake_runtime(), 0, "device 0 does not allocate memory: MemoryError: out of memory"),
    ],
)
def test_probe_gives_the_reason_in_one_line(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType | None, index: int, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", module)  # type: ignore[arg-type]
    answer = probe(index)
    assert answer is not None
    assert reason in answer
    assert "\n" not in answer
    with pytest.raises(DeviceUnavailable, match=r"cuda:"):
        CupyBackend(index)


def test_probe_of_a_broken_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "cupy.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert probe() == "CuPy does not import: OSError: libcudart.so.13: cannot open shared object file"


def test_probe_of_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_runtime()
    del module.cuda.nvrtc
    monkeypatch.setitem(sys.modules, "cupy", module)
    assert str(probe()).startswith("a CUDA library is missing")


def test_same_masks_as_numpy_for_a_training_step(emulated_cuda: EmulatedBackend) -> None:
    state = np.zeros(S.SIZE)
    state[[S.STEP, S.SEED_LO, S.SEED_HI]] = 9, 123, 456
    x = np.ones((5, 7), "float32")
    here, there = emulated_cuda.zeros((5, 7), "float32"), np.zeros((5, 7), "float32")
    emulated_cuda.dropout(emulated_cuda.asarray(x), emulated_cuda.asarray(state), rate=0.5, stream=1, out=here)
    NumpyBackend().dropout(x, state, rate=0.5, stream=1, out=there)
    np.testing.assert_array_equal(emulated_cuda.to_numpy(here), there)


def test_functors_of_all_activations() -> None:
    assert set(loader.ACTIVATIONS) == set(activations.names()) - {"softmax"}
