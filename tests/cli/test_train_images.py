"""``nnfast train --model cnn``."""

from __future__ import annotations

import numpy as np
import pytest

from nnfast.cli.networks import network
from nnfast.cli.recipe import Recipe, recipe_for
from nnfast.datasets import Dataset


@pytest.fixture
def bars(tmp_path):
    """Images of a bar that lies or stands, at any place."""
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 60, (300, 9, 9)).astype(np.uint8), rng.integers(0, 2, 300)
    for image, stands in zip(X, y, strict=True):
        i, j = rng.integers(0, 9), rng.integers(0, 5)
        (image.T if stands else image)[i, j : j + 5] = 255
    np.savez(tmp_path / "bars.npz", X=X, y=y)
    return tmp_path / "bars.npz"


def test_it_learns(cli, bars):
    options = ("--model", "cnn", "--layers", "8,8", "--units", 16, "--epochs", 6, "--lr", 0.02, "--quiet", "--no-save")
    result = cli.json("train", bars, *options, "--out", "m.safetensors")
    assert (result["kind"], result["recipe"]["layers"], result["part"]) == ("cnn", [8, 8], "validation")
    assert result["metrics"]["accuracy"] > 0.9
    assert cli.json("evaluate", "m.safetensors", bars, "--target", "y")["metrics"]["accuracy"] > 0.9
    cli("predict", "m.safetensors", bars, "--out", "p.npy")
    assert np.load("p.npy").shape == (300,)


def test_the_network_for_fashion_mnist():
    images = Dataset("fashion-mnist", np.zeros((60_000, 28, 28), np.uint8), np.zeros(60_000), pixel_max=255.0)
    recipe = recipe_for(images, "cnn")
    assert recipe.epochs <= 12
    model = network("cnn", recipe, (28, 28), 10).build((28, 28))
    assert [row.layer.partition("(")[0] for row in model.summary().rows].count("Conv2D") == 2
    assert model.parameters.count < 120_000


@pytest.mark.parametrize("shape", [(8, 8), (3, 5), (12, 20, 3), (1, 1)])
def test_images_of_any_size(shape):
    model = network("cnn", Recipe(layers=(4, 4, 4), units=5), shape, 2).build(shape, seed=0)
    assert model.predict(np.ones((2, *shape), np.float32), device="numpy").shape == (2, 2)


def test_refused(cli, customers):
    def error(*args):
        return cli.error("train", *args, "--model", "cnn", "--no-save", "--device", "numpy")

    assert "--model cnn is for images" in error(customers, "--target", "kind")
    assert "rows of shape (2,)" in error("spiral")
    pytest.importorskip("sklearn")
    assert "at least one convolution" in error("digits", "--layers", "none")
    assert "--steps does not apply to --model cnn" in error("digits", "--steps", 3)
