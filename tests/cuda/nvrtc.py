"""Compile the kernels for real GPUs with NVRTC, as CuPy would; no GPU is needed for that."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from nnfast.kernels.cuda import OPTIONS, expressions, source

#: From Turing to Blackwell
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")

_FRAME = re.compile(
    r"Function properties for (\S+)\s+ptxas\s+\.\s+(\d+) bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads"
)
_INFO = re.compile(r"^(ptxas\s|\s*$)")


def unavailable() -> str | None:
    """Why there is no NVRTC on this machine, or ``None``."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # a missing module, a missing library, or a broken installation
        return f"the compile gate needs CuPy and NVRTC: {type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def compile_file(file: str, architecture: str, folder: str) -> dict:
    """Compile every instantiation of one file to a binary.

    Returns
    -------
    dict
        ``messages``: what the compiler said apart from statistics; ``kernels``: mangled names;
        ``local``: bytes of stack frame and of spill stores of each kernel. Kept in `folder` under
        a hash of the text, the compiler and its options.
    """
    from cupy.cuda import nvrtc

    text, names = source(file), expressions(file)
    # What CuPy adds to our options, and statistics
    options = [*OPTIONS, f"-arch=sm_{architecture}", "-ftz=true", "--ptxas-options=-v"]
    parts = (text, *names, *options, str(nvrtc.getVersion()), Path(__file__).read_text(encoding="utf-8"))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    kept = Path(folder) / f"{file}-sm{architecture}-{key}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    program = nvrtc.createProgram(text, f"{file}.cu", [], [])
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        error = ""
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as failure:
            error = str(failure)
        log = nvrtc.getProgramLog(program).replace("\0", "")
        result = {
            "messages": error + "\n".join(line for line in log.splitlines() if not _INFO.match(line)),
            "kernels": [] if error else [nvrtc.getLoweredName(program, name) for name in names],
            "binary": 0 if error else len(nvrtc.getCUBIN(program)),
            "local": {name: [int(frame), int(stores)] for name, frame, stores, _ in _FRAME.findall(log)},
        }
    finally:
        nvrtc.destroyProgram(program)
    unfinished = kept.with_suffix(".part")
    unfinished.write_text(json.dumps(result))
    unfinished.replace(kept)
    return result
