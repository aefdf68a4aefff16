"""``nnfast train``: from a data set to a saved model and a picture of its curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import check_picture, check_writable, device_option, echo, emit_json, output_options, print_table, version

if TYPE_CHECKING:
    from .recipe import Recipe


@click.command("train", short_help="Train a model on a data set and save it.")
@click.argument("data", nargs=-1, required=True, metavar="DATA")
@click.option(
    "--model",
    "kind",
    type=click.Choice(["mlp", "cnn", "charnn", "transformer"]),
    default="mlp",
    show_default=True,
    help="cnn is for images; charnn (a recurrent network) and transformer learn to write text.",
)
@click.option("--target", metavar="COLUMN", help="Column to predict, by name or position.")
@click.option("--task", type=click.Choice(["classification", "regression"]), help="Default: by the target's values.")
@click.option("--drop", metavar="COLUMN", multiple=True, help="Column to leave out; may be given several times.")
@click.option("--categorical", metavar="COLUMN", multiple=True, help="Column of numbers that are categories.")
@click.option(
    "--layers",
    metavar="N,N,...",
    help="Widths of the hidden layers, such as 256,128, or none; channels of convolutions; for text how many layers.",
)
@click.option("--units", type=click.IntRange(1), metavar="N", help="Width behind convolutions, or of layers for text.")
@click.option("--steps", type=click.IntRange(2), metavar="N", help="Characters of a window, for text.")
@click.option("--activation", metavar="NAME", help="Of the hidden layers: relu, tanh, gelu, silu, ...")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="Rate after hidden layers.")
@click.option("--loss", metavar="NAME", help="Default: cross_entropy, or mean_squared_error for regression.")
@click.option("--optimizer", metavar="NAME", help="adam, adamw, sgd, rmsprop, lion, ...")
@click.option("--lr", type=click.FloatRange(0), metavar="RATE", help="Learning rate.")
@click.option("--schedule", metavar="NAME", help="constant, step, exponential, cosine, warm_up, one_cycle, ...")
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="Number of passes over the training rows.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Rows per step.")
@click.option("--val-split", type=click.FloatRange(0, 1, max_open=True), metavar="SHARE", help="Rows held back.")
@click.option("--patience", type=click.IntRange(0), metavar="N", help="Stop after N epochs without progress; 0: never.")
@device_option
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bf16", "fp16", "float64"]),
    default="float32",
    show_default=True,
    help="Of weights and computation; tf32, bf16 and fp16 round on a GPU.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="For weights, split and shuffle.")
@click.option("--out", metavar="FILE", help="Model file; default: NAME.safetensors in this folder.")
@click.option("--plot", metavar="FILE", help="Picture of the curves; default: NAME.png in this folder.")
@click.option("--checkpoint", metavar="FILE", help="Keep all that the training needs to go on in this file.")
@click.option("--every-steps", type=click.IntRange(1), metavar="N", help="Steps between two checkpoints.")
@click.option(
    "--every-minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Minutes between two checkpoints; 5 where neither is given.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, with the other options as they were.")
@click.option("--no-save", is_flag=True, help="Write only the files that --out and --plot name.")
@click.option("--quiet", "-q", is_flag=True, help="Do not show the epochs.")
@output_options
def command(data: tuple[str, ...], kind: str, as_json: bool, **options: Any) -> None:
    """Train a network on DATA and save it.

    DATA is xor, spiral, digits or fashion-mnist; a folder of IDX files; or a .csv, .tsv, .parquet, .npy or
    .npz file. With --model charnn or transformer it is one or more text files or folders of them. Options that
    are not given have defaults that suit the data.
    """
    if kind in ("charnn", "transformer"):
        from .train_text import run as run_text

        result = run_text(data, kind, **options)
    elif len(data) > 1:
        raise click.UsageError(f"--model {kind} takes one data set, got {len(data)}: {', '.join(data)}")
    else:
        result = run(data[0], kind, **options)
    if as_json:
        emit_json(result)


def run(
    source: str,
    kind: str = "mlp",
    *,
    target: str | None,
    task: Any,
    drop: tuple[str, ...],
    categorical: tuple[str, ...],
    layers: str | None,
    units: int | None,
    steps: int | None,
    loss: str | None,
    device: str | None,
    precision: str,
    seed: int,
    out: str | None,
    plot: str | None,
    checkpoint: str | None,
    every_steps: int | None,
    every_minutes: float | None,
    resume: bool,
    no_save: bool,
    quiet: bool,
    **hyperparameters: Any,
) -> dict[str, Any]:
    """Train as the options say; returns what ``--json`` prints."""
    import time

    import numpy as np

    from .. import datasets, losses
    from ..preprocessing import ClassTarget
    from ..training.callbacks import EarlyStopping
    from .bundle import Bundle, device_line
    from .networks import describe, network
    from .prepare import prepare
    from .recipe import parse_layers, recipe_for

    # whatever can be found wrong is found before the training
    if steps is not None or (units is not None and kind == "mlp"):
        raise click.UsageError(f"{'--units' if steps is None else '--steps'} does not apply to --model {kind}")
    model_path, plot_path = output_files(source, out, plot, no_save)
    savers = savers_for(checkpoint, every_steps, every_minutes, resume)
    widths = None if layers is None else parse_layers(layers)
    used, why = device_line(device)
    data = datasets.load(source, target, task, drop=drop, report=echo)
    recipe = recipe_for(data, kind).but(layers=widths, units=units, **hyperparameters)
    if hyperparameters["optimizer"] and hyperparameters["lr"] is None:
        recipe = recipe.but(lr=default_rate(recipe.optimizer))  # ours suits ours only
    optimizer = _optimizer(recipe)
    loss_name = loss or ("cross_entropy" if data.task == "classification" else "mean_squared_error")
    ready = prepare(
        data,
        losses.get(loss_name),
        loss_name,
        val_split=recipe.val_split,
        seed=seed,
        dtype=np.float64 if precision == "float64" else np.float32,
        categorical=categorical,
    )
    shapes = (ready.x.shape[1:], ready.outputs)
    model = network(kind, recipe, *shapes)
    targets = ready.preprocessor.target
    classes = list(targets.names) if isinstance(targets, ClassTarget) else None
    rows = ready.rows
    task_line = f"{data.task}, {len(classes)} classes" if classes else str(data.task)
    counts = f"{rows['train']} rows to train on, {rows['validation']} to validate, {rows['test']} to test"
    print_table(
        [
            ["data", f"{data.name}: {counts}"],
            ["inputs", ready.preprocessor.inputs.describe()],
            ["task", task_line + (f", target {data.target}" if data.target else "")],
            ["model", describe(kind, recipe, *shapes)],
            [
                "training",
                f"{loss_name}, {recipe.optimizer}, learning rate {recipe.lr:g} ({recipe.schedule}), "
                f"{recipe.epochs} epochs, batches of {recipe.batch_size}",
            ],
            ["device", f"{used} ({why}), {precision}"],
        ]
    )
    stopper = [EarlyStopping("val_loss", recipe.patience)] if recipe.patience and ready.validation else []
    began = time.perf_counter()
    history = model.fit(
        ready.x,
        ready.y,
        loss=losses.get(loss_name),
        optimizer=optimizer,
        epochs=recipe.epochs,
        batch_size=min(recipe.batch_size, len(ready.x)),
        device=used,
        precision=precision,
        validation_data=ready.validation,
        metrics=("accuracy",) if classes else (),
        callbacks=[*savers, *stopper],
        seed=seed,
        verbose=0 if quiet else 1,
        resume=checkpoint if resume else None,
    )
    seconds = time.perf_counter() - began

    bundle = Bundle(model, ready.preprocessor, data.name, data.target, tuple(drop))
    metrics = bundle.metrics(ready.y_part, bundle.predict(ready.x_part))
    print_table([[f"{ready.part} {name}", f"{value:.4f}"] for name, value in metrics.items()])
    if model_path is not None:
        bundle.save(model_path)
        echo(f"saved the model to {model_path}")
    plot_path = save_curves(history, plot_path)
    return {
        "command": "train",
        "version": version(),
        "data": data.name,
        "task": data.task,
        "target": data.target,
        "classes": classes,
        "rows": rows,
        "kind": kind,
        "parameters": model.parameters.count,
        "device": used,
        "device_reason": why,
        "precision": precision,
        "seed": seed,
        "loss": loss_name,
        "recipe": {**vars(recipe)},
        "epochs": len(history.epochs),
        "stopped": history.stopped,
        "history": {name: list(history[name]) for name in history},
        "part": ready.part,
        "metrics": metrics,
        "seconds": seconds,
        "model": None if model_path is None else str(model_path),
        "checkpoint": checkpoint,
        "resumed": resume,
        "plot": None if plot_path is None else str(plot_path),
    }


def save_curves(history: Any, path: Path | None) -> Path | None:
    """Draw the curves of a training; returns where to, or ``None`` where there is nothing to draw."""
    if path is None or not history.epochs:  # interrupted in the first epoch
        return None
    from .. import plotting
    from ..files import replacing

    with replacing(path) as temporary:
        plotting.history(history, path=temporary)
    echo(f"saved the curves to {path}")
    return path


def output_files(name: str, out: str | None, plot: str | None, no_save: bool) -> tuple[Path | None, Path | None]:
    """Where model and picture go."""
    import importlib.util

    stem = Path(name).name.split(".")[0] or "model"
    model = Path(out) if out else None if no_save else Path(f"{stem}.safetensors")
    picture = Path(plot) if plot else None
    if picture is not None:
        check_picture(picture)
    if model is not None:
        check_writable(model)
    if picture is None and model is not None and not no_save and importlib.util.find_spec("matplotlib"):
        picture = model.with_suffix(".png")
    return model, picture


def savers_for(path: str | None, every_steps: int | None, every_minutes: float | None, resume: bool) -> list[Any]:
    """What writes the checkpoints that the options ask for."""
    from ..training.resuming import TrainingCheckpoint

    if path is None:
        if resume or every_steps is not None or every_minutes is not None:
            raise click.UsageError("--resume, --every-steps and --every-minutes need --checkpoint FILE")
        return []
    if every_steps is not None and every_minutes is not None:
        raise click.UsageError("give --every-steps or --every-minutes, not both")
    if resume and not Path(path).is_file():
        raise click.UsageError(f"there is no checkpoint {path} to go on from")
    check_writable(Path(path))
    if every_steps is None and every_minutes is None:
        every_minutes = 5.0
    return [TrainingCheckpoint(path, every_steps=every_steps, every_minutes=every_minutes)]


def default_rate(optimizer: str) -> float:
    from .. import optimizers

    return optimizers.get(optimizer).default_lr


def _optimizer(recipe: Recipe) -> Any:
    from .. import optimizers

    # the rate belongs to the schedule, so that the model file keeps both
    return optimizers.get(recipe.optimizer, lr=optimizers.schedules.get({"name": recipe.schedule, "lr": recipe.lr}))
