"""`prunus check`: prune networks by name; a row each says if the result is right, how small, and what stayed whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.text import Text

from prunus.cli.inspect import frozen_line
from prunus.cli.talk import JsonFlag, Quiet, Talk, Verbose, run_and_show

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from prunus.checking import CheckRow
    from prunus.models import Source

COLOURS = {"exact": "green", "approximate": "yellow", "failed": "bold red"}
STAGES = ("trace", "plan", "remove", "verify")

_FROZEN_SHOWN = 12  # reasons a network; --verbose shows all of them


def check(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL…", help="Networks; @FILE reads names from a file.", show_default=False),
    ] = None,
    ratio: Annotated[
        float, typer.Option(help="Fraction of every group's channels to remove.", metavar="R", min=0.0, max=0.99)
    ] = 0.5,
    read: Annotated[
        Path | None,
        typer.Option("--from", help="Read names from a file: one a line, # for comments.", metavar="FILE"),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", metavar="", help="Check every network that comes with Prunus.")
    ] = False,
    rows_file: Annotated[
        Path | None,
        typer.Option("--rows", help="Write the rows as JSON to a file, again after each of them.", metavar="FILE"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and inputs.", metavar="N", min=0)] = 0,
    json: JsonFlag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say of any network whether Prunus can prune it, how small it gets, and what stays whole and why.

    Builds the network with random weights (nothing is downloaded), removes half of every group of channels, proves in
    float64 that the result is right, and runs it in training mode.

    [bold]A MODEL[/bold] is a network of Prunus, of timm, of torchvision, or what a function of yours returns:

    [cyan]prunus check resnet20[/cyan]

    [cyan]prunus check timm:efficientnet_b0 torchvision:fcn_resnet50[/cyan]

    [cyan]prunus check mypackage.nets:build[/cyan]

    The function takes no arguments and returns the module, or the module and its example inputs:
    [cyan]return net, (torch.rand(2, 1, 28, 28),)[/cyan]

    [bold]Many at once,[/bold] with another ratio, and the rows in a file:

    [cyan]prunus check --all --ratio 0.3 --rows rows.json[/cyan]

    [cyan]prunus check @networks.txt[/cyan]

    [bold]exact[/bold] is a pruned network that equals the original without those channels, to rounding. The exit code
    is 1 if any failed.
    """
    rows: list[CheckRow] = []

    def run(talk: Talk) -> None:
        sources = _find([*(models or [])], read, everything)
        from prunus.checking import check_model

        with _progress(len(sources), talk.messages) as (begin, end):
            for source in sources:
                begin(source.spec)
                rows.append(check_model(source, ratio, seed=seed))
                end(rows[-1])
                if rows_file is not None:
                    _write(rows_file, rows)
        if json:
            talk.data(_as_json(rows))
        else:
            talk.out.print(*_page(rows, None if talk.verbose else _FROZEN_SHOWN), sep="\n")

    run_and_show(run, stopped="stopped", quiet=quiet, verbose=verbose)
    if any(row.verdict == "failed" for row in rows):
        raise typer.Exit(1)


def _find(names: Sequence[str], read: Path | None, everything: bool) -> list[Source]:
    """Look all names up before the first network is built; one error tells of all that are wrong."""
    from prunus.checking import read_specs, zoo_specs
    from prunus.errors import ConfigError, ModelError
    from prunus.models import find_network

    specs = zoo_specs() if everything else []
    for name in [*names, *([f"@{read}"] if read is not None else [])]:
        specs += read_specs(name[1:]) if name.startswith("@") else [name]
    if not specs:
        raise ConfigError(
            "name a network, such as resnet20 or timm:resnet18, or ask for --all; see prunus check --help."
        )
    sources: list[Source] = []
    wrong: list[str] = []
    for spec in dict.fromkeys(specs):
        try:
            sources.append(find_network(spec))
        except ModelError as error:
            wrong.append(str(error))
    if wrong:
        raise ModelError("\n".join(dict.fromkeys(wrong)))
    return sources


def _write(path: Path, rows: Sequence[CheckRow]) -> None:
    from prunus.files import atomic_write_text

    atomic_write_text(path, f"{_as_json(rows)}\n")


def _as_json(rows: Sequence[CheckRow]) -> str:
    text = ",\n".join(row.model_dump_json() for row in rows)
    return f"[\n{text}\n]"


@contextmanager
def _progress(total: int, console: Console) -> Iterator[tuple[Callable[[str], None], Callable[[CheckRow], None]]]:
    """Show on stderr, if there are several networks, which one runs and a line for each that is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=total < 2 or not console.is_terminal,
        transient=True,
    )

    def end(row: CheckRow) -> None:
        if total > 1:
            bar.console.print(_line(row), soft_wrap=True)
        bar.advance(task)

    with bar:
        task = bar.add_task("", total=total)
        yield lambda spec: bar.update(task, description=spec), end


def _line(row: CheckRow) -> Text:
    figures = f"{_change(row.params_before, row.params_after)}, {_seconds(row)}" if row.params_after else row.reason
    return Text.assemble((f"{row.verdict:<11} ", COLOURS[row.verdict]), f"{row.spec}  {figures}")


def _page(rows: Sequence[CheckRow], shown: int | None) -> Iterable[Table | Text | Group]:
    """Lay out the table, and below it what failed or is approximate, and what stayed whole."""
    yield _table(rows)
    reasons = [row for row in rows if row.reason]
    if reasons:
        yield Group(*(Text.assemble((row.spec, COLOURS[row.verdict]), f": {row.reason}") for row in reasons))
    for row in rows:
        if row.frozen:
            yield _frozen(row, shown)
    yield Text(_totals(rows))


def _table(rows: Sequence[CheckRow]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{rows[0].ratio:.0%} of every group's channels removed"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("network", overflow="fold", min_width=16)
    table.add_column("verdict", no_wrap=True)
    for heading in ("parameters\nleft", "MACs\nleft", "worst\nerror", "trace + plan\ncut + proof s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        trace, plan, remove, verify = (_stage(row, stage) for stage in STAGES)
        table.add_row(
            Text(row.spec),
            Text(row.verdict, style=COLOURS[row.verdict]),
            _change(row.params_before, row.params_after, "\n"),
            _change(row.macs_before, row.macs_after, "\n"),
            "–" if row.max_relative_error is None else f"{row.max_relative_error:.0e}",
            f"{trace} + {plan}\n{remove} + {verify}" if row.params_after else "–",
        )
    return table


def _stage(row: CheckRow, stage: str) -> str:
    return f"{row.seconds[stage]:.2f}" if stage in row.seconds else "–"


def _frozen(row: CheckRow, shown: int | None) -> Group:
    lines = [Text.assemble((row.spec, "bold"), " keeps whole:"), *map(frozen_line, row.frozen[:shown])]
    if shown is not None and len(row.frozen) > shown:
        lines.append(Text(f"  … and {len(row.frozen) - shown} more reasons; --verbose shows all of them"))
    return Group(*lines)


def _totals(rows: Sequence[CheckRow]) -> str:
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in COLOURS}
    networks = "1 network" if len(rows) == 1 else f"{len(rows)} networks"
    return f"{networks}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def _change(before: int | None, after: int | None, between: str = " ") -> str:
    """Write a count before and after, and what is left of it: 11.7 M → 3.1 M (26.1 %)."""
    from prunus.report.numbers import count

    if before is None or after is None:
        return "–" if before is None else count(before)
    return f"{count(before)} → {count(after)}" + (f"{between}({100 * after / before:.1f} %)" if before else "")


def _seconds(row: CheckRow) -> str:
    return f"{sum(row.seconds.values()):.1f} s"
