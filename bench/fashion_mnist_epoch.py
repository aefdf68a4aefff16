"""One epoch of Fashion-MNIST: nnfast's CPU backends against scikit-learn's MLPClassifier, in turn, in one run.

    python bench/fashion_mnist_epoch.py [--rounds 5] [--json FILE]

The same layers (784-256-128-10, ReLU), batch of 200 and Adam for all, float32. Each contender has a process of its own,
so that thread pools do not mix, trains one epoch to warm up, and then takes turns with the others. The
time of an epoch is the slope between fitting one epoch and fitting three, so that neither start-up nor the
checks of the data count for anybody.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from typing import Any

import numpy as np

from nnfast.bench.header import machine_info
from nnfast.bench.measure import Settings, slope
from nnfast.bench.process import ContenderError, Remote, peak_memory

LAYERS = (256, 128)
BATCH = 200
COUNTS = (1, 3)  # epochs
CONTENDERS = {"numba": "nnfast-numba", "numpy": "nnfast-numpy", "scikit-learn": "scikit-learn"}


class Session:
    """One contender, in its own process: trains for some epochs more when it is asked to."""

    def __init__(self, name: str) -> None:
        from nnfast import datasets

        data = datasets.load("fashion-mnist")
        images = np.asarray(data.X_train)
        self.X = images.reshape(len(images), -1).astype(np.float32) / 255
        self.y = np.asarray(data.y_train)
        self.name = name
        if name == "scikit-learn":
            from sklearn.neural_network import MLPClassifier

            self.model = MLPClassifier(LAYERS, solver="adam", alpha=0.0, batch_size=BATCH, random_state=0)
        else:
            import nnfast as nf

            self.model = nf.Sequential([*(nf.Dense(width, "relu") for width in LAYERS), nf.Dense(10)])

    def run(self, epochs: int) -> float:
        """Seconds of so many epochs more."""
        began = time.perf_counter()
        if self.name == "scikit-learn":
            for _ in range(epochs):
                # exactly one epoch, which keeps the optimizer's state
                self.model.partial_fit(self.X, self.y, classes=np.arange(10))
            self.loss = float(self.model.loss_)
        else:
            history = self.model.fit(
                self.X,
                self.y,
                loss="cross_entropy",
                optimizer="adam",
                epochs=epochs,
                batch_size=BATCH,
                device=self.name,
                seed=0,
                verbose=0,
            )
            self.loss = history["loss"][-1]
        return time.perf_counter() - began

    def state(self) -> tuple[float, float]:
        """The last epoch's loss, and the peak memory in MB."""
        return self.loss, peak_memory()


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds per epoch of each contender, in turn."""
    results: dict[str, Any] = {name: {"seconds": []} for name in CONTENDERS}
    remotes: dict[str, Remote] = {}
    try:
        for name in CONTENDERS:
            remotes[name] = Remote(name, Session, name, threads=settings.threads)
        for remote in remotes.values():
            remote.receive()
        for remote in remotes.values():
            remote.call("run", 1)
        for _ in range(settings.rounds):
            for name, remote in remotes.items():
                time.sleep(settings.pause)
                results[name]["seconds"].append(slope(partial(remote.call, "run"), COUNTS))
        for name, remote in remotes.items():
            results[name]["loss"], results[name]["peak_memory_mb"] = remote.call("state")
    except ContenderError as error:
        raise SystemExit(str(error)) from None
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
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    settings = Settings(rounds=options.rounds)
    info = machine_info(CONTENDERS.values(), settings.threads)
    results = measure(settings)
    machine = {
        "cpu": info["cpu"]["brand_raw"],
        "cores": info["cpu"]["count"],
        "load": info["load_average"] and info["load_average"][0],
        "python": info["python_version"],
        "versions": info["versions"],
        "openblas_coretype": info["environment"].get("OPENBLAS_CORETYPE"),
    }
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
