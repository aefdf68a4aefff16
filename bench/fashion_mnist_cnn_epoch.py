"""One epoch of a CNN on Fashion-MNIST: nnfast against PyTorch, eager and compiled, in turn, in one run.

    python bench/fashion_mnist_cnn_epoch.py [--rounds 5] [--batch 128] [--contenders NAME,...] [--json FILE]

The network of the workload `cnn` (28x28x1, convolutions 32 and 64 of 3x3, each with ReLU and 2x2 max pooling, dense
10), the same initial weights, Adam and batches for all, float32. Each contender has a process of its own and the same
number of threads. Before anything is timed, the losses of its first steps on the same batches are compared; then it
trains one epoch to warm up, and takes turns with the others. The time of an epoch is the slope between one epoch and
three, so that neither start-up nor the checks of the data count for anybody.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nnfast.bench.contenders import ENTRIES
from nnfast.bench.header import machine_info, warnings_of
from nnfast.bench.measure import AGREEMENT_STEPS, LOSS_TOLERANCE, Settings, slope
from nnfast.bench.process import ContenderError, Remote, peak_memory
from nnfast.bench.workloads import Workload, find, initial_weights

COUNTS = (1, 3)  # epochs
CONTENDERS = ("nnfast-numba", "torch", "torch-channels-last", "torch-compile")


def images() -> tuple[np.ndarray, np.ndarray]:
    """The training images, float32 (60000, 28, 28, 1) in [0, 1], and their labels."""
    from nnfast import datasets

    data = datasets.load("fashion-mnist")
    X = np.asarray(data.X_train).reshape(-1, 28, 28, 1).astype(np.float32) / 255
    return X, np.asarray(data.y_train).astype(np.int64)


class Session:
    """One contender, in its own process: trains for some epochs more when it is asked to."""

    def __init__(self, name: str, workload: Workload, data: tuple[np.ndarray, np.ndarray] | None, threads: int) -> None:
        X, y = images() if data is None else data
        workload = replace(workload, rows=len(X))
        self.contender = partial(ENTRIES[name].load(), workload, initial_weights(workload), X, y, threads)
        self.losses: list[float] = []

    def first_losses(self) -> list[float]:
        """Losses of the first steps, the rows in their order."""
        return self.contender().losses(AGREEMENT_STEPS)

    def prepare(self) -> None:
        """Make the network that is timed."""
        self.timed = self.contender()

    def run(self, epochs: int) -> float:
        """Seconds of so many epochs more."""
        began = time.perf_counter()
        self.losses += self.timed.epochs(epochs)
        return time.perf_counter() - began

    def state(self) -> tuple[list[float], float]:
        """Each epoch's loss, and the peak memory in MB."""
        return self.losses, peak_memory()


def measure(
    names: list[str], workload: Workload, settings: Settings, data: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, Any]:
    """Seconds per epoch of each contender, in turn; `data` in place of Fashion-MNIST are for tests.

    Raises
    ------
    ArithmeticError
        If a contender's first losses are not those of the first one.
    ContenderError
        If a contender fails.
    """
    results: dict[str, Any] = {name: {"seconds": []} for name in names}
    remotes: dict[str, Remote] = {}
    try:
        for name in names:
            remotes[name] = Remote(name, Session, name, workload, data, settings.threads, threads=settings.threads)
        for remote in remotes.values():
            remote.receive()
        found = {name: np.array(remote.call("first_losses")) for name, remote in remotes.items()}
        expected = found[names[0]]
        for name, losses in found.items():
            difference = float(np.abs(losses / expected - 1).max())
            if not difference <= LOSS_TOLERANCE:
                raise ArithmeticError(f"{name}: its first losses differ from those of {names[0]} by {difference:.2g}")
            results[name]["disagreement"] = difference
        for remote in remotes.values():
            remote.call("prepare")
            remote.call("run", 1)
        for _ in range(settings.rounds):
            for name, remote in remotes.items():
                time.sleep(settings.pause)
                results[name]["seconds"].append(slope(partial(remote.call, "run"), COUNTS))
        for name, remote in remotes.items():
            results[name]["losses"], results[name]["peak_memory_mb"] = remote.call("state")
    finally:
        for remote in remotes.values():
            remote.kill()
    for result in results.values():
        result["median"] = statistics.median(result["seconds"])
        result["best"] = min(result["seconds"])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--contenders", metavar="NAME,...", default=",".join(CONTENDERS))
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    settings = Settings(rounds=options.rounds)
    names = [name.strip() for name in options.contenders.split(",")]
    workload = replace(find("cnn"), batch=options.batch)
    for name in names:
        if name not in ENTRIES:
            raise SystemExit(f"{name} is not known; known are {', '.join(ENTRIES)}")
        if (why := ENTRIES[name].missing() or ENTRIES[name].unable(workload)) is not None:
            raise SystemExit(why)
    info = machine_info(names, settings.threads)
    for warning in warnings_of(info):
        print(f"warning: {warning}")
    print(f"{info['cpu']['brand_raw']}, {settings.threads} threads each, {info['versions']}")
    print(workload.describe())
    try:
        results = measure(names, workload, settings)
    except (ArithmeticError, ContenderError) as error:
        raise SystemExit(str(error)) from None
    peers = [results[name] for name in names if not name.startswith("nnfast")]
    for name, result in results.items():
        spread = f"{result['best']:.3f} to {max(result['seconds']):.3f}"
        parts = [f"{result['median']:6.3f} s an epoch ({spread})"]
        # On a shared machine the best of each is what the program can do, the median what one gets
        for key in ("median", "best"):
            if peers:
                parts.append(f"{min(peer[key] for peer in peers) / result[key]:.2f}x the best peer by {key}s")
        print(f"{name:>19}: {', '.join(parts)}, peak memory {result['peak_memory_mb']:.0f} MB")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": info, "batch": options.batch, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
