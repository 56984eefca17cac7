"""Channel groups: the bundles of a trace that run through the same places, and how many of their channels may stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from prunus.graph.channels import ChannelGroup, Ids, Layer
from prunus.graph.layout import bundle_signatures

if TYPE_CHECKING:
    from prunus.graph.assemble import Assembly


def groups_of(assembly: Assembly, layers: tuple[Layer, ...]) -> tuple[ChannelGroup, ...]:
    """Put bundles that run through the same places together, named by their first layer."""
    layout = assembly.traced.layout
    rank = np.full(len(assembly.prunable), np.iinfo(np.int64).max)
    width = max((len(layer.channels) for layer in layers), default=0) + 1
    for position, layer in reversed(list(enumerate(layers))):
        alive = np.flatnonzero(layer.channels >= 0)
        rank[layer.channels[alive][::-1]] = position * width + alive[::-1]
    signatures = bundle_signatures(layout)[layout.bundle[assembly.prunable]]
    keys, group_of = np.unique(signatures, return_inverse=True)
    members = [np.flatnonzero(group_of == k) for k in range(len(keys))] if len(keys) < 64 else _split(group_of)
    members = [channels[np.argsort(rank[channels], kind="stable")] for channels in members]
    members.sort(key=lambda channels: int(rank[channels[0]]))
    tensors = _tensors_of(assembly, members)
    seen: Counter[str] = Counter()
    groups = []
    for channels, runs in zip(members, tensors, strict=True):
        name = layers[int(rank[channels[0]]) // width].name
        seen[name] += 1
        label = name if seen[name] == 1 else f"{name}#{seen[name]}"
        groups.append(_group(assembly, label, channels, runs))
    return tuple(groups)


def _group(assembly: Assembly, name: str, channels: Ids, tensors: tuple[tuple[str, int], ...]) -> ChannelGroup:
    layout = assembly.traced.layout
    if not assembly.traced.tape.ties:  # every channel counts for itself
        return _apart(assembly, name, channels, tensors)
    components = assembly.prunable[channels]
    known, first, pieces = np.unique(layout.signature[components], return_index=True, return_inverse=True)
    order = np.argsort(first)  # pieces in the order in which their first channels lie
    pieces = np.argsort(order)[pieces]
    bundle = int(layout.bundle[components[0]])
    if bundle in assembly.levels:
        signatures = known[order]
        rows = [[level[int(signature)] for signature in signatures] for level in assembly.levels[bundle]]
        return ChannelGroup(name, channels, tensors, pieces.astype(np.int64), np.array(rows, np.int64))
    inside = layout.bundle[components]
    count = len(np.unique(inside))
    if count == len(channels):
        return _apart(assembly, name, channels, tensors)
    each = np.bincount(pieces[inside == bundle], minlength=len(known))
    levels = np.arange(1, count + 1)[:, None] * each
    if assembly.traced.tape.reorders and count > 1:
        levels = levels[levels.min(axis=1) > 1]  # a piece of one channel has no order that could be traced
    return ChannelGroup(name, channels, tensors, pieces.astype(np.int64), levels)


def _apart(assembly: Assembly, name: str, channels: Ids, tensors: tuple[tuple[str, int], ...]) -> ChannelGroup:
    """Return a group of which any channels may stay; two at least where their order must be traced."""
    least = min(2, len(channels)) if assembly.traced.tape.reorders else 1
    levels = None if least == 1 else np.arange(least, len(channels) + 1)[:, None]
    return ChannelGroup(name, channels, tensors, None, levels)


def _tensors_of(assembly: Assembly, members: Sequence[Ids]) -> list[tuple[tuple[str, int], ...]]:
    group_of = np.full(len(assembly.prunable) + 1, -1, np.int64)
    for number, channels in enumerate(members):
        group_of[channels] = number
    runs: list[set[tuple[str, int]]] = [set() for _ in members]
    along = group_of[assembly.ids[:-1]]
    others: dict[int, list[str]] = {}
    for other in assembly.traced.tape.others:
        others.setdefault(other.start, []).append(other.tensor)
    for owner, low, high in assembly.ranges(along):
        if owner.tensor and high >= 0:
            found = (low,) if low == high else np.unique(along[owner.start : owner.start + owner.size]).tolist()
            places = [(owner.tensor, owner.axis), *((name, 0) for name in others.get(owner.start, ()))]
            for number in found:
                if number >= 0:
                    runs[number].update(places)
    return [tuple(sorted(run)) for run in runs]


def _split(group_of: Ids) -> list[Ids]:
    order = np.argsort(group_of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)
