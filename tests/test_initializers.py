"""Initial weights: their distribution, their orthogonality, names, configs and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nnfast import activations, initializers


def draw(spec, shape, seed=0):
    return initializers.get(spec)(shape, np.random.default_rng(seed))


@pytest.mark.parametrize("name", initializers.names())
def test_shape_dtype_and_seed(name):
    a, b, c = draw(name, (7, 5)), draw(name, (7, 5)), draw(name, (7, 5), seed=1)
    assert a.shape == (7, 5)
    assert a.dtype == np.float64
    assert a.flags.c_contiguous
    np.testing.assert_array_equal(a, b)
    assert np.array_equal(a, c) == (name in {"zeros", "ones", "constant"})


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot_uniform", 2 / (300 + 200)),
        ("glorot_normal", 2 / (300 + 200)),
        ("he_uniform", 2 / 300),
        ("he_normal", 2 / 300),
        ("lecun_uniform", 1 / 300),
        ("lecun_normal", 1 / 300),
    ],
)
def test_variance_follows_the_fans(name, variance):
    w = draw(name, (300, 200))
    # 60,000 draws: the standard error of the variance is below 0.6 %
    assert w.var() == pytest.approx(variance, rel=0.03)
    assert abs(w.mean()) < 4 * np.sqrt(variance / w.size)
    if name.endswith("uniform"):
        limit = np.sqrt(3 * variance)
        assert 0.999 * limit < np.abs(w).max() <= limit
    else:
        kurtosis = ((w / w.std()) ** 4).mean()
        assert kurtosis == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), (1, 1)), ((6,), (6, 6)), ((4, 9), (4, 9)), ((3, 3, 8, 16), (72, 144)), ((5, 2, 3), (10, 15))],
)
def test_fans(shape, expected):
    assert initializers.fans(shape) == expected


@pytest.mark.parametrize(
    ("name", "torch_name"), [("glorot_uniform", "xavier_uniform_"), ("he_uniform", "kaiming_uniform_")]
)
def test_uniform_limits_are_those_of_torch(name, torch_name):
    torch = pytest.importorskip("torch")
    weight = torch.empty(400, 250)  # torch keeps (fan_out, fan_in)
    getattr(torch.nn.init, torch_name)(weight)
    ours = np.abs(draw(name, (250, 400))).max()
    assert ours == pytest.approx(float(weight.abs().max()), rel=1e-3)


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (3, 3, 2, 5)])
def test_orthogonal(shape):
    w = draw({"name": "orthogonal", "gain": 2.0}, shape).reshape(-1, shape[-1]) / 2.0
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-13)


def test_orthogonal_is_uniform():
    # Without the sign correction the first element of q is always negative
    signs = [np.sign(draw("orthogonal", (3, 3), seed)[0, 0]) for seed in range(40)]
    assert -0.6 < np.mean(signs) < 0.6


def test_parameters():
    assert draw(initializers.Normal(std=0.05, mean=3.0), (200, 100)).mean() == pytest.approx(3.0, abs=0.002)
    assert draw(initializers.Normal(std=0.05), (200, 100)).std() == pytest.approx(0.05, rel=0.03)
    w = draw(initializers.Uniform(2.0, 5.0), (100, 100))
    assert 2.0 <= w.min() < 2.01
    assert 4.99 < w.max() < 5.0
    np.testing.assert_array_equal(draw(initializers.Constant(1.5), (2, 2)), 1.5)
    np.testing.assert_allclose(draw(initializers.HeNormal(gain=3.0), (5, 5)), 3 * draw("he_normal", (5, 5)), rtol=1e-15)


@pytest.mark.parametrize(
    "alias", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", " He_Normal "]
)
def test_aliases(alias):
    assert initializers.get(alias).name in initializers.names()


@pytest.mark.parametrize("name", initializers.names())
def test_config_round_trip(name):
    first = initializers.get(name)
    second = initializers.get(json.loads(json.dumps(first.config)))
    assert first == second
    np.testing.assert_array_equal(draw(first, (4, 3)), draw(second, (4, 3)))


def test_config_keeps_parameters():
    spec = initializers.Normal(std=0.2, mean=-1.0)
    assert spec.config == {"name": "normal", "std": 0.2, "mean": -1.0}
    assert initializers.get(spec.config) == spec


def test_every_activation_names_a_known_initializer():
    assert {row.initializer for row in activations.TABLE.values()} <= set(initializers.names())


def test_callable():
    shared = np.arange(6, dtype=np.int32).reshape(2, 3)
    custom = initializers.get(lambda shape, rng: shared)
    out = custom((2, 3), np.random.default_rng(0))
    assert out.dtype == np.float64
    out[0, 0] = 99
    assert shared[0, 0] == 0
    assert initializers.get(initializers.HeNormal) == initializers.HeNormal()


def test_callable_is_not_stored():
    def mine(shape, rng):
        return np.zeros(shape)

    config = json.loads(json.dumps(initializers.get(mine).config))
    restored = initializers.get(config)
    with pytest.raises(ValueError, match=r"mine.*pass it again"):
        draw(restored, (2, 2))


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("xaver", ValueError, r"unknown initializer 'xaver'; known are zeros.*he_normal.*xavier_uniform"),
        ("custom", ValueError, "unknown initializer"),
        (3, TypeError, "not int"),
        (None, TypeError, "not NoneType"),
        ({"std": 1.0}, ValueError, "needs a 'name'"),
        ({"name": "normal", "sd": 1.0}, ValueError, "no parameter sd; it takes std, mean"),
        ({"name": "normal", "std": -1.0}, ValueError, "must not be negative"),
        ({"name": "normal", "std": float("nan")}, ValueError, "must be finite"),
        ({"name": "normal", "std": "a"}, TypeError, "must be a number"),
        ({"name": "uniform", "low": 1.0, "high": 0.0}, ValueError, "is above high"),
        ({"name": "he_normal", "gain": -1.0}, ValueError, "must not be negative"),
        ({"name": "zeros", "value": 1.0}, ValueError, "takes none"),
    ],
)
def test_bad_spec(spec, error, match):
    with pytest.raises(error, match=match):
        initializers.get(spec)


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda shape, rng: np.zeros(3), ValueError, r"shape \(3,\) for a parameter of \(2, 3\)"),
        (lambda shape, rng: np.full(shape, np.nan), ValueError, "not finite"),
        (lambda shape, rng: np.zeros(shape, complex), TypeError, "complex128"),
    ],
)
def test_bad_callable(function, error, match):
    with pytest.raises(error, match=match):
        draw(function, (2, 3))


def test_bad_call():
    with pytest.raises(TypeError, match="Generator, not int"):
        initializers.Zeros()((2, 2), 0)
    with pytest.raises(ValueError, match="negative"):
        draw("zeros", (-1, 2))
    with pytest.raises(ValueError, match="two or more axes"):
        draw("orthogonal", (4,))
