"""``nnfast export``: what ONNX Runtime computes from the file is what ``nnfast predict`` does."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnfast as nf
from nnfast.cli.bundle import Bundle

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def outputs(path: Path, feed: dict[str, np.ndarray]) -> dict[str, Any]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} == set(feed)
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True))


def exported(cli: Any, *options: str) -> Bundle:
    out = cli.raw("export", "m.safetensors", "m.onnx", *options)
    assert out[0] == 0, out[2]
    assert out[1].startswith("wrote m.onnx, ")
    return Bundle.load("m.safetensors", "numpy")


def test_a_table(cli, customers, tmp_path):
    cli("train", customers, "--target", "kind", "--out", "m.safetensors", "--epochs", 20, "--quiet")
    bundle = exported(cli, "--preprocessing")
    with customers.open(newline="") as file:
        rows = list(csv.DictReader(file))[:60]
    rows.append({"age": "", "town": "Atlantis", "member": "", "spent": "120"})
    feed = {name: np.array([[float(row[name] or "nan")] for row in rows], np.float32) for name in ("age", "spent")}
    feed |= {name: np.array([[row[name]] for row in rows], object) for name in ("town", "member")}
    found = outputs(tmp_path / "m.onnx", feed)
    with (tmp_path / "new.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["age", "town", "member", "spent"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    inputs, _ = bundle.read("new.csv", need_target=False)
    x = bundle.transform(inputs)
    assert found["label"].tolist() == bundle.predict(x).tolist()
    np.testing.assert_allclose(found["probabilities"], bundle.probabilities(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["mean_squared_error", "poisson"])
def test_numbers_with_holes(cli, tmp_path, loss):
    x = np.random.default_rng(0).uniform(2000, 2020, (400, 2))
    y = np.round(100 + 5 * (x[:, 0] - 2010) - 2 * (x[:, 1] - 2010))
    np.save(tmp_path / "line.npy", np.c_[x, y])
    cli("train", "line.npy", "--target", 2, "--task", "regression", "--loss", loss, "--out", "m.safetensors",
        "--epochs", 4, "--quiet")  # fmt: skip
    bundle = exported(cli, "--preprocessing")
    new = x[:20].astype(np.float32)
    new[3, 1] = np.nan
    found = outputs(tmp_path / "m.onnx", {"x": new})["prediction"]
    np.testing.assert_allclose(found[:, 0], bundle.predict(bundle.transform(new)), rtol=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "hinge"])
def test_classes_that_are_numbers(cli, tmp_path, loss):
    cli("train", "spiral", "--loss", loss, "--epochs", 3, "--out", "m.safetensors", "--quiet")
    bundle = exported(cli, "--preprocessing")
    X = nf.datasets.load("spiral").X_test.astype(np.float32)
    found = outputs(tmp_path / "m.onnx", {"x": X})
    x = bundle.transform(X)
    assert found["label"].dtype == np.int64
    np.testing.assert_array_equal(found["label"], bundle.predict(x))
    if loss == "hinge":
        assert set(found) == {"label", "margins"}
    else:
        np.testing.assert_allclose(found["probabilities"], bundle.probabilities(x), rtol=1e-5, atol=1e-5)


def test_images(cli, tmp_path):
    pytest.importorskip("sklearn")
    cli("train", "digits", "--epochs", 2, "--out", "m.safetensors", "--quiet")
    bundle = exported(cli, "--preprocessing")
    X = nf.datasets.load("digits").X_test[:30].astype(np.float32)
    found = outputs(tmp_path / "m.onnx", {"x": X})
    np.testing.assert_array_equal(found["label"], bundle.predict(bundle.transform(X)))


def test_without_preprocessing(cli, tmp_path):
    cli("train", "spiral", "--epochs", 3, "--out", "m.safetensors", "--quiet")
    bundle = exported(cli, "--opset", "18")
    x = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    np.testing.assert_allclose(
        outputs(tmp_path / "m.onnx", {"x": x})["y"], bundle.model.predict(x), rtol=1e-5, atol=1e-5
    )
    exported(cli, "--probabilities")
    found = outputs(tmp_path / "m.onnx", {"x": x})["y"]
    np.testing.assert_allclose(found, bundle.model.predict_proba(x), rtol=1e-5, atol=1e-5)


def test_a_model_that_a_program_saved(cli, tmp_path):
    nf.Sequential([nf.Dense(3)]).build(2, seed=0).save(tmp_path / "m.safetensors")
    result = cli.raw("export", "m.safetensors", "m.onnx", "--json")
    assert result[0] == 0
    assert '"opset": 17' in result[1]
    assert "no preprocessing" in cli.error("export", "m.safetensors", "p.onnx", "--preprocessing")
    assert not (tmp_path / "p.onnx").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none.safetensors", "m.onnx"], "there is no model file none.safetensors"),
        (["m.safetensors", "m.pb"], "m.pb must end in .onnx"),
        (["m.safetensors", "no/m.onnx"], "the folder no does not exist"),
        (["m.safetensors", "m.onnx", "--opset", "9"], "opset must be 17 to 21, got 9"),
    ],
)
def test_refusals(cli, tmp_path, args, message):
    nf.Sequential([nf.Dense(3)]).build(2, seed=0).save(tmp_path / "m.safetensors")
    assert message in cli.error("export", *args)
