"""`prunus sweep` from start to end: lock the folder, run what is missing, and leave a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunus.stopping import Stopping
from prunus.sweep.cells import Job, SweepFolder
from prunus.sweep.executors import Executor, LocalExecutor
from prunus.sweep.results import Row, read_rows, write_results
from prunus.sweep.scheduler import Scheduler, Tell
from prunus.sweep.spec import Sweep, threads_each
from prunus.sweep.states import only_sweep


def run_sweep(sweep: Sweep, tell: Tell, *, max_minutes: float | None = None) -> list[Row]:
    """Run the cells that are not done; return a row for each of them.

    Args:
        sweep: what to run.
        tell: is told what happens to which job.
        max_minutes: ask the cells to stop at a checkpoint after so long, above 0.

    Raises:
        Stopped: it was asked to end, or the time is over, before all was done; the same call goes on.
        RunError: another sweep works in the folder.
    """
    folder = SweepFolder(sweep.folder)
    with Stopping(max_minutes) as stopping, only_sweep(folder.path):
        try:
            with _executor(sweep) as executor, stopping.postponed():
                scheduler = Scheduler(folder, executor, sweep.retries, tell, lambda job: _arguments(sweep, job))
                for cell in sweep.cells:
                    scheduler.add(cell)
                if not scheduler.run(stopping):
                    stopping.check()
        finally:
            rows = finish(folder, sweep.cells)
    return rows


def finish(folder: SweepFolder, cells: Sequence[Job]) -> list[Row]:
    """Write down what is there so far."""
    rows = read_rows(folder, cells)
    write_results(folder, rows)
    return rows


def _executor(sweep: Sweep) -> Executor:
    return LocalExecutor(sweep.jobs, sweep.devices)


def _arguments(sweep: Sweep, job: Job) -> list[str]:
    """Give a cell its share of the cores, unless it says how many threads it wants."""
    return [] if job.config.threads is not None or sweep.jobs == 1 else ["--threads", str(threads_each(sweep.jobs))]


def as_json(folder: SweepFolder) -> dict[str, Any]:
    """Read the results as they were written."""
    from prunus.files import read_json

    results: dict[str, Any] = read_json(folder.results, "results of the sweep")
    return results
