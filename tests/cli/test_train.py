"""``nnfast train``: what it learns, says, writes and refuses."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

import nnfast as nf
from nnfast.cli.prepare import prepare
from nnfast.cli.recipe import Recipe, parse_layers, recipe_for
from nnfast.datasets import Dataset, fashion_mnist

from ..test_datasets import idx_bytes


class TestNamedSets:
    @pytest.mark.parametrize(("name", "least"), [("xor", 1.0), ("spiral", 0.98), ("digits", 0.97)])
    def test_no_option_needed(self, cli, name, least):
        if name == "digits":
            pytest.importorskip("sklearn")
        result = cli.json("train", name, "--no-save", "--quiet")
        assert result["metrics"]["accuracy"] >= least
        assert result["part"] == ("training" if name == "xor" else "test")

    @pytest.mark.skipif(fashion_mnist.find() is None, reason="Fashion-MNIST is not on this machine")
    def test_fashion_mnist(self, cli):
        options = ("--epochs", 2, "--layers", 32, "--batch-size", 512, "--lr", 0.005, "--no-save")
        result = cli.json("train", "fashion-mnist", *options)
        assert result["rows"] == {"train": 57000, "validation": 3000, "test": 10000}
        assert result["metrics"]["accuracy"] > 0.8
        assert result["classes"][9] == "Ankle boot"

    def test_one_seed_one_result(self, cli):
        def history(*options):
            return cli.json("train", "spiral", "--epochs", 2, "--no-save", *options)["history"]

        assert history() == history("--seed", 0)
        assert history() != history("--seed", 1)


class TestResume:
    def test_a_training_that_was_killed(self, cli, tmp_path, monkeypatch):
        options = ("train", "spiral", "--epochs", 5, "--quiet", "--no-save")
        saved = (*options, "--checkpoint", "c.safetensors", "--every-steps", 3)
        cli(*options, "--out", "whole.safetensors")
        write, written = nf.TrainingCheckpoint.write, []

        def then_fail(self, model, position):
            write(self, model, position)
            written.append(position)
            if len(written) == 7:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(nf.TrainingCheckpoint, "write", then_fail)
            assert cli.raw(*saved, "--device", "numpy")[0] != 0
        assert written[-1].rows > 0  # in the middle of an epoch
        result = cli.json(*saved, "--resume", "--out", "parts.safetensors")
        assert (result["checkpoint"], result["resumed"], result["epochs"]) == ("c.safetensors", True, 5)
        assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()

    def test_refused(self, cli):
        assert "need --checkpoint FILE" in cli.error("train", "xor", "--resume")
        assert "need --checkpoint FILE" in cli.error("train", "xor", "--every-steps", 3)
        both = ("--checkpoint", "c", "--every-steps", 3, "--every-minutes", 3)
        assert "not both" in cli.error("train", "xor", *both)
        assert "there is no checkpoint c to go on from" in cli.error("train", "xor", "--checkpoint", "c", "--resume")
        cli("train", "xor", "--epochs", 2, "--out", "m.safetensors", "--no-save")
        resumed = cli.error("train", "xor", "--checkpoint", "m.safetensors", "--resume", "--no-save")
        assert "is a model, not a training that could go on" in resumed


class TestOutput:
    def test_lines_and_files(self, cli, tmp_path):
        pytest.importorskip("matplotlib")
        out = cli("train", "xor", "--epochs", 3)
        assert "xor: 4 rows to train on" in out
        assert "numpy (asked for), float32" in out
        assert "2-8-2, tanh, 42 parameters" in out
        assert "epoch 3/3" in out
        assert "saved the model to xor.safetensors" in out
        assert (tmp_path / "xor.safetensors").stat().st_size > 0
        assert (tmp_path / "xor.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["xor.png", "xor.safetensors"]

    def test_named_files(self, cli, tmp_path):
        pytest.importorskip("matplotlib")
        result = cli.json("train", "xor", "--epochs", 2, "--out", "a.safetensors", "--plot", "b.svg")
        assert (result["model"], result["plot"]) == ("a.safetensors", "b.svg")
        assert "<svg" in (tmp_path / "b.svg").read_text()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.svg"]

    def test_no_save(self, cli, tmp_path):
        cli("train", "xor", "--epochs", 1, "--no-save")
        assert list(tmp_path.iterdir()) == []

    def test_json(self, cli):
        result = cli.json("train", "spiral", "--epochs", 3, "--no-save", "--optimizer", "lion", "--dropout", 0.1)
        assert result["command"] == "train"
        assert (result["device"], result["device_reason"], result["precision"]) == ("numpy", "asked for", "float32")
        assert result["epochs"] == 3
        assert {name: len(curve) for name, curve in result["history"].items()} == dict.fromkeys(
            ["loss", "accuracy", "val_loss", "val_accuracy", "lr"], 3
        )
        assert result["recipe"]["optimizer"] == "lion"
        assert result["recipe"]["lr"] == nf.Lion.default_lr != 0.01  # the recipe's own rate is Adam's
        assert (result["model"], result["plot"]) == (None, None)

    def test_quiet(self, cli):
        assert "epoch" not in cli("train", "xor", "--no-save", "--quiet").split("device")[1]

    def test_device_from_the_environment(self, cli, monkeypatch):
        monkeypatch.setenv("NNFAST_DEVICE", "numpy")
        status, out, _ = cli.raw("train", "xor", "--epochs", "1", "--no-save")
        assert status == 0
        assert "numpy (set by NNFAST_DEVICE)" in out

    def test_the_default_device_says_why(self, cli):
        result = cli.json("train", "xor", "--epochs", 2, "--no-save", "--device", "auto")
        assert result["device"] in ("numpy", "numba", "cuda:0")
        assert result["device_reason"].startswith("auto")
        if not result["device"].startswith("cuda"):
            assert nf.available_devices()["cuda"] in result["device_reason"]


class TestTables:
    def test_text_columns(self, cli, customers):
        result = cli.json("train", customers, "--target", "kind", "--no-save")
        assert (result["task"], result["classes"]) == ("classification", ["basic", "gold", "silver"])
        assert result["part"] == "validation"
        assert result["rows"] == {"train": 240, "validation": 60, "test": 0}
        assert result["metrics"]["accuracy"] > 0.85

    def test_regression_on_diabetes(self, cli, tmp_path):
        data = pytest.importorskip("sklearn.datasets").load_diabetes()
        lines = [",".join([*data.feature_names, "progression"])]
        lines += [",".join(map(repr, row)) for row in np.c_[data.data, data.target].tolist()]
        (tmp_path / "diabetes.csv").write_text("\n".join(lines))
        result = cli.json("train", "diabetes.csv", "--target", -1, "--no-save")
        assert (result["task"], result["target"], result["loss"]) == ("regression", "progression", "mean_squared_error")
        assert result["metrics"]["r2"] > 0.35  # about 0.45 for linear and for ridge regression
        assert 30 < result["metrics"]["mae"] < result["metrics"]["rmse"] < 70  # in the target's units

    def test_early_stop_keeps_the_best(self, cli, tmp_path):
        rng = np.random.default_rng(0)  # noise: nothing to be learned
        np.savez(tmp_path / "noise.npz", X=rng.normal(size=(100, 5)), y=rng.normal(size=100))
        result = cli.json("train", "noise.npz", "--no-save", "--patience", 3, "--epochs", 100)
        assert result["epochs"] < 100
        curve = result["history"]["val_loss"]
        assert len(curve) == np.argmin(curve) + 1 + 3
        assert cli.json("train", "noise.npz", "--no-save", "--patience", 0, "--epochs", 40)["epochs"] == 40

    @pytest.mark.parametrize("kind", ["npy", "npz", "parquet"])
    def test_other_files(self, cli, tmp_path, kind):
        rng = np.random.default_rng(0)
        X = rng.normal(size=(200, 3))
        y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)
        options = ["--target", "3"] if kind == "npy" else ["--target", "y"]
        if kind == "npy":
            np.save(tmp_path / "a.npy", np.c_[X, y])
        elif kind == "npz":
            np.savez(tmp_path / "a.npz", X=X, y=y)
        else:
            pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            pq.write_table(pa.table({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "y": y}), tmp_path / "a.parquet")
        result = cli.json("train", f"a.{kind}", *options, "--no-save")
        assert result["task"] == "classification"
        assert result["metrics"]["accuracy"] > 0.9

    def test_idx_folder(self, cli, tmp_path):
        digits = pytest.importorskip("sklearn.datasets").load_digits()
        order = np.random.default_rng(0).permutation(1797)
        images, labels = (digits.images[order] * 15).astype(np.uint8), digits.target[order].astype(np.uint8)
        folder = tmp_path / "images"
        folder.mkdir()
        for part, rows in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
            (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images[rows])))
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels[rows]))
        result = cli.json("train", folder, "--no-save", "--layers", 64)
        assert result["part"] == "test"
        assert result["metrics"]["accuracy"] > 0.95

    @pytest.mark.parametrize("loss", ["binary_cross_entropy", "hinge", "cross_entropy"])
    def test_two_classes(self, cli, loss):
        result = cli.json("train", "spiral", "--loss", loss, "--no-save", "--epochs", 40)
        assert result["metrics"]["accuracy"] > 0.95

    def test_counts(self, cli, tmp_path):
        rng = np.random.default_rng(0)
        x = rng.uniform(-1, 1, (500, 1))
        np.savez(tmp_path / "counts.npz", X=x, y=rng.poisson(np.exp(1 + 2 * x[:, 0])))
        result = cli.json("train", "counts.npz", "--loss", "poisson", "--task", "regression", "--no-save")
        assert result["metrics"]["r2"] > 0.6


class TestPrepare:
    """The validation part is not looked at before it is measured."""

    def prepared(self, **options):
        X = np.arange(100.0)[:, None]
        data = Dataset("t.csv", X, 2 * X[:, 0], task="regression")
        settings = {"val_split": 0.2, "seed": 3, "dtype": np.float64, "categorical": ()} | options
        return X, prepare(data, nf.losses.get("mean_squared_error"), "mean_squared_error", **settings)

    def test_statistics_are_of_the_training_part(self):
        X, ready = self.prepared()
        inputs, target = ready.preprocessor.inputs, ready.preprocessor.target
        train = np.sort((ready.x * inputs.std + inputs.mean)[:, 0].round())
        held = np.sort((ready.validation[0] * inputs.std + inputs.mean)[:, 0].round())
        assert (len(train), len(held)) == (80, 20)
        np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), X[:, 0])
        np.testing.assert_allclose([inputs.mean[0], inputs.std[0]], [train.mean(), train.std()])
        np.testing.assert_allclose([target.mean[0], target.std[0]], [2 * train.mean(), 2 * train.std()])
        assert abs(inputs.mean[0] - X.mean()) > 1e-3
        np.testing.assert_allclose(ready.y, ready.x)  # targets stay with their rows
        np.testing.assert_allclose(ready.validation[1], ready.validation[0])

    def test_the_seed_decides_the_split(self):
        (_, a), (_, b), (_, c) = self.prepared(), self.prepared(), self.prepared(seed=4)
        np.testing.assert_array_equal(a.x, b.x)
        assert not np.array_equal(a.x, c.x)


def test_interrupted_in_the_first_epoch(cli, tmp_path, monkeypatch):
    def interrupted(model, *args, **kwargs):
        model.build((2,), seed=0)
        model.loss = nf.losses.get("cross_entropy")
        history = nf.History()
        history.stopped = "interrupted in epoch 1, after step 0"
        return history

    monkeypatch.setattr(nf.Sequential, "fit", interrupted)
    result = cli.json("train", "spiral")
    assert (result["epochs"], result["plot"]) == (0, None)
    assert result["stopped"].startswith("interrupted")
    assert [p.name for p in tmp_path.iterdir()] == ["spiral.safetensors"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["nothing.csv"], "'nothing.csv' is neither a file"),
            (["xor", "--device", "tpu"], "'tpu' is not known"),
            (["xor", "--layers", "8,x"], "--layers takes positive whole numbers"),
            (["xor", "--layers", "8,0"], "--layers"),
            (["xor", "--activation", "rellu"], "rellu"),
            (["xor", "--optimizer", "adan"], "unknown optimizer 'adan'"),
            (["xor", "--schedule", "never"], "unknown schedule 'never'"),
            (["xor", "--loss", "sadness"], "unknown loss 'sadness'"),
            (["xor", "--loss", "mean_squared_error"], "'mean_squared_error' is not for classification"),
            (["digits", "--loss", "hinge"], "'hinge' is for two classes, the target has 10"),
            (["xor", "--precision", "float8"], "float8"),
            (["xor", "--val-split", "0.1"], "--val-split 0.1 of 4 rows leaves 4 to train on and 0"),
            (["xor", "--target", "y"], "its own target"),
            (["xor", "--categorical", "a"], "tables with named columns"),
            (["xor", "--out", "no/where.safetensors"], "the folder no does not exist"),
            (["xor", "--out", "."], "it is a folder"),
            (["xor", "--plot", "a.doc"], "the ending must be one of .png"),
            (["spiral", "--lr", "1e30", "--no-save", "--quiet"], "finite"),
        ],
    )
    def test_options(self, cli, tmp_path, args, message):
        device = () if "--device" in args else ("--device", "numpy")
        assert message in cli.error("train", *args, *device)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("t.csv", b"", "t.csv is empty"),
            ("t.csv", b"a,y\n1\n", "line 2: 1 cells"),
            ("t.csv", b"a,b\n1,2\n", "no column 'y'; the columns are: a, b"),
            ("t.csv", b"a,y\n1,x\n2,x\n3,x\n4,x\n5,x\n", "only one class"),
            ("t.csv", b"a,y\ninf,1.5\n2,2.5\n3,3.5\n4,1\n5,1\n", "column 'a'"),
            ("t.npy", b"\x93NUMPY\x01\x00garbage", "cannot be read as .npy"),
            ("t.npz", b"PK\x03\x04", "cannot be read as .npz"),
            ("t.txt", b"a,y\n", "the ending is not one of"),
        ],
    )
    def test_data(self, cli, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        assert message in cli.error("train", name, "--target", "y", "--device", "numpy")

    def test_failed_plot_leaves_nothing_behind(self, cli, tmp_path, monkeypatch):
        pytest.importorskip("matplotlib")
        from nnfast import plotting

        def fail(history, path=None):
            path.write_bytes(b"half a picture")
            raise OSError("disk full")

        monkeypatch.setattr(plotting, "history", fail)
        assert "disk full" in cli.error("train", "xor", "--epochs", "1", "--device", "numpy")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["xor.safetensors"]


class TestRecipes:
    @pytest.mark.parametrize(
        ("text", "widths"), [("256,128", (256, 128)), (" 8 ", (8,)), ("none", ()), ("", ()), ("4, 4", (4, 4))]
    )
    def test_layers(self, text, widths):
        assert parse_layers(text) == widths

    @pytest.mark.parametrize("rows", [1, 10, 1_000, 10_000, 10_000_000])
    def test_tables_of_any_size(self, rows):
        # rows that take no memory
        X = np.broadcast_to(np.float32(0), (rows, 2))
        recipe = recipe_for(Dataset("t.csv", X, None))
        assert 5 <= recipe.epochs <= 200
        assert recipe.patience >= 1

    def test_options_win(self):
        recipe = Recipe().but(epochs=3, lr=None, patience=0)
        assert (recipe.epochs, recipe.lr, recipe.patience) == (3, 1e-3, 0)


def test_every_precision_can_be_chosen():
    from nnfast.cli.train import command
    from nnfast.precision import PRECISIONS

    [option] = [p for p in command.params if p.name == "precision"]
    assert set(option.type.choices) == set(PRECISIONS)
