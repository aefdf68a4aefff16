"""Imports run one way, and importing the package loads little."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import nnfast as nf

PACKAGE = Path(nf.__file__).parent

# A module imports from its own group and from those before it
ORDER = (
    {"kernels"},
    {
        "activations",
        "arena",
        "blas",
        "errors",
        "files",
        "machine",
        "positions",
        "precision",
        "random",
        "window",
        "bundles",
    },
    {"backends"},
    {"devices", "initializers", "joint_loss", "layers", "losses", "metrics", "optimizers"},
    {"functional"},
    {"parameters", "plan", "plan_flow", "plan_layout", "plan_pool", "plan_program", "summary"},
    {"network"},
    {"exporting", "training"},
    {"model"},
    {"datasets", "language", "preprocessing", "plotting", "scratch", "testing"},
    {"interop", "selftest", "sklearn"},
    {"bench"},
    {"cli"},
    {"__main__"},
)
LEAVES = ORDER[1]
SUITE = sys.stdlib_module_names
HEAVY = {
    "numba", "llvmlite", "cupy", "scipy", "threadpoolctl", "click", "rich", "matplotlib", "sklearn", "pandas", "torch",
    "safetensors",
}  # fmt: skip


def _modules() -> list[str]:
    files = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    linked = (
        Path(link) / p.relative_to(PACKAGE / link)
        for link in ("kernels", "bench")
        for p in (PACKAGE / link).rglob("*.py")
    )
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in (*files, *linked)}
    return sorted(name for name in names - {"__init__"} if not name.startswith("bench.suites"))  # not in the package


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports, those inside functions too, but not those for type checkers only."""
    if isinstance(tree, (ast.Import, ast.ImportFrom)):
        yield tree
        return
    guarded = isinstance(tree, ast.If) and ast.unparse(tree.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for node in tree.orelse if guarded else ast.iter_child_nodes(tree):  # type: ignore[attr-defined]
        yield from _imports(node)


@functools.cache
def _imported(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """Modules of nnfast (without that name) and top-level packages of others that a module imports."""
    own, others = set(), set()
    path = _file(module)
    package = ["nnfast", *module.split(".")]
    if path.name != "__init__.py":
        package.pop()
    for node in _imports(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.level == 0:
            names = [node.module or ""]
        else:
            base = ".".join(package[: len(package) - node.level + 1])
            stem = f"{base}.{node.module}" if node.module else base
            # `from . import x` names a module, or something in __init__
            names = [f"{stem}.{alias.name}" for alias in node.names] if node.module is None else [stem]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "nnfast":
                own.add(rest)
            else:
                others.add(head)
    return frozenset(own), frozenset(others)


def _group(module: str) -> int:
    head = module.partition(".")[0]
    for number, names in enumerate(ORDER):
        if head in names:
            return number
    raise AssertionError(f"{module} has no place in the order of imports")


def test_the_reader_of_imports_reads() -> None:
    """The tests below can fail only if this finds what is there."""
    assert len(_modules()) > 50
    own, others = _imported("training.run")
    assert {"training.sources", "kernels", "network"} <= own
    assert {"numpy", "signal"} <= others
    assert {"bench.measure", "bench.contenders.pytorch"} <= set(_modules())
    own, others = _imported("kernels.cpu.driver")
    assert {"kernels.cpu.threads", "kernels.cpu.cache"} <= own
    assert "numba" in others
    assert "cupy" in _imported("backends.cupy_arrays")[1], "imports inside functions count"
    source = "if TYPE_CHECKING:\n import a\nelse:\n import b\ndef f():\n try:\n  import c\n finally:\n  import d"
    assert [ast.unparse(node) for node in _imports(ast.parse(source))] == ["import b", "import c", "import d"]


@pytest.mark.parametrize("module", _modules())
def test_imports_run_one_way(module: str) -> None:
    group = _group(module)
    for name in _imported(module)[0] - {"__version__"}:
        if module.startswith("bench.") and not name:
            continue  # it measures what users call
        assert name, f"{module} imports the package itself"
        assert _group(name) <= group, f"{module} imports {name}, which comes after it"
        if module.partition(".")[0] in LEAVES:
            assert _group(name) < group, f"{module} is a leaf, but imports {name}"


@pytest.mark.parametrize("module", [m for m in _modules() if m.startswith("bench")])
def test_peers_are_imported_by_their_own_contenders_only(module: str) -> None:
    """So that one process never loads two of them."""
    own = {
        "bench.contenders.pytorch": {"torch"},
        "bench.contenders.pytorch_cuda": {"torch"},
        "bench.contenders.pytorch_networks": {"torch"},
        "bench.contenders.jax_optax": {"jax", "optax"},
        "bench.contenders.jax_networks": {"jax"},
        "bench.contenders.scikit_learn": {"sklearn"},
        "bench.contenders.onnx_runtime": {"onnxruntime", "onnx"},
        "bench.estimators": {"sklearn"},
        "bench.fashion_mnist_epoch": {"sklearn"},
    }.get(module, set())
    found = _imported(module)[1] & {"torch", "jax", "optax", "sklearn", "onnxruntime", "onnx"}
    assert found == own


@pytest.mark.parametrize("module", [m for m in _modules() if m.startswith("kernels")])
def test_kernels_import_little(module: str) -> None:
    allowed = {
        "cpu": {"numpy", "numba", "llvmlite", "platformdirs"},
        "memory": {"numpy"},
        "remembered": set(),
        "cuda": {"numpy", "cupy", "cupyx", "cuda", "platformdirs"},
    }.get(module.split(".")[1] if "." in module else "", set())
    # Products by BLAS, and convolutions by cuDNN, and nothing else, need these
    extra = {
        "kernels.cpu.blas_product": {"scipy", "threadpoolctl"},
        "kernels.cpu.threads": {"threadpoolctl"},
        "kernels.cuda.cudnn_graphs": {"cudnn"},
    }.get(module, set())
    own, others = _imported(module)
    assert others <= allowed | extra | SUITE
    assert all(name.partition(".")[0] == "kernels" for name in own)


CONCRETE = ("numba", "cupy", "numpybackend", "numbabackend", "cupybackend", "emulated")


@pytest.mark.parametrize("module", [m for m in _modules() if m.split(".")[0] in ("layers", "losses", "optimizers")])
def test_layers_losses_and_optimizers_do_not_know_the_backend(module: str) -> None:
    tree = ast.parse(_file(module).read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        text = {
            ast.Name: lambda n: n.id,
            ast.Attribute: lambda n: n.attr,
            ast.Constant: lambda n: n.value if isinstance(n.value, str) else "",
            ast.alias: lambda n: n.name,
        }.get(type(node), lambda n: "")(node)
        assert not any(name in text.lower() for name in CONCRETE), f"{module}, line {node.lineno}: {text}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("bk", "backend"):
            assert node.attr not in ("name", "device", "__class__"), f"{module}, line {node.lineno}"
    allowed = {"backends.base", "backends"}
    assert not {name for name in _imported(module)[0] if name.startswith("backends")} - allowed


@pytest.mark.parametrize(
    "module", [m for m in _modules() if m.split(".")[0] not in ("kernels", "backends", "devices", "testing")]
)
def test_only_devices_chooses_a_backend(module: str) -> None:
    concrete = {"backends.numba_backend", "backends.cupy_backend"}
    assert not _imported(module)[0] & concrete
    assert not _imported(module)[1] & {"cupy"} or module == "cli.info"


# ---- what is loaded ------------------------------------------------------------------------------------
def _loaded(script: str) -> set[str]:
    """Names of the modules in a new process after a program."""
    program = textwrap.dedent(script) + "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def _heads(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_import_loads_the_package_and_nothing_else() -> None:
    more = _loaded("import numpy, nnfast") - _loaded("import numpy")
    assert {name for name in more if name.partition(".")[0] not in SUITE} == {"nnfast"}


@pytest.mark.parametrize(
    "script",
    [
        "import nnfast; nnfast.Sequential, nnfast.Trainer, nnfast.Adam, nnfast.NeuralNetwork, nnfast.losses",
        "import nnfast; [getattr(nnfast, name) for name in nnfast.__all__]",
        """
        import nnfast
        model = nnfast.Sequential([nnfast.Dense(3, "relu"), nnfast.Dense(2)])
        model.fit([[0.0], [1.0]], [0, 1], loss="cross_entropy", device="numpy", verbose=0, metrics=["accuracy"])
        model.predict_classes([[0.5]])
        print(model.summary())
        """,
    ],
    ids=["classes", "every name", "training on NumPy"],
)
def test_use_loads_no_more_than_it_needs(script: str) -> None:
    modules = _loaded(script)
    assert "nnfast" in modules
    assert not _heads(modules) & HEAVY


def test_training_on_numba_needs_no_scipy() -> None:
    pytest.importorskip("numba")
    script = """
        import sys
        for name in ("scipy", "threadpoolctl"):
            sys.modules[name] = None  # as if it were not installed
        import nnfast
        model = nnfast.Sequential([nnfast.Dense(30, "gelu"), nnfast.Dense(3)])
        x = [[0.01 * i, 1.0] for i in range(100)]
        for device in ("numba", "numpy"):
            model.fit(x, [0, 1, 2, 1] * 25, loss="cross_entropy", epochs=2, device=device, verbose=0)
    """
    assert "numba" in _loaded(script)


def test_what_the_command_line_loads() -> None:
    assert not _heads(_loaded("import nnfast.cli")) & {"numba", "cupy", "scipy", "matplotlib", "sklearn", "pandas"}


# ---- public names --------------------------------------------------------------------------------------
def test_public_names() -> None:
    assert len(nf.__all__) == len(set(nf.__all__))
    assert set(nf.__all__) <= set(dir(nf))
    with pytest.raises(AttributeError, match="no attribute 'Dens'"):
        nf.Dens  # noqa: B018 - the access is the test


@pytest.mark.parametrize("name", sorted(name for name in nf.__all__ if name != "__version__"))
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(nf, name)
    own = value.__doc__ if inspect.ismodule(value) else vars(value).get("__doc__", value.__doc__)
    assert own, f"nnfast.{name} has no docstring of its own"
    assert len(own.strip()) > 10


@pytest.mark.parametrize("module", [m for m in _modules() if not m.startswith(("kernels", "__main__"))])
def test_a_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(ast.parse(_file(module).read_text())), module


def test_all_lists_are_right() -> None:
    for module in ("activations", "initializers", "layers", "losses", "metrics", "optimizers", "random", "devices"):
        found = importlib.import_module(f"nnfast.{module}")
        assert [name for name in found.__all__ if not hasattr(found, name)] == []
