"""Text: vocabularies, windows, what models write, and what they think of what others wrote."""

from __future__ import annotations

import numpy as np
import pytest

import nnfast as nf
from nnfast import language
from nnfast.bench.ngram import KneserNey
from nnfast.datasets.text import UNKNOWN, Text, Vocabulary, load_text, read_text, windows
from nnfast.errors import DataError
from nnfast.training.generation import bits, generate, unrolled

CLASSES, STEPS = 7, 6


def built(kind: str, device: str = "numpy", dtype: str = "float64") -> nf.Sequential:
    """A model that was not trained, with weights large enough that its predictions differ."""
    layers = {
        "gru": [nf.Embedding(CLASSES, 5), nf.GRU(8, return_sequences=True, stateful=True), nf.Dense(CLASSES)],
        "lstm": [nf.Embedding(CLASSES, 5), nf.Residual([nf.LSTM(5, return_sequences=True)]), nf.Dense(CLASSES)],
        "transformer": [
            nf.Embedding(CLASSES, 8),
            nf.PositionalEmbedding(),
            nf.TransformerBlock(2, causal=True),
            nf.Dense(CLASSES),
        ],
    }[kind]
    model = nf.Sequential(layers).build((STEPS,), seed=0, dtype=dtype)
    rng = np.random.default_rng(0)
    model.set_weights({name: rng.normal(0, 0.7, w.shape) for name, w in model.get_weights().items()})
    model.loss = nf.CrossEntropy()
    model.place(device)
    return model


def whole(model: nf.Sequential, length: int) -> nf.Sequential:
    """The same weights in a model that sees a whole sequence at once, without carried states."""
    return unrolled(model, length, stateful=False)


class TestVocabulary:
    def test_there_and_back(self):
        words = Vocabulary.of("na\u00efve \U0001f600\n")
        text = "\U0001f600 na\u00ef\nve"
        assert words.decode(words.encode(text)) == text
        assert sorted(words.encode(words.characters).tolist()) == list(range(1, len(words)))

    def test_unknown(self):
        words = Vocabulary.of("abcabd", min_count=2)
        assert words.characters == "ab"
        assert words.encode("abcz").tolist() == [1, 2, 0, 0]
        assert words.decode([0, 2]) == UNKNOWN + "b"
        assert Vocabulary("").encode("ab").tolist() == [0, 0]

    def test_refused(self):
        with pytest.raises(ValueError, match="sorted"):
            Vocabulary("ba")
        with pytest.raises(ValueError, match="0 to 2, got 1 to 3"):
            Vocabulary("ab").decode([1, 3])


class TestReading:
    def test_folder(self, tmp_path):
        (tmp_path / "b").write_bytes(b"second\r\nline")
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst")
        (tmp_path / ".hidden").write_bytes(b"\xff")
        (tmp_path / "c").symlink_to("a.txt")  # the same text twice would be a test of memory
        text, files = read_text(tmp_path)
        assert text == "first\nsecond\nline\n"
        assert [name.rpartition("/")[2] for name in files] == ["a.txt", "b"]

    def test_split(self, tmp_path):
        (tmp_path / "t").write_text("ab" * 50 + "cb" * 10)
        text = load_text(tmp_path / "t", validation=0.2)
        assert (len(text.train), len(text.validation)) == (96, 24)
        assert text.vocabulary.characters == "ab"
        assert text.vocabulary.decode(text.validation) == "abab" + (UNKNOWN + "b") * 10

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "size is 0"),
            (b"one\ntwo \xff three", r"byte 0xff at offset 8, in line 2"),
            (b"\xef\xbb\xbfone \xc3", r"byte 0xc3 at offset 7, in line 1"),
            (b"PK\x00\x01", "binary: it has a zero byte at offset 2"),
            (b"a", None),
        ],
    )
    def test_refused(self, tmp_path, content, message):
        path = tmp_path / "t.txt"
        path.write_bytes(content)
        if message is None:
            assert len(load_text(path).train) == 1
            return
        with pytest.raises(DataError, match=message):
            load_text(path)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="no text file"):
            read_text(tmp_path / "none")
        with pytest.raises(DataError, match="has no files"):
            read_text(tmp_path)


class TestWindows:
    def test_next_character(self):
        x, y = windows(np.arange(100), 7, stride=3)
        np.testing.assert_array_equal(y, x + 1)
        np.testing.assert_array_equal(x[:, 0], np.arange(0, 93, 3))

    def test_rows_go_on(self):
        rows, steps = 4, 5
        x, y = windows(np.arange(103), steps, rows=rows)
        np.testing.assert_array_equal(y, x + 1)
        batches = x.reshape(-1, rows, steps)
        np.testing.assert_array_equal(batches[1:, :, 0], batches[:-1, :, -1] + 1)
        assert len(np.unique(x)) == x.size  # no character is seen twice

    def test_the_longest(self):
        assert windows(np.arange(6), 5)[0].shape == (1, 5)
        with pytest.raises(DataError, match="5 characters; windows of 5 steps need at least 6"):
            windows(np.arange(5), 5)
        with pytest.raises(DataError, match="for each of 2 rows need at least 11"):
            windows(np.arange(10), 5, rows=2)
        with pytest.raises(ValueError, match="not both"):
            windows(np.arange(10), 2, rows=2, stride=1)


class TestGenerate:
    @pytest.mark.parametrize(("kind", "device"), [("gru", "numpy"), ("lstm", "numpy"), ("gru", "numba")])
    def test_carried_states_are_those_of_the_whole(self, kind, device):
        model = built(kind, device, "float64" if device == "numpy" else "float32")
        codes = np.random.default_rng(1).integers(0, CLASSES, 15)
        expected = whole(model, 15).predict(codes[None])[0]
        one = unrolled(model, 1, stateful=True)
        found = [one.predict(codes[None, t : t + 1])[0, 0] for t in range(15)]
        tolerance = {"rtol": 1e-9, "atol": 1e-10} if device == "numpy" else {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(found, expected, **tolerance)

    @pytest.mark.parametrize("kind", ["gru", "transformer"])
    def test_greedy_is_what_the_whole_model_finds_most_probable(self, kind):
        model = built(kind)
        prompt = [3, 1]
        length = 12 if kind == "gru" else STEPS - len(prompt)  # as far as the window sees everything
        found = generate(model, prompt, length, temperature=0.0)
        sequence = np.array([*prompt, *found])
        if kind == "gru":
            logits = whole(model, len(sequence)).predict(sequence[None])[0]
        else:
            logits = model.predict(sequence[None, :STEPS])[0]
        np.testing.assert_array_equal(logits[1:-1].argmax(axis=1), found)

    def test_a_window_moves_on(self):
        model = built("transformer")
        found = generate(model, [2], 10, temperature=0.0)
        sequence = np.array([2, *found])
        for end in (STEPS, 9):
            logits = model.predict(sequence[None, end - STEPS : end])[0, -1]
            assert logits.argmax() == sequence[end]

    @pytest.mark.parametrize("kind", ["gru", "transformer"])
    def test_one_seed_one_sequence(self, kind):
        model = built(kind)

        def drawn(seed, **options):
            return generate(model, [1], 20, seed=seed, **options).tolist()

        assert drawn(5) == drawn(5) != drawn(6)
        assert drawn(5, top_k=1) == generate(model, [1], 20, temperature=0.0).tolist()
        assert drawn(5, temperature=1e-300) == drawn(5, top_k=1)
        assert not {2, 4} & set(drawn(5, exclude=(2, 4), temperature=10.0))

    def test_frequencies(self):
        model = nf.Sequential([nf.Embedding(4, 4), nf.SimpleRNN(2, return_sequences=True), nf.Dense(4)]).build((3,))
        p = np.array([0.1, 0.2, 0.3, 0.4])
        weights = {name: np.zeros_like(w) for name, w in model.get_weights().items()}
        model.set_weights({**weights, "dense.b": np.log(p)})
        counts = np.bincount(generate(model, [0], 1500, seed=0), minlength=4)
        np.testing.assert_allclose(counts / 1500, p, atol=0.04)
        counts = np.bincount(generate(model, [0], 800, seed=0, temperature=0.5, top_k=2), minlength=4)
        np.testing.assert_allclose(counts / 800, [0, 0, 9 / 25, 16 / 25], atol=0.05)

    def test_refused(self):
        model = built("gru")
        with pytest.raises(ValueError, match="at least one"):
            generate(model, [], 3)
        with pytest.raises(ValueError, match="the prompt has 1 to 7; there are 7 classes"):
            generate(model, [1, 7], 3)
        with pytest.raises(ValueError, match="temperature"):
            generate(model, [1], 3, temperature=-1.0)
        seeing = nf.Sequential([nf.Embedding(7, 8), nf.MultiHeadAttention(2), nf.Dense(7)]).build((4,))
        with pytest.raises(ValueError, match="must not see later steps, as MultiHeadAttention"):
            generate(seeing, [1], 3)
        with pytest.raises(ValueError, match="not numbers of characters"):
            generate(nf.Sequential([nf.Dense(3)]).build((4,)), [1], 3)


class TestBits:
    @pytest.mark.parametrize("length", [1, 2, 40])
    def test_of_a_recurrent_model(self, length):
        model = built("gru")
        codes = np.random.default_rng(2).integers(0, CLASSES, 50)
        p = whole(model, 50).predict_proba(codes[None])[0]
        expected = -np.log2(p[np.arange(49), codes[1:]])
        before = 50 - length
        np.testing.assert_allclose(bits(model, codes[before:], codes[:before]), expected[-length:], rtol=1e-9)
        np.testing.assert_allclose(bits(model, codes), expected, rtol=1e-9)

    def test_windows_of_a_transformer(self):
        model = built("transformer")
        codes = np.random.default_rng(3).integers(0, CLASSES, 17)
        found = bits(model, codes)
        assert found.shape == (16,)
        stride = STEPS - 3 * STEPS // 4
        for place in range(16):  # a window's last quarter is measured, of the first one all
            start = 0 if place < STEPS else stride * ((place - STEPS) // stride + 1)
            x = np.zeros((1, STEPS), np.int64)
            seen = codes[start : place + 1]
            x[0, : len(seen)] = seen
            p = model.predict_proba(x)[0, len(seen) - 1, codes[place + 1]]
            np.testing.assert_allclose(found[place], -np.log2(p), rtol=1e-9)


class TestKneserNey:
    codes = np.random.default_rng(0).choice(6, 400, p=[0.4, 0.3, 0.15, 0.1, 0.05, 0.0])

    @pytest.mark.parametrize("history", [(), (0,), (5,), (1, 2), (0, 1, 0), (5, 5, 5), (3, 0, 1)])
    def test_probabilities_sum_to_one(self, history):
        model = KneserNey(self.codes, 6, 3)
        p = [model.probability(history[-2:], code) for code in range(6)]
        assert min(p) > 0
        np.testing.assert_allclose(sum(p), 1.0)

    def test_it_learns(self):
        codes = np.tile([0, 1, 0, 2], 100)
        costs = KneserNey(codes, 3, 3).bits(codes[:40], codes)
        assert costs.shape == (40,)
        assert costs.mean() < 0.1


def test_training_lowers_the_bits():
    text = Text.of("the cat sat on the mat. " * 60, validation=0.1)
    recipe = language.recipe_for("charnn", text).but(units=24, epochs=3, lr=0.02, steps=12, dropout=0.1, unknown=0.005)
    assert recipe.batch_size < language.RECIPES["charnn"].batch_size  # a short text has short epochs
    model, history = language.train(text, recipe, device="numpy", verbose=0)
    assert history["val_bits"][-1] < 0.2  # 3.4 bits for single characters
    assert history["val_bits"][-1] < history["val_bits"][0]
    found = bits(model, text.validation, text.train)
    np.testing.assert_allclose(found.mean(), history["val_bits"][-1], rtol=1e-5)
    written = language.sample(model, text.vocabulary, "the ", 40, seed=0)
    assert UNKNOWN not in written
    assert sum(word.strip(".") in ("the", "cat", "sat", "on", "mat") for word in written.split()) >= 5
    with pytest.raises(ValueError, match="multiple of 32"):
        language.network(language.RECIPES["transformer"].but(units=33), 5)
