"""A process that was forked from one that uses CUDA cannot use it: the driver's state does not come along."""

from __future__ import annotations

import os

__all__ = ["REASON", "lost", "started"]

REASON = "CUDA was in use when this process was forked; start processes with multiprocessing's 'spawn' method"

_started = _lost = False


def started() -> None:
    """Note that this process uses CUDA from now on."""
    global _started
    _started = True


def lost() -> bool:
    """Whether this is the child of a process that used CUDA before it forked."""
    return _lost


def _after_fork() -> None:
    global _lost
    _lost = _lost or _started


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
