"""Pictures: what is drawn, not how it looks; files, errors, and no trace in pyplot."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import nnfast as nf
from nnfast import activations, plotting
from nnfast.plotting.functions import sample
from nnfast.plotting.surface import filter_normalised, principal_directions

pytest.importorskip("matplotlib")


def blobs(classes=3, n=40):
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * np.arange(classes) / classes
    centres = 2.0 * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    y = np.repeat(np.arange(classes), n)
    return (centres[y] + 0.4 * rng.standard_normal((len(y), 2))).astype(np.float32), y


@pytest.fixture(scope="module")
def trained():
    """A small trained model, its data and the path of its weights."""
    X, y = blobs()
    model = nf.Sequential([nf.Dense(8, "tanh"), nf.Dropout(0.1), nf.LayerNorm(), nf.Dense(3)])
    path = plotting.WeightPath()
    history = model.fit(
        X,
        y,
        loss="cross_entropy",
        optimizer=nf.Adam(0.02),
        epochs=12,
        batch_size=16,
        metrics=["accuracy"],
        validation_split=0.2,
        device="numpy",
        seed=0,
        verbose=0,
        callbacks=[path],
    )
    return model, X, y, path, history


def texts(figure):
    """All text of a figure."""
    import matplotlib.text

    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def test_every_picture_is_saved_whole(trained, tmp_path):
    model, X, y, weights, history = trained
    pictures = {
        "history": lambda path: plotting.history(history, path=path),
        "activation": lambda path: plotting.activation("gelu", path=path),
        "network": lambda path: plotting.network(model, path=path),
        "boundary": lambda path: plotting.decision_boundary(model, X, y, path=path, resolution=20),
        "matrix": lambda path: plotting.confusion_matrix(y, model.predict_classes(X), path=path),
        "map": lambda path: plotting.loss_surface(model, X, y, path_of_weights=weights, resolution=4, path=path),
        "relief": lambda path: plotting.loss_surface(model, X, y, resolution=4, kind="3d", path=path),
    }
    for name, draw in pictures.items():
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for ending, start in (("svg", b"<?xml"), ("PDF", b"%PDF")):
        pictures["network"](str(tmp_path / f"network.{ending}"))
        assert (tmp_path / f"network.{ending}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == len(pictures) + 2, "something was left behind"


def test_bad_paths(tmp_path):
    curves = {"loss": [2.0, 1.0]}
    with pytest.raises(ValueError, match=r"picture\.xyz'.*must be one of.*png"):
        plotting.history(curves, path=tmp_path / "picture.xyz")
    with pytest.raises(ValueError, match="must be one of"):
        plotting.history(curves, path=tmp_path / "picture")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        plotting.history(curves, path=tmp_path / "missing" / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_pyplot_and_the_backend_are_left_alone():
    code = """
import sys, nnfast.plotting as p
assert "matplotlib" not in sys.modules, "importing the module loads matplotlib"
p.history({"loss": [1.0, 0.5]})
p.activation("relu")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"nnfast\[plot\]"):
        plotting.history({"loss": [1.0]})


# ---- curves ----------------------------------------------------------------------------------------------
def test_history_panels(trained):
    figure = plotting.history(trained[-1])
    assert [ax.get_title() for ax in figure.axes] == ["loss", "accuracy", "learning rate"]
    training, validation = figure.axes[0].get_lines()
    np.testing.assert_array_equal(training.get_ydata(), trained[-1]["loss"])
    np.testing.assert_array_equal(validation.get_ydata(), trained[-1]["val_loss"])
    np.testing.assert_array_equal(training.get_xdata(), trained[-1].epochs)
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["training", "validation"]
    assert all(ax.get_xlabel() == "epoch" for ax in figure.axes)


def test_history_of_a_plain_mapping():
    figure = plotting.history({"rmse": [3.0, 2.0], "loss": [9.0, np.nan], "seconds": [1.0, 1.0], "val_f1": [0.1, 0.2]})
    assert [ax.get_title() for ax in figure.axes] == ["loss", "root mean squared error", "F1"]
    np.testing.assert_array_equal(figure.axes[1].get_lines()[0].get_xdata(), [1, 2])


@pytest.mark.parametrize(("values", "scale"), [([1.0, 1e-3], "log"), ([1.0, 0.5], "linear"), ([1.0, 0.0], "linear")])
def test_history_scale(values, scale):
    assert plotting.history({"loss": values}).axes[0].get_yscale() == scale


@pytest.mark.parametrize("history", [{}, {"loss": []}, {"loss": [np.nan]}])
def test_history_of_nothing(history):
    with pytest.raises(ValueError, match="no curve with a finite value"):
        plotting.history(history)


# ---- activations -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [n for n in activations.names() if n != "softmax"])
def test_drawn_slope_is_the_derivative_of_the_drawn_curve(name):
    z, value, slope = sample(activations.get(name), -5.0, 5.0)
    assert np.isnan(z).sum() == len(activations.get(name).kinks)
    inner = (value[2:] - value[:-2]) / (z[2:] - z[:-2])
    # Kinked pieces are cut apart by NaN, so no difference reaches over one; their ends are nudged inwards
    good = np.isfinite(inner) & (np.abs(z[2:] - z[1:-1] - (z[1:-1] - z[:-2])) < 1e-10)
    assert good.sum() > 350
    np.testing.assert_allclose(slope[1:-1][good], inner[good], atol=0.03 if name == "softsign" else 2e-3)


def test_activation_panels():
    assert len(plotting.activation().axes) == len(activations.names()) - 1
    figure = plotting.activation(["relu", "leaky_relu(0.3)"], limits=(-1, 2))
    assert [ax.get_title() for ax in figure.axes] == ["relu", "leaky_relu(0.3)"]
    assert figure.axes[0].get_xlim() == (-1.0, 2.0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"names": "softmax"}, "whole row"),
        ({"names": "rely"}, "unknown activation"),
        ({"names": []}, "empty"),
        ({"names": "relu", "limits": (1, 1)}, "increasing"),
    ],
)
def test_bad_activation(arguments, match):
    with pytest.raises(ValueError, match=match):
        plotting.activation(**arguments)


# ---- the network -----------------------------------------------------------------------------------------
def drawn_network(model, **options):
    """Units per column, lines between columns, text."""
    ax = plotting.network(model, **options).axes[0]
    scatters = [c for c in ax.collections if hasattr(c, "get_offsets") and c.get_zorder() == 3]
    units = [len(c.get_offsets()) for c in scatters if c.get_sizes()[0] > 50]
    lines = [len(c.get_segments()) for c in ax.collections if hasattr(c, "get_segments")]
    return units, lines, "\n".join([*(t.get_text() for t in ax.texts), ax.get_title()])


def test_network(trained):
    units, lines, text = drawn_network(trained[0])
    assert (units, lines) == ([2, 8, 3], [16, 24])
    for part in ("input", "tanh", "dropout 0.1", "layer norm", "67 parameters"):
        assert part in text


def test_wide_network_is_thinned_out():
    model = nf.Sequential([nf.Flatten(), nf.Dense(256, "relu"), nf.Dense(10)])
    model.build((28, 28))
    units, lines, text = drawn_network(model, max_units=6)
    assert (units, lines) == ([6, 6, 6], [36, 36])
    for part in ("784\nflatten", "256\nrelu", "203,530 parameters"):
        assert part in text


def test_network_that_is_not_built():
    units, _, text = drawn_network(nf.Sequential([nf.Dense(4), nf.Dense(1, "sigmoid")]))
    assert units == [2, 4, 1]
    assert "inputs" in text
    assert drawn_network(nf.Sequential([nf.Dense(4, in_features=3)]))[0] == [3, 4]


def test_network_from_scratch():
    units, lines, text = drawn_network(nf.NeuralNetwork(2, 4, 1, device="numpy"))
    assert (units, lines) == ([2, 4, 1], [8, 4])
    assert "17 parameters" in text


def test_bad_network():
    with pytest.raises(TypeError, match="int"):
        plotting.network(3)
    with pytest.raises(ValueError, match="at least 2"):
        plotting.network(nf.NeuralNetwork(2, 4, 1, device="numpy"), max_units=1)


# ---- the decision boundary -------------------------------------------------------------------------------
def image_of(figure):
    return figure.axes[0].images[0].get_array()


@pytest.mark.parametrize("form", ["(n, 2)", "(n,)", "(n, 1)", "labels"])
def test_boundary_is_where_the_model_changes_its_mind(form):
    def model(points):
        p = 1.0 / (1.0 + np.exp(-20.0 * (points[:, 0] - 0.25)))
        return {"(n, 2)": np.stack((1 - p, p), 1), "(n,)": p, "(n, 1)": p[:, None], "labels": (p > 0.5).astype(int)}[
            form
        ]

    X = np.array([[0.0, 0.0], [1.0, 1.0]])
    figure = plotting.decision_boundary(model, X, [0, 1], resolution=81)
    ax = figure.axes[0]
    image = image_of(figure)
    left, right = image[40, 2], image[40, -3]
    assert left[2] > left[0], "class 0 is blue"
    assert right[0] > right[2], "class 1 is red"
    contour = [c for c in ax.collections if type(c).__name__.endswith("ContourSet")]
    assert len(contour) == 1
    along = np.concatenate([path.vertices for path in contour[0].get_paths()])
    np.testing.assert_allclose(along[:, 0], 0.25, atol=0.02)
    assert sorted(len(c.get_offsets()) for c in ax.collections if c not in contour) == [1, 1]


def test_boundary_of_models(trained):
    model, X, y, *_ = trained
    figure = plotting.decision_boundary(model, X, y, labels=["a", "b", "c"], resolution=30)
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["a", "b", "c"]
    assert np.array_equal(image_of(figure), image_of(plotting.decision_boundary(model, X, np.eye(3)[y], resolution=30)))
    xor = nf.NeuralNetwork(2, 4, 1, device="numpy", seed=0)
    plotting.decision_boundary(xor, [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0], resolution=10)


def test_boundary_of_scores_uses_the_models_own_classes():
    class Hinge:
        def predict_proba(self, points):
            return points[:, 0] - 0.0  # scores around 0

        def predict_classes(self, points):
            return (points[:, 0] > 0).astype(int)

    X = np.array([[-1.0, -1.0], [1.0, 1.0]])
    image = image_of(plotting.decision_boundary(Hinge(), X, [0, 1], resolution=41))
    assert image[20, 22, 0] > image[20, 22, 2]
    assert image[20, 18, 2] > image[20, 18, 0]


@pytest.mark.parametrize(
    ("model", "X", "y", "options", "match"),
    [
        (len, np.zeros((4, 3)), np.zeros(4), {}, r"\(n, 2\) with some rows, got \(4, 3\)"),
        (len, np.zeros((0, 2)), np.zeros(0), {}, "some rows"),
        (len, np.full((4, 2), np.nan), np.zeros(4), {}, "finite"),
        (len, np.zeros((4, 2)), np.zeros(3), {}, "4 rows and y has 3"),
        (len, np.zeros((4, 2)), np.full(4, 0.5), {}, "numbers of the classes"),
        (lambda x: np.zeros((3, 3)), np.zeros((4, 2)), np.zeros(4), {}, r"gave shape \(3, 3\)"),
        (lambda x: np.ones((len(x), 2)), np.zeros((4, 2)), [0, 1, 2, 0], {}, "class 2, but the model gives 2"),
        (lambda x: np.full(len(x), np.nan), np.zeros((4, 2)), np.zeros(4), {}, "not finite"),
        (lambda x: np.zeros(len(x)), np.zeros((4, 2)), np.zeros(4), {"labels": ["a"]}, "2 classes and 1 labels"),
        (lambda x: np.zeros(len(x)), np.zeros((4, 2)), np.zeros(4), {"resolution": 1}, "at least 2"),
    ],
)
def test_bad_boundary(model, X, y, options, match):
    with pytest.raises(ValueError, match=match):
        plotting.decision_boundary(model, X, y, **options)


def test_boundary_of_no_model():
    with pytest.raises(TypeError, match="predict_proba"):
        plotting.decision_boundary(3, np.zeros((4, 2)), np.zeros(4))


# ---- the confusion matrix --------------------------------------------------------------------------------
def test_confusion_matrix_numbers():
    y, p = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]
    figure = plotting.confusion_matrix(y, p, ["cat", "dog", "fox"])
    numbers = [t.get_text() for t in figure.axes[0].texts]
    assert numbers == ["2", "1", "0", "0", "1", "1", "0", "0", "1"]
    np.testing.assert_allclose(image_of(figure)[0], [2 / 3, 1 / 3, 0])
    assert {"cat", "dog", "fox", "true class", "predicted class", "accuracy 66.7%"} <= set(texts(figure))
    probabilities = np.eye(3)[p]
    assert [t.get_text() for t in plotting.confusion_matrix(y, probabilities).axes[0].texts] == numbers
    assert [t.get_text() for t in plotting.confusion_matrix(y, np.array(p, float)).axes[0].texts] == numbers


def test_confusion_matrix_with_many_classes_and_with_weights():
    y = np.arange(50)
    assert len(plotting.confusion_matrix(y, y).axes[0].texts) == 0
    figure = plotting.confusion_matrix([0, 1], np.array([0, 0]), sample_weight=[0.25, 2.0])
    assert [t.get_text() for t in figure.axes[0].texts] == ["0.25", "0", "2", "0"]


def test_bad_confusion_matrix():
    with pytest.raises(ValueError, match="3 classes and 2 labels"):
        plotting.confusion_matrix([0, 1, 2], np.eye(3), ["a", "b"])
    with pytest.raises(ValueError, match="3 rows and y_pred 2"):
        plotting.confusion_matrix([0, 1, 2], np.array([0, 1]))


# ---- the loss surface ------------------------------------------------------------------------------------
def test_path_is_recorded(trained):
    model, _, _, path, _ = trained
    assert path.epochs == list(range(13))
    assert path.weights.shape == (13, model.get_flat_weights().size)
    np.testing.assert_array_equal(path.weights[-1], model.get_flat_weights())
    assert not np.array_equal(path.weights[0], path.weights[1])


class Walker:
    """Stands in for a model whose weights are all equal to the number of the epoch."""

    def __init__(self):
        self.now = 0.0

    def get_flat_weights(self):
        return np.full(3, self.now)


@pytest.mark.parametrize(("epochs", "every", "most"), [(10, 1, 200), (100, 1, 8), (23, 5, 200), (1000, 3, 5)])
def test_path_stays_bounded(epochs, every, most):
    path, walker = plotting.WeightPath(every, max_points=most), Walker()
    path.model = walker
    path.on_train_begin(walker)
    for epoch in range(1, epochs + 1):
        walker.now = float(epoch)
        path.on_epoch_end(epoch, {})
    path.on_train_end(walker)
    assert 2 <= len(path.weights) <= most
    np.testing.assert_array_equal(path.weights[:-1, 0], path.epochs[:-1])
    assert path.weights[0, 0] == 0.0
    assert path.weights[-1, 0] == epochs
    assert path.epochs[-1] == epochs


def test_principal_directions_of_a_plane_curve():
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.standard_normal((40, 2)))[0].T
    t = np.linspace(0, 1, 30)
    walked = np.stack((5 * t, t * (1 - t)), axis=1) @ basis + rng.standard_normal(40)
    first, second, shares = principal_directions(walked, [(40, 1)], rng)
    both = np.stack((first, second))
    np.testing.assert_allclose(both @ both.T, np.eye(2), atol=1e-12)
    steps = walked - walked[-1]
    np.testing.assert_allclose((steps @ both.T) @ both, steps, atol=1e-8)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] > 0.9
    assert (walked[-1] - walked[0]) @ first > 0


def test_principal_directions_of_a_line_and_of_a_point():
    rng = np.random.default_rng(4)
    line = np.linspace(0, 1, 5)[:, None] * np.arange(1.0, 7.0)
    first, second, shares = principal_directions(line, [(3, 2)], rng)
    assert abs(first @ second) < 1e-12
    assert np.linalg.norm(second) == pytest.approx(1.0)
    assert shares == (pytest.approx(1.0), 0.0)
    with pytest.raises(ValueError, match="did not move"):
        principal_directions(np.ones((4, 6)), [(3, 2)], rng)


def test_filter_normalised_direction():
    rng = np.random.default_rng(5)
    weights = rng.standard_normal(3 * 4 + 4 + 4 * 2)
    direction = filter_normalised(weights, [(3, 4), (4,), (4, 2)], rng)
    for part in (np.s_[:12], np.s_[16:]):
        kernel = weights[part].reshape(-1, 4 if part.stop == 12 else 2)
        drawn = direction[part].reshape(kernel.shape)
        np.testing.assert_allclose(np.linalg.norm(drawn, axis=0), np.linalg.norm(kernel, axis=0), rtol=1e-12)
    assert not direction[12:16].any()


def test_surface_is_the_loss_on_the_plane():
    rng = np.random.default_rng(6)
    walked = np.cumsum(rng.standard_normal((9, 5)), axis=0)
    seen = []

    def loss_at(weights):
        seen.append(weights)
        return float(np.sum((weights - walked[-1]) ** 2))

    figure = plotting.loss_surface(None, path_of_weights=walked, loss_at=loss_at, resolution=5)
    assert len(seen) == 25
    first, second, _ = principal_directions(walked, [(5, 1)], rng)
    ax = figure.axes[0]
    ends = np.array([(ax.get_xlim()[i], ax.get_ylim()[i]) for i in (0, 1)])
    expected = walked[-1] + ends[0] @ np.stack((first, second))
    np.testing.assert_allclose(seen[0], expected, atol=1e-9)
    line = next(line for line in ax.get_lines() if line.get_label() == "path of training")
    np.testing.assert_allclose(line.get_xdata(), (walked - walked[-1]) @ first, atol=1e-9)
    assert any("%" in text for text in (ax.get_xlabel(), ax.get_ylabel()))


@pytest.mark.parametrize("kind", ["contour", "3d"])
@pytest.mark.parametrize("with_path", [False, True])
def test_surface_of_a_model_leaves_its_weights_alone(trained, kind, with_path):
    model, X, y, path, _ = trained
    before = model.get_flat_weights().copy()
    given = path if with_path else None
    figure = plotting.loss_surface(model, X, y, path_of_weights=given, kind=kind, resolution=4, max_rows=50)
    np.testing.assert_array_equal(model.get_flat_weights(), before)
    assert "trained weights" in texts(figure)
    assert ("start" in texts(figure)) == with_path


def test_surface_restores_the_weights_after_an_error(trained):
    model, X, y, *_ = trained
    before = model.get_flat_weights().copy()

    def fails(weights):
        model.set_flat_weights(weights)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        plotting.loss_surface(model, X, y, loss_at=fails, resolution=4)
    np.testing.assert_array_equal(model.get_flat_weights(), before)


def test_surface_with_holes():
    walked = np.array([[1.0, 1.0], [0.5, 0.2], [0.0, 0.0]])
    figure = plotting.loss_surface(
        None, path_of_weights=walked, loss_at=lambda w: np.nan if w[0] > 0.5 else float(w @ w), resolution=7
    )
    assert "loss" in texts(figure)
    with pytest.raises(ValueError, match="finite nowhere"):
        plotting.loss_surface(None, path_of_weights=walked, loss_at=lambda w: np.inf, resolution=4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "map"}, "'contour' or '3d', got 'map'"),
        ({"resolution": 2}, "resolution >= 3"),
        ({"X": None}, "needs X and y"),
        ({"X": np.zeros((3, 2))}, "3 rows and y has 120"),
        ({"path_of_weights": np.zeros((1, 67))}, "2 points or more"),
        ({"path_of_weights": np.ones((3, 5)) * np.arange(3)[:, None]}, "5 weights at each point, the model 67"),
        ({"path_of_weights": np.full((3, 67), np.nan)}, "not finite"),
        ({"path_of_weights": plotting.WeightPath()}, "no weights were recorded"),
        ({"model": None}, "without a model"),
    ],
)
def test_bad_surface(trained, options, match):
    model, X, y, *_ = trained
    arguments = {"model": model, "X": X, "y": y} | options
    with pytest.raises(ValueError, match=match):
        plotting.loss_surface(**arguments)
