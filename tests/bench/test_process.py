"""Processes of contenders: threads, failures, memory."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from nnfast.bench.process import ContenderError, Remote, busy_seconds, thread_settings

from .helpers import Faulty


@pytest.fixture
def remote():
    remote = Remote("peer", Faulty, threads=1)
    remote.receive()
    yield remote
    remote.kill()


def test_threads_are_set_in_the_process_alone(remote, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC"):
        assert remote.call("variable", name) == "1"
        assert thread_settings(3)[name] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("NPROC", raising=False)
    before = dict(os.environ)
    other = Remote("other", Faulty, threads=2)
    assert dict(os.environ) == before
    other.receive()
    assert other.call("variable", "OMP_NUM_THREADS") == "2"
    other.close()


def test_a_failed_call(remote):
    with pytest.raises(ContenderError, match=r"^peer: KeyError: 'a step'$") as caught:
        remote.call("fail")
    assert "in fail" in caught.value.details


def test_death(remote):
    with pytest.raises(ContenderError, match=r"^peer: the process died with exit code 7$") as caught:
        remote.call("die")
    assert "cannot go on" in caught.value.details
    with pytest.raises(ContenderError, match="exit code 7"):
        remote.call("fail")


def test_a_failed_start():
    remote = Remote("peer", Faulty, "start", threads=1)
    with pytest.raises(ContenderError, match=r"^peer: really none$") as caught:
        remote.receive()
    assert "ValueError: no such library" in caught.value.details
    remote.close()


def test_the_process_and_its_log_go(remote):
    log, process = remote._log, remote._process
    assert log.exists()
    remote.close()
    assert not process.is_alive()
    assert not log.exists()
    assert process not in multiprocessing.active_children()


def test_memory(remote):
    before, after = remote.call("allocate", 64)
    assert 5 < before < 500
    assert 55 < after - before < 75


def test_busy(remote):
    seconds = remote.busy_seconds()
    if seconds is None:
        pytest.skip("no /proc here")
    assert 0 <= seconds < 60
    assert busy_seconds() > seconds
    remote.kill()
    assert remote.busy_seconds() is None
