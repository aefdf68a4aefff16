"""Convolution on the emulated device, against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnfast import activations
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels.cuda import expressions, loader
from nnfast.window import Window
from tests.backends.test_parity_cuda import check, dtype_of, nan, place, tolerance, widened
from tests.cuda.emulator import EmulatedBackend, emulated_backend
from tests.cuda.fake_cupy import tf32
from tests.cuda.host_shim import HostShim

DTYPES = ["float32", "float64", "float16", "bfloat16"]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

# window, images, result channels, groups
CASES = {
    "odd": (Window((3, 2), (1, 1), ((1, 0), (0, 1))), (2, 5, 4, 3), 5, 1),
    "packed": (Window((3, 3), (1, 1), ((1, 1), (1, 1))), (2, 6, 7, 16), 40, 1),
    "stride": (Window((3, 3), (2, 3), ((1, 1), (2, 1))), (2, 7, 8, 8), 8, 1),
    "dilation": (Window((2, 3), (3, 2), ((2, 1), (0, 3)), (2, 4)), (1, 9, 11, 4), 6, 1),
    "gaps": (Window((1, 2), (3, 2), ((0, 0), (0, 0)), (1, 2)), (2, 7, 9, 2), 3, 1),
    "groups": (Window((2, 2), (1, 2), ((1, 1), (0, 0))), (2, 5, 6, 16), 24, 2),
    "sequence": (Window((1, 5), (1, 2), ((0, 0), (4, 0))), (3, 1, 13, 6), 4, 2),
    "depthwise": (Window((3, 3), (2, 1), ((1, 1), (1, 1))), (2, 6, 5, 16), 16, 16),
    "multiplier": (Window((2, 3), (1, 2), ((0, 1), (1, 1)), (2, 1)), (2, 6, 5, 3), 6, 3),
    "pointwise": (Window((1, 1)), (2, 3, 5, 8), 16, 1),
    "wide": (Window((1, 1), (1, 2)), (1, 2, 6, 8), 130, 1),
    "pixels": (Window((2, 1)), (2, 21, 30, 2), 3, 1),
}
each_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def bk() -> EmulatedBackend:
    return emulated_backend()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def shapes(case: str) -> tuple[Window, tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Window, and shapes of images, weights and result."""
    window, image, m, groups = CASES[case]
    result = (image[0], *window.out_size(*image[1:3]), m)
    return window, image, (*window.size, image[3] // groups, m), result, groups


def near(found: Any, wanted: np.ndarray, terms: np.ndarray, dtype: str, backward: bool) -> None:
    """Within the policy's bound: by the sum of the absolute values of the products that were added up."""
    found = widened(np.asarray(found))
    if dtype in ("float32", "float64"):
        np.testing.assert_array_less(np.abs(found - wanted), 8 * np.finfo(dtype).eps * terms + 1e-300)
    else:
        rtol, atol = tolerance(dtype, "linear", found, backward)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol + rtol * float(np.abs(wanted).mean()))


def run(
    bk: Any,
    method: str,
    given: dict[str, np.ndarray],
    out: tuple[str, tuple[int, ...], Any],
    offset: int,
    **options: Any,
) -> np.ndarray:
    """The output of one call on `given`; `out` is its name, shape and dtype."""
    arrays = {name: place(bk, value, offset) for name, value in given.items()}
    arrays[out[0]] = place(bk, np.full(out[1], np.nan, out[2]), offset)
    getattr(bk, method)(**arrays, **options)
    return np.array(bk.to_numpy(arrays[out[0]]))


@each_dtype
@each_case
def test_convolution_and_gradients(bk: EmulatedBackend, rng: Any, dtype: str, case: str) -> None:
    window, image, weights, result, groups = shapes(case)
    narrow, full = dtype_of(dtype, "conv", "x"), dtype_of(dtype, "conv", "dW")
    x, W, dy = (rng.standard_normal(shape).astype(narrow) for shape in (image, weights, result))
    for method, given, out in (
        ("conv", {"x": x, "W": W}, ("out", result, narrow)),
        ("conv_input_grad", {"dy": dy, "W": W}, ("dx", image, narrow)),
        ("conv_weight_grad", {"dy": dy, "x": x}, ("dW", weights, full)),
    ):
        exact = {name: value.astype(float) for name, value in given.items()}
        options = {"window": window, "groups": groups}
        wanted = run(NumpyBackend(), method, exact, (*out[:2], float), 0, **options)
        terms = run(NumpyBackend(), method, {k: np.abs(v) for k, v in exact.items()}, (*out[:2], float), 0, **options)
        for offset in (0, 1):
            near(run(bk, method, given, out, offset, **options), wanted, terms, dtype, method != "conv")


# ---- with bias and activation ---------------------------------------------------------------------
@each_dtype
@pytest.mark.parametrize(
    ("case", "act", "bias"),
    [
        ("odd", "gelu", True),
        ("packed", "gelu", True),
        ("groups", "identity", True),
        ("depthwise", "gelu", True),
        ("multiplier", "softmax", True),
        ("odd", "softmax", True),
        ("gaps", "tanh", False),
        ("pointwise", "gelu", True),
    ],
)
def test_layer(bk: EmulatedBackend, rng: Any, dtype: str, case: str, act: str, bias: bool) -> None:
    window, image, weights, result, groups = shapes(case)
    x, W, dy = rng.standard_normal(image), rng.standard_normal(weights) / 4, rng.standard_normal(result)
    b = rng.standard_normal(result[3]) if bias else None
    options = {"act": act, "window": window, "groups": groups}
    forward = {"x": x, "W": W, "b": b, "out": nan(*result)}
    y = check(bk, "conv_act", dtype, **forward, saved=None, options=options)["out"]
    z = check(bk, "conv_act", dtype, ("out", "saved"), **forward, saved=nan(*result), options=options)["saved"]
    saved = {"identity": None, "gelu": z}.get(act, y)
    grads = {"dW": nan(*weights), "db": nan(result[3]) if bias else None}
    given = {"dy": dy, "x": x, "W": W, "saved": None if saved is None else saved.astype(float), **grads}
    outs = ("dx", "dW", "db") if bias else ("dx", "dW")
    check(bk, "conv_act_grad", dtype, outs, **given, dx=nan(*image), options=options, backward=True)
    check(bk, "conv_act_grad", dtype, outs[1:], **given, dx=None, options=options, backward=True)


@pytest.mark.parametrize(("dtype", "case"), [("float32", "gaps"), ("float64", "gaps"), ("float32", "depthwise")])
@pytest.mark.parametrize("act", [*loader.ACTIVATIONS, "leaky_relu(0.2)", "elu(0.5)"])
def test_every_activation(bk: EmulatedBackend, rng: Any, dtype: str, case: str, act: str) -> None:
    """They are chosen by number: each must be the one of that name."""
    window, image, weights, result, groups = shapes(case)
    x, W, b = (rng.standard_normal(s) for s in (image, weights, result[3]))
    options = {"act": act, "window": window, "groups": groups}
    check(bk, "conv_act", dtype, x=x, W=W, b=b, out=nan(*result), saved=None, options=options)
    assert activations.get(act).name in loader.ACTIVATIONS
    assert not any(name.startswith(("bias_act", "act")) for name in bk.counts.kernels)


def every_call(bk: Any, dtype: str, case: str) -> tuple[Any, dict[str, Any]]:
    """A function that makes one layer's forward and backward calls, and what it writes."""
    window, image, weights, result, groups = shapes(case)
    narrow, full = dtype_of(dtype, "conv", "x"), dtype_of(dtype, "conv", "dW")
    rng = np.random.default_rng(1)
    x, W, b, start = (bk.asarray(rng.standard_normal(s).astype(narrow)) for s in (image, weights, result[3], result))
    dy, y, dx = (bk.zeros(s, narrow) for s in (result, result, image))
    dW, db = bk.zeros(weights, full), bk.zeros(result[3], full)
    options = {"window": window, "groups": groups}

    def call() -> None:
        bk.conv_act(x, W, b, "tanh", **options, out=y)
        bk.copy(start, out=dy)
        bk.conv_act_grad(dy, x, W, y, "tanh", **options, dx=dx, dW=dW, db=db)

    return call, {"y": y, "dx": dx, "dW": dW, "db": db}


# ---- a step that can be captured ------------------------------------------------------------------
@each_case
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steady_state_neither_waits_nor_copies_nor_allocates(bk: EmulatedBackend, dtype: str, case: str) -> None:
    call, _ = every_call(bk, dtype, case)
    call()
    bk.counts.reset()
    call()
    assert bk.counts.launches >= 4
    assert (bk.counts.syncs, bk.counts.uploads, bk.counts.allocations) == (0, 0, 0)


@pytest.mark.parametrize("order", ["backward", "strided"])
@pytest.mark.parametrize(("dtype", "case"), [("float32", "pixels"), ("float16", "stride"), ("float32", "depthwise")])
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(
    shim: HostShim, order: str, dtype: str, case: str
) -> None:
    found = []
    for how in ("forward", order):
        try:
            shim.order(how)
            bk = emulated_backend()
            call, outs = every_call(bk, dtype, case)
            call()
            found.append({name: widened(np.array(bk.to_numpy(x))) for name, x in outs.items()})
        finally:
            shim.order("forward")
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("case", ["pixels", "packed", "wide"])
def test_other_launch_shapes(multiprocessors: int, case: str) -> None:
    """Other tiles and other chunks of pixels give the same."""
    results = []
    for bk in (emulated_backend(multiprocessors=multiprocessors), NumpyBackend()):
        call, outs = every_call(bk, "float64", case)
        call()
        results.append({name: np.array(bk.to_numpy(x)) for name, x in outs.items()})
    for name, value in results[1].items():
        np.testing.assert_allclose(results[0][name], value, rtol=1e-10, atol=1e-11, err_msg=name)


def test_every_instantiation_runs() -> None:
    launched: set[str] = set()
    for dtype in DTYPES:
        bk = emulated_backend()
        for case in ("odd", "packed", "wide", "depthwise"):
            every_call(bk, dtype, case)[0]()
            with bk.rounding():
                every_call(bk, dtype, case)[0]()
        launched.update(bk.counts.kernels)
    assert {name for file in ("conv", "depthwise") for name in expressions(file)} <= launched


@pytest.mark.parametrize("case", ["odd", "packed", "stride", "groups", "wide", "pixels"])
def test_rounding(bk: EmulatedBackend, rng: Any, case: str) -> None:
    """What is representable in tf32 is multiplied without an error; the rest is rounded, where that was asked for."""
    window, image, weights, result, groups = shapes(case)
    x, W, dy = (rng.standard_normal(shape).astype("float32") for shape in (image, weights, result))
    options = {"window": window, "groups": groups}
    for method, given, out in (
        ("conv", {"x": x, "W": W}, ("out", result, "float32")),
        ("conv_input_grad", {"dy": dy, "W": W}, ("dx", image, "float32")),
        ("conv_weight_grad", {"dy": dy, "x": x}, ("dW", weights, "float32")),
    ):
        rounded = {name: tf32(value).reshape(value.shape) for name, value in given.items()}
        exact = {name: value.astype(float) for name, value in rounded.items()}
        wanted = run(NumpyBackend(), method, exact, (*out[:2], float), 0, **options)
        terms = run(NumpyBackend(), method, {k: np.abs(v) for k, v in exact.items()}, (*out[:2], float), 0, **options)
        for offset in (0, 1):
            with bk.rounding():
                near(run(bk, method, rounded, out, offset, **options), wanted, terms, "float32", False)
                found = run(bk, method, given, out, offset, **options)
            assert (np.abs(found - wanted) <= 5e-3 * terms + 1e-6).all()
            assert not np.array_equal(found, run(bk, method, given, out, offset, **options))


# ---- which code runs --------------------------------------------------------------------------------
def test_a_window_of_one_pixel_is_a_product(bk: EmulatedBackend) -> None:
    call, _ = every_call(bk, "float32", "pointwise")
    call()
    bk.counts.reset()
    call()
    assert {name.partition("<")[0] for name in bk.counts.kernels} == {"cublasLtMatmul", "bias_act", "act_grad_bias"}


def test_bias_and_activation_are_in_the_kernel(bk: EmulatedBackend) -> None:
    call, _ = every_call(bk, "float32", "packed")
    call()
    names = [name.partition("<")[0] for name in bk.counts.kernels]
    sums = "column_finish"  # of several blocks
    assert [name for name in names if name != sums] == ["conv", "act_grad_bias", "conv_weights", "turn_weights", "conv"]


def test_what_the_kernels_do_not_support_is_computed_all_the_same(bk: EmulatedBackend, rng: Any) -> None:
    window = Window((2, 2))
    x, W = rng.standard_normal((1, 4, 5, 3)).astype("float32"), rng.standard_normal((2, 2, 3, 2))
    expected, out = np.zeros((1, 3, 4, 2)), bk.zeros((1, 3, 4, 2), "float64")
    NumpyBackend().conv(x.astype(float), W, window, out=expected)
    for _ in range(2):
        bk.conv(bk.asarray(x), bk.asarray(W), window, out=out)  # of two dtypes
        np.testing.assert_allclose(bk.to_numpy(out), expected, rtol=1e-6, atol=1e-6)
        bk.fill(out, 0.0)
        bk.conv_act(bk.asarray(x), bk.asarray(W), None, "identity", window, out=out)
        np.testing.assert_allclose(bk.to_numpy(out), expected, rtol=1e-6, atol=1e-6)
    assert not bk.counts.kernels


def test_no_windows_no_gradient(bk: EmulatedBackend) -> None:
    """Of no images the weights' gradient is 0."""
    dW = bk.zeros((3, 3, 2, 4), "float32")
    bk.fill(dW, 7.0)
    bk.conv_weight_grad(bk.zeros((0, 2, 2, 4), "float32"), bk.zeros((0, 4, 4, 2), "float32"), Window((3, 3)), dW=dW)
    assert not bk.to_numpy(dW).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_windows(bk: EmulatedBackend, value: float) -> None:
    """Zeros that fill up a tile must not meet it."""
    x, W, out = np.ones((1, 4, 4, 4), "float32"), np.ones((3, 3, 4, 8), "float32"), bk.zeros((1, 2, 2, 8), "float32")
    x[0, 0, 0, 0] = value
    bk.conv(bk.asarray(x), bk.asarray(W), Window((3, 3)), out=out)
    finite = np.isfinite(bk.to_numpy(out))
    assert not finite[0, 0, 0].any()
    assert finite.sum() == 24
