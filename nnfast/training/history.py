"""What a fit reports: one number per epoch for the loss and each metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

__all__ = ["History"]


class History(Mapping[str, list[float]]):
    """Curves of a fit, by name: ``history["loss"]``, ``history["val_loss"]``, ``history["lr"]``, ...

    Attributes
    ----------
    epochs : list of int
        Number of each epoch, from 1; a second fit goes on where the first one stopped.
    stopped : str or None
        Why training ended before its last epoch, or ``None``.
    """

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.stopped: str | None = None
        self._curves: dict[str, list[float]] = {}

    def append(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Add the numbers of an epoch; a name that is missing or new counts as NaN elsewhere."""
        self.extend([epoch], {name: [float(value)] for name, value in logs.items()})

    def extend(self, epochs: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
        """Add the numbers of several epochs, by name; each curve is as long as `epochs`."""
        for name in curves:
            self._curves.setdefault(name, [float("nan")] * len(self.epochs))
        self.epochs.extend(epochs)
        for name, curve in self._curves.items():
            curve.extend(curves.get(name) or [float("nan")] * len(epochs))

    def __getitem__(self, name: str) -> list[float]:
        if name not in self._curves:
            raise KeyError(f"{name!r} was not recorded; there are {', '.join(self._curves) or 'no curves'}")
        return self._curves[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._curves)

    def __len__(self) -> int:
        return len(self._curves)

    def __repr__(self) -> str:
        last = ", ".join(f"{name}={curve[-1]:.4g}" for name, curve in self._curves.items() if curve)
        return f"<History of {len(self.epochs)} epochs: {last}>"
