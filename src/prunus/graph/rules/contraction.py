"""Contractions: channels meet a weight's input axis, and its output axis is what comes out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunus.graph.findings import Call, Contracted, Findings
from prunus.graph.labels import varying
from prunus.graph.rules.mixing import mixes
from prunus.graph.rules.pointwise import merge
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape


@rule(aten.convolution)
def convolution(tape: Tape, findings: Findings, call: Call) -> None:
    """Unite input channels with the weight's C_in; C_out comes out. Groups stay as many, or go with their channel."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    if not (tape.read(x) or tape.read(weight) or tape.read(bias)):
        return
    if x.shape[1] == 1 and any(varying(own) & {2, 3, 4} for own in tape.read(x)):
        return _over_channels(tape, findings, call)
    output_axis, input_axis = (1, 0) if transposed else (0, 1)
    tape.only_along(x, {1}, call.name)
    incoming = tape.along(x, 1, call.name)
    if transposed:
        outgoing = _transposed(tape, call, incoming, groups)
    elif groups == 1:
        tape.unite(incoming, tape.along(weight, 1, call.name), call.name)
        outgoing = tape.along(weight, 0, call.name)
    elif groups == len(incoming):
        own = tape.along(weight, 0, call.name)
        outgoing = incoming.repeat_interleave(weight.shape[0] // groups)
        if 0 in tape.even(weight):
            tape.write(call.out, [outgoing.view([-1 if a == 1 else 1 for a in range(call.out.dim())])])
            tape.is_risky = True  # one kernel for all channels, repeated as often as there are channels
            return
        tape.unite(outgoing, own, call.name)
        tape.is_risky = tape.is_risky or not _is_module(tape)
    else:
        outgoing = _grouped(tape, findings, call, incoming, groups)
    positions = math.prod((x if transposed else call.out).shape[2:])
    _produce(tape, findings, call, (weight, bias, output_axis, input_axis), outgoing, incoming, positions)


def _is_module(tape: Tape) -> bool:
    return bool(tape.modules) and isinstance(tape.modules[-1][1], torch.nn.modules.conv._ConvNd)


def _grouped(tape: Tape, findings: Findings, call: Call, incoming: Tensor, groups: int) -> Tensor:
    """Let every group keep as many input channels as the others, and as many output channels."""
    weight = call.args[1]
    outgoing = _only_rows(tape, weight)
    inputs, outputs = incoming.view(groups, -1), outgoing.view(groups, -1)
    columns = _columns(tape, weight, groups, call.name)
    if bool((inputs >= 0).all()) and bool((inputs == inputs[:, :1]).all()):
        return _whole_groups(tape, findings, weight, inputs, outputs, columns, call.name)
    tape.unite(inputs, columns, call.name)
    for pieces in (inputs, outputs):
        tape.pieces(pieces, 0)
    return outgoing


def _whole_groups(
    tape: Tape, findings: Findings, weight: Tensor, inputs: Tensor, outputs: Tensor, columns: Tensor, use: str
) -> Tensor:
    """Let a group go with all that goes in and comes out, where its input channels are one channel many times."""
    own = inputs[:, :1]
    for rows in (columns, outputs):
        tape.unite(own.expand_as(rows), rows, use)
    tape.write(weight, [field for field in tape.read(weight) if varying(field) == {0}])
    tape.unmark(columns)
    if _is_module(tape):
        tape.sizes.append((tape.modules[-1][0], "groups", own.reshape(-1)))
    tape.is_risky = True
    return own.expand_as(outputs).reshape(-1)


def _only_rows(tape: Tape, weight: Tensor) -> Tensor:
    """Return the labels along a grouped weight's output axis, leaving out its input field, which varies there too."""
    for own in tape.read(weight):
        if varying(own) == {0}:
            return own.reshape(-1)
    return torch.full((weight.shape[0],), -1)


def _columns(tape: Tape, weight: Tensor, groups: int, use: str) -> Tensor:
    """Return the labels of a grouped weight's input channels, (groups, C_in / groups)."""
    size = weight.shape[1]
    for own in tape.read(weight):
        if 1 in varying(own):
            rest = own.reshape(own.shape[0], size, -1)
            if rest.shape[2] > 1:
                tape.unite(rest[:, :, :1].expand_as(rest), rest, use)
            rows = rest[:, :, 0].expand(weight.shape[0], size).view(groups, -1, size)
            if rows.shape[1] > 1:
                tape.unite(rows[:, :1].expand_as(rows), rows, use)
            return rows[:, 0]
    return torch.full((groups, size), -1)


def _transposed(tape: Tape, call: Call, incoming: Tensor, groups: int) -> Tensor:
    """Unite input channels with the weight's first axis; its second, once a group, is what comes out."""
    weight = call.args[1]
    if groups == 1:
        tape.unite(incoming, tape.along(weight, 0, call.name), call.name)
        return tape.along(weight, 1, call.name)
    incoming = tape.unite(incoming, _only_rows(tape, weight), call.name)
    if groups < len(incoming):
        columns = _columns(tape, weight, groups, call.name)
        for pieces in (incoming.view(groups, -1), columns):
            tape.pieces(pieces, 0)
        return columns.reshape(-1)
    if weight.shape[1] > 1:
        tape.freeze_tensors([call.args[0], weight], "a depthwise transposed convolution multiplies channels")
        return torch.full((weight.shape[1] * groups,), -1)
    return incoming


def _over_channels(tape: Tape, findings: Findings, call: Call) -> None:
    """Convolve along the channels themselves, as ECA does: each meets its neighbours among those that stay."""
    x, weight, bias = call.args[:3]
    tape.freeze_tensors([weight, bias], f"{call.name} runs over channels")
    same = x.shape[2:] == call.out.shape[2:]
    if not same:
        tape.freeze_tensors([x], f"{call.name} runs over channels and changes their number")
    axis = next(a for own in tape.read(x) for a in varying(own) if a > 1)
    mixes(tape, findings, call, [tape.read(x) if same else ()], ordered=axis)


def _produce(
    tape: Tape,
    findings: Findings,
    call: Call,
    weight: tuple[Tensor, Tensor | None, int, int],
    outgoing: Tensor,
    incoming: Tensor,
    positions: int,
) -> None:
    """Write the labels of a contraction's result and note it as a layer."""
    tensor, bias, output_axis, input_axis = weight
    if bias is not None:
        outgoing = tape.unite(outgoing, tape.along(bias, 0, call.name), call.name)
    shape = [1] * call.out.dim()
    shape[1] = len(outgoing)
    tape.write(call.out, [outgoing.view(shape)])
    groups = call.args[8] if call.name == "aten.convolution" else 1
    findings.contractions.append(
        Contracted(tensor, bias, call.out, output_axis, input_axis, positions, outgoing, incoming, groups)
    )
    operand = call.args[1] if call.name == "aten.addmm" else call.args[0]
    findings.site(call, [tape.read(operand)], [], gathers=False)


@rule(aten.mm, aten.addmm)
def matrix_product(tape: Tape, findings: Findings, call: Call) -> None:
    """Unite features with a linear layer's input axis; rows are positions, and may be channels that pass."""
    bias, x, weight = (None, *call.args[:2]) if call.func.overloadpacket is aten.mm else call.args[:3]
    incoming = tape.along(x, 1, call.name)
    tape.unite(incoming, tape.along(weight, 0, call.name), call.name)
    columns = [own for own in tape.read(weight) if varying(own) == {1}]
    if len(columns) > 1 and bias is None:
        return _kernels(tape, findings, call, columns, incoming)
    outgoing = tape.along(weight, 1, call.name)
    rows = [own for own in tape.read(x) if varying(own) == {0}]
    _produce(tape, findings, call, (weight, bias, 1, 0), outgoing, incoming, x.shape[0] // findings.batch)
    if rows:
        tape.write(call.out, [*rows, *tape.read(call.out)], is_compact=True)


def _kernels(tape: Tape, findings: Findings, call: Call, columns: list[Tensor], incoming: Tensor) -> None:
    """Mix whole kernels, whose filters and input channels lie along one axis: both come out along it."""
    x = call.args[0]
    positions = x.shape[0] // findings.batch
    findings.contractions.append(
        Contracted(call.out, None, call.out, 1, 0, positions, torch.full((0,), -1), incoming, computed=False)
    )
    tape.write(call.out, columns, is_compact=True)
    findings.site(call, [tape.read(x)], [], gathers=False)


@rule(aten.bmm, aten.baddbmm)
def batched_product(tape: Tape, findings: Findings, call: Call) -> None:
    """Unite the axes that are summed over; rows and columns go on. A weight repeated for a batch is a layer."""
    added, left, right = (None, *call.args) if call.func.overloadpacket is aten.bmm else call.args[:3]
    results: list[Tensor] = []
    batches: list[Tensor] = []
    summed: dict[int, Tensor] = {}
    for number, (tensor, axis) in enumerate(((left, 2), (right, 1))):
        for own in tape.read(tensor):
            if axis in varying(own):
                if 3 - axis in varying(own):
                    first = own.amax(3 - axis, keepdim=True)
                    tape.unite(first.expand_as(own), own, call.name)
                    own = first
                own = own if axis == 2 else own.transpose(1, 2)
                summed[number] = tape.unite(summed[number], own, call.name) if number in summed else own
            elif varying(own) == {0}:
                batches = merge(tape, batches, own, call.name)
                if not any(0 in varying(field) for field in tape.read(right if number == 0 else left)):
                    tape.freeze(own, f"{call.name} meets a tensor of fixed size")
            else:
                results.append(own)
    results += batches
    if len(summed) == 2:
        tape.unite(summed[0], summed[1], call.name)
    for own in summed.values():
        if len(summed) == 1:
            tape.freeze(own, f"{call.name} meets a tensor of fixed size")
    if added is not None and any(True for _ in tape.all_fields([added])):
        tape.freeze_tensors([added], f"{call.name} adds channels")
    tape.write(call.out, results, is_compact=True)
    positions = left.shape[0] * left.shape[1] // findings.batch
    consumed = torch.cat([torch.full((1,), -1), *(own.reshape(-1) for own in summed.values())])
    nothing = torch.full((0,), -1)
    findings.contractions.append(Contracted(right, None, call.out, 2, 1, positions, nothing, consumed, computed=False))
    findings.site(call, [tape.read(left)], [], gathers=False)
