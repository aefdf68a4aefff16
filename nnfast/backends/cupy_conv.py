"""Convolution on a GPU: one kernel each for the result and its gradients, with bias and activation at its end.

Where cuDNN is installed and faster for a shape, it computes instead (``cupy_cudnn.py``).

The kernels multiply matrices of which one is gathered from the image on the way (``conv.cu``); a window of one pixel is
a product as it stands, and goes through the linear layers' way; one that sees a single channel has kernels of its own.
A method returns ``NotImplemented`` for what no kernel supports; the backend then uses CuPy's own operations.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .. import activations
from ..activations import Activation
from ..kernels.cuda import loader
from ..window import Window
from .base import Array
from .cupy_cudnn import CudaCudnn
from .cupy_layers import packed, same
from .cupy_spatial import over, window_numbers

__all__ = ["CudaConv"]

# Of one launch along y and z
_MOST_BLOCKS = 65535
# Elements of the sums of pixels that wait to be added up; pixels that one of them has at least
_MOST_SUMS, _FEWEST_PIXELS = 1 << 24, 512
_NUMBERS = {name: number for number, name in enumerate(loader.ACTIVATIONS)}


class CudaConv(CudaCudnn):
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _kernels: loader.Kernels
    _cupy: Any
    _index: int
    _recording: Any
    _rounds: bool | None = None
    _launch: Any
    _type: Any
    _rows: Any
    _scratch: Any
    _act_grad_bias: Any
    _chunk_sums: Any
    _finish_chunks: Any
    gemm: Any
    act_grad: Any
    linear_act: Any
    linear_act_grad: Any

    # ---- the contract -----------------------------------------------------------------------------
    def conv(self, x: Array, W: Array, window: Window, *, groups: int = 1, out: Array) -> Any:
        return self._conv_act(x, W, None, activations.get(None), window, groups, out, None)

    def conv_act(
        self,
        x: Array,
        W: Array,
        b: Array | None,
        act: str | Activation,
        window: Window,
        *,
        groups: int = 1,
        out: Array,
        saved: Array | None = None,
    ) -> Any:
        return self._conv_act(x, W, b, activations.get(act), window, groups, out, saved)

    def _conv_act(
        self,
        x: Array,
        W: Array,
        b: Array | None,
        act: Activation,
        window: Window,
        groups: int,
        out: Array,
        saved: Array | None,
    ) -> Any:
        t = self._type(x, W, b, out, saved)
        if t is None or not _fits(x, W, window, groups, out) or not same(out, saved):
            return NotImplemented
        if b is not None and b.shape != out.shape[3:]:
            return NotImplemented
        if _pointwise(window, groups, x, out):
            z = None if saved is None else _rows(saved)
            self.linear_act(_rows(x), W[0, 0], b, act, out=_rows(out), saved=z)
            return None

        def own() -> None:
            softmax = act.name == "softmax"
            function = (0, 0.0) if softmax else (_NUMBERS[act.name], float(act.alpha))
            numbers = window_numbers(window, x, out)
            if _depthwise(x, groups):
                n, _, _, c = x.shape
                shape = self._kernels.flat(out.size * out.dtype.itemsize // 16, per_thread=1)
                arguments = (x, W, b, saved, out, n, c, W.shape[3] // c, *function, *numbers)
                self._launch("depthwise", "depthwise", (t,), shape, *arguments)
            else:
                self._convolve(t, x, W, b, saved, out, groups, 1, *function, numbers)
            if softmax:
                self._rows(t, "softmax", out, out, out)

        if not self._cudnn_forward(t, x, W, b, act, saved, out, window, groups, own):
            own()
        return None

    def conv_act_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        saved: Array | None,
        act: str | Activation,
        window: Window,
        *,
        groups: int = 1,
        dx: Array | None,
        dW: Array,
        db: Array | None,
    ) -> Any:
        act = activations.get(act)
        t = self._type(dy, x, W, saved, dx, wide=(dW, db))
        plain = act.name == "identity"
        if t is None or not _fits(x, W, window, groups, dy) or not same(dy, saved) or not same(W, dW):
            return NotImplemented
        if (saved is None and not plain) or (db is not None and db.shape != dy.shape[3:]) or not same(x, dx):
            return NotImplemented
        if _pointwise(window, groups, x, dy):
            z = None if saved is None else _rows(saved)
            below = None if dx is None else _rows(dx)
            self.linear_act_grad(_rows(dy), _rows(x), W[0, 0], z, act, dx=below, dW=dW[0, 0], db=db)
            return None
        if act.name == "softmax" or (db is None and not plain):
            self.act_grad(act, dy, saved, out=dy)
            plain = True
        if db is not None:
            z = None if plain or saved is None else _rows(saved)
            dz = None if plain else _rows(dy)
            self._act_grad_bias(t, activations.get(None) if plain else act, _rows(dy), z, dz, db)
        self._weights(t, dy, x, window, groups, dW)
        if dx is not None:
            self._image(t, dy, W, window, groups, dx)
        return None

    def conv_weight_grad(self, dy: Array, x: Array, window: Window, *, groups: int = 1, dW: Array) -> Any:
        t = self._type(dy, x, wide=(dW,))
        if t is None or not _fits(x, dW, window, groups, dy):
            return NotImplemented
        if _pointwise(window, groups, x, dy):
            self.gemm(_rows(x), _rows(dy), out=dW[0, 0], trans_a=True)
        else:
            self._weights(t, dy, x, window, groups, dW)
        return None

    def conv_input_grad(self, dy: Array, W: Array, window: Window, *, groups: int = 1, dx: Array) -> Any:
        t = self._type(dy, W, dx)
        if t is None or not _fits(dx, W, window, groups, dy):
            return NotImplemented
        if _pointwise(window, groups, dx, dy):
            self.gemm(_rows(dy), W[0, 0], out=_rows(dx), trans_b=True)
        else:
            self._image(t, dy, W, window, groups, dx)
        return None

    # ---- the kernels ------------------------------------------------------------------------------
    def _convolve(
        self,
        t: str,
        source: Array,
        W: Array,
        b: Array | None,
        saved: Array | None,
        out: Array,
        groups: int,
        phases: int,
        number: int,
        alpha: float,
        numbers: tuple[int, ...],
        backward: int = 0,
    ) -> None:
        """``conv`` of ``conv.cu``; each of `phases` has at most this many of the pixels of `out`."""
        channels, out_channels = source.shape[3] // groups, out.shape[3] // groups
        strides = numbers[6:8] if backward else (1, 1)
        pixels = len(out) * prod(-(-size // stride) for size, stride in zip(out.shape[1:3], strides, strict=True))
        rows, columns = self._tile(out.dtype.char, pixels, out_channels, groups * phases)
        grid = (-(-pixels // rows) * -(-out_channels // columns), 1, groups * phases)
        counts = (len(source), groups, channels, out_channels, backward)
        arguments = (source, W, b, saved, out, *counts, number, alpha, *numbers)
        self._launch("conv", "conv", (self._multiplied(t), str(rows), str(columns)), (grid, (256,)), *arguments)

    def _multiplied(self, t: str) -> str:
        """What products are made in: float32 is rounded where the plan allows it and the GPU is the faster for it."""
        if t != "float" or not self._recording.rounding:
            return t
        if self._rounds is None:  # the device is asked once
            self._rounds = self._cupy.cuda.runtime.getDeviceProperties(self._index)["major"] >= 8
        return "tf32" if self._rounds else t

    def _tile(self, char: str, rows: int, columns: int, times: int) -> tuple[int, int]:
        """Rows and columns of a tile: as large as still fill the device, and not much wider than what there is."""
        large, *small = loader.TILES[loader.WIDE[char]]
        if not small:
            return large
        medium, narrow = small
        if columns <= narrow[1]:
            return narrow
        blocks = -(-rows // large[0]) * -(-columns // large[1]) * times
        # most_blocks is eight for each multiprocessor
        return large if columns > medium[1] and blocks * 8 >= self._kernels.most_blocks else medium

    def _image(self, t: str, dy: Array, W: Array, window: Window, groups: int, dx: Array) -> None:
        """The gradient with respect to the image."""
        if dx.size == 0:
            return

        def own() -> None:
            self._own_image(t, dy, W, window, groups, dx)

        if not self._cudnn_image(t, dy, W, window, groups, dx, own):
            own()

    def _own_image(self, t: str, dy: Array, W: Array, window: Window, groups: int, dx: Array) -> None:
        """By the kernels here."""
        numbers = window_numbers(window, dx, dy)
        n, _, _, c = dx.shape
        if _depthwise(dx, groups):
            shape = self._kernels.flat(dx.size * dx.dtype.itemsize // 16, per_thread=1)
            arguments = (dy, W, dx, n, c, W.shape[3] // c, *numbers)
            self._launch("depthwise", "depthwise_dx", (t,), shape, *arguments)
            return
        turned = self._scratch(f"turned {W.dtype.char}", W.size, W.dtype)
        self._turn(t, W, turned, W.shape[2], W.shape[3] // groups, prod(window.size), groups)
        self._convolve(t, dy, turned, None, None, dx, groups, prod(window.stride), 0, 0.0, numbers, backward=1)

    def _weights(self, t: str, dy: Array, x: Array, window: Window, groups: int, dW: Array) -> None:
        """The gradient with respect to the weights."""

        def own() -> None:
            self._own_weights(t, dy, x, window, groups, dW)

        if not self._cudnn_weights(t, dy, x, window, groups, dW, own):
            own()

    def _own_weights(self, t: str, dy: Array, x: Array, window: Window, groups: int, dW: Array) -> None:
        """By the kernels here: of chunks of pixels, added up in their order."""
        numbers = window_numbers(window, x, dy)
        n, _, _, c = x.shape
        pixels, m, taps = n * prod(dy.shape[1:3]), dW.shape[3], prod(window.size)
        if _depthwise(x, groups):
            at_once = packed(m, dy, x)
            (tiles, chunks), block, per_chunk = self._kernels.tiles(pixels, m, at_once)
            chunks = max(1, min(chunks, _MOST_SUMS // max(dW.size, 1)))
            per_chunk = max(1, -(-pixels // chunks))
            chunks = max(1, -(-pixels // per_chunk))
            (sums,) = self._chunk_sums(chunks, dW)
            arguments = (dy, x, sums, n, c, m // c, per_chunk, at_once, *numbers)
            self._launch("depthwise", "depthwise_weights", (t,), ((tiles, chunks, taps), block), *arguments)
        else:
            channels, out_channels = c // groups, m // groups
            times = groups * max(1, pixels // _FEWEST_PIXELS)
            rows, columns = self._tile(x.dtype.char, taps * channels, out_channels, times)
            tiles = -(-taps * channels // rows) * -(-out_channels // columns)
            chunks = self._kernels.most_blocks // 2 // (tiles * groups)
            chunks = min(chunks, pixels // _FEWEST_PIXELS, _MOST_SUMS // max(dW.size, 1), _MOST_BLOCKS)
            per_chunk = max(1, -(-pixels // max(1, chunks)))
            chunks = max(1, -(-pixels // per_chunk))
            (sums,) = self._chunk_sums(chunks, dW)
            arguments = (dy, x, sums, n, groups, channels, out_channels, per_chunk, *numbers)
            grid = (tiles, chunks, groups)
            kinds = (self._multiplied(t), str(rows), str(columns))
            self._launch("conv", "conv_weights", kinds, (grid, (256,)), *arguments)
        self._finish_chunks(chunks, (sums, dW))


def _rows(x: Array) -> Array:
    """The pixels of images as rows."""
    return x.reshape(-1, x.shape[-1])


def _pointwise(window: Window, groups: int, image: Array, result: Array) -> bool:
    """Whether each pixel of the result comes from the one in its place, so that this is a plain product."""
    return (
        groups == 1
        and window.size == window.stride == (1, 1)
        and window.padding == ((0, 0), (0, 0))
        and image.shape[:3] == result.shape[:3]
    )


def _depthwise(image: Array, groups: int) -> bool:
    return groups > 1 and groups == image.shape[3]


def _fits(image: Array, W: Array, window: Window, groups: int, result: Array) -> bool:
    """Whether the shapes are those of a convolution that the kernels do, and none of them is empty."""
    if not over(image, result) or W.ndim != 4 or groups < 1 or 0 in (image.size, result.size, W.size):
        return False
    c, m = image.shape[3], result.shape[3]
    if c % groups or m % groups or W.shape != (*window.size, c // groups, m):
        return False
    return groups * prod(window.stride) <= _MOST_BLOCKS and prod(window.size) <= _MOST_BLOCKS
