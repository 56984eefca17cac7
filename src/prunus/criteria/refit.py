"""What the loss rises by when channels go and the layers that read them are refitted, one channel after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunus.criteria.coupled import input_ids
from prunus.graph.channels import ChannelGraph, Ids
from prunus.graph.measuring import Covariance, rows_alike

Floats = npt.NDArray[np.float64]

_RIDGE = 1e-3  # of the mean variance: channels that always vary together cannot be told apart further than this
_STEPS = 128  # a group is eliminated in at most about so many: of a wider one several channels go at once


def refit_losses(
    graph: ChannelGraph,
    read: Callable[[str], Tensor],
    covariances: Sequence[Covariance | None],
    curvature: Mapping[str, Tensor],
) -> Floats:
    """Return what the loss rises by for each coupled channel, (channel_count,), NaN where no layer says so.

    Group by group, the channel that costs least goes, and then the least of those that are left, each time after all
    that read the group have been refitted to make do without those before. A channel never costs less than those that
    went before it.

    Args:
        graph: the channel graph.
        read: returns a tensor of the network by its name, in float64.
        covariances: for each of the graph's contractions, how the channels of its input vary together.
        curvature: of the loss by each output of a layer, summed over positions, by the name of its weight.
    """
    readers = _readers(graph, read, covariances, curvature)
    losses = np.full(graph.channel_count, np.nan)
    for group in graph.groups:
        known = np.zeros(group.size, np.bool_)
        problems = []
        for reader in readers:
            shared, ours, theirs = np.intersect1d(group.channels, reader.ids, return_indices=True)
            if len(shared):
                problems.append(_Problem.of(group.size, torch.from_numpy(ours), reader.among(theirs)))
                known[ours] = True
        if problems:
            losses[group.channels[known]] = _eliminated(problems)[torch.from_numpy(known)].numpy()
    return losses


@dataclass(frozen=True)
class _Reader:
    """A layer that reads channels, or one of its groups: how they vary together, and what the loss makes of it.

    With u(c) what the layer's outputs get from channel c, `bent` is Σ over outputs of curvature · u(a) · u(b) for all
    pairs of channels, as far as weights decide it.
    """

    ids: Ids
    covariance: Tensor
    bent: Tensor

    def among(self, places: Ids) -> _Reader:
        """Return what it says of some of its channels."""
        at = torch.from_numpy(places)
        return _Reader(self.ids[places], self.covariance[at][:, at], self.bent[at][:, at])


def _readers(
    graph: ChannelGraph,
    read: Callable[[str], Tensor],
    covariances: Sequence[Covariance | None],
    curvature: Mapping[str, Tensor],
) -> list[_Reader]:
    layers = {layer.weight: layer for layer in graph.layers}
    uses = Counter(use.weight for use in graph.contractions)
    found = []
    for use, covariance in zip(graph.contractions, covariances, strict=True):
        layer, bends = layers.get(use.weight), curvature.get(use.weight)
        if layer is None or bends is None or covariance is None:
            continue
        filters = layer.filters(read(use.weight))
        filters = filters.reshape(*filters.shape[:2], -1)  # (C_out, C_in / groups, positions of the kernel)
        weights = filters * (bends / uses[use.weight]).sqrt()[:, None, None]
        for ids, own in zip(
            input_ids(layer, graph.tensors[use.weight]), weights.unflatten(0, (layer.groups, -1)), strict=True
        ):
            alike = rows_alike(ids)
            if alike is None or not np.isin(alike[0], covariance[0]).all():
                continue
            rows = own.movedim(1, 0)[torch.from_numpy(alike[1])].reshape(len(alike[0]), -1)
            at = torch.from_numpy(np.searchsorted(covariance[0], alike[0]))
            found.append(_Reader(alike[0], covariance[1][at][:, at], rows @ rows.T))
    return found


@dataclass(frozen=True)
class _Problem:
    """Of the channels that are left: the inverse of their covariance, and what a reader's refitted weights make of it.

    Without channels B, those that are left take over what B can be explained by: their weights get
    W_B (P_BB)⁻¹ P_B, and the covariance's inverse P loses P_B' (P_BB)⁻¹ P_B (Hassibi and Stork 1993).
    """

    inverse: Tensor
    bent: Tensor

    @classmethod
    def of(cls, size: int, places: Tensor, reader: _Reader) -> _Problem:
        """Put what a reader says of some of a group's channels in their places."""
        variance = reader.covariance.diagonal()
        ridge = (_RIDGE * variance.mean()).clamp_min(torch.finfo(torch.float64).tiny)
        inverse, bent = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        inverse[places[:, None], places] = torch.linalg.inv(reader.covariance + torch.diag(ridge.expand(len(variance))))
        bent[places[:, None], places] = reader.bent
        return cls(inverse, bent)

    def rises(self) -> Tensor:
        """Return what the loss rises by for each channel, were it the next to go: half of bend times square."""
        return self.bent.diagonal() / self.inverse.diagonal() / 2

    def without(self, gone: Tensor, left: Tensor) -> _Problem:
        """Return the problem of those that are left."""
        inverse, bent = self.inverse, self.bent
        moved = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, left])
        crossed = bent[left][:, gone] @ moved
        taken = moved.T @ bent[gone][:, gone] @ moved
        return _Problem(
            inverse[left][:, left] - inverse[left][:, gone] @ moved, bent[left][:, left] - crossed - crossed.T + taken
        )


def _eliminated(problems: Sequence[_Problem]) -> Tensor:
    """Return what each channel of a group costs, (size,), at the moment when it is the least of those that are left."""
    size = len(problems[0].inverse)
    costs, alive, top = torch.zeros(size, dtype=torch.float64), torch.arange(size), torch.zeros((), dtype=torch.float64)
    while len(alive):
        rises = torch.stack([problem.rises() for problem in problems]).sum(0)
        order = rises.argsort(stable=True)
        gone, left = order[: max(1, size // _STEPS)], order[max(1, size // _STEPS) :].sort().values
        steps = torch.maximum(rises[gone].cummax(0).values, top)
        costs[alive[gone]], top = steps, steps[-1]
        if len(left):
            problems = [problem.without(gone, left) for problem in problems]
        alive = alive[left]
    return costs
