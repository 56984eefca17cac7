"""`prunus predict`: classes of images, from any exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prunus.cli.talk import run_and_show


def predict(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An exported file, a model file or a run folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Images: JPEG, PNG, BMP, WebP, PPM or TIFF.")],
    top: Annotated[int, typer.Option(help="Classes to show of each image.", metavar="N", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.", metavar="N", min=1)] = 1,
) -> None:
    """Say what images show, by any file that Prunus wrote, in that file's own runtime.

    [cyan]prunus predict runs/a/export/model.onnx photo.jpg[/cyan]

    [cyan]prunus predict runs/a *.png --top 1[/cyan]

    Classes, normalisation and the input's size come from the file. An image of another size is scaled to cover that
    size, and its middle taken.
    """

    def run(console: Console) -> None:
        from prunus.pipeline.predicting import predict as run_predict
        from prunus.pipeline.predicting import show

        show(run_predict(file, images, top=top, threads=threads), console)

    run_and_show(run, stopped="stopped")
