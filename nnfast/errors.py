"""The exceptions that nnfast raises itself. Wrong values and types use ``ValueError`` and ``TypeError``."""

from __future__ import annotations


class NNFastError(Exception):
    """Base class of nnfast's own errors."""


class DeviceUnavailable(NNFastError, RuntimeError):  # noqa: N818 - reads as what it says
    """A device was asked for by name and cannot be used; the message gives the reason."""


class OutOfMemoryError(NNFastError, MemoryError):
    """A device has less memory than is needed. What was taken for the attempt is free again.

    Attributes
    ----------
    device : str
        The device string.
    needed : int
        Bytes that were asked for.
    free : int
        Bytes that were free then.
    """

    def __init__(self, device: str, needed: int, free: int, what: str = "") -> None:
        # All three are kept as arguments: an exception is pickled by them
        super().__init__(device, needed, free, what)
        self.device, self.needed, self.free, self.what = device, needed, free, what

    def __str__(self) -> str:
        what = f" for {self.what}" if self.what else ""
        return (
            f"{self.needed:,} bytes are needed{what} and {self.free:,} are free on {self.device!r}; "
            "a smaller batch_size, a smaller model or another device needs less"
        )


class NonFiniteError(NNFastError, ArithmeticError):
    """The loss stopped being finite. The weights are those from before the step in question.

    Attributes
    ----------
    step : int
        Number of the optimizer step, from 1, whose loss was NaN or infinite.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class CheckpointError(NNFastError, ValueError):
    """A model file is damaged, incomplete, of an unknown version, or does not fit the model."""


class DataError(NNFastError, ValueError):
    """A data file cannot be read as the task needs it."""


class NotBuiltError(NNFastError, RuntimeError):
    """The model has no weights yet: its input size is not known."""
