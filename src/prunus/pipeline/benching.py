"""`prunus bench`: a run's dense and small network, or any exported files, timed side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunus.deploy import FORMATS, BenchRow, bench_files, export_each, files_of, find_format, format_of
from prunus.deploy.comparing import random_samples
from prunus.errors import ConfigError
from prunus.files import atomic_write_json
from prunus.pipeline.run_folder import RunFolder
from prunus.pipeline.subjects import find_subject
from prunus.report import numbers

RUNTIMES = {found.runtime: name for name, found in FORMATS.items()}
"""Runtimes and the format that a run's networks are written in for each; PyTorch takes model files as they are."""

_COMPARED = 8  # images of noise: the files are only there to be timed
_CLASSIFIED = 64  # test images, for files with 8-bit integers, which are judged by their classes


def bench(
    sources: Sequence[str],
    console: Console,
    *,
    runtimes: Sequence[str] = (),
    threads: int = 1,
    batch: int = 1,
    runs: int = 100,
    memory: bool = True,
    int8: bool = False,
) -> list[BenchRow]:
    """Time one run's networks, or files; of a run, the figures go into its bench.json too.

    Args:
        sources: one run folder, or exported files and model files.
        console: where is said what happens.
        runtimes: of a run, what to time it in, by default ONNX Runtime; of files, leave out the others.
        threads: CPU threads within an operator.
        batch: images a call.
        runs: timed calls of each file.
        memory: measure the peak of memory as well.
        int8: of a run, time files with 8-bit integers as well, in runtimes that have them.
    """
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise ConfigError(f"--runtime {runtime}: there is no such runtime. They are: {', '.join(RUNTIMES)}.")
    folders = [source for source in sources if Path(source).is_dir()]
    if folders and len(sources) > 1:
        raise ConfigError("name one run folder, or files: its networks are compared with each other")
    if int8 and not folders:
        raise ConfigError("--int8 is for a run folder; of files, name those with 8-bit integers")
    chosen = _files_of_run(folders[0], runtimes or ("ort",), console, int8) if folders else _named(sources, runtimes)
    with chosen as files:
        rows = bench_files(files, threads=threads, batch=batch, runs=runs, memory=memory)
    if folders:
        atomic_write_json(RunFolder(Path(folders[0])).bench, [asdict(row) for row in rows])
    return rows


@contextmanager
def _named(sources: Sequence[str], runtimes: Sequence[str]) -> Iterator[dict[str, tuple[Path, ...]]]:
    wanted = [Path(source) for source in sources]
    if runtimes:
        wanted = [path for path in wanted if format_of(path).runtime in runtimes]
        if not wanted:
            raise ConfigError(f"none of the files is for the runtimes {', '.join(runtimes)}")
    yield {str(path): files_of(path) for path in wanted}


@contextmanager
def _files_of_run(
    folder: str, runtimes: Sequence[str], console: Console, int8: bool
) -> Iterator[dict[str, tuple[Path, ...]]]:
    """Write what the runtimes need of both networks to a folder that is gone afterwards."""
    formats = [RUNTIMES[runtime] for runtime in runtimes]
    written = [name for name in formats if FORMATS[name].write]
    for name in written:
        find_format(name)
    kinds = ("dense", "pruned") if (Path(folder) / "dense.safetensors").is_file() else ("pruned",)
    with tempfile.TemporaryDirectory() as place:
        files: dict[tuple[str, str], tuple[Path, ...]] = {}
        for kind in kinds:
            own = Path(folder) / ("dense.safetensors" if kind == "dense" else "model.safetensors")
            files |= {(name, kind): (own,) for name in formats if name not in written}
            if not written:
                continue
            console.print(f"writing the {kind} network as {', '.join(written)}", highlight=False)
            subject = find_subject(folder, dense=kind == "dense", count=_CLASSIFIED if int8 else 1)
            # Ranges measured on images do not hold noise: files with 8-bit integers are compared on images too.
            samples = subject.samples if int8 else random_samples(subject.info.input_shape, _COMPARED)
            for row in export_each(
                subject.model,
                place,
                written,
                subject.info,
                name=kind,
                samples=samples,
                int8=int8,
                calibration=subject.calibration,
                int8_model=subject.int8_model,
            ):
                files[row.format, f"{kind} int8" if row.info.precision == "int8" else kind] = row.files
        shown = [(name, label) for name in formats for kind in kinds for label in (kind, f"{kind} int8")]
        yield {
            f"{label} ({FORMATS[name].runtime})": files[name, label] for name, label in shown if (name, label) in files
        }


def bench_table(rows: Sequence[BenchRow]) -> Table:
    """Lay out what files take, runtime by runtime; speed-up stands beside the reduction of MACs."""
    first = rows[0]
    images = f"{first.batch} image{'s' if first.batch > 1 else ''} a call"
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    title = f"{first.processor}, {threads}, {images}, median of {first.runs} calls in turn"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("file", overflow="fold")
    for heading in ("size", "peak\nmemory", "ms", "p10 – p90", "faster", "MACs", "fewer\nMACs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("runtime", overflow="fold")
    for row in rows:
        table.add_row(
            Text(row.name),
            numbers.size(row.size_bytes),
            "–" if row.peak_memory_bytes is None else numbers.size(row.peak_memory_bytes),
            numbers.three_digits(row.median_ms),
            f"{numbers.three_digits(row.p10_ms)} – {numbers.three_digits(row.p90_ms)}",
            f"{row.speedup:.2f}×",
            "–" if row.macs is None else numbers.count(row.macs),
            "–" if row.macs_reduction is None else f"{row.macs_reduction:.2f}×",
            row.runtime + ("" if row.precision == "float32" else f", {row.precision}"),
        )
    return table
