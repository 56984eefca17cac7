"""`prunus sweep`: many runs at once, and which of them are worth having."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from prunus.cli.talk import JsonFlag, Quiet, Talk, Verbose, run_and_show

if TYPE_CHECKING:
    from rich.table import Table

    from prunus.sweep import Job, Row, Sweep
    from prunus.sweep.scheduler import Tell, What
    from prunus.sweep.states import State

_COLOURS = {"done": "green", "failed": "bold red", "again": "yellow", "busy": "yellow", "no data": "yellow"}
_WORDS = {
    "done": "done",
    "failed": "failed",
    "again": "failed, will be tried again",
    "no data": "left out",
    "busy": "is still worked on by a process of an earlier sweep; looked at again later",
}


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep, in YAML.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The sweep's folder. [default: runs/<name of the file>]", metavar="FOLDER")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where cells run: local or ray. [default: local]", metavar="NAME")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Cells at once. [default: 1]", metavar="N", min=1)] = None,
    retries: Annotated[
        int | None, typer.Option(help="Further tries of a cell that failed. [default: 1]", metavar="N", min=0)
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            help="Stop at checkpoints after so long, with exit code 3; the same command goes on.", metavar="MINUTES"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="List the cells and stop.")] = False,
    json: JsonFlag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    r"""Run many configurations of compress, several at once, and draw accuracy against cost.

    A cell is one configuration, with a run folder of its own. Cells with the same dense training share it.

    [cyan]prunus sweep sweep.yaml --jobs 2[/cyan]

    [bold]sweep.yaml:[/bold] settings of all cells, and lists of what varies:

    [cyan]base: {model: resnet20, data: cifar10, recipe: cpu}[/cyan]

    [cyan]grid: {method: \[refit-error, layer-fusion], macs: \[0.3, 0.5], seed: \[0, 1]}[/cyan]

    Stop it with Ctrl-C at any time: the same command goes on where it was, and tries failed cells again. The exit code
    is 1 if a cell failed.
    """
    failed = False

    def run(talk: Talk) -> None:
        nonlocal failed
        from prunus.sweep import load_sweep

        flags = {"out": out, "executor": executor, "jobs": jobs, "retries": retries}
        plan = load_sweep(file, flags)
        if dry_run:
            _list(plan, talk, json)
            return
        rows = _carry_out(plan, talk, max_minutes)
        failed = any(row.status == "failed" for row in rows)
        if json:
            talk.data((plan.folder / "sweep.json").read_text("utf-8").rstrip("\n"))
        else:
            _show(plan, rows, talk)

    run_and_show(run, stopped=f"stopped; the same command goes on, prunus sweep {file}", quiet=quiet, verbose=verbose)
    if failed:
        raise typer.Exit(1)


def _carry_out(plan: Sweep, talk: Talk, max_minutes: float | None) -> Sequence[Row]:
    from prunus.sweep import run_sweep

    with _progress(plan, talk) as tell:
        return run_sweep(plan, tell, max_minutes=max_minutes)


def _list(plan: Sweep, talk: Talk, json: bool) -> None:
    """Say what would run."""
    folder = plan.files
    if json:
        from json import dumps

        listed = [
            {
                "name": cell.name,
                "settings": dict(cell.varied),
                "run": str(folder.run("cell", cell.name)),
                "dense": cell.needs,
                "done": folder.is_done(cell),
            }
            for cell in plan.cells
        ]
        talk.data(dumps(listed, indent=2))
        return
    if plan.search is not None:
        for key, values in plan.search.space.items():
            talk.out.print(f"{key}: {values}", markup=False, highlight=False, soft_wrap=True)
        text = f"a search of {plan.search.trials} cells for {', '.join(plan.search.objectives)}, in {plan.folder}"
        talk.messages.print(text, highlight=False, soft_wrap=True)
        return
    for cell in plan.cells:
        done = "  (done)" if folder.is_done(cell) else ""
        talk.out.print(f"{cell.name}{done}", markup=False, highlight=False, soft_wrap=True)
    dense = len({cell.needs for cell in plan.cells if cell.needs})
    trainings = "1 dense training" if dense == 1 else f"{dense} dense trainings"
    talk.messages.print(f"{len(plan.cells)} cells from {trainings}, in {plan.folder}", highlight=False, soft_wrap=True)


@contextmanager
def _progress(plan: Sweep, talk: Talk) -> Iterator[Tell]:
    """Say of every job how it ended and, on a terminal, show what runs."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = talk.messages
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=talk.quiet or not console.is_terminal,
        transient=True,
    )
    running: set[str] = set()
    done: set[str] = set()
    said: set[tuple[str, str]] = set()

    def tell(what: What, job: Job, state: State) -> None:
        running.add(job.name) if what == "started" else running.discard(job.name)
        if job.kind == "cell" and what in {"there", "done"}:
            done.add(job.name)
        if what in _WORDS and (what != "busy" or ("busy", job.name) not in said):
            said.add((what, job.name))
            bar.console.print(_line(what, job, state), soft_wrap=True, highlight=False)
        bar.update(task, completed=len(done), description=f"{len(running)} running")

    with bar:
        task = bar.add_task("", total=plan.total)
        yield tell


def _line(what: What, job: Job, state: State) -> Text:
    from prunus.report.numbers import duration

    took = f"  {duration(state.seconds)}" if what == "done" else ""
    why = (
        f": {state.error[0].removeprefix('error: ')}" if what in {"failed", "again", "no data"} and state.error else ""
    )
    return Text.assemble((f"{_WORDS[what]}", _COLOURS[what]), f"  {job.name}{took}{why}")


def _show(plan: Sweep, rows: Sequence[Row], talk: Talk) -> None:
    talk.out.print(_table(rows))
    for row in rows:
        if row.status == "failed":
            talk.out.print(Text.assemble((row.name, "bold red"), f": {_why(row, talk.verbose)}"), soft_wrap=True)
    done = sum(row.status == "done" for row in rows)
    talk.out.print(
        f"{done} of {len(rows)} cells are done, {plan.folder / 'front.html'}", highlight=False, soft_wrap=True
    )


def _why(row: Row, everything: bool) -> str:
    """Tell the first line of what a cell said in the end, or all that is kept of it."""
    return "\n".join(row.error) if everything or len(row.error) < 2 else f"{row.error[0]} … (--verbose shows more)"


def _table(rows: Sequence[Row]) -> Table:
    """Lay out one line a cell; a dot marks those in a front."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from prunus.report import numbers
    from prunus.report.front import setting

    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for key in keys:
        table.add_column(key.replace("_", " "), overflow="fold")
    table.add_column("status", no_wrap=True)
    for heading in ("held-out\naccuracy", "test\naccuracy", "MACs", "bytes", "front", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    short = {"macs": "MACs", "size_bytes": "bytes"}
    for row in rows:
        table.add_row(
            *(setting(row.settings.get(key, "–")) for key in keys),
            Text(row.status, style=_COLOURS.get(row.status, "")),
            numbers.percent(row.held_out_accuracy),
            numbers.percent(row.test_accuracy),
            "–" if row.macs is None else numbers.count(row.macs),
            "–" if row.size_bytes is None else numbers.size(row.size_bytes),
            ", ".join(short[cost] for cost in row.front) or "–",
            numbers.duration(row.seconds),
        )
    return table
