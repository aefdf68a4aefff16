"""The CUDA kernels for images, but for convolution: pooling, change of size, dropout of channels.

A method returns ``NotImplemented`` for what its kernel does not support; the backend then uses CuPy's own operations.
"""

from __future__ import annotations

from typing import Any

from ..kernels.cuda import loader
from ..random import keep_threshold
from ..window import Window
from .base import Array
from .cupy_layers import same

__all__ = ["CudaSpatial", "over", "window_numbers"]

# Pixels for which a thread draws the random numbers of its channels once
_RUN = 16


def window_numbers(window: Window, image: Array, result: Array) -> tuple[int, ...]:
    """What a kernel over windows is given about them and the two arrays (``WINDOW_PARAMETERS`` of ``images.cuh``)."""
    above, left = window.padding[0][0], window.padding[1][0]
    return *image.shape[1:3], *result.shape[1:3], *window.size, *window.stride, above, left, *window.dilation


def over(images: Array, results: Array) -> bool:
    """Whether one array may hold the windows over the other's images: both 4-d, of as many images."""
    return images.ndim == results.ndim == 4 and len(images) == len(results)


class CudaSpatial:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _kernels: loader.Kernels
    _launch: Any
    _type: Any
    _array_type: Any

    # ---- pooling ----------------------------------------------------------------------------------
    def max_pool(self, x: Array, window: Window, *, out: Array) -> Any:
        return self._pool("max_pool", (x, out), window, x, out)

    def max_pool_grad(self, dy: Array, x: Array, y: Array, window: Window, *, dx: Array) -> Any:
        if dy.shape != y.shape or dx.shape != x.shape:
            return NotImplemented
        return self._pool("max_pool_grad", (dy, x, y, dx), window, x, y)

    def avg_pool(self, x: Array, window: Window, *, count_padding: bool = False, out: Array) -> Any:
        return self._pool("avg_pool", (x, out), window, x, out, int(count_padding))

    def avg_pool_grad(self, dy: Array, window: Window, *, count_padding: bool = False, dx: Array) -> Any:
        return self._pool("avg_pool_grad", (dy, dx), window, dx, dy, int(count_padding))

    def _pool(
        self, kernel: str, arrays: tuple[Array, ...], window: Window, image: Array, result: Array, *options: int
    ) -> Any:
        """A kernel of ``pooling.cu``, whose last array is its output."""
        t = self._type(*arrays)
        if t is None or not over(image, result) or image.shape[3] != result.shape[3]:
            return NotImplemented
        n, _, _, c = image.shape
        numbers = window_numbers(window, image, result)
        self._per_pack(arrays[-1], "pooling", kernel, t, *arrays, n, c, *options, *numbers)
        return None

    def masked_max(self, x: Array, mask: Array, *, out: Array) -> Any:
        return self._of_steps("masked_max", x, mask, out)

    def masked_mean(self, x: Array, mask: Array, *, out: Array) -> Any:
        return self._of_steps("masked_mean", x, mask, out)

    def _of_steps(self, kernel: str, x: Array, mask: Array, out: Array) -> Any:
        """A kernel of ``masked_pooling.cu`` that gives each sequence, and each 32 packs of its channels, a block."""
        t = self._type(x, mask, out)
        if t is None or not _masked(x, mask, out):
            return NotImplemented
        packs = -(-x.shape[2] * x.dtype.itemsize // 16)
        shape = self._kernels.flat(len(x) * -(-packs // 32) * self._kernels.THREADS, per_thread=1)
        self._launch("masked_pooling", kernel, (t,), shape, x, mask, out, *x.shape)
        return None

    def masked_max_grad(self, dy: Array, x: Array, y: Array, mask: Array, *, dx: Array) -> Any:
        t = self._type(dy, x, y, mask, dx)
        if t is None or not _masked(x, mask, y, dy) or not same(x, dx):
            return NotImplemented
        self._per_pack(dx, "masked_pooling", "masked_max_grad", t, dy, x, y, mask, dx, *x.shape)
        return None

    def masked_mean_grad(self, dy: Array, mask: Array, *, dx: Array) -> Any:
        t = self._type(dy, mask, dx)
        if t is None or not _masked(dx, mask, dy):
            return NotImplemented
        n, kernels = len(dx), self._kernels
        # Blocks of a sequence: as many as fill the device, but each with a pack for every thread
        packs = dx.size // n * dx.dtype.itemsize // 16
        parts = max(1, min(kernels.most_blocks // n, -(-packs // kernels.THREADS)))
        shape = kernels.flat(n * parts * kernels.THREADS, per_thread=1)
        self._launch("masked_pooling", "masked_mean_grad", (t,), shape, dy, mask, dx, *dx.shape, parts)
        return None

    def _per_pack(self, out: Array, file: str, kernel: str, t: str, *arguments: Any) -> None:
        """A kernel that computes 16 bytes of `out` a thread."""
        if out.size:
            shape = self._kernels.flat(out.size * out.dtype.itemsize // 16, per_thread=1)
            self._launch(file, kernel, (t,), shape, *arguments)

    # ---- size -------------------------------------------------------------------------------------
    def pad(self, x: Array, top: int, left: int, *, out: Array) -> Any:
        if min(top, left) < 0 or x.ndim != 4 or out.ndim != 4:
            return NotImplemented
        if top + x.shape[1] > out.shape[1] or left + x.shape[2] > out.shape[2]:
            return NotImplemented
        return self._resample(x, out, -top, -left, 1, 1)

    def crop(self, x: Array, top: int, left: int, *, out: Array) -> Any:
        if min(top, left) < 0 or x.ndim != 4 or out.ndim != 4:
            return NotImplemented
        if top + out.shape[1] > x.shape[1] or left + out.shape[2] > x.shape[2]:
            return NotImplemented
        return self._resample(x, out, top, left, 1, 1)

    def upsample(self, x: Array, factors: tuple[int, int], *, out: Array) -> Any:
        if not _enlarged(x, factors, out):
            return NotImplemented
        return self._resample(x, out, 0, 0, *factors)

    def _resample(self, x: Array, out: Array, down: int, across: int, tall: int, broad: int) -> Any:
        """``out[:, i, j] = x[:, (i + down) // tall, (j + across) // broad]``, and 0 outside of `x`."""
        if x.dtype != out.dtype or not over(x, out) or x.shape[3] != out.shape[3]:
            return NotImplemented
        if not all(isinstance(a, self._array_type) and a.flags.c_contiguous for a in (x, out)):
            return NotImplemented
        n, height, width, c = x.shape
        pixel = c * x.dtype.itemsize
        if out.size:
            unit = next(size for size in loader.UNITS if (pixel | x.data.ptr | out.data.ptr) % size == 0)
            shape = self._kernels.flat(out.size // c * (pixel // unit), per_thread=1)
            numbers = (n, height, width, *out.shape[1:3], pixel // unit, down, across, tall, broad)
            self._launch("images", "resample", (loader.UNITS[unit],), shape, x, out, *numbers)
        return None

    def upsample_grad(self, dy: Array, factors: tuple[int, int], *, dx: Array) -> Any:
        t = self._type(dy, dx)
        if t is None or not _enlarged(dx, factors, dy):
            return NotImplemented
        self._per_pack(dx, "images", "upsample_grad", t, dy, dx, *dx.shape, *factors)
        return None

    def upsample_bilinear(self, x: Array, factors: tuple[int, int], *, out: Array) -> Any:
        t = self._type(x, out)
        if t is None or not _enlarged(x, factors, out):
            return NotImplemented
        self._per_pack(out, "images", "upsample_bilinear", t, x, out, *x.shape, *factors)
        return None

    def upsample_bilinear_grad(self, dy: Array, factors: tuple[int, int], *, dx: Array) -> Any:
        t = self._type(dy, dx)
        if t is None or not _enlarged(dx, factors, dy):
            return NotImplemented
        self._per_pack(dx, "images", "upsample_bilinear_grad", t, dy, dx, *dx.shape, *factors)
        return None

    # ---- noise ------------------------------------------------------------------------------------
    def spatial_dropout(self, x: Array, state: Array, *, rate: float, stream: int, out: Array) -> Any:
        t = self._type(x, out)
        if t is None or x.ndim != 3 or x.shape != out.shape:
            return NotImplemented
        numbers = (state, stream, keep_threshold(rate), 1.0 / (1.0 - rate))
        if out.size:
            shape = self._kernels.flat(x.size * x.dtype.itemsize // (16 * _RUN), per_thread=1)
            self._launch("dropout", "spatial_dropout", (t,), shape, x, out, *x.shape, _RUN, *numbers)
        return None


def _masked(x: Array, mask: Array, *results: Array) -> bool:
    """Whether these are sequences that are not empty, their mask, and arrays with one step of each."""
    if x.ndim != 3 or x.size == 0 or mask.shape != x.shape[:2]:
        return False
    return all(result.shape == (len(x), x.shape[2]) for result in results)


def _enlarged(x: Array, factors: tuple[int, int], large: Array) -> bool:
    """Whether `large` has the shape of the images `x` enlarged by `factors`."""
    if x.ndim != 4 or min(factors) < 1:
        return False
    n, height, width, c = x.shape
    return bool(large.shape == (n, height * factors[0], width * factors[1], c))
