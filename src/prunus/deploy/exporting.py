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
from prunus.deploy.formats import Format, find_format, open_exported
from prunus.deploy.header import encode_plan
from prunus.deploy.runner import Array
from prunus.errors import RunError, VerificationError
from prunus.plan import PruningPlan

TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "float16 weights": 5e-2}
"""Largest relative error of a file that is kept: rounding stays far below it."""


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

    Raises:
        ConfigError: there is no such format, or what it needs is not installed.
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
    return list(export_each(model, folder, to, info, name=name, samples=samples, fold=fold, half=half))


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
) -> Iterator[Exported]:
    """Do what `export` does, file by file, from a description that is complete but for the format."""
    formats = [find_format(wanted) for wanted in dict.fromkeys(to)]
    captured = capture(model, info.input_shape, fold=fold)
    cost = count_cost(model, torch.zeros(1, *info.input_shape))
    complete = info.model_copy(update={"params": cost.params, "macs": cost.macs, "batchnorm_folded": fold})
    samples = samples or random_samples(info.input_shape)
    expected = outputs_of(model, samples)
    for wanted in formats:
        precision: Precision = "float16 weights" if half and wanted.half_weights else "float32"
        described = complete.model_copy(update={"format": wanted.name, "precision": precision})
        yield _write(wanted, captured, described, Path(folder), name, samples, expected)


def _write(
    wanted: Format, captured: Captured, info: FileInfo, folder: Path, name: str, samples: Samples, expected: Array
) -> Exported:
    """Write a file in a folder of its own, compare, and only then move it to where it belongs."""
    assert wanted.write is not None
    with _aside(folder) as aside:
        written = wanted.write(captured, aside / f"{name}{wanted.suffix}", info)
        runner = open_exported(written[0])
        comparison = compare(runner, expected, samples)
        allowed = TOLERANCE[info.precision]
        if not comparison.max_relative_error <= allowed:
            raise VerificationError(
                f"the {wanted.name} file does not do what the network does: its outputs differ by up to "
                f"{comparison.max_relative_error:.1e} of the largest (allowed: {allowed:.0e}), and the class is the "
                f"same for {comparison.agreement:.1%} of {comparison.images} images. It was not kept. "
                "--no-fold leaves BatchNorm alone, if that is the cause"
            )
        size = sum(file.stat().st_size for file in written)
        files = tuple(file.replace(folder / file.name) for file in reversed(written))[::-1]
    return Exported(wanted.name, files, size, runner.runtime, runner.info, comparison)


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
