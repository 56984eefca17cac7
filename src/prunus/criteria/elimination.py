"""How far a network's outputs move when channels go and the layers that read them are refitted, one after the other."""

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


def refit_errors(
    graph: ChannelGraph,
    read: Callable[[str], Tensor],
    covariances: Sequence[Covariance | None],
    sensitivity: Mapping[str, Tensor],
) -> Floats:
    """Return the squared change of the outputs for each coupled channel, (channel_count,), NaN where no layer says so.

    Group by group, the channel that costs least goes, and then the least of those that are left, each time after all
    that read the group have been refitted to make do without those before. A channel never costs less than those that
    went before it.

    Args:
        graph: the channel graph.
        read: returns a tensor of the network by its name, in float64.
        covariances: for each of the graph's contractions, how the channels of its input vary together.
        sensitivity: how far outputs move with those of a layer, (2, C_out), by the name of its weight.
    """
    readers = _readers(graph, read, covariances, sensitivity)
    errors = np.full(graph.channel_count, np.nan)
    for group in graph.groups:
        known = np.zeros(group.size, np.bool_)
        parts = []
        for reader in readers:
            shared, ours, theirs = np.intersect1d(group.channels, reader.ids, return_indices=True)
            if len(shared):
                parts.append((ours, reader.among(theirs)))
                known[ours] = True
        if parts:
            errors[group.channels[known]] = _eliminated(group.size, parts)[torch.from_numpy(known)].numpy()
    return errors


@dataclass(frozen=True)
class _Reader:
    """A layer that reads channels, or one of its groups: how they vary together, and what outputs make of it.

    `moved` is, for all pairs of channels, Σ over the layer's outputs of sensitivity · weight · weight: how far the
    network's outputs move if both move by one.
    """

    ids: Ids
    covariance: Tensor
    moved: Tensor

    def among(self, places: Ids) -> _Reader:
        """Return what it says of some of its channels."""
        at = torch.from_numpy(places)
        return _Reader(self.ids[places], self.covariance[at][:, at], self.moved[at][:, at])


def _readers(
    graph: ChannelGraph,
    read: Callable[[str], Tensor],
    covariances: Sequence[Covariance | None],
    sensitivity: Mapping[str, Tensor],
) -> list[_Reader]:
    """Take every use of a weight apart: by its groups, and into what is alike all over an image and what is not.

    An error in the mean of a channel over an image adds up over all positions, kernels and flattened rows; one that
    differs from place to place does not.
    """
    layers = {layer.weight: layer for layer in graph.layers}
    uses = Counter(use.weight for use in graph.contractions)
    found = []
    for use, covariance in zip(graph.contractions, covariances, strict=True):
        layer, moves = layers.get(use.weight), sensitivity.get(use.weight)
        if layer is None or moves is None or covariance is None:
            continue
        known, between, within = covariance
        roots = (moves / uses[use.weight]).sqrt().unflatten(1, (layer.groups, -1))
        filters = layer.filters(read(use.weight))
        parts = filters.reshape(*filters.shape[:2], -1).unflatten(0, (layer.groups, -1))
        for group, ids in enumerate(input_ids(layer, graph.tensors[use.weight])):
            alike = rows_alike(ids)
            if alike is None or not np.isin(alike[0], known).all():
                continue
            rows = parts[group][:, torch.from_numpy(alike[1])]  # (outputs, rows, positions of the kernel)
            by_channel = rows.unflatten(1, (len(alike[0]), -1)).flatten(2).transpose(0, 1)  # (channels, outputs, rest)
            at = torch.from_numpy(np.searchsorted(known, alike[0]))
            mean = by_channel.sum(2) * roots[0, group]
            apart = (by_channel * roots[1, group][:, None]).flatten(1)
            found.append(_Reader(alike[0], between[at][:, at], mean @ mean.T))
            if bool((within > 0).any()):
                found.append(_Reader(alike[0], within[at][:, at], apart @ apart.T))
    return found


class _Problems:
    """Of the channels that are left: the inverses of their covariances, and what refitted readers make of them.

    Without channels B, those that are left take over what B can be explained by: their weights get W_B V with
    V = (P_BB)⁻¹ P_B, and the covariance's inverse P loses P_B' V (Hassibi and Stork 1993). Rows and columns of what is
    gone become zeros, and are taken out once they are half of all.
    """

    def __init__(self, size: int, parts: Sequence[tuple[Ids, _Reader]]) -> None:
        """Put what readers say of some of a group's channels in their places."""
        self.inverse = torch.eye(size, dtype=torch.float64).repeat(len(parts), 1, 1)
        self.moved = torch.zeros_like(self.inverse)
        for number, (places, reader) in enumerate(parts):
            at = torch.from_numpy(places)
            ridge = _RIDGE * reader.covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny / _RIDGE)
            held = reader.covariance + ridge * torch.eye(len(at), dtype=torch.float64)
            self.inverse[number, at[:, None], at] = torch.linalg.inv(held)
            self.moved[number, at[:, None], at] = reader.moved

    def rises(self) -> Tensor:
        """Return how far outputs move, squared, for each channel, were it the next to go."""
        square = self.moved.diagonal(dim1=1, dim2=2) / self.inverse.diagonal(dim1=1, dim2=2)
        return square.sum(0)

    def remove(self, gone: Tensor) -> None:
        """Let those that are left take over from some."""
        both = gone[:, None], gone
        over = torch.linalg.inv(self.inverse[:, both[0], both[1]]) @ self.inverse[:, gone]
        self.inverse.baddbmm_(self.inverse[:, :, gone], over, alpha=-1)
        half = self.moved[:, :, gone] - over.mT @ self.moved[:, both[0], both[1]] / 2
        self.moved.baddbmm_(half, over, alpha=-1)
        self.moved.baddbmm_(over.mT, half.mT, alpha=-1)

    def keep(self, left: Tensor) -> None:
        """Take out the rows and columns of all but some."""
        self.inverse, self.moved = (own[:, left][:, :, left] for own in (self.inverse, self.moved))


def _eliminated(size: int, parts: Sequence[tuple[Ids, _Reader]]) -> Tensor:
    """Return what each channel of a group costs, (size,), at the moment when it is the least of those that are left."""
    problems = _Problems(size, parts)
    costs, names, top = torch.zeros(size, dtype=torch.float64), torch.arange(size), torch.zeros((), dtype=torch.float64)
    alive = torch.ones(size, dtype=torch.bool)
    for first in range(0, size, step := max(1, size // _STEPS)):
        rises = torch.where(alive, problems.rises(), torch.inf)
        gone = rises.argsort(stable=True)[: min(step, size - first)]
        risen = torch.maximum(rises[gone].cummax(0).values, top)
        costs[names[gone]], top = risen, risen[-1]
        alive[gone] = False
        if not alive.any():
            break
        problems.remove(gone)
        if 2 * int(alive.sum()) <= len(alive):
            left = alive.nonzero()[:, 0]
            problems.keep(left)
            names, alive = names[left], alive[left]
    return costs
