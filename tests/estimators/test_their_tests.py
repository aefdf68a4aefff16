"""scikit-learn's own tests of its neural networks, with the import changed."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sklearn")

import sklearn.neural_network

_IMPORT = "from sklearn.neural_network import MLPClassifier, MLPRegressor"


@pytest.fixture
def global_random_seed() -> int:
    """Of scikit-learn's tests, which take it from their own configuration."""
    return 42


_path = Path(sklearn.neural_network.__file__).parent / "tests" / "test_mlp.py"
if not _path.exists():
    pytest.skip("the installed scikit-learn comes without its tests", allow_module_level=True)
_source = _path.read_text(encoding="utf-8")
assert _source.count(_IMPORT) == 1
exec(compile(_source.replace(_IMPORT, "from nnfast.sklearn import MLPClassifier, MLPRegressor"), str(_path), "exec"))
