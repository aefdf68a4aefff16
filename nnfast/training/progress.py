"""How training shows its progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["Progress"]


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


class Progress:
    """Shows epochs and the samples per second within one.

    Parameters
    ----------
    epochs : int
        Last epoch of this fit.
    first : int
        First epoch of this fit.
    verbose : int
        0 shows nothing, 1 a bar on a terminal and lines elsewhere, 2 always lines.
    """

    # Lines of a long run without a terminal: more than this many say no more
    _MAX_LINES = 50

    def __init__(self, first: int, epochs: int, verbose: int) -> None:
        self.first, self.epochs = first, epochs
        self.shown = verbose > 0
        self._bar: Any = None
        self._task: Any = None
        total = epochs - first + 1
        self._last = ""
        self._every = 1 if verbose > 1 else max(1, total // self._MAX_LINES)
        if self.shown and verbose == 1 and sys.stdout.isatty():
            self._bar = self._make_bar()

    @staticmethod
    def _make_bar() -> Any:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            transient=True,
        )

    def start(self, message: str) -> None:
        """Say what is about to happen."""
        if self.shown:
            self._print(message)
        if self._bar is not None:
            self._bar.start()

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def begin_epoch(self, epoch: int, rows: int | None) -> None:
        """An epoch of `rows` rows starts."""
        self._began = time.perf_counter()
        self._rows = rows
        if self._bar is not None:
            description = f"epoch {epoch}/{self.epochs}"
            if self._task is None:
                self._task = self._bar.add_task(description, total=rows, text="")
            else:
                self._bar.reset(self._task, description=description, total=rows, text="")

    def advance(self, rows: int, loss: float) -> None:
        """`rows` rows of the epoch are done, with this mean loss so far."""
        if self._bar is not None:
            rate = rows / max(time.perf_counter() - self._began, 1e-9)
            text = f"loss {_number(loss)}{self._last}  {rate:,.0f} samples/s"
            self._bar.update(self._task, completed=rows, text=text)

    def end_epoch(self, epoch: int, rows: int, logs: dict[str, float]) -> None:
        """An epoch is over."""
        # Metrics are known at an epoch's end; the bar shows the last ones while the next epoch runs
        self._last = "".join(f"  {name} {_number(value)}" for name, value in logs.items() if name not in ("loss", "lr"))
        last = epoch == self.epochs
        if not self.shown or not (last or epoch == self.first or epoch % self._every == 0):
            return
        seconds = time.perf_counter() - self._began
        numbers = "  ".join(f"{name} {_number(value)}" for name, value in logs.items() if name != "lr")
        lasted = f"{seconds:.2f} s" if seconds >= 0.05 else f"{1e3 * seconds:.2f} ms"
        width = len(str(self.epochs))
        self._print(f"epoch {epoch:>{width}}/{self.epochs}  {numbers}  {rows / seconds:,.0f} samples/s  {lasted}")

    def finish(self, message: str | None) -> None:
        """Training is over."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self.shown and message:
            print(message, flush=True)
