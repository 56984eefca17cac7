"""`prunus predict`: classes of images, from any exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from prunus.cli.talk import JsonFlag, Quiet, Talk, Verbose, run_and_show


def predict(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An exported file, a model file or a run folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Images: JPEG, PNG, BMP, WebP, PPM or TIFF.")],
    top: Annotated[int, typer.Option(help="Classes to show of each image.", metavar="N", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.", metavar="N", min=1)] = 1,
    json: JsonFlag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what images show, by any file that Prunus wrote, in that file's own runtime.

    [cyan]prunus predict runs/a/export/model.onnx photo.jpg[/cyan]

    [cyan]prunus predict runs/a *.png --top 1[/cyan]

    Classes, normalisation and the input's size come from the file. An image of another size is scaled to cover that
    size, and its middle taken.
    """

    def run(talk: Talk) -> None:
        from prunus.pipeline.predicting import predict as run_predict

        found = run_predict(file, images, top=top, threads=threads)
        if json:
            from json import dumps

            rows = [{"image": str(row.image), "classes": dict(row.classes)} for row in found]
            talk.data(dumps(rows, indent=2, ensure_ascii=False))
            return
        for row in found:
            named = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in row.classes)
            talk.out.print(Text(f"{row.image}: {named}"), soft_wrap=True)

    run_and_show(run, stopped="stopped", quiet=quiet, verbose=verbose)
