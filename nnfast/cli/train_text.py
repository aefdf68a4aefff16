"""``nnfast train --model charnn`` and ``transformer``: from text files to a model that writes."""

from __future__ import annotations

from typing import Any

import click

from .common import echo, print_table, version
from .train import default_rate, output_files, save_curves, savers_for

# What is for tables and images only, as the command line names it
_FOREIGN = ("target", "task", "drop", "categorical", "activation", "loss")
_SAMPLE = 300  # characters that are shown at the end


def run(
    sources: tuple[str, ...],
    kind: str,
    *,
    layers: str | None,
    optimizer: str | None,
    lr: float | None,
    val_split: float | None,
    patience: int | None,
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
    **options: Any,
) -> dict[str, Any]:
    """Train as the options say; returns what ``--json`` prints."""
    import time

    from .. import language
    from ..datasets import load_text
    from ..training.callbacks import EarlyStopping
    from .bundle import device_line
    from .text_bundle import TextBundle

    for name in _FOREIGN:
        if options.pop(name):
            raise click.UsageError(f"--{name} does not apply to --model {kind}")
    model_path, plot_path = output_files(sources[0], out, plot, no_save)
    savers = savers_for(checkpoint, every_steps, every_minutes, resume)
    number = None if layers is None else _number(layers)
    used, why = device_line(device)
    text = load_text(sources, validation=0.1 if val_split is None else val_split)
    if optimizer is not None and lr is None:
        lr = default_rate(optimizer)  # the recipe's suits its own only
    recipe = language.recipe_for(kind, text).but(layers=number, optimizer=optimizer, lr=lr, **options)
    unknown = int((text.validation == 0).sum())
    rows = {"train": len(text.train), "validation": len(text.validation), "unknown": unknown}
    parts = f"{rows['train']:,} characters to train on, then {rows['validation']:,} to validate"
    print_table(
        [
            ["data", f"{text.name}: {len(text.files)} files, {parts}"],
            ["vocabulary", f"{len(text.vocabulary.characters)} characters; {unknown} to validate are none of them"],
            ["model", f"{kind}, {recipe.layers} layers of {recipe.units} units, dropout {recipe.dropout:g}"],
            [
                "training",
                f"{recipe.optimizer}, learning rate {recipe.lr:g} ({recipe.schedule}), {recipe.epochs} epochs, "
                f"batches of {recipe.batch_size} windows of {recipe.steps} characters",
            ],
            ["device", f"{used} ({why}), {precision}"],
        ]
    )
    stopper = [EarlyStopping("val_bits", patience, mode="min")] if patience and rows["validation"] else []
    began = time.perf_counter()
    model, history = language.train(
        text,
        recipe,
        device=used,
        precision=precision,
        seed=seed,
        callbacks=[*savers, *stopper],
        verbose=0 if quiet else 1,
        resume=checkpoint if resume else None,
    )
    seconds = time.perf_counter() - began
    metrics = _measured(model, text)
    print_table([[name.replace("_", " "), f"{value:.4f}"] for name, value in metrics.items()])
    if model_path is not None:
        TextBundle(model, text.vocabulary, kind, text.name).save(model_path)
        echo(f"saved the model to {model_path}")
    plot_path = save_curves(history, plot_path)
    sample = language.sample(model, text.vocabulary, length=_SAMPLE, seed=seed)
    if not quiet:
        echo(f"a sample:\n{sample}")
    return {
        "command": "train",
        "version": version(),
        "data": text.name,
        "files": list(text.files),
        "task": "text",
        "kind": kind,
        "characters": rows,
        "vocabulary": len(text.vocabulary),
        "parameters": model.parameters.count,
        "device": used,
        "device_reason": why,
        "precision": precision,
        "seed": seed,
        "recipe": {**vars(recipe)},
        "epochs": len(history.epochs),
        "stopped": history.stopped,
        "history": {name: list(history[name]) for name in history},
        "metrics": metrics,
        "seconds": seconds,
        "sample": sample,
        "model": None if model_path is None else str(model_path),
        "checkpoint": checkpoint,
        "resumed": resume,
        "plot": None if plot_path is None else str(plot_path),
    }


def _number(layers: str) -> int:
    """The number of layers: ``--layers`` of other models lists widths."""
    if not layers.strip().isdecimal() or int(layers) < 1:
        raise ValueError(f"--layers is the number of layers of a model of text, at least 1, got {layers!r}")
    return int(layers)


def _measured(model: Any, text: Any) -> dict[str, float]:
    """Bits per character of the validation part, and of those of its characters that training has."""
    from ..training.generation import bits

    if not len(text.validation):
        return {"training_bits_per_character": float(bits(model, text.train).mean())}
    found = bits(model, text.validation, text.train)
    known = found[text.validation != 0]
    return {"bits_per_character": float(found.mean())} | (
        {"bits_per_known_character": float(known.mean())} if len(known) < len(found) and len(known) else {}
    )
