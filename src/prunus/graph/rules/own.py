"""Rules for operations of a user's own, made with torch.library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from prunus.errors import ConfigError
from prunus.graph.findings import Call, Findings
from prunus.graph.rules.mixing import mixes
from prunus.graph.rules.table import RULES, Rule
from prunus.graph.tape import Tape

_OWN: set[OpOverloadPacket[Any, Any]] = set()


def op_rule(*ops: Any) -> Callable[[Rule], Rule]:
    """Register what operations of your own do to channels, as a decorator or with a rule that is there already.

    ``prunus.op_rule(torch.ops.mine.soft_clip)(prunus.pointwise)``

    Args:
        *ops: each as `torch.library.custom_op` returns it, or as ``torch.ops.namespace.name``.

    Raises:
        ConfigError: an operation has a rule already, or is none.
    """
    packets = [_packet(op) for op in ops]

    def register(function: Rule) -> Rule:
        for packet in packets:
            if packet in RULES:
                hint = f" Take it away first: prunus.remove_op_rule(torch.ops.{packet})." if packet in _OWN else ""
                raise ConfigError(f"{packet} has a rule already, {RULES[packet].__name__}.{hint}")
        for packet in packets:
            RULES[packet] = function
            _OWN.add(packet)
        return function

    return register


def remove_op_rule(*ops: Any) -> None:
    """Take away the rules that `op_rule` gave to these operations; without one they are kept whole again.

    Raises:
        ConfigError: an operation has no rule of yours.
    """
    packets = [_packet(op) for op in ops]
    for packet in packets:
        if packet not in _OWN:
            raise ConfigError(f"{packet} has no rule that prunus.op_rule gave it.")
    for packet in packets:
        _OWN.remove(packet)
        del RULES[packet]


def over_space(tape: Tape, findings: Findings, call: Call) -> None:
    """Treat every channel of the first tensor, (N, C, …), apart from the others, as pooling or a blur do.

    Further tensors of one axis, (C,), or of as many axes as the first, (C, …), hold something for every channel.
    """
    labels = _channels(tape, call)
    for out in call.outputs:
        if out.dim() > 1 and out.shape[1] == len(labels):
            tape.write(out, [_along_second(labels, out)])
        else:
            tape.freeze(labels, f"{call.name} does not give a result for every channel")


def over_channels(tape: Tape, findings: Findings, call: Call) -> None:
    """Compute over the channels of the first tensor, (N, C, …), together: over those that stay, in the smaller network.

    Results have as many channels, as a norm's have, or none, as a mean over them. Further tensors: see `over_space`.
    """
    labels = _channels(tape, call)
    if not bool((labels >= 0).any()):
        return
    kept = [out.dim() > 1 and out.shape[1] == len(labels) for out in call.outputs]
    fields = [(_along_second(labels, out),) if has else () for has, out in zip(kept, call.outputs, strict=True)]
    mixes(tape, findings, call, fields)


def _channels(tape: Tape, call: Call) -> Tensor:
    """Return the labels of the first tensor's channels, (C,), united with what further tensors hold for each."""
    first, *others = call.inputs
    tape.only_along(first, {1}, call.name)
    labels = tape.along(first, 1, call.name)
    for other in others:
        if other.dim() in (1, first.dim()) and other.shape[0] == len(labels):
            tape.only_along(other, {0}, call.name)
            labels = tape.unite(labels, tape.along(other, 0, call.name), call.name)
        else:
            tape.freeze_tensors([other], f"{call.name} sees it whole")
    return labels


def _along_second(labels: Tensor, out: Tensor) -> Tensor:
    return labels.view([-1 if axis == 1 else 1 for axis in range(out.dim())])


def _packet(op: Any) -> OpOverloadPacket[Any, Any]:
    """Return an operation by the name that the table of rules knows it by."""
    op = getattr(op, "_opoverload", op)
    packet = op.overloadpacket if isinstance(op, OpOverload) else op
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        raise ConfigError(
            f"{op!r} is no operation that a rule can be for; make one with torch.library.custom_op, and give that or "
            "torch.ops.namespace.name."
        )
    return packet
