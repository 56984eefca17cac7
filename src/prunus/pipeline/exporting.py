"""`prunus export`: files of a run's network for other runtimes, and how they compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunus.deploy import Exported, export_each, find_format
from prunus.files import atomic_write_json
from prunus.pipeline.hub import HUB, write_hub_folder
from prunus.pipeline.subjects import default_folder, find_subject
from prunus.report import numbers

RESULTS = "export.json"
ACCEPTED_LOSS = 0.005  # of accuracy to 8-bit integers, before it is said aloud
CALIBRATED_ON_NOISE = (
    "there are no training images to calibrate on, so the ranges of the 8-bit integers are those of noise: "
    "good for timing, not for use"
)


def export_source(
    source: str,
    to: Sequence[str],
    console: Console,
    *,
    out: Path | None = None,
    dense: bool = False,
    network: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    fold: bool = True,
    half: bool = False,
    int8: bool = False,
    samples: int | None = None,
) -> list[Exported]:
    """Write a network's files, compare them, and leave the figures in export.json beside them.

    Args:
        source: a run folder, a model file, or a network's name.
        to: names of formats, "huggingface" among them.
        console: where is said what happens.
        out: folder of the files; by default `export` in the run folder.
        dense: take the run's network before the removal.
        network: what a model file from outside the zoo was pruned from.
        input_shape: of one image, where nothing else says it.
        fold: fold BatchNorm into the layers before it.
        half: store weights as float16 in formats that can.
        int8: write a second file with 8-bit integers in formats that can.
        samples: of the test images, at most; all by default.
    """
    formats = [wanted for wanted in to if wanted != HUB]
    for wanted in formats:
        find_format(wanted)  # before anything is loaded
    if HUB in to:
        place = (out or default_folder(source)) / HUB
        write_hub_folder(source, place, dense=dense)
        console.print(f"wrote {place}", highlight=False, soft_wrap=True)
    if not formats:
        return []
    subject = find_subject(source, dense=dense, network=network, input_shape=input_shape, count=samples)
    folder = out or subject.folder
    if subject.note:
        console.print(subject.note, highlight=False, soft_wrap=True)
    if int8 and subject.calibration is None:
        console.print(CALIBRATED_ON_NOISE, highlight=False, soft_wrap=True)
    done: list[Exported] = []
    name = "dense" if dense else "model"
    for exported in export_each(
        subject.model,
        folder,
        formats,
        subject.info,
        name=name,
        samples=subject.samples,
        fold=fold,
        half=half,
        int8=int8,
        calibration=subject.calibration,
        int8_model=subject.int8_model,
    ):
        done.append(exported)
        console.print(f"wrote {exported.files[0]}", highlight=False, soft_wrap=True)
        atomic_write_json(folder / RESULTS, [plain_row(row) for row in done])
        if exported.info.precision == "int8" and accuracy_loss(exported) > ACCEPTED_LOSS:
            console.print(
                f"8-bit integers cost {exported.files[0].name} {100 * accuracy_loss(exported):.2f} points of accuracy",
                highlight=False,
                soft_wrap=True,
            )
    return done


def accuracy_loss(row: Exported) -> float:
    """Return how much accuracy a file lost to PyTorch, in 0..1; 0 without labels."""
    found = row.comparison
    return 0.0 if found.accuracy is None or found.torch_accuracy is None else found.torch_accuracy - found.accuracy


def plain_row(row: Exported) -> dict[str, object]:
    """Say in plain data what came of a file."""
    return {
        "format": row.format,
        "files": [file.name for file in row.files],
        "size_bytes": row.size_bytes,
        "runtime": row.runtime,
        "batchnorm_folded": row.info.batchnorm_folded,
        "precision": row.info.precision,
        "comparison": dataclasses.asdict(row.comparison),
    }


def results_table(rows: Sequence[Exported]) -> Table:
    """Lay out how files compare with PyTorch."""
    images = rows[0].comparison.images
    what = "images of noise" if rows[0].comparison.accuracy is None else "test images"
    title = f"beside PyTorch, on {images:,} {what}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("file", overflow="fold")
    for heading in ("size", "worst error", "same class", "accuracy\nfile / PyTorch"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("runtime", overflow="fold")
    for row in rows:
        found = row.comparison
        accuracies = (
            f"{numbers.percent(found.accuracy)} / {numbers.percent(found.torch_accuracy)}"
            if found.accuracy is not None
            else "–"
        )
        table.add_row(
            Text(row.files[0].name),
            numbers.size(row.size_bytes),
            f"{found.max_relative_error:.1e}",
            numbers.percent(found.agreement),
            accuracies,
            row.runtime,
        )
    return table
