"""Carry an optimiser that already trains a network over to its pruned copy: the state is cut as the weights were."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.errors import ConfigError, SurgeryError
from prunus.graph.channels import ChannelGraph
from prunus.plan import PruningPlan
from prunus.surgery import selections

if TYPE_CHECKING:
    from prunus.api import PruneResult

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

_PLAIN = (bool, int, float, complex, str, type(None))
_INSTEAD = "Make a new optimiser for the pruned network's parameters."


def migrate_optimizer(
    optimizer: AnyOptimizer,
    model: nn.Module,
    result: PruneResult | tuple[nn.Module, ChannelGraph, PruningPlan],
) -> AnyOptimizer:
    """Return an optimiser for the pruned network that goes on where `optimizer` stands.

    It is a new one of the same class: `optimizer` still trains `model`, and neither sees the other's steps. The
    parameter groups, their order and their hyper-parameters are the same. A state tensor of its parameter's shape
    (momentum, squared gradients) is cut exactly as the parameter was, so that what is kept goes on as it would have in
    the original; step counts are copied. Parameters that `optimizer` does not hold stay out; those that it holds frozen
    stay in, so that they may be thawed.

    >>> result = prunus.prune(model, example_inputs, budget=prunus.Budget(macs=0.5))   # doctest: +SKIP
    >>> optimizer = prunus.migrate_optimizer(optimizer, model, result)                 # doctest: +SKIP

    A learning-rate scheduler goes on changing the optimiser that it was made for. Point it at the new one, and with it
    the schedulers inside a SequentialLR or ChainedScheduler; one that has not stepped yet is better made anew:

    >>> scheduler.optimizer = optimizer                                                # doctest: +SKIP

    Hooks that were registered on `optimizer` are not carried over, since they may hold the original's tensors.

    Args:
        optimizer: an optimiser of `model`'s parameters; it stays as it is.
        model: the original network, as large as when it was traced.
        result: what `prunus.prune` returned, or the pruned network, the original's graph and the plan.

    Raises:
        ConfigError: the optimiser holds a tensor that is not a parameter of `model`, or a state that cannot be cut.
        PlanError: the plan does not fit the graph.
        SurgeryError: the model, the graph and the pruned network do not belong together.
    """
    pruned, graph, plan = result if isinstance(result, tuple) else (result.model, result.graph, result.plan)
    return carry_over(optimizer, model, pruned, selections(model, graph, plan))


class Chosen(Protocol):
    """Which elements of a tensor its successor has, and the successor's shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def take(self, tensor: Tensor) -> Tensor: ...  # noqa: D102


def carry_over(
    optimizer: AnyOptimizer, model: nn.Module, pruned: nn.Module, chosen: Mapping[str, Chosen]
) -> AnyOptimizer:
    """Return an optimiser for `pruned` that goes on where `optimizer` stands, as `migrate_optimizer` does.

    `chosen` says, by state-dict name, which elements of `model`'s parameters those of `pruned` are.
    """
    pairs = _pairs(optimizer, model, pruned, chosen)
    state: defaultdict[Tensor, Any] = defaultdict(dict)
    for held in optimizer.state:
        if not isinstance(held, Tensor):
            why = f"its state {held!r} belongs to no parameter"
            raise ConfigError(f"{type(optimizer).__name__} cannot be carried over: {why}. {_INSTEAD}")
    for pair in pairs.values():
        values = optimizer.state.get(pair.old)
        if values:
            state[pair.new] = {key: pair.carry(optimizer, key, value) for key, value in values.items()}
    groups = [
        {**copy.deepcopy({**group, "params": []}), "params": [pairs[id(old)].new for old in group["params"]]}
        for group in optimizer.param_groups
    ]
    # As copy and pickle build an optimiser: not every class takes its own defaults as arguments.
    migrated = type(optimizer).__new__(type(optimizer))
    migrated.__setstate__({"defaults": copy.deepcopy(optimizer.defaults), "state": state, "param_groups": groups})
    _copy_attributes(optimizer, migrated)
    return migrated


@dataclass(frozen=True, eq=False)
class _Pair:
    """A parameter of the original, what became of it, and which of its elements that are."""

    name: str
    old: Tensor
    new: nn.Parameter
    selection: Chosen

    def carry(self, optimizer: Optimizer, key: object, value: object) -> object:
        """Return the pruned parameter's share of one entry of the original's state, in memory of its own."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, Tensor):
            value = value.detach()
            if value.shape == self.old.shape:
                dtype = self.new.dtype if value.dtype == self.old.dtype else value.dtype
                return torch.empty_like(self.new, dtype=dtype, requires_grad=False).copy_(self.selection.take(value))
            if value.numel() == 1:  # a count, or a learning rate of its own
                return value.clone()
            cut = self._cut_constant(value)
            if cut is not None:
                return cut
        what = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ConfigError(
            f"{type(optimizer).__name__} cannot be carried over: its state {key!r} of {self.name} is {what}, which "
            f"does not say what belongs to which of the parameter's elements {tuple(self.old.shape)}. {_INSTEAD}"
        )

    def _cut_constant(self, value: Tensor) -> Tensor | None:
        """Cut a state with one value along some axes, if none of these lost channels; None if one did.

        Such are Adafactor's factors of a convolution, means over kernel rows and columns. A mean over channels that are
        gone says nothing of those that stayed.
        """
        if value.dim() != self.old.dim() or any(
            a not in (1, b) for a, b in zip(value.shape, self.old.shape, strict=True)
        ):
            return None
        constant = [axis for axis, length in enumerate(value.shape) if length < self.old.shape[axis]]
        if any(self.new.shape[axis] != self.old.shape[axis] for axis in constant):
            return None
        kept = self.selection.take(value.expand(self.old.shape))
        first = kept
        for axis in constant:
            first = first.narrow(axis, 0, 1)
        return first.clone() if torch.equal(first.expand(kept.shape), kept) else None


def _pairs(optimizer: Optimizer, model: nn.Module, pruned: nn.Module, chosen: Mapping[str, Chosen]) -> dict[int, _Pair]:
    """Find what became of every parameter that the optimiser holds, by the id of the original's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    successors = dict(pruned.named_parameters(remove_duplicate=False))
    pairs = {}
    for number, group in enumerate(optimizer.param_groups):
        for place, old in enumerate(group["params"]):
            name = names.get(id(old))
            if name is None:
                raise ConfigError(
                    f"{type(optimizer).__name__} holds a tensor {tuple(old.shape)} (parameter group {number}, place "
                    f"{place}) that is not a parameter of this {type(model).__name__}. Pass the model that the "
                    "optimiser was made for; an optimiser of several models cannot be carried over."
                )
            new, selection = successors.get(name), chosen.get(name)
            if new is None or selection is None or tuple(new.shape) != tuple(selection.shape):
                raise SurgeryError(
                    f"the pruned network is not what this plan makes of the original: {name} is "
                    f"{'missing' if new is None else tuple(new.shape)} there and should be "
                    f"{'unknown' if selection is None else tuple(selection.shape)}."
                )
            pairs[id(old)] = _Pair(name, old, new, selection)
    return pairs


def _copy_attributes(old: Optimizer, new: Optimizer) -> None:
    """Copy what a class keeps beside its groups and its state, such as a switch."""
    for name, value in vars(old).items():
        if name in vars(new) or name == "step":  # a scheduler has wrapped the original's step
            continue
        if not isinstance(value, _PLAIN):
            raise ConfigError(
                f"{type(old).__name__} cannot be carried over: it keeps {name!r}, a {type(value).__name__}, beside its "
                f"state. {_INSTEAD}"
            )
        setattr(new, name, value)
