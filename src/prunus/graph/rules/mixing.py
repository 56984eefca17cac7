"""Operations that compute over channels together: what stays is computed over the kept ones alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunus.graph.findings import Call, Findings
from prunus.graph.labels import Fields, varying
from prunus.graph.tape import Tape


def mixes(tape: Tape, findings: Findings, call: Call, results: Sequence[Fields], *, ordered: int | None = None) -> None:
    """Write the results of an operation that computes over channels, and note it for the proof.

    `ordered` is the axis along which it matters which channel comes after which, if it does.
    """
    for out, fields in zip(call.outputs, results, strict=False):
        tape.write(out, fields)
    operands = [tape.read(tensor) for tensor in call.inputs]
    outcomes = [tape.read(out) for out in call.outputs]
    runs = tuple(tuple(tape.carrier(own) for own in fields) for fields in (*operands, *outcomes))
    findings.site(call, operands, outcomes, gathers=True, ordered=ordered, runs=runs)


def reduced(tape: Tape, own: Tensor, dims: set[int], use: str) -> Tensor | None:
    """Return what is left of a field once these axes are reduced over; None where its channels are gone.

    Where the channels run along another axis, the pieces that are reduced over go together.
    """
    axes = varying(own)
    if not axes & dims:
        return own
    if axes <= dims or tape.carrier(own) in dims:
        return None
    for axis in sorted(axes & dims):
        first = own.amax(axis, keepdim=True)
        tape.unite(first.expand_as(own), own, use)
        own = first
    return own
