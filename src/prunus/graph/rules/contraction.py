"""Contractions: channels meet a weight's input axis, and its output axis is what comes out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunus.graph.findings import Call, Contracted, Findings
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape


@rule(aten.convolution)
def convolution(tape: Tape, findings: Findings, call: Call) -> None:
    """Unite input channels with the weight's C_in; C_out comes out. Groups stay as many, or go with their channel."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    output_axis, input_axis = (1, 0) if transposed else (0, 1)
    tape.only_along(x, {1}, call.name)
    incoming = tape.along(x, 1, call.name)
    outgoing = tape.along(weight, output_axis, call.name)
    columns = tape.along(weight, input_axis, call.name)
    if groups == 1:
        tape.unite(incoming, columns, call.name)
    elif groups == len(incoming) and not transposed:
        outgoing = tape.unite(incoming.repeat_interleave(weight.shape[0] // groups), outgoing, call.name)
    elif transposed:
        tape.freeze(
            torch.cat([incoming, outgoing, columns]), "a grouped transposed convolution has no rule for channels"
        )
    else:
        tape.couple(incoming.view(groups, -1), 0)
        tape.couple(outgoing.view(groups, -1), 0)
        tape.unite(incoming.view(groups, -1)[0], columns, call.name)
    positions = math.prod((x if transposed else call.out).shape[2:])
    _produce(tape, findings, call, (weight, bias, output_axis, input_axis), outgoing, positions)


def _produce(
    tape: Tape,
    findings: Findings,
    call: Call,
    weight: tuple[Tensor, Tensor | None, int, int],
    outgoing: Tensor,
    positions: int,
) -> None:
    """Write the labels of a contraction's result and note it as a layer."""
    tensor, bias, output_axis, input_axis = weight
    if bias is not None:
        outgoing = tape.unite(outgoing, tape.along(bias, 0, call.name), call.name)
    shape = [1] * call.out.dim()
    shape[1] = len(outgoing)
    tape.write(call.out, [outgoing.view(shape)])
    findings.contractions.append(Contracted(tensor, bias, call.out, output_axis, input_axis, positions))


@rule(aten.mm, aten.addmm)
def matrix_product(tape: Tape, findings: Findings, call: Call) -> None:
    """Unite features with a linear layer's input axis; rows are positions and carry no channels."""
    bias, x, weight = (None, *call.args[:2]) if call.func.overloadpacket is aten.mm else call.args[:3]
    tape.only_along(x, {1}, call.name)
    tape.unite(tape.along(x, 1, call.name), tape.along(weight, 0, call.name), call.name)
    outgoing = tape.along(weight, 1, call.name)
    _produce(tape, findings, call, (weight, bias, 1, 0), outgoing, x.shape[0] // findings.batch)


@rule(aten.bmm)
def batched_product(tape: Tape, findings: Findings, call: Call) -> None:
    """Unite the axes that are summed over; rows and columns go on. A weight repeated for a batch is a layer."""
    left, right = call.args
    tape.only_along(left, {1, 2}, call.name)
    tape.only_along(right, {1, 2}, call.name)
    tape.unite(tape.along(left, 2, call.name), tape.along(right, 1, call.name), call.name)
    rows, columns = tape.along(left, 1, call.name), tape.along(right, 2, call.name)
    tape.write(call.out, [rows.view(1, -1, 1), columns.view(1, 1, -1)])
    positions = left.shape[0] * left.shape[1] // findings.batch
    findings.contractions.append(Contracted(right, None, call.out, 2, 1, positions, computed=False))
