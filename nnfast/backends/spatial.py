"""The part of the contract that works on images: convolution, pooling, and what changes their size.

Images are channels last, (n, height, width, channels); a sequence (n, steps, channels) is an image of height 1. Where
`x` and `dy` have 16 bits, `gamma`, `beta`, statistics and all gradients of parameters are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from .. import activations
from ..activations import Activation
from ..window import Window

if TYPE_CHECKING:
    from .base import Array

__all__ = ["SpatialOperations"]


class SpatialOperations(ABC):
    """Mixin of :class:`~nnfast.backends.base.Backend`."""

    if TYPE_CHECKING:  # of the rest of the contract
        act: Any
        act_grad: Any
        add_bias: Any
        copy: Any
        sum_rows: Any

    # ---- convolution ------------------------------------------------------------------------------
    @abstractmethod
    def conv(self, x: Array, W: Array, window: Window, *, groups: int = 1, out: Array) -> None:
        """Cross-correlation, as all libraries mean by convolution.

        ``out[n, i, j, o] = sum_rsc x[n, i * stride + r * dilation - pad, ..., c] * W[r, s, c, o]``, where what is
        outside of `x` is 0. `x` (n, h, w, c), `W` (kh, kw, c / groups, m), `out` (n, oh, ow, m). Output channels
        ``[g m / groups, (g + 1) m / groups)`` see the input channels ``[g c / groups, (g + 1) c / groups)`` only.
        """

    @abstractmethod
    def conv_input_grad(self, dy: Array, W: Array, window: Window, *, groups: int = 1, dx: Array) -> None:
        """The gradient of :meth:`conv` for `x`, which is also a transposed convolution of `dy`."""

    @abstractmethod
    def conv_weight_grad(self, dy: Array, x: Array, window: Window, *, groups: int = 1, dW: Array) -> None:
        """The gradient of :meth:`conv` for `W`."""

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
    ) -> None:
        """``z = conv(x, W) + b; out = f(z)``, and ``saved = z`` where `saved` is given; `b` (m,) or ``None``."""
        act = activations.get(act)
        self.conv(x, W, window, groups=groups, out=out)
        if b is not None:
            rows = out.reshape(-1, out.shape[-1])
            self.add_bias(rows, b, out=rows)
        if saved is not None:
            self.copy(out, out=saved)
        if act.name != "identity":
            self.act(act, out, out=out)

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
    ) -> None:
        """Gradients of :meth:`conv_act`; `dy` is used up, `saved` is `y` or `z` as ``act.saves`` says."""
        act = activations.get(act)
        if act.name != "identity":
            self.act_grad(act, dy, saved, out=dy)
        if db is not None:
            self.sum_rows(dy.reshape(-1, dy.shape[-1]), out=db)
        self.conv_weight_grad(dy, x, window, groups=groups, dW=dW)
        if dx is not None:
            self.conv_input_grad(dy, W, window, groups=groups, dx=dx)

    # ---- pooling ------------------------------------------------------------------------------------
    @abstractmethod
    def max_pool(self, x: Array, window: Window, *, out: Array) -> None:
        """The largest of each window, per channel; what is outside of `x` does not count, NaN does.

        `x` (n, h, w, c), `out` (n, oh, ow, c). A window with nothing of `x` in it gives -inf.
        """

    @abstractmethod
    def max_pool_grad(self, dy: Array, x: Array, y: Array, window: Window, *, dx: Array) -> None:
        """Each `dy` goes to the first place of its window, row by row, that has its `y` (or NaN, where `y` is NaN)."""

    @abstractmethod
    def avg_pool(self, x: Array, window: Window, *, count_padding: bool = False, out: Array) -> None:
        """The mean of each window, per channel, of what lies in `x`; with `count_padding` the padding counts as 0.

        A window with nothing of `x` in it gives 0.
        """

    @abstractmethod
    def avg_pool_grad(self, dy: Array, window: Window, *, count_padding: bool = False, dx: Array) -> None:
        """The gradient of :meth:`avg_pool`."""

    @abstractmethod
    def masked_max(self, x: Array, mask: Array, *, out: Array) -> None:
        """The largest of each sequence's steps that are there, per channel; what is padding does not count, NaN does.

        `x` (n, t, c), `mask` (n, t): not 0, or 0 where a step is padding, `out` (n, c), all of one type. A sequence
        that is all padding gives 0.
        """

    @abstractmethod
    def masked_max_grad(self, dy: Array, x: Array, y: Array, mask: Array, *, dx: Array) -> None:
        """Each `dy` goes to the first step that is there and has its `y` (or NaN, where `y` is NaN); padding gets 0."""

    @abstractmethod
    def masked_mean(self, x: Array, mask: Array, *, out: Array) -> None:
        """The mean of each sequence's steps that are there, per channel; shapes and padding as :meth:`masked_max`."""

    @abstractmethod
    def masked_mean_grad(self, dy: Array, mask: Array, *, dx: Array) -> None:
        """The gradient of :meth:`masked_mean`; padding gets 0."""

    # ---- size ---------------------------------------------------------------------------------------
    @abstractmethod
    def pad(self, x: Array, top: int, left: int, *, out: Array) -> None:
        """``out = 0; out[:, top : top + h, left : left + w] = x``; `out` is at least as large."""

    @abstractmethod
    def crop(self, x: Array, top: int, left: int, *, out: Array) -> None:
        """``out = x[:, top : top + h, left : left + w]`` with (h, w) of `out`: the gradient of :meth:`pad`."""

    @abstractmethod
    def upsample(self, x: Array, factors: tuple[int, int], *, out: Array) -> None:
        """Each pixel `factors` times, down and across: ``out[:, i, j] = x[:, i // down, j // across]``."""

    @abstractmethod
    def upsample_grad(self, dy: Array, factors: tuple[int, int], *, dx: Array) -> None:
        """The gradient of :meth:`upsample`: sums over blocks of `factors` pixels."""

    @abstractmethod
    def upsample_bilinear(self, x: Array, factors: tuple[int, int], *, out: Array) -> None:
        """As :meth:`upsample`, with what lies between pixels interpolated, first between rows, then between columns.

        Along an axis enlarged f times, place k of pixel p's block has ``(1 - w) x[p] + w x[p']``, where
        ``w = |2 k + 1 - f| / (2 f)`` and p' is the neighbour on that side, at the border p itself: centres of pixels
        are at halves, as in PyTorch without ``align_corners``. What has no share does not count, even where not finite.
        """

    @abstractmethod
    def upsample_bilinear_grad(self, dy: Array, factors: tuple[int, int], *, dx: Array) -> None:
        """The gradient of :meth:`upsample_bilinear`, its adjoint."""

    # ---- normalisation and noise ----------------------------------------------------------------------
    @abstractmethod
    def group_norm(
        self, x: Array, gamma: Array, beta: Array, *, groups: int, eps: float, out: Array, mean: Array, rstd: Array
    ) -> None:
        """Normalise each row's groups of channels, over all its pixels.

        `x`, `out` (n, pixels, c); `gamma`, `beta` (c,); `mean`, ``rstd = 1 / sqrt(var + eps)`` (n, groups), written.
        """

    @abstractmethod
    def group_norm_grad(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        mean: Array,
        rstd: Array,
        *,
        groups: int,
        dx: Array,
        dgamma: Array,
        dbeta: Array,
    ) -> None:
        """Gradients of :meth:`group_norm`; `dx` may be ``None`` or `dy`."""

    @abstractmethod
    def spatial_dropout(self, x: Array, state: Array, *, rate: float, stream: int, out: Array) -> None:
        """:meth:`~nnfast.backends.base.Backend.dropout` of whole channels; `x`, `out` (n, pixels, c).

        Channel `j` of row `i` is kept where `dropout` would keep element ``i c + j`` of an (n, c) array.
        `out` may be `x`.
        """
