"""``nnfast evaluate``: how well a saved model predicts known targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import check_picture, device_option, echo, emit_json, output_options, print_table, version


@click.command("evaluate", short_help="Measure a saved model on a data set.")
@click.argument("model")
@click.argument("data")
@click.option("--target", metavar="COLUMN", help="Column of the true values; default: as in training.")
@click.option("--plot", metavar="FILE", help="Draw the confusion matrix, for classification.")
@device_option
@output_options
def command(model: str, data: str, target: str | None, plot: str | None, device: str | None, as_json: bool) -> None:
    """Compare the predictions of MODEL, a file that 'nnfast train' wrote, with the targets in DATA.

    Shown are the accuracy and, per class, precision, recall and F1; or, for regression, the mean absolute
    error, the root mean squared error and R2, in the units of the target. For a model of text DATA is a text
    file, or a folder of them, and the bits are shown that a character of it costs.
    """
    from ..preprocessing import ClassTarget
    from .bundle import Bundle, device_line, load_model
    from .text_bundle import is_text

    picture = None if plot is None else Path(plot)
    if picture is not None:
        check_picture(picture)
    used, why = device_line(device)
    loaded = load_model(model, used)
    if is_text(loaded):
        if target is not None or plot is not None:
            raise ValueError(f"--{'plot' if target is None else 'target'} does not apply to a model of text")
        _text(loaded, model, data, used, why, as_json)
        return
    bundle = Bundle.of(loaded, model)
    target_encoder = bundle.preprocessor.target
    if picture is not None and not isinstance(target_encoder, ClassTarget):
        raise ValueError("--plot draws a confusion matrix, which is for classification; this model predicts numbers")
    inputs, y = bundle.read(data, target=target, need_target=True)
    assert y is not None  # load() has made sure
    x = bundle.transform(inputs)
    predicted = bundle.predict(x)
    metrics, per_class = bundle.metrics(y, predicted), bundle.per_class(y, predicted)
    echo(f"{data}: {len(x)} rows, device {used} ({why})")
    print_table([[name, f"{value:.4f}"] for name, value in metrics.items()])
    if per_class:
        shown = [[row["class"], *(f"{row[k]:.4f}" for k in ("precision", "recall", "f1")), str(row["rows"])]
                 for row in per_class]  # fmt: skip
        print_table(shown, header=["class", "precision", "recall", "F1", "rows"])
    if picture is not None and isinstance(target_encoder, ClassTarget):
        from .. import plotting
        from ..files import replacing

        with replacing(picture) as temporary:
            plotting.confusion_matrix(
                target_encoder.encode(y), target_encoder.encode(predicted), target_encoder.names, temporary
            )
        echo(f"saved the confusion matrix to {picture}")
    if as_json:
        emit_json(
            {
                "command": "evaluate",
                "version": version(),
                "model": model,
                "data": data,
                "task": bundle.task,
                "rows": len(x),
                "device": used,
                "metrics": metrics,
                "classes": per_class,
                "plot": None if picture is None else str(picture),
            }
        )


def _text(loaded: Any, model: str, data: str, used: str, why: str, as_json: bool) -> None:
    """Bits per character of a text."""
    from ..datasets import read_text
    from .text_bundle import TextBundle

    bundle = TextBundle.of(loaded, model)
    metrics = bundle.metrics(read_text(data)[0])
    echo(f"{data}: {metrics['characters']:,} characters, {metrics['unknown']} unknown, device {used} ({why})")
    print_table([["bits per character", f"{metrics['bits_per_character']:.4f}"]])
    if as_json:
        names = {"command": "evaluate", "version": version(), "model": model, "data": data, "task": "text"}
        emit_json({**names, "device": used, "metrics": metrics})
