"""Pooling, sizes, group and root-mean-square normalisation on the emulated device, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.cupy_conv import CudaConv
from nnfast.backends.cupy_norms import CudaNorms
from nnfast.backends.cupy_spatial import CudaSpatial
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.backends.spatial import SpatialOperations
from nnfast.kernels.cuda import expressions
from nnfast.training.engine import Engine
from nnfast.window import Window
from tests.backends.test_parity_cuda import check, dtype_of, each_storage, nan, new_state, widened
from tests.cuda.emulator import EmulatedBackend, emulated_backend
from tests.cuda.host_shim import HostShim

# Odd and even channels, windows that overlap, leave gaps, reach over the border or lie outside
WINDOWS = [
    (Window((2, 2), (2, 2)), (2, 6, 5, 8)),
    (Window((3, 3), (2, 1), ((1, 1), (1, 1))), (2, 7, 5, 3)),
    (Window((1, 3), (1, 2), ((0, 0), (2, 1)), (1, 2)), (3, 1, 9, 4)),
    (Window((2, 3), (1, 1), ((2, 2), (3, 3)), (2, 1)), (1, 4, 3, 16)),
]
each_window = pytest.mark.parametrize(("window", "shape"), WINDOWS, ids=range(len(WINDOWS)))


@pytest.fixture
def bk() -> EmulatedBackend:
    return emulated_backend()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def result_shape(window: Window, shape: tuple[int, ...], channels: int | None = None) -> tuple[int, ...]:
    n, h, w, c = shape
    return (n, *window.out_size(h, w), c if channels is None else channels)


# ---- pooling --------------------------------------------------------------------------------------
@each_storage
@each_window
def test_max_pool(bk: EmulatedBackend, rng: Any, dtype: str, window: Window, shape: tuple[int, ...]) -> None:
    """Small integers: many are equal, and the gradient goes to the first."""
    x, result = rng.integers(-2, 3, shape).astype(float), result_shape(window, shape)
    y = check(bk, "max_pool", dtype, x=x, out=nan(*result), options={"window": window})["out"].astype(float)
    dy = rng.integers(-8, 9, result).astype(float)
    check(bk, "max_pool_grad", dtype, ("dx",), dy=dy, x=x, y=y, dx=nan(*shape), options={"window": window})


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_max_pool_of_nan(bk: EmulatedBackend) -> None:
    """NaN wins, wherever it is in its window, and has the gradient."""
    window = Window((2, 2), (1, 1), ((0, 0), (1, 0)))
    x = np.arange(12.0).reshape(1, 3, 4, 1)
    x[0, 1, 1] = x[0, 1, 2] = np.nan
    result = result_shape(window, x.shape)
    y = check(bk, "max_pool", "float32", x=x, out=nan(*result), options={"window": window})["out"]
    assert np.isnan(y).sum() == 6
    dy = np.arange(float(y.size)).reshape(result)
    check(bk, "max_pool_grad", "float32", ("dx",), dy=dy, x=x, y=y, dx=nan(*x.shape), options={"window": window})


@each_storage
@each_window
@pytest.mark.parametrize("count_padding", [False, True])
def test_avg_pool(
    bk: EmulatedBackend, rng: Any, dtype: str, window: Window, shape: tuple[int, ...], count_padding: bool
) -> None:
    x, result = rng.standard_normal(shape), result_shape(window, shape)
    options = {"window": window, "count_padding": count_padding}
    check(bk, "avg_pool", dtype, x=x, out=nan(*result), options=options)
    dy = rng.standard_normal(result)
    check(bk, "avg_pool_grad", dtype, ("dx",), dy=dy, dx=nan(*shape), options=options, backward=True)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@each_storage
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 40, 16), (2, 3, 300)], ids=str)
def test_masked_pools(bk: EmulatedBackend, rng: Any, dtype: str, shape: tuple[int, int, int]) -> None:
    """Many steps are equal, what is padding is no number, and of the first sequence there is nothing else."""
    n, t, c = shape
    mask = (rng.random((n, t)) < 0.6).astype(float)
    mask[0], mask[-1, -1] = 0, 1
    x, dy = rng.integers(-2, 3, shape).astype(float), rng.integers(-8, 9, (n, c)).astype(float)
    x[mask == 0] = np.nan
    y = check(bk, "masked_max", dtype, x=x, mask=mask, out=nan(n, c))["out"].astype(float)
    check(bk, "masked_max_grad", dtype, ("dx",), dy=dy, x=x, y=y, mask=mask, dx=nan(*shape))
    check(bk, "masked_mean", dtype, x=x, mask=mask, out=nan(n, c))
    check(bk, "masked_mean_grad", dtype, ("dx",), dy=dy, mask=mask, dx=nan(*shape), backward=True)
    # NaN that is there wins, and has the gradient
    x[-1, -1, 0] = np.nan
    y = check(bk, "masked_max", dtype, x=x, mask=mask, out=nan(n, c))["out"].astype(float)
    assert np.isnan(y[-1, 0])
    check(bk, "masked_max_grad", dtype, ("dx",), dy=dy, x=x, y=y, mask=mask, dx=nan(*shape))


# ---- size -----------------------------------------------------------------------------------------
@each_storage
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 5, 1, 16)], ids=str)
def test_sizes(bk: EmulatedBackend, rng: Any, dtype: str, shape: tuple[int, ...]) -> None:
    n, h, w, c = shape
    x = rng.standard_normal(shape)
    check(bk, "pad", dtype, x=x, out=nan(n, h + 3, w + 2, c), options={"top": 1, "left": 2})
    check(bk, "crop", dtype, x=x, out=nan(n, h - 2, w, c), options={"top": 1, "left": 0})
    check(bk, "upsample", dtype, x=x, out=nan(n, 2 * h, 3 * w, c), options={"factors": (2, 3)})
    large = rng.standard_normal((n, 2 * h, 3 * w, c))
    check(bk, "upsample_grad", dtype, ("dx",), dy=large, dx=nan(*shape), options={"factors": (2, 3)}, backward=True)


@each_storage
@pytest.mark.parametrize("factors", [(1, 1), (2, 3), (5, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 5, 1, 16)], ids=str)
def test_bilinear(bk: EmulatedBackend, rng: Any, dtype: str, shape: tuple[int, ...], factors: tuple[int, int]) -> None:
    n, h, w, c = shape
    x, large, options = rng.standard_normal(shape), (n, h * factors[0], w * factors[1], c), {"factors": factors}
    check(bk, "upsample_bilinear", dtype, x=x, out=nan(*large), options=options)
    dy = rng.standard_normal(large)
    check(bk, "upsample_bilinear_grad", dtype, ("dx",), dy=dy, dx=nan(*shape), options=options, backward=True)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("factors", [(1, 3), (3, 2)])
def test_bilinear_of_what_is_not_finite(bk: EmulatedBackend, factors: tuple[int, int]) -> None:
    """It goes where it has a share, and nowhere else."""
    x, dy = np.zeros((1, 4, 5, 4)), np.zeros((1, 4 * factors[0], 5 * factors[1], 4))
    x[0, 0, 2], x[0, 2, 0], dy[0, 0, 3], dy[0, 2, 4] = np.inf, np.nan, np.nan, np.inf
    options = {"factors": factors}
    check(bk, "upsample_bilinear", "float32", x=x, out=nan(*dy.shape), options=options)
    check(bk, "upsample_bilinear_grad", "float32", ("dx",), dy=dy, dx=nan(*x.shape), options=options, backward=True)


# ---- normalisation and noise ------------------------------------------------------------------------
@each_storage
@pytest.mark.parametrize(("shape", "groups"), [((2, 6, 12), 3), ((3, 40, 16), 2), ((1, 70, 6), 6), ((2, 1, 5), 1)])
def test_group_norm(bk: EmulatedBackend, rng: Any, dtype: str, shape: tuple[int, int, int], groups: int) -> None:
    n, _, c = shape
    x, dy, gamma, beta = 2 + rng.standard_normal(shape), *(rng.standard_normal(s) for s in (shape, c, c))
    stats = {"mean": nan(n, groups), "rstd": nan(n, groups)}
    options = {"groups": groups, "eps": 1e-3}
    outs = ("out", "mean", "rstd")
    check(bk, "group_norm", dtype, outs, x=x, gamma=gamma, beta=beta, out=nan(*shape), **stats, options=options)
    exact = {name: np.zeros((n, groups)) for name in stats}
    NumpyBackend().group_norm(x, gamma, beta, **options, out=np.zeros(shape), **exact)
    arrays = {"dy": dy, "x": x, "gamma": gamma, **exact, "dgamma": nan(c), "dbeta": nan(c)}
    grads, only = ("dx", "dgamma", "dbeta"), {"groups": groups}
    check(bk, "group_norm_grad", dtype, grads, **arrays, dx=nan(*shape), options=only, backward=True)
    check(bk, "group_norm_grad", dtype, grads, **arrays, alias={"dx": "dy"}, options=only, backward=True)
    check(bk, "group_norm_grad", dtype, grads[1:], **arrays, dx=None, options=only, backward=True)


@each_storage
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (150, 12), (5, 300)], ids=str)
def test_rms_norm(bk: EmulatedBackend, rng: Any, dtype: str, shape: tuple[int, int]) -> None:
    n, m = shape
    x, dy, gamma = 1 + rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(m)
    options = {"eps": 1e-3}
    outs = ("out", "rstd")
    check(bk, "rms_norm", dtype, outs, x=x, gamma=gamma, out=nan(*shape), rstd=nan(n), options=options)
    rstd = 1 / np.sqrt((x**2).mean(1) + 1e-3)
    arrays = {"dy": dy, "x": x, "gamma": gamma, "rstd": rstd, "dgamma": nan(m)}
    check(bk, "rms_norm_grad", dtype, ("dx", "dgamma"), **arrays, dx=nan(*shape), backward=True)
    check(bk, "rms_norm_grad", dtype, ("dx", "dgamma"), **arrays, alias={"dx": "dy"}, backward=True)
    check(bk, "rms_norm_grad", dtype, ("dgamma",), **arrays, dx=None, backward=True)


@each_storage
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 40, 16), (1, 1, 1)], ids=str)
def test_spatial_dropout(bk: EmulatedBackend, rng: Any, dtype: str, shape: tuple[int, int, int]) -> None:
    state, x = new_state(STEP=2**32 + 5, SEED_LO=2**32 - 3, SEED_HI=12345), rng.standard_normal(shape)
    options = {"rate": 0.4, "stream": 3}
    check(bk, "spatial_dropout", dtype, x=x, state=state, out=nan(*shape), options=options)
    check(bk, "spatial_dropout", dtype, x=x, state=state, alias={"out": "x"}, options=options)


# ---- all of them at once ----------------------------------------------------------------------------
def every_call(bk: Any, dtype: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """A function that calls each method once, and what it writes."""
    rng, narrow, full = np.random.default_rng(2), dtype_of(dtype, "pad", "x"), dtype_of(dtype, "group_norm", "gamma")
    window, (n, h, w, c), groups = Window((3, 2), (2, 1), ((1, 0), (1, 1))), (3, 6, 5, 8), 2
    result = result_shape(window, (n, h, w, c))
    x, dy, large = (bk.asarray(rng.standard_normal(s).astype(narrow)) for s in ((n, h, w, c), result, (n, 2 * h, w, c)))
    gamma, state = bk.asarray(rng.standard_normal(c).astype(full)), bk.asarray(new_state(STEP=3, SEED_LO=5))
    outs: dict[str, Any] = {}

    def out(name: str, *shape: int, dtype: Any = narrow) -> Any:
        outs[name] = bk.zeros(shape, dtype)
        return outs[name]

    units = [bk.asarray(rng.integers(0, 256, (2, 3, 1, size)).astype(np.uint8)) for size in (1, 2, 4, 8, 16)]
    padded = [out(f"pad {i}", 2, 4, 2, size, dtype=np.uint8) for i, size in enumerate((1, 2, 4, 8, 16))]
    y, mean = out("max_pool", *result), out("avg_pool", *result)
    dx = [out(f"dx {i}", n, h, w, c) for i in range(7)]
    between = out("upsample_bilinear", n, 2 * h, w, c)
    stats = [out(name, n, groups, dtype=full) for name in ("mean", "rstd")]
    sums = [out(f"sums {i}", c, dtype=full) for i in range(3)]
    rstd, normed, scaled = (
        out("rstd of rows", n * h * w, dtype=full),
        out("normed", n, h * w, c),
        out("rms", n * h * w, c),
    )
    pixels, rows = x.reshape(n, h * w, c), x.reshape(-1, c)
    mask = bk.asarray((rng.random((n, h * w)) < 0.6).astype(narrow))
    steps = [out(f"masked {i}", n, c) for i in range(2)] + [out(f"masked dx {i}", n, h * w, c) for i in range(2)]

    def call() -> None:
        for small, border in zip(units, padded, strict=True):
            bk.pad(small, 1, 0, out=border)
        bk.max_pool(x, window, out=y)
        bk.max_pool_grad(dy, x, y, window, dx=dx[0])
        bk.avg_pool(x, window, out=mean)
        bk.avg_pool_grad(dy, window, dx=dx[1])
        bk.masked_max(pixels, mask, out=steps[0])
        bk.masked_max_grad(steps[0], pixels, steps[0], mask, dx=steps[2])
        bk.masked_mean(pixels, mask, out=steps[1])
        bk.masked_mean_grad(steps[1], mask, dx=steps[3])
        bk.upsample_grad(large, (2, 1), dx=dx[2])
        bk.upsample_bilinear(x, (2, 1), out=between)
        bk.upsample_bilinear_grad(large, (2, 1), dx=dx[6])
        bk.group_norm(pixels, gamma, gamma, groups=groups, eps=1e-3, out=normed, mean=stats[0], rstd=stats[1])
        bk.group_norm_grad(
            normed, pixels, gamma, *stats, groups=groups, dx=dx[3].reshape(n, h * w, c), dgamma=sums[0], dbeta=sums[1]
        )
        bk.rms_norm(rows, gamma, eps=1e-3, out=scaled, rstd=rstd)
        bk.rms_norm_grad(scaled, rows, gamma, rstd, dx=dx[4].reshape(-1, c), dgamma=sums[2])
        bk.spatial_dropout(pixels, state, rate=0.3, stream=1, out=dx[5].reshape(n, h * w, c))

    return call, outs


def test_every_instantiation_runs_and_the_steady_state_neither_waits_nor_allocates() -> None:
    launched: set[str] = set()
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        bk = emulated_backend()
        call, _ = every_call(bk, dtype)
        call()
        bk.counts.reset()
        call()
        assert (bk.counts.syncs, bk.counts.uploads, bk.counts.allocations) == (0, 0, 0)
        launched.update(bk.counts.kernels)
    ours = {
        name for file in ("pooling", "masked_pooling", "images", "group_norm", "rms_norm") for name in expressions(file)
    }
    assert ours | {name for name in expressions("dropout") if name.startswith("spatial")} <= launched


@pytest.mark.parametrize("order", ["backward", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(shim: HostShim, order: str, dtype: str) -> None:
    found = []
    for how in ("forward", order):
        try:
            shim.order(how)
            bk = emulated_backend()
            call, outs = every_call(bk, dtype)
            call()
            found.append({name: widened(np.array(bk.to_numpy(x))) for name, x in outs.items()})
        finally:
            shim.order("forward")
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


def test_every_method_has_a_kernel() -> None:
    contract = {name for name, x in vars(SpatialOperations).items() if callable(x) and not name.startswith("_")}
    assert contract <= {name for part in (CudaConv, CudaNorms, CudaSpatial) for name in vars(part)}


def test_shapes_that_do_not_fit_go_to_the_composition(bk: EmulatedBackend) -> None:
    x = bk.zeros((1, 4, 4, 2), "float32")
    rows = x.reshape(-1, 2)
    for call in (
        lambda: bk.pad(x, 1, 0, out=bk.zeros((1, 4, 4, 2), "float32")),
        lambda: bk.crop(x, 2, 0, out=bk.zeros((1, 3, 4, 2), "float32")),
        lambda: bk.upsample(x, (2, 2), out=bk.zeros((1, 8, 7, 2), "float32")),
        lambda: bk.upsample_bilinear(x, (2, 2), out=bk.zeros((1, 8, 7, 2), "float32")),
        lambda: bk.upsample_bilinear_grad(x, (2, 1), dx=bk.zeros((1, 3, 4, 2), "float32")),
        lambda: bk.masked_mean(x[0], bk.zeros((4, 3), "float32"), out=bk.zeros((4, 2), "float32")),
        lambda: bk.masked_max(x[0], bk.zeros((4, 4), "float32"), out=bk.zeros((3, 2), "float32")),
        lambda: bk.rms_norm(rows, bk.zeros(3, "float32"), eps=0.1, out=rows, rstd=bk.zeros(16, "float32")),
    ):
        with pytest.raises((ValueError, IndexError)):
            call()
    assert not bk.counts.kernels


# ---- a whole network --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("precision", "tolerance", "pool"),
    [
        ("float32", 1e-4, nf.MaxPool2D),
        ("tf32", 2e-2, nf.MaxPool2D),
        ("bf16", 2e-1, nf.AvgPool2D),  # of values rounded to be equal another one has the gradient
    ],
)
def test_a_network_trains_as_on_numpy(
    monkeypatch: pytest.MonkeyPatch, precision: str, tolerance: float, pool: type[nf.Layer]
) -> None:
    """And its captured step neither waits nor allocates."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 6, 6, 3)).astype("float32"), rng.integers(0, 3, 16)
    bk, run, seen = emulated_backend(), Engine.run, []

    def counted(self: Engine, rows: int, steps: int = 1) -> None:
        bk.counts.reset()
        run(self, rows, steps)
        seen.append((bk.counts.launches > 20, bk.counts.syncs, bk.counts.uploads, bk.counts.allocations))

    predicted = []
    for device in ("numpy", bk):
        layers = [nf.Conv2D(8, 3, "tanh", padding="same"), pool(2), nf.DepthwiseConv2D(2, activation="gelu")]
        layers += [nf.Conv2D(6, 1), nf.GroupNorm(2), nf.SpatialDropout(0.2), nf.Flatten(), nf.Dense(3)]
        with monkeypatch.context() as patch:
            if device is bk:
                patch.setattr(Engine, "run", counted)
            model, reduced = nf.Sequential(layers), {} if device == "numpy" else {"precision": precision}
            options = {"loss": "cross_entropy", "optimizer": nf.SGD(0.05), "batch_size": 8, "epochs": 2, "verbose": 0}
            model.fit(x, y, **options, device=device, seed=1, **reduced)
        predicted.append(model.predict(x))
    np.testing.assert_allclose(np.asarray(predicted[1], float), predicted[0], rtol=tolerance, atol=tolerance)
    assert seen[-1] == (True, 0, 0, 0)
