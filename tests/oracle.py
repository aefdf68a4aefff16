"""PyTorch on the CPU as an outside oracle; a test module that imports this is skipped where PyTorch is missing."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

DTYPES = {"float64": (1e-12, 1e-10), "float32": (1e-5, 1e-4)}
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def close(actual, expected, rtol, what=""):
    """Within `rtol` of each element, or of the array's own scale where elements cancel."""
    expected = expected.detach().numpy() if torch.is_tensor(expected) else np.asarray(expected)
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * scale, err_msg=what)


def tensor(x, dtype, grad=True):
    return torch.tensor(np.asarray(x, dtype), requires_grad=grad)
