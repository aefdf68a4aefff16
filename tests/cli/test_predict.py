"""``nnfast predict`` and ``nnfast evaluate``: the training's preprocessing, repeated from the model file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import nnfast as nf
from nnfast.cli.bundle import Bundle


def columns(path: Path) -> dict[str, list[str]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    return {name: list(column) for name, column in zip(rows[0], zip(*rows[1:], strict=True), strict=True)}


@pytest.fixture
def trained(cli, customers) -> Path:
    cli("train", customers, "--target", "kind", "--out", "m.safetensors", "--epochs", 20, "--quiet")
    return customers


class TestTables:
    def test_equal_in_a_new_process(self, cli, trained, tmp_path):
        bundle = Bundle.load("m.safetensors", "numpy")
        inputs, y = bundle.read(str(trained), need_target=True)
        x = bundle.transform(inputs)
        expected, probabilities = bundle.predict(x), bundle.probabilities(x)
        assert bundle.metrics(y, expected)["accuracy"] > 0.8

        done = cli.new_process("predict", "m.safetensors", trained, "--out", "p.csv", "--proba", "--device", "numpy")
        assert done.returncode == 0, done.stderr
        found = columns(tmp_path / "p.csv")
        assert list(found) == ["prediction", "p_basic", "p_gold", "p_silver"]
        assert found["prediction"] == expected.tolist()
        for i, name in enumerate(["p_basic", "p_gold", "p_silver"]):
            np.testing.assert_array_equal(np.array(found[name], np.float32), probabilities[:, i])

    def test_columns_in_another_order_and_without_the_target(self, cli, trained, tmp_path):
        cli("predict", "m.safetensors", trained, "--out", "a.csv")
        table = columns(trained)
        names = ["spent", "member", "town", "age"]
        with (tmp_path / "turned.csv").open("w", newline="") as file:
            writer = csv.writer(file, delimiter=";")
            writer.writerow(names)
            writer.writerows(zip(*(table[name] for name in names), strict=True))
        cli("predict", "m.safetensors", "turned.csv", "--out", "b.csv")
        assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()

    def test_one_row_with_new_values(self, cli, trained, tmp_path):
        (tmp_path / "one.csv").write_text("age,town,member,spent\n,Atlantis,maybe,120\n")
        result = cli.json("predict", "m.safetensors", "one.csv", "--proba")
        assert result["rows"] == 1
        assert result["predictions"][0] in ("basic", "gold", "silver")
        assert sum(result["probabilities"][0]) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("age,town,spent\n1,Rome,2\n", "column 'member' is missing"),
            ("age,town,member,spent,shoe\n1,Rome,True,2,43\n", "column 'shoe' is unknown"),
            ("age,town,member,spent\nold,Rome,True,2\n", "'age' held numbers in training, but now 'old'"),
        ],
    )
    def test_wrong_columns(self, cli, trained, tmp_path, text, message):
        (tmp_path / "t.csv").write_text(text)
        assert message in cli.error("predict", "m.safetensors", "t.csv", "--device", "numpy")

    def test_evaluate(self, cli, trained, tmp_path):
        result = cli.json("evaluate", "m.safetensors", trained)
        cli("predict", "m.safetensors", trained, "--out", "p.csv")
        true, predicted = np.array(columns(trained)["kind"]), np.array(columns(tmp_path / "p.csv")["prediction"])
        assert result["metrics"]["accuracy"] == pytest.approx((true == predicted).mean())
        assert [row["class"] for row in result["classes"]] == ["basic", "gold", "silver"]
        gold = result["classes"][1]
        assert gold["rows"] == (true == "gold").sum()
        assert gold["precision"] == pytest.approx((true[predicted == "gold"] == "gold").mean())
        assert gold["recall"] == pytest.approx((predicted[true == "gold"] == "gold").mean())
        assert gold["f1"] == pytest.approx(2 / (1 / gold["precision"] + 1 / gold["recall"]))

    def test_confusion_matrix(self, cli, trained, tmp_path):
        pytest.importorskip("matplotlib")
        result = cli.json("evaluate", "m.safetensors", trained, "--plot", "c.png")
        assert result["plot"] == "c.png"
        assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")

    def test_evaluate_needs_known_targets(self, cli, trained, tmp_path):
        (tmp_path / "t.csv").write_text("age,town,member,spent,kind\n1,Rome,True,2,platinum\n")
        assert "label 'platinum'" in cli.error("evaluate", "m.safetensors", "t.csv", "--device", "numpy")
        (tmp_path / "t.csv").write_text("age,town,member,spent\n1,Rome,True,2\n")
        assert "no column 'kind'" in cli.error("evaluate", "m.safetensors", "t.csv", "--device", "numpy")

    def test_dropped_columns_may_stay_in_the_file(self, cli, customers, tmp_path):
        options = ("--target", "kind", "--drop", "age", "--drop", "town", "--epochs", 2, "--out", "d.safetensors")
        cli("train", customers, *options)
        cli("predict", "d.safetensors", customers, "--out", "p.csv")
        assert len(columns(tmp_path / "p.csv")["prediction"]) == 300


class TestRegression:
    @pytest.fixture
    def line(self, cli, tmp_path) -> np.ndarray:
        x = np.random.default_rng(0).uniform(-1, 1, (400, 2))
        y = 1000 + 50 * x[:, 0] - 20 * x[:, 1]
        np.save(tmp_path / "line.npy", np.c_[x, y])
        cli("train", "line.npy", "--target", 2, "--out", "line.safetensors", "--precision", "float64", "--quiet")
        return np.c_[x, y]

    @pytest.mark.parametrize("ending", ["csv", "npy", "parquet"])
    def test_units_and_endings(self, cli, line, tmp_path, ending):
        if ending == "parquet":
            pytest.importorskip("pyarrow")
        np.save(tmp_path / "new.npy", line[:50, :2])
        cli("predict", "line.safetensors", "new.npy", "--out", f"p.{ending}")
        if ending == "npy":
            found = np.load(tmp_path / "p.npy")
        elif ending == "csv":
            found = np.array(columns(tmp_path / "p.csv")["prediction"], float)
        else:
            import pyarrow.parquet as pq

            found = pq.read_table(tmp_path / "p.parquet")["prediction"].to_numpy()
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, line[:50, 2], atol=5)
        bundle = Bundle.load("line.safetensors", "numpy")
        np.testing.assert_array_equal(found, bundle.predict(bundle.transform(line[:50, :2])))

    def test_the_target_column_of_an_array_is_left_out(self, cli, line, tmp_path):
        np.save(tmp_path / "new.npy", line[:, :2])
        cli("predict", "line.safetensors", "new.npy", "--out", "a.npy")
        cli("predict", "line.safetensors", "line.npy", "--out", "b.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
        np.save(tmp_path / "wide.npy", np.zeros((3, 5)))
        assert "(2,)" in cli.error("predict", "line.safetensors", "wide.npy", "--device", "numpy")

    def test_evaluate(self, cli, line):
        metrics = cli.json("evaluate", "line.safetensors", "line.npy")["metrics"]
        assert metrics["r2"] > 0.99
        assert metrics["mae"] <= metrics["rmse"] < 5

    def test_no_rows(self, cli, line, tmp_path):
        np.save(tmp_path / "none.npy", np.zeros((0, 2)))
        cli("predict", "line.safetensors", "none.npy", "--out", "p.npy")
        assert np.load(tmp_path / "p.npy").shape == (0,)

    def test_no_confusion_matrix(self, cli, line):
        assert "predicts numbers" in cli.error("evaluate", "line.safetensors", "line.npy", "--plot", "c.png")

    def test_no_probabilities(self, cli, line):
        assert "predicts numbers" in cli.error("predict", "line.safetensors", "line.npy", "--proba")


class TestNamedSets:
    def test_evaluate_repeats_the_result_of_train(self, cli):
        pytest.importorskip("sklearn")
        first = cli.json("train", "digits", "--epochs", 3, "--out", "d.safetensors")
        again = cli.json("evaluate", "d.safetensors", "digits")
        assert again["rows"] == first["rows"]["test"]
        assert again["metrics"] == first["metrics"]

    def test_points_from_a_text_file(self, cli, tmp_path):
        cli("train", "spiral", "--out", "s.safetensors", "--quiet")
        data = nf.datasets.load("spiral")
        lines = [f"{a!r},{b!r}" for a, b in data.X_test.tolist()]
        (tmp_path / "points.csv").write_text("\n".join(lines))
        out = cli("predict", "s.safetensors", "points.csv")
        assert out.splitlines()[0] == "prediction"
        found = np.array(out.splitlines()[1:], int)
        assert (found == data.y_test).mean() > 0.98

    @pytest.mark.parametrize("loss", ["binary_cross_entropy", "hinge"])
    def test_models_with_one_output(self, cli, loss):
        cli("train", "spiral", "--loss", loss, "--epochs", 3, "--out", "s.safetensors")
        if loss == "hinge":
            assert "no probabilities" in cli.error("predict", "s.safetensors", "spiral", "--proba")
            return
        result = cli.json("predict", "s.safetensors", "spiral", "--proba")
        p = np.array(result["probabilities"])
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_array_equal(np.array(result["predictions"]), p.argmax(axis=1))


class TestFiles:
    def test_no_rows(self, cli, tmp_path):
        cli("train", "xor", "--epochs", 1, "--out", "m.safetensors")
        np.save(tmp_path / "none.npy", np.zeros((0, 2)))
        cli("predict", "m.safetensors", "none.npy", "--out", "p.npy", "--proba")
        assert np.load(tmp_path / "p.npy").shape == (0, 2)
        assert cli("predict", "m.safetensors", "none.npy") == "prediction\n"

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["no.safetensors", "xor"], "there is no model file no.safetensors"),
            (["m.safetensors", "xor", "--out", "p.doc"], "the ending must be one of .csv, .npy, .parquet"),
            (["m.safetensors", "xor", "--out", "no/p.csv"], "the folder no does not exist"),
            (["m.safetensors", "digits"], "(2,)"),
            (["m.safetensors", "nothing.csv"], "neither a file"),
        ],
    )
    def test_refusals(self, cli, args, message):
        cli("train", "xor", "--epochs", 1, "--out", "m.safetensors")
        assert message in cli.error("predict", *args, "--device", "numpy")

    @pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
    def test_not_a_model(self, cli, tmp_path, content):
        (tmp_path / "m.safetensors").write_bytes(content)
        assert "m.safetensors" in cli.error("predict", "m.safetensors", "xor", "--device", "numpy")

    def test_a_model_without_preprocessing(self, cli):
        model = nf.Sequential([nf.Dense(2)])
        model.build((2,), seed=0)
        model.save("m.safetensors")
        message = cli.error("evaluate", "m.safetensors", "xor", "--device", "numpy")
        assert "not by 'nnfast train'" in message
