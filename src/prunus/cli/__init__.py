"""The command line: flags in, one call of the pipeline, errors as messages; heavy imports inside the commands."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from prunus import __version__
from prunus.cli.bench import bench
from prunus.cli.check import check
from prunus.cli.doctor import doctor
from prunus.cli.export import export
from prunus.cli.inspect import inspect
from prunus.cli.predict import predict
from prunus.cli.report import report
from prunus.cli.sweep import sweep
from prunus.cli.talk import JsonFlag, Quiet, Talk, Verbose, run_and_show

app = typer.Typer(
    name="prunus",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import platform
        from importlib.metadata import version

        typer.echo(f"prunus {__version__} (torch {version('torch')}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _prunus(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, metavar="", help="Print the version.")
    ] = False,
) -> None:
    """Make convolutional networks small: remove whole channels, prove it right, train the accuracy back.

    [bold]Start here:[/bold] [cyan]prunus demo[/cyan]

    [bold]On your data:[/bold] [cyan]prunus compress --model resnet20 --data cifar10 --size 0.64MB --out runs/a[/cyan]

    [bold]Many runs at once:[/bold] [cyan]prunus sweep sweep.yaml --jobs 2[/cyan]

    [bold]What came of it:[/bold] [cyan]prunus report runs/a runs/b --open[/cyan]

    [bold]Any other network:[/bold] [cyan]prunus inspect timm:resnet18[/cyan] shows what can be pruned, and what not

    [bold]Something is missing?[/bold] [cyan]prunus doctor[/cyan]

    [bold]On another runtime:[/bold] [cyan]prunus export runs/a --to onnx[/cyan]

    [bold]All that can be set:[/bold] [cyan]prunus compress --help[/cyan]
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.", metavar="FOLDER")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of every random choice.", metavar="N", min=0)] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", metavar="", help="Delete an earlier run in the folder, and start over.")
    ] = False,
    json: JsonFlag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train, prune, verify and fine-tune a small network on handwritten digits: two minutes, no download.

    The 1,797 images of 8×8 pixels come with Prunus. What it writes is what [bold]compress[/bold] writes: the small
    network, the plan, the verification, and report.html to look at.
    """

    def run(talk: Talk) -> Path:
        from prunus.pipeline import demo as run_demo

        return run_demo(out, talk.messages, seed=seed, fresh=fresh)

    run_and_show(run, quiet=quiet, verbose=verbose, json=json)


# The flags of `compress` are made from RunConfig, whose library takes longer to import than `prunus --help` may last:
# this command takes every argument as it is, and the real one is built when it is called.
def compress(context: typer.Context) -> None:
    """Train a network, remove redundant channels to a budget, prove the removal right, fine-tune, and report."""
    from prunus.cli.compress import app as real

    real(args=context.args, prog_name=context.command_path)


if "compress" in os.environ.get("_TYPER_COMPLETE_ARGS", os.environ.get("COMP_WORDS", "")):  # a shell asks for the flags
    from prunus.cli.compress import command as with_its_flags

    app.command("compress")(with_its_flags)
else:
    app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
        compress
    )

for command in (report, sweep, inspect, check, export, predict, bench):
    app.command(no_args_is_help=True)(command)
app.command()(doctor)


def main() -> None:
    """Run the command line: what the `prunus` script calls."""
    # Before torch is imported: its threads spin while they wait for one another, by default for so long that two of
    # them on a busy two-core machine took 386 s for an epoch of ResNet-20. With this it took 131 s there and 64 instead
    # of 59 s on an idle one; with OMP_WAIT_POLICY=PASSIVE 177 and 77 s.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "_PRUNUS_COMPLETE" in os.environ:  # a shell asks; a line of help that is wrapped would be an offer of its own
        os.environ["COLUMNS"] = "1000"
    try:
        app(prog_name="prunus")
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            _end_process(end)
        raise


def _end_process(end: SystemExit) -> None:
    """End a process of several as Python does, but for taking the interpreter down.

    A thread of gloo's that then still waits for it aborts the process, once in ten runs on a busy machine (torch 2.13):
    all was done and written, and the launcher said that it had failed.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter would
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
