"""Preprocessing: learned from the training part, repeated exactly, and turned back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnfast.datasets import Table
from nnfast.errors import CheckpointError, DataError
from nnfast.preprocessing import ClassTarget, NumberTarget, Preprocessor
from nnfast.preprocessing.inputs import MAX_CATEGORIES

Y = np.array([0, 1, 0, 1])


def text(*values: str | None) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def table(**columns: np.ndarray) -> Table:
    return Table(columns)


def through_json(p: Preprocessor) -> Preprocessor:
    return Preprocessor.from_json(json.loads(json.dumps(p.to_json(), allow_nan=False)))


MIXED = table(
    age=text("1", "3", None, "8"),
    town=text("Rome", "Oslo", None, "Rome"),
    size=np.array([0.5, np.nan, 2.5, 3.0]),
    same=np.array([7.0, 7.0, 7.0, 7.0]),
    empty=text(None, None, None, None),
)


class TestTables:
    def test_values(self):
        out = Preprocessor.fit(MIXED, Y, "classification").transform(MIXED, np.float64)
        known = np.array([1.0, 3.0, 8.0])
        age = (np.array([1.0, 3.0, 3.0, 8.0]) - known.mean()) / known.std()  # missing: the median, 3
        town = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]  # Oslo, Rome, missing, anything else
        known = np.array([0.5, 2.5, 3.0])
        size = (np.array([0.5, 2.5, 2.5, 3.0]) - known.mean()) / known.std()
        expected = np.c_[age, town, size, np.zeros(4), np.zeros(4)]
        np.testing.assert_allclose(out, expected, rtol=1e-14)

    def test_only_the_training_part_is_looked_at(self):
        p = Preprocessor.fit(MIXED.take(np.array([0, 1])), Y[:2], "classification")
        later = table(
            age=text("100", None),
            town=text("Paris", None),
            size=np.array([np.nan, -1.0]),
            same=np.array([8.0, 7.0]),
            empty=text("1", None),
        )
        out = p.transform(later, np.float64)
        np.testing.assert_allclose(out[0], [98, 0, 0, 0, 1, 0, 1, 1])  # age: mean 2, std 1; Paris: anything else
        np.testing.assert_allclose(out[1], [0, 0, 0, 1, 0, -1.5, 0, 0])

    def test_order_of_columns_does_not_matter(self):
        p = Preprocessor.fit(MIXED, Y, "classification")
        turned = Table(dict(reversed(MIXED.columns.items())))
        np.testing.assert_array_equal(p.transform(turned), p.transform(MIXED))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.without({"town"}), "column 'town' is missing.*age, town, size"),
            (lambda t: t.without({"town", "age"}), "columns 'age', 'town' are missing"),
            (lambda t: Table({**t.columns, "new": t.columns["age"]}), "column 'new' is unknown"),
            (lambda t: Table({**t.columns, "age": text("1", "x", None, "y")}), "'age' held numbers.*now 'x'"),
            (lambda t: Table({**t.columns, "age": text("1", "inf", "2", "3")}), "'age' has infinite values"),
            (lambda t: np.zeros((4, 5)), "trained on a table.*age, town"),
        ],
    )
    def test_wrong_columns(self, change, message):
        p = Preprocessor.fit(MIXED, Y, "classification")
        with pytest.raises(DataError, match=message):
            p.transform(change(MIXED))

    def test_ignored_columns(self):
        p = Preprocessor.fit(MIXED, Y, "classification")
        wide = Table({**MIXED.columns, "label": text("a", "b", "a", "b")})
        np.testing.assert_array_equal(p.transform(wide, ignore={"label"}), p.transform(MIXED))

    def test_rare_categories_share_a_place(self):
        values = [f"common{i:03}" for i in range(MAX_CATEGORIES) for _ in range(2)] + [f"rare{i}" for i in range(50)]
        many = table(name=text(*values))
        out = Preprocessor.fit(many, np.arange(len(values)) % 2, "classification").transform(many)
        assert out.shape == (len(values), MAX_CATEGORIES + 2)
        assert (out.sum(axis=1) == 1).all()
        assert out[-50:, -1].all()
        assert not out[:-50, -1].any()

    def test_numbers_as_categories(self):
        codes = table(code=np.array([10.0, 20.0, 10.0, np.nan]))
        p = Preprocessor.fit(codes, Y, "classification", categorical=["code"])
        expected = [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
        np.testing.assert_array_equal(p.transform(codes), expected)
        # a text file has the same codes as text
        np.testing.assert_array_equal(p.transform(table(code=text("10", "20", "10", None))), expected)
        with pytest.raises(DataError, match="no column 'colour'"):
            Preprocessor.fit(codes, Y, "classification", categorical=["colour"])


class TestArrays:
    @pytest.mark.parametrize("dtype", ["f8", "f4", ">f4", "i2", "u1", "?"])
    @pytest.mark.parametrize("shape", [(50, 3), (50, 2, 2)])
    def test_standardised(self, dtype, shape):
        X = (np.random.default_rng(0).uniform(0, 9, shape) > 4 if dtype == "?" else
             np.random.default_rng(0).uniform(0, 99, shape)).astype(dtype)  # fmt: skip
        before = X.copy()
        out = Preprocessor.fit(X, np.arange(50) % 2, "classification").transform(X, np.float64)
        np.testing.assert_allclose(out, (X.astype("f8") - X.astype("f8").mean(0)) / X.astype("f8").std(0), atol=1e-12)
        np.testing.assert_array_equal(X, before)

    def test_missing_is_the_training_median(self):
        X = np.array([[1.0], [2.0], [6.0], [np.nan]])
        out = Preprocessor.fit(X, Y, "classification").transform(X, np.float64)
        assert out[3] == out[1]

    def test_a_table_of_numbers_for_a_model_of_arrays(self):
        X = np.random.default_rng(0).normal(size=(6, 2))
        p = Preprocessor.fit(X, np.arange(6) % 2, "classification")
        points = table(x0=text(*map(repr, X[:, 0].tolist())), x1=X[:, 1])
        np.testing.assert_array_equal(p.transform(points), p.transform(X))
        with pytest.raises(DataError, match=r"\(2,\).*\(1,\)"):
            p.transform(points.without({"x1"}))
        with pytest.raises(DataError, match="'x1' has text"):
            p.transform(table(x0=X[:, 0], x1=text(*"abcdef")))

    @pytest.mark.parametrize(
        ("X", "message"),
        [
            (np.array([[1.0], [np.inf], [2.0], [3.0]]), "infinite"),
            (np.array([[1e308], [-1e308], [1e308], [-1e308]]), "too large"),
            (np.array([["a"], ["b"], ["c"], ["d"]]), "must be numbers"),
            (np.zeros((0, 3)), "no rows"),
        ],
    )
    def test_wrong_values(self, X, message):
        with pytest.raises(DataError, match=message):
            Preprocessor.fit(X, Y[: len(X)], "classification")

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_images(self, dtype):
        X = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
        out = Preprocessor.fit(X, Y, "classification", pixel_max=255).transform(X, dtype)
        assert out.dtype == dtype
        assert out.shape == X.shape
        np.testing.assert_allclose(out, X / 255, rtol=1e-6 if dtype == np.float32 else 0)
        with pytest.raises(DataError, match=r"\(8, 8\).*\(4, 4\)"):
            Preprocessor.fit(X, Y, "classification", pixel_max=255).transform(X[:, :4, :4])


class TestClasses:
    @pytest.mark.parametrize(
        "labels", [np.array([3, -1, 3, 7]), text("b", "a", "b", "ü"), np.array([True, False, True, True])]
    )
    def test_there_and_back(self, labels):
        target = ClassTarget.fit(labels)
        codes = target.encode(labels)
        assert codes.dtype == np.int64
        assert sorted(set(codes.tolist())) == list(range(len(target.classes)))
        assert target.decode(codes).tolist() == labels.tolist()

    def test_names(self):
        names = ("zero", "one", "two")
        assert ClassTarget.fit(np.array([2, 0]), names).names == ("zero", "two")
        assert ClassTarget.fit(np.array([2, 5]), names).names == ("2", "5")

    def test_classes_missing_from_the_training_part(self):
        p = Preprocessor.fit(np.zeros((2, 1)), text("a", "b"), "classification", labels=text("a", "b", "c"))
        assert p.target.encode(text("c")).tolist() == [2]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.array([1, 1]), "only one class, 1"),
            (np.array([0.5, 1.5]), "whole numbers or text"),
            (np.zeros((3, 2), int), r"\(3, 2\)"),
        ],
    )
    def test_not_labels(self, labels, message):
        with pytest.raises(DataError, match=message):
            ClassTarget.fit(labels)

    def test_unknown_label(self):
        with pytest.raises(DataError, match=r"label 'c' is none of.*a, b"):
            ClassTarget.fit(text("a", "b")).encode(text("a", "c"))


class TestNumbers:
    @pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 3)])
    def test_there_and_back(self, shape):
        y = np.random.default_rng(0).normal(50, 9, shape)
        target = NumberTarget.fit(y)
        codes = target.encode(y)
        assert codes.ndim == 2
        np.testing.assert_allclose(codes.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(codes.std(0), 1)
        np.testing.assert_allclose(target.decode(codes), y[:, 0] if shape == (20, 1) else y, rtol=1e-12)

    def test_rates(self):
        target = NumberTarget.fit(np.array([0, 3, 5]), link="log")
        assert target.encode(np.array([0, 3, 5])).tolist() == [[0], [3], [5]]
        with pytest.raises(DataError, match="must not be negative"):
            NumberTarget.fit(np.array([1.0, -1.0]), link="log")

    def test_text_is_refused(self):
        with pytest.raises(DataError, match="numbers are needed"):
            NumberTarget.fit(text("a", "b"))


class TestJson:
    FITS = (
        Preprocessor.fit(MIXED, text("a", "b", "a", "c"), "classification"),
        Preprocessor.fit(MIXED, np.array([0.1, 0.2, 0.3, 1 / 3]), "regression"),
        Preprocessor.fit(np.random.default_rng(0).normal(size=(4, 2, 3)), Y, "classification"),
        Preprocessor.fit(np.zeros((4, 2, 3), np.uint8), Y, "classification", pixel_max=255, class_names=("no", "yes")),
    )

    @pytest.mark.parametrize("p", FITS, ids=lambda p: f"{p.inputs.kind}-{p.target.kind}")
    def test_exact(self, p):
        assert through_json(p) == p

    @given(hnp.arrays(np.float64, (7, 2), elements=st.floats(-1e30, 1e30)))
    @settings(max_examples=30, deadline=None)
    def test_transforms_are_bit_identical(self, X):
        p = Preprocessor.fit(X, X[:, 0], "regression")
        q = through_json(p)
        np.testing.assert_array_equal(p.transform(X), q.transform(X))
        np.testing.assert_array_equal(p.target.decode(X[:, :1]), q.target.decode(X[:, :1]))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda d: {**d, "version": 2}, "version 2 is not known"),
            (lambda d: [], "version 'list'"),
            (lambda d: {k: v for k, v in d.items() if k != "inputs"}, "damaged.*inputs"),
            (lambda d: {**d, "target": {"kind": "wishes"}}, "damaged.*wishes"),
            (lambda d: {**d, "target": {**d["target"], "extra": 1}}, "damaged.*extra"),
            (lambda d: {**d, "inputs": {**d["inputs"], "columns": 3}}, "damaged"),
        ],
    )
    def test_damage(self, damage, message):
        with pytest.raises(CheckpointError, match=message):
            Preprocessor.from_json(damage(self.FITS[0].to_json()))
