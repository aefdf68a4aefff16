"""Language models of characters against an n-gram model: bits per character of a text that none of them has seen.

    python -m nnfast.bench.text_models [--device numba] [--json FILE]

The text is that of the licences which Debian has in /usr/share/common-licenses, one after the other by name, each
once; where that folder is missing, Python's own licence and the topics of its help. The last tenth of the whole text is
held back: on Debian that is the end of MPL-1.1 and MPL-2.0, which quote no other licence at length. The n-gram model is
an interpolated Kneser-Ney model, whose discounts follow from the counts of the training part alone. The networks
are those of ``nnfast train --model charnn`` and ``--model transformer``, with the same settings; the settings were
chosen by what they do on this text.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnfast import language
from nnfast.bench.ngram import KneserNey
from nnfast.datasets import Text, load_text
from nnfast.training.generation import bits

__all__ = ["corpus", "measure"]

LICENCES = Path("/usr/share/common-licenses")
ORDERS = (5, 7)  # the 5-gram is what the networks must be better than
SAMPLE = 500  # characters


def corpus() -> Text:
    """The text that is learned, and its last tenth."""
    if LICENCES.is_dir():
        return load_text(LICENCES)
    from pydoc_data.topics import topics

    licence = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    parts = [licence.read_text(encoding="utf-8")] if licence.is_file() else []
    return Text.of("\n".join([*parts, *(topics[name] for name in sorted(topics))]), name="Python's licence and help")


def _numbers(costs: np.ndarray, text: Text, seconds: float) -> dict[str, Any]:
    """Bits of all characters, and of those that the training part has."""
    known = costs[text.validation != 0]
    return {"bits": float(costs.mean()), "known_bits": float(known.mean()), "seconds": seconds}


def measure(
    text: Text, recipes: Sequence[language.Recipe], *, device: str = "auto", seed: int = 0, verbose: int = 1
) -> dict[str, Any]:
    """Train everything on the first part of `text` and measure it on the rest.

    Returns
    -------
    dict
        By name: ``bits`` per character, ``known_bits`` of those that the training part has, ``seconds`` of training;
        of networks also ``parameters``, ``recipe`` and ``sample``.
    """
    results: dict[str, Any] = {}
    for order in ORDERS:
        began = time.perf_counter()
        model = KneserNey(text.train, len(text.vocabulary), order)
        seconds = time.perf_counter() - began
        results[f"{order}-gram"] = _numbers(model.bits(text.validation, text.train), text, seconds)
    for recipe in recipes:
        began = time.perf_counter()
        network, history = language.train(text, recipe, device=device, seed=seed, verbose=verbose)
        seconds = time.perf_counter() - began
        results[recipe.kind] = {
            **_numbers(bits(network, text.validation, text.train), text, seconds),
            "parameters": network.parameters.count,
            "device": network.device,
            "recipe": vars(recipe),
            "val_bits": list(history["val_bits"]),
            "sample": language.sample(network, text.vocabulary, length=SAMPLE, seed=seed),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="for a short look; default: as in nnfast train")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    text = corpus()
    unknown = int((text.validation == 0).sum())
    print(
        f"{text.name}: {len(text.train):,} characters to learn, the last {len(text.validation):,} to measure; "
        f"{unknown} of these are none of the {len(text.vocabulary.characters)} different ones that were learned"
    )
    recipes = [language.recipe_for(kind, text).but(epochs=options.epochs) for kind in language.RECIPES]
    results = measure(text, recipes, device=options.device, seed=options.seed)
    print(f"\n{'':>12}  bits per character  of known characters  parameters  training")
    for name, result in results.items():
        parameters = f"{result['parameters']:,}" if "parameters" in result else ""
        print(
            f"{name:>12}  {result['bits']:18.4f}  {result['known_bits']:19.4f}  {parameters:>10}  "
            f"{result['seconds']:6.1f} s"
        )
    for name, result in results.items():
        if "sample" in result:
            print(f"\n---- {name} writes:\n{result['sample']}")
    if options.json:
        split = {"train": len(text.train), "validation": len(text.validation), "unknown": unknown}
        content = {"text": text.name, "files": text.files, "characters": split, "results": results}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
