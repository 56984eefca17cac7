"""From a trace's labels to its channel graph: join what is united, drop what is frozen, group what runs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from prunus.graph.channels import (
    Activation,
    ChannelGraph,
    ChannelGroup,
    Contraction,
    Freeze,
    Ids,
    LabelledTensor,
    Layer,
    Norm,
    SizeSetting,
)
from prunus.graph.findings import Contracted, Findings
from prunus.graph.tape import Tape, varying

Components = npt.NDArray[np.int64]


def assemble(
    tape: Tape, findings: Findings, tensors: Mapping[str, Tensor], saved: frozenset[str], parameters: frozenset[str]
) -> ChannelGraph:
    """Build the channel graph of a finished trace."""
    component = _components(tape)
    names = _storage_names(tensors)
    uses = [_use(tape, contracted, names) for contracted in findings.contractions]
    reasons = _frozen_components(tape, component)
    produced = {int(c) for use in uses for c in component[use.output_labels]}
    consumed = {int(c) for use in uses for c in component[use.input_labels]}
    for c in produced - consumed:
        reasons.setdefault(c, "no layer consumes it")
    _freeze_single(tape, component, produced & consumed, reasons)
    prunable = np.array(sorted(c for c in produced & consumed if c not in reasons), dtype=np.int64)
    ids = np.full(len(component) + 1, -1, dtype=np.int64)  # id of each label; the last entry answers label −1
    number = {int(c): i for i, c in enumerate(prunable)}
    ids[:-1] = [number.get(int(c), -1) for c in component]
    layers = tuple(_layer(tape, use, findings, names, ids) for use in uses if use.weight is not None)
    return ChannelGraph(
        tensors=_labelled(tape, tensors, ids, saved, parameters),
        groups=_groups(tape, component, prunable, layers),
        layers=_unique(layers),
        contractions=tuple(Contraction(u.weight, u.contracted.positions, u.input_axis) for u in uses if u.weight),
        activations=_activations(tape, findings, ids),
        frozen=_freezes(tape, component, reasons, produced),
        channel_count=len(prunable),
        settings=tuple(
            SizeSetting(s.module, s.attribute, tuple(ids[part.numpy()] for part in s.parts)) for s in findings.sizes
        ),
    )


class _Use:
    """One contraction, its weight found among the state dict's tensors, its labels as index arrays."""

    def __init__(self, contracted: Contracted, weight: str | None, outputs: Tensor, inputs: Tensor, axis: int | None):
        self.contracted = contracted
        self.weight = weight
        self.output_labels = outputs[outputs >= 0].numpy()
        self.input_labels = inputs[inputs >= 0].numpy()
        self.input_axis = axis
        self.outputs = outputs.numpy()


def _storage_names(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """Map a meta tensor's storage, which its views share, to its first state-dict name."""
    names: dict[int, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor.untyped_storage()._cdata, name)
    return names


def _use(tape: Tape, contracted: Contracted, names: Mapping[int, str]) -> _Use:
    weight = contracted.weight
    outputs = tape.along(weight, contracted.output_axis, "a contraction")
    inputs = tape.along(weight, contracted.input_axis, "a contraction")
    name = names.get(weight.untyped_storage()._cdata)
    known = [int(labels.max()) for labels in (outputs, inputs) if len(labels) and int(labels.max()) >= 0]
    if name is None and known and contracted.computed:
        name = tape.owner(known[0]).tensor
    axis = tape.owner(int(inputs.max())).axis if int(inputs.max()) >= 0 else None
    return _Use(contracted, name, outputs, inputs, axis)


def _components(tape: Tape) -> Components:
    """Give every label the number of its connected component among the united labels."""
    count = tape.label_count
    pairs = np.concatenate([union.numpy() for union in tape.unions], axis=1) if tape.unions else np.zeros((2, 0), int)
    graph = coo_matrix((np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _frozen_components(tape: Tape, component: Components) -> dict[int, str]:
    """Map each frozen component to the first reason that was given for it."""
    reasons: dict[int, str] = {}
    for frozen in tape.frozen:
        for c in np.unique(component[frozen.labels.numpy()]):
            reasons.setdefault(int(c), frozen.reason)
    return reasons


def _freeze_single(tape: Tape, component: Components, candidates: set[int], reasons: dict[int, str]) -> None:
    """Freeze a width whose channels are all coupled into one: at least one has to stay."""
    widest: Counter[int] = Counter()
    for owner in tape.owners:
        run = component[owner.start : owner.start + owner.size]
        if owner.size > 1 and int(run[0]) in candidates and (run == run[0]).all():
            widest[int(run[0])] = max(widest[int(run[0])], owner.size)
    for c, size in widest.items():
        reasons.setdefault(c, f"its {size} channels are all coupled with one another")


def _layer(tape: Tape, use: _Use, findings: Findings, names: Mapping[int, str], ids: Ids) -> Layer:
    """Describe one contraction as a layer: its tensors, and the BatchNorm that reads it directly."""
    contracted, weight = use.contracted, str(use.weight)

    def name_of(tensor: Tensor | None) -> str | None:
        return None if tensor is None else names.get(tensor.untyped_storage()._cdata)

    norm = None
    for seen in findings.norms:
        if seen.source is contracted.result:
            weight_name, bias_name, mean, var = (name_of(tensor) for tensor in seen.tensors)
            norm = Norm(weight_name, bias_name, mean, var, seen.eps)
            break
    axis = tape.owner(int(use.output_labels[0])).axis if len(use.output_labels) else 0
    name = weight.rpartition(".")[0] or weight
    return Layer(name, weight, name_of(contracted.bias), norm, ids[use.outputs], transposed=axis == 1)


def _unique(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Keep the first of the layers that share a weight (a module that runs several times)."""
    return tuple({layer.weight: layer for layer in reversed(layers)}.values())[::-1]


def _labelled(
    tape: Tape, tensors: Mapping[str, Tensor], ids: Ids, saved: frozenset[str], parameters: frozenset[str]
) -> dict[str, LabelledTensor]:
    """Describe every tensor of the network by the ids along its axes."""
    return {
        name: LabelledTensor(
            name=name,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            is_parameter=name in parameters,
            fields=tuple(
                field
                for own in tape.read(tensor)
                if ((field := ids[own.numpy()]) >= 0).any() and len(varying(own)) == 1
            ),
            is_saved=name in saved,
        )
        for name, tensor in tensors.items()
    }


def _groups(tape: Tape, component: Components, prunable: Ids, layers: tuple[Layer, ...]) -> tuple[ChannelGroup, ...]:
    """Put coupled channels that run along the same axes of the same tensors together, named by their first layer."""
    runs: list[set[tuple[str, int]]] = [set() for _ in prunable]
    number = {int(c): i for i, c in enumerate(prunable)}
    for owner in tape.owners:
        for c in component[owner.start : owner.start + owner.size]:
            if int(c) in number:
                runs[number[int(c)]].add((owner.tensor, owner.axis))
    rank: dict[int, tuple[int, int]] = {}  # id → (number of its first layer, index there)
    for position, layer in enumerate(layers):
        for index, channel in enumerate(layer.channels):
            if channel >= 0:
                rank.setdefault(int(channel), (position, index))
    members: dict[tuple[int, frozenset[tuple[str, int]]], list[int]] = {}
    for channel in sorted(rank, key=lambda channel: rank[channel]):
        members.setdefault((rank[channel][0], frozenset(runs[channel])), []).append(channel)
    seen: Counter[str] = Counter()
    groups = []
    for (position, run), channels in members.items():
        name = layers[position].name
        seen[name] += 1
        label = name if seen[name] == 1 else f"{name}#{seen[name]}"
        tensors = tuple(sorted(pair for pair in run if pair[0]))
        groups.append(ChannelGroup(label, np.array(channels, dtype=np.int64), tensors))
    return tuple(groups)


def _activations(tape: Tape, findings: Findings, ids: Ids) -> tuple[Activation, ...]:
    """Say which channels each non-linearity's result carries along axis 1; those without are left out."""
    found = []
    for index, tensor in enumerate(findings.activations):
        if tensor.dim() > 1:
            channels = ids[tape.along(tensor, 1, "a non-linearity").numpy()]
            if (channels >= 0).any():
                found.append(Activation(index, channels))
    return tuple(found)


def _freezes(tape: Tape, component: Components, reasons: Mapping[int, str], produced: set[int]) -> tuple[Freeze, ...]:
    """Report every frozen width once: its first tensor, the reason and how many of its channels are kept for it."""
    first: dict[int, str] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for owner in tape.owners:
        for c in map(int, component[owner.start : owner.start + owner.size]):
            if owner.tensor and c in produced and c in reasons and first.setdefault(c, owner.tensor) == owner.tensor:
                counted[owner.tensor, reasons[c]] += 1
    return tuple(Freeze(tensor, reason, channels) for (tensor, reason), channels in counted.items())
