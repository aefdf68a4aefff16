"""How training shows its progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..network import Network
from .callbacks import Callback

__all__ = ["ProgressBar"]

# Lines of a long run without a terminal: more than this many say no more
_MAX_LINES = 50


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


class ProgressBar(Callback):
    """Shows the epochs and, on a terminal, a bar with the loss, the metrics, samples per second and time left.

    ``fit`` brings one along unless ``verbose=0``.

    Parameters
    ----------
    lines : bool
        Plain lines on a terminal, too.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self.lines = lines
        self._bar: Any = None
        self._task: Any = None
        self._last = ""

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

    def on_train_begin(self, model: Network) -> None:
        info = self.info
        self._last, self._task = "", None
        self._every = 1 if self.lines else max(1, (info.last - info.first + 1) // _MAX_LINES)
        rows = "batches" if info.rows is None else f"{info.rows:,} rows"
        self._print(f"training {info.parameters:,} parameters on {rows}, device {info.device}, {model.dtype}")
        if not self.lines and sys.stdout.isatty():
            self._bar = self._make_bar()
            self._bar.start()

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def on_epoch_begin(self, epoch: int) -> None:
        self._began = time.perf_counter()
        self._rows = 0
        if self._bar is not None:
            description = f"epoch {epoch}/{self.info.last}"
            if self._task is None:
                self._task = self._bar.add_task(description, total=self.info.rows, text="")
            else:
                self._bar.reset(self._task, description=description, total=self.info.rows, text="")

    def on_progress(self, rows: int, logs: dict[str, float]) -> None:
        self._rows = rows
        if self._bar is not None and "loss" in logs:
            rate = rows / max(time.perf_counter() - self._began, 1e-9)
            text = f"loss {_number(logs['loss'])}{self._last}  {rate:,.0f} samples/s"
            self._bar.update(self._task, completed=rows, text=text)

    def on_epochs(self, first: int, curves: dict[str, list[float]], seconds: float) -> None:
        count, rows = len(curves["loss"]), self.info.rows
        assert rows is not None
        for number, epoch in enumerate(range(first, first + count)):
            if self._has_line(epoch):
                self._line(epoch, {name: curve[number] for name, curve in curves.items()}, rows, seconds / count)
        self.on_epoch_begin(first + count - 1)
        self._began -= seconds / count  # it is over already
        self.on_progress(rows, {"loss": curves["loss"][-1]})

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        # Metrics are known at an epoch's end; the bar shows the last ones while the next epoch runs
        self._last = "".join(f"  {name} {_number(value)}" for name, value in logs.items() if name not in ("loss", "lr"))
        if self._has_line(epoch):
            self._line(epoch, logs, self._rows, time.perf_counter() - self._began)

    def _has_line(self, epoch: int) -> bool:
        return epoch in (self.info.first, self.info.last) or epoch % self._every == 0

    def _line(self, epoch: int, logs: dict[str, float], rows: int, seconds: float) -> None:
        last = self.info.last
        numbers = "  ".join(f"{name} {_number(value)}" for name, value in logs.items() if name != "lr")
        lasted = f"{seconds:.2f} s" if seconds >= 0.05 else f"{1e3 * seconds:.2f} ms"
        width = len(str(last))
        self._print(f"epoch {epoch:>{width}}/{last}  {numbers}  {rows / seconds:,.0f} samples/s  {lasted}")

    def on_train_end(self, model: Network) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self.info.history.stopped:
            print(self.info.history.stopped, flush=True)
