"""A recorded step replays natively: same numbers, no allocation, Python only where Python was asked for."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest

from nnfast.backends.numba_backend import NumbaBackend
from nnfast.backends.numba_replay import NumbaReplay
from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels import step_state as S

SIZES = {"small": (40, 9, 17, 5), "large": (1200, 64, 96, 10)}


class Network:
    """Two layers with dropout between them, cross-entropy and Adam, written on the contract alone."""

    def __init__(self, size: str, dtype=np.float32, seed: int = 0):
        rows, inputs, hidden, outputs = SIZES[size]
        rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((rows * 2, inputs)).astype(dtype)
        self.labels = rng.integers(0, outputs, rows * 2)
        self.order = rng.permutation(rows * 2)
        count = inputs * hidden + hidden + hidden * outputs + outputs
        self.param = (0.1 * rng.standard_normal(count)).astype(dtype)
        self.grad, self.m, self.v = np.zeros((3, count), dtype)
        self.start = self.param.copy()
        self.W1, self.b1, self.W2, self.b2 = self.split(self.param, inputs, hidden, outputs)
        self.gradients = self.split(self.grad, inputs, hidden, outputs)
        self.xb, self.h, self.dropped, self.dh, self.z, self.dz = (
            np.empty((rows, columns), dtype) for columns in (inputs, hidden, hidden, hidden, outputs, outputs)
        )
        self.yb = np.empty(rows, np.int64)
        self.table = np.full(100, 1e-2)
        self.state = np.zeros(S.SIZE)
        self.state[[S.P0, S.P1, S.P2, S.SEED_LO]] = 0.9, 0.999, 1e-8, 77
        self.rows = rows

    @staticmethod
    def split(flat, inputs, hidden, outputs):
        ends = np.cumsum([inputs * hidden, hidden, hidden * outputs, outputs])
        W1, b1, W2, b2, _ = np.split(flat, ends)
        return W1.reshape(inputs, hidden), b1, W2.reshape(hidden, outputs), b2

    def step(self, bk):
        dW1, db1, dW2, db2 = self.gradients
        bk.begin_step(self.state, self.table)
        bk.take_batch(self.x, self.order, self.state, out=self.xb)
        bk.take_batch(self.labels, self.order, self.state, out=self.yb)
        bk.linear_act(self.xb, self.W1, self.b1, "tanh", out=self.h)
        bk.dropout(self.h, self.state, rate=0.2, stream=1, out=self.dropped)
        bk.linear_act(self.dropped, self.W2, self.b2, "identity", out=self.z)
        bk.softmax_xent(self.z, self.yb, None, self.state, dlogits=self.dz)
        bk.record_loss(self.state)
        bk.linear_act_grad(self.dz, self.dropped, self.W2, None, "identity", dx=self.dh, dW=dW2, db=db2)
        bk.dropout(self.dh, self.state, rate=0.2, stream=1, out=self.dh)
        bk.linear_act_grad(self.dh, self.xb, self.W1, self.h, "tanh", dx=None, dW=dW1, db=db1)
        bk.clip_norm(self.grad, self.state, max_norm=1.0)
        bk.adam_step(self.param, self.grad, self.m, self.v, self.state, decoupled=False)


def trained(backend, size, steps, dtype=np.float64, pieces=None):
    network = Network(size, dtype)
    replay = backend.capture(network.step)
    for piece in pieces or [steps]:
        replay.run(piece)
    return network


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fused", [True, False])
def test_replay_trains_as_numpy_does(size, fused):
    want = trained(NumpyBackend(), size, 8)
    got = trained(NumbaBackend(fused=fused), size, 8)
    assert got.state[S.STEP] == 8
    np.testing.assert_allclose(got.param, want.param, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(got.state, want.state, rtol=1e-8)


@pytest.mark.parametrize("size", SIZES)
def test_replay_is_deterministic_and_divisible(size):
    first = trained(NumbaBackend(), size, 12, np.float32)
    for pieces in ([12], [5, 7], [1] * 12):
        again = trained(NumbaBackend(), size, 12, np.float32, pieces)
        np.testing.assert_array_equal(again.param, first.param)


@pytest.mark.parametrize("size", SIZES)
def test_eager_calls_give_the_replays_numbers(size):
    network = Network(size, np.float32)
    for _ in range(3):
        network.step(NumbaBackend())
    np.testing.assert_array_equal(network.param, trained(NumbaBackend(), size, 3, np.float32).param)


def test_recording_computes_nothing():
    network = Network("small")
    replay = NumbaBackend().capture(network.step)
    assert replay.native
    assert network.state[S.STEP] == 0
    np.testing.assert_array_equal(network.param, network.start)


@pytest.mark.parametrize("size", SIZES)
def test_replay_allocates_nothing(size):
    network = Network(size, np.float32)
    replay = NumbaBackend().capture(network.step)
    replay.run(2)
    tracemalloc.start()
    try:
        replay.run(20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < min(network.z.nbytes, network.xb.nbytes), peak


def test_replay_keeps_its_arrays_alive():
    def record():
        x, out = np.full((300, 300), 2.0, np.float32), np.zeros((300, 300), np.float32)
        return NumbaBackend().capture(lambda bk: bk.add(x, x, out=out)), out

    replay, out = record()
    junk = [np.ones((300, 300), np.float32) for _ in range(20)]
    replay.run()
    assert (out == 4).all()
    assert all((j == 1).all() for j in junk)


def test_python_runs_in_order_in_each_replay():
    seen = []
    x = np.zeros(8, np.float32)
    one = np.ones(8, np.float32)
    backend = NumbaBackend()

    def callback(bk, tag):
        seen.append((tag, float(x[0]), bk is backend))
        bk.add(x, one, out=x)

    def step(bk):
        bk.add(x, one, out=x)
        bk.python(callback, "a")
        bk.add(x, one, out=x)
        bk.python(callback, "b")

    replay = backend.capture(step)
    assert seen == []
    assert not replay.native
    replay.run(2)
    assert seen == [("a", 1.0, True), ("b", 3.0, True), ("a", 5.0, True), ("b", 7.0, True)]
    assert (x == 8).all()


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_what_kernels_do_not_support_runs_in_numpy_at_each_replay(dtype):
    x, out = np.ones(6, dtype), np.zeros(6, dtype)
    replay = NumbaBackend().capture(lambda bk: bk.add(x, x, out=out))
    assert (out == 0).all()
    replay.run()
    assert (out == 2).all()
    x[:] = 5
    replay.run()
    assert (out == 10).all()


def test_strided_arrays_give_numpys_result():
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((20, 14))[:, ::2], rng.standard_normal((5, 7)).T
    out, want = np.zeros((20, 5)), np.zeros((20, 5))
    replay = NumbaBackend().capture(lambda bk: bk.linear_act(x, W, None, "relu", out=out))
    replay.run()
    NumpyBackend().linear_act(x, W, None, "relu", out=want)
    np.testing.assert_allclose(out, want, rtol=1e-12)


def test_several_threads_train_at_once():
    want = {size: trained(NumbaBackend(), size, 30, np.float32).param for size in SIZES}
    results, errors = {}, []

    def work(i, size):
        try:
            results[i, size] = trained(NumbaBackend(), size, 30, np.float32).param
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i, size)) for i in range(2) for size in SIZES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    assert len(results) == 4
    for (_, size), param in results.items():
        np.testing.assert_array_equal(param, want[size])


# ---- several replays as one ---------------------------------------------------------------------------
def counters(backend, native=True):
    """Replays that append their digit to a number, and the number."""
    number = np.zeros(2)
    ten, digits = np.full((1, 1), 10.0), [np.full((1, 1), float(digit)) for digit in range(4)]
    x, y = number[:1].reshape(1, 1), number[1:].reshape(1, 1)

    def append(digit):
        def step(bk):
            bk.gemm(x, ten, out=y)
            if native:
                bk.add(y, digits[digit], out=x)
            else:
                bk.python(lambda _: np.add(y, digits[digit], out=x))

        return backend.capture(step)

    return [append(digit) for digit in range(4)], number


@pytest.mark.parametrize("kind", [NumpyBackend, NumbaBackend])
@pytest.mark.parametrize("native", [True, False])
def test_a_chain_runs_its_parts_in_order(kind, native):
    backend = kind()
    (zero, one, two, three), number = counters(backend, native)
    chain = backend.chain([(one, 2), (zero, 0), (two, 1), (three, 3)])
    if kind is NumbaBackend:
        assert isinstance(chain, NumbaReplay) == native
    chain.run()
    assert number[0] == 112333
    number[:] = 0
    chain.run(2)
    assert number[0] == 112333112333
    number[:] = 0
    backend.chain([(backend.chain([(one, 1), (two, 2)]), 2), (three, 1)]).run(2)
    assert number[0] == 12212231221223
    number[:] = 0
    chain.run(0)
    backend.chain([]).run(3)
    assert number[0] == 0


@pytest.mark.parametrize("size", SIZES)
def test_a_chain_of_steps_gives_the_steps_numbers(size):
    network = Network(size, np.float32)
    replay = NumbaBackend().capture(network.step)
    chain = NumbaBackend().chain([(replay, 3), (replay, 1)])
    assert chain.native
    chain.run(3)
    np.testing.assert_array_equal(network.param, trained(NumbaBackend(), size, 12, np.float32).param)


# ---- wrong input --------------------------------------------------------------------------------------
def arrays(*shapes):
    return [np.zeros(shape, np.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        (lambda bk, a, b, c: bk.gemm(a, b, out=c), [(3, 4), (5, 6), (3, 6)]),
        (lambda bk, a, b, c: bk.gemm(a, b, out=c), [(3, 4), (4, 6), (3, 5)]),
        (lambda bk, a, b, c: bk.gemm(a, b, out=c, trans_a=True), [(3, 4), (4, 6), (3, 6)]),
        (lambda bk, a, b, c: bk.add(a, b, out=c), [(3, 4), (4,), (3, 4)]),
        (lambda bk, a, b, c: bk.add_bias(a, b, out=c), [(3, 4), (3,), (3, 4)]),
        (lambda bk, a, b, c: bk.linear_act(a, b, None, "relu", out=c), [(3, 4), (4, 5), (2, 5)]),
        (lambda bk, a, b, c: bk.linear_act(a, b, c[0], "relu", out=c), [(3, 4), (4, 5), (3, 4)]),
        (lambda bk, a, b, c: bk.act_grad("relu", a, b, out=c), [(3, 4), (3, 5), (3, 4)]),
        (lambda bk, a, b, c: bk.adam_step(a, b, c, c, np.zeros(S.SIZE), decoupled=False), [(5,), (5,), (4,)]),
        (lambda bk, a, b, c: bk.sum_rows(a, out=b), [(3, 4), (3,), (1,)]),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_wrong_shapes_are_named(call, shapes, recorded):
    given = arrays(*shapes)
    backend = NumbaBackend()
    run = backend.capture if recorded else (lambda step: step(backend))
    with pytest.raises(ValueError, match=r"shape|elements"):
        run(lambda bk: call(bk, *given))


def test_read_only_output_is_refused():
    x, out = arrays((3, 4), (3, 4))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        NumbaBackend().act("relu", x, out=out)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_index_out_of_range(wrong):
    x, out = np.zeros((10, 3), np.float32), np.zeros((2, 3), np.float32)
    index = np.array([0, wrong])
    for call in (
        lambda: NumbaBackend().take_rows(x, index, out=out),
        lambda: NumbaBackend().add_at_rows(out, index, out=x),
        lambda: NumbaBackend().take_batch(x, index, np.zeros(S.SIZE), out=out),
    ):
        with pytest.raises(IndexError, match=f"index {wrong}"):
            call()
