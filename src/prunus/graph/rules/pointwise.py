"""Element-wise operations: channels that meet are the same."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunus.graph.findings import Call, Findings
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape, varying

FILLS = {aten.bernoulli_, aten.uniform_, aten.normal_, aten.fill_, aten.zero_}
LIKES = {aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like}


@rule(*FILLS, *LIKES, aten._to_copy, aten.copy_, aten._prelu_kernel, aten.native_dropout, aten.masked_fill)
def pointwise(tape: Tape, findings: Findings, call: Call) -> None:
    """Element-wise: the labels of the operands that meet are the same channel."""
    operands = [tensor for tensor in call.inputs if tensor.dim()]
    for out in call.outputs:
        if len(operands) == 1 and operands[0].shape == out.shape:
            tape.write(out, tape.read(operands[0]), is_compact=True)
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


def merge(tape: Tape, fields: list[Tensor], new: Tensor, use: str) -> list[Tensor]:
    """Add a field to those of a result, united with each that varies along a common axis."""
    apart = []
    for old in fields:
        if varying(old) & varying(new):
            new = tape.unite(old, new, use)
        else:
            apart.append(old)
    return [*apart, new]


def refuse_fixed(tape: Tape, aligned: Tensor, operands: Sequence[Tensor], rank: int, use: str) -> None:
    """Freeze a field that meets an operand which is as long along its axis but carries no label there."""
    axes = varying(aligned)
    for operand in operands:
        shape = (1,) * (rank - operand.dim()) + tuple(operand.shape)
        long = {axis for axis in axes if shape[axis] > 1}
        offset = rank - operand.dim()
        covered = {axis + offset for own in tape.read(operand) for axis in varying(own)}
        if long and not long & covered:
            tape.freeze(aligned, f"{use} meets a tensor of fixed size")
