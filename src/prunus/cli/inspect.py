"""`prunus inspect`: what can be pruned in one network, what holds its channels together, and what each group costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from prunus.cli.talk import JsonFlag, Quiet, Talk, Verbose, run_and_show
from prunus.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from prunus.checking import FrozenChannels
    from prunus.inspection import GroupRow, Inspection

_SHOWN = 15  # groups and reasons; --verbose shows all of them
_ROOMY = 110  # columns; a narrower terminal does without the layers and the parameters


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A network, by its name.", show_default=False)],
    side: Annotated[
        int | None,
        typer.Option(help="Height and width of the images; default: the smallest that run.", metavar="PIXELS", min=1),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write a page: the network drawn, its groups, the reasons.", metavar="FILE.html")
    ] = None,
    show: Annotated[bool, typer.Option("--open", metavar="", help="Open the page in the browser.")] = False,
    json: JsonFlag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what can be pruned in a network: groups of channels, what couples them, what each costs and would save.

    [bold]A MODEL[/bold] is a network of Prunus, of timm, of torchvision, or what a function of yours returns:

    [cyan]prunus inspect resnet20[/cyan]

    [cyan]prunus inspect timm:efficientnet_b0 --side 224 --page efficientnet.html --open[/cyan]

    [cyan]prunus inspect mypackage.nets:build --verbose[/cyan]

    [bold]A group[/bold] is a set of channels that only go together with their slices in all of its layers. A layer lies
    between the group that it reads and the group that it writes, so that shares add up to more than 100 %. What half of
    a group would save is exact.
    """

    def run(talk: Talk) -> None:
        from prunus.inspecting import inspect_network

        if show and page is None:
            raise ConfigError("--open needs a page: type --page FILE.html as well.")
        with talk.waiting(f"tracing {model}"):
            found = inspect_network(model, side=side)
        if page is not None:
            _write_page(found, page, talk, show=show)
        if json:
            talk.data(found.model_dump_json(indent=1))
        else:
            for part in _page(found, None if talk.verbose else _SHOWN, roomy=talk.out.width >= _ROOMY):
                talk.out.print(part, soft_wrap=isinstance(part, Text))

    run_and_show(run, quiet=quiet, verbose=verbose, stopped="stopped")


def _write_page(found: Inspection, path: Path, talk: Talk, *, show: bool) -> None:
    from prunus.report.inspection_page import write_inspection

    write_inspection(found, path)
    talk.messages.print(Text(f"wrote {path}"), soft_wrap=True)
    if show:
        typer.launch(path.resolve().as_uri())


def _page(found: Inspection, shown: int | None, *, roomy: bool) -> Iterable[Table | Text]:
    """Lay out the summary, the groups, and what stays whole; at most `shown` rows of each."""
    yield _summary(found)
    if found.groups:
        yield _groups(found.groups[:shown], found, roomy=roomy)
        yield Text()
    if shown is not None and len(found.groups) > shown:
        yield Text(f"… and {len(found.groups) - shown} more groups; --verbose shows all of them\n", style="dim")
    if found.frozen:
        yield from _frozen(found.frozen, shown)


def _summary(found: Inspection) -> Text:
    from prunus.report.numbers import count, size

    shapes = ", ".join("×".join(map(str, shape)) for shape in found.input_shapes)
    cost = found.cost
    lines = [
        (f"{count(cost.params)} parameters, {count(cost.macs)} MACs, {size(cost.size_bytes)}"),
        f"{found.channels} channels in {len(found.groups)} groups can be pruned: {found.prunable_layers} of "
        f"{found.layers} layers, with {found.prunable_macs_share:.0%} of the MACs",
    ]
    for words, left in (("half of every group", found.half), ("as few channels as can be", found.smallest)):
        lines.append(
            f"{words} leaves {count(left.params)} parameters ({_part(left.params, cost.params)}), "
            f"{count(left.macs)} MACs ({_part(left.macs, cost.macs)}), {size(left.size_bytes)}"
        )
    if found.branches:
        some = f"{len(found.branches)} residual branch{'es' * (len(found.branches) != 1)}"
        lines.append(f"{some} may go as a whole (--drop-branches): {_names(found.branches)}")
    return Text.assemble(
        (found.spec, "bold"), f"  for inputs of {shapes}\n" if shapes else "\n", "\n".join(lines), "\n"
    )


def _groups(rows: Sequence[GroupRow], found: Inspection, *, roomy: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from prunus.report.numbers import size

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("group", overflow="fold", min_width=12, style="bold")
    table.add_column("channels", justify="right", no_wrap=True)
    if roomy:
        table.add_column("coupled by", overflow="fold", min_width=8)
    table.add_column("may keep", overflow="fold", min_width=12)
    if roomy:
        table.add_column("layers that write\nand read it", overflow="fold", min_width=14)
    for heading in ("touches\nMACs", *(("\nparams",) if roomy else ()), "½ saves\nMACs", "\nparams", "\nbytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        half = row.half
        layers = Text(f"{_names((*row.producers, *row.passes))} → {_names(row.consumers)}")
        table.add_row(
            Text(row.name),
            str(row.channels),
            *((", ".join(f"{found.op} ×{found.count}" for found in row.couplings) or "–",) if roomy else ()),
            row.constraint,
            *((layers,) if roomy else ()),
            f"{row.macs_share:.1%}",
            *((f"{row.params_share:.1%}",) if roomy else ()),
            _part(half.macs, found.cost.macs),
            _part(half.params, found.cost.params),
            size(half.size_bytes),
        )
    return table


def _frozen(frozen: Sequence[FrozenChannels], shown: int | None) -> Iterable[Text]:
    """Say what stays whole: operation, line of code and reason."""
    yield Text("stays whole:", style="bold")
    yield from map(frozen_line, frozen[:shown])
    if shown is not None and len(frozen) > shown:
        yield Text(f"  … and {len(frozen) - shown} more reasons; --verbose shows all of them", style="dim")


def frozen_line(row: FrozenChannels) -> Text:
    """Write one reason on a line: where, how many channels, why, by which operation and line."""
    more = f" and {row.count - 1} more" if row.count > 1 else ""
    by = " ".join(part for part in (row.op, f"at {row.where}" if row.where else "") if part)
    return Text(f"  {row.tensor}{more}, {row.channels} channels: {row.reason}" + (f" ({by})" if by else ""))


def _names(names: Sequence[str]) -> str:
    if not names:
        return "–"
    return names[0] if len(names) == 1 else f"{names[0]} +{len(names) - 1}"


def _part(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
