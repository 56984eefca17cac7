"""Normalisations: those that treat channels apart, and those that mix them."""

from __future__ import annotations

from prunus.graph.findings import Call, Findings, Normalised
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape


@rule(aten.native_batch_norm)
def batch_norm(tape: Tape, findings: Findings, call: Call) -> None:
    """BatchNorm treats channels apart: its affine parameters and running statistics meet them."""
    x, tensors, out = call.args[0], tuple(call.args[1:5]), call.outputs[0]
    tape.only_along(x, {1}, call.name)
    channels = tape.along(x, 1, call.name)
    for tensor in tensors:
        if tensor is not None:
            channels = tape.unite(channels, tape.along(tensor, 0, call.name), call.name)
    shape = [1] * out.dim()
    shape[1] = len(channels)
    tape.write(out, [channels.view(shape)])
    findings.norms.append(Normalised(x, out, (tensors[0], tensors[1], tensors[2], tensors[3]), float(call.args[-1])))


@rule(aten.native_layer_norm, aten.native_group_norm)
def mixing_norm(tape: Tape, findings: Findings, call: Call) -> None:
    """LayerNorm and GroupNorm take their statistics over channels, so removing one changes the others: kept whole."""
    tape.freeze_tensors(call.inputs, f"{call.name} mixes channels")
    tape.write(call.outputs[0], tape.read(call.args[0]))
