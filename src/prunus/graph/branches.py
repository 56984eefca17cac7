"""Residual branches: what runs beside a shortcut, and can go as a whole, since the shortcut alone still carries all."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph, Contraction, Ids, Layer, LayerTime


@dataclass(frozen=True)
class Branch:
    """Layers that only add to something which is there without them.

    Attributes:
        name: the channel group inside it that it ends with, such as ``"layer1.0.conv1"``.
        groups: all channel groups inside it, in the graph's order.
        layers: its convolutions and linear layers, in the graph's order.
        parameters: the parameters that are silenced with it, by their names; each belongs to it alone.
        means: running means of the BatchNorms that end it.
    """

    name: str
    groups: tuple[str, ...]
    layers: tuple[str, ...]
    parameters: tuple[str, ...]
    means: tuple[str, ...]


def find_branches(graph: ChannelGraph) -> tuple[Branch, ...]:
    """Find what may be the residual branches of a network, in the order of the graph's groups.

    A branch begins and ends with a convolution or linear layer and holds channels of its own, and what it ends with
    gives channels that another layer outside of it gives as well, at as many positions: they are added. What only
    serves it, as the layers of a squeeze-and-excitation in its middle, belongs to it; such layers are no branch
    themselves, since they scale what they meet. A layer that is used twice, or
    whose BatchNorm normalises others too, keeps its branch from being one. Whether the network still tells its inputs
    apart without a branch, the labels do not say: the first of two blocks that are added may carry the second.

    Args:
        graph: a channel graph; branches that were dropped from it are not found again.
    """
    network = _Network(graph)
    found: dict[tuple[str, ...], Branch] = {}
    for number, group in enumerate(graph.groups):
        if not group.dropped and (branch := network.branch_of(number)) is not None:
            found[branch.groups] = branch  # the last group of a chain gives the name
    return tuple(found.values())


def without_branches(graph: ChannelGraph, names: Iterable[str]) -> ChannelGraph:
    """Return the graph of a network whose branches of these names are silent: nothing more than the least is kept.

    Every group inside keeps as few channels as the network allows, whatever floors and multiples say, and has no score;
    its layers are no longer among the graph's. Where these have times, nearly nothing is left of them at the least
    width, since files for other runtimes do not have them.

    Args:
        graph: a channel graph.
        names: of branches, as `find_branches` names them; each is looked for once those before it are gone.

    Raises:
        ConfigError: there is no branch of that name.
    """
    for name in names:
        branch = branch_of(graph, name)
        graph = dataclasses.replace(
            graph,
            groups=tuple(
                dataclasses.replace(group, dropped=True) if group.name in branch.groups else group
                for group in graph.groups
            ),
            layers=tuple(layer for layer in graph.layers if layer.name not in branch.layers),
            times=dict(graph.times) | dict(_times(graph, branch)),
        )
    return graph


def branch_of(graph: ChannelGraph, name: str) -> Branch:
    """Return the branch of a name; a ConfigError lists those that there are otherwise."""
    there = {branch.name: branch for branch in find_branches(graph)}
    if name not in there:
        raise ConfigError(f"there is no residual branch {name!r}; the network has: {', '.join(there) or 'none'}.")
    return there[name]


def _times(graph: ChannelGraph, branch: Branch) -> Iterator[tuple[str, LayerTime]]:
    """Give the times of a branch's weights anew: as before for all channels, and in proportion to what is kept."""
    for layer in graph.layers:
        if layer.name in branch.layers and layer.weight in graph.times:
            rows, columns = graph.tensors[layer.weight].shape[:2]
            yield layer.weight, LayerTime(per_pair=graph.times[layer.weight].of(rows, columns) // (rows * columns))


class _Network:
    """The layers of a graph by the groups, numbered, whose channels they take and give; −1 is what always stays."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.layers = {layer.weight: layer for layer in graph.layers}
        self.uses = Counter(use.weight for use in graph.contractions)
        self.norms = Counter(name for layer in graph.layers for name in _norm_tensors(layer))
        groups = np.full(graph.channel_count + 1, -1)
        for number, group in enumerate(graph.groups):
            groups[group.channels] = number
        self.positions = {use.weight: use.positions for use in graph.contractions}
        self.takes = {use.weight: set(groups[_taken(graph, use)].tolist()) for use in graph.contractions}
        self.gives = {name: set(groups[layer.channels].tolist()) for name, layer in self.layers.items()}
        self.takers: defaultdict[int, set[str]] = defaultdict(set)
        for weight, taken in self.takes.items():
            for number in taken:
                self.takers[number].add(weight)

    def branch_of(self, number: int) -> Branch | None:
        """Return the branch that ends with a group's channels, if they are those of one."""
        inside, dead = {number}, self._touching({number})
        while dead is not None and (more := self._serving(inside, dead)):
            inside |= more
            dead = self._touching(inside)
        if dead is None:
            return None
        ends = [self.layers[weight] for weight in dead if not self.gives[weight] <= inside]
        if not ends or not all(self._is_joined(layer, dead) for layer in ends):
            return None
        return self._described(number, inside, dead, ends)

    def _touching(self, inside: set[int]) -> set[str] | None:
        """Return the weights that give or take channels inside; None where one has others too, or is used twice."""
        found = set()
        for weight, taken in self.takes.items():
            given = self.gives.get(weight, set())
            if given.isdisjoint(inside) and taken.isdisjoint(inside):
                continue
            if any(not part <= inside and not part.isdisjoint(inside) for part in (given, taken)):
                return None
            if not given or self.uses[weight] != 1 or self.layers[weight].transposed:
                return None
            found.add(weight)
        return found

    def _serving(self, inside: set[int], dead: set[str]) -> set[int]:
        """Return the groups outside that dead layers take, and nothing else."""
        reached = {number for weight in dead for number in self.takes[weight]} - inside - {-1}
        return {number for number in reached if self.takers[number] <= dead}

    def _is_joined(self, layer: Layer, dead: set[str]) -> bool:
        """Tell whether layers outside give all that a layer gives, not by handing it on; its BatchNorm is its own."""
        if (layer.channels < 0).any() or any(self.norms[name] != 1 for name in _norm_tensors(layer)):
            return False
        positions = self.positions.get(layer.weight)
        alive = [
            other
            for name, other in self.layers.items()
            if name not in dead and not self._hands_on(other) and self.positions.get(name) == positions
        ]
        given = np.concatenate([layer.channels[:0], *(other.channels for other in alive)])
        return bool(np.isin(layer.channels, given).all())

    def _hands_on(self, layer: Layer) -> bool:
        """Tell whether a layer hands its channels on one by one, as a depthwise convolution does."""
        return layer.groups > 1 and not self.takes.get(layer.weight)

    def _described(self, number: int, inside: set[int], dead: set[str], ends: list[Layer]) -> Branch:
        flags = np.zeros(self.graph.channel_count + 1, np.bool_)
        for group in inside:
            flags[self.graph.groups[group].channels] = True
        silenced = {*dead, *(layer.bias for layer in ends), *(name for end in ends for name in _norm_tensors(end))}
        for tensor in self.graph.tensors.values():
            if tensor.fields and all(flags[field].all() for field in tensor.fields):
                silenced.add(tensor.name)
        return Branch(
            self.graph.groups[number].name,
            tuple(self.graph.groups[group].name for group in sorted(inside)),
            tuple(layer.name for name, layer in self.layers.items() if name in dead),
            tuple(name for name, held in self.graph.tensors.items() if held.is_parameter and name in silenced),
            tuple(end.norm.mean for end in ends if end.norm is not None and end.norm.mean is not None),
        )


def _norm_tensors(layer: Layer) -> list[str]:
    """Return the names of what the BatchNorm after a layer holds but its variance, as far as it has it."""
    norm = layer.norm
    return [] if norm is None else [name for name in (norm.weight, norm.bias, norm.mean) if name is not None]


def _taken(graph: ChannelGraph, use: Contraction) -> Ids:
    """Return the ids of the channels that a use of a weight takes; none where it hands them on one by one."""
    if use.input_axis is None:
        return np.zeros(0, np.int64)
    fields = graph.tensors[use.weight].running().get(use.input_axis)
    return np.unique(np.concatenate([field.ravel() for field in fields])) if fields else np.array([-1])
