"""The two 16-bit types of the kernels: every value, both ways, and how floats are rounded to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cuda.host_shim import HostShim

ml_dtypes = pytest.importorskip("ml_dtypes")

TYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
each_type = pytest.mark.parametrize("name", TYPES)
# NumPy warns of what it rounds to infinity, and of signalling NaN
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def cast(shim: HostShim, x: np.ndarray, dtype: Any) -> np.ndarray:
    names = {np.dtype(np.float32): "float", **{dtype: name for name, dtype in TYPES.items()}}
    out = np.empty(x.shape, dtype)
    shim.kernels[f"cast<{names[x.dtype]}, {names[out.dtype]}>"]((7,), (256,), x, out, x.size)
    return out


def all_values(name: str) -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(TYPES[name])


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal bits, but for NaN, which only has to stay NaN."""
    bits = np.uint16 if got.dtype.itemsize == 2 else np.uint32
    nan = np.isnan(wanted.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan)
    np.testing.assert_array_equal(got.view(bits)[~nan], wanted.view(bits)[~nan])


@each_type
def test_every_value_both_ways(shim: HostShim, name: str) -> None:
    values = all_values(name)
    wide = cast(shim, values, np.float32)
    same(wide, values.astype(np.float32))
    same(cast(shim, wide, values.dtype), values)


@each_type
def test_floats_are_rounded_to_the_nearest_even(shim: HostShim, name: str) -> None:
    dtype = TYPES[name]
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    same(cast(shim, bits.view(np.float32), dtype), bits.view(np.float32).astype(dtype))
    # Every tie between two neighbours, and the floats beside it
    values = np.sort(all_values(name).astype(np.float32))
    values = values[np.isfinite(values)].astype(np.float64)
    ties = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    for x in (ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))):
        same(cast(shim, x, dtype), x.astype(dtype))


@each_type
def test_the_ends_of_the_range(shim: HostShim, name: str) -> None:
    largest = float(ml_dtypes.finfo(TYPES[name]).max)
    smallest = float(ml_dtypes.finfo(TYPES[name]).smallest_subnormal)
    beyond = {"f16": 65520.0, "bf16": float(np.float32(2.0**128 - 2.0**119))}[name]  # halfway to the next power of two
    below = np.nextafter(np.float32(beyond), np.float32(0))
    x = np.array([largest, below, beyond, -beyond, np.inf, np.nan], np.float32)
    got = cast(shim, x, TYPES[name]).astype(np.float32)
    np.testing.assert_array_equal(got, [largest, largest, np.inf, -np.inf, np.inf, np.nan])
    x = np.array([smallest, 0.5 * smallest, 0.75 * smallest, 1.5 * smallest, -0.0], np.float32)
    got = cast(shim, x, TYPES[name]).astype(np.float64)
    np.testing.assert_array_equal(got / smallest, [1, 0, 1, 2, 0])
    assert np.signbit(got[-1])


@each_type
@pytest.mark.parametrize("size", [1, 3, 4, 5, 9, 2001])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_casts_of_any_size_and_alignment(shim: HostShim, name: str, size: int, offset: int) -> None:
    values = np.random.default_rng(1).standard_normal(size + offset).astype(np.float32)
    there = np.zeros(size + offset + 3, TYPES[name])
    kernels = shim.kernels
    kernels[f"cast<float, {name}>"]((2,), (64,), values[offset:], there[offset:], size)
    np.testing.assert_array_equal(there[offset : offset + size], values[offset:].astype(TYPES[name]))
    assert not there[:offset].any()
    assert not there[offset + size :].any()
    back = np.zeros(size + 3, np.float32)
    kernels[f"cast<{name}, float>"]((1,), (32,), there[offset:], back, size)
    np.testing.assert_array_equal(back[:size], values[offset:].astype(TYPES[name]).astype(np.float32))
    assert not back[size:].any()


@each_type
def test_letters_of_the_types(shim: HostShim, name: str) -> None:
    letter = {"f16": "e", "bf16": "E"}[name]
    assert shim.kernels[f"cast<float, {name}>"].signature == ["kf", f"p{letter}", "q"]
    assert letter == TYPES[name].char
    other = TYPES["bf16" if name == "f16" else "f16"]
    with pytest.raises(TypeError, match=str(other)):
        shim.kernels[f"cast<float, {name}>"]((1,), (32,), np.zeros(4, np.float32), np.zeros(4, other), 4)
