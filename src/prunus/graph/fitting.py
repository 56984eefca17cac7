"""Set the sizes that modules keep beside their tensors to what the tensors say."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.channels import Keep, SizeSetting
from prunus.graph.members import modules_of

CONVOLUTIONS = nn.modules.conv._ConvNd
BATCH_NORMS = nn.modules.batchnorm._NormBase


def fit(model: nn.Module) -> None:
    """Set the sizes of every standard module of a network whose tensors were made smaller."""
    for module in modules_of(model):
        sized = _fit_of(type(module))  # type: ignore[arg-type]  # a class is hashable
        if sized is not None:
            sized(module)


def _weight_shape(module: nn.Module) -> torch.Size:
    """Return the shape of a layer's weight, without computing it where it is computed: that may change the module."""
    for name in ("weight", "weight_v"):
        held = module._parameters.get(name)
        if held is not None:
            return held.shape
    kept = getattr(module, "parametrizations", {})
    if "weight" in kept:
        sources: list[Tensor] = [
            tensor for name, tensor in kept["weight"].named_parameters() if name.startswith("original")
        ]
        return max(sources, key=lambda tensor: tensor.numel()).shape
    assert isinstance(module.weight, Tensor)
    return module.weight.shape


def _fit_convolution(module: Any) -> None:
    first, second = _weight_shape(module)[:2]
    old_in, old_out = module.in_channels, module.out_channels
    if module.groups == old_in and module.groups > 1:
        module.groups = first if module.transposed else first // (old_out // old_in)
    inner, outer = (first, second) if module.transposed else (second, first)
    module.in_channels = first if module.transposed else inner * module.groups
    module.out_channels = outer * module.groups if module.transposed else outer


def _fit_batch_norm(module: Any) -> None:
    sized = module.weight if module.weight is not None else module.running_mean
    module.num_features = module.num_features if sized is None else len(sized)


def _fit_group_norm(module: Any) -> None:
    if module.weight is not None:
        each = module.num_groups == module.num_channels
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels if each else module.num_groups


def _fit_layer_norm(module: Any) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _fit_linear(module: Any) -> None:
    module.out_features, module.in_features = _weight_shape(module)


def _fit_prelu(module: Any) -> None:
    module.num_parameters = len(module.weight)


_FITS: tuple[tuple[type[nn.Module], Callable[[Any], None]], ...] = (
    (CONVOLUTIONS, _fit_convolution),
    (BATCH_NORMS, _fit_batch_norm),
    (nn.GroupNorm, _fit_group_norm),
    (nn.LayerNorm, _fit_layer_norm),
    (nn.RMSNorm, _fit_layer_norm),
    (nn.Linear, _fit_linear),
    (nn.PReLU, _fit_prelu),
)
"""What sets the sizes of a module of a class, or of one made from it."""


@lru_cache(maxsize=1024)
def _fit_of(kind: type) -> Callable[[Any], None] | None:
    return next((found for known, found in _FITS if issubclass(kind, known)), None)


_PLAIN = frozenset({int, float, bool, str, type(None)})
_EMPTY = frozenset({dict, OrderedDict, set})
_SHARED = (int, float, bool, str, bytes, type(None), type, FunctionType, torch.dtype, torch.device)


_COPYING = ("__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__", "__slots__")
"""What a class defines that wants to be copied its own way."""


def copied(model: nn.Module, tensors: Mapping[int, Any]) -> nn.Module:
    """Return a deep copy of a model with other tensors in the place of its own, by id; the rest is copied too."""
    memo: dict[int, Any] = {**plain_tensors(model), **tensors}
    made: nn.Module = _copied(model, memo)
    return made


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Copy a module; several times as fast as `copy.deepcopy`, which does what is out of the ordinary."""
    known = memo.get(id(module))
    if known is not None:
        return known
    kind = type(module)
    if _copies_itself(kind):  # type: ignore[arg-type]  # a class is hashable
        return copy.deepcopy(module, memo)
    made = kind.__new__(kind)
    memo[id(module)] = made
    held = vars(made)
    held.update(vars(module))
    for name, value in vars(module).items():
        form = value.__class__
        if form in _PLAIN:
            continue
        if name == "_modules":
            held[name] = {key: None if child is None else _copied(child, memo) for key, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            held[name] = {key: None if t is None else memo.get(id(t), t) for key, t in value.items()}
        elif form in _EMPTY and not value:
            held[name] = form()
        elif not (isinstance(value, _SHARED) or (form is tuple and all(isinstance(item, _SHARED) for item in value))):
            held[name] = copy.deepcopy(value, memo)
    return made


@lru_cache(maxsize=1024)
def _copies_itself(kind: type) -> bool:
    return any(name in vars(base) for base in kind.__mro__ if base not in (nn.Module, object) for name in _COPYING)


def plain_tensors(model: nn.Module) -> dict[int, Any]:
    """Return what `copy.deepcopy` must be told of tensors that modules hold as plain attributes.

    Such a one may be the result of a computation (a weight norm's), which it refuses to copy.
    """
    return {
        id(value): value.detach().clone()
        for module in modules_of(model)
        for value in vars(module).values()
        if value.__class__ not in _PLAIN and value.__class__ not in _EMPTY
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
