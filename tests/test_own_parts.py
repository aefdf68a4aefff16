"""The README's layer, activation, loss, optimizer, metric, callback and initializer, on every backend."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.backends.base import Backend

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.fixture
def parts() -> dict[str, Any]:
    """The definitions of the block, without what follows them."""
    [block] = [b for b in re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE) if "class Scale" in b]
    found: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block.partition("testing.check_layer")[0], "README.md", "exec"), found)
    return found


def trained(parts: dict[str, Any], device: Any, epochs: int = 5) -> tuple[nf.Sequential, nf.History]:
    X = np.random.default_rng(0).uniform(-2, 2, (100, 1)).astype("float32")
    layers = [nf.Dense(16, initializer=parts["near_zero"]), parts["Sine"](), parts["Scale"](), nf.Dense(1)]
    model = nf.Sequential(layers)
    history = model.fit(
        X, X**2, loss=parts["LogCosh"](), optimizer=parts["SignSGD"](3e-3), epochs=epochs, batch_size=32,
        metrics=[parts["worst"]], callbacks=[parts["Patience"]()], device=device, seed=0, verbose=0,
    )  # fmt: skip
    return model, history


def test_on_every_backend(any_backend: Backend, parts: dict[str, Any]) -> None:
    X = np.linspace(-2, 2, 20, dtype=np.float32)[:, None]
    model, history = trained(parts, any_backend)
    reference, expected = trained(parts, "numpy")
    assert history["loss"][-1] < history["loss"][0]
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-3)
    np.testing.assert_allclose(history["worst"], expected["worst"], rtol=1e-2)
    np.testing.assert_allclose(model.predict(X), reference.predict(X), atol=2e-2)


def test_the_callback_ends_training(parts: dict[str, Any]) -> None:
    _, history = trained(parts, "numpy", epochs=500)
    assert len(history["loss"]) < 500
    assert history["loss"][-1] < 0.02 <= history["loss"][-2]


def test_they_are_saved(parts: dict[str, Any], tmp_path: Path) -> None:
    model, _ = trained(parts, "numpy")
    model.save(tmp_path / "mine.safetensors")
    names = ("Scale", "Sine", "LogCosh")
    again = nf.load(tmp_path / "mine.safetensors", custom={name: parts[name] for name in names})
    X = np.linspace(-2, 2, 20, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(again.predict(X, device="numpy"), model.predict(X, device="numpy"))
    again.fit(X, X**2, loss=parts["LogCosh"](), optimizer=parts["SignSGD"](1e-3), epochs=1, device="numpy", verbose=0)
    for name in names:
        others = {other: parts[other] for other in names if other != name}
        with pytest.raises(nf.CheckpointError, match=rf"needs the \w+ '{name}'.*custom="):
            nf.load(tmp_path / "mine.safetensors", custom=others)


def test_each_is_short(parts: dict[str, Any]) -> None:
    [block] = [b for b in re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE) if "class Scale" in b]
    definitions = re.split(r"^(?=class |def )", block.partition("testing.check_layer")[0], flags=re.MULTILINE)[1:]
    assert len(definitions) == 7
    assert all(len(text.strip().splitlines()) < 20 for text in definitions)
