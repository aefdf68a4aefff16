"""The part of the contract that goes along sequences: recurrent layers, their gates fused.

Sequences are (n, steps, features). Gates lie side by side in the columns of the weights. `b` and `h0` (and the like)
may be ``None``, for zeros. `mask` (n, steps) holds 1, or 0 where a step is padding: there the state stays what it was,
and ``None`` means that no step is. With `reverse` the last step comes first; results stay at their step's place. Where
activations have 16 bits, gradients of parameters are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ..activations import Activation, cell_activation

if TYPE_CHECKING:
    from .base import Array

__all__ = ["RecurrentOperations", "cell_activation"]


class RecurrentOperations(ABC):
    """Mixin of :class:`~nnfast.backends.base.Backend`."""

    @abstractmethod
    def rnn(
        self,
        x: Array,
        W: Array,
        U: Array,
        b: Array | None,
        act: str | Activation,
        *,
        h0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        y: Array,
    ) -> None:
        """Elman's network, ``h_t = f(x_t W + h_{t-1} U + b)``, f tanh or relu.

        `x` (n, t, k), `W` (k, h), `U` (h, h), `b` (h,), `h0` (n, h), `y` (n, t, h): all states, written.
        """

    @abstractmethod
    def rnn_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        U: Array,
        act: str | Activation,
        *,
        y: Array,
        h0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        dx: Array | None,
        dW: Array,
        dU: Array,
        db: Array | None,
        dh0: Array | None = None,
    ) -> None:
        """Gradients of :meth:`rnn`. `dy` is (n, t, h), or (n, h): that of the last state alone.

        The last state is that of the last step that is done: step 0 with `reverse`.
        """

    @abstractmethod
    def gru(
        self,
        x: Array,
        W: Array,
        U: Array,
        b: Array | None,
        c: Array | None,
        *,
        reset_after: bool,
        h0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        y: Array,
        gates: Array | None,
    ) -> None:
        """Gated recurrent unit (Cho et al. 2014); columns of `W`, `U`, `b`, `c` are reset, update, new.

        ``r = sigmoid(x W_r + b_r + h U_r + c_r)``, ``z = sigmoid(x W_z + b_z + h U_z + c_z)``; with `reset_after`
        (PyTorch's, cuDNN's and Keras's default) ``n = tanh(x W_n + b_n + r (h U_n + c_n))``, without (the original)
        ``n = tanh(x W_n + b_n + (r h) U_n + c_n)``; ``h_t = (1 - z) n + z h``.

        `x` (n, t, k), `W` (k, 3 h), `U` (h, 3 h), `b`, `c` (3 h,), `h0` (n, h), `y` (n, t, h). `gates` (n, t, 4 h) is
        left for the gradient, in a form that is the backend's own; ``None`` outside training.
        """

    @abstractmethod
    def gru_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        U: Array,
        *,
        reset_after: bool,
        y: Array,
        gates: Array,
        h0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        dx: Array | None,
        dW: Array,
        dU: Array,
        db: Array | None,
        dc: Array | None,
        dh0: Array | None = None,
    ) -> None:
        """Gradients of :meth:`gru`; `dy` as in :meth:`rnn_grad`. `gates` is used up."""

    @abstractmethod
    def lstm(
        self,
        x: Array,
        W: Array,
        U: Array,
        b: Array | None,
        *,
        h0: Array | None = None,
        c0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        y: Array,
        cells: Array | None,
        gates: Array | None,
        last_cell: Array | None = None,
    ) -> None:
        """Long short-term memory (Hochreiter, Schmidhuber 1997; Gers et al. 2000); gates are in, forget, cell, out.

        ``i, f, o = sigmoid(...)``, ``g = tanh(...)`` of ``x W + h U + b``; ``c_t = f c + i g``;
        ``h_t = o tanh(c_t)``. `x` (n, t, k), `W` (k, 4 h), `U` (h, 4 h), `b` (4 h,), `h0`, `c0`, `last_cell` (n, h),
        `y` (n, t, h): all states. `cells` (n, t, h) and `gates` (n, t, 4 h) are left for the gradient, in a form that
        is the backend's own; ``None`` outside training. `last_cell`, where given, is written; it may be
        `c0`.
        """

    @abstractmethod
    def lstm_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        U: Array,
        *,
        y: Array,
        cells: Array,
        gates: Array,
        h0: Array | None = None,
        c0: Array | None = None,
        mask: Array | None = None,
        reverse: bool = False,
        dx: Array | None,
        dW: Array,
        dU: Array,
        db: Array | None,
        dh0: Array | None = None,
        dc0: Array | None = None,
    ) -> None:
        """Gradients of :meth:`lstm`; `dy` as in :meth:`rnn_grad`. `gates` is used up."""

    @abstractmethod
    def multiply(self, x: Array, y: Array | float, *, out: Array) -> None:
        """``out = x * y``, of one shape, or with a number; `out` may be `x` or `y`. It merges two directions."""
