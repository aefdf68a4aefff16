"""Copies of arrays and of weights in 16 bits on a CUDA backend: by kernels of their own, and by the optimizers'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnfast.backends.base import Backend
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.backends.numpy_backend import NumpyBackend
from tests.backends.halves import each_half
from tests.backends.test_parity_cuda import OPTIMIZERS, check, new_state, optimizer_arrays, place, widened
from tests.cuda.emulator import EmulatedBackend, emulated_backend

ml_dtypes = pytest.importorskip("ml_dtypes")

# What overflows float16 is infinite, and NumPy says so
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@each_half
@pytest.mark.parametrize("offset", [0, 1])
def test_copies_between_dtypes(bk: EmulatedBackend, rng: Any, half: np.dtype, offset: int) -> None:
    x = (100 * rng.standard_normal((13, 7))).astype(np.float32)
    x.flat[:3] = np.nan, np.inf, 1e9
    wide, low, back = place(bk, x, offset), place(bk, np.zeros(x.shape, half), offset), bk.zeros(x.shape, "float32")
    bk.counts.reset()
    bk.copy(wide, out=low)
    bk.copy(low, out=back)
    np.testing.assert_array_equal(widened(bk.to_numpy(low)), x.astype(half).astype(np.float32))
    np.testing.assert_array_equal(bk.to_numpy(back), x.astype(half).astype(np.float32))
    name = {"e": "f16", "E": "bf16"}[half.char]
    assert bk.counts.kernels == ([f"cast<float, {name}>", f"cast<{name}, float>"] if bk.fused else [])


@each_half
def test_copies_that_have_no_kernel(bk: EmulatedBackend, rng: Any, half: np.dtype) -> None:
    x = rng.standard_normal((6, 4)).astype(np.float32)
    wide, low = bk.asarray(x), bk.zeros((6, 2), half)
    bk.copy(wide[:, ::2], out=low)
    np.testing.assert_array_equal(widened(bk.to_numpy(low)), x[:, ::2].astype(half).astype(np.float32))
    bk.copy(x[:, :2], out=low)  # from the host
    np.testing.assert_array_equal(widened(bk.to_numpy(low)), x[:, :2].astype(half).astype(np.float32))
    bk.copy(low, out=(same := bk.zeros((6, 2), half)))
    np.testing.assert_array_equal(widened(bk.to_numpy(same)), widened(bk.to_numpy(low)))
    bk.copy(low[0], out=low)  # as many rows
    np.testing.assert_array_equal(widened(bk.to_numpy(low))[5], widened(bk.to_numpy(same))[0])
    assert not bk.counts.kernels


def stepped(
    bk: Any, name: str, half: np.dtype, size: int, rng: Any, offset: int = 0, low_offset: int = 0, **slots: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parameter before and after a step, and its copy."""
    method, _, given, options = OPTIMIZERS[name]
    host = optimizer_arrays(name, size, rng)
    if slots.pop("infinite", 0):
        assert host["grad"] is not None
        host["grad"][size // 2] = np.inf
    arrays = {k: v if v is None else place(bk, v.astype(np.float32), offset) for k, v in host.items()}
    before = bk.to_numpy(arrays["param"]).copy()
    low = place(bk, before.astype(half), low_offset)
    state = bk.asarray(new_state(STEP=3, LR=0.1, **given, **slots))
    with bk.copying(arrays["param"], low):
        getattr(bk, method)(**arrays, state=state, **options)
    return before, bk.to_numpy(arrays["param"]), bk.to_numpy(low)


@each_half
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("infinite", [0, 1])
def test_steps_leave_a_rounded_copy(bk: EmulatedBackend, rng: Any, half: np.dtype, name: str, infinite: int) -> None:
    for size in (1, 3, 4, 6, 2061):
        for offset, low_offset in ((0, 0), (1, 0), (0, 1), (0, 2)):
            bk.counts.reset()
            before, after, low = stepped(bk, name, half, size, rng, offset, low_offset, infinite=infinite)
            assert (before != after).any() or (infinite and size == 1)
            assert not infinite or after[size // 2] == before[size // 2]
            np.testing.assert_array_equal(widened(low), after.astype(half).astype(np.float32))
            assert len(bk.counts.kernels) == bk.fused  # the step alone


@each_half
def test_skipped_steps_leave_all_as_it_was(bk: EmulatedBackend, rng: Any, half: np.dtype) -> None:
    for slots in ({"SKIP_STEP": 1.0}, {"BAD_STEP": 2.0}):
        before, after, low = stepped(bk, "adam", half, 9, rng, **slots)
        np.testing.assert_array_equal(before, after)
        np.testing.assert_array_equal(widened(low), before.astype(half).astype(np.float32))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 2061])
def test_a_skipped_step_is_one_that_did_not_happen(bk: EmulatedBackend, rng: Any, name: str, size: int) -> None:
    method, moments, slots, options = OPTIMIZERS[name]
    arrays = optimizer_arrays(name, size, rng)
    given = {k: v if v is None else v.astype(np.float32) for k, v in arrays.items()}
    state = new_state(STEP=3, LR=0.1, SKIP_STEP=1, **slots)
    got = check(bk, method, "float32", ("param", "state", *moments), **given, state=state, options=options)
    for each in ("param", *moments):
        np.testing.assert_array_equal(got[each], given[each])
    np.testing.assert_array_equal(got["state"], state)


def test_averages_of_a_skipped_step(bk: EmulatedBackend, rng: Any) -> None:
    average = rng.standard_normal(77)
    given = {"param": rng.standard_normal(77), "average": average}
    got = check(bk, "ema_step", "float32", ("average",), **given, state=new_state(EMA_DECAY=0.9, SKIP_STEP=1))
    np.testing.assert_array_equal(got["average"], average.astype(np.float32))


class Steps:
    """A parameter, its copy, and ways to change it."""

    def __init__(self, bk: Any, half: np.dtype) -> None:
        self.bk, self.one, self.state = bk, bk.asarray(np.ones(10, np.float32)), bk.asarray(new_state(STEP=1, LR=0.125))
        self.param, self.low = bk.zeros(10, "float32"), bk.zeros(10, half)

    def sgd(self, bk: Any, param: Any = None, grad: Any = None) -> None:
        param = self.param if param is None else param
        bk.sgd_step(param, self.one[: param.size] if grad is None else grad, None, self.state, nesterov=False)

    def check(self, expected: Any) -> None:
        np.testing.assert_array_equal(widened(self.bk.to_numpy(self.low)), np.broadcast_to(expected, 10))


@each_half
def test_what_changes_the_parameter_after_its_step_is_copied_too(bk: EmulatedBackend, half: np.dtype) -> None:
    steps = Steps(bk, half)
    with bk.copying(steps.param, steps.low):
        steps.sgd(bk)
        bk.add(steps.param, steps.one, out=steps.param)
    steps.check(0.875)

    def by_hand(on: Backend) -> None:
        steps.sgd(on)
        steps.param[...] = 3.0

    with bk.copying(steps.param, steps.low):
        bk.python(by_hand)
    steps.check(3.0)
    with bk.copying(steps.param, steps.low):
        steps.sgd(bk, steps.param[:4])  # a part of it
    steps.check([2.875] * 4 + [3.0] * 6)
    with bk.copying(steps.param, steps.low):
        pass
    steps.check([2.875] * 4 + [3.0] * 6)
    other = bk.zeros(10, "float32")
    with bk.copying(steps.param, steps.low):
        steps.sgd(bk, other)
    steps.check([2.875] * 4 + [3.0] * 6)
    with bk.copying(steps.param, steps.low):
        steps.sgd(bk, steps.param.astype("float64"), steps.one.astype("float64"))
    steps.check([2.875] * 4 + [3.0] * 6)


@each_half
def test_an_average_after_the_step_costs_no_other_copy(half: np.dtype) -> None:
    bk = emulated_backend()
    steps = Steps(bk, half)
    average = bk.zeros(10, "float32")
    bk.counts.reset()
    with bk.copying(steps.param, steps.low):
        steps.sgd(bk)
        bk.ema_step(steps.param, average, steps.state)
    steps.check(-0.125)
    assert bk.counts.kernels == ["optimizer_step<Sgd<float>>", "ema_step<float>"]


@each_half
def test_copies_of_copies(bk: EmulatedBackend, half: np.dtype) -> None:
    """Blocks nest, end with errors, and copy for what they were asked for."""
    steps, inner = Steps(bk, half), Steps(bk, half)
    with bk.copying(steps.param, steps.low):
        with bk.copying(inner.param, inner.low):
            inner.sgd(bk)
        steps.sgd(bk)
        with bk.copying(inner.param, inner.low):
            inner.sgd(bk)
    steps.check(-0.125)
    inner.check(-0.25)
    with bk.copying(steps.param, steps.low):
        bk.fill(steps.param, 2.0)
        with bk.copying(inner.param, inner.low):
            inner.sgd(bk)
    steps.check(2.0)
    bk.fill(steps.param, -0.125)
    with pytest.raises(KeyError), bk.copying(steps.param, steps.low):
        raise KeyError
    steps.sgd(bk)
    steps.check(2.0)


@each_half
def test_a_step_on_more_than_is_copied(bk: EmulatedBackend, half: np.dtype) -> None:
    steps = Steps(bk, half)
    with bk.copying(steps.param[:4], steps.low[:4]):
        steps.sgd(bk)
    steps.check([-0.125] * 4 + [0.0] * 6)


@each_half
def test_a_parameter_of_float64_is_rounded_once(bk: EmulatedBackend, half: np.dtype) -> None:
    param, low = bk.zeros(3, "float64"), bk.zeros(3, half)
    # A little more than halfway between two neighbours: float32 would make it the tie, and that goes to the even one
    step = 1 + float(ml_dtypes.finfo(half).eps) / 2 + 2.0**-40
    with bk.copying(param, low):
        state = bk.asarray(new_state(STEP=1, LR=1))
        bk.sgd_step(param, bk.asarray(np.full(3, -step)), None, state, nesterov=False)
    np.testing.assert_array_equal(bk.to_numpy(low).astype(float), np.full(3, step).astype(half).astype(float))


def test_copies_on_a_cpu() -> None:
    for cpu in (NumpyBackend(), NumbaBackend()):
        steps = Steps(cpu, np.dtype(np.float16))
        with cpu.copying(steps.param, steps.low):
            steps.sgd(cpu)
        steps.check(-0.125)
