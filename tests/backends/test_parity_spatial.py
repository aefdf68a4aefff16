"""Pooling, sizes, group normalisation and spatial dropout on Numba kernels against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from nnfast.kernels import step_state as S
from nnfast.window import Window
from tests.backends.test_parity_cpu import GRADIENT, NUMBA, NUMPY, both, close, dtypes, new_state

# One channel, less than a vector, and whole vectors and a part of one, of both types
CHANNELS = [1, 3, 8, 37]
WINDOWS = {
    "2x2": Window((2, 2), (2, 2)),
    "2x2, rows left over": Window((2, 2), (2, 2), ((0, 1), (1, 0))),
    "apart": Window((2, 1), (3, 2)),
    "overlapping": Window((3, 3), (2, 1)),
    "overlapping, padded": Window((3, 2), (1, 1), ((1, 2), (1, 0))),
    "same as the image": Window((7, 6)),
    "dilated": Window((2, 3), (2, 2), ((1, 1), (2, 2)), (3, 2)),
    "in the padding alone": Window((2, 2), (2, 2), ((4, 0), (0, 5))),
    "one pixel": Window((1, 1), (2, 3)),
}
windows = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
channels = pytest.mark.parametrize("c", CHANNELS)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


# ---- pooling -------------------------------------------------------------------------------------------
@dtypes
@channels
@windows
def test_max_pool(rng, dtype, c, window):
    x = rng.integers(-2, 3, (3, 7, 6, c)).astype(dtype)  # many are equal
    dy = rng.standard_normal((3, *window.out_size(7, 6), c)).astype(dtype)
    (want,), (got,) = both(lambda bk, y: bk.max_pool(x, window, out=y), np.empty_like(dy))
    np.testing.assert_array_equal(got, want)
    (want_dx,), (got_dx,) = both(lambda bk, dx: bk.max_pool_grad(dy, x, want, window, dx=dx), np.full_like(x, np.nan))
    close(got_dx, want_dx, dtype, GRADIENT)


@dtypes
@pytest.mark.parametrize("name", ["2x2", "overlapping, padded"])
def test_max_pool_of_what_is_not_finite(rng, dtype, name):
    x = rng.standard_normal((4, 7, 6, 37)).astype(dtype)
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(x.shape) < 0.2] = value
    x[0, :, :, 0], x[1, :, :, 1] = -np.inf, np.nan
    window = WINDOWS[name]
    dy = rng.standard_normal((4, *window.out_size(7, 6), 37)).astype(dtype)
    (want,), (got,) = both(lambda bk, y: bk.max_pool(x, window, out=y), np.empty_like(dy))
    np.testing.assert_array_equal(got, want)
    assert np.isnan(got).any()
    (want_dx,), (got_dx,) = both(lambda bk, dx: bk.max_pool_grad(dy, x, want, window, dx=dx), np.empty_like(x))
    close(got_dx, want_dx, dtype, GRADIENT)


@dtypes
@channels
@windows
@pytest.mark.parametrize("count_padding", [False, True])
def test_avg_pool(rng, dtype, c, window, count_padding):
    x = rng.standard_normal((3, 7, 6, c)).astype(dtype)
    dy = rng.standard_normal((3, *window.out_size(7, 6), c)).astype(dtype)
    options = {"count_padding": count_padding}
    (want,), (got,) = both(lambda bk, y: bk.avg_pool(x, window, out=y, **options), np.empty_like(dy))
    close(got, want, dtype)
    (want,), (got,) = both(lambda bk, dx: bk.avg_pool_grad(dy, window, dx=dx, **options), np.full_like(x, np.nan))
    close(got, want, dtype, GRADIENT)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 70), (5, 1, 40, 3), (33, 9, 8, 16), (2, 7, 7, 99)], ids=str)
def test_pools_of_other_sizes(rng, dtype, shape):
    n, h, w, c = shape
    x = rng.standard_normal(shape).astype(dtype)
    for window in (Window((h, w)), Window((1, 2), (1, 2), ((0, 0), (0, 1)))):
        y, dy = np.empty((2, n, *window.out_size(h, w), c), dtype)
        dy[...] = rng.standard_normal(dy.shape)

        def pools(bk, y, dx, mean, dmean, window=window, dy=dy):
            bk.max_pool(x, window, out=y)
            bk.max_pool_grad(dy, x, y, window, dx=dx)
            bk.avg_pool(x, window, out=mean)
            bk.avg_pool_grad(dy, window, dx=dmean)

        want, got = both(pools, y, np.empty_like(x), np.empty_like(y), np.empty_like(x))
        for w_, g in zip(want, got, strict=True):
            close(g, w_, dtype)


# ---- sizes ---------------------------------------------------------------------------------------------
@dtypes
@channels
@pytest.mark.parametrize(("border", "size"), [((0, 0), (4, 5)), ((1, 2), (7, 8)), ((3, 0), (7, 5)), ((0, 4), (4, 11))])
def test_pad_and_crop(rng, dtype, c, border, size):
    x, large = rng.standard_normal((3, 4, 5, c)).astype(dtype), rng.standard_normal((3, *size, c)).astype(dtype)
    (want,), (got,) = both(lambda bk, out: bk.pad(x, *border, out=out), np.full_like(large, np.nan))
    np.testing.assert_array_equal(got, want)
    assert np.count_nonzero(got) == x.size
    (want,), (got,) = both(lambda bk, out: bk.crop(large, *border, out=out), np.full_like(x, np.nan))
    np.testing.assert_array_equal(got, want)


@dtypes
@channels
@pytest.mark.parametrize("factors", [(1, 1), (2, 2), (3, 1), (2, 5)])
def test_upsample(rng, dtype, c, factors):
    x = rng.standard_normal((3, 4, 2, c)).astype(dtype)
    dy = rng.standard_normal((3, 4 * factors[0], 2 * factors[1], c)).astype(dtype)
    (want,), (got,) = both(lambda bk, out: bk.upsample(x, factors, out=out), np.full_like(dy, np.nan))
    np.testing.assert_array_equal(got, want)
    (want,), (got,) = both(lambda bk, dx: bk.upsample_grad(dy, factors, dx=dx), np.full_like(x, np.nan))
    close(got, want, dtype, GRADIENT)


@dtypes
@channels
@pytest.mark.parametrize("factors", [(1, 1), (2, 2), (3, 1), (2, 5)])
@pytest.mark.parametrize("size", [(1, 1), (4, 2), (1, 5)], ids=str)
def test_upsample_bilinear(rng, dtype, c, factors, size):
    x = rng.standard_normal((3, *size, c)).astype(dtype)
    dy = rng.standard_normal((3, size[0] * factors[0], size[1] * factors[1], c)).astype(dtype)
    (want,), (got,) = both(lambda bk, out: bk.upsample_bilinear(x, factors, out=out), np.full_like(dy, np.nan))
    close(got, want, dtype)
    (want,), (got,) = both(lambda bk, dx: bk.upsample_bilinear_grad(dy, factors, dx=dx), np.full_like(x, np.nan))
    close(got, want, dtype, GRADIENT)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("factors", [(1, 3), (3, 2), (4, 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_upsample_bilinear_of_what_is_not_finite(factors, value):
    """It goes where it has a share, and nowhere else."""
    x, dy = np.zeros((1, 4, 5, 3)), np.zeros((1, 4 * factors[0], 5 * factors[1], 3))
    x[0, [0, 2], [2, 0]] = 1.0
    dy[0, [0, 2 * factors[0] + 1], [3, factors[1]]] = 1.0
    for given, result, call in (
        (x, dy, lambda bk, out, x: bk.upsample_bilinear(x, factors, out=out)),
        (dy, x, lambda bk, out, x: bk.upsample_bilinear_grad(x, factors, dx=out)),
    ):
        (share,), _ = both(lambda bk, out, x=given, call=call: call(bk, out, x), np.empty_like(result))
        bad = np.where(given == 1.0, value, 0.0)
        (want,), (got,) = both(lambda bk, out, x=bad, call=call: call(bk, out, x), np.empty_like(result))
        np.testing.assert_array_equal(want, np.where(share > 0.0, value, 0.0))
        np.testing.assert_array_equal(got, want)


# ---- normalisation and noise -----------------------------------------------------------------------------
@dtypes
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 1, 1), 1), ((3, 1, 8), 4), ((4, 13, 6), 3), ((2, 10, 37), 1), ((2, 10, 37), 37), ((33, 64, 48), 8)],
    ids=str,
)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_group_norm(rng, dtype, shape, groups, offset):
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    x += offset
    gamma, beta = rng.standard_normal((2, shape[2])).astype(dtype)
    eps = 1e-3

    def forward(bk, out, mean, rstd):
        bk.group_norm(x, gamma, beta, groups=groups, eps=eps, out=out, mean=mean, rstd=rstd)

    stats = np.empty((2, shape[0], groups), dtype)
    want, got = both(forward, np.empty_like(x), *stats)
    digits = max(1.0, offset)  # that the mean takes from what is left
    for w, g in zip(want, got, strict=True):
        close(g / digits, w / digits, dtype)
    _, mean, rstd = want

    def backward(bk, dx, dgamma, dbeta, given=dy):
        bk.group_norm_grad(given, x, gamma, mean, rstd, groups=groups, dx=dx, dgamma=dgamma, dbeta=dbeta)

    scale = np.sqrt(shape[0] * shape[1])
    for dx in (np.empty_like(x), None):
        want, got = both(backward, dx, np.empty_like(gamma), np.empty_like(beta))
        for w, g, size in zip(want, got, (1.0, scale, scale), strict=True):
            if w is not None:
                close(g / size, w / size, dtype, GRADIENT)
    in_place = dy.copy()
    backward(NUMBA, in_place, *np.empty((2, shape[2]), dtype), given=in_place)
    (want, _, _), _ = both(backward, np.empty_like(x), np.empty_like(gamma), np.empty_like(beta))
    close(in_place, want, dtype, GRADIENT)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (7, 1, 3), (5, 9, 37), (33, 6, 64)], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_spatial_dropout_is_bit_identical(rng, dtype, shape, rate):
    x = rng.standard_normal(shape).astype(dtype)
    x[0, 0, 0] = np.nan
    state = new_state(STEP=2**32 + 5, SEED_LO=2**32 - 1, SEED_HI=2**31 + 7)
    (want,), (got,) = both(lambda bk, out: bk.spatial_dropout(x, state, rate=rate, stream=9, out=out), np.empty_like(x))
    np.testing.assert_array_equal(got, want)


# ---- image by image --------------------------------------------------------------------------------------
def test_calls_go_image_by_image_together(rng, monkeypatch):
    """A recorded step of them is one chain, and gives what each call on its own gives."""
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: 2)
    n, c = 9, 20
    x = rng.standard_normal((n, 6, 8, c)).astype("f4")
    gamma, beta = rng.standard_normal((2, c)).astype("f4")
    state, two = new_state(), Window((2, 2), (2, 2))

    def buffers():
        sizes = [(8, 10), (4, 5), (4, 5), (8, 10), (8, 10), (6, 8)]
        images = [np.full((n, *size, c), np.nan, "f4") for size in sizes]
        return [*images, *np.zeros((2, n, 4), "f4"), *np.zeros((2, c), "f4")]

    def step(bk, padded, pooled, normal, back, dpadded, dx, mean, rstd, dgamma, dbeta):
        bk.pad(x, 1, 1, out=padded)
        bk.max_pool(padded, two, out=pooled)
        flat = (n, -1, c)
        options = {"groups": 4, "mean": mean, "rstd": rstd}
        bk.group_norm(pooled.reshape(flat), gamma, beta, eps=1e-5, out=normal.reshape(flat), **options)
        bk.upsample_bilinear(normal, (2, 2), out=back)
        bk.spatial_dropout(back.reshape(flat), state, rate=0.3, stream=1, out=dpadded.reshape(flat))
        bk.upsample_bilinear_grad(dpadded, (2, 2), dx=normal)
        bk.upsample(normal, (2, 2), out=back)
        bk.upsample_grad(back, (2, 2), dx=normal)
        bk.group_norm_grad(
            normal.reshape(flat), pooled.reshape(flat), gamma, dx=normal.reshape(flat), dgamma=dgamma, dbeta=dbeta,
            **options,
        )  # fmt: skip
        bk.max_pool_grad(normal, padded, pooled, two, dx=dpadded)
        bk.crop(dpadded, 1, 1, out=dx)

    expected = buffers()
    step(NUMPY, *expected)
    for kept in (0, 5):  # the first arrays are nobody's business: a tile of them is enough
        found = buffers()
        replay = NUMBA.capture(lambda bk, found=found: step(bk, *found), found[:kept])
        for _ in range(2):
            replay.run()
            for w, g in zip(expected[kept:], found[kept:], strict=True):
                close(g, w, np.float32, GRADIENT)
        [program] = replay.parts
        images_first, *sums = program.calls
        assert len(images_first.keep) == 11
        assert len(sums) == 1


# ---- what is refused ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x, y: NUMBA.max_pool(x, Window((2, 2)), out=y), r"max_pool: out has shape \(2, 2, 2, 3\), expected"),
        (lambda x, y: NUMBA.max_pool(x[0], Window((2, 2)), out=y), r"max_pool: x has shape .*, expected \(n, height"),
        (lambda x, y: NUMBA.avg_pool_grad(y, Window((2, 2)), dx=x), r"avg_pool_grad: dy has shape .*, expected"),
        (lambda x, y: NUMBA.pad(x, 0, 1, out=x), r"pad: out has shape .*, expected \(2, 4 or more, 5 or more, 3\)"),
        (lambda x, y: NUMBA.crop(y, 1, 0, out=y), r"crop: x has shape .*, expected \(2, 3 or more, 2 or more, 3\)"),
        (lambda x, y: NUMBA.upsample(x, (2, 2), out=x), r"upsample: out has shape .*, expected \(2, 8, 8, 3\)"),
        (lambda x, y: NUMBA.upsample_grad(x, (3, 2), dx=y), r"upsample_grad: dy has shape .*, expected \(2, 6, 4, 3\)"),
        (lambda x, y: NUMBA.upsample_bilinear(y, (2, 3), out=x), r"bilinear: out has .*, expected \(2, 4, 6, 3\)"),
        (lambda x, y: NUMBA.upsample_bilinear_grad(x, (2, 1), dx=y), r"dy has shape .*, expected \(2, 4, 2, 3\)"),
        (
            lambda x, y: NUMBA.masked_max(x, x[0, 0], out=y),
            r"masked_max: x has shape .*, expected \(n, steps, channels",
        ),
        (
            lambda x, y: NUMBA.masked_mean(x[0], x[0, 0], out=y),
            r"masked_mean: mask has shape \(4, 3\), expected \(4, 4",
        ),
        (
            lambda x, y: NUMBA.masked_mean_grad(y[0, 0], x[0, :, :, 0].copy(), dx=x[0]),
            r"masked_mean_grad: dy has shape \(2, 3\), expected \(4, 3\)",
        ),
        (
            lambda x, y: NUMBA.masked_max_grad(x[0, 0], x[0], x[0, 0], x[0, :, :, 0].copy(), dx=y[0]),
            r"masked_max_grad: dx has shape \(2, 2, 3\), expected \(4, 4, 3\)",
        ),
        (
            lambda x, y: NUMBA.spatial_dropout(x, np.zeros(S.SIZE), rate=0.5, stream=0, out=x),
            r"spatial_dropout: x has shape .*, expected \(n, pixels, channels\)",
        ),
    ],
)
def test_wrong_shapes(call, match):
    with pytest.raises(ValueError, match=match):
        call(np.zeros((2, 4, 4, 3), "f4"), np.zeros((2, 2, 2, 3), "f4"))


def test_group_norm_refuses_groups_that_do_not_divide():
    x, c, stats = np.zeros((2, 4, 6), "f4"), np.zeros(6, "f4"), np.zeros((2, 4), "f4")
    with pytest.raises(ValueError, match="group_norm: 4 groups do not divide 6 channels"):
        NUMBA.group_norm(x, c, c, groups=4, eps=1e-5, out=x, mean=stats, rstd=stats)


def test_what_kernels_do_not_take_goes_to_numpy(rng):
    """Strided and empty arrays, and other types."""
    x = rng.standard_normal((4, 6, 6, 8))
    two = Window((2, 2), (2, 2))
    for given in (x[::2], x[..., ::2], x.astype(np.float16), x[:0]):
        n, c = given.shape[0], given.shape[3]
        out = np.empty((n, 3, 3, c), given.dtype)
        (want,), (got,) = both(lambda bk, y, given=given: bk.max_pool(given, two, out=y), out)
        np.testing.assert_array_equal(got, want)
        large = np.empty((n, 12, 18, c), given.dtype)
        (want,), (got,) = both(lambda bk, y, given=given: bk.upsample_bilinear(given, (2, 3), out=y), large)
        np.testing.assert_array_equal(got, want)
        assert got.any() == bool(n)
        dx = np.zeros_like(given)
        (want,), (got,) = both(lambda bk, dx, dy=got: bk.upsample_bilinear_grad(dy, (2, 3), dx=dx), dx)
        np.testing.assert_allclose(got, want, rtol=1e-12)
    replay_out = np.zeros((2, 3, 3, 8))
    replay = NUMBA.capture(lambda bk: bk.avg_pool(x[::2], two, out=replay_out))
    assert not replay_out.any()  # recorded, not done
    replay.run()
    np.testing.assert_allclose(replay_out, x[::2].reshape(2, 3, 2, 3, 2, 8).mean((2, 4)))
