"""The host shim itself: it must notice what a GPU would not forgive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnfast.kernels.cuda import source
from tests.cuda.host_shim import HostShim, Kernel, ShimError, build, unavailable

KERNELS = """
__global__ void squares(double* out, long long n) { GRID_STRIDE(i, n) out[i] = (double)(i * i); }
__global__ void half_barrier(double* out) { if (threadIdx.x < 40) __syncthreads(); out[threadIdx.x] = 1; }
__global__ void half_shuffle(double* out) { if (threadIdx.x & 1) out[0] = warp_sum(1.0); }
__global__ void outside(double* out, long long i) { __shared__ double s[4]; s[i] = 1; out[0] = s[i]; }
__global__ void unaligned(const double* in, double* out) {
    store_pack(out, 0, 2, true, load_pack(in, 0, 2, true));
}
__global__ void no_barrier(double* out) {
    __shared__ double s[64];
    s[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = s[63 - threadIdx.x];
}
__global__ void lanes(double* out) {
    int lane = threadIdx.x & 31;
    out[threadIdx.x] = __shfl_xor_sync(FULL_WARP, (double)lane, 5) + 100 * __popc(__ballot_sync(FULL_WARP, lane < 7));
}
__global__ void blocks(double* out, double* partial, unsigned* sync) {
    double total;
    if (grid_sum(1.0, partial, sync, &total)) out[0] += total;
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernel]:
    if reason := unavailable():
        pytest.skip(reason)
    names = [line.split("void ")[1].split("(")[0] for line in KERNELS.splitlines() if "__global__" in line]
    # All headers are in reduce.cu's text
    text = source("reduce") + "\ninline int __popc(unsigned v) { return __builtin_popcount(v); }\n" + KERNELS
    library = HostShim.load(build("selftest", text, names, tmp_path_factory.mktemp("shim")))
    return {kernel.name: kernel for kernel in (Kernel(library, i) for i in range(library.shim_count()))}


def test_grid_stride(kernels: dict[str, Kernel]) -> None:
    out = np.zeros(1000)
    kernels["squares"]((3,), (64,), out, 1000)
    np.testing.assert_array_equal(out, np.arange(1000.0) ** 2)
    assert kernels["squares"].signature == ["pd", "q"]
    assert kernels["unaligned"].signature == ["kd", "pd"]


def test_shuffles_and_votes(kernels: dict[str, Kernel]) -> None:
    out = np.zeros(64)
    kernels["lanes"]((1,), (64,), out)
    lane = np.arange(64) % 32
    np.testing.assert_array_equal(out, (lane ^ 5) + 700)


def test_sum_over_blocks_leaves_its_counter_at_zero(kernels: dict[str, Kernel]) -> None:
    out, partial, sync = np.zeros(1), np.zeros(8), np.zeros(2, np.uint32)
    for _ in range(2):
        kernels["blocks"]((5,), (96,), out, partial, sync)
    assert out[0] == 2 * 5 * 96
    assert not sync.any()


@pytest.mark.parametrize("name", ["half_barrier", "half_shuffle"])
def test_threads_that_miss_a_barrier(kernels: dict[str, Kernel], name: str) -> None:
    with pytest.raises(ShimError, match="not all threads"):
        kernels[name]((1,), (64,), np.zeros(64))
    kernels["squares"]((1,), (64,), np.zeros(64), 64)  # and the shim works on


def test_index_outside_of_a_shared_array(kernels: dict[str, Kernel]) -> None:
    kernels["outside"]((1,), (32,), np.zeros(1), 3)
    with pytest.raises(ShimError, match="out of bounds"):
        kernels["outside"]((1,), (32,), np.zeros(1), 4)


def test_unaligned_pack(kernels: dict[str, Kernel]) -> None:
    raw = np.zeros(8)
    start = 0 if raw.ctypes.data % 16 == 0 else 1
    kernels["unaligned"]((1,), (32,), raw[start:], np.zeros(8)[start:])
    with pytest.raises(ShimError, match="unaligned"):
        kernels["unaligned"]((1,), (32,), raw[start + 1 :], raw[start:])


def test_a_missing_barrier_shows_in_another_order(kernels: dict[str, Kernel]) -> None:
    forward, backward = np.zeros(64), np.zeros(64)
    library = kernels["no_barrier"].library
    kernels["no_barrier"]((1,), (64,), forward)
    library.shim_order(1)
    kernels["no_barrier"]((1,), (64,), backward)
    library.shim_order(0)
    assert (forward != backward).any()


def test_wrong_argument_types(kernels: dict[str, Kernel]) -> None:
    with pytest.raises(TypeError, match="float32"):
        kernels["squares"]((1,), (32,), np.zeros(4, np.float32), 4)
    with pytest.raises(ShimError, match="launch shape"):
        kernels["squares"]((1,), (33,), np.zeros(4), 4)


def test_warnings_of_the_compiler_are_errors(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    with pytest.raises(RuntimeError, match="unused"):
        build("bad", "__global__ void bad(double* out) { int unused_here; out[0] = 1; }", ["bad"], tmp_path)
    assert not list(tmp_path.glob("*.so"))
