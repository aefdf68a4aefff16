"""Records of calls that come again, at other addresses: always the result of the call itself."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from nnfast.backends import numba_repeat
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.kernels import step_state as S

RNG = np.random.default_rng(0)


def arrays(*shapes: tuple[int, ...], dtype: Any = np.float32) -> list[np.ndarray]:
    return [RNG.standard_normal(shape).astype(dtype) for shape in shapes]


def layer(n: int = 70, k: int = 40, m: int = 50, dtype: Any = np.float32) -> dict[str, Any]:
    x, W, b = arrays((n, k), (k, m), (m,), dtype=dtype)
    return {"x": x, "W": W, "b": b, "act": "relu", "out": np.empty((n, m), dtype), "saved": None}


def gradient(n: int = 70, k: int = 40, m: int = 50) -> dict[str, Any]:
    dy, x, W, saved = arrays((n, m), (n, k), (k, m), (n, m))
    dx, dW, db = (np.empty(shape, np.float32) for shape in ((n, k), (k, m), (m,)))
    return {"dy": dy, "x": x, "W": W, "saved": saved, "act": "tanh", "dx": dx, "dW": dW, "db": db}


def adam(size: int = 5000) -> dict[str, Any]:
    param, grad = arrays((size,), (size,))
    state = np.zeros(S.SIZE)
    state[[S.LR, S.STEP, S.GRAD_SCALE, S.P0, S.P1, S.P2]] = 0.01, 3, 1, 0.9, 0.999, 1e-8
    m, v = np.zeros((2, size), np.float32)
    return {"param": param, "grad": grad, "m": m, "v": v, "state": state, "decoupled": False}


def loss(n: int = 90) -> dict[str, Any]:
    [logits] = arrays((n, 10))
    state = np.zeros(S.SIZE)
    return {
        "logits": logits, "labels": RNG.integers(0, 10, n), "weight": None, "state": state, "smoothing": 0.0,
        "dlogits": np.empty_like(logits),
    }  # fmt: skip


CALLS: dict[str, Callable[..., dict[str, Any]]] = {
    "linear_act": layer, "linear_act_grad": gradient, "adam_step": adam, "softmax_xent": loss,
}  # fmt: skip


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_the_same_as_the_call(monkeypatch: pytest.MonkeyPatch, name: str, threads: int) -> None:
    monkeypatch.setattr("nnfast.kernels.cpu.threads.count", lambda: threads)
    bk, plain = NumbaBackend(), NumbaBackend()
    first = CALLS[name]()
    for arguments in (first, CALLS[name](), first, CALLS[name]()):
        expected = copied(arguments)
        getattr(plain, name)(**expected)
        bk.repeated(name, arguments)
        for key, value in expected.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(arguments[key], value, err_msg=key)
    assert len(bk._kept) == 1


def test_other_forms_have_records_of_their_own() -> None:
    bk = NumbaBackend()
    forms = [layer(), layer(71), layer(dtype=np.float64), {**layer(), "act": "tanh"}, {**layer(), "b": None}]
    square = layer(50, 50, 50)
    forms += [square, {**square, "out": square["x"].copy(), "W": square["x"]}]
    for arguments in (*forms, *forms):
        bk.repeated("linear_act", arguments)
        b = 0 if arguments["b"] is None else arguments["b"]
        z = arguments["x"].astype("f8") @ arguments["W"] + b
        expected = np.tanh(z) if arguments["act"] == "tanh" else np.maximum(z, 0)
        np.testing.assert_allclose(arguments["out"], expected, rtol=1e-4, atol=1e-4)
    assert len(bk._kept) == len(forms)


def test_in_place_or_not() -> None:
    """Equal shapes: only where the arrays lie differs."""
    bk = NumbaBackend()
    for in_place in (True, False, True, False):
        x, y = arrays((40, 300), (40, 300))
        out = x if in_place else np.empty_like(x)
        expected = x + y
        bk.repeated("add", {"x": x, "y": y, "out": out})
        np.testing.assert_array_equal(out, expected)
    assert len(bk._kept) == 2


def test_views_with_gaps_and_empty_arrays() -> None:
    bk = NumbaBackend()
    wide = RNG.standard_normal((30, 20))
    for x in (wide[:, ::2], wide[::2, :10], np.ascontiguousarray(wide[:, ::2]), wide[:0, :10]):
        out = np.empty(x.shape)
        for _ in range(2):
            bk.repeated("add", {"x": x, "y": x, "out": out})
            np.testing.assert_array_equal(out, 2 * x)


def test_arrays_are_not_kept_alive() -> None:
    bk = NumbaBackend()
    for name, make in CALLS.items():
        arguments = make()
        bk.repeated(name, arguments)
        held = [weakref.ref(x) for x in arguments.values() if isinstance(x, np.ndarray)]
        del arguments
        gc.collect()
        assert all(ref() is None for ref in held), name


def test_not_more_than_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_repeat, "_MOST", 3)
    bk = NumbaBackend()
    for n in (33, 34, 35, 36, 33, 36):
        arguments = layer(n)
        bk.repeated("linear_act", arguments)
        expected = np.maximum(arguments["x"] @ arguments["W"] + arguments["b"], 0)
        np.testing.assert_allclose(arguments["out"], expected, rtol=1e-4, atol=1e-4)
        assert len(bk._kept) <= 3


def test_not_more_memory_than_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_repeat, "_MOST_BYTES", 60_000)
    bk = NumbaBackend()
    for n in (70, 71, 72, 70):  # each packs the weights, and adds up gradients in parts
        bk.repeated("linear_act_grad", gradient(n, 40, 150))
        assert sum(kept.nbytes for kept in bk._kept.values()) <= 60_000
    monkeypatch.setattr(numba_repeat, "_MOST_BYTES", 0)
    arguments = layer(64)
    bk.repeated("linear_act", arguments)
    expected = np.maximum(arguments["x"] @ arguments["W"] + arguments["b"], 0)
    np.testing.assert_allclose(arguments["out"], expected, rtol=1e-4, atol=1e-4)
    assert not bk._kept


def test_threads_do_not_share_records() -> None:
    bk, wrong = NumbaBackend(), list[int]()

    def work(number: int) -> None:
        for _ in range(200):
            arguments = layer()
            arguments["x"][:] = number
            bk.repeated("linear_act", arguments)
            z = number * arguments["W"].astype("f8").sum(0) + arguments["b"]
            if not np.allclose(arguments["out"], np.maximum(z, 0), rtol=1e-3, atol=1e-3):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_recorder_keeps_the_call() -> None:
    bk, arguments = NumbaBackend(), layer()
    replay = bk.capture(lambda recorder: recorder.repeated("linear_act", arguments))
    arguments["x"][:] = 1
    replay.run()
    expected = np.maximum(arguments["W"].sum(0) + arguments["b"], 0)
    np.testing.assert_allclose(arguments["out"], np.tile(expected, (70, 1)), rtol=1e-4, atol=1e-4)
    assert not bk._kept


def test_errors_are_those_of_the_call() -> None:
    bk = NumbaBackend()
    bk.repeated("linear_act", layer())
    arguments = layer()
    arguments["out"].setflags(write=False)
    with pytest.raises(ValueError, match="out"):
        bk.repeated("linear_act", arguments)
