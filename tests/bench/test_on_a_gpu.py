"""What is measured on a GPU, on an emulated one: the floor, and which contenders take part."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from nnfast.bench import choice, floor_cuda, measure, on_a_gpu, plots, report
from nnfast.bench.contenders import DEVICES, PEERS
from nnfast.bench.floor import FloorSession, flops, products, traffic
from nnfast.bench.floor_cuda import CudaFloorSession
from nnfast.bench.workloads import find
from tests.cuda.emulator import EmulatedBackend, emulated_backend
from tests.cuda.fake_cupy import tf32

from .helpers import QUICK, made_result, small


@pytest.fixture
def bk(monkeypatch: pytest.MonkeyPatch) -> EmulatedBackend:
    backend = emulated_backend()
    monkeypatch.setattr(floor_cuda, "get_backend", lambda device: backend)
    return backend


@pytest.mark.parametrize("name", ["mnist-last-smaller", "mnist-tf32", "mnist-bf16", "mnist-predict-65536"])
def test_the_floor_does_these_products(bk: EmulatedBackend, name: str) -> None:
    work = small(name)
    floor = CudaFloorSession(work, 1)
    floor.prepare()
    done = []
    gemm = type(bk).gemm

    def watched(self, a, b, *, out, trans_a=False, trans_b=False, beta=0.0):
        m, n = out.shape
        done.append((m, a.shape[0] if trans_a else a.shape[1], n, bk._recording.rounding))
        gemm(self, a, b, out=out, trans_a=trans_a, trans_b=trans_b, beta=beta)

    type(bk).gemm, kept = watched, type(bk).gemm
    try:
        floor.prepare()
    finally:
        type(bk).gemm = kept
    rounds = work.precision == "tf32"
    expected = {(*product, rounds) for n in {work.batch, work.rows % work.batch or work.batch} for product in
                products(work, work.predict or n)}  # fmt: skip
    assert set(done) == expected
    bk.counts.reset()
    assert floor.run(2) > 0
    steps = 1 if work.predict else work.steps
    assert bk.counts.graphs == 2 * steps
    assert set(bk.counts.kernels) == {"cublasLtMatmul"}


def test_rates(bk: EmulatedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaFloorSession, "peak_size", 8)
    monkeypatch.setattr(CudaFloorSession, "copy_bytes", 1 << 12)
    monkeypatch.setattr(floor_cuda, "device_seconds", lambda backend, work: work() or 2.0)
    floor = CudaFloorSession(small("mnist-tf32"), 1)
    assert floor.peak() == 2 * 8**3 / 2.0
    assert floor.bandwidth() == 2 * (1 << 12) / 2.0
    assert all(problem.compute == "tf32" for problem in bk._plans)


def test_a_product_of_the_floor_rounds_where_the_workload_does(bk: EmulatedBackend) -> None:
    floor = CudaFloorSession(small("mnist-tf32"), 1)
    a = np.full((1, 1), 1 + 2.0**-12, np.float32)
    with floor._rounding():
        bk.gemm(bk.asarray(a), bk.asarray(a), out=(out := bk.empty((1, 1), np.float32)))
    assert float(out[0, 0]) == tf32(a)[0, 0] ** 2 == 1.0


def test_which_floor() -> None:
    assert measure._floor_of(["nnfast-cuda", "jax-cuda"]) is CudaFloorSession
    assert measure._floor_of(["nnfast-cuda", "nnfast-numba"]) is FloorSession
    assert measure._floor_of([]) is FloorSession
    assert FloorSession(small("xor"), 1).bandwidth() == 0.0


def test_traffic() -> None:
    work = replace(find("tiny"), sizes=(3, 5, 2))
    # gathered; forward; the weights' gradients; the one of the hidden layer; logits
    numbers = 2 * 3 + (3 + 5) + (5 + 2) + (3 + 5) + (5 + 2) + (5 + 2) + 2 * 2
    assert traffic(work, 10) == 4 * 10 * numbers
    assert traffic(replace(work, predict=7), 7) == 4 * 7 * (2 * 3 + 8 + 7)
    assert flops(work) > 0


def test_the_share_of_a_copy_s_rate() -> None:
    result = made_result("mnist", nnfast_cuda=[2e-4, 4e-4], torch_cuda=[4e-4, 8e-4])
    assert result.traffic_share(result.timings["nnfast-cuda"]) is None
    assert report.traffic_line(result) is None
    moved = traffic(result.workload, 256)
    result.bandwidths = [moved / 1e-4, moved / 2e-4]
    assert result.traffic_share(result.timings["nnfast-cuda"]) == pytest.approx(0.5)
    line = report.traffic_line(result)
    assert line is not None
    assert line.endswith("nnfast-cuda 50%, torch-cuda 25%")
    info = report.extra_info(result, result.timings["torch-cuda"])
    assert info["traffic_share"] == pytest.approx(0.25)
    assert info["copy_bytes_per_second"] == pytest.approx(moved * 7.5e3)


# ---- who takes part --------------------------------------------------------------------------------
@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "available_devices", lambda: {"numpy": None, "numba": None, "cuda:0": None})
    for entries in (PEERS, DEVICES):
        for name, entry in list(entries.items()):
            monkeypatch.setitem(entries, name, replace(entry, packages=()))


def test_peers_are_where_the_devices_are(with_gpu: None) -> None:
    on_gpu = ["torch-cuda", "torch-cuda-compile", "torch-cuda-max-autotune", "torch-cuda-graph", "jax-cuda"]
    assert choice.contenders(["cuda"], None, print) == ["nnfast-cuda", *on_gpu]
    mixed = choice.contenders(["numba", "cuda"], None, print)
    assert mixed[:2] == ["nnfast-numba", "nnfast-cuda"]
    assert not set(mixed) & set(on_gpu)
    assert "torch-cuda" not in choice.contenders(None, None, print)
    assert choice.contenders([], ["torch-cuda", "jax"], print) == ["torch-cuda", "jax"]


def test_peers_on_a_gpu_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnfast.errors import DeviceUnavailable

    monkeypatch.setattr(choice, "available_devices", lambda: {"numpy": None, "numba": None, "cuda": "no GPU"})
    with pytest.raises(DeviceUnavailable, match="peer 'torch-cuda' cannot be used: no GPU"):
        choice.contenders([], ["torch-cuda"], print)


# ---- where the GPU overtakes -----------------------------------------------------------------------
def test_crossing() -> None:
    cpu = [(1, 100.0), (4, 200.0), (16, 400.0), (64, 400.0)]
    assert plots.crossing_of(cpu, [(1, 10.0), (4, 100.0), (16, 800.0), (64, 8000.0)]) == pytest.approx(8.0)
    assert plots.crossing_of(cpu, [(size, 2 * rate) for size, rate in cpu]) is None
    assert plots.crossing_of(cpu, [(size, rate / 2) for size, rate in cpu]) is None
    # the last time it comes ahead counts
    assert plots.crossing_of(cpu, [(1, 200.0), (4, 100.0), (16, 400.0), (64, 800.0)]) == pytest.approx(16.0)
    assert plots.crossing_of([], [(1, 1.0)]) is None
    assert math.isclose(plots.crossing_of([(1, 1.0), (4, 1.0)], [(1, 0.5), (4, 2.0)]) or 0, 2.0)


def test_the_crossing_is_in_the_picture(tmp_path) -> None:
    results = []
    for size, slow, fast in ((1, 1e-5, 1e-4), (64, 1e-4, 1e-4), (4096, 1e-2, 1e-3)):
        result = made_result("mnist", nnfast_numba=[slow], nnfast_cuda=[fast])
        result.workload = find("mnist").with_batch(size)
        results.append(result)
    figure = plots.throughput(results, tmp_path / "sweep.png")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["the GPU is faster from 64 rows on"]


# ---- everything in one go --------------------------------------------------------------------------
def test_one_file_has_all_parts(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    passing = tmp_path / "test_something.py"
    passing.write_text("def test_this():\n    assert True\n")
    path = tmp_path / "all.json"
    work = [find("xor"), replace(find("xor"), name="again")]
    good = on_a_gpu.collect(
        path, device="numpy", tests=[str(passing)], workloads=work[:1], peers=["numpy"], settings=QUICK
    )
    found = json.loads(path.read_text())
    assert good, found
    assert found["selftest"]["status"] == found["tests"]["status"] == 0
    assert all(check["error"] is None for check in found["selftest"]["checks"])
    assert {b["name"] for b in found["benchmarks"]} >= {"test_step[xor-nnfast-numpy]", "test_step[xor-numpy]"}
    assert found["left_out"] == []
    assert "tests ended with 0" in capsys.readouterr().out


def test_what_fails_and_what_there_is_no_time_for(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = tmp_path / "test_something.py"
    failing.write_text("def test_this():\n    assert False\n")
    path = tmp_path / "all.json"
    monkeypatch.setattr(on_a_gpu, "_SELFTEST_SECONDS", 0.01)
    good = on_a_gpu.collect(
        path, minutes=0.5, device="numpy", tests=[str(failing)], workloads=[find("xor")], peers=[], settings=QUICK
    )
    found = json.loads(path.read_text())
    assert not good
    assert found["selftest"]["status"] is None
    assert found["tests"]["status"] == 1
    assert "1 failed" in found["tests"]["output"]
    assert found["left_out"] == ["xor"]
    assert found["benchmarks"] == []
    out = capsys.readouterr().out
    assert "self-test took too long" in out
    assert "left out, for lack of time: xor" in out


def test_without_a_gpu_there_is_one_line(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "available_devices", lambda: {"numpy": None, "numba": None, "cuda": "no GPU"})
    assert on_a_gpu.main(["--json", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err == "nnfast: error: device 'cuda' cannot be used: no GPU\n"
    assert not (tmp_path / "x.json").exists()
