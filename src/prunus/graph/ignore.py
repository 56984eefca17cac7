"""Leave layers as they are at the user's wish."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

import numpy as np

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph, ChannelGroup, Freeze, Ids


def without(graph: ChannelGraph, ignore: Iterable[str]) -> ChannelGraph:
    """Return the graph with every group kept whole that touches an ignored layer: the layer keeps its exact shape.

    Args:
        graph: a channel graph.
        ignore: names of layers (``"layer1.0.conv1"``) or of modules that hold some (``"layer1"``).

    Raises:
        ConfigError: a name is not one of the network's.
    """
    names = _known(graph, ignore, "ignore")
    if not names:
        return graph
    dropped = [
        group.name for group in graph.groups if any(_inside(t, name) for t, _ in group.tensors for name in names)
    ]
    return keeping(graph, dropped, "ignore names it")


def with_outputs(graph: ChannelGraph, freeze: Iterable[str]) -> ChannelGraph:
    """Return the graph with every group kept whole that a frozen layer produces: its inputs may still become fewer.

    Args:
        graph: a channel graph.
        freeze: names of layers (``"layer1.0.conv1"``) or of modules (``"layer1"``); of a module, every layer inside
            keeps the number of its outputs.

    Raises:
        ConfigError: a name is not one of the network's.
    """
    names = _known(graph, freeze, "freeze")
    weights = {layer.weight for layer in graph.layers}
    produced = graph.keep_all()
    for name in names:
        for layer in graph.layers:
            if _inside(layer.weight, name):
                produced[layer.channels] = False
        for tensor in graph.tensors.values():  # a norm's scale, a bias: along what the module gives
            if _inside(tensor.name, name) and tensor.name not in weights:
                for field in tensor.fields:
                    produced[field] = False
    dropped = [group.name for group in graph.groups if not produced[group.channels].all()]
    return keeping(graph, dropped, "freeze names a layer that produces it") if dropped else graph


def _known(graph: ChannelGraph, given: Iterable[str], argument: str) -> tuple[str, ...]:
    """Return the names as a tuple; a ConfigError names the nearest layer to one that is not the network's."""
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not any(_inside(tensor, name) for tensor in graph.tensors):
            known = sorted({tensor.rpartition(".")[0] for tensor in graph.tensors})
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f". Its layers: {', '.join(known)}."
            raise ConfigError(f"{argument} names {name!r}, but the network has no such layer{hint}")
    return names


def keeping(graph: ChannelGraph, groups: Iterable[str], reason: str) -> ChannelGraph:
    """Return the graph with these groups kept whole, for this reason."""
    names = set(groups)
    kept = [group for group in graph.groups if group.name not in names]
    dropped = [group for group in graph.groups if group.name in names]
    ids = np.full(graph.channel_count + 1, -1, dtype=np.int64)
    alive = np.sort(np.concatenate([group.channels for group in kept])) if kept else np.zeros(0, dtype=np.int64)
    ids[alive] = np.arange(len(alive))
    return dataclasses.replace(
        graph,
        tensors={
            name: dataclasses.replace(tensor, fields=_renumbered(tensor.fields, ids))
            for name, tensor in graph.tensors.items()
        },
        groups=tuple(dataclasses.replace(group, channels=ids[group.channels]) for group in kept),
        layers=tuple(dataclasses.replace(layer, channels=ids[layer.channels]) for layer in graph.layers),
        activations=tuple(dataclasses.replace(a, channels=ids[a.channels]) for a in graph.activations),
        settings=tuple(dataclasses.replace(s, parts=tuple(ids[part] for part in s.parts)) for s in graph.settings),
        sites=tuple(
            dataclasses.replace(
                site,
                operands=tuple(_renumbered(fields, ids) for fields in site.operands),
                results=tuple(_renumbered(fields, ids) for fields in site.results),
            )
            for site in graph.sites
        ),
        order=None if graph.order is None else dataclasses.replace(graph.order, ids=ids[graph.order.ids]),
        frozen=(*graph.frozen, *(Freeze(_weight_of(graph, group), reason, group.size) for group in dropped)),
        channel_count=len(alive),
    )


def _weight_of(graph: ChannelGraph, group: ChannelGroup) -> str:
    """Return the weight that a group has its name from."""
    named = [layer.weight for layer in graph.layers if layer.name == group.name.partition("#")[0]]
    return named[0] if named else group.tensors[0][0]


def _inside(tensor: str, module: str) -> bool:
    return tensor.startswith(f"{module}.") or tensor == module


def _renumbered(fields: tuple[Ids, ...], ids: Ids) -> tuple[Ids, ...]:
    moved = (ids[field] for field in fields)
    return tuple(field for field in moved if (field >= 0).any())
