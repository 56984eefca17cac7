"""Checkpoints: everything a training needs to go on as if it had never stopped.

One safetensors file a training: the network's tensors under `model/`, those of its moving average, where it has one,
under `average/`, the optimiser's momentum under `momentum/`, the states of the random generators under `random/`; the
rest is JSON in the metadata. Those before the last one are kept beside it (`prunus.training.kept`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunus.errors import FileFormatError
from prunus.files import load_tensors, save_tensors
from prunus.training.hook import Hook
from prunus.training.kept import read_newest, way_out, write_newest
from prunus.training.randomness import capture_random_states, restore_random_states
from prunus.training.recipe import Recipe

FORMAT_VERSION = 1
_WHAT = "checkpoint"
_KEY = "prunus_checkpoint"  # of the JSON in the metadata
_LATER = {
    "accumulate": 1,
    "mixup": 0.0,
    "optimizer": "sgd",
    "sync_batchnorm": False,
}  # what a recipe had not when there were checkpoints; at these values nothing differs


class Position(BaseModel):
    """How far an unfinished epoch is: steps done, sums over them, seconds, and the epoch's generator in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(default=0, ge=0)
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    generator: str = ""


class Checkpoint(BaseModel):
    """What a checkpoint holds beside tensors; `position` lies in the epoch after those of the history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history: list[dict[str, Any]] = []
    finished: bool = False
    hook_state: dict[str, Any] = {}
    position: Position = Position()


class _Header(Checkpoint):
    format_version: int
    run: dict[str, Any]
    random: dict[str, Any]


@dataclass(frozen=True)
class CheckpointStore:
    """Where the checkpoints of one training lie (None: it has none), what they are of, and what they put back.

    The last `kept` stay on the disk.
    """

    path: Path | None
    run: Mapping[str, Any]
    model: nn.Module
    optimiser: torch.optim.Optimizer
    device: torch.device
    average: AveragedModel | None = None
    kept: int = 2


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint as it was read; nothing of it is in the network yet."""

    file: Path
    content: Checkpoint
    random: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def checkpoint_path(folder: Path | str | None, stage: str) -> Path | None:
    """Name the checkpoint of a training."""
    return None if folder is None else Path(folder) / f"{stage}.ckpt.safetensors"


def describe_run(
    recipe: Recipe,
    stage: str,
    seed: int,
    hook: Hook | None,
    teacher: nn.Module | None,
    train_labels: Tensor,
    val_labels: Tensor,
) -> dict[str, Any]:
    """Describe a training, so that a checkpoint of another one is not taken for it."""
    told = dataclasses.asdict(recipe)
    return {
        **{name: value for name, value in told.items() if name not in _LATER or value != _LATER[name]},
        "stage": stage,
        "seed": seed,
        "hook": type(hook).__name__ if hook else "none",
        "teacher": _digest(*teacher.state_dict().values()) if teacher else "none",
        "training images": len(train_labels),
        "validation images": len(val_labels),
        "labels": _digest(train_labels, val_labels),
    }


def _digest(*tensors: Tensor) -> str:
    """Hash what tensors hold: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def save_checkpoint(store: CheckpointStore, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the one that was there becomes `<stage>.ckpt.1.safetensors`."""
    if store.path is None:
        return
    random_tensors, random = capture_random_states(store.device)
    header = _Header(**dict(checkpoint), format_version=FORMAT_VERSION, run=dict(store.run), random=random)
    tensors = {f"model/{name}": tensor for name, tensor in store.model.state_dict().items()}
    if store.average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in store.average.state_dict().items()}
    tensors |= {f"momentum/{name}": buffer for name, buffer in _momentum(store.model, store.optimiser).items()}
    tensors |= {f"random/{name}": tensor for name, tensor in random_tensors.items()}
    metadata = {_KEY: json.dumps(header.model_dump(), allow_nan=False)}
    write_newest(store.path, store.kept, lambda path: save_tensors(path, tensors, metadata))


def find_checkpoint(store: CheckpointStore) -> FoundCheckpoint | None:
    """Read the newest sound checkpoint, and put nothing back; None where there is none.

    One that is damaged is passed over, which is said on stderr.

    Raises:
        FileFormatError: all are damaged, or the newest sound one is no checkpoint, or of another training.
    """
    path = store.path
    if path is None or not (newest := read_newest(path, _read_tensors, _say)):
        return None
    file, (tensors, metadata) = newest
    try:
        header = _read_header(file, metadata)
        if header.run != dict(store.run):
            raise FileFormatError(f"the {_WHAT} {file} is of another training: {_differences(header.run, store.run)}")
    except FileFormatError as error:
        raise FileFormatError(f"{error}; {way_out(path)}") from error
    content = Checkpoint(**{name: getattr(header, name) for name in Checkpoint.model_fields})
    return FoundCheckpoint(file, content, header.random, tensors)


def restore_checkpoint(store: CheckpointStore, found: FoundCheckpoint) -> Checkpoint:
    """Put network, average, optimiser and random generators back as the checkpoint has them.

    Raises:
        FileFormatError: it does not fit the network or the generators; the network and the optimiser are as they were.
    """
    assert store.path is not None
    source, tensors = found.file, found.tensors
    try:
        weights, buffers, states = (_under(prefix, tensors) for prefix in ("model/", "momentum/", "random/"))
        _check_fit(source, weights, store.model.state_dict(), complete=True)
        averages = _under("average/", tensors)
        if store.average is not None:
            _check_fit(source, averages, store.average.state_dict(), complete=True)
        _check_fit(source, buffers, dict(store.model.named_parameters()), complete=False)
        restore_random_states(states, found.random, store.device)
    except FileFormatError as error:
        raise FileFormatError(f"{error}; {way_out(store.path)}") from error
    store.model.load_state_dict(weights)
    if store.average is not None:
        store.average.load_state_dict(averages)
    for name, parameter in store.model.named_parameters():
        if name in buffers:
            store.optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffers[name])
    return found.content


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return load_tensors(path, _WHAT)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _read_header(path: Path, metadata: Mapping[str, str]) -> _Header:
    if _KEY not in metadata:
        raise FileFormatError(f"{path} is a safetensors file, but not a {_WHAT} of Prunus")
    try:
        content = json.loads(metadata[_KEY])
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise FileFormatError(f"the {_WHAT} {path} has format {version!r}, and this Prunus reads {FORMAT_VERSION}")
        return _Header.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FileFormatError(f"the {_WHAT} {path} has a bad entry {where!r}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"the {_WHAT} {path} has metadata that is not JSON: {error}") from error


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    return ", ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in names)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_fit(path: Path, there: Mapping[str, Tensor], here: Mapping[str, Tensor], *, complete: bool) -> None:
    """Refuse tensors that are not those of the network, before any is copied."""
    strange = sorted(there.keys() - here.keys()) + (sorted(here.keys() - there.keys()) if complete else [])
    for name in strange:
        raise FileFormatError(f"the {_WHAT} {path} is of another network: only one of the two has {name}")
    for name, tensor in there.items():
        if (tensor.shape, tensor.dtype) != (here[name].shape, here[name].dtype):
            described = " and ".join(
                f"{tuple(t.shape)} {t.dtype} {w}" for t, w in ((tensor, "there"), (here[name], "here"))
            )
            raise FileFormatError(f"the {_WHAT} {path} is of another network: {name} is {described}")


def _momentum(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name the optimiser's buffers after the parameters; one that never had a gradient has none."""
    states = {name: optimiser.state.get(parameter, {}) for name, parameter in model.named_parameters()}
    return {
        name: state["momentum_buffer"] for name, state in states.items() if state.get("momentum_buffer") is not None
    }
