"""What the user sees while a network trains: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_REFRESH_HERTZ = 4


class ProgressDisplay:
    """Shows a training on stderr; with `enabled=False` it shows nothing."""

    def __init__(self, stage: str, epochs: int, steps_per_epoch: int, *, enabled: bool, done: int = 0) -> None:
        """Prepare to show `epochs` epochs, of whose steps `done` were trained before."""
        console = Console(file=sys.stderr)
        self._stage, self._epochs = stage, epochs
        self._lines = console if enabled and not console.is_terminal else None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=console,
                refresh_per_second=_REFRESH_HERTZ,
            )
            self._task = self._bar.add_task(
                self._title(done // steps_per_epoch + 1), total=epochs * steps_per_epoch, completed=done, detail=""
            )
        self._accuracy = ""

    def __enter__(self) -> ProgressDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, images_per_second: float) -> None:
        """Count one step of training."""
        if self._bar:
            self._bar.update(self._task, advance=1, detail=f"{images_per_second:,.0f} images/s{self._accuracy}")

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Show how an epoch ended."""
        self._accuracy = f" · val {metrics['val_accuracy']:.2%}"
        if self._bar:
            self._bar.update(self._task, description=self._title(metrics["epoch"] + 1))
        if self._lines:
            self._lines.print(
                f"{self._title(metrics['epoch'])}: loss {metrics['loss']:.3f}, validation accuracy "
                f"{metrics['val_accuracy']:.2%}, {metrics['seconds']:.1f} s",
                highlight=False,
                soft_wrap=True,
            )

    def _title(self, epoch: int) -> str:
        return f"{self._stage} {min(epoch, self._epochs)}/{self._epochs}"
