"""Threads, forks and process pools: no hang, no abort, and the numbers of a single process.

Each test runs a program of its own with a time limit, since what is guarded against takes the process down.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import nnfast as nf

# Large enough that Numba's kernels start their pool of threads; the results of a run are its weights' sum of squares
COMMON = """
    import os, sys
    import numpy as np
    import nnfast as nf

    device = sys.argv[1]
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2048, 32)).astype(np.float32)
    y = X[:, :8].argmax(axis=1)

    def train(seed):
        model = nf.Sequential([nf.Dense(64, "relu"), nf.Dropout(0.2), nf.Dense(8)])
        model.fit(X, y, loss="cross_entropy", epochs=2, batch_size=512, seed=seed, device=device, verbose=0)
        return model

    def number(model):
        return float((model.get_flat_weights().astype(np.float64) ** 2).sum()), float(model.predict(X).sum())

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4)

    def pool_started():
        if device == "numba":
            from numba.np.ufunc import parallel
            assert parallel._is_initialized or os.cpu_count() == 1, "the test is too small to mean anything"
"""

THREADS = """
    import threading
    expected = {seed: number(train(seed)) for seed in (1, 2)}
    pool_started()
    found = {}

    def work(seed):
        barrier.wait()
        for _ in range(3):
            found[seed] = number(train(seed))

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    for seed in (1, 2):
        close(found[seed], expected[seed])

    model = train(3)
    outputs = model.predict(X)
    wrong = []

    def predict(number):
        barrier.wait()
        for size in (None, 100, 500 + number):
            part = slice(number, None, number + 1)
            if not np.allclose(model.predict(X[part], batch_size=size), outputs[part], rtol=1e-4, atol=1e-5):
                wrong.append((number, size))

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=predict, args=(i,)) for i in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not wrong, wrong
"""

FORK = """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    model = train(1)
    expected = {seed: number(train(seed)) for seed in (1, 2, 3)}
    pool_started()

    for _ in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                close(model.predict(X).sum(), expected[1][1])
                close(number(train(2)), expected[2])
                model.fit(X, y, epochs=1, device=device, verbose=0)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        close(number(train(2)), expected[2])  # the parent is as well as before

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        for seed, result in zip((1, 2, 3), pool.map(train_number, (1, 2, 3))):
            close(result, expected[seed])
    close(number(train(3)), expected[3])
"""

SPAWN = """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    expected = {seed: number(train(seed)) for seed in (1, 2)}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for seed, result in zip((1, 2), pool.map(train_number, (1, 2))):
            close(result, expected[seed])
        # A trained model travels, in both directions, and trains on where it arrives
        model = train(1)
        again = pool.submit(train_on, model).result()
        np.testing.assert_array_equal(model.get_flat_weights(), train(1).get_flat_weights())
        close(number(again), number(train_on(model)))
        assert again.training_state.epoch == 3
"""

JOBLIB = """
    from joblib import Parallel, delayed
    expected = {seed: number(train(seed)) for seed in (1, 2, 3)}
    for backend in ("loky", "threading"):
        results = Parallel(n_jobs=2, backend=backend)(delayed(train_number)(seed) for seed in (1, 2, 3))
        for seed, result in zip((1, 2, 3), results):
            close(result, expected[seed])
"""

WORKERS = """
    def train_number(seed):
        return number(train(seed))

    def train_on(model):
        model.fit(X, y, epochs=1, batch_size=512, device=device, verbose=0)
        return model
"""


def _run(script: str, device: str, folder: Path, **environment: str) -> None:
    if (reason := nf.available_devices()[device]) is not None:
        pytest.skip(f"{device}: {reason}")
    main = textwrap.indent(textwrap.dedent(script), "    ")
    program = textwrap.dedent(COMMON) + textwrap.dedent(WORKERS) + f'\nif __name__ == "__main__":\n{main}'
    path = folder / "program.py"
    path.write_text(program)
    found = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, str(path), device],
        env={**os.environ, "PYTHONPATH": found, **environment},
        capture_output=True,
        text=True,
        timeout=240,  # a hang; a minute would do if nobody else used the machine
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"


_DEVICES = pytest.mark.parametrize(
    ("device", "layer"), [("numpy", "default"), ("numba", "default"), ("numba", "workqueue")]
)
_forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@_DEVICES
def test_threads(device: str, layer: str, tmp_path: Path) -> None:
    _run(THREADS, device, tmp_path, NUMBA_THREADING_LAYER=layer)


@_forks
@_DEVICES
def test_forks(device: str, layer: str, tmp_path: Path) -> None:
    _run(FORK, device, tmp_path, NUMBA_THREADING_LAYER=layer)


def test_spawned_processes(tmp_path: Path) -> None:
    _run(SPAWN, "numba", tmp_path)


@_forks
@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="joblib is not installed")
def test_joblib(tmp_path: Path) -> None:
    """What scikit-learn's searches do with n_jobs=2."""
    _run(JOBLIB, "numba", tmp_path)
