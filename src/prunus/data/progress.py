"""A progress bar on stderr that shows up only when something takes longer than two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

PATIENCE_S = 2.0


class Advance(Protocol):
    """Tells a progress bar that `amount` more is done."""

    def __call__(self, amount: int = 1) -> None: ...  # noqa: D102


@contextmanager
def progress_bar(
    title: str, *, total: int | None = None, unit_bytes: bool = False, show: bool = True
) -> Iterator[Advance]:
    """Give a function that counts what is done; the bar is drawn once `PATIENCE_S` seconds have gone by."""
    count = DownloadColumn() if unit_bytes else TextColumn("{task.completed:,.0f}")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=total)
    started = time.monotonic()
    drawn = False

    def advance(amount: int = 1) -> None:
        nonlocal drawn
        bar.advance(task, amount)
        if show and not drawn and time.monotonic() - started > PATIENCE_S:
            drawn = True
            bar.start()

    try:
        yield advance
    finally:
        if drawn:
            bar.stop()


def say(message: str) -> None:
    """Write one line to stderr."""
    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)
