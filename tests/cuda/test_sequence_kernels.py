"""Recurrent layers, attention and what goes with it on the emulated device, against NumPy in float64.

The reference starts from the numbers as the narrow types have them. Arrays on the device start at an aligned address or
one element after it, and outputs hold NaN before they are written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnfast.backends.numpy_backend import NumpyBackend
from nnfast.kernels.cuda import expressions
from tests.cuda.emulator import EmulatedBackend, emulated_backend
from tests.cuda.host_shim import HostShim

#: Of the policy (DESIGN): relative to each number, and to the largest of an array, forward and for gradients
TOLERANCE = {"float64": (1e-12, 1e-10), "float32": (1e-5, 1e-4), "float16": (2e-3, 1e-2), "bfloat16": (1.6e-2, 1e-1)}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)
KINDS = ["rnn tanh", "rnn relu", "gru after", "gru before", "lstm"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


class Side:
    """Arrays on one backend: of a narrow type on the device, the same numbers in float64 for the reference."""

    def __init__(self, bk: Any, dtype: str, offset: int = 0) -> None:
        self.bk, self.exact, self.offset = bk, isinstance(bk, NumpyBackend), offset
        self.dtype = numpy_dtype(dtype)
        self.full = np.dtype("float32") if self.dtype.itemsize == 2 else self.dtype

    def __call__(self, value: np.ndarray | None, full: bool = False) -> Any:
        if value is None:
            return None
        value = value.astype(self.full if full else self.dtype)
        value = value.astype(np.float64) if self.exact else value
        whole = self.bk.zeros(value.size + self.offset, value.dtype)
        out = whole[self.offset :].reshape(value.shape)
        self.bk.copy(value, out=out)
        return out

    def out(self, *shape: int, full: bool = False) -> Any:
        return self(np.full(shape, np.nan), full)

    def host(self, x: Any) -> np.ndarray:
        return np.asarray(self.bk.to_numpy(x)).astype(np.float64)


def compare(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], dtype: str) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        tolerance = TOLERANCE[dtype][name.startswith("d")]
        scale = max(1.0, float(np.abs(value[np.isfinite(value)]).max(initial=0.0)))
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance * scale, err_msg=name)


# ---- recurrent layers -----------------------------------------------------------------------------
#: Sources of the kernels that are tested here
FILES = (
    *("recurrent", "gru", "gru_grad", "attention", "attention_grad", "attention_tensor", "attention_tensor_grad"),
    *("rotary", "masks"),
)
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def recurrent_data(
    kind: str, shape: tuple[int, ...], masked: bool, initial: bool, last: bool, bias: bool
) -> dict[str, Any]:
    n, t, k, h = shape
    g = GATES[kind.split()[0]]
    rng = np.random.default_rng(n * t + h)
    data: dict[str, Any] = {
        "x": rng.standard_normal((n, t, k)),
        "dy": rng.standard_normal((n, h) if last else (n, t, h)),
    }
    data |= {"W": rng.standard_normal((k, g * h)) / k**0.5, "U": rng.standard_normal((h, g * h)) / (2 * h**0.5)}
    for name in ("b", "c"):
        data[name] = rng.standard_normal(g * h) if bias else None
    for name in ("h0", "c0"):
        data[name] = rng.standard_normal((n, h)) if initial else None
    data["mask"] = (rng.random((n, t)) < 0.6).astype(float) if masked else None
    return data


def recurrent(side: Side, kind: str, data: dict[str, Any], reverse: bool, first: bool = False) -> dict[str, np.ndarray]:
    """Both directions; what comes out."""
    bk, (name, *how) = side.bk, kind.split()
    given = {key: side(value) for key, value in data.items()}
    x, W, U, b, h0, mask = (given[key] for key in ("x", "W", "U", "b", "h0", "mask"))
    (n, t, k), h, g = x.shape, U.shape[0], GATES[name]
    along: dict[str, Any] = {"h0": h0, "mask": mask, "reverse": reverse}
    y, initial = side.out(n, t, h), h0 is not None
    outs: dict[str, Any] = {"y": y, "dW": side.out(k, g * h, full=True), "dU": side.out(h, g * h, full=True)}
    if not first:
        outs["dx"] = side.out(n, t, k)
    if b is not None:
        outs["db"] = side.out(g * h, full=True)
    if initial:
        outs["dh0"] = side.out(n, h)
    if name == "gru":
        option: dict[str, Any] = {"reset_after": how == ["after"]}
        gates = side.out(n, t, 4 * h)
        bk.gru(x, W, U, b, given["c"], **option, **along, y=y, gates=gates)
        outs["dc"] = side.out(g * h, full=True)
        saved: dict[str, Any] = {"gates": gates, "dc": outs["dc"], **option}
    elif name == "lstm":
        saved = {"cells": side.out(n, t, h), "gates": side.out(n, t, 4 * h), "c0": given["c0"]}
        outs["last_cell"] = side.out(n, h)
        bk.lstm(x, W, U, b, **along, y=y, last_cell=outs["last_cell"], **saved)
        if initial:
            saved["dc0"] = outs["dc0"] = side.out(n, h)
    else:
        bk.rnn(x, W, U, b, *how, **along, y=y)
        saved = {}
    grads = {key: outs.get(key) for key in ("dx", "dW", "dU", "db", "dh0")}
    act = how if name == "rnn" else []
    getattr(bk, f"{name}_grad")(given["dy"], x, W, U, *act, y=y, **along, **saved, **grads)
    kept = side.host(given["dy"])
    np.testing.assert_array_equal(kept, data["dy"].astype(side.dtype).astype(np.float64), err_msg="dy is not used up")
    return {key: side.host(value) for key, value in outs.items()}


# sizes n, t, k, h; masked, initial state, gradient of the last state alone, biases, reverse, offset of addresses
CASES = {
    "all": ((5, 4, 3, 7), True, True, False, True, True, 1),
    "plain": ((3, 3, 4, 16), False, False, False, False, False, 0),
    "one": ((1, 1, 1, 1), False, True, True, True, False, 0),
    "last": ((40, 3, 5, 8), True, False, True, True, False, 0),
    "initial": ((6, 2, 8, 24), False, True, True, True, True, 0),
}


@each_kind
@each_dtype
@pytest.mark.parametrize("case", CASES)
def test_recurrent(emulated_cuda: EmulatedBackend, kind: str, dtype: str, case: str) -> None:
    *sizes, reverse, offset = CASES[case]
    data = recurrent_data(kind, *sizes)
    found = recurrent(Side(emulated_cuda, dtype, offset), kind, data, reverse, case == "last")
    assert any("_step" in name or "gru" in name for name in emulated_cuda.counts.kernels)
    compare(found, recurrent(Side(NumpyBackend(), dtype), kind, data, reverse, case == "last"), dtype)


@pytest.mark.parametrize("kind", ["gru after", "gru before", "lstm"])
def test_nothing_is_kept_outside_training(emulated_cuda: EmulatedBackend, kind: str) -> None:
    data = recurrent_data(kind, (4, 3, 2, 8), True, True, False, True)
    side = Side(emulated_cuda, "float32")
    wanted = recurrent(side, kind, data, False)["y"]
    x, W, U, b, c, h0, c0, mask = (side(data[key]) for key in ("x", "W", "U", "b", "c", "h0", "c0", "mask"))
    y = side.out(4, 3, 8)
    if kind == "lstm":
        emulated_cuda.lstm(x, W, U, b, h0=h0, c0=c0, mask=mask, y=y, cells=None, gates=None)
    else:
        emulated_cuda.gru(x, W, U, b, c, reset_after=kind == "gru after", h0=h0, mask=mask, y=y, gates=None)
    np.testing.assert_array_equal(side.host(y), wanted)


@pytest.mark.parametrize("dtype", ["bool", "int64", "float64", "float16"])
def test_masks_of_any_type(emulated_cuda: EmulatedBackend, dtype: str) -> None:
    data = recurrent_data("rnn tanh", (4, 3, 2, 5), True, False, False, True)
    side, ys = Side(emulated_cuda, "float32"), []
    for kind in ("float32", dtype):
        x, W, U, b = (side(data[key]) for key in ("x", "W", "U", "b"))
        ys.append(side.out(4, 3, 5))
        emulated_cuda.rnn(x, W, U, b, "tanh", mask=emulated_cuda.asarray(data["mask"].astype(kind)), y=ys[-1])
    np.testing.assert_array_equal(side.host(ys[1]), side.host(ys[0]))


@each_kind
def test_gradients_that_lie_apart(emulated_cuda: EmulatedBackend, kind: str) -> None:
    """dy, dx and dh0 may be in any form: the form of what the forward pass kept says which path is taken."""
    data = recurrent_data(kind, (4, 3, 2, 5), False, True, False, True)

    class Apart(Side):
        def __call__(self, value: Any, full: bool = False) -> Any:
            out = super().__call__(value, full)
            if value is data["dy"] or (
                value is not None and np.isnan(value).any() and value.shape in ((4, 3, 2), (4, 5))
            ):
                wider = self.bk.zeros((*out.shape[:-1], 2 * out.shape[-1]), out.dtype)
                self.bk.copy(out, out=wider[..., ::2])
                return wider[..., ::2]
            return out

    found = recurrent(Apart(emulated_cuda, "float64"), kind, data, True)
    compare(found, recurrent(Side(NumpyBackend(), "float64"), kind, data, True), "float64")


def test_what_the_kernels_do_not_support_is_computed_all_the_same(emulated_cuda: EmulatedBackend) -> None:
    data = recurrent_data("lstm", (4, 3, 2, 5), False, False, False, True)
    side = Side(emulated_cuda, "float64")
    x, W, U, b = (side(data[key]) for key in ("x", "W", "U", "b"))
    apart, y = side.out(4, 3, 10)[:, :, ::2], side.out(4, 3, 5)
    for out in (apart, y):
        emulated_cuda.lstm(x, W, U, b, y=out, cells=None, gates=None)
    np.testing.assert_allclose(side.host(apart), side.host(y), rtol=1e-12)
    with pytest.raises(ValueError, match="tanh or relu"):
        emulated_cuda.rnn(x, W[:, :5], U[:, :5], None, "gelu", y=y)


# ---- attention --------------------------------------------------------------------------------------
def attention_data(n: int, t: int, s: int, heads: int, d: int, masked: bool) -> dict[str, Any]:
    rng = np.random.default_rng(t + s + d)
    data: dict[str, Any] = {name: rng.standard_normal((n, t, heads * d)) for name in ("q", "dy")}
    data |= {name: rng.standard_normal((n, s, heads * d)) for name in ("k", "v")}
    mask = (rng.random((n, s)) < 0.7).astype(float)
    mask[-1] = 0.0
    return {**data, "mask": mask if masked else None}


def side_by_side(side: Side, *arrays: np.ndarray | tuple[int, ...]) -> list[Any]:
    """Views of one wider array, with eight more columns than they need."""
    shapes = [x if isinstance(x, tuple) else x.shape for x in arrays]
    held = side(np.full((*shapes[0][:2], sum(shape[2] for shape in shapes) + 8), np.nan))
    views, at = [], 0
    for x, shape in zip(arrays, shapes, strict=True):
        views.append(held[:, :, at : at + shape[2]])
        at += shape[2]
        if not isinstance(x, tuple):
            side.bk.copy(side(x), out=views[-1])
    return views


def attention(side: Side, data: dict[str, Any], heads: int, causal: bool, strided: bool) -> dict[str, np.ndarray]:
    bk, (n, t, width) = side.bk, data["q"].shape
    names, shape, of_keys = ("q", "k", "v", "dy"), data["q"].shape, data["k"].shape
    if strided:
        q, dy, out, dq = side_by_side(side, data["q"], data["dy"], shape, shape)
        k, v, dk, dv = side_by_side(side, data["k"], data["v"], of_keys, of_keys)
    else:
        q, k, v, dy = (side(data[name]) for name in names)
        out, dq, dk, dv = (side.out(*x) for x in (shape, shape, of_keys, of_keys))
    lse, mask = side.out(n, heads, t, full=True), side(data["mask"])
    options: dict[str, Any] = {"heads": heads, "causal": causal, "scale": (width // heads) ** -0.5, "mask": mask}
    bk.attention(q, k, v, **options, out=out, lse=lse)
    bk.attention_grad(dy, q, k, v, **options, out=out, lse=lse, dq=dq, dk=dk, dv=dv)
    outs = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
    return {name: side.host(x) for name, x in outs.items()}


# n, t, s, heads, d; masked, causal, strided, offset; whether 16 bits go to tensor cores
ATTENTION = {
    "one": ((1, 1, 1, 1, 1), False, False, False, 0, False),
    "odd": ((2, 67, 70, 2, 5), True, True, True, 1, False),
    "packed": ((2, 70, 66, 1, 32), True, False, False, 0, True),
    "fewer keys": ((1, 70, 9, 2, 16), False, True, False, 0, True),
    "as many keys": ((1, 70, 70, 1, 16), False, True, False, 0, True),
    "more keys": ((1, 9, 130, 1, 72), False, True, True, 0, True),
    "wide": ((1, 5, 66, 1, 136), False, True, True, 0, False),
    "beside": ((3, 7, 9, 2, 72), True, True, True, 0, True),
    "not aligned": ((1, 7, 9, 2, 72), True, True, True, 1, False),
}


@each_dtype
@pytest.mark.parametrize("case", ATTENTION)
def test_attention(emulated_cuda: EmulatedBackend, dtype: str, case: str) -> None:
    sizes, masked, causal, strided, offset, tensor = ATTENTION[case]
    data = attention_data(*sizes, masked)
    found = attention(Side(emulated_cuda, dtype, offset), data, sizes[3], causal, strided)
    launched = emulated_cuda.counts.kernels
    assert len(launched) == 4
    assert sum("tensor" in name for name in launched) == (3 if tensor and dtype.endswith("float16") else 0)
    wanted = attention(Side(NumpyBackend(), dtype), data, sizes[3], causal, strided)
    if masked:  # the last sequence sees nothing
        assert np.isneginf(found["lse"][-1]).all()
        assert not found["out"][-1].any()
        assert not found["dk"][-1].any()
    compare(found, wanted, dtype)


def test_scores_far_from_zero(emulated_cuda: EmulatedBackend) -> None:
    """The running maximum keeps exp within its range, wherever the largest score comes."""
    data = attention_data(1, 70, 140, 1, 8, False)
    data["q"], data["k"] = 20 * data["q"], 20 * data["k"]
    found = attention(Side(emulated_cuda, "float64"), data, 1, False, False)
    compare(found, attention(Side(NumpyBackend(), "float64"), data, 1, False, False), "float64")


def test_attention_of_another_form_is_computed_all_the_same(emulated_cuda: EmulatedBackend) -> None:
    side = Side(emulated_cuda, "float64")
    q = side(np.random.default_rng(0).standard_normal((2, 5, 12)))
    apart, out = side.out(2, 5, 24)[:, :, ::2], side.out(2, 5, 12)
    for where in (apart, out):
        emulated_cuda.attention(q, q, q, heads=3, causal=True, scale=0.5, out=where, lse=None)
    assert len(emulated_cuda.counts.kernels) == 1
    np.testing.assert_allclose(side.host(apart), side.host(out), rtol=1e-12)


@each_dtype
@pytest.mark.parametrize("inverse", [False, True])
def test_rotary(emulated_cuda: EmulatedBackend, dtype: str, inverse: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 24))
    results = []
    for bk in (emulated_cuda, NumpyBackend()):
        side = Side(bk, dtype)
        given, out = side_by_side(side, x, x.shape)
        options: dict[str, Any] = {"heads": 2, "base": 1e4, "first": 3000, "inverse": inverse}
        bk.rotary(given, **options, out=out)
        bk.rotary(given, **options, out=given)
        results.append({"apart": side.host(out), "in place": side.host(given)})
    assert len(emulated_cuda.counts.kernels) == 2
    compare(*results, dtype)
    np.testing.assert_array_equal(results[0]["apart"], results[0]["in place"])


@each_dtype
@pytest.mark.parametrize("kind", ["index", "float"])
def test_masks_of_steps(emulated_cuda: EmulatedBackend, dtype: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (300, 3)) if kind == "index" else 0.1 * rng.integers(0, 2, (300, 3))
    if kind == "float":
        x[0, 1] = np.nan
    results = []
    for bk in (emulated_cuda, NumpyBackend()):
        side = Side(bk, dtype)
        given = bk.asarray(x) if kind == "index" else side(x)
        out, scaled = side.out(300), side.out(300, 7)
        bk.step_mask(given, value=0, out=out)
        rows = side(np.random.default_rng(1).standard_normal((300, 7)))
        bk.scale_rows(rows, out, out=scaled)
        bk.scale_rows(rows, out, out=rows)
        results.append({"mask": side.host(out), "scaled": side.host(scaled), "in place": side.host(rows)})
    assert len(emulated_cuda.counts.kernels) == 3
    compare(*results, dtype)
    assert set(results[0]["mask"]) == {0.0, 1.0}


# ---- what holds for all of them -----------------------------------------------------------------------
class Everything:
    """All of it on one backend, with arrays that are made once."""

    def __init__(self, bk: EmulatedBackend, dtype: str) -> None:
        self.side = Side(bk, dtype)
        self.data = {kind: recurrent_data(kind, (5, 3, 2, 8), True, True, False, True) for kind in KINDS}

    def run(self) -> dict[str, np.ndarray]:
        results = {}
        for kind, data in self.data.items():
            results |= {f"{kind} {name}": x for name, x in recurrent(self.side, kind, data, True).items()}
        for d, steps in ((5, 9), (8, 67), (72, 67)):  # several tiles of both
            found = attention(self.side, attention_data(2, steps, 70, 1, d, True), 1, True, True)
            results |= {f"attention {d} {name}": x for name, x in found.items()}
        x, out = self.side(np.ones((2, 3, 8))), self.side.out(2, 3, 8)
        self.side.bk.rotary(x, heads=2, base=100.0, out=out)
        rows, mask = self.side(np.ones((6, 8))), self.side.out(6)
        self.side.bk.step_mask(rows, value=1.0, out=mask)
        self.side.bk.step_mask(self.side.bk.asarray(np.ones((6, 2), np.int64)), value=0.0, out=mask)
        self.side.bk.scale_rows(rows, mask, out=rows)
        return {**results, "rotary": self.side.host(out), "rows": self.side.host(rows)}


def test_every_instantiation_runs() -> None:
    launched: set[str] = set()
    for dtype in TOLERANCE:
        bk = emulated_backend()
        Everything(bk, dtype).run()
        launched.update(bk.counts.kernels)
    assert {name for file in FILES for name in expressions(file)} <= launched


@pytest.mark.parametrize("order", ["backward", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(shim: HostShim, order: str, dtype: str) -> None:
    straight = Everything(emulated_backend(), dtype).run()
    try:
        shim.order(order)
        other = Everything(emulated_backend(multiprocessors=1), dtype).run()
    finally:
        shim.order("forward")
    for name, value in straight.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


@each_kind
def test_steps_go_into_a_graph(emulated_cuda: EmulatedBackend, kind: str) -> None:
    """All launches are recorded: no wait, no copy and no allocation between them."""
    side, data = Side(emulated_cuda, "float32"), recurrent_data(kind, (4, 3, 2, 8), True, True, False, True)
    name, *how = kind.split()
    x, W, U, b, c, mask = (side(data[key]) for key in ("x", "W", "U", "b", "c", "mask"))
    y, dy, dx, dW, dU, db, dc = (
        side.out(*shape) for shape in ((4, 3, 8), (4, 3, 8), x.shape, W.shape, U.shape, b.shape, b.shape)
    )
    side.bk.fill(dy, 1.0)
    gates, cells = side.out(4, 3, 32), side.out(4, 3, 8)
    saved: dict[str, Any] = {"rnn": {}, "gru": {"gates": gates}, "lstm": {"gates": gates, "cells": cells}}[name]
    bias = (b, c) if name == "gru" else (b,)
    option = {"reset_after": how == ["after"]} if name == "gru" else {}
    act = how if name == "rnn" else []

    def step(bk: Any) -> None:
        getattr(bk, name)(x, W, U, *bias, *act, mask=mask, y=y, **option, **saved)
        more = {"dc": dc} if name == "gru" else {}
        getattr(bk, f"{name}_grad")(
            dy, x, W, U, *act, y=y, mask=mask, dx=dx, dW=dW, dU=dU, db=db, **option, **saved, **more
        )

    replay = emulated_cuda.capture(step)
    wanted = [side.host(out) for out in (y, dx, dW, dU, db)]
    for out in (y, dx, dW, dU, db):
        side.bk.fill(out, 7.0)
    emulated_cuda.counts.reset()
    replay.run()
    counts = emulated_cuda.counts
    assert (counts.graphs, counts.syncs, counts.uploads, counts.allocations) == (1, 0, 0, 0)
    for out, value in zip((y, dx, dW, dU, db), wanted, strict=True):
        np.testing.assert_array_equal(side.host(out), value)
