"""What `prunus export` and `prunus bench` are given: a run, a model file, or a network by its name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.config import load_config
from prunus.data import normalize
from prunus.deploy import FileInfo, Samples, load, read_header
from prunus.errors import ConfigError, DataError, ModelError
from prunus.models import find_network
from prunus.pipeline.run import load_images
from prunus.pipeline.run_folder import RunFolder


@dataclass(frozen=True)
class Subject:
    """A network to write: what it is, where its files go if nothing else is said, and images if there are any.

    `int8_model` has the weights that files with 8-bit integers are made of, where a run trained them for that.
    `samples` are test images, `calibration` training images for the ranges of 8-bit integers; `note` says why there are
    none, for people.
    """

    model: nn.Module
    info: FileInfo
    folder: Path
    samples: Samples | None = None
    calibration: Samples | None = None
    note: str = ""
    int8_model: nn.Module | None = None


def model_file(source: str | Path) -> Path | None:
    """Return the model file that a run folder, a hub folder or a path means; None for a name."""
    path = Path(source)
    if path.is_dir():
        file = path / "model.safetensors"
        if not file.is_file():
            raise ConfigError(f"{path} is no finished run: it has no model.safetensors. Type prunus compress to go on")
        return file
    return path if path.is_file() or path.suffix == ".safetensors" else None


def default_folder(source: str) -> Path:
    """Say where the files of a source go: beside it, or for a name in a folder of that name here."""
    file = model_file(source)
    if file is not None:
        return file.parent / "export"
    return Path("export") / "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in source)


def find_subject(
    source: str,
    *,
    dense: bool = False,
    network: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    count: int | None = None,
) -> Subject:
    """Load the network that a user named.

    Args:
        source: a run folder, a model file, or a name as `prunus check` takes it.
        dense: of a run, the network before the removal.
        network: the name of the network that a model file from outside the zoo was pruned from.
        input_shape: of one image, where a file does not say.
        count: of the run's test images, at most; all by default.

    Raises:
        PrunusError: there is no such thing, or it cannot be loaded.
    """
    file = model_file(source)
    if file is None:
        if "/" in source and ":" not in source:
            raise ConfigError(f"{source}: there is no such run folder or file")
        return _named(source, input_shape)
    run = RunFolder(file.parent)
    if dense:
        if not run.dense.is_file():
            raise ConfigError(f"{source} has no dense network: --dense is for run folders with dense.safetensors")
        file = run.dense
    subject = _stored(file, network, input_shape)
    if file == run.model and Path(source).is_dir() and run.int8_network.is_file():
        subject = dataclasses.replace(subject, int8_model=_stored(run.int8_network, network, input_shape).model)
    if not Path(source).is_dir() or not run.config.is_file():
        return subject
    return _with_images(subject, run, count)


def _named(spec: str, input_shape: tuple[int, ...] | None) -> Subject:
    found = find_network(spec).load()
    if len(found.inputs) != 1 or not isinstance(found.inputs[0], Tensor):
        raise ModelError(f"{spec} takes {len(found.inputs)} inputs, and a file has one: wrap it in a module with one")
    shape = input_shape or tuple(found.inputs[0].shape[1:])
    return Subject(found.model.eval(), FileInfo(format="", model=spec, input_shape=shape), default_folder(spec))


def _stored(file: Path, network: str | None, input_shape: tuple[int, ...] | None) -> Subject:
    header = read_header(file)
    factory: Callable[[], nn.Module] | None = None
    if network is not None:
        factory = functools.partial(_build, network)
    elif header.model is None:
        raise ModelError(
            f"{file} holds a network from outside the zoo: name what it was pruned from, --network timm:NAME or "
            "--network package.module:factory"
        )
    shape = input_shape or header.input_shape
    if shape is None:
        raise ConfigError(f"{file} does not say what images its network takes: type --input-shape 3,224,224")
    info = FileInfo(
        format="",
        model=header.model or network,
        input_shape=shape,
        classes=header.classes,
        mean=header.mean,
        std=header.std,
        plan=header.plan,
    )
    return Subject(load(file, factory=factory), info, default_folder(str(file)))


def _build(spec: str) -> nn.Module:
    return find_network(spec).load().model


def _with_images(subject: Subject, run: RunFolder, count: int | None) -> Subject:
    config = load_config(run.config)
    try:
        data = load_images(config)
    except DataError as error:
        note = f"the data of the run cannot be loaded, so files are compared on noise: {error}"
        return dataclasses.replace(subject, note=note)
    looked_at = functools.partial(normalize, mean=subject.info.mean, std=subject.info.std)
    chosen = _spread(len(data.test_labels), count)
    samples = Samples(data.test_images[chosen], data.test_labels[chosen], looked_at)
    seen = _spread(len(data.train_labels), config.calibration_images)
    calibration = Samples(data.train_images[seen], data.train_labels[seen], looked_at)
    return dataclasses.replace(subject, samples=samples, calibration=calibration)


def _spread(total: int, count: int | None) -> Tensor:
    """Choose rows all over a set: a folder's images lie class by class."""
    return torch.linspace(0, total - 1, min(count or total, total)).long()
