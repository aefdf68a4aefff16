"""The cache of compiled kernels: found again, private, and never a reason to fail."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numba
import pytest

from nnfast.kernels.cpu import cache

PROGRAM = """
import numpy as np
from nnfast.backends.numba_backend import NumbaBackend
from nnfast.kernels.cpu import driver, specialise

x, out = np.zeros((600, 64), np.float32), np.ones((600, 64), np.float32)
for act in ("relu", "tanh", "sigmoid"):
    NumbaBackend().act(act, x, out=out)
assert np.allclose(out, 0.5), out
total = np.zeros(64, np.float32)
NumbaBackend().sum_rows(out, out=total)
assert np.allclose(total, 300), total
hits = [kernel._cache_hits for kernel in specialise._kernels.values()]
hits += [sum(f.stats.cache_hits.values()) for f in driver._built.values()]
print(len(hits), sum(hits))
"""


def run(folder, code=PROGRAM, **env):
    result = subprocess.run(
        [sys.executable, "-W", "always::RuntimeWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, "NNFAST_CACHE": str(folder), "NUMBA_NUM_THREADS": "2", "NNFAST_QUIET": "0", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result


def counts(result):
    return tuple(int(word) for word in result.stdout.split())


def files(folder):
    return [p for p in folder.rglob("*.nb?") if p.is_file()]


def test_a_second_process_compiles_nothing_and_damage_is_repaired(tmp_path):
    total, hits = counts(run(tmp_path))
    assert total >= 5
    assert hits == 0
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert counts(run(tmp_path)) == (total, total)
    kept = {p: p.read_bytes() for p in files(tmp_path)}
    assert len(kept) >= 2 * total
    # One index cut short, one empty, and the code of another kernel cut short
    damaged = {".nbi": [10, 0], ".nbc": [200]}
    names = sorted({p.name.split("-")[0] for p in kept})
    for suffix, lengths in damaged.items():
        for length in lengths:
            name = names.pop()
            (path,) = (p for p in kept if p.name.startswith(f"{name}-") and p.suffix == suffix)
            path.write_bytes(kept[path][:length])
    assert counts(run(tmp_path)) == (total, total - 3)
    assert counts(run(tmp_path)) == (total, total)


def announcements(result):
    return [line for line in result.stderr.splitlines() if line.startswith("nnfast: ")]


ACT = """
import numpy as np
from nnfast.backends.numba_backend import NumbaBackend
NumbaBackend().act("relu", np.ones((3, 4), np.float32), out=np.ones((3, 4), np.float32))
"""


def test_compiling_is_announced_once_and_loading_is_not(tmp_path):
    (line,) = announcements(run(tmp_path, ACT))
    (folder,) = tmp_path.iterdir()
    assert line == f"nnfast: compiling kernels for this processor; they are kept in {folder} for the next time"
    assert announcements(run(tmp_path, ACT)) == []
    # One more function than the cache has
    assert announcements(run(tmp_path, ACT.replace("relu", "tanh"))) == [line]
    next(p for p in files(tmp_path) if p.suffix == ".nbi").unlink()
    assert announcements(run(tmp_path, ACT, NNFAST_QUIET="1")) == []
    assert announcements(run(tmp_path, ACT)) == []


@pytest.mark.parametrize("close", ["sys.stderr.close()", "sys.stderr = None", "os.close(2)"])
def test_a_closed_stderr_is_no_reason_to_fail(tmp_path, close):
    program = f"import os, sys\n{close}\n" + textwrap.dedent("""
        from nnfast.kernels.cpu import driver
        driver._driver(False)
        print("done")
    """)
    assert run(tmp_path, program).stdout == "done\n"


def test_folder_that_cannot_be_made_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file" / "below")
    assert result.stderr.count("compiled kernels are not cached") == 1
    assert announcements(result) == ["nnfast: compiling kernels for this processor"]


def test_foreign_and_open_folders_are_refused(tmp_path, monkeypatch):
    assert cache._usable(tmp_path / "new") is None
    (tmp_path / "new").chmod(0o755)
    assert cache._usable(tmp_path / "new") == "it is open to other users"
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert cache._usable(tmp_path / "link") == "it is not a folder"
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert cache._usable(tmp_path / "mine") == "it belongs to another user"


def test_numbas_own_setting_is_left_alone(tmp_path):
    before = numba.config.CACHE_DIR
    seen = []
    cache.compiled(lambda keep: seen.append((keep, numba.config.CACHE_DIR)), "nothing")
    with cache._numba_folder(tmp_path):
        assert str(tmp_path) == numba.config.CACHE_DIR
    assert before == numba.config.CACHE_DIR
    assert len(seen) == 1


def test_a_real_error_is_raised():
    def broken(keep):
        raise ValueError("broken")

    with warnings.catch_warnings(), pytest.raises(ValueError, match="broken"):
        cache.compiled(broken, "no such kernel")


def test_every_source_is_in_the_digest(tmp_path, monkeypatch):
    kernels = tmp_path / "kernels"
    shutil.copytree(Path(cache.__file__).parent.parent, kernels, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "__file__", str(kernels / "cpu" / "cache.py"))
    before = cache._digest()
    assert before == cache._digest()
    for name in ("cpu/tuning.py", "step_state.py", "erf_coefficients.py"):
        changed = kernels / name
        changed.write_text(changed.read_text() + "\n# changed\n")
        after = cache._digest()
        assert after != before
        before = after
