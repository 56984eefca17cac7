"""Residual branches that go as a whole: which, and what is left of the network without them.

A branch is not cut out of the network's code, which stays the user's. Its weights become zero, so that it adds nothing,
and of its channels only the least is kept, one as a rule. Files for other runtimes leave it out altogether.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.cost import predict_cost
from prunus.errors import ConfigError
from prunus.graph.branches import Branch, branch_of, find_branches, without_branches
from prunus.graph.channels import ChannelGraph, Keep
from prunus.graph.members import named_tensors
from prunus.ladders import ladder_of
from prunus.recovery.batches import Batches, device_of
from prunus.recovery.recalibration import recalibrate
from prunus.recovery.watching import random_state_kept, result_copy

__all__ = ["Branch", "DroppedBranch", "choose_branches", "drop_branches", "find_branches", "set_to_zero", "silent_copy"]

_ALIKE = 1e-9  # spread of log probabilities over images, from which on a network tells them apart


@dataclass(frozen=True)
class DroppedBranch:
    """A branch that was chosen to go: by how much it moved the outputs when it went, and the MACs that went with it.

    `divergence` is KL(original ‖ without it and those before it) of the class probabilities, in nats, the mean over the
    images; `macs` are those of one example.
    """

    branch: Branch
    divergence: float
    macs: int


def choose_branches(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor | Iterable[Tensor],
    count: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[DroppedBranch]:
    """Choose residual branches one after the other, each the one whose loss moves the outputs least for what it saves.

    What it moves is the divergence of the class probabilities from the original's, on images without labels, after
    BatchNorm is recalibrated on the same images; what it saves are MACs. A branch that was behind is measured again
    only when it comes to the front, since what the loss of one moves rarely shrinks when others have gone.

    Args:
        model: the network that `graph` was traced from, a classifier; it is left as it is.
        graph: its channel graph.
        images: a few hundred images as the network takes them, (N, C, H, W), or an iterable of batches.
        count: how many branches go, at least 1.
        progress: is told how many are chosen, from 0.

    Returns:
        The branches in the order in which they go.

    Raises:
        ConfigError: `count` is below 1, there are not so many branches, or `images` holds none.
    """
    if count < 1:
        raise ConfigError(f"{count} residual branches are to go; give a number of 1 or more, or none at all.")
    data = Batches(images, device_of(model))
    with random_state_kept(), torch.no_grad():
        return _Choosing(model, graph, data).choose(count, progress or (lambda done: None))


@dataclass(frozen=True)
class _Measured:
    """How bad the loss of a branch is for a MAC, after how many others it was measured, and both parts of it."""

    badness: float
    after: int
    moved: float
    saved: int


class _Choosing:
    """Goes from a network to the one without its least branch, and on from there."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, data: Batches) -> None:
        self.model, self.graph, self.data = model, graph, data
        self.wanted = _log_probabilities(model, data)
        self.chosen: list[DroppedBranch] = []
        self.known: dict[str, _Measured] = {}

    def choose(self, count: int, progress: Callable[[int], None]) -> list[DroppedBranch]:
        while len(self.chosen) < count:
            progress(len(self.chosen))
            self._step(count)
        return self.chosen

    def _step(self, count: int) -> None:
        number, cost = len(self.chosen), predict_cost(self.graph, _least(self.graph)).macs
        there = {branch.name: branch for branch in find_branches(self.graph)}
        last = self.chosen[-1].divergence if self.chosen else 0.0
        queue = [(self.known[name].badness if name in self.known else 0.0, name) for name in there]
        heapq.heapify(queue)
        while queue:
            badness, name = heapq.heappop(queue)
            if badness == math.inf:
                break
            silent, smaller = silent_copy(self.model, [there[name]]), without_branches(self.graph, [name])
            known = self.known.get(name)
            if known is not None and known.after == number:
                self.model, self.graph = silent, smaller
                self.chosen.append(DroppedBranch(there[name], known.moved, known.saved))
                return
            moved, saved = self._divergence(silent), cost - predict_cost(smaller, _least(smaller)).macs
            self.known[name] = _Measured(max(0.0, moved - last) / max(1, saved), number, moved, saved)
            heapq.heappush(queue, (self.known[name].badness, name))
        some = f"{number} residual branch{'es' * (number != 1)} that can go" if number else "none that can go"
        raise ConfigError(f"{count} residual branches are to go, and the network has {some}.")

    def _divergence(self, silent: nn.Module) -> float:
        """Return KL(the original ‖ a network, its BatchNorm recalibrated), in nats; ∞ where it says the same of all."""
        said = _log_probabilities(recalibrate(silent, self.data), self.data)
        if not bool((said.std(0, correction=0) > _ALIKE).any()):
            return math.inf
        return float(F.kl_div(said, self.wanted, reduction="batchmean", log_target=True))


def drop_branches(
    model: nn.Module, graph: ChannelGraph, names: Iterable[str], images: Tensor | Iterable[Tensor] | None = None
) -> tuple[nn.Module, ChannelGraph]:
    """Return a copy of a network in which branches are silent, with as many channels as before, and its graph.

    The graph keeps as few of their channels as can be, whatever an allocation is told of floors and multiples.

    Args:
        model: the network that `graph` was traced from; it is left as it is.
        graph: its channel graph.
        names: which branches, as `find_branches` names them.
        images: what BatchNorm is recalibrated on, (N, C, H, W) or batches; None leaves it.

    Raises:
        ConfigError: there is no branch of a name.
    """
    for name in names:
        model = silent_copy(model, [branch_of(graph, name)])
        graph = without_branches(graph, [name])
    return (model if images is None else recalibrate(model, images)), graph


def silent_copy(model: nn.Module, branches: Iterable[Branch]) -> nn.Module:
    """Return a copy of a network in which branches give zero: their weights, and what a BatchNorm at their end adds."""
    silent = result_copy(model)
    set_to_zero(silent, [name for branch in branches for name in (*branch.parameters, *branch.means)])
    return silent


def set_to_zero(model: nn.Module, names: Iterable[str]) -> None:
    """Set tensors of a network to zero, in place."""
    wanted = set(names)
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            if name in wanted:
                tensor.zero_()


def _least(graph: ChannelGraph) -> Keep:
    """Return the flags that keep everything but what dropped branches have above their least."""
    keep = graph.keep_all()
    for group in graph.groups:
        if group.dropped:
            ladder = ladder_of(group, np.zeros(group.size), None, 1)
            keep[ladder.ids[ladder.levels[0] :]] = False
    return keep


def _log_probabilities(model: nn.Module, data: Batches) -> Tensor:
    """Return what a network says of all images, in evaluation mode, (N, classes)."""
    training = {module: module.training for module in model.modules()}
    try:
        said = [model.eval()(part).detach() for part in data.parts()]
    finally:
        for module, mode in training.items():
            module.training = mode
    if not all(isinstance(logits, Tensor) and logits.dim() == 2 for logits in said):
        raise ConfigError("branches are compared by the classes that a network names; it should return (N, classes).")
    return F.log_softmax(torch.cat(said).double(), dim=1)
