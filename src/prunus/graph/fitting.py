"""Set the sizes that modules keep beside their tensors to what the tensors say."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunus.graph.channels import Keep, SizeSetting

CONVOLUTIONS = nn.modules.conv._ConvNd
BATCH_NORMS = nn.modules.batchnorm._NormBase


def fit(model: nn.Module) -> None:
    """Set the sizes of every standard module of a network whose tensors were made smaller."""
    for module in model.modules():
        _fit(module)


def _fit(module: nn.Module) -> None:
    if isinstance(module, CONVOLUTIONS):
        first, second = getattr(module, "weight_v", module.weight).shape[:2]
        old_in, old_out = module.in_channels, module.out_channels
        if module.groups == old_in and module.groups > 1:
            module.groups = first if module.transposed else first // (old_out // old_in)
        inner, outer = (first, second) if module.transposed else (second, first)
        module.in_channels = first if module.transposed else inner * module.groups
        module.out_channels = outer * module.groups if module.transposed else outer
    elif isinstance(module, BATCH_NORMS):
        sized = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if sized is None else len(sized)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        each = module.num_groups == module.num_channels
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels if each else module.num_groups
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def plain_tensors(model: nn.Module) -> dict[int, Any]:
    """Return what `copy.deepcopy` must be told of tensors that modules hold as plain attributes.

    Such a one may be the result of a computation (a weight norm's), which it refuses to copy.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


def put(model: nn.Module, setting: SizeSetting, keep: Keep) -> None:
    """Set a number that a module stores to what it counts now."""
    module = model.get_submodule(setting.module)
    sizes = setting.sizes(keep)
    if setting.is_number:
        setattr(module, setting.attribute, sizes[0])
        return
    held = getattr(module, setting.attribute)
    if setting.index is None:
        setattr(module, setting.attribute, type(held)(sizes))
    elif isinstance(held, dict):
        setattr(module, setting.attribute, {**held, setting.index: sizes[0]})
    else:
        items = [sizes[0] if i == setting.index else item for i, item in enumerate(held)]
        setattr(module, setting.attribute, type(held)(items))
