"""Normalisations: those that treat channels apart, and those that mix them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunus.graph.findings import Call, Findings, Normalised
from prunus.graph.labels import varying
from prunus.graph.rules.mixing import mixes
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape


@rule(aten.native_batch_norm, aten._native_batch_norm_legit)
def batch_norm(tape: Tape, findings: Findings, call: Call) -> None:
    """BatchNorm treats channels apart: its affine parameters and running statistics meet them."""
    x, out = call.args[0], call.outputs[0]
    legit = len(call.args) < 8  # without running statistics
    tensors = (call.args[1], call.args[2], None, None) if legit else tuple(call.args[1:5])
    mixed = [own for own in tape.read(x) if varying(own) - {1}]
    channels, field = None, None
    for own in tape.read(x):
        if varying(own) == {1}:
            channels, field = own.reshape(-1), own
    before = channels
    same = None
    for tensor in tensors:
        held = tape.read(tensor)
        if tensor is not None and not (held and held[0] is same):  # those of one module have the same labels
            same = held[0] if held else None
            labels = tape.along(tensor, 0, call.name)
            if channels is not None or bool((labels >= 0).any()):
                channels = (
                    labels
                    if channels is None and mixed
                    else tape.unite(_fixed(x.shape[1]) if channels is None else channels, labels, call.name)
                )
    if channels is None:
        fields = []
    elif channels is before and field is not None:
        fields = [field]
    else:
        fields = [channels.view([x.shape[1] if axis == 1 else 1 for axis in range(out.dim())])]
    if mixed:
        mixes(tape, findings, call, [(*fields, *mixed)])
    else:
        tape.write(out, fields, is_compact=channels is before)
    for saved in call.outputs[1:]:
        if channels is not None and saved.shape == channels.shape:
            tape.write(saved, [channels])
    four = (tensors[0], tensors[1], tensors[2], tensors[3])
    findings.norms.append(Normalised(x, four, float(call.args[-1]), out))


def _fixed(size: int) -> Tensor:
    return torch.full((size,), -1)


@rule(aten.native_layer_norm, aten._fused_rms_norm)
def layer_norm(tape: Tape, findings: Findings, call: Call) -> None:
    """Take statistics over the last axes: over the channels that stay, where these run along them."""
    x, shape = call.args[0], call.args[1]
    first = x.dim() - len(shape)
    fields = list(tape.read(x))
    over = [own for own in fields if any(axis >= first for axis in varying(own))]
    for tensor in call.args[2:4]:
        if not isinstance(tensor, Tensor):
            continue
        for axis in range(len(shape)):
            labels = tape.along(tensor, axis, call.name)
            if any(first + axis in varying(own) for own in over):
                tape.unite(tape.along(x, first + axis, call.name), labels, call.name)
            else:
                tape.freeze(labels, f"{call.name} meets a tensor of fixed size")
    if over:
        tape.is_risky = tape.is_risky or not _is_stored(tape, shape)
        mixes(tape, findings, call, [tuple(fields)])
    else:
        tape.write(call.outputs[0], fields)


def _is_stored(tape: Tape, shape: Sequence[int]) -> bool:
    """Say whether the shape is that of one of torch's norms, which surgery sets by its weight."""
    module = tape.modules[-1][1] if tape.modules else None
    if not isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or module.weight is None:
        return False
    return list(module.normalized_shape) == list(shape)


@rule(aten.native_group_norm)
def group_norm(tape: Tape, findings: Findings, call: Call) -> None:
    """Take statistics over groups of channels, each of which keeps as many as the others."""
    x, groups = call.args[0], call.args[6]
    channels = tape.along(x, 1, call.name)
    for tensor in call.args[1:3]:
        if tensor is not None:
            channels = tape.unite(channels, tape.along(tensor, 0, call.name), call.name)
    out = channels.view([-1 if a == 1 else 1 for a in range(x.dim())])
    if groups == len(channels):
        tape.write(call.outputs[0], [out])
        for saved in call.outputs[1:]:
            tape.write(saved, [channels.view(1, -1)])
        tape.is_risky = True
        return
    if groups > 1:
        tape.pieces(channels.view(groups, -1), 0)
    mixes(tape, findings, call, [(out,)] if bool((channels >= 0).any()) and len(channels) > 1 else [()])


@rule(aten._weight_norm_interface)
def weight_norm(tape: Tape, findings: Findings, call: Call) -> None:
    """Divide every filter by its norm, which is over the input channels that stay, and give it its length."""
    direction, length, axis = call.args[0], call.args[1], call.arg(2, "dim", 0)
    fields = list(tape.read(direction))
    along = [own for own in fields if varying(own) == {axis}]
    for own in tape.read(length):
        for other in along:
            tape.unite(other, own, call.name)
    mixes(tape, findings, call, [tuple(fields), tuple(tape.read(length))])
