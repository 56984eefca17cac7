"""How every command speaks: errors without a traceback, a calm end after Ctrl-C, a table at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from prunus.errors import PrunusError
from prunus.stopping import Stopped, Stopping

STOPPED = "stopped; the same command goes on where it was"


def run_and_show(run: Callable[[Console], Path | None], *, stopped: str = STOPPED) -> None:
    """Run a command's work; if it returns a run folder, print its table and the paths of what lies in it.

    A PrunusError becomes a message on stderr and exit code 2. Where the command is asked to end, it says why and
    `stopped`: after Ctrl-C with exit code 130, after SIGTERM with 143, and with 3 where its time is over.
    """
    console = Console()
    try:
        with Stopping():
            run_dir = run(console)
            if run_dir is not None:
                from prunus.report import print_summary

                print_summary(run_dir, console)
    except PrunusError as error:
        message = Text.assemble(("error: ", "bold red"), str(error))
        Console(stderr=True).print(message, soft_wrap=True)
        raise typer.Exit(2) from None
    except Stopped as reason:
        typer.echo(f"\n{reason.why}: {stopped}", err=True)
        raise typer.Exit(reason.exit_code) from None
    except KeyboardInterrupt:  # from a thread, or where another handler than ours is in place
        typer.echo(f"\n{stopped}", err=True)
        raise typer.Exit(130) from None
