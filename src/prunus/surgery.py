"""Remove channels from a copy of a network. Only this file changes a shape."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.errors import SurgeryError
from prunus.graph.channels import ChannelGraph, Keep, LabelledTensor
from prunus.plan import PruningPlan

Attributes = dict[str, dict[str, int | list[int]]]
"""Sizes by module and attribute: ``{"conv1": {"in_channels": 3, "out_channels": 9, "groups": 1}}``."""

_CONVOLUTIONS = nn.modules.conv._ConvNd
_BATCH_NORMS = nn.modules.batchnorm._NormBase


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
    keep = plan.keep_array(graph)
    _check_shapes(model, graph)
    pruned = copy.deepcopy(model)
    done: dict[int, Tensor] = {}
    for name, labelled in graph.tensors.items():
        owner, attribute = _locate(pruned, name)
        old = getattr(owner, attribute)
        if id(old) not in done:
            done[id(old)] = _kept(old, labelled, keep)
        if done[id(old)] is not old:
            _put(owner, attribute, done[id(old)])
    for name, module in pruned.named_modules():
        _fit_sizes(name, module)
    for setting in graph.settings:
        holder = pruned.get_submodule(setting.module)
        setattr(holder, setting.attribute, tuple(int(keep[part].sum()) for part in setting.parts))
    return pruned


class Selection:
    """Which elements of one state-dict tensor stay, and in which order."""

    def __init__(self, labelled: LabelledTensor, keep: Keep) -> None:
        self._labelled = labelled
        self._keep = keep
        self.shape = labelled.kept_shape(keep)

    def take(self, tensor: Tensor) -> Tensor:
        """Return what stays of a tensor of the original's shape: the weight, its gradient or its momentum."""
        mask = torch.from_numpy(self._labelled.keep_mask(self._keep)).to(tensor.device).expand(tensor.shape)
        return tensor.detach()[mask].reshape(self.shape)


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
    return {name: Selection(labelled, keep) for name, labelled in graph.tensors.items()}


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
    if isinstance(module, _CONVOLUTIONS):
        return ("in_channels", "out_channels", "groups")
    if isinstance(module, _BATCH_NORMS):
        return ("num_features",)
    if isinstance(module, nn.Linear):
        return ("in_features", "out_features")
    if isinstance(module, nn.PReLU):
        return ("num_parameters",)
    return ()


def _fit_sizes(name: str, module: nn.Module) -> None:
    """Set the sizes that a standard module keeps beside its tensors to what the tensors say."""
    if isinstance(module, _CONVOLUTIONS):
        first, second = module.weight.shape[:2]
        if module.groups == module.in_channels and module.groups > 1 and not module.transposed:
            module.groups = first // (module.out_channels // module.in_channels)
        inner, outer = (first, second) if module.transposed else (second, first)
        module.in_channels = first if module.transposed else inner * module.groups
        module.out_channels = outer * module.groups if module.transposed else outer
    elif isinstance(module, _BATCH_NORMS):
        sized = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if sized is None else len(sized)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _kept(tensor: Tensor, labelled: LabelledTensor, keep: Keep) -> Tensor:
    """Return what stays of a tensor, in its order; the tensor itself where all of it stays."""
    shape = labelled.kept_shape(keep)
    if shape == tuple(tensor.shape):
        return tensor
    mask = torch.from_numpy(labelled.keep_mask(keep)).to(tensor.device).expand(tensor.shape)
    data = tensor.detach()[mask].reshape(shape)
    if data.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        data = data.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _locate(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _put(owner: nn.Module, attribute: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        owner._parameters[attribute] = tensor
    else:
        owner._buffers[attribute] = tensor


def _check_shapes(model: nn.Module, graph: ChannelGraph) -> None:
    """Refuse a model that is not the one the graph was traced from."""
    held = {
        name: tuple(tensor.shape)
        for name, tensor in [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
    }
    for name, labelled in graph.tensors.items():
        if held.get(name) != labelled.shape:
            raise SurgeryError(
                f"the graph was traced from another network: {name} is {held.get(name, 'missing')} here and "
                f"{labelled.shape} there. Trace this model again: graph = prunus.trace(model, example_inputs)."
            )
