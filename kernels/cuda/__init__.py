"""CUDA C++ kernels, compiled through CuPy on first use; importing this package needs neither."""

from .loader import FILES, OPTIONS, Kernels, expressions, source

__all__ = ["FILES", "OPTIONS", "Kernels", "expressions", "source"]
