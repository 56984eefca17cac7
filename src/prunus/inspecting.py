"""What can be pruned in a network, what holds its channels together, and what each group costs: plain data.

Every figure is exact. Shares say which part of the network a group touches: a layer lies between the channels that it
reads and those that it writes, so that shares add up to more than one. Savings are those of the cost table.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from prunus.checking import group_frozen
from prunus.cost import Cost, CostTable
from prunus.errors import ModelError
from prunus.graph.branches import find_branches
from prunus.graph.channels import ChannelGraph, ChannelGroup, Ids, Keep, Layer
from prunus.graph.flow import FlowNode, flow_of
from prunus.graph.trace import Inputs, as_arguments, trace
from prunus.inspection import Coupling, GroupRow, Inspection, NodeRow, Saving
from prunus.models import Network, find_network

if TYPE_CHECKING:
    from prunus.models import Source


def inspect_network(spec: str | Source, *, side: int | None = None) -> Inspection:
    """Build a network by name, with random weights, and say what can be pruned in it.

    Args:
        spec: what `prunus.models.find_network` takes or returned.
        side: height and width of the images, in pixels; by default the smallest that the network takes, or what its
            own factory gives.

    Raises:
        ModelError: there is no such network, it cannot be built, or `side` is given and it takes no images.
        TraceError: it does not run on channel labels.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        network = (find_network(spec) if isinstance(spec, str) else spec).load()
        inputs = network.inputs if side is None else _resized(network, side)
        return inspect_model(network.model, inputs, name=network.spec)


def _resized(network: Network, side: int) -> tuple[object, ...]:
    """Return a network's inputs with images of another size."""
    images = [isinstance(leaf, Tensor) and leaf.dim() == 4 for leaf in network.inputs]
    if not any(images):
        raise ModelError(f"{network.spec} takes no images (N, C, H, W), so --side says nothing; leave it out.")
    pairs = zip(network.inputs, images, strict=True)
    return tuple(leaf.new_ones(*leaf.shape[:2], side, side) if is_image else leaf for leaf, is_image in pairs)


def inspect_model(model: nn.Module, example_inputs: Inputs, *, name: str = "") -> Inspection:
    """Say what can be pruned in a model; it is left as it was.

    Args:
        model: any module whose forward pass is made of PyTorch operations.
        example_inputs: what it takes: a tensor (N, C, H, W), or a tuple of arguments.
        name: what to call it; by default its class.

    Raises:
        TraceError: the model does not run on these inputs.
    """
    graph = trace(model, example_inputs)
    shapes = tuple(tuple(leaf.shape) for leaf in as_arguments(example_inputs) if isinstance(leaf, Tensor))
    flow = flow_of(model, graph)
    return inspection_of(graph, flow, name=name or type(model).__name__, input_shapes=shapes)


def inspection_of(
    graph: ChannelGraph, flow: Sequence[FlowNode], *, name: str = "", input_shapes: tuple[tuple[int, ...], ...] = ()
) -> Inspection:
    """Say what a channel graph and its flow tell; `inspect_model` finds both."""
    table = CostTable(graph)
    whole = _costs(table, graph.keep_all())
    halved, smallest = graph.keep_all(), graph.keep_all()
    macs = macs_of(graph)
    touched = tensors_of_groups(graph)
    rows = []
    for number, group in enumerate(graph.groups):
        half = keep_about(group, group.size // 2)
        halved[group.channels] = half
        smallest[group.channels] = keep_about(group, 0)
        rows.append(_row(graph, group, touched[number], macs, table, whole, half))
    order = sorted(range(len(rows)), key=lambda number: (-rows[number].macs, -rows[number].params, rows[number].name))
    place = np.append(np.argsort(np.array(order, np.int64)), -1)[group_numbers(graph)]  # of each channel's group
    couplings = _couplings(flow, place)
    prunable = set().union(*touched.values()) if touched else set()
    return Inspection(
        spec=name,
        input_shapes=input_shapes,
        cost=whole,
        half=_costs(table, halved),
        smallest=_costs(table, smallest),
        layers=len(graph.layers),
        prunable_layers=sum(layer.weight in prunable for layer in graph.layers),
        prunable_macs_share=_share(sum(macs.get(tensor, 0) for tensor in prunable), whole.macs),
        channels=sum(group.size for group in graph.groups),
        groups=tuple(
            rows[number].model_copy(update={"couplings": couplings.get(at, ())}) for at, number in enumerate(order)
        ),
        frozen=group_frozen(graph.frozen),
        nodes=tuple(_node(node, place, whole.macs) for node in flow),
        branches=tuple(branch.name for branch in find_branches(graph)),
    )


def keep_about(group: ChannelGroup, wanted: int) -> Keep:
    """Return flags, (size,), that keep as many of a group's first channels as it may keep, near to `wanted`."""
    levels = group.counts
    level = levels[int(np.abs(levels.sum(axis=1) - wanted).argmin())]
    kept = np.zeros(group.size, np.bool_)
    for piece, count in enumerate(level.tolist()):
        kept[np.flatnonzero(group.piece_of == piece)[:count]] = True
    return kept


def macs_of(graph: ChannelGraph) -> dict[str, int]:
    """Return the MACs of one example by the weight that they are spent on."""
    macs: dict[str, int] = {}
    for use in graph.contractions:
        macs[use.weight] = macs.get(use.weight, 0) + use.positions * prod(graph.tensors[use.weight].shape)
    return macs


def group_numbers(graph: ChannelGraph) -> Ids:
    """Return the number of the group that each channel belongs to, and last −1 for what id −1 reads."""
    numbers = np.full(graph.channel_count + 1, -1, np.int64)
    for number, group in enumerate(graph.groups):
        numbers[group.channels] = number
    return numbers


def tensors_of_groups(graph: ChannelGraph) -> dict[int, set[str]]:
    """Return, by the group's number, the names of the tensors that its channels run along."""
    numbers = group_numbers(graph)
    found: dict[int, set[str]] = {number: set() for number in range(len(graph.groups))}
    for name, tensor in graph.tensors.items():
        for field in tensor.fields:
            for number in np.unique(numbers[field]).tolist():
                if number >= 0:
                    found[number].add(name)
    return found


def _row(
    graph: ChannelGraph,
    group: ChannelGroup,
    tensors: set[str],
    macs: Mapping[str, int],
    table: CostTable,
    whole: Cost,
    half: Keep,
) -> GroupRow:
    keep = graph.keep_all()
    keep[group.channels] = half
    left = _costs(table, keep)
    params = sum(prod(graph.tensors[name].shape) for name in tensors if graph.tensors[name].is_parameter)
    spent = sum(macs.get(name, 0) for name in tensors)
    producers, consumers, passes = _roles(graph, group, tensors)
    pieces, step, levels = _levels(group)
    return GroupRow(
        name=group.name,
        channels=group.size,
        pieces=pieces,
        step=step,
        levels=levels,
        constraint=_in_words(group, pieces, step, levels),
        producers=producers,
        consumers=consumers,
        passes=passes,
        couplings=(),
        tensors=tuple(name for name in graph.tensors if name in tensors),
        params=params,
        params_share=_share(params, whole.params),
        macs=spent,
        macs_share=_share(spent, whole.macs),
        half=Saving(
            kept=int(half.sum()),
            params=whole.params - left.params,
            macs=whole.macs - left.macs,
            size_bytes=whole.size_bytes - left.size_bytes,
        ),
    )


def _node(node: FlowNode, place: Ids, macs: int) -> NodeRow:
    numbers, counts = np.unique(place[node.channels], return_counts=True)
    groups = [(int(n), int(c)) for n, c in zip(numbers, counts, strict=True) if n >= 0]
    return NodeRow(
        kind=node.kind,
        name=node.name,
        op=node.op,
        inputs=node.inputs,
        through=node.through,
        width=node.width,
        groups=tuple(sorted(groups, key=lambda found: (-found[1], found[0]))),
        kept=max(0, node.width - sum(count for _, count in groups)) if groups else node.width,
        macs=node.macs,
        macs_share=_share(node.macs, macs),
    )


def _couplings(flow: Sequence[FlowNode], place: Ids) -> dict[int, tuple[Coupling, ...]]:
    """Return, by group, the joins at which several paths carry its channels; a concatenation unites none."""
    found: dict[int, dict[str, list[str]]] = {}
    for node in flow:
        if node.kind != "join" or node.op == "concatenation":
            continue
        carried = Counter(
            number for source in node.inputs for number in set(place[flow[source].channels].tolist()) if number >= 0
        )
        for number, paths in carried.items():
            if paths > 1:
                found.setdefault(number, {}).setdefault(node.op, []).append(node.name)
    return {
        number: tuple(Coupling(op=op, count=len(names), first=names[0]) for op, names in ops.items())
        for number, ops in found.items()
    }


def _roles(
    graph: ChannelGraph, group: ChannelGroup, tensors: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Name the layers that write a group's channels, those that read them, and those that they pass one by one."""
    axes = {use.weight: use.input_axis for use in graph.contractions}
    mine = np.zeros(graph.channel_count + 1, np.bool_)
    mine[group.channels] = True
    producers: list[str] = []
    consumers: list[str] = []
    passes: list[str] = []
    for layer in graph.layers:
        if layer.weight not in tensors:
            continue
        depthwise = axes.get(layer.weight, 0) is None
        if mine[layer.channels].any():
            (passes if depthwise else producers).append(layer.name)
        if not depthwise and _reads(graph, layer, axes.get(layer.weight), mine):
            consumers.append(layer.name)
    return tuple(producers), tuple(consumers), tuple(passes)


def _reads(graph: ChannelGraph, layer: Layer, axis: int | None, mine: Keep) -> bool:
    fields = graph.tensors[layer.weight].running()
    if axis is None:
        return False
    return any(bool(mine[field].any()) for field in fields.get(axis, ()))


def _levels(group: ChannelGroup) -> tuple[int, int, int]:
    """Return how many pieces there are, the common step of what may stay in all, and how many numbers may."""
    totals = group.counts.sum(axis=1)
    step = int(np.gcd.reduce(np.append(np.diff(totals), totals[-1])))
    return group.counts.shape[1], step, len(totals)


def _in_words(group: ChannelGroup, pieces: int, step: int, levels: int) -> str:
    if group.levels is None:
        return "any number"
    totals = group.counts.sum(axis=1).tolist()
    if levels == (totals[-1] - totals[0]) // step + 1:  # every multiple of the step, from the first on
        words = f"multiples of {step}" if step > 1 else "any number"
        words += f" from {totals[0]}" if totals[0] > step else ""
    else:
        shown = [*map(str, totals[:3]), "…", str(totals[-1])] if levels > 5 else [*map(str, totals)]
        words = f"one of {levels}: {', '.join(shown)}"
    return f"{words}, even in {pieces} pieces" if pieces > 1 else words


def _costs(table: CostTable, keep: Keep) -> Cost:
    params, macs, size_bytes, _ = table.costs(table.widths(keep)).tolist()
    return Cost(params=params, macs=macs, size_bytes=size_bytes)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
