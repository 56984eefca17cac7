"""Checkpoints: everything a training needs to go on as if it had never stopped.

One safetensors file a training: the network's tensors under `model/`, those of its moving average, where it has one,
under `average/`, the optimiser's momentum under `momentum/`, the states of the random generators under `random/`; the
rest is JSON in the metadata. The checkpoint before the last one is kept beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunus.errors import FileFormatError
from prunus.files import load_tensors, save_tensors
from prunus.training.hook import Hook
from prunus.training.randomness import capture_random_states, restore_random_states
from prunus.training.recipe import Recipe

FORMAT_VERSION = 1
_WHAT = "checkpoint"
_KEY = "prunus_checkpoint"  # of the JSON in the metadata


class Checkpoint(BaseModel):
    """What a checkpoint holds beside tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history: list[dict[str, Any]]
    finished: bool
    hook_state: dict[str, Any]


class _Header(Checkpoint):
    format_version: int
    run: dict[str, Any]
    random: dict[str, Any]


@dataclass(frozen=True)
class CheckpointStore:
    """Where the checkpoints of one training lie (None: it has none), what they are of, and what they put back."""

    path: Path | None
    run: Mapping[str, Any]
    model: nn.Module
    optimiser: torch.optim.Optimizer
    device: torch.device
    average: AveragedModel | None = None


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
    return {
        **dataclasses.asdict(recipe),
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
    """Write a checkpoint; the one that was there becomes `<stage>.ckpt.prev.safetensors`."""
    if store.path is None:
        return
    random_tensors, random = capture_random_states(store.device)
    header = _Header(**dict(checkpoint), format_version=FORMAT_VERSION, run=dict(store.run), random=random)
    tensors = {f"model/{name}": tensor for name, tensor in store.model.state_dict().items()}
    if store.average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in store.average.state_dict().items()}
    tensors |= {f"momentum/{name}": buffer for name, buffer in _momentum(store.model, store.optimiser).items()}
    tensors |= {f"random/{name}": tensor for name, tensor in random_tensors.items()}
    if store.path.exists():
        store.path.replace(_previous(store.path))
    save_tensors(store.path, tensors, {_KEY: json.dumps(header.model_dump(), allow_nan=False)})


def read_checkpoint(store: CheckpointStore) -> Checkpoint | None:
    """Read what a checkpoint holds beside tensors, and put nothing back; None where there is no checkpoint.

    Raises:
        FileFormatError: as `load_checkpoint`.
    """
    found = _read(store)
    return None if found is None else _plain(found[1])


def load_checkpoint(store: CheckpointStore) -> Checkpoint | None:
    """Put network, average, optimiser and random generators back as the checkpoint has them; None where there is none.

    Raises:
        FileFormatError: the file is damaged, is no checkpoint, or belongs to another training; the network and the
            optimiser are as they were then.
    """
    found = _read(store)
    if found is None:
        return None
    source, header, tensors = found
    try:
        weights, buffers, states = (_under(prefix, tensors) for prefix in ("model/", "momentum/", "random/"))
        _check_fit(source, weights, store.model.state_dict(), complete=True)
        averages = _under("average/", tensors)
        if store.average is not None:
            _check_fit(source, averages, store.average.state_dict(), complete=True)
        _check_fit(source, buffers, dict(store.model.named_parameters()), complete=False)
        restore_random_states(states, header.random, store.device)
    except FileFormatError as error:
        raise FileFormatError(f"{error}; {_way_out(source, store.path)}") from error
    store.model.load_state_dict(weights)
    if store.average is not None:
        store.average.load_state_dict(averages)
    for name, parameter in store.model.named_parameters():
        if name in buffers:
            store.optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffers[name])
    return _plain(header)


def _plain(header: _Header) -> Checkpoint:
    return Checkpoint(history=header.history, finished=header.finished, hook_state=header.hook_state)


def _read(store: CheckpointStore) -> tuple[Path, _Header, dict[str, Tensor]] | None:
    """Read the newest checkpoint: its file, what it says, and its tensors; an error says what to delete."""
    path = store.path
    if path is None:
        return None
    source = path if path.exists() else _previous(path)  # alone where a write was killed between its two renames
    if not source.exists():
        return None
    try:
        tensors, metadata = load_tensors(source, _WHAT)
        header = _read_header(source, metadata)
        if header.run != dict(store.run):
            raise FileFormatError(f"the {_WHAT} {source} is of another training: {_differences(header.run, store.run)}")
    except FileFormatError as error:
        raise FileFormatError(f"{error}; {_way_out(source, path)}") from error
    return source, header, tensors


def _previous(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".safetensors") + ".prev.safetensors")


def _way_out(source: Path, path: Path | None) -> str:
    if path is not None and source == path and _previous(path).exists():
        before = _previous(path).name
        return f"delete it to go on from the epoch before, in {before}, or delete both to start this training again"
    return "delete it to start this training again"


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
