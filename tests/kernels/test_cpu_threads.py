"""Forks, several threads, other threading layers, and BLAS's own threads."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from nnfast.backends.numba_backend import NumbaBackend
from nnfast.kernels.cpu import rows, threads, tuning
from nnfast.kernels.cpu.driver import Program
from nnfast.kernels.cpu.fusion import fused

SETUP = """
import os, sys, threading
import numpy as np
import numba
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.kernels.cpu import threads

rng = np.random.default_rng(0)
x, W = rng.standard_normal((3000, 64)), rng.standard_normal((64, 96))
want = np.maximum(x @ W, 0)

def work(times=5):
    out, dy, dW = np.empty((3000, 96)), np.ones((3000, 96)), np.empty((64, 96))
    backend = NumbaBackend()
    for _ in range(times):
        out[:] = np.nan
        backend.linear_act(x, W, None, "relu", out=out)
        assert np.allclose(out, want)
        dy[:] = 1
        backend.linear_act_grad(dy, x, W, out, "relu", dx=None, dW=dW, db=None)
        assert np.allclose(dW, x.T @ (want > 0))
    return True
"""

LAYERS = ["omp", "workqueue", *(["tbb"] if importlib.util.find_spec("tbb") else [])]


def run(code: str, **env: str) -> str:
    """Run a program with at least two threads in a new process; returns what it printed."""
    env = {**os.environ, "NUMBA_NUM_THREADS": "2", **env}
    result = subprocess.run(
        [sys.executable, "-c", SETUP + textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("layer", LAYERS)
def test_fork_after_a_parallel_kernel(layer):
    out = run(
        """
        import multiprocessing, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        assert work() and numba.threading_layer() == os.environ["NUMBA_THREADING_LAYER"]
        child = os.fork()
        if child == 0:
            ok = work() and threads.count() == 1
            os._exit(0 if ok else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(work, [2, 2]) == [True, True]
        assert work() and threads.count() == 2
        print("ok")
        """,
        NUMBA_THREADING_LAYER=layer,
    )
    assert out == "ok\n"


@pytest.mark.parametrize("layer", LAYERS)
def test_several_python_threads(layer):
    out = run(
        """
        results = []
        workers = [threading.Thread(target=lambda: results.append(work(20))) for _ in range(4)]
        for w in workers: w.start()
        for w in workers: w.join(60)
        print(len(results), all(results))
        """,
        NUMBA_THREADING_LAYER=layer,
    )
    assert out == "4 True\n"


def test_small_work_starts_no_threads():
    out = run(
        """
        from numba.np.ufunc import parallel
        a = np.ones((4, 4), np.float32)
        out = np.empty_like(a)
        NumbaBackend().linear_act(a, a, a[0], "tanh", out=out)
        print(parallel._is_initialized)
        """
    )
    assert out == "False\n"


def blas_threads():
    from threadpoolctl import ThreadpoolController

    blas = ThreadpoolController().select(user_api="blas").lib_controllers
    return {library.filepath: library.get_num_threads() for library in blas}


def test_blas_runs_on_one_thread_and_is_restored():
    NumbaBackend().gemm(np.ones((40, 40)), np.ones((40, 40)), out=np.empty((40, 40)))
    controls = threads.single_threaded_blas._controls()
    assert controls
    before = [get() for get, _ in controls]
    seen = []

    def enter():
        with threads.single_threaded_blas, threads.single_threaded_blas:
            seen.append(([get() for get, _ in controls], blas_threads()))

    try:
        for _, put in controls:
            put(2)
        outside = blas_threads()
        in_another_thread = threading.Thread(target=enter)
        for run_it in (enter, lambda: (in_another_thread.start(), in_another_thread.join())):
            run_it()
            numbers, inside = seen.pop()
            assert numbers == [1] * len(controls)
            # NumPy's own library, where it has one, is the user's: its threads are not ours to take
            changed = [path for path in outside if inside[path] != outside[path]]
            assert len(changed) <= len(controls)
            assert blas_threads() == outside
    finally:
        for (_, put), number in zip(controls, before, strict=True):
            put(number)


@pytest.mark.parametrize("rows", [1, 3, 64, 200, 5000, 100_003])
@pytest.mark.parametrize("number", [1, 2, 7])
def test_tiles_cover_the_rows(rows, number):
    tiles = tuning.row_tiles(rows, number)
    assert (tiles.number - 1) * tiles.tile < rows <= tiles.number * tiles.tile
    assert (tiles.tasks - 1) * tiles.per_task < tiles.number <= tiles.tasks * tiles.per_task
    assert tiles.tasks <= number
    assert tiles.tile <= max(tuning.TILE_ROWS, 4)
    assert tiles.number == 1 or tiles.tile % 4 == 0  # dropout's random words come in fours
    for columns in (1, 500):
        tile, tasks = tuning.row_chunks(rows, columns, number)
        assert (tasks - 1) * tile < rows <= tasks * tile
    chunk, tasks = tuning.chunks(rows, number)
    assert (tasks - 1) * chunk < rows <= tasks * chunk
    assert tasks == 1 or chunk % 64 == 0


def test_results_do_not_depend_on_the_serial_or_parallel_driver(monkeypatch):
    """The tiles are fixed when recorded; who runs them must not matter."""
    rng = np.random.default_rng(0)
    x, W, b = (rng.standard_normal(s).astype(np.float32) for s in ((2000, 64), (64, 96), (96,)))
    out = np.empty((2000, 96), np.float32)
    replay = NumbaBackend().capture(lambda bk: bk.linear_act(x, W, b, "gelu", out=out))
    replay.run()
    first = out.copy()
    monkeypatch.setattr(threads, "count", lambda: 1)
    replay.run()
    np.testing.assert_array_equal(out, first)


def test_training_with_any_number_of_threads(monkeypatch):
    """Alike within rounding; with one thread and one seed the same bits again."""
    import nnfast as nf

    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((900, 20)).astype(np.float32), rng.integers(0, 5, 900)

    def trained(number):
        monkeypatch.setattr(threads, "count", lambda: number)
        model = nf.Sequential([nf.Dense(48, "gelu"), nf.Dropout(0.1), nf.Dense(5)])
        model.fit(X, y, loss="cross_entropy", epochs=3, batch_size=300, device="numba", seed=1, verbose=0)
        return model.get_flat_weights()

    one = trained(1)
    np.testing.assert_array_equal(trained(1), one)
    for number in (2, 3, 5):
        np.testing.assert_allclose(trained(number), one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_few_long_rows_are_shared(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "count", lambda: number)
    columns = tuning.LONG_ROW_BYTES // 4
    assert tuning.copy_tiles(5, 4 * columns, number).tasks == number
    assert tuning.copy_tiles(5, 4 * columns - 1, number) == tuning.row_tiles(5, number)
    x, index = np.arange(9 * columns, dtype=np.float32).reshape(9, columns), np.array([8, 0, 3, 3, 7])
    out = np.zeros((5, columns), np.float32)
    Program(fused([rows.gather_call(x, index, None, out)])).run()
    np.testing.assert_array_equal(out, x[index])
