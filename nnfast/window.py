"""The window that a convolution or a pooling moves over an image."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Window"]

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """Size, steps and borders of a window over (height, width); a sequence is an image of height 1.

    Attributes
    ----------
    size : tuple of int
        Height and width.
    stride : tuple of int
        Steps from window to window, down and across.
    padding : tuple of (int, int)
        Rows above and below, and columns left and right, that are added to the image.
    dilation : tuple of int
        Steps between neighbours within a window.
    """

    size: Pair
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)

    @property
    def extent(self) -> Pair:
        """Height and width of what a window lies over, the gaps of a dilated one included."""
        (height, width), (down, across) = self.size, self.dilation
        return down * (height - 1) + 1, across * (width - 1) + 1

    def out_size(self, height: int, width: int) -> Pair:
        """Number of windows, down and across, on an image of this size; 0 or less where none fits."""
        rows, columns = (
            (n + sum(pad) - extent) // stride + 1
            for n, pad, extent, stride in zip((height, width), self.padding, self.extent, self.stride, strict=True)
        )
        return rows, columns
