"""Estimators for scikit-learn: its own two neural networks, faster, and any network of nnfast as an estimator.

``MLPClassifier`` and ``MLPRegressor`` take the place of scikit-learn's: change the import and nothing else.
``NNClassifier`` and ``NNRegressor`` make an estimator of a model of nnfast. Needs scikit-learn 1.6 or newer
(``pip install nnfast[sklearn]``). As with scikit-learn's own, a pickle or joblib file of an estimator runs code when it
is loaded: load those that you trust, and share ``model_.save(file)`` instead.
"""

from __future__ import annotations

try:
    import sklearn
except ModuleNotFoundError as error:
    raise ImportError("nnfast.sklearn needs scikit-learn: pip install nnfast[sklearn]", name="sklearn") from error

from .mlp import MLPClassifier, MLPRegressor
from .networks import NNClassifier, NNRegressor

__all__ = ["MLPClassifier", "MLPRegressor", "NNClassifier", "NNRegressor"]

if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 6):
    raise ImportError(f"nnfast.sklearn needs scikit-learn 1.6 or newer, found {sklearn.__version__}", name="sklearn")
