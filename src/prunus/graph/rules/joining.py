"""Operations that join tensors, or lay several channels out as one: labels follow one another, meet, or go together."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.graph.findings import Call, Findings
from prunus.graph.labels import compact, varying
from prunus.graph.rules.pointwise import merge, refuse_fixed
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape


@rule(aten.cat)
def cat(tape: Tape, findings: Findings, call: Call) -> None:
    """Along the joined axis labels follow one another; along the others they meet."""
    pieces = [piece for piece in call.args[0] if piece.numel() or piece.dim() > 1]
    axis = call.arg(1, "dim", 0) % call.out.dim()
    joined = [torch.full((1,) * call.out.dim(), -1) for _ in pieces]
    across: list[Tensor] = []
    for number, piece in enumerate(pieces):
        for own in tape.read(piece):
            if varying(own) == {axis} or (axis in varying(own) and tape.carrier(own) == axis):
                flat = tape.collapse(own, axis, call.name)
                joined[number] = flat.view([-1 if a == axis else 1 for a in range(own.dim())])
            elif axis in varying(own):
                tape.is_risky = True
                across = merge(tape, across, _without(tape, own, axis, call.name), call.name)
            else:
                refuse_fixed(tape, own, pieces, call.out.dim(), call.name)
                across = merge(tape, across, own, call.name)
    shape = [1] * call.out.dim()
    rows = []
    is_labelled = any(int(own.max()) >= 0 for own in joined)
    fixed: dict[int, Tensor] = {}
    for piece, own in zip(pieces, joined, strict=True):
        shape[axis] = piece.shape[axis]
        if is_labelled and axis in tape.even(piece) and not tape.hinted("tied"):
            own = tape.new_labels("", 0, shape[axis]).view(shape)  # as many as the code makes
            tape.is_risky = True
        elif is_labelled and own.numel() == 1 < shape[axis]:  # told apart, so that they keep their order when moved
            if id(piece) not in fixed:
                fixed[id(piece)] = tape.fixed_labels(shape[axis]).view(shape)
            own = fixed[id(piece)]
        rows.append(own.expand(shape))
    tape.write(call.out, [torch.cat(rows, axis), *across])


def _without(tape: Tape, own: Tensor, axis: int, use: str) -> Tensor:
    """Unite what differs along an axis of pieces that others are joined to."""
    first = own.amax(axis, keepdim=True)
    tape.unite(first.expand_as(own), own, use)
    return first


@rule(aten.stack)
def stack(tape: Tape, findings: Findings, call: Call) -> None:
    """Make a new axis of pieces: channels at equal positions count alike, and are the same once they are summed."""
    pieces, axis = call.args[0], call.arg(1, "dim", 0) % call.out.dim()
    axes = sorted({a for piece in pieces for own in tape.read(piece) for a in varying(own)})
    fields = []
    for along in axes:
        rows = []
        for piece in pieces:
            labels = tape.along(piece, along, call.name)
            rows.append(labels.view([-1 if a == along else 1 for a in range(piece.dim())]))
        own = compact(torch.stack(rows, axis))
        if own.shape[axis] > 1:
            tape.pieces(own, axis)
        fields.append(own)
    tape.write(call.out, fields)


@rule(aten.pixel_shuffle, aten.pixel_unshuffle)
def pixel_shuffle(tape: Tape, findings: Findings, call: Call) -> None:
    """Move channels to space or back: those that come to lie in one channel go together."""
    x, factor = call.args[0], call.args[1]
    labels = tape.along(x, x.dim() - 3, call.name)
    tape.only_along(x, {x.dim() - 3}, call.name)
    if call.func.overloadpacket is aten.pixel_shuffle:
        rows = labels.view(-1, factor * factor)
        tape.unite(rows[:, :1].expand_as(rows), rows, call.name)
        moved = rows[:, 0]
    else:
        moved = labels.repeat_interleave(factor * factor)
    tape.write(call.out, [moved.view([-1 if a == x.dim() - 3 else 1 for a in range(x.dim())])])


@rule(aten.channel_shuffle)
def channel_shuffle(tape: Tape, findings: Findings, call: Call) -> None:
    """Lay channels out as groups and read them across: the groups stay equal."""
    x, groups = call.args[:2]
    labels = tape.along(x, 1, call.name).view(groups, -1)
    tape.pieces(labels, 0)
    tape.reorders = tape.is_risky = True
    tape.write(call.out, [labels.t().reshape([-1 if a == 1 else 1 for a in range(x.dim())])])


@rule(aten.glu)
def gated(tape: Tape, findings: Findings, call: Call) -> None:
    """Multiply the first half of the channels by the second: their pairs go together."""
    x, axis = call.args[0], call.arg(1, "dim", -1) % call.args[0].dim()
    fields = []
    for own in tape.read(x):
        if axis in varying(own):
            halves = own.chunk(2, axis)
            tape.pieces(torch.stack(halves), 0)
            fields.append(tape.unite(halves[0], halves[1], call.name))
        else:
            fields.append(own)
    tape.write(call.out, fields)


@rule(aten.im2col, aten.col2im)
def windows(tape: Tape, findings: Findings, call: Call) -> None:
    """Put the windows of every channel beside one another, or back."""
    x, out = call.args[0], call.out
    axis = x.dim() - 2 if call.func.overloadpacket is aten.col2im else x.dim() - 3
    labels = tape.along(x, axis, call.name)
    tape.only_along(x, {axis}, call.name)
    target = out.dim() - 2 if call.func.overloadpacket is aten.im2col else out.dim() - 3
    if call.func.overloadpacket is aten.im2col:
        labels = labels.repeat_interleave(out.shape[target] // len(labels))
    else:
        rows = labels.view(out.shape[target], -1)
        tape.unite(rows[:, :1].expand_as(rows), rows, call.name)
        labels = rows[:, 0]
    tape.is_risky = True
    tape.write(out, [labels.view([-1 if a == target else 1 for a in range(out.dim())])])
