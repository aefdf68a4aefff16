"""Pooling of the steps of sequences that are there, on Numba kernels against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.test_parity_cpu import GRADIENT, NUMBA, NUMPY, both, close, dtypes

SEQUENCES = [(1, 1, 1), (4, 13, 8), (3, 7, 37), (2, 130, 3), (33, 5, 20)]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def some_steps(rng, n, t, dtype):
    """A mask: nothing of the first sequence, of the last one its end alone."""
    mask = (rng.random((n, t)) < 0.6).astype(dtype)
    mask[0], mask[-1] = 0, 0
    mask[-1, -1] = 1
    return mask


@dtypes
@pytest.mark.parametrize("shape", SEQUENCES, ids=str)
def test_masked_pools(rng, dtype, shape):
    """Many steps are equal, and what is padding is no number."""
    n, t, c = shape
    mask = some_steps(rng, n, t, dtype)
    x, dy = rng.integers(-2, 3, shape).astype(dtype), rng.standard_normal((n, c)).astype(dtype)
    x[mask == 0] = np.nan

    def pools(bk, y, dx, mean, dmean):
        bk.masked_max(x, mask, out=y)
        bk.masked_max_grad(dy, x, y, mask, dx=dx)
        bk.masked_mean(x, mask, out=mean)
        bk.masked_mean_grad(dy, mask, dx=dmean)

    want, got = both(pools, *(np.full(s, np.nan, dtype) for s in ((n, c), shape) * 2))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    close(got[2], want[2], dtype)
    close(got[3], want[3], dtype, GRADIENT)
    if n > 1:
        assert not any(array[0].any() for array in got)


@dtypes
def test_masked_pools_of_what_is_not_finite(rng, dtype):
    x, mask = rng.standard_normal((6, 9, 21)).astype(dtype), some_steps(rng, 6, 9, dtype)
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(x.shape) < 0.15] = value
    x[1, :, 0], x[2, :, 1] = -np.inf, np.nan
    mask[1:3, 4] = 1
    dy = rng.standard_normal((6, 21)).astype(dtype)
    (want,), (got,) = both(lambda bk, y: bk.masked_max(x, mask, out=y), np.empty_like(dy))
    np.testing.assert_array_equal(got, want)
    assert got[1, 0] == -np.inf
    assert np.isnan(got[2, 1])
    (want_dx,), (got_dx,) = both(lambda bk, dx: bk.masked_max_grad(dy, x, want, mask, dx=dx), np.empty_like(x))
    np.testing.assert_array_equal(got_dx, want_dx)
    np.testing.assert_array_equal(np.count_nonzero(got_dx, axis=1)[1:], 1)  # each goes to one step
    with np.errstate(invalid="ignore"):
        (want,), (got,) = both(lambda bk, y: bk.masked_mean(x, mask, out=y), np.empty_like(dy))
    close(got, want, dtype)


def test_masked_pools_in_a_recorded_step(rng, monkeypatch):
    """All of it is native, and one chain with what goes image by image before."""
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: 2)
    n, t, c = 9, 6, 20
    x, mask = rng.standard_normal((n, 1, t, c)).astype("f4"), some_steps(rng, n, t + 2, np.float32)
    outs = [(n, 1, t + 2, c), (n, c), (n, c), (n, t + 2, c), (n, 1, t, c), (n, t + 2, c)]

    def step(bk, padded, y, mean, dsteps, dx, dmean):
        steps = padded.reshape(n, t + 2, c)
        bk.pad(x, 0, 1, out=padded)
        bk.masked_max(steps, mask, out=y)
        bk.masked_mean(steps, mask, out=mean)
        bk.masked_mean_grad(y, mask, dx=dmean)
        bk.masked_max_grad(mean, steps, y, mask, dx=dsteps)
        bk.crop(dsteps.reshape(padded.shape), 0, 1, out=dx)

    expected = [np.empty(shape, "f4") for shape in outs]
    step(NUMPY, *expected)
    for kept in (0, 4):  # the first arrays are nobody's business: a tile of them is enough
        found = [np.full(shape, np.nan, "f4") for shape in outs]
        replay = NUMBA.capture(lambda bk, found=found: step(bk, *found), found[:kept])
        assert replay.native
        replay.run(2)
        for w, g in zip(expected[kept:], found[kept:], strict=True):
            close(g, w, np.float32, GRADIENT)
        [program] = replay.parts
        assert len(program.calls) == 1


def test_what_kernels_do_not_take_goes_to_numpy(rng):
    """Strided sequences and masks, a mask of another type, no sequence at all."""
    x, dy = rng.standard_normal((4, 6, 2, 8)), rng.standard_normal((4, 8))
    mask = np.ones((4, 12))
    for steps, kept in (
        (x[:, :, 0], np.ascontiguousarray(mask[:, :6])),
        (x[:, :, 0].copy(), mask[:, ::2]),
        (x[:, :, 0].copy(), mask[:, :6].astype("f4")),
        (x[:0, :, 0].copy(), mask[:0, :6].copy()),
    ):
        given = dy[: len(steps)].copy()

        def pools(bk, y, mean, dx, dmean, steps=steps, kept=kept, given=given):
            bk.masked_max(steps, kept, out=y)
            bk.masked_mean(steps, kept, out=mean)
            bk.masked_max_grad(given, steps, y, kept, dx=dx)
            bk.masked_mean_grad(given, kept, dx=dmean)

        outs = [np.full(shape, np.nan) for shape in (given.shape, given.shape, steps.shape, steps.shape)]
        want, got = both(pools, *outs)
        for w, g in zip(want, got, strict=True):
            close(g, w, np.float64)
