"""How every command speaks: data on stdout, words on stderr, errors without a traceback, a calm end after Ctrl-C."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from prunus.errors import ConfigError, PrunusError
from prunus.stopping import Stopped, Stopping

_FILE_COLUMNS = 160  # of a table that goes into a file or a pipe, where nothing says how wide it may be

STOPPED = "stopped; the same command goes on where it was"

JsonFlag = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON in place of the table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Say nothing but the result and errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", metavar="", help="Leave nothing out; errors come with their traceback.")
]


@dataclass(frozen=True)
class Talk:
    """Where a command speaks: `out` is stdout, for what was asked for, `messages` stderr, for what is said meanwhile.

    Rich looks for terminals and NO_COLOR: colours and bars are off elsewhere.
    """

    out: Console
    messages: Console
    quiet: bool = False
    verbose: bool = False

    @classmethod
    def of(cls, *, quiet: bool = False, verbose: bool = False) -> Talk:
        """Open both; with `quiet` nothing goes to stderr but errors."""
        out = Console()
        if not (out.is_terminal or os.environ.get("COLUMNS")):
            out.width = _FILE_COLUMNS
        return cls(out, Console(stderr=True, quiet=quiet), quiet, verbose)

    def data(self, text: str) -> None:
        """Print text for programs as it is: no colours, no wrapping."""
        typer.echo(text)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show on a terminal that something goes on."""
        if self.quiet or not self.messages.is_terminal:
            yield
            return
        with self.messages.status(text):
            yield


def rank() -> int:
    """Return which of the processes of a launcher (torchrun, accelerate) this is; 0 without one."""
    number = os.environ.get("RANK", "0")
    return int(number) if number.isdigit() else 0


def run_and_show(
    run: Callable[[Talk], Path | None],
    *,
    stopped: str = STOPPED,
    quiet: bool = False,
    verbose: bool = False,
    json: bool = False,
) -> None:
    """Run a command's work; if it returns a run folder, print its table, or with `json` its summary.

    With `quiet`, nothing that is said meanwhile is shown; with `verbose`, an error comes with its traceback.

    A PrunusError becomes a message on stderr and exit code 2. Where the command is asked to end, it says why and
    `stopped`: after Ctrl-C with exit code 130, after SIGTERM with 143, and with 3 where its time is over.
    """
    talk = Talk.of(quiet=quiet, verbose=verbose)
    try:
        with Stopping(), _hushed(quiet):
            run_dir = run(talk)
        if run_dir is not None and rank() == 0:
            _show_run(run_dir, talk, json)
    except PrunusError as error:
        if verbose:
            traceback.print_exc()
        if rank() == 0 or not isinstance(error, ConfigError):  # a wrong flag is the same for all
            where = f"process {rank()}: " if rank() else ""
            message = Text.assemble((f"{where}error: ", "bold red"), str(error))
            Console(stderr=True).print(message, soft_wrap=True)
        raise typer.Exit(2) from None
    except Stopped as reason:
        if rank() == 0:
            typer.echo(f"\n{reason.why}: {stopped}", err=True)
        raise typer.Exit(reason.exit_code) from None
    except KeyboardInterrupt:  # from a thread, or where another handler than ours is in place
        typer.echo(f"\n{stopped}", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _hushed(quiet: bool) -> Iterator[None]:
    """Drop what is written to stderr, progress bars too, while a command works."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # noqa: PTH123
        yield


def _show_run(run_dir: Path, talk: Talk, json: bool) -> None:
    if json:
        talk.data((run_dir / "summary.json").read_text("utf-8").rstrip("\n"))
        return
    from prunus.report import print_summary

    print_summary(run_dir, talk.out)
