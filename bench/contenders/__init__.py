"""Who takes part: nnfast's backends and their peers, by name. A contender's module is imported in its own process."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..workloads import Workload
    from .base import Contender

__all__ = ["DEVICES", "ENTRIES", "PEERS", "Entry"]

_ANY = ("relu", "tanh", "sigmoid", "silu", "gelu")
_NETWORKS = ("images", "recurrent", "sequences")


@dataclass(frozen=True)
class Entry:
    """A contender, as far as can be said without importing its library.

    Attributes
    ----------
    name : str
        By which it is chosen and reported.
    place : str
        ``module:class`` in this package.
    packages : tuple of str
        Modules that must be importable.
    distributions : tuple of str
        Whose versions are reported, and what to install.
    activations : tuple of str
        That it has.
    dropout, trains, predicts : bool
        What it can do.
    gpu : bool
        Whether it computes on an NVIDIA GPU.
    dense : bool
        Whether it has multilayer perceptrons.
    networks : tuple of str
        Kinds of other networks that it has; see :attr:`~nnfast.bench.networks.Network.kind`.
    """

    name: str
    place: str
    packages: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    activations: tuple[str, ...] = _ANY
    dropout: bool = True
    trains: bool = True
    predicts: bool = True
    gpu: bool = False
    dense: bool = True
    networks: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot be used here, or ``None``."""
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if not absent:
            return None
        return f"{', '.join(absent)} is not installed: pip install {' '.join(self.distributions)}"

    def unable(self, workload: Workload) -> str | None:
        """Why it cannot express a workload, or ``None``."""
        if not (self.predicts if workload.predict else self.trains):
            return f"{self.name} does not {'predict' if workload.predict else 'train'}"
        kinds = (*(["dense"] if self.dense else []), *self.networks)
        if (workload.network.kind if workload.network else "dense") not in kinds:
            return f"{self.name} is not used for {workload.name}: it is for {', '.join(kinds)}"
        if workload.activation not in self.activations:
            return f"{self.name} has no {workload.activation}"
        if workload.precision and not self.gpu:
            return f"{self.name} does not compute in {workload.precision}"
        if workload.dropout and not self.dropout and not workload.predict:
            return f"{self.name} has no dropout"
        return None

    def load(self) -> type[Contender]:
        """Import its library and its class."""
        module, _, name = self.place.partition(":")
        found: type[Contender] = getattr(importlib.import_module(f".{module}", __name__), name)
        return found


DEVICES: dict[str, Entry] = {
    device: Entry(
        f"nnfast-{device}",
        f"nnfast_devices:{device.capitalize()}Device",
        distributions=("nnfast",),
        gpu=device == "cuda",
        networks=() if device == "cuda" else _NETWORKS,
    )
    for device in ("numba", "numpy", "cuda")
}
PEERS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("numpy", "plain_numpy:PlainNumpy", distributions=("numpy",)),
        Entry(
            "scikit-learn", "scikit_learn:ScikitLearn", ("sklearn",), ("scikit-learn",),
            activations=("relu", "tanh", "sigmoid"), dropout=False,
        ),
        Entry("torch", "pytorch:Eager", ("torch",), ("torch",), networks=_NETWORKS),
        Entry(
            "torch-channels-last", "pytorch:ChannelsLast", ("torch",), ("torch",), dense=False, networks=("images",)
        ),
        # It would call nn.LSTM and nn.GRU as they are
        Entry("torch-compile", "pytorch:Compiled", ("torch",), ("torch",), networks=("images", "sequences")),
        Entry("jax", "jax_optax:JaxOptax", ("jax", "optax"), ("jax", "optax"), networks=_NETWORKS),
        Entry(
            "onnxruntime", "onnx_runtime:OnnxRuntime", ("onnxruntime", "onnx"), ("onnxruntime", "onnx"), trains=False
        ),
        *(
            Entry(f"torch-cuda{suffix}", f"pytorch_cuda:{place}", ("torch",), ("torch",), gpu=True)
            for suffix, place in (
                ("", "Eager"), ("-compile", "Compiled"), ("-max-autotune", "MaxAutotune"), ("-graph", "Graph")
            )
        ),
        Entry("jax-cuda", "jax_optax:JaxOnCuda", ("jax", "optax"), ("jax", "optax"), gpu=True),
    )
}  # fmt: skip
ENTRIES: dict[str, Entry] = {entry.name: entry for entry in (*DEVICES.values(), *PEERS.values())}
