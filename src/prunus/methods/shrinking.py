"""A network that loses channels while it trains, by the indices of the whole one that it was at first.

Between two removals the small network trains alone. To choose, to mask and to remove again, its tensors are put back
into a network as large as the first (`unfold`), where the channels that are gone are silent. So one graph serves the
whole search, and what is left at its end is one plan of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.graph.channels import ChannelGraph, Keep
from prunus.plan import PruningPlan, plan_from_keep
from prunus.surgery import Selection, remove, selections


@dataclass(frozen=True, eq=False)
class Shrunk:
    """What a small network is of the whole one.

    `whole` has the first network's shapes; its values are those of the last `unfold`. `chosen` says, by
    state-dict name, which of its elements the small network has.
    """

    whole: nn.Module
    plan: PruningPlan
    chosen: Mapping[str, Selection]

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, keep: Keep) -> Shrunk:
        """Say what is left of `model`, as large as `graph` has it, once the channels that `keep` drops are gone."""
        whole = remove(model, graph, plan_from_keep(graph, graph.keep_all()))  # a copy
        plan = plan_from_keep(graph, keep)
        return cls(whole, plan, selections(whole, graph, plan))

    def unfold(self, small: nn.Module) -> nn.Module:
        """Put the small network's tensors in their places; what is gone has weights of 0 and statistics of 1."""
        theirs = _tensors(small)
        with torch.no_grad():
            for name, tensor in _tensors(self.whole).items():
                tensor.fill_(0 if isinstance(tensor, nn.Parameter) else 1)
                tensor.copy_(_placed(tensor, self.chosen[name], theirs[name]))
        return self.whole

    def fold(self, small: nn.Module) -> None:
        """Give the small network the values that the whole one has in its places."""
        with torch.no_grad():
            ours = _tensors(self.whole)
            for name, tensor in _tensors(small).items():
                tensor.copy_(self.chosen[name].take(ours[name]))

    def steps_to(self, later: Shrunk) -> dict[str, Step]:
        """Say which elements of this small network's tensors a smaller one has."""
        return {
            name: Step(tuple(tensor.shape), self.chosen[name], later.chosen[name])
            for name, tensor in _tensors(self.whole).items()
        }


@dataclass(frozen=True, eq=False)
class Step:
    """Which elements of a small network's tensor stay in a smaller one; `whole` is the shape that both come from."""

    whole: tuple[int, ...]
    before: Selection
    after: Selection

    @property
    def shape(self) -> tuple[int, ...]:
        """The smaller tensor's shape."""
        return self.after.shape

    def take(self, tensor: Tensor) -> Tensor:
        """Return what stays of a tensor of the small network: a weight, or its momentum."""
        return self.after.take(_placed(tensor.new_zeros(self.whole), self.before, tensor))


def _placed(whole: Tensor, selection: Selection, part: Tensor) -> Tensor:
    """Return `whole`, contiguous, with `part` where `selection` takes its elements from."""
    places = selection.take(torch.arange(whole.numel(), device=whole.device).view(whole.shape))
    filled = whole.detach().clone(memory_format=torch.contiguous_format)
    filled.view(-1)[places.flatten()] = part.detach().to(whole.device).flatten()
    return filled


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
