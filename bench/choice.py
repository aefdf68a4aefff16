"""From the options of a run to its workloads and contenders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..devices import available_devices
from ..errors import DeviceUnavailable
from .contenders import DEVICES, ENTRIES, PEERS, Entry
from .workloads import PRESETS, WORKLOADS, Workload, find

__all__ = ["contenders", "workloads"]


def workloads(preset: str | None, names: Sequence[str], dtype: str | None) -> list[Workload]:
    """The workloads of a preset and those named, each once.

    Raises
    ------
    ValueError
        If a name is not known, or nothing was chosen.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known; known are {', '.join(PRESETS)}")
    chosen = dict.fromkeys([*(PRESETS[preset] if preset else ()), *map(find, names)])
    if not chosen:
        raise ValueError(
            f"nothing to measure: name a preset ({', '.join(PRESETS)}) or a workload ({', '.join(WORKLOADS)})"
        )
    if dtype is None:
        return list(chosen)
    return [_in_dtype(workload, dtype) for workload in chosen]


def _in_dtype(workload: Workload, dtype: str) -> Workload:
    if dtype == workload.dtype:
        return workload
    return replace(workload, name=f"{workload.name.removesuffix('-float64')}-{dtype}", dtype=dtype)


def contenders(devices: Sequence[str] | None, peers: Sequence[str] | None, say: Callable[[str], None]) -> list[str]:
    """Names of contenders: nnfast's devices, then the peers.

    Parameters
    ----------
    devices, peers : sequence of str, optional
        By default all that are here, of the peers those on a GPU if no device but cuda was named, else those on the
        CPU; an empty one chooses none. What is named must be here.
    say : callable
        Told what is left out, and why.

    Raises
    ------
    ValueError
        If a name is not known, or nothing was chosen.
    DeviceUnavailable, ImportError
        If what was named is not here.
    """
    reasons = {name.partition(":")[0]: reason for name, reason in reversed(available_devices().items())}
    chosen: list[str] = []
    for device in _known("device", devices, DEVICES):
        if (reason := reasons.get(device)) is None:
            chosen.append(DEVICES[device].name)
        elif devices is not None:
            raise DeviceUnavailable(f"device {device!r} cannot be used: {reason}")
        else:
            say(f"without device {device}: {reason}")
    # Beside a GPU alone, the peers on the GPU; else those on the CPU
    gpu = bool(chosen) and all(ENTRIES[name].gpu for name in chosen)
    if peers is None:
        wanted = [name for name, entry in PEERS.items() if entry.gpu == gpu]
    else:
        wanted = _known("peer", peers, PEERS)
    for peer in wanted:
        if PEERS[peer].gpu and (reason := reasons.get("cuda")) is not None:
            raise DeviceUnavailable(f"peer {peer!r} cannot be used: {reason}")
        if (reason := PEERS[peer].missing()) is None:
            chosen.append(PEERS[peer].name)
        elif peers is not None:
            raise ImportError(f"peer {peer!r} cannot be used: {reason}")
        else:
            say(f"without peer {peer}: {reason}")
    if not chosen:
        raise ValueError("nothing to measure: --devices and --peers leave no contender")
    return chosen


def _known(kind: str, names: Sequence[str] | None, table: dict[str, Entry]) -> list[str]:
    if names is None:
        return list(table)
    for name in names:
        if name not in table:
            raise ValueError(f"{kind} {name!r} is not known; known are {', '.join(table)}, and none")
    return list(dict.fromkeys(names))
