"""``nnfast train --model charnn`` and ``transformer``, and what reads the models that they make."""

from __future__ import annotations

import random

import pytest

from nnfast.cli import main

LINES = ("the cat sat on the mat.\n", "the dog ran to the cat.\n", "a mat is not a dog.\n")
SMALL = ("--units", 24, "--steps", 16, "--epochs", 5, "--batch-size", 8, "--lr", 0.02, "--quiet")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A text of few sentences."""
    drawn = random.Random(0)
    path = tmp_path_factory.mktemp("texts") / "book.txt"
    path.write_text("".join(drawn.choice(LINES) for _ in range(100)))
    return path


@pytest.fixture(scope="module")
def model(book):
    """A model of it."""
    path = book.with_name("book.safetensors")
    options = ("--model", "charnn", *SMALL, "--out", path, "--no-save", "--device", "numpy")
    assert main([*map(str, ("train", book, *options))]) == 0
    return path


class TestTrain:
    def test_it_learns_to_write(self, cli, book, tmp_path):
        result = cli.json("train", book, "--model", "charnn", *SMALL, "--no-save", "--out", "m.safetensors")
        assert (result["task"], result["kind"], result["epochs"]) == ("text", "charnn", 5)
        assert result["characters"]["train"] + result["characters"]["validation"] == book.stat().st_size
        bits = result["metrics"]["bits_per_character"]
        assert bits < 0.6 < 2 < result["history"]["val_bits"][0]  # 0.07 bits would be the choice of a line alone
        assert bits == pytest.approx(result["history"]["val_bits"][-1], rel=1e-4)
        words = {word for line in LINES for word in line.split()}
        written = result["sample"].split()[1:-1]  # the first and the last one may be cut
        assert len([word for word in written if word in words]) > 0.9 * len(written)

    def test_transformer(self, cli, book):
        options = ("--model", "transformer", "--units", 16, "--layers", 1, *SMALL[2:])
        out = cli("train", book, *options, "--epochs", 3, "--no-save")
        assert "transformer, 1 layers of 16 units" in out
        assert float(out.partition("bits per character")[2].split()[0]) < 2.5

    def test_folder_and_unknown(self, cli, tmp_path):
        folder = tmp_path / "texts"
        folder.mkdir()
        (folder / "a").write_text("abcd" * 100)
        (folder / "b").write_text("abzd" * 10)  # ten unknown ones, and the ends of both files
        result = cli.json("train", folder, "--model", "charnn", *SMALL, "--no-save")
        assert [name.rpartition("/")[2] for name in result["files"]] == ["a", "b"]
        assert result["characters"]["unknown"] == 12
        assert result["metrics"]["bits_per_known_character"] < result["metrics"]["bits_per_character"]

    def test_refused(self, cli, book, tmp_path):
        def error(*args):
            return cli.error("train", *args, "--no-save", "--device", "numpy")

        assert "--target does not apply to --model charnn" in error(book, "--model", "charnn", "--target", "a")
        assert "takes one data set" in error("xor", "spiral")
        assert "--steps does not apply to --model mlp" in error("xor", "--steps", 3)
        assert "number of layers" in error(book, "--model", "transformer", "--layers", "32,64")
        (tmp_path / "empty.txt").touch()
        assert "empty.txt: there is no text" in error("empty.txt", "--model", "charnn")
        (tmp_path / "short.txt").write_text("short")
        assert "5 characters; windows of 64 steps" in error("short.txt", "--model", "charnn", "--val-split", 0)
        (tmp_path / "bad.txt").write_bytes(b"good \xe9 bad")
        assert "byte 0xe9 at offset 5, in line 1" in error("bad.txt", "--model", "transformer")
        assert "no text file 'none.txt'" in error("none.txt", "--model", "charnn")


class TestModel:
    def test_sample(self, cli, model):
        def written(*options):
            return cli("sample", model, "--prompt", "the ", "--length", 50, *options)

        first = written("--seed", 1)
        assert first == written("--seed", 1) != written("--seed", 2)
        assert first.startswith("the ")
        assert len(first) == 4 + 50 + 1
        assert written("--temperature", 0) == written("--top-k", 1, "--seed", 9)
        result = cli.json("sample", model, "--length", 20)
        assert cli.json("sample", model, "--length", 20, "--seed", result["seed"])["text"] == result["text"]

    def test_evaluate(self, cli, model, book, tmp_path):
        found = cli.json("evaluate", model, book)["metrics"]
        assert found["characters"] == book.stat().st_size - 1
        assert found["bits_per_character"] < 0.6
        (tmp_path / "other.txt").write_text("colourless green ideas sleep furiously")
        assert cli.json("evaluate", model, "other.txt")["metrics"]["bits_per_character"] > 3
        assert "--target does not apply to a model of text" in cli.error("evaluate", model, book, "--target", "a")

    def test_info(self, cli, model):
        _, out, _ = cli.raw("info", model, "--json")
        assert "GRU(units=24" in out
        assert "5 epochs" in out
        assert r'"vocabulary": "\n .acdeghimnorst"' in out

    def test_other_commands(self, cli, model, book):
        assert "is a model of text, for 'nnfast sample'" in cli.error("predict", model, book)
        cli("train", "xor", "--epochs", 1, "--no-save", "--out", "x.safetensors")
        assert "x.safetensors is no model of text" in cli.error("sample", "x.safetensors")

    def test_resume(self, cli, book):
        options = ("--model", "transformer", "--units", 16, "--layers", 1, *SMALL[2:4], "--epochs", 2, "--batch-size")
        options = (*options, 16, "--no-save", "--checkpoint", "c.safetensors", "--every-steps", 7)
        whole = cli.json("train", book, *options)
        again = cli.json("train", book, *options, "--resume")
        assert again["history"]["val_bits"][-1] == pytest.approx(whole["history"]["val_bits"][-1], rel=1e-6)
