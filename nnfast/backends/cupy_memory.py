"""Where the CUDA backend's memory comes from: CuPy's pool, PyTorch's, or the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import DeviceUnavailable

__all__ = ["use_allocator"]


def _torch_allocator(cupy: Any) -> Callable[[int], Any]:
    """CuPy's allocator that asks PyTorch's pool, so that both share one."""
    try:
        import torch
    except ImportError as error:
        raise DeviceUnavailable(f"PyTorch's memory needs PyTorch: {error}") from None
    if not torch.cuda.is_available():
        raise DeviceUnavailable("PyTorch's memory needs a PyTorch that can use the GPU; this one cannot")

    def take(nbytes: int, device: int) -> int:
        # The pool keeps apart what belongs to different streams
        stream = cupy.cuda.get_current_stream().ptr
        try:
            return int(torch.cuda.caching_allocator_alloc(nbytes, device, stream))
        except torch.OutOfMemoryError:
            total = int(torch.cuda.memory_allocated(device))
            raise cupy.cuda.memory.OutOfMemoryError(nbytes, total, 0) from None

    def give_back(address: int, device: int) -> None:
        torch.cuda.caching_allocator_delete(address)

    allocator: Callable[[int], Any] = cupy.cuda.PythonFunctionAllocator(take, give_back).malloc
    return allocator


def use_allocator(allocator: str | Callable[[int], Any] = "cupy") -> None:
    """Take the memory of CUDA devices from somewhere else, from now on.

    It holds for all that CuPy allocates in this process; what is there stays where it is.

    Parameters
    ----------
    allocator : {"cupy", "torch"} or callable
        ``"cupy"`` is CuPy's own pool. ``"torch"`` is PyTorch's, which then serves both: two pools would each hold
        back what the other needs. A callable takes a number of bytes and returns a ``cupy.cuda.MemoryPointer``, such as
        the ``malloc`` of a ``cupy.cuda.MemoryAsyncPool``.

    Raises
    ------
    DeviceUnavailable
        If CuPy, or PyTorch with CUDA, is not there.
    ValueError, TypeError
        If it is none of these.

    Examples
    --------
    >>> nf.devices.use_allocator("torch")  # doctest: +SKIP
    """
    if isinstance(allocator, str) and allocator not in ("cupy", "torch"):
        raise ValueError(f"allocator must be 'cupy', 'torch' or a callable, got {allocator!r}")
    if not isinstance(allocator, str) and not callable(allocator):
        raise TypeError(f"allocator must be 'cupy', 'torch' or a callable, not {type(allocator).__name__}")
    try:
        import cupy
    except ImportError as error:
        raise DeviceUnavailable(f"CUDA memory needs CuPy: {error}") from None
    if allocator == "cupy":
        allocator = cupy.get_default_memory_pool().malloc
    elif allocator == "torch":
        allocator = _torch_allocator(cupy)
    cupy.cuda.set_allocator(allocator)
