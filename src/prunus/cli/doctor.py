"""`prunus doctor`: what is there, what is missing, and what to type to get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from prunus.cli.talk import JsonFlag, Quiet, Talk, Verbose, run_and_show

if TYPE_CHECKING:
    from prunus.doctor import Finding

MARKS = {"ok": ("✓", "green"), "note": ("·", "yellow"), "missing": ("–", "yellow"), "broken": ("✗", "bold red")}


def doctor(json: JsonFlag = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Look at versions, extras, devices, disk and data sets; say what is missing and the command that brings it.

    The exit code is 1 if something is broken that Prunus needs. [bold]--quiet[/bold] shows only what is broken.
    """
    found: list[Finding] = []

    def run(talk: Talk) -> None:
        from prunus.doctor import examine

        with talk.waiting("looking"):
            found.extend(examine())
        if json:
            from dataclasses import asdict
            from json import dumps

            talk.data(dumps([asdict(finding) for finding in found], indent=1, ensure_ascii=False))
        else:
            for line in _lines(found, quiet=talk.quiet, verbose=talk.verbose):
                talk.out.print(line, soft_wrap=True)

    run_and_show(run, quiet=quiet, verbose=verbose, stopped="stopped")
    if any(finding.state == "broken" for finding in found):
        raise typer.Exit(1)


def _lines(found: Sequence[Finding], *, quiet: bool, verbose: bool) -> list[Text]:
    """Lay the findings out by section; packages that are as they should be share a line, unless all is wanted."""
    lines: list[Text] = []
    shown = [finding for finding in found if finding.state == "broken" or not quiet]
    for section in dict.fromkeys(finding.section for finding in shown):
        lines.append(Text(section, style="bold"))
        rows = [finding for finding in shown if finding.section == section]
        fine: list[Finding] = []
        if section == "versions" and not verbose:
            fine = [row for row in rows if row.state == "ok" and row.name not in ("prunus", "python", "torch")]
            rows = [row for row in rows if row not in fine]
        for row in rows:
            lines.append(_line(row.state, row.name, row.text))
            if row.fix:
                lines.append(Text.assemble("      ", (row.fix, "cyan")))
        if fine:
            lines.append(_line("ok", "packages", ", ".join(f"{row.name} {row.text}" for row in fine)))
    broken = sum(finding.state == "broken" for finding in found)
    if not quiet:
        lines.append(Text(f"{broken} broken" if broken else "all that Prunus needs is there", style="bold"))
    return lines


def _line(state: str, name: str, text: str) -> Text:
    mark, style = MARKS[state]
    return Text.assemble("  ", (mark, style), f" {name}: {text}")
