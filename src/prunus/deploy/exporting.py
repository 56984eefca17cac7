"""From a network to files for other runtimes, each compared with PyTorch before it gets its name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunus.cost import count_cost
from prunus.deploy.capturing import Captured, capture
from prunus.deploy.comparing import Comparison, Samples, compare, outputs_of, random_samples
from prunus.deploy.file_info import FileInfo, Precision
from prunus.deploy.formats import FORMATS, Write, WriteInt8, find_format, open_exported
from prunus.deploy.header import encode_plan
from prunus.deploy.runner import Array
from prunus.errors import ConfigError, RunError, VerificationError
from prunus.plan import PruningPlan

TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "float16 weights": 5e-2, "int8": 0.3}
"""Largest relative error of a file that is kept: rounding stays far below it. int8 is judged so on noise only."""

INT8_AGREEMENT = 0.8
"""Least fraction of real images that a file with 8-bit integers puts in the class that PyTorch does: those that one of
the two has wrong are often put in different classes. One that names as many right as PyTorch is kept in any case.
What it costs in accuracy is reported, not judged."""


@dataclass(frozen=True)
class Exported:
    """A file that was written: its format, all that belongs to it (first what is opened), runtime, and comparison."""

    format: str
    files: tuple[Path, ...]
    size_bytes: int
    runtime: str
    info: FileInfo
    comparison: Comparison


def export(
    model: nn.Module,
    folder: str | Path,
    to: Sequence[str] = ("onnx",),
    *,
    input_shape: Sequence[int],
    name: str = "model",
    model_name: str | None = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    plan: PruningPlan | None = None,
    samples: Samples | None = None,
    fold: bool = True,
    half: bool = False,
    int8: bool = False,
    calibration: Samples | None = None,
) -> list[Exported]:
    """Write a network in other formats, and run each file in its own runtime beside PyTorch.

    A file is only kept if it agrees with PyTorch on the samples.

    Args:
        model: the network, with one input and one output; it is left as it is.
        folder: where the files go; it is made.
        to: names of formats, of `prunus.deploy.WRITTEN`.
        input_shape: of one example, (C, H, W).
        name: of the files, before the suffix.
        model_name: what the network is called.
        classes: class names, in the order of the logits.
        mean: of the input's channels, on the 0..1 scale.
        std: of the input's channels, on the 0..1 scale.
        plan: which channels of the original stayed.
        samples: what to compare on; by default noise.
        fold: fold BatchNorm into the layers before it.
        half: store weights as float16 in formats that can.
        int8: write a second file, NAME.int8.SUFFIX, with 8-bit integers, in formats that can.
        calibration: images like those that the network will see, a few hundred; their ranges of values decide what the
            integers stand for. By default noise, which is good for timing alone.

    Raises:
        ConfigError: there is no such format, what it needs is not installed, or none of them can hold 8-bit integers.
        ModelError: the network cannot be written so.
        VerificationError: a file does not do what the network does; it is not kept.
    """
    info = FileInfo(
        format="",
        model=model_name,
        input_shape=tuple(input_shape),
        classes=tuple(classes),
        mean=tuple(mean),
        std=tuple(std),
        plan=encode_plan(plan),
    )
    return list(
        export_each(
            model,
            folder,
            to,
            info,
            name=name,
            samples=samples,
            fold=fold,
            half=half,
            int8=int8,
            calibration=calibration,
        )
    )


def export_each(
    model: nn.Module,
    folder: str | Path,
    to: Sequence[str],
    info: FileInfo,
    *,
    name: str = "model",
    samples: Samples | None = None,
    fold: bool = True,
    half: bool = False,
    int8: bool = False,
    calibration: Samples | None = None,
    int8_model: nn.Module | None = None,
) -> Iterator[Exported]:
    """Do what `export` does, file by file, from a description that is complete but for the format.

    `int8_model`, where there is one, is the same network with the weights that 8-bit integers are made of.
    """
    formats = [find_format(wanted) for wanted in dict.fromkeys(to)]
    if int8 and not any(wanted.write_int8 for wanted in formats):
        able = ", ".join(found.name for found in FORMATS.values() if found.write_int8)
        raise ConfigError(f"8-bit integers are written to {able}, and not to {', '.join(to)}: add one of them to --to")
    captured = capture(model, info.input_shape, fold=fold)
    rounded = capture(int8_model, info.input_shape, fold=fold) if int8 and int8_model is not None else captured
    cost = count_cost(model, torch.zeros(1, *info.input_shape))
    complete = info.model_copy(update={"params": cost.params, "macs": cost.macs, "batchnorm_folded": fold})
    samples = samples or random_samples(info.input_shape)
    expected = outputs_of(model, samples)
    for wanted in formats:
        precision: Precision = "float16 weights" if half and wanted.half_weights else "float32"
        described = complete.model_copy(update={"format": wanted.name, "precision": precision})
        assert wanted.write is not None
        yield _keep(wanted.write, captured, described, Path(folder) / f"{name}{wanted.suffix}", samples, expected)
        if int8 and wanted.write_int8 is not None:
            described = described.model_copy(update={"precision": "int8"})
            write = _calibrated(wanted.write_int8, calibration or random_samples(info.input_shape))
            yield _keep(write, rounded, described, Path(folder) / f"{name}.int8{wanted.suffix}", samples, expected)


def _calibrated(write_int8: WriteInt8, calibration: Samples) -> Write:
    """Turn a function that writes 8-bit integers into one that writes as others do."""

    def write(captured: Captured, path: Path, info: FileInfo) -> tuple[Path, ...]:
        return write_int8(captured, path, info, calibration)

    return write


def _keep(
    write: Write, captured: Captured, info: FileInfo, target: Path, samples: Samples, expected: Array
) -> Exported:
    """Write a file in a folder of its own, compare, and only then move it to where it belongs."""
    folder = target.parent
    with _aside(folder) as aside:
        written = write(captured, aside / target.name, info)
        runner = open_exported(written[0])
        comparison = compare(runner, expected, samples)
        _check(comparison, info)
        size = sum(file.stat().st_size for file in written)
        files = tuple(file.replace(folder / file.name) for file in reversed(written))[::-1]
    return Exported(info.format, files, size, runner.runtime, runner.info, comparison)


def _check(comparison: Comparison, info: FileInfo) -> None:
    """Refuse a file that does something else than the network.

    Raises:
        VerificationError: it does.
    """
    by_class = info.precision == "int8" and comparison.accuracy is not None
    allowed = TOLERANCE[info.precision]
    if by_class and (comparison.agreement >= INT8_AGREEMENT or _no_worse(comparison)):
        return
    if not by_class and comparison.max_relative_error <= allowed:
        return
    limit = f"at least {INT8_AGREEMENT:.0%} for int8" if by_class else f"error at most {allowed:.0e}"
    advice = (
        "Calibrate on images like those it is compared on"
        if info.precision == "int8"
        else "--no-fold leaves BatchNorm alone, if that is the cause"
    )
    raise VerificationError(
        f"the {info.format} file does not do what the network does: its outputs differ by up to "
        f"{comparison.max_relative_error:.1e} of the largest, and the class is the same for {comparison.agreement:.1%} "
        f"of {comparison.images} images (allowed: {limit}). It was not kept. {advice}"
    )


def _no_worse(comparison: Comparison) -> bool:
    """Tell whether a file names as many images right as PyTorch, as one that was trained for rounding may."""
    ours, theirs = comparison.accuracy, comparison.torch_accuracy
    return ours is not None and theirs is not None and ours >= theirs


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Make a folder beside the files' place, gone in any case."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}; choose another with --out") from error
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
