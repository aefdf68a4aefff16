"""The BLAS libraries that are loaded, and whether NumPy's uses the machine's vectors."""

from __future__ import annotations

import importlib.util
import os
from pathlib import PurePath
from typing import Any

# Bits of the vectors in the kernels of OpenBLAS's core types for x86, as ``openblas_get_corename`` gives them. AMD's
# Zen has the kernels of Haswell; the Bulldozer family mixes two widths and is left out.
CORE_BITS = {
    **dict.fromkeys(
        (
            "katmai", "coppermine", "northwood", "prescott", "banias", "atom", "core2", "penryn", "dunnington",
            "nehalem", "athlon", "opteron", "opteron_sse3", "barcelona", "bobcat", "nano",
        ),
        128,
    ),
    **dict.fromkeys(("sandybridge", "haswell", "zen"), 256),
    **dict.fromkeys(("skylakex", "cooperlake", "sapphirerapids"), 512),
}  # fmt: skip


def loaded() -> list[dict[str, Any]]:
    """The libraries that are loaded, as ``--json`` prints them; NumPy's and SciPy's wheels bring one each.

    Without threadpoolctl it is what NumPy was built with, and what nobody can tell then is ``None``.
    """
    import numpy as np

    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        config: Any = np.show_config(mode="dicts")
        built = config.get("Build Dependencies", {}).get("blas", {}) if isinstance(config, dict) else {}
        name, number = built.get("name"), built.get("version")
        unknown = dict.fromkeys(("core", "threads", "threading", "path"))
        return [{"library": name, "version": number, **unknown}] if name else []

    if importlib.util.find_spec("scipy") is not None:
        import scipy.linalg  # noqa: F401 - loads its BLAS

    return [
        {
            "library": found["internal_api"],
            "version": found.get("version"),
            "core": found.get("architecture"),
            "threads": found["num_threads"],
            "threading": found.get("threading_layer"),
            "path": found["filepath"],
        }
        for found in threadpool_info()
        if found["user_api"] == "blas"
    ]


def warning(libraries: list[dict[str, Any]], machine_bits: int | None) -> str | None:
    """One line where NumPy's OpenBLAS uses narrower vectors than the machine has.

    Parameters
    ----------
    libraries : list of dict
        What :func:`loaded` says.
    machine_bits : int or None
        Bits of the machine's vectors; ``None`` where they are not known.
    """
    for found in _of_numpy(libraries):
        bits = CORE_BITS.get(str(found["core"]).lower()) if found["library"] == "openblas" else None
        if bits is None or machine_bits is None or bits >= machine_bits:
            continue
        forced = os.environ.get("OPENBLAS_CORETYPE")
        why = f"OPENBLAS_CORETYPE={forced} is set" if forced else "OPENBLAS_CORETYPE can choose another core type"
        return (
            f"NumPy's OpenBLAS runs its {found['core']} kernels, with vectors of {bits} bits, "
            f"on a CPU with {machine_bits}: {why}"
        )
    return None


def _of_numpy(libraries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The copy that NumPy's wheel brings; elsewhere (conda) NumPy uses what all others use."""

    def beside(package: str, found: dict[str, Any]) -> bool:
        return any(part in (f"{package}.libs", package) for part in PurePath(found["path"] or "").parts)

    own = [found for found in libraries if beside("numpy", found)]
    return own or [found for found in libraries if not beside("scipy", found)]
