"""Calls run tile by tile where that changes nothing, and one after the other where it would."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

import nnfast as nf
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels import step_state as S
from nnfast.kernels.cpu import activations, chain, fusion, linear, tuning
from nnfast.kernels.cpu.driver import Call, Program
from nnfast.kernels.cpu.fusion import fused


def tiled(out: np.ndarray, bias: float, tiles: tuning.Tiles, z: np.ndarray | None = None) -> Call:
    """``out = z + bias`` on tiles of rows."""
    z = out if z is None else z
    return activations.forward_call("identity", 0.0, z, np.full(z.shape[1], bias, z.dtype), None, tiles, out)


def names(calls: list[Call]) -> list[int]:
    return [len(call.keep) if call.function == chain.kernel(chain.chain_tiles) else 0 for call in calls]


def test_calls_on_the_same_tiles_become_one() -> None:
    x = np.zeros((10, 3), np.float32)
    tiles = tuning.Tiles(10, 4)
    calls = fused([tiled(x, 1.0, tiles), tiled(x, 2.0, tiles), tiled(x, 3.0, tiles)])
    assert names(calls) == [3]
    Program(calls).run()
    np.testing.assert_array_equal(x, 6.0)


def test_other_tiles_begin_a_new_chain() -> None:
    x = np.zeros((10, 3), np.float32)
    calls = fused([tiled(x, 1.0, tuning.Tiles(10, 4, 2)), tiled(x, 2.0, tuning.Tiles(10, 5, 2))])
    assert names(calls) == [1, 1]
    Program(calls).run()
    np.testing.assert_array_equal(x, 3.0)


def test_rows_of_other_lengths_in_the_same_memory_are_not_mixed() -> None:
    memory = np.zeros(60, np.float32)
    narrow, wide, out = memory[:20].reshape(10, 2), memory.reshape(10, 6), np.zeros((10, 2), np.float32)
    narrow += np.arange(20).reshape(10, 2)
    tiles = tuning.Tiles(10, 2)
    # Tile by tile, the first rows of `wide` would overwrite rows of `narrow` that were not read yet
    calls = fused([tiled(out, 0.0, tiles, z=narrow), tiled(wide, 100.0, tiles)])
    assert len(calls) == 2
    Program(calls).run()
    np.testing.assert_array_equal(out, np.arange(20).reshape(10, 2))
    reading = fused([tiled(out, 0.0, tiles, z=narrow), tiled(np.zeros((10, 6), np.float32), 0.0, tiles, z=wide)])
    assert len(reading) == 1  # nobody writes there


def test_what_a_late_call_reads_is_not_overwritten_before() -> None:
    x, total = np.ones((10, 3), np.float32), np.zeros((10, 3), np.float32)
    tiles = tuning.Tiles(10, 4)
    late = tiled(total, 0.0, tiles, z=x)
    late = Call(late.function, late.ints, late.floats, late.tasks, keep=(late,), reads=(x,), when="late")
    calls = fused([tiled(x, 1.0, tiles), late, tiled(x, 5.0, tiles)])
    Program(calls).run()
    np.testing.assert_array_equal(total, 2.0)
    np.testing.assert_array_equal(x, 7.0)


def test_early_and_late_calls_do_not_end_a_chain() -> None:
    x, y = np.zeros((10, 3), np.float32), np.zeros((10, 3), np.float32)
    tiles = tuning.Tiles(10, 4)

    def plain(when: str) -> Call:
        call = tiled(y, 1.0, tiles)
        return Call(call.function, call.ints, call.floats, call.tasks, keep=(call,), when=when)

    calls = fused([tiled(x, 1.0, tiles), plain("early"), tiled(x, 1.0, tiles), plain("late"), tiled(x, 1.0, tiles)])
    assert names(calls) == [0, 3, 0]
    assert names(fused([tiled(x, 1.0, tiles), plain(""), tiled(x, 1.0, tiles)])) == [0, 0, 0]


def _same_as_numpy(step, *arrays: np.ndarray) -> None:
    """A recorded step on copies of the arrays gives what the NumPy backend gives."""
    results = []
    for backend in (NumbaBackend(), NumpyBackend()):
        copies = [array.copy() for array in arrays]
        backend.capture(lambda bk, copies=copies: step(bk, *copies)).run()
        results.append(copies)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_what_a_tile_needs_whole_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, biases and gradients that are themselves computed in the step, as a layer of one's own may do."""
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: 2)
    rng = np.random.default_rng(0)
    n = 1500
    x, dy, y, z, dx = (rng.standard_normal((n, 40)).astype("f4") for _ in range(5))
    dy /= 100  # gradients of the size of weights
    raw, W, dW, W2 = (rng.standard_normal((40, 40)).astype("f4") / 6 for _ in range(4))
    square = rng.standard_normal((n, n)).astype("f4") / 40
    b, db = rng.standard_normal(40).astype("f4"), np.zeros(40, "f4")

    def weights_of_rows(bk, x, y, square, z):
        bk.act("tanh", x, out=y)
        bk.linear_act(square, y, None, "identity", out=z)  # every row needs all rows of y

    def packed_weights(bk, raw, W, dy, x, dx, dW):
        bk.act("tanh", raw, out=W)
        bk.linear_act_grad(dy, x, W, None, "identity", dx=dx, dW=dW, db=None)

    def gradient_as_weights(bk, dy, x, W, dW, db, W2, z):
        bk.linear_act_grad(dy, x, W, None, "identity", dx=None, dW=dW, db=db)
        bk.act("tanh", dW, out=W2)
        bk.linear_act(x, dW, db, "tanh", out=z, saved=None)

    def sum_as_bias(bk, x, b, W, z):
        bk.sum_rows(x, out=b)
        bk.linear_act(x, W, b, "relu", out=z)

    _same_as_numpy(weights_of_rows, x, y, square, z)
    _same_as_numpy(packed_weights, raw, W, dy, x, dx, dW)
    _same_as_numpy(gradient_as_weights, dy, x, W, dW, db, W2, z)
    _same_as_numpy(sum_as_bias, x, b, W, z)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("rows", [7, 64, 200, 900, 5000])
@pytest.mark.parametrize("act", ["relu", "gelu", "softmax"])
def test_a_layer_forward_and_back(
    monkeypatch: pytest.MonkeyPatch, dtype: str, number: int, rows: int, act: str
) -> None:
    """The fused calls against the same calls one after the other, and against NumPy."""
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: number)
    rng = np.random.default_rng(rows)
    x, W, b, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, 40), (40, 24), (24,), (rows, 24)))
    results = []
    for arrange in (fused, list):
        out, saved, dx, dW, db = (np.full_like(a, np.nan) for a in (dy, dy, x, W, b))
        dz = dy.copy()
        kept = saved if act == "gelu" else None
        calls = linear.forward_calls(x, W, b, act, 0.0, out, kept)
        calls += linear.backward_calls(dz, x, W, saved if act == "gelu" else out, act, 0.0, dx, dW, db)
        if arrange is list:
            monkeypatch.setattr(tuning, "PARALLEL_NS", np.inf)
            calls = [one for call in calls for one in fused([call])]
        Program(arrange(calls)).run()
        results.append((out, dz, dx, dW, db))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    out, dz, dx, dW, db = (a.astype(np.float64) for a in results[0])
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(dx, dz @ W.T.astype(np.float64), atol=200 * eps)
    np.testing.assert_allclose(dW, x.T.astype(np.float64) @ dz, atol=2000 * eps * np.sqrt(rows))
    np.testing.assert_allclose(db, dz.sum(axis=0), atol=200 * eps * np.sqrt(rows))


def test_a_step_with_dropout_is_one_chain_and_the_late_work() -> None:
    """From the gather to the last gradient nothing comes between the tiles of a step."""
    rng = np.random.default_rng(0)
    data, labels, order = rng.standard_normal((500, 20)).astype("f4"), rng.integers(0, 5, 500), rng.permutation(500)
    W1, b1, W2, b2 = (rng.standard_normal(s).astype("f4") for s in ((20, 30), (30,), (30, 5), (5,)))
    x, h, d, z, dz, dh = (np.zeros((400, n), "f4") for n in (20, 30, 30, 5, 5, 30))
    y = np.zeros(400, np.int64)
    gradients = [np.zeros_like(a) for a in (W1, b1, W2, b2)]
    state = np.zeros(S.SIZE)

    def step(bk: NumbaBackend) -> None:
        dW1, db1, dW2, db2 = gradients
        bk.take_batch(data, order, state, out=x)
        bk.take_batch(labels, order, state, out=y)
        bk.linear_act(x, W1, b1, "relu", out=h)
        bk.dropout(h, state, rate=0.5, stream=0, out=d)
        bk.linear_act(d, W2, b2, "identity", out=z)
        bk.softmax_xent(z, y, None, state, dlogits=dz)
        bk.record_loss(state)
        bk.linear_act_grad(dz, d, W2, None, "identity", dx=dh, dW=dW2, db=db2)
        bk.dropout(dh, state, rate=0.5, stream=0, out=dh)
        bk.linear_act_grad(dh, x, W1, h, "relu", dx=None, dW=dW1, db=db1)

    (program,) = NumbaBackend().capture(step).parts
    chains = [call for call in program.calls if call.function == chain.kernel(chain.chain_tiles)]
    if not chains:  # one tile, on one thread
        pytest.skip("the batch is one tile here")
    assert len(chains) == 1
    assert len(chains[0].keep) >= 9


OPTIMIZERS = {
    "sgd": lambda: nf.SGD(0.05, weight_decay=0.01),
    "momentum": lambda: nf.SGD(0.05, momentum=0.9),
    "nesterov": lambda: nf.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: nf.Adam(0.01),
    "adamw and a moving average": lambda: nf.AdamW(0.01, ema=0.9),
    "adamax": lambda: nf.Adamax(0.01),
    "nadam": lambda: nf.NAdam(0.01),
    "adagrad": lambda: nf.Adagrad(0.05),
    "rmsprop": lambda: nf.RMSprop(0.01, momentum=0.9, centered=True),
    "lion": lambda: nf.Lion(0.01),
    "clipped": lambda: nf.Adam(0.01, clip_norm=0.1),
}


def _trained(name: str, dtype: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((150, 30)).astype(dtype), rng.integers(0, 5, 150)
    model = nf.Sequential([nf.Dense(37, "tanh"), nf.Dense(16, "relu", bias=False), nf.Dense(5)])
    history = model.fit(
        X, y, loss="cross_entropy", optimizer=OPTIMIZERS[name](), epochs=3, batch_size=64,
        device="numba", dtype=dtype, seed=0, verbose=0,
    )  # fmt: skip
    return {**model.get_weights(), **model.parameters.get_slots()}, np.array(history["loss"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updating_weights_while_their_gradient_is_near_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, dtype: str
) -> None:
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: number)
    monkeypatch.setattr(tuning, "SPLIT_BATCH_ELEMENTS", 0)  # no gradient is a sum of the threads' parts
    cut: list[int] = []
    original = fusion._cut_for_update

    def counted(*args):
        product = original(*args)
        cut.append(product is not None)
        return product

    monkeypatch.setattr(fusion, "_cut_for_update", counted)
    monkeypatch.setattr(tuning, "UPDATE_BYTES", 1 << 60)
    expected, losses = _trained(name, dtype)
    assert not any(cut)
    monkeypatch.setattr(tuning, "UPDATE_BYTES", 500)
    found, found_losses = _trained(name, dtype)
    # A norm is known only when all gradients are; one tile on one thread is summed with the rest of its step
    assert any(cut) == (name != "clipped" and number > 1)
    np.testing.assert_array_equal(found_losses, losses)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_a_gradient_that_another_call_needs_is_not_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The update waits where the product's operands are weights, or where a later product reads the gradient."""
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: 2)
    monkeypatch.setattr(tuning, "SPLIT_BATCH_ELEMENTS", 0)
    monkeypatch.setattr(tuning, "UPDATE_BYTES", 500)
    rng = np.random.default_rng(0)
    flat = rng.standard_normal(3 * 80 * 80).astype("f4")
    x, dy = rng.standard_normal((2, 200, 80)).astype("f4")

    def step(bk, flat, grad, x, dy, state):
        (W, W2, W3), (dW, dW2, dW3) = flat.reshape(3, 80, 80), grad.reshape(3, 80, 80)
        bk.linear_act_grad(dy, x, W, None, "identity", dx=None, dW=dW, db=None)
        bk.linear_act_grad(dW, W2, W, None, "identity", dx=None, dW=dW2, db=None)
        bk.linear_act_grad(dy, x, W3, None, "identity", dx=None, dW=dW3, db=None)
        bk.sgd_step(flat, grad, None, state, nesterov=False)

    state = np.zeros(S.SIZE)
    state[[S.LR, S.GRAD_SCALE, S.STEP]] = 0.01, 1.0, 1.0
    _same_as_numpy(step, flat, np.zeros_like(flat), x, dy, state)


def test_a_large_gradient_of_few_rows_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are one thread's, the weights are not."""
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: 2)
    rng = np.random.default_rng(0)
    x, dy, dx = (rng.standard_normal((8, n)).astype("f4") for n in (600, 200, 600))
    W, dW, db = rng.standard_normal((600, 200)).astype("f4"), np.zeros((600, 200), "f4"), np.zeros(200, "f4")

    def step(bk, x, dy, dx, W, dW, db):
        bk.linear_act_grad(dy, x, W, None, "identity", dx=dx, dW=dW, db=db)

    _same_as_numpy(step, x, dy, dx, W, dW, db)
    replay = NumbaBackend().capture(lambda bk: step(bk, x, dy, dx, W, dW, db))
    (program,) = replay.parts
    [last] = [call for call in program.calls if call.writes and call.writes[0] is dW]
    assert last.parallel
    assert last.tasks == 2
