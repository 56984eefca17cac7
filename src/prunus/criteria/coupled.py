"""What goes with a coupled channel elsewhere: its slices of other tensors, its consumers, the MACs that it costs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunus.criteria.values import ConsumerValues, NormValues
from prunus.graph.channels import ChannelGraph, Ids, LabelledTensor, Layer, running_axis

Floats = npt.NDArray[np.float64]
Read = Callable[[str], Tensor]


def coupled_norms(graph: ChannelGraph, read: Read) -> Floats:
    """Return the L2 norm of all parameter slices that go with each coupled channel, (channel_count,).

    A slice counts whole wherever the channel runs along an axis, so that an element which lies on two of its slices (a
    convolution inside a residual sum) counts twice.
    """
    squares = np.zeros(graph.channel_count)
    for name, tensor in graph.tensors.items():
        if tensor.is_parameter and tensor.fields:
            values = read(name).square()
            for field in tensor.fields:
                others = [axis for axis, size in enumerate(field.shape) if size == 1]
                sums = (values.sum(others, keepdim=True) if others else values).numpy()
                alive = field >= 0
                squares += np.bincount(field[alive], sums[alive], graph.channel_count)
    return np.sqrt(squares)


def saved_macs(graph: ChannelGraph) -> Floats:
    """Return how many MACs of one example the removal of each coupled channel alone saves, (channel_count,)."""
    positions = Counter[str]()
    for use in graph.contractions:
        positions[use.weight] += use.positions
    saved = np.zeros(graph.channel_count)
    for weight, count in positions.items():
        saved += count * _elements(graph.tensors[weight], graph.channel_count)
    return saved


def saved_params(graph: ChannelGraph) -> Floats:
    """Return how many parameters the removal of each coupled channel alone saves, (channel_count,)."""
    saved = np.zeros(graph.channel_count)
    for tensor in graph.tensors.values():
        if tensor.is_parameter:
            saved += _elements(tensor, graph.channel_count)
    return saved


def saved_bytes(graph: ChannelGraph) -> Floats:
    """Return how many bytes of a file the removal of each coupled channel alone saves, (channel_count,)."""
    saved = np.zeros(graph.channel_count)
    for tensor in graph.tensors.values():
        if tensor.is_saved:
            saved += _elements(tensor, graph.channel_count) * tensor.dtype.itemsize
    return saved


def saved_time(graph: ChannelGraph) -> Floats:
    """Return how many picoseconds the removal of each coupled channel alone saves, (channel_count,); see LayerTime."""
    saved = np.zeros(graph.channel_count)
    for weight, time in graph.times.items():
        tensor = graph.tensors[weight]
        rows, columns = (*tensor.shape, 1)[:2]
        along = {0: time.per_row + time.per_pair * columns, 1: time.per_column + time.per_pair * rows}
        for field in tensor.fields:
            axis = running_axis(field)
            lines = field.size // field.shape[axis]  # of a grouped weight, each with inputs of its own
            saved += np.bincount(field[field >= 0], minlength=graph.channel_count) * along.get(axis, 0) / lines
        for one, other in itertools.combinations(tensor.fields, 2):  # a channel that is read and written by one weight
            both = np.intersect1d(one[one >= 0], other[other >= 0])
            saved[both] -= time.per_pair
    return saved


def _elements(tensor: LabelledTensor, channel_count: int) -> Floats:
    """Return how many elements of a tensor go with each channel; one that lies on two of its slices counts once."""
    found = np.zeros(channel_count)
    for field in tensor.fields:
        found += np.bincount(field[field >= 0], minlength=channel_count) * (prod(tensor.shape) // field.size)
    for one, other in itertools.combinations(tensor.fields, 2):
        if len(np.intersect1d(one[one >= 0], other[other >= 0])):
            both = np.broadcast_to(one, np.broadcast_shapes(one.shape, other.shape))
            same = both[(both == other) & (both >= 0)]
            found -= np.bincount(same, minlength=channel_count) * (prod(tensor.shape) // both.size)
    return found


class Consumers:
    """The uses of all layers that consume channels, by the slices of their weights along what they take in.

    Args:
        graph: the channel graph.
        read: returns a tensor of the network by its name, in float64.
        norm_of: returns the BatchNorm after a layer, if it has one.
        variances: for each of the graph's contractions, the variance of its input, (C_in,), None where not met; or None
            where nothing was measured.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        read: Read,
        norm_of: Callable[[Layer], NormValues | None],
        variances: Sequence[Floats | None] | None,
    ) -> None:
        self.uses: list[tuple[str, Ids, Floats, Floats | None]] = []
        layers = {layer.weight: layer for layer in graph.layers}
        known: dict[str, tuple[Ids, Floats]] = {}
        for number, use in enumerate(graph.contractions):
            layer = layers.get(use.weight)
            if layer is None or len(graph.tensors[use.weight].shape) < 2:
                continue
            if use.weight not in known:
                known[use.weight] = _inputs(layer, graph.tensors[use.weight], read(use.weight), norm_of(layer))
            ids, energy = known[use.weight]
            variance = None if variances is None else variances[number]
            if variances is not None and (variance is None or len(variance) != len(ids)):
                variance = np.full(len(ids), np.nan)
            if (ids >= 0).any():
                self.uses.append((layer.name, ids, energy, variance))

    def of(self, channels: Ids) -> tuple[ConsumerValues, ...]:
        """Return what consumes these channels, numbered by their place among them."""
        order = np.argsort(channels, kind="stable")
        ranked = channels[order]
        found = []
        for name, ids, energy, variance in self.uses:
            first, last = np.searchsorted(ranked, ids, "left"), np.searchsorted(ranked, ids, "right")
            counts = np.where(ids >= 0, last - first, 0)
            if counts.any():
                slices = np.repeat(np.arange(len(ids)), counts)
                inside = np.arange(len(slices)) - np.repeat(np.cumsum(counts) - counts, counts)
                place = torch.from_numpy(order[first[slices] + inside])
                seen = None if variance is None else torch.from_numpy(variance[slices])
                found.append(ConsumerValues(name, place, torch.from_numpy(energy[slices]), seen))
        return tuple(found)


def _inputs(layer: Layer, tensor: LabelledTensor, weight: Tensor, norm: NormValues | None) -> tuple[Ids, Floats]:
    """Return the channel id and the energy of every input slice of a weight, (C_in,).

    −1 is what always stays, or what a depthwise convolution passes on one by one: its weight has no such slices.
    """
    filters = layer.filters(weight)
    groups = layer.groups
    energy = filters.square().reshape(*filters.shape[:2], -1).sum(2)  # (C_out, C_in / groups)
    if norm is not None and norm.var is not None and len(norm.gamma) == len(energy):
        energy = energy * (norm.gamma.square() / (norm.var + norm.eps))[:, None]
    by_group = energy.unflatten(0, (groups, -1)).sum(1)  # (groups, C_in / groups)
    return input_ids(layer, tensor).reshape(-1), by_group.reshape(-1).numpy()


def input_ids(layer: Layer, tensor: LabelledTensor) -> Ids:
    """Return the channel id of every input slice of a weight, (groups, C_in / groups), −1 as above."""
    groups = layer.groups
    plain = layer.filters(torch.zeros(tensor.shape[:2]))
    ids = np.full((groups, plain.shape[1]), -1)
    for field in tensor.fields:
        runs = {axis for axis, size in enumerate(field.shape) if size > 1}
        if runs == {0} if layer.transposed else 1 in runs:
            plain = torch.from_numpy(field.reshape(*field.shape[:2], -1)[:, :, 0].copy()).expand(tensor.shape[:2])
            ids = layer.filters(plain).unflatten(0, (groups, -1))[:, 0].numpy()
    return ids
