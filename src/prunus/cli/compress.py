"""`prunus compress`: a flag for every field of RunConfig, so that flags, file keys and help cannot drift apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from prunus.cli.talk import Talk, rank, run_and_show
from prunus.config import RunConfig, flag_name, load_config


def compress(
    config: Path | None,
    print_config: bool,
    fresh: bool,
    max_minutes: float | None,
    dense_only: bool,
    json: bool,
    quiet: bool,
    verbose: bool,
    **flags: object,
) -> None:
    """Train a network, remove its redundant channels to a budget, prove the removal right, fine-tune, and report.

    [bold]A budget is what the small network may cost.[/bold] At least one is needed; all that are given hold together.

    [cyan]prunus compress --model resnet20 --data cifar10 --size 0.64MB[/cyan]

    [cyan]prunus compress --model resnet20 --data cifar10 --method layer-fusion --macs 0.5[/cyan]

    [cyan]prunus compress --model vgg16_bn --data photos.tar.xz --params 2M --macs 40%[/cyan]

    [bold]From a trained network,[/bold] and with settings in a file (its keys are the flags' names; flags win):

    [cyan]prunus compress --model resnet56 --data cifar100 --checkpoint dense.safetensors --macs 0.35[/cyan]

    [cyan]prunus compress --config run.yaml --seed 1 --out runs/b[/cyan]

    Stop it with Ctrl-C at any time: the same command goes on where it was.
    """

    def run(talk: Talk) -> Path | None:
        settings = load_config(config, flags)
        if print_config:
            talk.data(settings.model_dump_json(indent=1) if json else settings.to_yaml().rstrip("\n"))
            return None
        from prunus.pipeline import compress as run_pipeline

        folder = run_pipeline(settings, talk.messages, fresh=fresh, max_minutes=max_minutes, dense_only=dense_only)
        if dense_only and not (folder / "summary.json").exists():
            dense = folder / "dense.safetensors"
            if dense.exists() and rank() == 0:
                talk.data(dumps({"dense": str(dense)}) if json else str(dense))
            return None
        return folder

    run_and_show(run, quiet=quiet, verbose=verbose, json=json)


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """Make the flag of one field; its value stays text, so that RunConfig judges all of them at once."""
    extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = "" if field.is_required() or field.default in (None, False) else f" [default: {field.default}]"
    is_switch = not extra["metavar"]
    option = typer.Option(
        f"{flag_name(name)}/--no-{flag_name(name)[2:]}" if is_switch else flag_name(name),
        help=escape(f"{field.description}{default}"),
        metavar=extra["metavar"],
        rich_help_panel=extra["panel"],
        show_default=False,
    )
    kind = bool | None if is_switch else str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _with_flags(command: Callable[..., None]) -> Callable[..., None]:
    config = typer.Option(metavar="FILE", help="Settings in YAML; flags win over them.", rich_help_panel="What")
    show = typer.Option(
        "--print-config", metavar="", help="Print the whole configuration and stop.", rich_help_panel="Running"
    )
    again = typer.Option(
        "--fresh", metavar="", help="Delete an earlier run in the folder, and start over.", rich_help_panel="Running"
    )
    time_box = typer.Option(
        metavar="MINUTES",
        help="Stop at a checkpoint after so long, with exit code 3; the same command goes on.",
        rich_help_panel="Running",
    )
    dense = typer.Option(
        "--dense-only",
        metavar="",
        help="Stop once the dense network is trained; the same command without this goes on.",
        rich_help_panel="Running",
    )
    as_json = typer.Option("--json", metavar="", help="Print JSON in place of the table.", rich_help_panel="Running")
    silent = typer.Option(
        "--quiet", "-q", metavar="", help="Say nothing but the result and errors.", rich_help_panel="Running"
    )
    wordy = typer.Option(
        "--verbose", "-v", metavar="", help="Show errors with their traceback.", rich_help_panel="Running"
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *(_option(name, field) for name, field in RunConfig.model_fields.items()),
        inspect.Parameter("config", keyword, default=None, annotation=Annotated[Path | None, config]),
        inspect.Parameter("max_minutes", keyword, default=None, annotation=Annotated[float | None, time_box]),
        inspect.Parameter("dense_only", keyword, default=False, annotation=Annotated[bool, dense]),
        inspect.Parameter("fresh", keyword, default=False, annotation=Annotated[bool, again]),
        inspect.Parameter("print_config", keyword, default=False, annotation=Annotated[bool, show]),
        inspect.Parameter("json", keyword, default=False, annotation=Annotated[bool, as_json]),
        inspect.Parameter("quiet", keyword, default=False, annotation=Annotated[bool, silent]),
        inspect.Parameter("verbose", keyword, default=False, annotation=Annotated[bool, wordy]),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
command = _with_flags(compress)
app.command()(command)
