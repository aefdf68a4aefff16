"""Model files: safetensors, with everything that is not an array as JSON in the header.

Loading runs no code: layers, losses and initializers are looked up in closed tables, plus what the caller passes in.
The header carries a digest of all of it, so that a flipped bit anywhere is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import layers as layers_module
from .. import losses
from ..errors import CheckpointError
from ..files import replacing
from ..joint_loss import JointLoss
from ..layers.base import Layer
from ..layers.graph import Built, chain_names
from ..network import Network, TrainingState
from ..precision import resolve

__all__ = ["load", "load_with_run", "read", "save"]

_Model = TypeVar("_Model", bound=Network)

FORMAT = 1
RUN = "run/"  # names of arrays of a training that goes on begin so
_KEY = "nnfast"  # in the safetensors metadata, which map text to text


def _digest(header: str, tensors: Mapping[str, np.ndarray]) -> str:
    # Of the text, not of what it means: 1e-8 and 1E-8 are one bit apart
    digest = hashlib.blake2b(header.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _sealed(header: str, tensors: Mapping[str, np.ndarray]) -> str:
    """The JSON object `header` with the digest as its last member."""
    return f'{header[:-1]}, "digest": "{_digest(header, tensors)}"}}'


_SEAL = len(_sealed("{}", {})) - len("{")


def save(
    model: Network,
    path: str | os.PathLike[str],
    extra: Mapping[str, Any] | None,
    run: tuple[Mapping[str, Any], Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Write `model` to `path`; see ``Sequential.save``. `run` describes a training that it is in the middle of."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    params, state = model.parameters, model.training_state
    header: dict[str, Any] = {
        "format": FORMAT,
        "layers": [
            {"class": type(layer).__name__, "name": name, "config": layer.config()}
            for layer, name in zip(model.layers, chain_names(model.layers), strict=True)
        ],
        **model.description(),
        "in_shape": [list(s) for s in model.in_shapes] if model.number_of_inputs > 1 else list(model.in_shape),
        "dtype": str(params.dtype),
        "precision": params.precision,
        "loss": None if model.loss is None else {"name": losses.name_of(model.loss), "config": model.loss.config()},
        "training": {
            **state.config(),
            "slots": sorted(params.slots),
            "average": params.average is not None,
        },
        "extra": dict(model.extra if extra is None else extra),
    }
    tensors = {**params.get(), **params.get_slots()}
    if run is not None:
        header["run"] = dict(run[0])
        tensors |= {RUN + name: np.ascontiguousarray(array) for name, array in run[1].items()}
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"the model cannot be described as JSON: {error}") from None
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {_KEY: _sealed(text, tensors)})
        except SafetensorError as error:  # its form of an I/O error, such as a full disk
            raise OSError(f"cannot write {path}: {error}") from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and tensors of a model file, with the digest checked."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise CheckpointError(f"{path} is a safetensors file, but not a model of nnfast")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    text = metadata[_KEY]
    if text != _sealed(text[:-_SEAL] + "}", tensors):
        raise CheckpointError(f"{path} is damaged: its contents do not match their digest")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its description is not valid JSON ({error})") from None
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format version {header.get('format')!r}, this version of nnfast reads {FORMAT}"
        )
    return header, tensors


def _resolve(entry: Mapping[str, Any], table: Mapping[str, Any], what: str, path: Path) -> Any:
    kind, config = entry["class"] if "class" in entry else entry["name"], entry["config"]
    if kind not in table:
        raise CheckpointError(
            f"{path} needs the {what} {kind!r}, which nnfast does not have; pass it as custom={{{kind!r}: ...}}"
        )
    try:
        return table[kind](**{key: _inner(value, table, what, path) for key, value in config.items()})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the {what} {kind!r} cannot be made from {config}: {error}") from error


def _inner(value: Any, table: Mapping[str, Any], what: str, path: Path) -> Any:
    """An argument in which descriptions of layers, or of losses, have become these."""
    if isinstance(value, list):
        return [_inner(each, table, what, path) for each in value]
    if isinstance(value, dict) and value.keys() in ({"class", "config"}, {"name", "config"}):
        return _resolve(value, table, what, path)
    return value


def load(kind: type[_Model], path: str | os.PathLike[str], custom: Mapping[str, Any] | None) -> _Model:
    """Read a model of class `kind`; see :func:`nnfast.load`."""
    return load_with_run(kind, path, custom)[0]


def load_with_run(
    kind: type[_Model], path: str | os.PathLike[str], custom: Mapping[str, Any] | None
) -> tuple[_Model, Any, dict[str, np.ndarray]]:
    """The model, and of a training that it is in the middle of the description, if there is one, and the arrays."""
    path = Path(path)
    header, contents = read(path)
    tensors = {name: array for name, array in contents.items() if not name.startswith(RUN)}
    arrays = {name.removeprefix(RUN): array for name, array in contents.items() if name.startswith(RUN)}
    custom = dict(custom or {})
    try:
        chain: list[Layer] = []
        for entry in header["layers"]:
            chain.append(_resolve(entry, {**layers_module.TABLE, **custom}, "layer", path))
        names = [entry["name"] for entry in header["layers"]]
        if chain_names(chain) != names:
            for layer, name in zip(chain, names, strict=True):
                layer.name = name
        model: Any = kind.described(chain, header)
        if header["loss"] is not None:
            known = {**losses.TABLE, JointLoss.__name__: JointLoss, **custom}
            model.loss = _resolve(header["loss"], known, "loss", path)
        training = header["training"]
        in_shape = header["in_shape"]
        several = in_shape and isinstance(in_shape[0], list)
        in_shapes = [tuple(one) for one in (in_shape if several else [in_shape])]
        precision, dtype = resolve(header.get("precision"), header["dtype"])
        # Before anything is allocated: a file may claim layers of any size
        _check(model.nodes(in_shapes), dtype, training, tensors, path)
        model.build(in_shapes, dtype=dtype, initialise=False)
        model.parameters.move(model.parameters.backend, dtype, precision)
        model.parameters.set({name: array for name, array in tensors.items() if ":" not in name})
        if slots := {name: array for name, array in tensors.items() if ":" in name}:
            model.parameters.set_slots(slots)
        model.training_state = TrainingState.from_config(training)
        model.extra = dict(header["extra"])
    except (LookupError, AttributeError, OverflowError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} does not describe a model that can be loaded: {error}") from error
    return model, header.get("run"), arrays


def _check(
    built: list[Built], dtype: np.dtype[Any], training: Mapping[str, Any], tensors: dict[str, np.ndarray], path: Path
) -> None:
    """Whether the tensors are exactly those that the layers and the optimizer have."""
    owners = [b for b in built if b.owner == b.index]  # a layer used again has the arrays of its first place
    declared = [(f"{b.name}.{spec.name}", spec) for b in owners for spec in b.specs]
    shapes = {key: spec.shape for key, spec in declared if spec.kind in ("param", "buffer")}
    for slot in (*training["slots"], *(["average"] if training["average"] else [])):
        shapes |= {f"{slot}:{key}": spec.shape for key, spec in declared if spec.kind == "param"}
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise CheckpointError(f"{path} lacks the arrays {missing}")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise CheckpointError(f"{path} has arrays that its layers do not: {unknown}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            raise CheckpointError(
                f"{path}: {name} is {tensors[name].dtype} {tensors[name].shape}, its layer has {dtype} {shape}"
            )
