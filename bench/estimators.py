"""``nnfast.sklearn.MLPClassifier`` against scikit-learn's own: ``fit`` and ``predict`` on equal data and settings.

    python -m nnfast.bench.estimators [--rounds 5] [--device numba] [--json FILE] [digits | fashion-mnist ...]

Each measurement is a new process that has fitted once before, so that kernels are compiled and no library's threads
are in the other's way; the two take turns, and the ratio is the median of the rounds'. Both do the same steps: the last
losses are compared.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing
from . import header

__all__ = ["CASES", "compare", "main", "once"]

#: What is fitted: data, the estimators' arguments, and how often predict is timed
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "digits": ({}, 50),
    "fashion-mnist": ({"hidden_layer_sizes": (256, 128), "max_iter": 3}, 5),
}
LIBRARIES = ("scikit-learn", "nnfast")


def _data(case: str) -> tuple[np.ndarray, np.ndarray]:
    if case == "digits":
        from sklearn.datasets import load_digits

        X, y = load_digits(return_X_y=True)
        return X, y
    from ..datasets import load

    data = load(case)
    images = np.asarray(data.X_train)
    return images.reshape(len(images), -1).astype(np.float32) / 255, np.asarray(data.y_train)


def once(case: str, library: str, device: str) -> dict[str, float]:
    """Seconds of a fit and of a prediction of all rows, and the last loss, in this process."""
    import warnings

    warnings.simplefilter("ignore")  # that three epochs are not enough
    X, y = _data(case)
    arguments, times = CASES[case]
    if library == "nnfast":
        from .. import sklearn as nnfast

        make, arguments = nnfast.MLPClassifier, {**arguments, "device": device}
    else:
        from sklearn import neural_network

        make = neural_network.MLPClassifier
    make(**{**arguments, "max_iter": 1}, random_state=0).fit(X, y).predict(X)
    began = time.perf_counter()
    estimator = make(**arguments, random_state=0).fit(X, y)
    fitted = time.perf_counter() - began
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        estimator.predict(X)
        seconds.append(time.perf_counter() - began)
    return {
        "fit": fitted,
        "predict": statistics.median(seconds),
        "loss": float(estimator.loss_),
        "epochs": float(estimator.n_iter_),
    }


def compare(case: str, rounds: int, device: str) -> dict[str, Any]:
    """Both libraries in turn; times by round, and the medians of the rounds' ratios."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[dict[str, float]]] = {library: [] for library in LIBRARIES}
    for number in range(rounds):
        for library in LIBRARIES if number % 2 == 0 else LIBRARIES[::-1]:
            with context.Pool(1) as pool:
                found[library].append(pool.apply(once, (case, library, device)))
    pairs = list(zip(found["scikit-learn"], found["nnfast"], strict=True))
    for theirs, ours in pairs:
        if theirs["epochs"] != ours["epochs"] or not np.isclose(theirs["loss"], ours["loss"], rtol=1e-2):
            raise RuntimeError(f"{case}: the two have not done the same: {theirs}, {ours}")
    ratios = {what: statistics.median(a[what] / b[what] for a, b in pairs) for what in ("fit", "predict")}
    return {"rounds": found, "ratios": ratios}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write a file where one is asked for."""
    parser = argparse.ArgumentParser(prog="python -m nnfast.bench.estimators", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; by default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="numba")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"unknown {', '.join(unknown)}; known are {', '.join(CASES)}")
    results = {}
    for case in options.cases or CASES:
        results[case] = result = compare(case, options.rounds, options.device)
        for what, ratio in result["ratios"].items():
            theirs, ours = (
                statistics.median(each[what] for each in result["rounds"][library]) * 1e3 for library in LIBRARIES
            )
            print(f"{case:14} {what:8} scikit-learn {theirs:9.2f} ms   nnfast {ours:9.2f} ms   {ratio:5.2f}x")
    if options.json is not None:
        info = header.machine_info(("nnfast-numba", "scikit-learn"), os.cpu_count() or 1)
        with replacing(options.json) as temporary:
            content = {"machine_info": info, "commit_info": header.commit_info(), "results": results}
            temporary.write_text(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
