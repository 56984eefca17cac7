"""Operations that only move elements: the same operation, run on the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.graph.findings import Call, Findings, tensors_in
from prunus.graph.rules.pointwise import merge, refuse_fixed
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape, compact, varying


@rule(
    aten.permute, aten.transpose, aten.t, aten.expand, aten.squeeze, aten.unsqueeze, aten.alias, aten.detach, aten.flip
)
def movement(tape: Tape, findings: Findings, call: Call) -> None:
    """Every element keeps its label, wherever it goes."""
    source = call.args[0]
    moved = [call.func(own.expand(source.shape), *call.args[1:], **call.kwargs) for own in tape.read(source)]
    tape.write(call.out, moved)


@rule(aten.view, aten._unsafe_view)
def view(tape: Tape, findings: Findings, call: Call) -> None:
    """Lay labels out anew. Where one axis becomes several, the longest carries the channels, the others stay whole."""
    source, out = call.args[0], call.out
    moved = [compact(own.expand(source.shape).reshape(out.shape)) for own in tape.read(source)]
    for own in moved:
        axes = sorted(varying(own), key=lambda axis: (own.shape[axis], axis))
        for axis in axes[:-1]:
            tape.couple(own, axis)
    tape.write(out, moved)


@rule(aten.split, aten.split_with_sizes)
def split(tape: Tape, findings: Findings, call: Call) -> None:
    """Pieces cut by position stay equal: channels at equal offsets go together. Unequal pieces are kept whole."""
    source, pieces = call.args[0], call.out
    axis = call.arg(2, "dim", 0) % source.dim()
    results: list[list[Tensor]] = [[] for _ in pieces]
    for own in tape.read(source):
        parts = call.func(own.expand(source.shape), *call.args[1:], **call.kwargs)
        if axis in varying(own):
            if len({piece.shape[axis] for piece in pieces}) > 1:
                tape.freeze(own, f"{call.name} cuts it into unequal pieces")
            else:
                for part in parts[1:]:
                    tape.unite(parts[0], part, call.name)
        for result, part in zip(results, parts, strict=True):
            result.append(part)
    for piece, fields in zip(pieces, results, strict=True):
        tape.write(piece, fields)


@rule(aten.slice, aten.select, aten.unbind)
def cut(tape: Tape, findings: Findings, call: Call) -> None:
    """Keep an axis whole that is cut at a fixed position; the other axes keep their labels."""
    source = call.args[0]
    axis = call.arg(1, "dim", 0) % source.dim()
    whole = all(tuple(out.shape) == tuple(source.shape) for out in call.outputs)
    results: list[list[Tensor]] = [[] for _ in call.outputs]
    for own in tape.read(source):
        if axis in varying(own) and not whole:
            tape.freeze(own, f"{call.name} cuts it at a fixed position")
        parts = call.func(own.expand(source.shape), *call.args[1:], **call.kwargs)
        for result, part in zip(results, tensors_in(parts), strict=True):
            result.append(part)
    for out, fields in zip(call.outputs, results, strict=True):
        tape.write(out, fields)


@rule(aten.cat)
def cat(tape: Tape, findings: Findings, call: Call) -> None:
    """Along the joined axis labels follow one another; along the others they meet."""
    pieces = [piece for piece in call.args[0] if piece.numel() or piece.dim() > 1]
    axis = call.arg(1, "dim", 0) % call.out.dim()
    joined = [torch.full((1,) * call.out.dim(), -1) for _ in pieces]
    across: list[Tensor] = []
    for number, piece in enumerate(pieces):
        for own in tape.read(piece):
            if varying(own) == {axis}:
                joined[number] = own
            elif axis in varying(own):
                tape.freeze(own, f"{call.name} joins channels spread over several axes")
            else:
                refuse_fixed(tape, own, pieces, call.out.dim(), call.name)
                across = merge(tape, across, own, call.name)
    shape = [1] * call.out.dim()
    rows = []
    for piece, own in zip(pieces, joined, strict=True):
        shape[axis] = piece.shape[axis]
        rows.append(own.expand(shape))
    tape.write(call.out, [torch.cat(rows, axis), *across])
