"""`prunus export`: a network's files for other runtimes, each compared with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.talk import JsonFlag, Quiet, Talk, Verbose, run_and_show


def export(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, a model file or a network.")],
    to: Annotated[str, typer.Option(help="Formats, with commas between them.", metavar="FORMATS")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the files. [default: export in the run folder]", metavar="FOLDER")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", metavar="", help="Take the run's network before the removal.")
    ] = False,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", metavar="", help="Fold BatchNorm into the layers before it.")
    ] = True,
    half: Annotated[bool, typer.Option("--fp16", metavar="", help="Store ncnn's weights as float16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", metavar="", help="Write a second file with 8-bit integers.")] = False,
    samples: Annotated[
        int | None, typer.Option(help="Test images to compare on. [default: all]", metavar="N", min=1)
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="What a model file from outside the zoo was pruned from.", metavar="MODEL")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Channels, height and width, where nothing else says them.", metavar="C,H,W")
    ] = None,
    json: JsonFlag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a network for other runtimes, and prove each file: run in its own runtime, beside PyTorch.

    [bold]FORMATS[/bold] are onnx (ONNX Runtime), executorch (with XNNPACK), ncnn, litert and pt2 (torch.export);
    huggingface is a folder with model.safetensors, config.json and a model card.

    [cyan]prunus export runs/a --to onnx,ncnn[/cyan]

    [cyan]prunus export timm:resnet18 --to onnx --input-shape 3,224,224[/cyan]

    A file holds the classes, the normalisation and the input's size, so that [bold]prunus predict[/bold] needs no more.
    One that does not agree with PyTorch is not kept. BatchNorm is folded, exactly to rounding; --no-fold leaves it.

    --int8 writes a second .onnx or .pte file with 8-bit integers, whose ranges are measured on the run's training
    images.
    """

    def run(talk: Talk) -> None:
        from prunus.pipeline.exporting import export_source, plain_row, results_table

        rows = export_source(
            source,
            [name.strip() for name in to.split(",") if name.strip()],
            talk.messages,
            out=out,
            dense=dense,
            fold=fold,
            half=half,
            int8=int8,
            samples=samples,
            network=network,
            input_shape=_shape(input_shape),
        )
        if json:
            from json import dumps

            talk.data(dumps([plain_row(row) for row in rows], indent=2))
        elif rows:
            talk.out.print(results_table(rows))

    run_and_show(run, stopped="stopped", quiet=quiet, verbose=verbose)


def _shape(text: str | None) -> tuple[int, ...] | None:
    from prunus.errors import ConfigError

    if text is None:
        return None
    sizes = tuple(int(part) if part.strip().isdigit() else 0 for part in text.split(","))
    if len(sizes) != 3 or min(sizes) < 1:
        raise ConfigError(f"--input-shape {text}: type channels, height and width, such as 3,224,224")
    return sizes
