"""`prunus report`: the page of a run, or of several compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from prunus.cli.talk import JsonFlag, Quiet, Talk, Verbose, run_and_show
from prunus.errors import ConfigError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page. [default: report.html in the run folder; for several runs in this folder]",
            metavar="FILE.html",
            show_default=False,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", metavar="", help="Open the page in the browser.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", metavar="", help="Write the page again whenever a run has got further.")
    ] = False,
    json: JsonFlag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the page of a run, or of several compared: one file that needs no network and no data.

    [cyan]prunus report runs/a --open[/cyan]

    [cyan]prunus report runs/a runs/b runs/c --out compared.html[/cyan]

    [cyan]prunus report runs/a --follow --open[/cyan]

    Only the run folders are read: the page can be written anywhere they are copied to. With --follow the runs may be
    under way: the page shows their epochs so far, loads itself again, and is the report at last.
    """

    def run(talk: Talk) -> None:
        if follow:
            _follow(runs, out, talk, json=json, show=show)
            return
        for folder in runs:
            if not (folder / "summary.json").is_file():
                raise ConfigError(f"{folder} is no finished run: it has no summary.json. {_way_on(folder)}")
        with talk.waiting("writing the page"):
            from prunus.report import write_report

            page = write_report(runs, out)
        _say(page, talk, json=json)
        if show:
            typer.launch(page.resolve().as_uri())

    run_and_show(run, stopped="stopped", quiet=quiet, verbose=verbose)


def _follow(runs: list[Path], out: Path | None, talk: Talk, *, json: bool, show: bool) -> None:
    """Keep the page up to date until the runs are finished."""
    from prunus.report.live import follow_report

    seen: list[Path] = []

    def written(page: Path) -> None:
        if not seen:
            talk.messages.print(Text(f"following in {page}; Ctrl-C ends this, and not the runs"), soft_wrap=True)
            if show:
                typer.launch(page.resolve().as_uri())
        seen.append(page)

    _say(follow_report(runs, out, written=written), talk, json=json)


def _say(page: Path, talk: Talk, *, json: bool) -> None:
    """Print where the page is: the only thing that goes to stdout."""
    if json:
        from json import dumps

        talk.data(dumps({"page": str(page), "size_bytes": page.stat().st_size}))
    else:
        talk.out.print(Text(str(page)), soft_wrap=True)


def _way_on(folder: Path) -> str:
    if (folder / "config.yaml").is_file():
        return f"To watch it, type --follow; to end it, prunus compress --config {folder / 'config.yaml'}"
    return "Name folders that prunus compress or prunus demo wrote."
