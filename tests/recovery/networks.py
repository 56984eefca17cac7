"""What the tests of the recovery share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.silenced import relative_error
from torch import Tensor, nn

from prunus.graph.channels import ChannelGraph
from prunus.plan import PruningPlan, plan_from_keep


def without(graph: ChannelGraph, name: str, gone: Sequence[int]) -> PruningPlan:
    """Keep everything but these channels of one group."""
    keep = graph.keep_all()
    keep[graph.group(name).channels[list(gone)]] = False
    return plan_from_keep(graph, keep)


def difference(found: nn.Module, reference: nn.Module, x: Tensor) -> float:
    """Return the relative error of one network's outputs, measured on the other's."""
    with torch.no_grad():
        return relative_error(found(x), reference(x))


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    """Say whether two networks hold the same numbers, bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
