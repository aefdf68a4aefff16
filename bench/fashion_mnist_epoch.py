"""One epoch of Fashion-MNIST: nnfast's CPU backends against scikit-learn's MLPClassifier, in turn, in one run.

    python bench/fashion_mnist_epoch.py [--rounds 5] [--json FILE]

The same layers (784-256-128-10, ReLU), batch of 200 and Adam for all, float32. Each contender has a process of its own,
so that thread pools do not mix, trains one epoch to warm up, and then takes turns with the others. The
time of an epoch is the slope between fitting one epoch more and fitting three more, so that neither
start-up nor the checks of the data count for anybody.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import nnfast

LAYERS = (256, 128)
BATCH = 200
EPOCHS = 2  # more than one
# Threads of OpenBLAS and OpenMP go on spinning for some 0.1 s after their last work. Between turns they get
# the time to fall asleep, or each contender would run beside the last one's.
PAUSE = 0.5


def nnfast_fit(device: str, X: np.ndarray, y: np.ndarray) -> Callable[[int], float]:
    """A function that trains for some epochs more and gives the last one's loss."""
    import nnfast as nf

    model = nf.Sequential([*(nf.Dense(width, "relu") for width in LAYERS), nf.Dense(10)])

    def fit(epochs: int) -> float:
        history = model.fit(
            X,
            y,
            loss="cross_entropy",
            optimizer="adam",
            epochs=epochs,
            batch_size=BATCH,
            device=device,
            seed=0,
            verbose=0,
        )
        return history["loss"][-1]

    return fit


def sklearn_fit(X: np.ndarray, y: np.ndarray) -> Callable[[int], float]:
    """The same for scikit-learn; `partial_fit` does exactly one epoch and keeps the optimizer's state."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(LAYERS, solver="adam", alpha=0.0, batch_size=BATCH, random_state=0)

    def fit(epochs: int) -> float:
        for _ in range(epochs):
            model.partial_fit(X, y, classes=np.arange(10))
        return float(model.loss_)

    return fit


def contender(name: str, pipe: Connection) -> None:
    """Runs in a process of its own: answers each number of epochs with seconds, loss and peak memory."""
    warnings.simplefilter("ignore")
    from nnfast import datasets

    data = datasets.load("fashion-mnist")
    X = data.X_train.reshape(len(data.X_train), -1).astype(np.float32) / 255
    y = np.asarray(data.y_train)
    fit = sklearn_fit(X, y) if name == "scikit-learn" else nnfast_fit(name, X, y)
    pipe.send("ready")
    while (epochs := pipe.recv()) is not None:
        began = time.perf_counter()
        loss = fit(epochs)
        seconds = time.perf_counter() - began
        pipe.send((seconds, loss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def header() -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {
            "nnfast": nnfast.__version__,
            **{name: installed(name) for name in ("numpy", "numba", "scipy", "scikit-learn")},
        },
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
    }


def measure(names: list[str], rounds: int) -> dict[str, Any]:
    """Seconds per epoch of each contender, in turn."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=contender, args=(name, theirs), daemon=True)
        process.start()
        theirs.close()  # or a process that fails would leave us waiting
        processes.append(process)
        try:
            pipes[name].recv()
        except EOFError:
            raise SystemExit(f"{name} could not be started; its own message stands above") from None

    def ask(name: str, epochs: int) -> tuple[float, float, float]:
        time.sleep(PAUSE)
        pipes[name].send(epochs)
        answer: tuple[float, float, float] = pipes[name].recv()
        return answer

    for name in names:
        ask(name, 1)
    results: dict[str, Any] = {name: {"seconds": []} for name in names}
    for _ in range(rounds):
        for name in names:
            one, _, _ = ask(name, 1)
            more, loss, memory = ask(name, 1 + EPOCHS)
            results[name]["seconds"].append((more - one) / EPOCHS)
            results[name] |= {"loss": loss, "peak_memory_mb": memory}
    for name in names:
        pipes[name].send(None)
    for process in processes:
        process.join()
    for result in results.values():
        result["median"] = statistics.median(result["seconds"])
        result["best"] = min(result["seconds"])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    names = ["numba", "numpy", "scikit-learn"]
    results = measure(names, options.rounds)
    machine = header()
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f}, {machine['versions']}")
    base = results["scikit-learn"]
    for name, result in results.items():
        # On a shared machine the best of each is what the program can do, the median what one gets
        print(
            f"{name:>13}: {result['median']:6.3f} s an epoch ({result['best']:.3f} to {max(result['seconds']):.3f}), "
            f"{base['median'] / result['median']:.2f}x scikit-learn by medians, "
            f"{base['best'] / result['best']:.2f}x by bests, peak memory {result['peak_memory_mb']:.0f} MB"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
