"""Remove channels from a copy of a network. Only this file changes a shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.collector import uncollected
from prunus.errors import SurgeryError
from prunus.graph.channels import ChannelGraph, Keep, LabelledTensor
from prunus.graph.fitting import BATCH_NORMS, CONVOLUTIONS, copied, fit, put
from prunus.graph.members import Members
from prunus.graph.ordering import kept_runs
from prunus.plan import PruningPlan

Sizes = int | list[int] | dict[str, int]
"""What one attribute counts: a number, the entries of a tuple or list, or those of a dict."""

Attributes = dict[str, dict[str, Sizes]]
"""Sizes by module and attribute: ``{"conv1": {"in_channels": 3, "out_channels": 9, "groups": 1}}``."""

LARGEST_COUNT = 1_000_000


def remove(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """Return a smaller copy of `model` without the channels that `plan` drops; `model` stays as it is.

    The copy is an ordinary module of the same classes, with the same devices, types and modes.

    Args:
        model: the network that `graph` was traced from.
        graph: its channel graph.
        plan: which channels of each group stay.

    Raises:
        PlanError: the plan does not fit the graph.
        SurgeryError: the graph does not fit the model.
    """
    with uncollected():
        members = Members(model)
        keep = plan.keep_array(graph)
        chosen = _selections(model, members, graph, keep)
        memo: dict[int, Tensor] = {}
        for name, tensor in members.tensors:
            if id(tensor) not in memo:
                memo[id(tensor)] = _smaller(tensor, chosen[name])
        pruned = copied(model, memo)
        for setting in graph.settings:
            put(pruned, setting, keep)
        fit(pruned)
        return pruned


def _smaller(tensor: Tensor, selection: Selection) -> Tensor:
    """Return what stays of a parameter or buffer as a tensor of its own, laid out in memory as it was."""
    data = selection.take(tensor)
    if data is tensor or data.data_ptr() == tensor.data_ptr():
        data = tensor.detach().clone()
    if data.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        data = data.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


class Selection:
    """Which elements of one state-dict tensor stay, and in which order: the kept indices along its axes.

    `rows` are the kept indices along single axes; `columns`, (rows, kept), those along axis 1 where they differ from
    row to row (a grouped convolution's).
    """

    def __init__(self, shape: tuple[int, ...], rows: Mapping[int, Tensor], columns: Tensor | None = None) -> None:
        self.shape = shape
        self._rows = dict(rows)
        self._columns = columns

    def take(self, tensor: Tensor) -> Tensor:
        """Return what stays of a tensor of the original's shape: the weight, its gradient or its momentum."""
        taken = tensor.detach()
        for axis, index in sorted(self._rows.items(), key=lambda item: len(item[1]) / tensor.shape[item[0]]):
            taken = taken.index_select(axis, index.to(tensor.device))
        if self._columns is not None:
            index = self._columns.to(tensor.device)
            index = index.view(*index.shape, *[1] * (taken.dim() - 2)).expand(-1, -1, *taken.shape[2:])
            taken = taken.gather(1, index)
        return taken


def selections(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> dict[str, Selection]:
    """Return, by state-dict name, which elements of every parameter and buffer `remove` keeps.

    Args:
        model: the network that `graph` was traced from; it is only looked at.
        graph: its channel graph.
        plan: which channels of each group stay.

    Raises:
        PlanError: the plan does not fit the graph.
        SurgeryError: the graph does not fit the model.
    """
    return _selections(model, Members(model), graph, plan.keep_array(graph))


def _selections(model: nn.Module, members: Members, graph: ChannelGraph, keep: Keep) -> dict[str, Selection]:
    _check_shapes(members, graph)
    if graph.order is not None and not keep.all():
        return {
            name: Selection(shape, {axis: torch.from_numpy(index) for axis, index in rows.items()}, columns)
            for name, (shape, rows, columns) in kept_runs(model, graph, keep).items()
        }
    places: dict[int, Tensor | None] = {}
    return {name: _selection(labelled, keep, places) for name, labelled in graph.tensors.items()}


def _selection(labelled: LabelledTensor, keep: Keep, places: dict[int, Tensor | None]) -> Selection:
    """Keep what stays of a tensor in its own order; `places` holds what stays along the fields that were seen."""
    if len(labelled.fields) == 1 and len(labelled.shape) == 1:
        field = labelled.fields[0]
        if id(field) not in places:
            stays = np.flatnonzero(keep[field])
            places[id(field)] = torch.from_numpy(stays) if len(stays) < len(field) else None
        index = places[id(field)]
        return Selection((len(field if index is None else index),), {} if index is None else {0: index})
    rows: dict[int, Tensor] = {}
    columns = None
    for axis, fields in labelled.running().items():
        flags = keep[fields[0]]
        for field in fields[1:]:
            flags = flags & keep[field]
        if flags.all():
            continue
        if flags.size == flags.shape[axis]:
            rows[axis] = torch.from_numpy(np.flatnonzero(flags))
        else:
            columns = flags.reshape(flags.shape[0], flags.shape[1])
    shape = labelled.kept_shape(keep)
    if columns is None:
        return Selection(shape, rows)
    if len(columns) < labelled.shape[0]:
        columns = np.broadcast_to(columns, (labelled.shape[0], columns.shape[1]))
    alive = columns[rows[0].numpy()] if 0 in rows else columns
    return Selection(shape, rows, torch.from_numpy(np.nonzero(alive)[1].reshape(len(alive), -1)))


def module_attributes(model: nn.Module) -> Attributes:
    """Return the sizes that surgery may have changed, by module and attribute, as plain data for a file.

    Of torch's modules these are the sizes that they are known to keep; of a user's, every public attribute that holds a
    count, or a tuple, list or dict of counts, whatever it counts: which of them surgery has set, a network cannot say.
    """
    held = ((name, _sizes_of(module)) for name, module in model.named_modules())
    return {name: {key: _plain(value) for key, value in sizes.items()} for name, sizes in held if sizes}


def apply_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Sizes]]) -> None:
    """Give a network's modules the sizes that `module_attributes` returned for another of the same structure.

    Only counts are set, and only where the network holds counts already. What a user's forward makes itself, and this
    network has not made yet, is left to forward.

    Raises:
        SurgeryError: a module or an attribute is not one that the network has, or a size is not a count.
    """
    modules = dict(model.named_modules())
    for name, sizes in attributes.items():
        if name not in modules:
            raise SurgeryError(f"there is no module {name!r} in this {type(model).__name__}; is it the right network?")
        module = modules[name]
        held = _sizes_of(module)
        for key, value in sizes.items():
            if key in held and _alike(_plain(held[key]), value):
                setattr(module, key, _counted(held[key], value, name, key))
            elif not _made_by_forward(module, key):
                spot = f"{name}.{key}" if name else key
                raise SurgeryError(f"{spot} of a {type(module).__name__} is no size that could be {value!r}.")


def _plain(value: Any) -> Sizes:
    """Return counts as a file holds them."""
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    return int(value) if isinstance(value, int) else list(value)


def _alike(held: Sizes, value: object) -> bool:
    """Say whether a file's value has the structure of what a module holds."""
    if isinstance(held, list):
        return isinstance(value, list) and len(value) == len(held)
    if isinstance(held, dict):
        return isinstance(value, dict) and value.keys() == held.keys()
    return type(value) is int


def _counted(held: Any, value: Any, module: str, key: str) -> Any:
    """Return a file's counts in the kind of container that the module has."""
    if isinstance(held, dict):
        return type(held)({own: _count(module, key, value[str(own)]) for own in held})
    if isinstance(held, (list, tuple)):
        return type(held)(_count(module, key, item) for item in value)
    return _count(module, key, value)


def _made_by_forward(module: nn.Module, key: str) -> bool:
    """Say whether a user's module may get this attribute, or its length, in forward: nothing is there, or no count."""
    held = vars(module).get(key)
    if not _is_own(module) or hasattr(nn.Module(), key):
        return False
    return type(held) in (int, list, dict) or (held is None and (key in vars(module) or not hasattr(module, key)))


def _count(module: str, key: str, value: object) -> int:
    if not _is_count(value):
        raise SurgeryError(
            f"the size {key!r} of module {module!r} is {value!r}; it should be a count from 0 to 1,000,000."
        )
    return value  # type: ignore[return-value]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_COUNT


def _is_own(module: nn.Module) -> bool:
    """Say whether a module is a user's; what torch's keep is known by name, the rest are kernel sizes and the like."""
    return not type(module).__module__.startswith("torch.")


def _sizes_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that hold counts of channels, or may."""
    found = {key: getattr(module, key) for key in _size_names(module) if _holds_counts(getattr(module, key, None))}
    if _is_own(module):
        for key, value in vars(module).items():
            if (key[0] != "_" or isinstance(value, tuple)) and _holds_counts(value):
                found.setdefault(key, value)
    return found


def _holds_counts(value: object) -> bool:
    """Say whether a value is a count, or a tuple, list or dict of nothing else."""
    if isinstance(value, dict):
        return (
            type(value) is dict
            and bool(value)
            and len({*map(str, value)}) == len(value)
            and all(type(key) in (int, str) and _is_count(item) for key, item in value.items())
        )
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple, torch.Size) and len(value) > 0 and all(map(_is_count, value))
    return _is_count(value)


_KEPT_SIZES: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    ((CONVOLUTIONS,), ("in_channels", "out_channels", "groups")),
    ((BATCH_NORMS,), ("num_features",)),
    ((nn.Linear,), ("in_features", "out_features")),
    ((nn.PReLU,), ("num_parameters",)),
    ((nn.GroupNorm,), ("num_groups", "num_channels")),
    ((nn.LayerNorm, nn.RMSNorm), ("normalized_shape",)),
    ((nn.Unflatten,), ("unflattened_size",)),
    ((nn.ChannelShuffle,), ("groups",)),
    (
        (
            nn.modules.padding._ConstantPadNd,
            nn.modules.padding._ReflectionPadNd,
            nn.modules.padding._ReplicationPadNd,
            nn.modules.padding._CircularPadNd,
        ),
        ("padding",),
    ),
)
"""The sizes that torch's modules keep as attributes, by class."""


def _size_names(module: nn.Module) -> tuple[str, ...]:
    return next((names for kinds, names in _KEPT_SIZES if isinstance(module, kinds)), ())


def _check_shapes(members: Members, graph: ChannelGraph) -> None:
    """Refuse a model that is not the one the graph was traced from."""
    held = {name: tuple(tensor.shape) for name, tensor in members.tensors}
    for name, labelled in graph.tensors.items():
        if held.get(name) != labelled.shape:
            raise SurgeryError(
                f"the graph was traced from another network: {name} is {held.get(name, 'missing')} here and "
                f"{labelled.shape} there. Trace this model again: graph = prunus.trace(model, example_inputs)."
            )
