"""Hand-written compute kernels: ``cpu`` (Numba) and ``cuda`` (CUDA C++ through CuPy)."""
