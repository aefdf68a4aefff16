"""Attention, rotary positions, root-mean-square normalisation and masks on Numba kernels against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnfast.backends.numba_backend import NumbaBackend
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels.cpu import attention as kernels
from nnfast.kernels.cpu import product, threads
from nnfast.kernels.cpu.attention_grad import attention_grad_call
from nnfast.kernels.cpu.driver import Program
from tests.backends.test_parity_cpu import FORWARD, GRADIENT, both, close

NUMPY, NUMBA = NumpyBackend(), NumbaBackend()

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture
def rng():
    return np.random.default_rng(11)


class Case:
    """Inputs of attention; queries, keys and values are columns of one array where they can be, and all is NaN that is
    to be written."""

    def __init__(self, rng, dtype, n, t, s, heads, d, causal=False, mask=None, size=1.0, packed=True):
        self.width = heads * d
        self.options = {"heads": heads, "causal": causal, "scale": 1.0 / math.sqrt(d), "mask": mask}
        self.packed = packed and t == s
        if self.packed:
            self.arrays = [size * rng.standard_normal((n, t, 3 * self.width))]
        else:
            self.arrays = [size * rng.standard_normal((n, k, self.width)) for k in (t, s, s)]
        self.arrays = [x.astype(dtype) for x in self.arrays]
        self.dy = rng.standard_normal((n, t, self.width)).astype(dtype)
        self.out, self.lse = np.full((n, t, self.width), np.nan, dtype), np.full((n, heads, t), np.nan, dtype)

    def parts(self, arrays):
        if not self.packed:
            return arrays
        return [arrays[0][..., i * self.width : (i + 1) * self.width] for i in range(3)]

    def run(self, bk, record=False):
        """Output, log of the sums, and gradients; through a recording if it is asked for."""
        out, lse = self.out.copy(), self.lse.copy()
        gradients = [np.full_like(x, np.nan) for x in self.arrays]
        q, k, v = self.parts(self.arrays)
        dq, dk, dv = self.parts(gradients)

        def step(bk):
            bk.attention(q, k, v, **self.options, out=out, lse=lse)
            bk.attention_grad(self.dy, q, k, v, **self.options, out=out, lse=lse, dq=dq, dk=dk, dv=dv)

        if record:
            replay = bk.capture(step)
            assert replay.native
            replay.run(2)
        else:
            step(bk)
        return out, lse, *self.parts(gradients)


def compare(case, dtype, forward=FORWARD, gradient=GRADIENT, record=False):
    want, got = case.run(NUMPY), case.run(NUMBA, record)
    for x, y in zip(got[:2], want[:2], strict=True):
        close(x, y, dtype, forward)
    for x, y in zip(got[2:], want[2:], strict=True):
        close(x, y, dtype, gradient)
    return got


def mask_of(rng, n, s, dtype):
    """Some keys; of the first row none, of the last one the first key alone."""
    mask = (rng.random((n, s)) < 0.6).astype(dtype)
    mask[0], mask[-1] = 0, 0
    mask[-1, 0] = 1
    return mask


# n, t, s, heads, features of a head; several tiles of queries, of keys, of both, ragged in all ways
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 5, 5, 2, 4),
    (3, 17, 13, 3, 5),
    (2, 13, 17, 1, 40),
    (1, 130, 130, 2, 8),
    (1, 70, 300, 1, 33),
    (2, 300, 70, 1, 7),
    (1, 1, 517, 2, 16),
    (1, 65, 257, 1, 64),
    (1, 600, 600, 1, 3),
]


@dtypes
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_attention(rng, dtype, size, causal, masked):
    n, _, s, *_ = size
    mask = mask_of(rng, n, s, dtype) if masked else None
    got = compare(Case(rng, dtype, *size, causal, mask), dtype)
    if masked and n > 1:
        assert not got[0][0].any()
        assert np.all(got[1][0] == -np.inf)
        assert not any(gradient[0].any() for gradient in got[2:])


@dtypes
def test_recorded_and_replayed(rng, dtype):
    compare(Case(rng, dtype, 3, 33, 33, 2, 8, True, mask_of(rng, 3, 33, dtype)), dtype, record=True)
    compare(Case(rng, dtype, 1, 90, 40, 1, 8), dtype, record=True)


@dtypes
def test_steps_that_see_no_key(rng, dtype):
    """With more queries than keys, the first ones come before all keys."""
    case = Case(rng, dtype, 2, 9, 4, 2, 3, True)
    out, lse, dq, *_ = compare(case, dtype)
    assert not out[:, :5].any()
    assert not dq[:, :5].any()
    assert np.all(lse[:, :, :5] == -np.inf)
    assert np.isfinite(lse[:, :, 5:]).all()


@dtypes
def test_large_scores(rng, dtype):
    """Scores of 1e4 and more: no overflow; what rounding makes of them is some 1e-3 in float32."""
    case = Case(rng, dtype, 2, 40, 300, 1, 16, size=60.0)
    q, k, _ = case.parts(case.arrays)
    assert np.abs(q.astype(np.float64) @ k.swapaxes(1, 2)).max() / 4 > 1e4
    wide = {np.float32: (1e-2, 1e-2), np.float64: (1e-9, 1e-9)}
    for x in compare(case, dtype, forward=wide, gradient={k: (10 * r, 10 * r) for k, (r, _) in wide.items()}):
        assert np.isfinite(x).all()


@dtypes
def test_scores_of_both_signs_far_from_zero(dtype):
    """A running maximum that only the second tile of keys raises, and rows whose scores are all very low."""
    n, t, s, d = 1, 3, 520, 4
    q, k, v = np.ones((n, t, d), dtype), np.full((n, s, d), -2000.0, dtype), np.ones((n, s, d), dtype)
    k[0, 400:], v[0, 400:] = 50.0, 2.0
    out, lse = np.empty_like(q), np.empty((n, 1, t), dtype)
    NUMBA.attention(q, k, v, heads=1, causal=False, scale=0.5, out=out, lse=lse)
    np.testing.assert_allclose(out, 2.0, rtol=1e-5)
    np.testing.assert_allclose(lse, 100.0 + math.log(120), rtol=1e-5)
    k[:] = -2000.0
    NUMBA.attention(q, k, v, heads=1, causal=False, scale=0.5, out=out, lse=lse)
    np.testing.assert_allclose(out, (400 + 2 * 120) / 520, rtol=1e-5)
    np.testing.assert_allclose(lse, -4000.0 + math.log(520), rtol=1e-5)


@dtypes
def test_nan_comes_through(rng, dtype):
    case = Case(rng, dtype, 2, 6, 6, 1, 3, packed=False)
    case.arrays[0][0, 2] = np.nan
    with np.errstate(invalid="ignore"):
        out, _, dq, *_ = case.run(NUMBA)
    assert np.isnan(out[0, 2]).all()
    assert np.isfinite(out[0, [0, 1, 3, 4, 5]]).all()
    assert np.isfinite(out[1]).all()
    assert np.isnan(dq[0, 2]).all()


@dtypes
def test_steps_that_would_clash_in_the_cache(rng, dtype):
    """Rows 4096 bytes apart: keys and values are copied first."""
    width = 4096 // np.dtype(dtype).itemsize
    whole = [rng.standard_normal((2, 21, width)).astype(dtype) for _ in range(2)]
    q, k, v = (whole[0][..., i * 16 : i * 16 + 16] for i in range(3))
    assert not product.blocking(np.dtype(dtype)).reads_rows(width)
    dq, dk, dv = (whole[1][..., i * 16 : i * 16 + 16] for i in range(3))
    dy = rng.standard_normal((2, 21, 16)).astype(dtype)
    options = {"heads": 2, "causal": True, "scale": 0.3}
    results = []
    for bk in (NUMPY, NUMBA):
        out, lse = np.empty_like(dy), np.empty((2, 2, 21), dtype)
        bk.attention(q, k, v, **options, out=out, lse=lse)
        bk.attention_grad(dy, q, k, v, **options, out=out, lse=lse, dq=dq, dk=dk, dv=dv)
        results.append([out, lse, dq.copy(), dk.copy(), dv.copy()])
    for want, got in zip(*results, strict=True):
        close(got, want, dtype, GRADIENT)


@dtypes
@pytest.mark.parametrize("heads", [1, 3])
def test_the_number_of_threads_changes_nothing(rng, dtype, heads, monkeypatch):
    """Bit by bit: blocks of queries that tasks take are whole tiles, and each sum has one order."""
    case = Case(rng, dtype, 2, 300, 300, heads, 16, True)
    q, k, v = case.parts(case.arrays)
    options = {"heads": heads, "causal": True, "scale": 0.25, "mask": None}
    outputs, tasks = [], []
    for number in (1, 2, 5):
        out, lse, gradient = case.out.copy(), case.lse.copy(), np.empty_like(case.arrays[0])
        dq, dk, dv = case.parts([gradient])
        with monkeypatch.context() as patch:
            patch.setattr(threads, "count", lambda number=number: number)
            calls = [
                kernels.attention_call(q, k, v, out=out, lse=lse, **options),
                attention_grad_call(case.dy, q, k, v, out=out, lse=lse, dq=dq, dk=dk, dv=dv, **options),
            ]
        Program(calls).run()
        tasks.append(calls[0].tasks)
        outputs.append([out, lse, gradient])
    assert tasks[0] == 1 < tasks[1] < tasks[2]
    for other in outputs[1:]:
        for a, b in zip(outputs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_outside_training_no_sums_are_kept(rng):
    case = Case(rng, np.float32, 2, 5, 5, 2, 4)
    q, k, v = case.parts(case.arrays)
    want, got = case.out.copy(), case.out.copy()
    NUMPY.attention(q, k, v, **case.options, out=want, lse=None)
    NUMBA.attention(q, k, v, **case.options, out=got, lse=None)
    close(got, want, np.float32)


def test_what_kernels_do_not_support_goes_to_numpy(rng):
    """Columns that lie apart, other dtypes, no rows at all, composition asked for."""
    case = Case(rng, np.float64, 2, 5, 5, 2, 4)
    q, k, v = case.parts(case.arrays)
    want = case.out.copy()
    NUMPY.attention(q, k, v, **case.options, out=want, lse=None)
    apart = np.asfortranarray(q)
    for bk, first in (
        (NUMBA, apart),
        (NumbaBackend(fused=False), q),
        (NUMBA, np.ascontiguousarray(q[:, ::-1])[:, ::-1]),
    ):
        got = case.out.copy()
        bk.attention(first, k, v, **case.options, out=got, lse=None)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
    half = case.out.astype(np.float32)
    NUMBA.attention(q, k, v, **case.options, out=half, lse=None)
    np.testing.assert_allclose(half, want, rtol=1e-6, atol=1e-6)
    none = np.empty((0, 5, 8))
    NUMBA.attention(none, none, none, **case.options, out=none, lse=None)


def test_wrong_shapes(rng):
    case = Case(rng, np.float32, 2, 5, 7, 2, 4, packed=False)
    q, k, v = case.arrays
    options = {"causal": False, "scale": 1.0, "out": case.out, "lse": None}
    with pytest.raises(ValueError, match=r"attention: 8 features cannot be shared by 3 heads"):
        NUMBA.attention(q, k, v, heads=3, **options)
    with pytest.raises(ValueError, match=r"attention: v has shape \(2, 6, 8\), expected \(2, 7, 8\)"):
        NUMBA.attention(q, k, v[:, :6], heads=2, **options)
    with pytest.raises(ValueError, match=r"attention: mask has shape \(2, 5\), expected \(2, 7\)"):
        NUMBA.attention(q, k, v, heads=2, mask=np.ones((2, 5), np.float32), **options)
    with pytest.raises(ValueError, match=r"attention: lse has shape \(2, 5\), expected \(2, 2, 5\)"):
        NUMBA.attention(q, k, v, heads=2, **{**options, "lse": np.ones((2, 5), np.float32)})
    locked = case.out.copy()
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="attention: out is read-only"):
        NUMBA.attention(q, k, v, heads=2, **{**options, "out": locked})
    for bk in (NUMPY, NUMBA):
        with pytest.raises(ValueError, match="rotary"):
            bk.rotary(q[..., :6], heads=2, base=100.0, out=q[..., :6].copy())


# ---- positions ---------------------------------------------------------------------------------------------
@dtypes
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("n", "t", "heads", "d"), [(1, 1, 1, 2), (2, 7, 3, 6), (3, 40, 2, 34)])
def test_rotary(rng, dtype, n, t, heads, d, inverse):
    whole = rng.standard_normal((n, t, 3 * heads * d)).astype(dtype)
    x = whole[..., heads * d : 2 * heads * d]
    options = {"heads": heads, "base": 1000.0, "first": 3, "inverse": inverse}
    (want,), (got,) = both(lambda bk, o: bk.rotary(x, **options, out=o), np.full_like(x, np.nan))
    close(got, want, dtype)
    other = whole.copy()
    columns = other[..., heads * d : 2 * heads * d]
    NUMBA.rotary(columns, **options, out=columns)
    close(columns, want, dtype)
    np.testing.assert_array_equal(other[..., : heads * d], whole[..., : heads * d])
    np.testing.assert_array_equal(other[..., 2 * heads * d :], whole[..., 2 * heads * d :])


@dtypes
def test_rotary_turns_back_and_sees_distances_only(rng, dtype):
    q, k = rng.standard_normal((2, 1, 5, 8)).astype(dtype)
    out, back = np.empty_like(q), np.empty_like(q)
    NUMBA.rotary(q, heads=2, base=10_000.0, out=out)
    NUMBA.rotary(out, heads=2, base=10_000.0, inverse=True, out=back)
    close(back, q, dtype)
    scores = []
    for first in (0, 11):
        turned = [np.empty_like(q) for _ in range(2)]
        for x, y in zip((q, k), turned, strict=True):
            NUMBA.rotary(x, heads=2, base=10_000.0, first=first, out=y)
        scores.append(turned[0] @ turned[1].swapaxes(1, 2))
    close(scores[1], scores[0], dtype, GRADIENT)


# ---- rows --------------------------------------------------------------------------------------------------
@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (33, 129), (900, 17)], ids=str)
@pytest.mark.parametrize("into", ["other", "dy", "nothing"])
def test_rms_norm(rng, dtype, shape, into):
    n, m = shape
    x, dy, gamma = 2 + rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(m)
    x, dy, gamma = (a.astype(dtype) for a in (x, dy, gamma))
    want, got = both(
        lambda bk, out, rstd: bk.rms_norm(x, gamma, eps=1e-3, out=out, rstd=rstd), np.empty_like(x), np.empty(n, dtype)
    )
    for a, b in zip(got, want, strict=True):
        close(a, b, dtype)
    rstd = want[1]

    def gradient(bk, d, dx, dgamma):
        bk.rms_norm_grad(d, x, gamma, rstd, dx={"other": dx, "dy": d, "nothing": None}[into], dgamma=dgamma)

    want, got = both(gradient, dy, np.zeros_like(x), np.empty_like(gamma))
    for a, b, size in zip(got, want, (1.0, 1.0, math.sqrt(n)), strict=True):
        close(a / size, b / size, dtype, GRADIENT)


@dtypes
def test_step_mask(rng, dtype):
    x = (rng.random((50, 3)) < 0.4).astype(dtype)
    x[3] = np.nan
    x[4] = -0.0
    (want,), (got,) = both(lambda bk, o: bk.step_mask(x, value=0.0, out=o), np.full(50, 7, dtype))
    np.testing.assert_array_equal(got, want)
    assert set(got) == {0, 1}
    assert got[3] == 1
    assert got[4] == 0
    index = rng.integers(-2, 3, (50, 1))
    for value in (0.0, 2.0, -1.0, 0.5):
        (want,), (got,) = both(lambda bk, o, v=value: bk.step_mask(index, value=v, out=o), np.full(50, 7, dtype))
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(got, (index[:, 0] != value).astype(dtype))


@dtypes
def test_scale_rows(rng, dtype):
    x, scale = rng.standard_normal((33, 5)).astype(dtype), rng.standard_normal(33).astype(dtype)
    for call, start in (
        (lambda bk, o: bk.scale_rows(x, scale, out=o), np.empty_like(x)),
        (lambda bk, o: bk.scale_rows(o, scale, out=o), x),
    ):
        (want,), (got,) = both(call, start)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(got, x * scale[:, None])
