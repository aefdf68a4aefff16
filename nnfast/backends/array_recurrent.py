"""To be written."""

from __future__ import annotations

from typing import Any


class ArrayRecurrent:
    """Mixin of :class:`~nnfast.backends.array_backend.ArrayBackend`."""

    rnn: Any = None
    rnn_grad: Any = None
    gru: Any = None
    gru_grad: Any = None
    lstm: Any = None
    lstm_grad: Any = None
