"""A process for each contender, with its own number of threads, that answers calls over a pipe."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["ContenderError", "Remote", "busy_seconds", "peak_memory", "thread_settings"]

_JOIN_SECONDS = 5.0  # for a process that was told to end, before it is killed


class ContenderError(RuntimeError):
    """A contender's process failed; the message is the last line of its traceback.

    Attributes
    ----------
    details : str
        The whole traceback, or what the process printed before it died.
    """

    def __init__(self, name: str, details: str) -> None:
        lines = [line.strip() for line in details.splitlines() if line.strip()]
        super().__init__(f"{name}: {lines[-1] if lines else 'no message'}")
        self.details = details


def thread_settings(threads: int) -> dict[str, str]:
    """The environment variables that make every library use so many threads; read when it is loaded."""
    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMBA_NUM_THREADS",
        "NPROC",  # XLA's thread pool, for which there is no other switch
    )
    return dict.fromkeys(names, str(threads))


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """`changes` for the processes that are started in the block; what was there before comes back."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def peak_memory() -> float:
    """The most memory that this process has had resident, in MB (2**20 bytes)."""
    try:
        # Not ru_maxrss: a process inherits that of the one which started it
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def busy_seconds() -> float | None:
    """Time that all cores of this machine have been busy, since it started; ``None`` where it is not known."""
    try:
        user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class Remote:
    """An object in a process of its own.

    Parameters
    ----------
    name : str
        For messages.
    factory : callable
        Called in the new process; a function or class of a module, since it is sent by name.
    *args
        Its arguments.
    threads : int
        See :func:`thread_settings`.
    """

    def __init__(self, name: str, factory: Callable[..., Any], *args: Any, threads: int) -> None:
        self.name = name
        handle, log = tempfile.mkstemp(prefix="nnfast-bench-", suffix=".log")
        os.close(handle)
        self._log = Path(log)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, log, factory, args), daemon=True)
        try:
            with _environment(thread_settings(threads)):
                self._process.start()
        except BaseException:
            self._log.unlink(missing_ok=True)
            raise
        theirs.close()  # or a process that dies would leave us waiting

    def receive(self) -> Any:
        """The answer to the construction or to a call.

        Raises
        ------
        ContenderError
            If it failed, or the process died.
        """
        try:
            good, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(_JOIN_SECONDS)
            printed = self._log.read_text(errors="replace")
            raise ContenderError(
                self.name, f"{printed}\nthe process died with exit code {self._process.exitcode}"
            ) from None
        if not good:
            raise ContenderError(self.name, answer)
        return answer

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the object, and wait for what it returns."""
        with suppress(ConnectionError):  # it has died, and receive() says how
            self._pipe.send((method, args))
        return self.receive()

    def busy_seconds(self) -> float | None:
        """Time that its threads have been busy; ``None`` where it is not known."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process: by a word, or by force where it does not listen."""
        with suppress(OSError):
            self._pipe.send(None)
        self._pipe.close()
        self._process.join(_JOIN_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._log.unlink(missing_ok=True)


def _serve(pipe: Connection, log: str, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The new process: make the object, answer calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us, who then ends us
    output = os.open(log, os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    warnings.simplefilter("ignore")
    try:
        target = factory(*args)
        pipe.send((True, None))
        while (message := pipe.recv()) is not None:
            method, arguments = message
            pipe.send((True, getattr(target, method)(*arguments)))
    except (EOFError, ConnectionError):
        pass  # nobody waits any more
    except BaseException:
        pipe.send((False, traceback.format_exc()))
