"""Model files: safetensors, with a JSON header that says what network the tensors make. No pickle.

`save` writes any network; `load` rebuilds those of the zoo alone, and others from the factory that made them before
they were pruned.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.deploy.header import (
    FORMAT_VERSION,
    METADATA_KEY,
    ModelHeader,
    encode_plan,
    parse_header,
)
from prunus.errors import FileFormatError, ModelError, PrunusError
from prunus.files import load_tensors, save_tensors
from prunus.graph.channels import ChannelGraph
from prunus.models import MODELS, build_model
from prunus.plan import PruningPlan, plan_from_keep
from prunus.surgery import Attributes, apply_attributes, module_attributes

_WHAT = "model file"
_UNSAVED = "unsaved:"  # before the name of a buffer that is in no state dict, but may have been cut
_ANY_SIDES = (32, 32)  # height and width that every network of the zoo takes
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def save(
    model: nn.Module,
    path: str | Path,
    *,
    model_name: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    plan: PruningPlan | None = None,
    input_shape: Sequence[int] | None = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    extra: Mapping[str, str | int | float | bool | None] | None = None,
) -> int:
    """Write a network, pruned or not, to one safetensors file, atomically, and return the file's size in bytes.

    Args:
        model: any network; its state dict and its modules' sizes are stored, no code.
        path: the file; parent folders are made.
        model_name: key of MODELS that built it, so that `load` needs no factory.
        num_classes: what the zoo's builder was given; required with `model_name`.
        in_channels: what the zoo's builder was given; required with `model_name`.
        plan: which channels of the original stayed, to be kept with the file.
        input_shape: of one example, (C, H, W).
        classes: class names, in the order of the logits.
        mean: of the input's channels, on the 0..1 scale.
        std: of the input's channels, on the 0..1 scale.
        extra: further plain values of yours.

    Raises:
        ModelError: `model_name` is not in the zoo, or comes without its arguments.
    """
    if model_name is not None and (model_name not in MODELS or num_classes is None or in_channels is None):
        build_model(model_name)  # an unknown name: the zoo's own error, with the near match
        raise ModelError(f"saving a {model_name} needs num_classes and in_channels, so that load can rebuild it")
    header = ModelHeader(
        format_version=FORMAT_VERSION,
        prunus_version=prunus.__version__,
        model=model_name,
        num_classes=num_classes,
        in_channels=in_channels,
        input_shape=None if input_shape is None else tuple(input_shape),
        classes=tuple(classes),
        mean=tuple(mean),
        std=tuple(std),
        attributes={
            module: {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}
            for module, sizes in module_attributes(model).items()
        },
        plan=encode_plan(plan),
        extra=dict(extra or {}),
    )
    text = json.dumps(header.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=False)
    save_tensors(path, {**model.state_dict(), **_unsaved(model)}, {METADATA_KEY: text})
    return Path(path).stat().st_size


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that the state dict leaves out, under names of their own; a factory makes them uncut."""
    saved = model.state_dict(keep_vars=True)
    buffers = model.named_buffers(remove_duplicate=False)
    return {_UNSAVED + name: buffer for name, buffer in buffers if name not in saved and buffer.dim()}


def header_bytes(model: nn.Module, graph: ChannelGraph, **same: Any) -> int:
    """Return how many bytes a file by `save` needs beside its tensors, at most, whatever plan prunes `model`.

    The header of the whole network bounds that of any smaller one: no number in it has fewer digits, and a plan takes
    the same space however many channels it keeps. `same` are the keywords that `save` will get, without the plan.
    """
    whole = plan_from_keep(graph, graph.keep_all())
    with tempfile.TemporaryDirectory() as folder:
        total = save(model, Path(folder) / "whole.safetensors", plan=whole, **same)
    held: int = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return total - held


def read_header(path: str | Path) -> ModelHeader:
    """Read what a model file says of itself; FileFormatError where it is none, or broken."""
    return _header_of(load_tensors(path, what=_WHAT)[1], path)


def load(path: str | Path, factory: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Rebuild the network that `save` wrote, on the CPU and in eval mode; nothing in the file is executed.

    Args:
        path: the file.
        factory: makes the network as it was before pruning, e.g. ``lambda: MyNet(num_classes=5)``. Networks of the zoo
            need none.

    Raises:
        FileFormatError: the file is cut short, corrupt, hostile, or does not fit the network.
        ModelError: the file is of a network outside the zoo and no factory is given.
    """
    tensors, metadata = load_tensors(path, what=_WHAT)
    header = _header_of(metadata, path)
    unsaved = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_UNSAVED)}
    model = _empty_network(header, factory, path)
    try:
        apply_attributes(model, _as_lists(header.attributes))
    except (PrunusError, ValueError, TypeError) as error:
        raise FileFormatError(f"the model file {path} has attributes that do not fit the network: {error}") from error
    _check_tensors(model, tensors, path)
    _assign(model, {**tensors, **_fitting(model, unsaved)})
    if factory is None:
        _check_shapes(model, header, path)
    return model.eval()


def _header_of(metadata: Mapping[str, str], path: str | Path) -> ModelHeader:
    if METADATA_KEY not in metadata:
        raise FileFormatError(
            f"the file {path} has no Prunus header: it holds tensors alone. "
            "Build the network yourself and use its load_state_dict with safetensors.torch.load_file"
        )
    return parse_header(metadata[METADATA_KEY], str(path))


def _empty_network(header: ModelHeader, factory: Callable[[], nn.Module] | None, path: str | Path) -> nn.Module:
    if factory is not None:
        return factory()
    if header.model is None:
        raise ModelError(
            f"{path} holds a network from outside the zoo: give the function that builds it unpruned, "
            "prunus.load(path, factory=lambda: MyNet())"
        )
    if header.num_classes is None or header.in_channels is None:
        raise FileFormatError(f"the model file {path} names {header.model} without num_classes and in_channels")
    with torch.device("meta"):  # sizes only: whatever the header asks for, nothing is allocated
        try:
            return build_model(header.model, num_classes=header.num_classes, in_channels=header.in_channels)
        except ModelError as error:
            raise FileFormatError(f"the model file {path} cannot be rebuilt: {error}") from error


def _as_lists(attributes: Mapping[str, Mapping[str, Any]]) -> Attributes:
    return {
        module: {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}
        for module, sizes in attributes.items()
    }


def _check_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    expected = model.state_dict()
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) > len({tensor.dtype for tensor in expected.values() if tensor.is_floating_point()}):
        raise FileFormatError(f"the model file {path} mixes number types: {', '.join(sorted(map(str, kinds)))}")
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    if missing or extra:
        lacks = f"lacks {_few(missing)}" if missing else ""
        has = f"has {_few(extra)}, which the network does not" if extra else ""
        raise FileFormatError(f"the model file {path} {' and '.join(part for part in (lacks, has) if part)}")
    for name, wanted in expected.items():
        found = tensors[name]
        same_kind = found.dtype == wanted.dtype or (found.dtype in _FLOATS and wanted.dtype in _FLOATS)
        if not same_kind or found.ndim != wanted.ndim:
            raise FileFormatError(
                f"the model file {path} has {name} as {found.dtype} with {found.ndim} axes, "
                f"where the network has {wanted.dtype} with {wanted.ndim}"
            )


def _fitting(model: nn.Module, unsaved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of the file's buffers that the network has too, outside its state dict; forward makes others."""
    ours = {name: buffer for name, buffer in _unsaved(model).items() if name in unsaved}
    return {
        name.removeprefix(_UNSAVED): unsaved[name]
        for name, buffer in ours.items()
        if (unsaved[name].dtype, unsaved[name].ndim) == (buffer.dtype, buffer.ndim)
    }


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the file's tensors in the place of the network's, whatever their shapes; shared ones stay shared."""
    made: dict[int, Any] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, old in list(module._parameters.items()):
            if old is not None:
                new = made.setdefault(id(old), nn.Parameter(tensors[prefix + name], requires_grad=old.requires_grad))
                module._parameters[name] = new
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and prefix + name in tensors:
                module._buffers[name] = made.setdefault(id(buffer), tensors[prefix + name])


def _check_shapes(model: nn.Module, header: ModelHeader, path: str | Path) -> None:
    """Run a zoo network on shapes alone: tensors, attributes and input must agree with each other."""
    shape = header.input_shape or (header.in_channels, *_ANY_SIDES)
    sizes = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    example = torch.empty((1, *shape), device="meta", dtype=next(model.parameters()).dtype)
    try:
        with torch.inference_mode():
            logits = torch.func.functional_call(model.eval(), sizes, (example,))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise FileFormatError(f"the model file {path} has tensors that do not fit each other: {reason}") from error
    if logits.shape[-1] != header.num_classes:
        raise FileFormatError(
            f"the model file {path} has tensors for {logits.shape[-1]} classes, and says {header.num_classes}"
        )
