"""Remove channels from a copy of a network. Only this file changes a shape."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import SurgeryError
from prunus.graph.channels import ChannelGraph, Keep, LabelledTensor
from prunus.graph.fitting import BATCH_NORMS, CONVOLUTIONS, fit, plain_tensors, put
from prunus.graph.ordering import kept_runs
from prunus.graph.running import named_tensors
from prunus.plan import PruningPlan

Attributes = dict[str, dict[str, int | list[int]]]
"""Sizes by module and attribute: ``{"conv1": {"in_channels": 3, "out_channels": 9, "groups": 1}}``."""



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
    chosen = selections(model, graph, plan)
    keep = plan.keep_array(graph)
    memo = plain_tensors(model)
    for name, tensor in named_tensors(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = _smaller(tensor, chosen[name])
    pruned = copy.deepcopy(model, memo)
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
    keep = plan.keep_array(graph)
    _check_shapes(model, graph)
    if graph.order is not None and not keep.all():
        return {
            name: Selection(shape, {axis: torch.from_numpy(index) for axis, index in rows.items()}, columns)
            for name, (shape, rows, columns) in kept_runs(model, graph, keep).items()
        }
    return {name: _selection(labelled, keep) for name, labelled in graph.tensors.items()}


def _selection(labelled: LabelledTensor, keep: Keep) -> Selection:
    """Keep what stays of a tensor in its own order."""
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
    """Return the sizes that surgery may have changed, by module and attribute, as plain data for a file."""
    found: Attributes = {}
    for name, module in model.named_modules():
        sizes = {key: getattr(module, key) for key in _size_names(module)}
        tuples = {key: list(value) for key, value in vars(module).items() if _is_count_tuple(module, value)}
        if sizes or tuples:
            found[name] = {**sizes, **tuples}
    return found


def apply_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, int | list[int]]]) -> None:
    """Give a network's modules the sizes that `module_attributes` returned for another of the same structure.

    Raises:
        SurgeryError: a module or an attribute is not one that the network has, or a size is not a count.
    """
    modules = dict(model.named_modules())
    for name, sizes in attributes.items():
        if name not in modules:
            raise SurgeryError(f"there is no module {name!r} in this {type(model).__name__}; is it the right network?")
        module = modules[name]
        allowed = {*_size_names(module), *(k for k, v in vars(module).items() if _is_count_tuple(module, v))}
        for key, value in sizes.items():
            old = getattr(module, key, None) if key in allowed else None
            if isinstance(old, tuple) and isinstance(value, list) and len(value) == len(old):
                setattr(module, key, tuple(_count(name, key, item) for item in value))
            elif isinstance(old, int) and isinstance(value, int):
                setattr(module, key, _count(name, key, value))
            else:
                raise SurgeryError(f"{type(module).__name__} {name!r} has no size {key!r} that could be {value!r}.")


def _count(module: str, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
        raise SurgeryError(
            f"the size {key!r} of module {module!r} is {value!r}; it should be a count from 0 to 1,000,000."
        )
    return value


def _is_count_tuple(module: nn.Module, value: object) -> bool:
    """Say whether a value is a tuple of counts in a user's module; torch's own tuples are kernel sizes and the like."""
    own = not type(module).__module__.startswith("torch.")
    return own and isinstance(value, tuple) and len(value) > 0 and all(type(item) is int for item in value)


def _size_names(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, CONVOLUTIONS):
        return ("in_channels", "out_channels", "groups")
    if isinstance(module, BATCH_NORMS):
        return ("num_features",)
    if isinstance(module, nn.Linear):
        return ("in_features", "out_features")
    if isinstance(module, nn.PReLU):
        return ("num_parameters",)
    if isinstance(module, nn.GroupNorm):
        return ("num_groups", "num_channels")
    return ()


def _check_shapes(model: nn.Module, graph: ChannelGraph) -> None:
    """Refuse a model that is not the one the graph was traced from."""
    held = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    for name, labelled in graph.tensors.items():
        if held.get(name) != labelled.shape:
            raise SurgeryError(
                f"the graph was traced from another network: {name} is {held.get(name, 'missing')} here and "
                f"{labelled.shape} there. Trace this model again: graph = prunus.trace(model, example_inputs)."
            )
