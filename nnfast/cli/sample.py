"""``nnfast sample``: let a language model write."""

from __future__ import annotations

import click

from .common import device_option, echo, emit_json, output_options, version


@click.command("sample", short_help="Let a model of text write.")
@click.argument("model")
@click.option("--prompt", default="", metavar="TEXT", help="What comes before; default: the end of a line.")
@click.option("--length", type=click.IntRange(1), default=500, show_default=True, metavar="N", help="Characters.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.8,
    show_default=True,
    metavar="T",
    help="Below 1 for what is more probable; 0 takes the most probable character each time.",
)
@click.option("--top-k", type=click.IntRange(1), metavar="K", help="Draw among the K most probable characters only.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="One seed gives one text; default: any.")
@device_option
@output_options
def command(
    model: str,
    prompt: str,
    length: int,
    temperature: float,
    top_k: int | None,
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Print TEXT and what MODEL, a file of 'nnfast train --model charnn' or 'transformer', goes on with."""
    from .. import language
    from ..random import checked_seed
    from .bundle import device_line
    from .text_bundle import TextBundle

    used, _ = device_line(device)
    bundle = TextBundle.load(model, used)
    seed = checked_seed(seed)
    written = language.sample(
        bundle.model, bundle.vocabulary, prompt, length, temperature=temperature, top_k=top_k, seed=seed
    )
    echo(prompt + written)
    if as_json:
        emit_json(
            {
                "command": "sample",
                "version": version(),
                "model": model,
                "device": used,
                "prompt": prompt,
                "temperature": temperature,
                "top_k": top_k,
                "seed": seed,
                "text": written,
            }
        )
