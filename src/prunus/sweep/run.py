"""`prunus sweep` from start to end: lock the folder, run what is missing, and leave a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunus.data.load import find_data
from prunus.files import atomic_write_text
from prunus.report.front import render_front
from prunus.stopping import Stopping
from prunus.sweep.cells import Job, SweepFolder
from prunus.sweep.executors import Executor, LocalExecutor
from prunus.sweep.keeping import keep, make_kept
from prunus.sweep.results import Row, read_rows, write_results
from prunus.sweep.scheduler import Scheduler, Tell, What
from prunus.sweep.search import Search
from prunus.sweep.spec import Sweep, threads_each
from prunus.sweep.states import State, only_sweep, write_state


def run_sweep(sweep: Sweep, tell: Tell, *, max_minutes: float | None = None) -> list[Row]:
    """Run the cells that are not done; return a row for each of them.

    Args:
        sweep: what to run.
        tell: is told what happens to which job.
        max_minutes: ask the cells to stop at a checkpoint after so long, above 0.

    Raises:
        Stopped: it was asked to end, or the time is over, before all was done; the same call goes on.
        RunError: another sweep works in the folder, or what is to be kept cannot be written.
    """
    folder = sweep.files

    def kept(what: What, job: Job, state: State) -> None:
        if what in {"there", "done"}:
            keep(folder, job)
        tell(what, job, state)

    with Stopping(max_minutes) as stopping, only_sweep(folder.path):
        make_kept(folder)
        search = None if sweep.search is None else Search(folder, sweep.base, sweep.search)
        finished = False
        try:
            with _executor(sweep) as executor, stopping.postponed():
                scheduler = Scheduler(folder, executor, sweep.retries, kept, lambda job: _arguments(sweep, job))
                if search is not None:
                    scheduler.more, scheduler.settled = search.more, search.settled
                cells = sweep.cells if search is None else search.cells
                missing = _missing_data(cells) if sweep.skip_missing_data else set()
                for cell in cells:
                    if cell.config.data in missing and not folder.is_done(cell):
                        _leave_out(folder, cell, tell)
                    else:
                        scheduler.add(cell)
                finished = scheduler.run(stopping)
                if not finished:
                    stopping.check()
        finally:
            rows = write_down(sweep, sweep.cells if search is None else search.cells, finished)
    return rows


def write_down(sweep: Sweep, cells: Sequence[Job], finished: bool) -> list[Row]:
    """Write what is there so far: sweep.json and the page."""
    folder = sweep.files
    rows = read_rows(folder, cells)
    results = write_results(folder, rows, finished=finished)
    title = f"{sweep.base.get('model', 'networks')} on {Path(str(sweep.base.get('data', 'several data sets'))).name}"
    atomic_write_text(folder.page, render_front(title, results["cells"], results["front"]))
    return rows


def _missing_data(cells: Sequence[Job]) -> set[str]:
    """Name the data sets of cells that are not on this machine; nothing is downloaded, and each is looked for once."""
    places = {(cell.config.data, cell.config.cache_dir) for cell in cells}
    return {data for data, cache_dir in places if find_data(data, cache_dir) is None}


def _leave_out(folder: SweepFolder, cell: Job, tell: Tell) -> None:
    """Write down that a cell waits for its data set."""
    state = State(status="no data", error=(f"the data set {cell.config.data} is not here",))
    write_state(folder.state(cell.name), state)
    tell("no data", cell, state)


def _executor(sweep: Sweep) -> Executor:
    if sweep.executor == "local":
        return LocalExecutor(sweep.jobs, sweep.devices)
    from prunus.sweep.ray_executor import RayExecutor

    return RayExecutor(sweep.jobs, sweep.ray)


def _arguments(sweep: Sweep, job: Job) -> list[str]:
    """Give a cell its share of the cores, unless it says how many threads it wants."""
    return [] if job.config.threads is not None or sweep.jobs == 1 else ["--threads", str(threads_each(sweep.jobs))]
