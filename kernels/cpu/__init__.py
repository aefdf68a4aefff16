"""Numba kernels for the CPU, compiled on first use; see ``specialise.py`` for what a kernel is."""
