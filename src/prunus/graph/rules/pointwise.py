"""Element-wise operations: channels that meet are the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.graph.findings import Call, Findings
from prunus.graph.labels import varying
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape

FILLS = {aten.bernoulli_, aten.uniform_, aten.normal_, aten.fill_, aten.zero_}
LIKES = {aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like}


@rule(
    *(*FILLS, *LIKES, aten._to_copy, aten.copy_, aten._prelu_kernel, aten.native_dropout, aten.masked_fill),
    *(aten.masked_fill_, aten.hardswish, aten.hardswish_, aten.log_sigmoid_forward, aten.rrelu_with_noise),
)
def pointwise(tape: Tape, findings: Findings, call: Call) -> None:
    """Element-wise: the labels of the operands that meet are the same channel."""
    operands = [tensor for tensor in call.inputs if tensor.dim()]
    for out in call.outputs:
        if len(operands) == 1 and operands[0].shape == out.shape:
            tape.write(out, tape.read(operands[0]), is_compact=True)
            tape.write_even(out, tape.even(operands[0]))
            continue
        rank = out.dim()
        merged: list[Tensor] = []
        for operand in operands:
            for own in tape.read(operand):
                if any(own is other for other in merged):
                    continue
                aligned = own if own.dim() == rank else own.reshape((1,) * (rank - own.dim()) + tuple(own.shape))
                refuse_fixed(tape, aligned, operands, rank, call.name)
                merged = merge(tape, merged, aligned, call.name)
        tape.write(out, merged, is_compact=True)
        if tape.uniform:
            tape.write_even(out, _even_axes(tape, operands, out))
        if id(out) in tape.parents:
            _write_through(tape, out, merged, call.name)


def _write_through(tape: Tape, view: Tensor, fields: Sequence[Tensor], use: str) -> None:
    """Let the tensor that a view was cut from carry what was written into the view."""
    _, base, cut = tape.parents[id(view)]
    found = list(tape.read(base))
    for own in fields:
        for axis, positions in cut.items():
            if axis in varying(own):
                shape = [n if a != axis else base.shape[axis] for a, n in enumerate(own.shape)]
                known = [old for old in found if axis in varying(old)]
                whole = known[0].expand(shape).clone() if known else torch.full(shape, -1)
                found = [old for old in found if axis not in varying(old)]
                whole.index_copy_(axis, positions, own)
                found.append(whole)
            else:
                found = merge(tape, found, own, use)
    tape.write(base, found)
    if id(base) in tape.parents:
        _write_through(tape, base, found, use)


def _even_axes(tape: Tape, operands: Sequence[Tensor], out: Tensor) -> set[int]:
    """Return the axes along which a result has the same value everywhere: no operand differs there."""
    axes = set(range(out.dim()))
    for operand in operands:
        offset = out.dim() - operand.dim()
        even = {axis + offset for axis in tape.even(operand)}
        axes -= {axis + offset for axis, size in enumerate(operand.shape) if size > 1} - even
        axes -= {axis + offset for own in tape.read(operand) for axis in varying(own)}
    return axes if operands else set()


@rule(
    *(aten.zeros, aten.ones, aten.full, aten.empty, aten.rand, aten.randn),
    *(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.empty_strided, aten.new_empty_strided),
)
def made(tape: Tape, findings: Findings, call: Call) -> None:
    """Made in forward, and the same everywhere: as long as the code asks for."""
    tape.write_even(call.out, range(call.out.dim()))


def merge(tape: Tape, fields: list[Tensor], new: Tensor, use: str) -> list[Tensor]:
    """Add a field to those of a result, united with each that varies along a common axis."""
    apart = []
    for old in fields:
        if not varying(old) & varying(new) or _share_pieces(tape, old, new):
            apart.append(old)
        elif tape.columns and tape.is_column(old) != tape.is_column(new) and len(varying(old)) != len(varying(new)):
            apart.append(old)  # a grouped weight's filters, and the input channels of each
        elif _numbers_pieces(tape, new, old):
            tape.freeze(new, f"{use} gives each piece a value of its own")
            new = old
        elif _numbers_pieces(tape, old, new):
            tape.freeze(old, f"{use} gives each piece a value of its own")
        else:
            new = tape.unite(old, new, use)
    return [*apart, new]


def _share_pieces(tape: Tape, one: Tensor, other: Tensor) -> bool:
    """Say whether the channels of two fields run along different axes, and only their pieces along a common one."""
    common = varying(one) & varying(other)
    if varying(one) <= common or varying(other) <= common:
        return False
    return tape.carrier(one) not in common and tape.carrier(other) not in common


def _numbers_pieces(tape: Tape, one: Tensor, other: Tensor) -> bool:
    """Say whether a field runs along an axis that only numbers the pieces of the other: the heads of an attention."""
    axes = varying(other)
    return varying(one) < axes and tape.carrier(other) not in varying(one)


def refuse_fixed(tape: Tape, aligned: Tensor, operands: Sequence[Tensor], rank: int, use: str) -> None:
    """Freeze a field that meets an operand which is as long along its axis but carries no label there."""
    axes = varying(aligned)
    if len(axes) > 1:
        axes = {tape.carrier(aligned)}  # the others number pieces, which stay as many
    for operand in operands:
        shape = (1,) * (rank - operand.dim()) + tuple(operand.shape)
        long = {axis for axis in axes if shape[axis] > 1}
        offset = rank - operand.dim()
        covered = {axis + offset for own in tape.read(operand) for axis in varying(own)}
        even = {axis + offset for axis in tape.even(operand)}
        if long and long <= even:
            tape.is_risky = True  # it is made as long as what it meets, unless by a number
        elif long and not long & covered:
            tape.freeze(aligned, f"{use} meets a tensor of fixed size")


@rule(aten.index_put_, aten.index_put)
def put_at(tape: Tape, findings: Findings, call: Call) -> None:
    """Write where a mask of the tensor's own shape says; elsewhere, a number of positions is fixed."""
    x, indices, values = call.args[:3]
    masks = [index for index in indices if index is not None]
    if len(masks) == 1 and masks[0].shape == x.shape and values.numel() == 1:
        merged: list[Tensor] = []
        for own in (*tape.read(x), *tape.read(masks[0])):
            merged = merge(tape, merged, own, call.name)
        tape.write(call.out, merged, is_compact=True)
    else:
        tape.freeze_tensors(call.inputs, f"{call.name} writes at numbered positions")
        tape.write(call.out, tape.read(x))
