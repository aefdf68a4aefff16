"""A callback that keeps the weights of a training, for the picture of its path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..training.callbacks import Callback

if TYPE_CHECKING:
    from ..network import Network


class WeightPath(Callback):
    """Record the flat weights before training and after its epochs.

    Where there would be more than `max_points`, every other one is dropped and recording goes on at half
    the rate, so that memory stays bounded.

    Parameters
    ----------
    every : int
        Record after every so many epochs.
    max_points : int
        Most points that are kept.

    Attributes
    ----------
    epochs : list of int
        Epoch of each point; 0 is the start, and the last one is where training ended.

    Examples
    --------
    >>> path = WeightPath()
    >>> model.fit(X, y, callbacks=[path], ...)  # doctest: +SKIP
    >>> nnfast.plotting.loss_surface(model, X, y, path_of_weights=path)  # doctest: +SKIP
    """

    def __init__(self, every: int = 1, max_points: int = 200) -> None:
        if every < 1 or max_points < 3:
            raise ValueError(f"every must be at least 1 and max_points at least 3, got {every} and {max_points}")
        self.every, self.max_points = int(every), int(max_points)
        self.epochs: list[int] = []
        self._points: list[np.ndarray] = []
        self._epoch = 0

    @property
    def weights(self) -> np.ndarray:
        """The recorded points, (points, parameters), the last one being where training ended."""
        if not self._points:
            raise ValueError("no weights were recorded: give this callback to fit first")
        return np.stack(self._points)

    def _add(self, epoch: int, point: np.ndarray) -> None:
        if len(self._points) == self.max_points:
            self.epochs, self._points = self.epochs[::2], self._points[::2]
            self.every *= 2
        self.epochs.append(epoch)
        self._points.append(point)

    def on_train_begin(self, model: Network) -> None:
        if not self._points:  # a second fit goes on from the last point of the first
            self._add(0, np.array(model.get_flat_weights()))

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._epoch = epoch
        if epoch % self.every == 0:
            self._add(epoch, np.array(self.model.get_flat_weights()))

    def on_train_end(self, model: Network) -> None:
        # The end belongs to the path whatever the stride, and a callback may have put back better weights
        final = np.array(model.get_flat_weights())
        if not np.array_equal(final, self._points[-1]):
            self._add(self._epoch, final)
