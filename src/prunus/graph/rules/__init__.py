"""What each ATen operation does to channel labels, as a table of small rules.

A rule reads the labels of the operands from the tape and writes those of the results. An operation without a rule
freezes whatever labels it touches: unknown never means wrong, only unprunable, and the trace reports it.
"""

from __future__ import annotations

import torch

from prunus.graph.findings import Call, Findings
from prunus.graph.rules import contraction, joining, movement, normalisation, spatial
from prunus.graph.rules.mixing import mixes
from prunus.graph.rules.pointwise import pointwise
from prunus.graph.rules.table import NONLINEARITIES, RULES, rectifies, rule
from prunus.graph.tape import Tape

FAMILIES = (contraction, joining, movement, normalisation, spatial)  # importing them fills the table

__all__ = ["NONLINEARITIES", "RULES", "apply", "mixes", "pointwise", "rule"]


def apply(tape: Tape, findings: Findings, call: Call) -> None:
    """Carry labels through one operation: by its own rule, as element-wise, or by freezing what it touches."""
    packet = call.func.overloadpacket
    if tape.hinted("frozen") or (tape.hints.modules and any(name in tape.hints.modules for name, _ in tape.modules)):
        tape.freeze_tensors(call.inputs, f"{call.name} is given a size that is written as a number")
    if packet in RULES:
        RULES[packet](tape, findings, call)
    elif torch.Tag.pointwise in call.func.tags:
        pointwise(tape, findings, call)
    elif any(True for _ in tape.all_fields(call.inputs)):
        tape.freeze_tensors(call.inputs, f"{call.name} has no rule for channels")
    if tape.hints.deciding and any(name in tape.hints.deciding for name, _ in tape.modules):
        tape.freeze_tensors((*call.inputs, *call.outputs), "a value decides which layers run here, and some did not")
    if packet in NONLINEARITIES:
        findings.activations.append(call.outputs[0])
    if rectifies(call):
        findings.rectified.append(call.inputs[0])
